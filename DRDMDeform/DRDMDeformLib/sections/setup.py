"""Setup: what is installed, and one button that installs or repairs it."""

from __future__ import annotations

import slicer
from slicer.i18n import tr as _

from DRDMLib.errors import DRDMError

from ..job import Job
from ..mrml import SceneError
from .section import Section, Severity

# Longer lines of pip are cut.
LONGEST_LINE = 160


class SetupSection(Section):
    """Shows the state of PyTorch; collapsed when there is nothing to do."""

    def connect(self) -> None:
        """Connect the button."""
        self.ui.setupButton.connect("clicked()", self.onFix)
        self.ui.setupProgressBar.visible = False
        self._installing = False
        self._lastAttention = ""
        self._checkJob: Job | None = None
        self.context.jobRunner.onWarning = self.warn

    def check(self) -> None:
        """Check what is installed, in a separate process."""
        self.show()
        self._checkJob = self.context.environment.check(self.show)
        self.context.jobRunner.run(self._checkJob)

    def show(self) -> None:
        """Show the state; collapse or expand the section when the state changes."""
        if self._installing:
            return
        state = self.context.environment.state()
        if state.problem:
            text, severity = state.problem, Severity.ERROR
        elif not state.device:
            text, severity = _("PyTorch {version}; looking for a GPU ...").format(version=state.torch), Severity.PLAIN
        else:
            gpu = state.gpu or _("no GPU found")
            text = _("Ready: PyTorch {version}, computing on {device} ({gpu}).").format(
                version=state.torch, device=state.device, gpu=gpu
            )
            severity = Severity.WARNING if state.advice and not state.gpu else Severity.PLAIN
        self.showMessage(self.ui.setupStatusLabel, f"{text} {state.advice}".strip(), severity)
        self.ui.setupButton.visible = bool(state.remedy)
        self.ui.setupButton.text = state.remedy or _("Install PyTorch")
        attention = state.problem or (state.advice if state.remedy else "")
        if attention != self._lastAttention:
            self.ui.setupSection.collapsed = not attention
            self._lastAttention = attention

    def warn(self, text: str, about: str = "") -> None:
        """Show a warning of a job that no other section shows."""
        self.showMessage(self.ui.setupStatusLabel, text, Severity.WARNING)
        self.ui.setupSection.collapsed = False

    def requireTorch(self) -> None:
        """Raise SceneError and open this section if PyTorch cannot be used."""
        if self._installing:
            raise SceneError(_("Packages are being installed; wait until that has ended."))
        state = self.context.environment.state()
        if state.problem:
            self.ui.setupSection.collapsed = False
            raise SceneError(
                _("{problem} Press '{button}' in Setup.").format(problem=state.problem, button=state.remedy)
            )

    def onFix(self) -> None:
        """Install or repair, after asking."""
        if self._installing:
            # Slicer processes events while pip prints.
            return
        with self.showErrors(self.ui.setupStatusLabel):
            if self.context.jobRunner.isBusy(excluding=self._checkJob):
                # The job's process uses the files that would be replaced.
                raise DRDMError(_("A job is running; wait until it ends or cancel it, then press the button again."))
            self._setInstalling(True)
            try:
                self.context.environment.fix(self.onOutput)
            finally:
                self._setInstalling(False)
            self._lastAttention = ""
            self.check()

    def _setInstalling(self, installing: bool) -> None:
        self._installing = installing
        self.ui.setupButton.enabled = not installing
        if not installing:
            self.ui.setupProgressBar.visible = False

    def onOutput(self, line: str) -> None:
        """Show a line of pip; called with an empty line when it starts."""
        self.ui.setupProgressBar.visible = True
        text = _("Installing; this takes some minutes ...")
        self.showMessage(self.ui.setupStatusLabel, f"{text}\n{line[:LONGEST_LINE]}".strip())
        slicer.app.processEvents()
