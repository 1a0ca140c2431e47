"""What is installed, and how it is put right."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import slicer
from slicer.i18n import tr as _

from DRDMLib.errors import DRDMError

from .job import Job
from .process import DrdmProcess

REQUIREMENTS = Path(__file__).resolve().parents[1] / "Resources" / "requirements.txt"
TORCH_REQUIREMENT = ">=2.4"


@dataclass(frozen=True)
class EnvironmentState:
    """What is installed.

    Attributes:
        torch: version of PyTorch, empty if there is none.
        device, gpu: what it computes on, and the name of the GPU; empty until it is known.
        problem: why nothing can be computed, in one sentence; empty if all is well.
        advice: what could be better.
        remedy: what the button does; empty if there is nothing to do.
    """

    torch: str = ""
    device: str = ""
    gpu: str = ""
    problem: str = ""
    advice: str = ""
    remedy: str = ""


class EnvironmentProtocol(Protocol):
    """What the panel needs of it."""

    def state(self) -> EnvironmentState:
        """What is known now; quick."""

    def examine(self, onKnown: Callable[[], None]) -> Job:
        """A job that finds out the rest; ``onKnown`` is called at its end."""

    def putRight(self) -> None:
        """Install or repair, after asking.

        Raises:
            DRDMError: it did not succeed, or was declined.
        """


class Environment:
    """PyTorch and safetensors in Slicer's Python. PyTorch is never imported here: it could not be replaced then."""

    def __init__(self) -> None:
        self._found: dict[str, str] = {}
        self._fault = ""

    def state(self) -> EnvironmentState:
        """What is known now."""
        torch = _version("torch")
        if not torch:
            return EnvironmentState(
                problem=_("PyTorch, which computes the deformations, is not installed yet."),
                remedy=_("Install PyTorch"),
            )
        if not _version("safetensors"):
            return EnvironmentState(
                torch, problem=_("The package safetensors is not installed yet."), remedy=_("Install it")
            )
        if self._fault:
            return EnvironmentState(
                torch,
                problem=_("PyTorch is installed but does not start: {fault}").format(fault=self._fault),
                remedy=_("Install PyTorch again"),
            )
        return EnvironmentState(torch, self._found.get("device", ""), self._found.get("gpu", ""))

    def examine(self, onKnown: Callable[[], None]) -> Job:
        """Ask PyTorch in a process of its own what it computes on."""
        job = Job([], DrdmProcess("DRDMLib.device"))

        def take(job: Job) -> None:
            if job.items:
                self._found, self._fault = job.items[-1], ""
            elif job.text:
                self._found, self._fault = {}, job.text
            onKnown()

        job.whenEnded(take)
        return job

    def putRight(self) -> None:
        """Install what is missing with the PyTorch extension, which chooses the build for the GPU."""
        if slicer.app.testingEnabled():
            raise DRDMError(_("Nothing is installed in testing mode."))
        broken = bool(self._fault)
        if broken or not _version("torch"):
            try:
                utilities = importlib.import_module("PyTorchUtils")
            except ImportError as error:
                raise DRDMError(
                    _("Install the extension 'PyTorch' in the Extensions Manager, restart Slicer and press again.")
                ) from error
            logic = utilities.PyTorchUtilsLogic()
            if broken:
                logic.uninstallTorch(askConfirmation=True)
            if logic.installTorch(askConfirmation=True, torchVersionRequirement=TORCH_REQUIREMENT) is None:
                raise DRDMError(_("PyTorch was not installed; press the button when you want it."))
        try:
            _ensure(REQUIREMENTS)
        except Exception as error:
            raise DRDMError(_("The installation did not succeed: {reason}").format(reason=error)) from error
        importlib.invalidate_caches()
        self._found, self._fault = {}, ""


def _version(package: str) -> str:
    """Version of an installed package, without importing it; empty if it is not there."""
    try:
        found = importlib.metadata.version(package) or ""
    except importlib.metadata.PackageNotFoundError:
        return ""
    return found if importlib.util.find_spec(package) is not None else ""


def _ensure(requirements: Path) -> None:
    packaging = getattr(slicer, "packaging", None)
    if packaging is not None:
        packaging.pip_ensure(packaging.load_requirements(requirements), requester="DRDM Deform")
        return
    # Slicer 5.10 has no slicer.packaging.
    names = [line for line in requirements.read_text(encoding="utf-8").splitlines() if line and line[0] != "#"]
    missing = [name for name in names if not _version(name.split(">")[0].strip())]
    if missing:
        question = _("DRDM Deform needs the Python packages {names}. Install them?").format(names=", ".join(missing))
        if not slicer.util.confirmOkCancelDisplay(question):
            raise RuntimeError(_("declined"))
        slicer.util.pip_install(" ".join(missing))
