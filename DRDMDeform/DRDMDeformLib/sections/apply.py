"""Apply: harden the shown version, or every version."""

from __future__ import annotations

from typing import Any

import qt
import slicer
from slicer.i18n import tr as _

from .. import mrml
from ..parameter import Grid, VariantChoice
from .section import Section


class _Cancelled(Exception):
    """The user has pressed Cancel."""


class ApplySection(Section):
    """Hardens the shown deformation onto copies or onto the nodes themselves, or all of them onto copies."""

    def connect(self) -> None:
        """Connect the button."""
        self.ui.applyButton.connect("clicked()", self.onApply)
        self.showMessage(self.ui.applyLabel, "")

    def update(self) -> None:
        """The button says what it will do."""
        p = self.parameter
        self.ui.applyButton.enabled = p.deformations is not None and p.inputVolume is not None
        # The nodes themselves can become one version only.
        self.ui.variantChoiceComboBox.enabled = p.onCopies
        self.ui.applyButton.text = _("Apply onto copies") if p.onCopies else _("Apply for good")

    def onApply(self) -> None:
        """Harden."""
        p = self.parameter
        with self.runAction(self.ui.applyLabel, waitCursor=True):
            nodes = self.panel.nodesToDeform()
            every = p.onCopies and p.versions is VariantChoice.ALL
            text = self._applyAll(nodes) if every else self._applyShown(nodes)
            self.panel.update()
            self.showMessage(self.ui.applyLabel, text)

    def _applyShown(self, nodes: list[Any]) -> str:
        p = self.parameter
        made = self.logic.apply(
            self.logic.transformOf(p.deformations), nodes, copies=p.onCopies, originalGrid=p.grid is Grid.ORIGINAL
        )
        names = ", ".join(node.GetName() for node in made)
        if p.onCopies:
            # The originals have left the transform; what is seen deformed now are the copies.
            p.preview = False
            return _("Made: {names}.").format(names=names)
        # The nodes have left the transform; nothing is shown as following it any more.
        p.deformations = None
        return _("Changed for good: {names}.").format(names=names)

    def _applyAll(self, nodes: list[Any]) -> str:
        p = self.parameter
        dialog = slicer.util.createProgressDialog(
            labelText=_("Applying every version ..."),
            windowTitle=_("DRDM Deform"),
            windowModality=qt.Qt.WindowModal,
        )

        def show(done: int, total: int) -> None:
            dialog.maximum = total
            # A window-modal dialog lets the application draw and take a press of Cancel here.
            dialog.value = done
            if dialog.wasCanceled:
                raise _Cancelled

        try:
            made = self.logic.applyAll(p.inputVolume, nodes, p.grid is Grid.ORIGINAL, onProgress=show)
        except _Cancelled:
            return _("Cancelled; nothing was changed.")
        finally:
            dialog.close()
        p.preview = False
        return _("Made: {n} versions of {names}, in the folder '{folder}' of the subject hierarchy.").format(
            n=len(made), names=", ".join(node.GetName() for node in nodes), folder=mrml.folderOf(made[0][0])
        )
