"""Setup: what is installed, and one button that puts it right."""

from __future__ import annotations

from slicer.i18n import tr as _

from DRDMLib.errors import DRDMError

from ..job import Job
from .section import ERROR_STYLE, WARNING_STYLE, Section


class SetupSection(Section):
    """Folded away once all is well."""

    def connect(self) -> None:
        """Connect the button."""
        self.ui.setupButton.connect("clicked()", self.onFix)
        self._seen = ""
        self._checkJob: Job | None = None
        self.panel.jobRunner.onWarning = self.warn

    def update(self) -> None:
        """Nothing depends on the parameter node."""

    def check(self) -> None:
        """Look at what is installed, in a process of its own."""
        self.show()
        self._checkJob = self.panel.environment.check(self.show)
        self.panel.jobRunner.run(self._checkJob)

    def show(self) -> None:
        """Show the state; fold or unfold when it becomes well or stops being so."""
        state = self.panel.environment.state()
        if state.problem:
            text, style = state.problem, ERROR_STYLE
        elif not state.device:
            text, style = _("PyTorch {version}; looking for a GPU ...").format(version=state.torch), ""
        else:
            gpu = state.gpu or _("no GPU found")
            text = _("Ready: PyTorch {version}, computing on {device} ({gpu}).").format(
                version=state.torch, device=state.device, gpu=gpu
            )
            style = "" if state.gpu else WARNING_STYLE if state.advice else ""
        self.showMessage(self.ui.setupStatusLabel, f"{text} {state.advice}".strip(), style)
        self.ui.setupButton.visible = bool(state.remedy)
        self.ui.setupButton.text = state.remedy or _("Install PyTorch")
        attention = state.problem or (state.advice if state.remedy else "")
        if attention != self._seen:
            self.ui.setupSection.collapsed = not attention
            self._seen = attention

    def warn(self, text: str) -> None:
        """Say that something is done in another way, such as on the processor."""
        self.showMessage(self.ui.setupStatusLabel, text, WARNING_STYLE)
        self.ui.setupSection.collapsed = False

    def onFix(self) -> None:
        """Install or repair, after asking."""
        with self.showErrors(self.ui.setupStatusLabel):
            if self.panel.jobRunner.isBusy(excluding=self._checkJob):
                # Its process uses the very files that would be replaced.
                raise DRDMError(_("Something is being computed; wait for its end or cancel it, then press again."))
            self.panel.environment.fix()
            self._seen = ""
            self.check()
