"""Setup: what is installed, and one button that installs or repairs it."""

from __future__ import annotations

from slicer.i18n import tr as _

from DRDMLib.errors import DRDMError

from ..job import Job
from ..mrml import SceneError
from .section import ERROR_STYLE, PLAIN_STYLE, WARNING_STYLE, Section


class SetupSection(Section):
    """Shows the state of PyTorch; collapsed when there is nothing to do."""

    def connect(self) -> None:
        """Connect the button."""
        self.ui.setupButton.connect("clicked()", self.onFix)
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
        state = self.context.environment.state()
        if state.problem:
            text, style = state.problem, ERROR_STYLE
        elif not state.device:
            text, style = _("PyTorch {version}; looking for a GPU ...").format(version=state.torch), PLAIN_STYLE
        else:
            gpu = state.gpu or _("no GPU found")
            text = _("Ready: PyTorch {version}, computing on {device} ({gpu}).").format(
                version=state.torch, device=state.device, gpu=gpu
            )
            style = WARNING_STYLE if state.advice and not state.gpu else PLAIN_STYLE
        self.showMessage(self.ui.setupStatusLabel, f"{text} {state.advice}".strip(), style)
        self.ui.setupButton.visible = bool(state.remedy)
        self.ui.setupButton.text = state.remedy or _("Install PyTorch")
        attention = state.problem or (state.advice if state.remedy else "")
        if attention != self._lastAttention:
            self.ui.setupSection.collapsed = not attention
            self._lastAttention = attention

    def warn(self, text: str) -> None:
        """Show a warning of a job, for example that the CPU is used instead of the GPU."""
        self.showMessage(self.ui.setupStatusLabel, text, WARNING_STYLE)
        self.ui.setupSection.collapsed = False

    def requireTorch(self) -> None:
        """Raise SceneError and open this section if PyTorch cannot be used."""
        state = self.context.environment.state()
        if state.problem:
            self.ui.setupSection.collapsed = False
            raise SceneError(
                _("{problem} Press '{button}' in Setup.").format(problem=state.problem, button=state.remedy)
            )

    def onFix(self) -> None:
        """Install or repair, after asking."""
        with self.showErrors(self.ui.setupStatusLabel):
            if self.context.jobRunner.isBusy(excluding=self._checkJob):
                # The job's process uses the files that would be replaced.
                raise DRDMError(_("A job is running; wait until it ends or cancel it, then press the button again."))
            self.context.environment.fix()
            self._lastAttention = ""
            self.check()
