"""Installs PyTorch and the rest into Slicer's Python: one question, then the PyTorch extension and pip."""

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
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import slicer
from slicer.i18n import tr as _

from DRDMLib.errors import DRDMError
from DRDMLib.runtime.probe import site_folders, torch_leftovers

from .diagnosis import Diagnosis, Remedy, explainFailure

REQUIREMENTS = Path(__file__).resolve().parents[1] / "Resources" / "requirements.txt"
EXTENSION = "PyTorch"


class Installation:
    """Carries out what a diagnosis asks for. Nothing is downloaded or removed before the user has said yes, once.

    Attributes:
        restartNeeded: something that is loaded in this process was replaced, and no restart has followed.
    """

    def __init__(self, folders: Sequence[Path] | None = None, requirements: Path = REQUIREMENTS) -> None:
        self._folders = list(folders) if folders is not None else site_folders()
        self._requirements = requirements
        self.restartNeeded = False

    def run(self, found: Diagnosis, pinned: Iterable[str] = ()) -> None:
        """Ask, install, and offer a restart if what is loaded was replaced.

        Raises:
            DRDMError: declined, or it did not succeed; the sentence says what to do.
        """
        utilities = self._utilities() if found.remedy is not Remedy.PACKAGES else None
        if found.remedy is Remedy.REPLACE and "torch" in sys.modules:
            self._offerRestart(
                _("PyTorch is in use and cannot be replaced now. Restart Slicer, then press the button again?")
            )
            raise DRDMError(_("Restart Slicer, then press the button again, before anything uses PyTorch."))
        self._requireRoom(found)
        self._ask(found)
        before = _versions()
        with self._explaining(found, pinned):
            if utilities is not None:
                # What was cached may be what was damaged.
                with _variable("PIP_NO_CACHE_DIR", "1" if found.remedy is Remedy.REPLACE else None):
                    if found.remedy is Remedy.REPLACE:
                        self._removeTorch()
                    utilities.installTorch(
                        askConfirmation=False,
                        forceComputationBackend=found.backend or None,
                        torchVersionRequirement=found.requirement,
                    )
                importlib.invalidate_caches()
                # light-the-torch ends well even if pip did not.
                if importlib.util.find_spec("torch") is None:
                    raise RuntimeError(_("PyTorch is still not there"))
            _ensure(self._requirements)
        self._noticeReplaced(before)

    # What it takes

    def _utilities(self) -> Any:
        """The logic of the PyTorch extension; if it is missing or too old, it is installed and a restart offered."""
        try:
            logic = importlib.import_module("PyTorchUtils").PyTorchUtilsLogic()
        except (ImportError, AttributeError):
            logic = None
        wanted = {"askConfirmation", "forceComputationBackend", "torchVersionRequirement"}
        if logic is not None and wanted <= set(inspect.signature(logic.installTorch).parameters):
            return logic
        outdated = logic is not None
        question = (
            _("The extension PyTorch is too old. Update it now? Slicer has to be restarted afterwards.")
            if outdated
            else _("The extension PyTorch is missing. Install it now? Slicer has to be restarted afterwards.")
        )
        if not slicer.util.confirmOkCancelDisplay(question, _("DRDM Deform")):
            raise DRDMError(_("Install the extension PyTorch in the Extensions Manager and restart Slicer."))
        self._installExtension(outdated)
        self._offerRestart(_("The extension PyTorch is installed. Restart Slicer now?"))
        raise DRDMError(_("Restart Slicer, then press the button again."))

    def _installExtension(self, update: bool) -> None:
        manager = slicer.app.extensionsManagerModel()
        asked, manager.interactive = manager.interactive, False
        try:
            done = manager.installExtensionFromServer(EXTENSION, False, update)
        finally:
            manager.interactive = asked
        if not done:
            raise DRDMError(
                _(
                    "The extension PyTorch could not be installed; check the network, or install it in the Extensions "
                    "Manager, and restart Slicer."
                )
            )

    def _requireRoom(self, found: Diagnosis) -> None:
        free = min((shutil.disk_usage(folder).free for folder in self._folders), default=0) / 1e9
        if free < found.gigabytes:
            raise DRDMError(
                _(
                    "Only {free:.1f} GB are free where Slicer is; {needed:.0f} GB are needed, so free some first."
                ).format(free=free, needed=max(1.0, found.gigabytes))
            )

    def _ask(self, found: Diagnosis) -> None:
        parts = [found.problem or found.advice]
        if found.remedy is Remedy.REPLACE:
            parts.append(_("The present PyTorch will be removed first."))
        what = _("the missing Python packages") if found.remedy is Remedy.PACKAGES else _("PyTorch and safetensors")
        parts.append(
            _("Download and install {what} now? It takes up to {gigabytes:.1g} GB and some minutes.").format(
                what=what, gigabytes=found.gigabytes
            )
        )
        if not slicer.util.confirmOkCancelDisplay("\n\n".join(parts), _("DRDM Deform")):
            raise DRDMError(_("Nothing was installed; press the button when you want it."))

    # Doing it

    def _removeTorch(self) -> None:
        """Remove PyTorch and all that an interrupted installation has left: pip alone would take it for complete."""
        with contextlib.suppress(subprocess.CalledProcessError):
            slicer.util.pip_uninstall("torch torchvision torchaudio")
        importlib.invalidate_caches()
        for path in torch_leftovers(self._folders):
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()

    @contextlib.contextmanager
    def _explaining(self, found: Diagnosis, pinned: Iterable[str]) -> Iterator[None]:
        said = _Echo(sys.stdout)
        try:
            with contextlib.redirect_stdout(said):
                yield
        except DRDMError:
            raise
        # pip's end, a file that is in use, or whatever the new package raises when it is imported.
        except Exception as error:
            raise DRDMError(explainFailure(f"{said.getvalue()}\n{error}", found, pinned)) from error

    # Restarting

    def _noticeReplaced(self, before: dict[str, str]) -> None:
        """What is loaded stays in memory although it was replaced; one restart puts it right."""
        after = _versions()
        changed = {name for name, version in before.items() if after.get(name) != version}
        loaded = [
            module
            for module, packages in importlib.metadata.packages_distributions().items()
            if module in sys.modules and changed & {package.lower() for package in packages}
        ]
        if loaded:
            self._offerRestart(
                _("Packages that were in use have been replaced ({names}). Restart Slicer now?").format(
                    names=", ".join(sorted(loaded))
                )
            )

    def _offerRestart(self, question: str) -> None:
        """Offer it once; after that the button says it."""
        if self.restartNeeded:
            return
        self.restartNeeded = True
        if slicer.util.confirmYesNoDisplay(question, _("DRDM Deform")):
            slicer.util.restart()


class _Echo(io.StringIO):
    """Remembers what is printed, and prints it."""

    def __init__(self, stream: Any) -> None:
        super().__init__()
        self._stream = stream

    def write(self, text: str) -> int:
        self._stream.write(text)
        return super().write(text)

    def flush(self) -> None:
        self._stream.flush()


@contextlib.contextmanager
def _variable(name: str, value: str | None) -> Iterator[None]:
    """Set an environment variable for a while; ``None`` leaves it as it is."""
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


def _ensure(requirements: Path) -> None:
    """Install what is missing of a requirements file; the user has been asked, and a restart is offered later."""
    try:
        packaging = importlib.import_module("slicer.packaging")
    except ImportError:
        # Slicer 5.10 has none.
        packaging = None
    if packaging is not None:
        wanted = packaging.load_requirements(requirements)
        # Its window of progress would say that it failed a second time.
        packaging.pip_ensure(wanted, prompt_install=False, prompt_restart=False, show_progress=False)
        return
    missing = [line for line in requirementLines(requirements) if not _satisfied(line)]
    if missing:
        slicer.util.pip_install(missing)


def requirementLines(path: Path) -> list[str]:
    """The requirements of a file, without comments."""
    lines = (line.split("#")[0].strip() for line in path.read_text(encoding="utf-8").splitlines())
    return [line for line in lines if line]


def _satisfied(requirement: str) -> bool:
    from packaging.requirements import Requirement

    wanted = Requirement(requirement)
    try:
        return wanted.specifier.contains(importlib.metadata.version(wanted.name), prereleases=True)
    except importlib.metadata.PackageNotFoundError:
        return False
