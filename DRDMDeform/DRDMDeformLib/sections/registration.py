"""Test a registration: make a pair of known truth, score the transform that a registration module has found."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import qt
import slicer
from slicer.i18n import tr as _

from .. import mrml
from ..job import Job, JobState, Progress
from ..mrml import RegistrationCase
from ..registration_tests import RegistrationScore
from .folders import FolderField
from .input import InputSection
from .section import JobSection, PanelContext, Severity, fitHeight, isSet, prepareTable, showProgress
from .setup import SetupSection


class RegistrationSection(JobSection):
    """Makes test cases in the background, scores results, lists figures and the worst places."""

    warningsLabel = "challengeWarningsLabel"

    def __init__(self, context: PanelContext, setup: SetupSection, inputSection: InputSection) -> None:
        self.setup = setup
        self.input = inputSection
        super().__init__(context)

    def connect(self) -> None:
        """Connect the buttons, and set up the tables."""
        ui = self.ui
        self._score: RegistrationScore | None = None
        # IDs of the fixed image and of the transform that the shown score belongs to.
        self._scored: tuple[str, str] = ("", "")
        ui.challengeNewSeedButton.connect("clicked()", self.onNewSeed)
        ui.challengeButton.connect("clicked()", self.onMake)
        ui.challengeCancelButton.connect("clicked()", self.onCancel)
        ui.scoreButton.connect("clicked()", self.onScore)
        ui.scorePageButton.connect("clicked()", self.onPage)
        ui.worstTable.connect("cellClicked(int,int)", self.onPlace)
        self._setUp(
            ui.scoreTable,
            {
                _("Figure"): _(
                    "Errors, in millimeters, are distances between where the result and the truth take a point."
                ),
                _("Before"): _("Without registration."),
                _("Result"): _("With the chosen transform."),
                _("Floor"): _("What the truth itself loses when it is interpolated between the voxels."),
            },
            stretched=0,
        )
        self._setUp(
            ui.worstTable,
            {
                _("Error, mm"): _("Error of the result at this place. Click to see it."),
                _("Before, mm"): _("Error without registration."),
                _("R, A, S"): _("Position in the fixed image, millimeters."),
            },
            stretched=2,
        )
        self._folder = FolderField(self.context, ui.challengeFolderPath, "challengeFolder")
        ui.challengeProgressBar.visible = False
        self.showMessage(ui.challengeLabel, "")
        self.showMessage(ui.scoreLabel, "")
        self.clearWarnings()

    def _setUp(self, table: Any, columns: dict[str, str], stretched: int) -> None:
        prepareTable(table, columns)
        # The narrow panel must show the figures; names that are too long are in tool tips.
        table.horizontalHeader().setSectionResizeMode(stretched, qt.QHeaderView.Stretch)
        table.visible = False

    def restore(self) -> None:
        """Use the last folder if none is chosen."""
        self._folder.restore()

    def onSceneClosed(self) -> None:
        """Forget the score and the messages on nodes that are gone."""
        self._score = None
        self.showMessage(self.ui.challengeLabel, "")
        self.showMessage(self.ui.scoreLabel, "")

    def update(self) -> None:
        """Enable the widgets that can be used now; hide a score of another case or transform."""
        p, ui, running = self.parameter, self.ui, self.running
        self._folder.show()
        ui.challengeButton.enabled = p.inputVolume is not None and not running
        ui.challengeCancelButton.enabled = running
        ui.challengeProgressBar.visible = running
        ui.scoreButton.enabled = p.challengeFixed is not None and p.challengeTransform is not None and not running
        if self._score is not None and self._scored != self._chosen():
            self._score = None
            self.showMessage(ui.scoreLabel, "")
        shown = self._score is not None
        ui.scorePageButton.enabled = shown
        ui.scoreTable.visible = shown
        ui.worstTable.visible = shown

    def _chosen(self) -> tuple[str, str]:
        p = self.parameter
        nodes = (p.challengeFixed, p.challengeTransform)
        fixed, transform = ("" if node is None else str(node.GetID()) for node in nodes)
        return fixed, transform

    # Making a case

    def onNewSeed(self) -> None:
        """Choose a random seed."""
        self.parameter.challengeSeed = random.randrange(100000)

    def onMake(self) -> None:
        """Start to make a test case of the chosen volume."""
        p = self.parameter
        with self.runAction(self.ui.challengeLabel):
            self.setup.requireTorch()
            self.input.requireModel()
            job = self.logic.startChallenge(
                p.inputVolume,
                p.inputSegmentation,
                p.challengeRecipe.value,
                p.challengeSeed,
                p.challengeFolder if isSet(p.challengeFolder) else None,
                p.model or None,
                onMade=self.onMade,
                steps=p.steps or None,
                device=p.device.value,
                plane=p.plane.value,
            )
            self._folder.remember()
            self._run(job, self.ui.challengeLabel)

    def _run(self, job: Job, label: Any) -> None:
        job.onFinished(lambda job: self.onEnd(job, label))
        job.onProgress = lambda progress: showProgress(self.ui.challengeProgressBar, progress)
        self.job = job
        showProgress(self.ui.challengeProgressBar, Progress("challenge", 0.0))
        self.showMessage(label, _("Starting ..."))
        self.runJob(job)
        self.context.updatePanel()

    def onCancel(self) -> None:
        """Cancel the job."""
        if self.job is not None:
            self.job.cancel()

    def onMade(self, case: RegistrationCase) -> None:
        """Show the pair, and choose it for the score."""
        if self.parameter is None:
            return
        self.parameter.challengeFixed = case.fixed
        slicer.util.setSliceViewerLayers(
            background=case.fixed, foreground=case.moving, foregroundOpacity=0.5, label=None, fit=True
        )

    def onEnd(self, job: Job, label: Any) -> None:
        """Show how the job has ended."""
        showProgress(self.ui.challengeProgressBar, None)
        if job.state is JobState.FAILED:
            self.showFailure(label, job)
        elif job.state is JobState.CANCELED:
            self.showMessage(label, _("Canceled; nothing was changed."))
        elif job.items:
            fixed = self.parameter.challengeFixed if self.parameter is not None else None
            share = job.items[0]["not_counted"]["voxels"]
            texts = [
                _(
                    "Register the moving to the fixed image with any module, then choose its transform below. The "
                    "truth is in '{folder}'."
                ).format(folder=mrml.caseOf(fixed).truth if fixed is not None else ""),
                _("{percent} % of the body lies outside of one of the images and does not count.").format(
                    percent=f"{100 * share:.1f}"
                )
                if share > 0
                else "",
            ]
            self.showMessage(label, " ".join(text for text in texts if text))
        self.context.updatePanel()

    # The score

    def onScore(self) -> None:
        """Start to score the chosen transform."""
        p = self.parameter
        with self.runAction(self.ui.scoreLabel, waitCursor=True):
            self.setup.requireTorch()
            chosen = self._chosen()
            job = self.logic.startScore(
                p.challengeTransform, p.challengeFixed, onScored=lambda score: self.onScored(score, chosen)
            )
            self._run(job, self.ui.scoreLabel)

    def onScored(self, score: RegistrationScore, chosen: tuple[str, str]) -> None:
        """Show figures, worst places, and the errors over the fixed image."""
        if self.parameter is None:
            return
        self._score, self._scored = score, chosen
        rows = [
            [_short(name), *("" if v is None else f"{v:.2f}" for v in values)] for name, _unit, *values in score.rows
        ]
        self._fill(self.ui.scoreTable, rows, 12)
        places = [
            [f"{error:.2f}", f"{before:.2f}", ", ".join(f"{v:.1f}" for v in at)] for at, error, before in score.worst
        ]
        self._fill(self.ui.worstTable, places, 5)
        self.showMessage(self.ui.scoreLabel, score.warning, Severity.WARNING)
        slicer.util.setSliceViewerLayers(
            background=self.parameter.challengeFixed, foreground=score.errors, foregroundOpacity=0.6, label=None
        )
        mrml.showLegend(score.errors, _("Error, mm"))

    def _fill(self, table: Any, rows: list[list[str]], most: int) -> None:
        table.rowCount = len(rows)
        for row, cells in enumerate(rows):
            for column, text in enumerate(cells):
                table.setItem(row, column, qt.QTableWidgetItem(text))
                table.item(row, column).setToolTip(text)
        fitHeight(table, most)

    def onPlace(self, row: int, column: int) -> None:
        """Bring the views to a place with a large error."""
        if self._score is not None and 0 <= row < len(self._score.worst):
            mrml.showPlace(slicer.mrmlScene, self._score.worst[row][0])

    def onPage(self) -> None:
        """Open the page of the score in the browser."""
        if self._score is not None:
            qt.QDesktopServices.openUrl(qt.QUrl.fromLocalFile(str(Path(self._score.page))))


def _short(name: str) -> str:
    """The name of a figure, short enough for the panel; errors and distances are in millimeters."""
    for long, short in (
        ("error at landmarks, ", _("landmarks, mm: ")),
        ("error over the body, ", _("body, mm: ")),
        ("95 % Hausdorff distance", _("Hausdorff 95 %, mm")),
        ("smallest Jacobian determinant", _("smallest Jacobian")),
        ("folded voxels", _("folded voxels, %")),
        ("there and back, ", _("there and back, mm: ")),
    ):
        name = name.replace(long, short)
    return name
