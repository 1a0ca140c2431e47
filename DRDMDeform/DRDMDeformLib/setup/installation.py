"""Install PyTorch and the other packages into Slicer's Python with the PyTorch extension and pip."""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import importlib.util
import inspect
import io
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import slicer
from slicer.i18n import tr as _

from DRDMLib.errors import DRDMError
from DRDMLib.runtime.probe import site_folders, torch_leftovers

from .diagnosis import Diagnosis, Remedy, explainFailure

REQUIREMENTS = Path(__file__).resolve().parents[2] / "Resources" / "requirements.txt"
EXTENSION = "PyTorch"
# Packages that this module uses in Slicer's own process. Others need no restart when they are replaced: the PyTorch
# extension replaces pip.
USED = ("torch", "numpy", "scipy", "SimpleITK", "safetensors", "packaging", "platformdirs")


class Installation:
    """Carries out the remedy of a diagnosis. The user is asked once, before anything is downloaded or removed.

    Attributes:
        restartNeeded: whether packages that are in use were replaced since Slicer was started.
        onOutput: called with each line that pip prints, and once before the first; Slicer processes events then.
    """

    def __init__(self, folders: Sequence[Path] | None = None, requirements: Path = REQUIREMENTS) -> None:
        self._folders = list(folders) if folders is not None else site_folders()
        self._requirements = requirements
        self.restartNeeded = False
        self.onOutput: Callable[[str], None] = lambda line: None

    def run(self, found: Diagnosis, pinned: Iterable[str] = ()) -> None:
        """Ask, install, and offer a restart if packages that are in use were replaced.

        Args:
            found: the diagnosis.
            pinned: packages that require certain versions of PyTorch, for error messages.

        Raises:
            DRDMError: the user declined, or the installation failed; the message says what to do.
        """
        utilities = self._torchLogic() if found.remedy is not Remedy.PACKAGES else None
        if found.remedy is Remedy.REPLACE and "torch" in sys.modules:
            self._offerRestart(_("PyTorch is in use and cannot be replaced before a restart. Restart Slicer now?"))
            raise DRDMError(_("Restart Slicer, then press the button again before PyTorch is used."))
        self._requireDiskSpace(found)
        self._askUser(found)
        before = _versions()
        with self._explainErrors(found, pinned):
            if utilities is not None:
                # The damaged file may come from the cache.
                with _environmentVariable("PIP_NO_CACHE_DIR", "1" if found.remedy is Remedy.REPLACE else None):
                    if found.remedy is Remedy.REPLACE:
                        self._removeTorch()
                    utilities.installTorch(
                        askConfirmation=False,
                        forceComputationBackend=found.backend or None,
                        torchVersionRequirement=found.requirement,
                    )
                importlib.invalidate_caches()
                # light-the-torch reports no error if pip has failed.
                if importlib.util.find_spec("torch") is None:
                    raise RuntimeError(_("PyTorch is still missing"))
            _installRequirements(self._requirements)
        self._offerRestartIfReplaced(before)

    # Before the installation

    def _torchLogic(self) -> Any:
        """Return the logic of the PyTorch extension, or install or update the extension and offer a restart."""
        try:
            logic = importlib.import_module("PyTorchUtils").PyTorchUtilsLogic()
        except (ImportError, AttributeError):
            logic = None
        wanted = {"askConfirmation", "forceComputationBackend", "torchVersionRequirement"}
        if logic is not None and wanted <= set(inspect.signature(logic.installTorch).parameters):
            return logic
        outdated = logic is not None
        question = (
            _("The extension PyTorch is too old. Update it now? Slicer has to be restarted afterward.")
            if outdated
            else _("The extension PyTorch is missing. Install it now? Slicer has to be restarted afterward.")
        )
        if not slicer.util.confirmOkCancelDisplay(question, _("DRDM Deform")):
            raise DRDMError(_("Install the extension PyTorch in the Extensions Manager and restart Slicer."))
        self._installExtension(outdated)
        self._offerRestart(_("The extension PyTorch is installed. Restart Slicer now?"))
        raise DRDMError(_("Restart Slicer, then press the button again."))

    def _installExtension(self, update: bool) -> None:
        manager = slicer.app.extensionsManagerModel()
        interactive, manager.interactive = manager.interactive, False
        try:
            done = manager.installExtensionFromServer(EXTENSION, False, update)
        finally:
            manager.interactive = interactive
        if not done:
            raise DRDMError(
                _(
                    "The extension PyTorch could not be installed; check the network, or install it in the Extensions "
                    "Manager, and restart Slicer."
                )
            )

    def _requireDiskSpace(self, found: Diagnosis) -> None:
        free = min((shutil.disk_usage(folder).free for folder in self._folders), default=0) / 1e9
        if free < found.gigabytes:
            raise DRDMError(
                _(
                    "Slicer's disk has only {free:.1f} GB of free space; free some until there are {needed:.0f} GB."
                ).format(free=free, needed=max(1.0, found.gigabytes))
            )

    def _askUser(self, found: Diagnosis) -> None:
        parts = [found.problem or found.advice]
        if found.remedy is Remedy.REPLACE:
            parts.append(_("The installed PyTorch will be removed first."))
        small = found.remedy is Remedy.PACKAGES
        what = _("the missing Python packages") if small else _("PyTorch and small Python packages")
        parts.append(
            _("Download and install {what} now? This needs up to {gigabytes:.1g} GB and takes some minutes.").format(
                what=what, gigabytes=found.gigabytes
            )
        )
        if not slicer.util.confirmOkCancelDisplay("\n\n".join(parts), _("DRDM Deform")):
            raise DRDMError(_("Nothing was installed; press the button to install it later."))

    # The installation

    def _removeTorch(self) -> None:
        """Remove PyTorch and the files of an interrupted installation, which pip would take for a complete one."""
        with contextlib.suppress(subprocess.CalledProcessError):
            slicer.util.pip_uninstall("torch torchvision torchaudio")
        importlib.invalidate_caches()
        for path in torch_leftovers(self._folders):
            removeTree(path)

    @contextlib.contextmanager
    def _explainErrors(self, found: Diagnosis, pinned: Iterable[str]) -> Iterator[None]:
        output = _Tee(sys.stdout, self.onOutput)
        try:
            self.onOutput("")
            with slicer.util.WaitCursor(), contextlib.redirect_stdout(output):
                yield
        except DRDMError:
            raise
        # An error of pip, a file in use, or any error of the new package when it is imported.
        except Exception as error:
            raise DRDMError(explainFailure(f"{output.getvalue()}\n{error}", found, pinned)) from error

    # After the installation

    def _offerRestartIfReplaced(self, before: dict[str, str]) -> None:
        """Offer a restart if packages that are in use were replaced, since their old version stays in memory."""
        after = _versions()
        changed = {name for name, version in before.items() if after.get(name) != version}
        loaded = [
            module
            for module, packages in importlib.metadata.packages_distributions().items()
            if module in USED and module in sys.modules and changed & {package.lower() for package in packages}
        ]
        if loaded:
            self._offerRestart(
                _("Packages in use were replaced ({names}). Restart Slicer now?").format(
                    names=", ".join(sorted(loaded))
                )
            )

    def _offerRestart(self, question: str) -> None:
        """Offer a restart once; later the button in Setup does."""
        if self.restartNeeded:
            return
        self.restartNeeded = True
        if slicer.util.confirmYesNoDisplay(question, _("DRDM Deform")):
            slicer.util.restart()


def removeTree(path: Path) -> None:
    """Remove a file or a folder with all that it contains; of a link only itself, wherever it leads."""
    # Junctions are links of Windows, known to Python 3.12 and later.
    if path.is_symlink() or not path.is_dir():
        path.unlink()
    elif getattr(path, "is_junction", bool)():
        path.rmdir()
    else:
        shutil.rmtree(path)


class _Tee(io.StringIO):
    """Prints text, keeps a copy, and reports each line."""

    def __init__(self, stream: Any, onLine: Callable[[str], None]) -> None:
        super().__init__()
        self._stream, self._onLine = stream, onLine
        self._line = ""

    def write(self, text: str) -> int:
        self._stream.write(text)
        *lines, self._line = (self._line + text).split("\n")
        for line in lines:
            if line.strip():
                self._onLine(line.strip())
        return super().write(text)

    def flush(self) -> None:
        self._stream.flush()


@contextlib.contextmanager
def _environmentVariable(name: str, value: str | None) -> Iterator[None]:
    """Set an environment variable temporarily; ``None`` leaves it unchanged."""
    before = os.environ.get(name)
    if value is not None:
        os.environ[name] = value
    try:
        yield
    finally:
        if value is not None:
            os.environ.pop(name)
            if before is not None:
                os.environ[name] = before


def _versions() -> dict[str, str]:
    importlib.invalidate_caches()
    found = ((d.metadata["Name"] or "", d.version or "") for d in importlib.metadata.distributions())
    return {name.lower(): version for name, version in found}


def _installRequirements(requirements: Path) -> None:
    """Install the missing packages of a requirements file, without asking and without offering a restart."""
    try:
        packaging = importlib.import_module("slicer.packaging")
    except ImportError:
        # Slicer 5.10 does not have this module.
        packaging = None
    if packaging is not None:
        wanted = packaging.load_requirements(requirements)
        # The progress window would show an error a second time.
        packaging.pip_ensure(wanted, prompt_install=False, prompt_restart=False, show_progress=False)
        return
    missing = [line for line in requirementLines(requirements) if not _satisfied(line)]
    if missing:
        slicer.util.pip_install(missing)


def requirementLines(path: Path) -> list[str]:
    """Read the requirements of a file, without comments."""
    lines = (line.split("#")[0].strip() for line in path.read_text(encoding="utf-8").splitlines())
    return [line for line in lines if line]


def _satisfied(requirement: str) -> bool:
    from packaging.requirements import Requirement

    wanted = Requirement(requirement)
    try:
        return wanted.specifier.contains(importlib.metadata.version(wanted.name), prereleases=True)
    except importlib.metadata.PackageNotFoundError:
        return False
