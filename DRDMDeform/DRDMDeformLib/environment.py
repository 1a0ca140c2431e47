"""What is installed, and how it is put right."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import qt
import slicer
from slicer.i18n import tr as _

from DRDMLib.errors import DRDMError
from DRDMLib.runtime.probe import torch_version

from .diagnosis import DRIVER_PAGE, Condition, Diagnosis, Remedy, diagnose
from .installation import Installation
from .job import Job, JobState
from .process import DrdmProcess


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
    """PyTorch and the rest in Slicer's Python.

    PyTorch is never imported here: it could not be replaced then.
    """

    def __init__(self, installation: Installation | None = None) -> None:
        self._installation = installation or Installation()
        self._facts: dict[str, Any] = {}

    def diagnosis(self) -> Diagnosis:
        """What is known to be wrong."""
        facts = self._facts or {
            "torch": torch_version(),
            "found": importlib.util.find_spec("torch") is not None,
            "missing": [name for name in ("safetensors",) if importlib.util.find_spec(name) is None],
        }
        return diagnose(facts)

    def state(self) -> EnvironmentState:
        """What is known now."""
        if self._installation.restartNeeded:
            return EnvironmentState(
                torch_version(),
                problem=_("Slicer must be restarted to use what was installed."),
                remedy=_("Restart Slicer"),
            )
        found = self.diagnosis()
        facts = self._facts if self._facts.get("examined") and not found.problem else {}
        return EnvironmentState(
            torch_version(), facts.get("device", ""), facts.get("gpu", ""), found.problem, found.advice, found.label
        )

    def examine(self, onKnown: Callable[[], None]) -> Job:
        """Look what is installed, and ask PyTorch what it computes on, in a process of its own."""
        job = Job([], DrdmProcess("DRDMLib.probe"))

        def take(job: Job) -> None:
            self._facts = dict(job.items[-1]) if job.items else {}
            if job.state is JobState.FAILED and self._facts.get("found", True):
                # It took the process down with it.
                self._facts.setdefault("found", True)
                self._facts["fault"] = job.text
            onKnown()

        job.whenEnded(take)
        return job

    def putRight(self) -> None:
        """Do what the button says, after asking."""
        if slicer.app.testingEnabled():
            raise DRDMError(_("Nothing is installed in testing mode."))
        if self._installation.restartNeeded:
            slicer.util.restart()
            return
        found = self.diagnosis()
        if found.remedy is Remedy.DRIVER:
            qt.QDesktopServices.openUrl(qt.QUrl(DRIVER_PAGE))
            return
        if found.condition in (Condition.READY, Condition.UNKNOWN):
            return
        try:
            self._installation.run(found, [name for name, _wish in self._facts.get("wishes") or []])
        finally:
            importlib.invalidate_caches()
            self._facts = {}
