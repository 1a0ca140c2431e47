"""Deform: make variants with one slider, list them and show them."""

from __future__ import annotations

import random
from typing import Any

import qt
import slicer
from slicer.i18n import tr as _

from DRDMLib.runtime.reporter import FIT

from .. import mrml
from ..job import Job, JobState, Progress
from ..parameter import Display, Strength
from ..regions import SceneRegion
from .input import InputSection
from .live import LiveSlider, Released
from .section import JobSection, PanelContext, Severity, fitHeight, prepareTable, showProgress
from .setup import SetupSection
from .texts import fitText, strengthText, variantCells


class DeformSection(JobSection):
    """Makes variants in the background, lists and shows them."""

    warningsLabel = "deformWarningsLabel"
    # The line below the button says how well the model fits.
    saysItself = (FIT,)

    def __init__(self, context: PanelContext, setup: SetupSection, inputSection: InputSection) -> None:
        self.setup = setup
        self.input = inputSection
        super().__init__(context)

    def connect(self) -> None:
        """Connect the widgets that are not bound to the parameter node, and set up the table."""
        self.clearWarnings()
        self._filling = False
        # Whether the job makes the version of a preview.
        self._released = False
        # The versions that are shown already, by the jobs that still compute their figures.
        self._unfinished: dict[Job, Any] = {}
        self._rows: list[tuple[Any, int]] = []
        self._cellsShown: list[list[str]] = []
        self._shownDisplay: tuple[Any, int, Display, bool] | None = None
        self._jacobian: Any = None
        ui = self.ui
        ui.newSeedButton.connect("clicked()", self.onNewSeed)
        ui.deformButton.connect("clicked()", self.onDeform)
        ui.cancelButton.connect("clicked()", self.onCancel)
        ui.jacobianButton.connect("clicked()", self.onJacobian)
        ui.removeButton.connect("clicked()", self.onRemove)
        ui.playButton.connect("clicked()", self.onPlay)
        self._playback: mrml.Playback | None = None
        ui.variantsTable.connect("itemSelectionChanged()", self.onVariantChosen)
        ui.variantsTable.connect("cellClicked(int,int)", self.onVariantClicked)
        self.columns = {
            _("Variant"): _("Number of the variant; applied copies have it in their names."),
            _("Level"): _("Strength of the deformation, T'."),
            _("Seed"): _("The same seed, level and model give the same variant."),
            _("Mean, mm"): _("Mean displacement of the tissue."),
            _("Largest, mm"): _("Largest displacement of the tissue."),
            _("Folded"): _("Voxels where the deformation folds over itself, which tissue cannot do."),
            _("Invertible"): _("Whether every point has exactly one counterpart, proven for the whole field."),
        }
        prepareTable(ui.variantsTable, self.columns)
        ui.progressBar.visible = False
        self.live = LiveSlider(
            self.context,
            self.input.nodesToDeform,
            self._region,
            self.onPressed,
            self.onReleased,
            self.endPreviews,
            lambda text, severity: self.showMessage(ui.statusLabel, text, severity),
        )

    def onSceneClosed(self) -> None:
        """Remove the messages on nodes that are gone."""
        self.showMessage(self.ui.statusLabel, "")
        self.clearWarnings()

    def update(self) -> None:
        """Show level, buttons and table."""
        running = self.making
        p, released = self.parameter, self.context.released
        if released is not None and released.node is not p.deformations:
            self.context.released = None
        self.ui.levelLabel.text = strengthText(p.strength, p.level)
        self.ui.levelSlider.visible = self.ui.levelSliderLabel.visible = p.strength is Strength.LEVEL
        self.ui.deformButton.enabled = self.parameter.inputVolume is not None and not running
        self.ui.cancelButton.enabled = running or bool(self._unfinished)
        self.ui.progressBar.visible = running
        self.fillTable()
        shown = self.parameter.deformations is not None
        self.ui.aroundCheckBox.enabled = p.inputSegmentation is not None and p.region is None and p.towardVolume is None
        self.ui.liveCheckBox.enabled = p.towardVolume is None
        self.ui.playButton.text = _("Play") if self._playback is None else _("Stop")
        widgets = (
            self.ui.playButton,
            self.ui.previewCheckBox,
            self.ui.removeButton,
            self.ui.displayComboBox,
            self.ui.jacobianButton,
        )
        for widget in widgets:
            widget.enabled = shown
        hint = _("Choose a volume in Input.")
        if not running and self.parameter.inputVolume is None:
            self.showMessage(self.ui.statusLabel, hint)
        elif self.ui.statusLabel.text == hint:
            self.showMessage(self.ui.statusLabel, "")

    # Making variants

    @property
    def making(self) -> bool:
        """Whether the views wait for a version; its figures may follow later."""
        return self.running and self.job not in self._unfinished

    def onNewSeed(self) -> None:
        """Choose a random seed."""
        self.parameter.seed = random.randrange(100000)

    def onDeform(self) -> None:
        """Start to make variants."""
        p = self.parameter
        with self.runAction(self.ui.statusLabel):
            self.setup.requireTorch()
            self.input.requireModel()
            self.context.released = None
            if not p.keepSeed and p.seed == self._lastSeed():
                self.onNewSeed()
            self._start(p.variants, self._region())

    def onPressed(self) -> bool:
        """Cancel the version of the last preview; return whether no other job is running."""
        self.endPreviews()
        if self.making and self._released:
            self.onCancel()
        return not self.making

    def onReleased(self) -> None:
        """Start to make the version whose preview is shown."""
        with self.runAction(self.ui.statusLabel):
            self.setup.requireTorch()
            self.input.requireModel()
            self._start(1, self.live.region, Released(self.live.key))
            self._released = True
        if not self.making:
            self.live.end()

    def _region(self) -> SceneRegion | None:
        """Where the volume is deformed; ``None`` for everywhere."""
        p = self.parameter
        if p.towardVolume is not None and (p.region is not None or p.keep.strip()):
            raise mrml.SceneError(
                _("Only whole scans go toward another scan; clear Toward, or clear Region and Keep still.")
            )
        around = p.aroundSegmentation and p.towardVolume is None
        region: SceneRegion | None = self.logic.regionOf(
            p.inputVolume,
            roi=p.region,
            segmentation=p.inputSegmentation if around or p.keep.strip() else None,
            around=around,
            margin=p.margin or None,
            keep=[name.strip() for name in p.keep.split(",") if name.strip()],
        )
        return region

    def _start(self, count: int, region: SceneRegion | None, released: Released | None = None) -> None:
        """Start to make ``count`` variants with the present settings, in a region or everywhere.

        Args:
            released: if the slider was released.
        """
        p, volume = self.parameter, self.parameter.inputVolume
        job: Job = self.logic.startDeform(
            volume,
            p.model or None,
            p.level if p.strength is Strength.LEVEL else p.strength.value,
            p.seed,
            count,
            p.asSequence,
            steps=p.steps or None,
            pose=p.pose,
            device=p.device.value,
            plane=p.plane.value,
            region=region,
            onMade=lambda made: self.onMade(volume, made, job),
            onVersion=lambda node: self.onVersion(volume, node, job, released),
            toward=p.towardVolume,
        )
        job.onFinished(self.onEnd)
        job.onProgress = self.onProgress
        self.job, self._released = job, False
        showProgress(self.ui.progressBar, Progress("deform", 0.0))
        self.runJob(job)
        if self.making:
            self.showMessage(self.ui.statusLabel, _("Starting ..."))
        self.context.updatePanel()

    def _lastSeed(self) -> int | None:
        """The seed that the latest variants of the volume were made with."""
        variants = self.logic.variants(self.parameter.inputVolume)
        return self.logic.figures(variants[-1][0])[0].get("seed") if variants else None

    def onProgress(self, progress: Progress) -> None:
        """Update the progress bar."""
        self.showMessage(self.ui.statusLabel, "")
        showProgress(self.ui.progressBar, progress)

    def cleanup(self) -> None:
        """Cancel the jobs, and end the preview."""
        for job in list(self._unfinished):
            job.cancel()
        super().cleanup()
        self.endPreviews()
        self.live.forget()

    def onCancel(self) -> None:
        """Cancel the version that is being made; if there is none, the figures of those that are shown."""
        if self.making:
            assert self.job is not None
            self.job.cancel()
            return
        for job in list(self._unfinished):
            job.cancel()

    def onVersion(self, volume: Any, node: Any, job: Job, released: Released | None) -> None:
        """Show a new version whose figures follow, in the place of the preview.

        The version of a slider that is released replaces the one of the release before, if only the level has changed
        and the user has done nothing with it.
        """
        self._unfinished[job] = node
        showProgress(self.ui.progressBar, None)
        before = self.context.released
        self._showNew(volume, [node])
        shown = released is not None and self.parameter.deformations is node
        self.context.released = released.of(node) if released is not None and shown else None
        if shown and before is not None and before.isReplacedBy(self.context.released):
            for other in [one for one, its in self._unfinished.items() if its is before.node]:
                other.cancel()
            self.logic.removeVariant(before.node)
            self.context.updatePanel()

    def onMade(self, volume: Any, made: list[Any], job: Job) -> None:
        """Show the first of the new variants, in the place of the preview, or the figures of the one that is shown."""
        if job not in self._unfinished:
            self._showNew(volume, made)
            return
        fit = self.logic.figures(made[0])[0].get("fit", {})
        if job is self.job and self.ui.statusLabel.text == fitText(fit):
            # Not in the place of a later message.
            self._showFit(made[0])

    def _showNew(self, volume: Any, made: list[Any]) -> None:
        self.endPreviews()
        if volume is not self.parameter.inputVolume:
            text = _("The new variants of '{name}' are ready; choose it in Input to see them.")
            self.showMessage(self.ui.statusLabel, text.format(name=volume.GetName()))
            self.context.updatePanel()
            return
        self._showFit(made[0])
        self.parameter.preview = True
        self.show(made[0])
        if mrml.isSequence(made[0]):
            slicer.modules.sequences.showSequenceBrowser(made[0])

    def _showFit(self, made: Any) -> None:
        """Say how well the model fits the volume of new variants."""
        record = self.logic.figures(made)[0]
        fit, doubtful = record.get("fit", {}), bool(record.get("doubtful"))
        warns = doubtful or fit.get("word") == "poor"
        self.showMessage(self.ui.statusLabel, fitText(fit, doubtful), Severity.WARNING if warns else Severity.PLAIN)

    def onEnd(self, job: Job) -> None:
        """Show the result of the job."""
        shown = self._unfinished.pop(job, None)
        if shown is None and job is self.job:
            self.live.end()
            showProgress(self.ui.progressBar, None)
        self.context.updatePanel()
        if job is not self.job:
            # The text is that of the next version.
            return
        more = "" if shown is None else _("The version is proven and stays; its figures were not computed.")
        if job.state is JobState.FAILED:
            self.showFailure(self.ui.statusLabel, job, more)
        elif job.state is JobState.CANCELED:
            text = _("Canceled; nothing was changed.") if shown is None else _("Canceled.") + " " + more
            self.showMessage(self.ui.statusLabel, text)

    # Showing variants

    def show(self, deformations: Any) -> None:
        """Show a transform or a sequence of variants."""
        self.parameter.deformations = deformations
        self.context.updatePanel()

    def fillTable(self) -> None:
        """List the variants of the volume, one per row."""
        volume = self.parameter.inputVolume
        variants = [] if volume is None else self.logic.variants(volume)
        table = self.ui.variantsTable
        rows = [(node, index) for node, index, _record in variants]
        shown = self.parameter.deformations
        self._filling = True
        try:
            waiting = list(self._unfinished.values())
            cells = [variantCells(row, record, node in waiting) for row, (node, _index, record) in enumerate(variants)]
            if rows != self._rows or cells != self._cellsShown or table.rowCount != len(rows):
                self._rows, self._cellsShown = rows, cells
                table.rowCount = len(rows)
                for row, texts in enumerate(cells):
                    for column, text in enumerate(texts):
                        table.setItem(row, column, qt.QTableWidgetItem(text))
                fitHeight(table, 6)
            table.visible = bool(rows)
            current = None if shown is None else (shown, self.logic.shownVariant(shown))
            chosen = rows.index(current) if current in rows else None
            if chosen is None:
                table.clearSelection()
            elif chosen != table.currentRow() or not table.selectedItems():
                table.selectRow(chosen)
        finally:
            self._filling = False

    def onVariantChosen(self) -> None:
        """Show the variant of the selected row."""
        row = self.ui.variantsTable.currentRow()
        if self._filling or not 0 <= row < len(self._rows):
            return
        node, index = self._rows[row]
        self.context.released = None
        with self.runAction(self.ui.statusLabel):
            if mrml.isSequence(node):
                self.logic.showVariant(node, index)
            self.show(node)

    def onVariantClicked(self) -> None:
        """Show the nodes deformed when a row is clicked, also the selected one."""
        self.context.released = None
        if self.parameter.deformations is not None:
            self.parameter.preview = True

    def onPlay(self) -> None:
        """Play the shown variant with Slicer's sequence browser, or stop that."""
        if self._playback is not None:
            self.endPreviews()
            self.context.updatePanel()
            return
        self.live.end()
        self.context.released = None
        with self.runAction(self.ui.statusLabel, waitCursor=True):
            transform = self.logic.transformOf(self.parameter.deformations)
            places = (transform, transform.GetParentTransformNode())
            nodes = [node for node in self.input.nodesToDeform() if node.GetParentTransformNode() in places]
            self._playback = self.logic.play(transform, nodes)
            text = _("Played between the original and the variant; the frames between them are blended, not proven.")
            self.showMessage(self.ui.statusLabel, text)
            self.live.watch()
            slicer.modules.sequences.showSequenceBrowser(self._playback.browser)
            self.context.updatePanel()

    def endPreviews(self) -> None:
        """Show what was shown before a variant was played or the slider was dragged."""
        self.live.end()
        playback, self._playback = self._playback, None
        if playback is not None:
            playback.end()
            self.showMessage(self.ui.statusLabel, "")
            self.ui.playButton.text = _("Play")

    def onRemove(self) -> None:
        """Remove the variant of the selected row, and show the next one."""
        row = self.ui.variantsTable.currentRow()
        if self.parameter.deformations is None or not 0 <= row < len(self._rows):
            return
        node, index = self._rows[row]
        with self.runAction(self.ui.statusLabel, waitCursor=True):
            # The panel must end the preview before the transform is removed.
            self.parameter.deformations = None
            self.logic.removeVariant(node, index)
            self.context.updatePanel()
            if self._rows:
                self.ui.variantsTable.selectRow(min(row, len(self._rows) - 1))

    def showDisplay(self) -> None:
        """Draw the shown deformation as chosen, and hide all others."""
        shown, display = self.parameter.deformations, self.parameter.display
        transform = None if shown is None else self.logic.transformOf(shown)
        wanted = (
            None if transform is None else (transform, self.logic.shownVariant(shown), display, self.parameter.preview)
        )
        if wanted == self._shownDisplay:
            return
        drawn = self._shownDisplay[0] if self._shownDisplay is not None else None
        self._shownDisplay = wanted
        self._hideJacobian()
        if drawn is not None and drawn is not transform and slicer.mrmlScene.IsNodePresent(drawn):
            self.logic.showDeformation(drawn, None)
        if transform is not None:
            self.logic.showDeformation(transform, None if display is Display.NONE else display.value)

    def onJacobian(self) -> None:
        """Show the Jacobian determinant over the scan."""
        self.context.released = None
        with self.runAction(self.ui.statusLabel, waitCursor=True):
            shown, volume = self.parameter.deformations, self.parameter.inputVolume
            if shown is None or volume is None:
                return
            self._jacobian = self.logic.jacobian(self.logic.transformOf(shown), volume)
            slicer.util.setSliceViewerLayers(foreground=self._jacobian, foregroundOpacity=0.6)

    def _hideJacobian(self) -> None:
        """Take the determinant out of the views, since another variant or the original is shown; the volume stays."""
        overlay, self._jacobian = self._jacobian, None
        if overlay is None or not slicer.mrmlScene.IsNodePresent(overlay):
            return
        logics = slicer.app.applicationLogic().GetSliceLogics()
        composites = [logics.GetItemAsObject(n).GetSliceCompositeNode() for n in range(logics.GetNumberOfItems())]
        if any(node.GetForegroundVolumeID() == overlay.GetID() for node in composites):
            slicer.util.setSliceViewerLayers(foreground=None)
