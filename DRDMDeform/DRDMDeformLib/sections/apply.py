"""Apply: harden the shown variant, or every variant."""

from __future__ import annotations

from typing import Any

import qt
import slicer
from slicer.i18n import tr as _

from .. import mrml
from ..parameter import Grid, VariantChoice
from .input import InputSection
from .section import PanelContext, Section
from .texts import counted


class _Canceled(Exception):
    """The user has pressed Cancel."""


class ApplySection(Section):
    """Hardens the shown deformation on copies or on the nodes themselves, or every deformation on copies."""

    def __init__(self, context: PanelContext, inputSection: InputSection) -> None:
        self.input = inputSection
        super().__init__(context)

    def connect(self) -> None:
        """Connect the button."""
        self.ui.applyButton.connect("clicked()", self.onApply)
        self.showMessage(self.ui.applyLabel, "")

    def update(self) -> None:
        """Show on the button what it will do."""
        p = self.parameter
        self.ui.applyButton.enabled = p.deformations is not None and p.inputVolume is not None
        # The nodes themselves can only become one variant.
        self.ui.variantChoiceComboBox.enabled = p.onCopies
        self.ui.applyButton.text = _("Apply on copies") if p.onCopies else _("Apply permanently")

    def onSceneClosed(self) -> None:
        """Remove the message on nodes that are gone."""
        self.showMessage(self.ui.applyLabel, "")

    def onApply(self) -> None:
        """Harden the transform."""
        p = self.parameter
        self.context.released = None
        with self.runAction(self.ui.applyLabel, waitCursor=True):
            nodes = self.input.nodesToDeform()
            every = p.onCopies and p.versions is VariantChoice.ALL
            self.context.applying = True
            try:
                text = self._applyAll(nodes) if every else self._applyShown(nodes)
            finally:
                self.context.applying = False
            self.context.updatePanel()
            self.showMessage(self.ui.applyLabel, text)

    def _applyShown(self, nodes: list[Any]) -> str:
        p = self.parameter
        made = self.logic.apply(
            self.logic.transformOf(p.deformations), nodes, copies=p.onCopies, originalGrid=p.grid is Grid.ORIGINAL
        )
        names = ", ".join(node.GetName() for node in made)
        if p.onCopies:
            # The originals have left the transform; the deformed image in the views is now the copy.
            p.preview = False
            return _("Created: {names}.").format(names=names)
        # The nodes have left the transform, so no deformation is shown any more.
        p.deformations = None
        return _("Changed permanently: {names}.").format(names=names)

    def _applyAll(self, nodes: list[Any]) -> str:
        p = self.parameter
        dialog = slicer.util.createProgressDialog(
            labelText=_("Applying every variant ..."),
            windowTitle=_("DRDM Deform"),
            windowModality=qt.Qt.WindowModal,
        )

        def show(done: int, total: int) -> None:
            dialog.maximum = total
            # Setting the value of a window-modal dialog processes events, a press of Cancel among them.
            dialog.value = done
            if dialog.wasCanceled:
                raise _Canceled

        try:
            made = self.logic.applyAll(p.inputVolume, nodes, p.grid is Grid.ORIGINAL, onProgress=show)
        except _Canceled:
            return _("Canceled; nothing was changed.")
        finally:
            dialog.close()
        p.preview = False
        created = counted(len(made), _("Created 1 variant"), _("Created {n} variants"))
        return _("{created} of {names} in the folder '{folder}' of the subject hierarchy.").format(
            created=created, names=", ".join(node.GetName() for node in nodes), folder=mrml.folderOf(made[0][0])
        )
