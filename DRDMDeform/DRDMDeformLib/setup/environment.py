"""The state of PyTorch in Slicer's Python, and its installation or repair."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import qt
import slicer
from slicer.i18n import tr as _

from DRDMLib.errors import DRDMError
from DRDMLib.runtime.probe import missing_packages, torch_version

from ..job import DrdmProcess, Job, JobState
from ..worker import sharedWorker
from .diagnosis import DRIVER_PAGE, Condition, Diagnosis, Remedy, diagnose
from .installation import Installation


@dataclass(frozen=True)
class EnvironmentState:
    """The state that the panel shows.

    Attributes:
        torch: version of PyTorch; empty if it is not installed.
        device: device that PyTorch computes on; empty until the check has ended.
        gpu: name of the GPU; empty without one, or until the check has ended.
        problem: why nothing can be computed, in one sentence; empty if PyTorch can be used.
        advice: what could be improved.
        remedy: text of the button; empty if there is nothing to do.
    """

    torch: str = ""
    device: str = ""
    gpu: str = ""
    problem: str = ""
    advice: str = ""
    remedy: str = ""


class Environment:
    """PyTorch and the other packages in Slicer's Python.

    The check runs in a separate process and this class does not import PyTorch, since an imported PyTorch cannot be
    replaced before Slicer is restarted. (``logic.deform`` does import it; ``logic.startDeform`` and the panel do not.)
    """

    def __init__(self, installation: Installation | None = None) -> None:
        self._installation = installation or Installation()
        self._facts: dict[str, Any] = {}

    def diagnosis(self) -> Diagnosis:
        """The diagnosis from the facts known so far."""
        facts = self._facts or {
            "torch": torch_version(),
            "found": importlib.util.find_spec("torch") is not None,
            "missing": missing_packages(),
        }
        return diagnose(facts)

    def state(self) -> EnvironmentState:
        """The state as known so far; quick."""
        if self._installation.restartNeeded:
            return EnvironmentState(
                torch_version(),
                problem=_("Restart Slicer to use the installed packages."),
                remedy=_("Restart Slicer"),
            )
        found = self.diagnosis()
        facts = self._facts if self._facts.get("examined") and not found.problem else {}
        return EnvironmentState(
            torch_version(), facts.get("device", ""), facts.get("gpu", ""), found.problem, found.advice, found.label
        )

    def check(self, onKnown: Callable[[], None]) -> Job:
        """Return a job that checks PyTorch in a separate process; ``onKnown`` is called at its end."""
        job = Job([], DrdmProcess("DRDMLib.probe"))

        def readFacts(job: Job) -> None:
            self._facts = dict(job.items[-1]) if job.items else {}
            if job.state is JobState.FAILED and self._facts.get("found", True):
                # PyTorch has crashed the process.
                self._facts.setdefault("found", True)
                self._facts["fault"] = job.text
            onKnown()

        job.onFinished(readFacts)
        return job

    def fix(self, onOutput: Callable[[str], None] = lambda line: None) -> None:
        """Install, repair or restart, after asking.

        Args:
            onOutput: called with each line that pip prints, and with "" when an installation begins.

        Raises:
            DRDMError: it failed, or the user declined.
        """
        if isTesting():
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
        self._installation.onOutput = onOutput
        # It uses the files that are replaced.
        sharedWorker.kill()
        try:
            self._installation.run(found, [name for name, _wish in self._facts.get("wishes") or []])
        finally:
            importlib.invalidate_caches()
            self._facts = {}


def isTesting() -> bool:
    """Whether Slicer runs tests; nothing is installed then."""
    return bool(slicer.app.testingEnabled())
