"""Apply: harden the shown version."""

from __future__ import annotations

import slicer
from slicer.i18n import tr as _

from ..parameter import Grid
from .section import Section


class ApplySection(Section):
    """Hardens the shown deformation onto copies or onto the nodes themselves."""

    def connect(self) -> None:
        """Connect the button."""
        self.ui.applyButton.connect("clicked()", self.onApply)
        self.say(self.ui.applyLabel, "")

    def update(self) -> None:
        """The button says what it will do."""
        p = self.parameter
        self.ui.applyButton.enabled = p.deformations is not None and p.inputVolume is not None
        self.ui.applyButton.text = _("Apply onto copies") if p.onCopies else _("Apply for good")

    def onApply(self) -> None:
        """Harden."""
        p = self.parameter
        with self.saying(self.ui.applyLabel), slicer.util.tryWithErrorDisplay(waitCursor=True):
            nodes = self.panel.movingNodes()
            made = self.logic.apply(
                self.logic.transformOf(p.deformations), nodes, copies=p.onCopies, originalGrid=p.grid is Grid.ORIGINAL
            )
            names = ", ".join(node.GetName() for node in made)
            if p.onCopies:
                # The originals have left the transform; what is seen deformed now are the copies.
                p.preview = False
                text = _("Made: {names}.").format(names=names)
            else:
                # The nodes have left the transform; nothing is shown as following it any more.
                p.deformations = None
                text = _("Changed for good: {names}.").format(names=names)
            self.panel.update()
            self.say(self.ui.applyLabel, text)
