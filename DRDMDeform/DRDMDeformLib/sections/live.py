"""The slider of the level shows a preview while it is dragged, and makes the version when it is released."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import qt
from slicer.i18n import tr as _

from DRDMLib.levels import LADDER

from .. import mrml
from ..batches import RunSettings
from ..job import Job, JobState
from ..parameter import Strength
from ..regions import SceneRegion
from .section import PanelContext, Severity

# How often it is looked whether a dialog has opened.
WATCH_MS = 50


@dataclass(frozen=True)
class Released:
    """The version that was made when the slider was released.

    Attributes:
        key: everything that it was made from, except the level.
        node: its transform; ``None`` before it is there.
        name: the name that the transform was given.
    """

    key: Any
    node: Any = None
    name: str = ""

    def of(self, node: Any) -> Released:
        """The same with the transform that was made."""
        return Released(self.key, node, node.GetName())

    def isReplacedBy(self, other: Released) -> bool:
        """Whether another version differs in the level only, and the transform was neither renamed, saved nor used."""
        scene = other.node.GetScene()
        if self.key != other.key or self.node is other.node or not scene.IsNodePresent(self.node):
            return False
        count = scene.GetNumberOfNodesByClass("vtkMRMLTransformableNode")
        nodes = (scene.GetNthNodeByClass(n, "vtkMRMLTransformableNode") for n in range(count))
        used = any(node.GetParentTransformNode() is self.node for node in nodes)
        return not used and self.node.GetName() == self.name and self.node.GetStorageNode() is None


class LiveSlider:
    """Shows blended fields of the present seed while the slider is dragged.

    Args:
        context: of the panel.
        nodes: returns the nodes that are deformed.
        region: returns where the volume is deformed.
        onPress: makes room for a preview; returns whether one may begin.
        onRelease: makes the proven version; the preview stays until :meth:`end` is called.
        onDialog: ends everything that must not be saved.
        show: shows a message under the button.

    Attributes:
        region: where the volume of the last preview is deformed; finding it out takes a while.
    """

    def __init__(
        self,
        context: PanelContext,
        nodes: Callable[[], list[Any]],
        region: Callable[[], SceneRegion | None],
        onPress: Callable[[], bool],
        onRelease: Callable[[], None],
        onDialog: Callable[[], None],
        show: Callable[[str, Severity], None],
    ) -> None:
        self._context = context
        self._nodes = nodes
        self._findRegion = region
        self._onPress = onPress
        self._onRelease = onRelease
        self._onDialog = onDialog
        self._showMessage = show
        self._making = _("The preview is being made ...")
        self._preview: Any = None
        self._job: Job | None = None
        self._dragged = False
        self._wanted = 0.0
        self._pending = False
        self._watch = qt.QTimer()
        self._watch.interval = WATCH_MS
        self._watch.connect("timeout()", self.onWatch)
        # The fields of the last preview, where they deform, and what they were made from.
        self.region: SceneRegion | None = None
        self._ladder: Any = None
        self._key: Any = None
        slider = context.ui.levelSlider
        handle = next((child for child in slider.children() if child.objectName == "Slider"), None)
        if handle is not None:
            handle.connect("sliderPressed()", self.onPressed)
            handle.connect("sliderReleased()", self.onReleased)
            slider.connect("valueChanged(double)", self.onValue)

    @property
    def key(self) -> Any:
        """Everything that the fields of the last preview were made from."""
        return self._key

    @property
    def shown(self) -> bool:
        """Whether the views show a preview, or are about to."""
        return self._preview is not None

    @property
    def ready(self) -> bool:
        """Whether all fields of the preview are there."""
        return self._preview is not None and set(self._preview.ladder.levels) >= set(LADDER)

    def onPressed(self) -> None:
        """Begin a preview, if it is wanted and possible."""
        p = self._context.parameter
        if p is None or not p.live or p.strength is not Strength.LEVEL or p.inputVolume is None:
            return
        if p.towardVolume is not None:
            # Fields of a preview go toward no other scan.
            return
        if self._context.environment.state().problem or not self._onPress():
            return
        self.end()
        try:
            self._begin()
        except mrml.SceneError as error:
            self.end()
            self._showMessage(str(error), Severity.WARNING)

    def _begin(self) -> None:
        p = self._context.parameter
        logic, volume = self._context.logic, p.inputVolume
        parent = mrml.parentWithoutPreview(volume)
        nodes = [n for n in self._nodes() if mrml.parentWithoutPreview(n) is parent and n.CanApplyNonLinearTransforms()]
        self._preview = logic.livePreview(volume, nodes)
        self._dragged = True
        self.watch()
        self._wanted = float(self._context.ui.levelSlider.value)
        settings = RunSettings(p.model or None, p.seed, p.steps or None, p.pose, p.device.value, p.plane.value)
        states = tuple(_state(node) for node in (volume, p.inputSegmentation, p.region, parent))
        key = (settings, p.margin, p.keep, p.aroundSegmentation, states)
        if key == self._key:
            self._preview.ladder = self._ladder
        else:
            self.region = self._findRegion()
            self._ladder, self._key = self._preview.ladder, key
        missing = [level for level in LADDER if level not in self._ladder.levels]
        if missing:
            # The first field gives the grid of all.
            missing = [LADDER[0], *(level for level in missing if level != LADDER[0])]
            self._showMessage(self._making, Severity.PLAIN)
            job = logic.startPreview(volume, self._ladder, settings, missing, self.region, self._onField)
            job.onFinished(self._onEnd)
            self._job = job
            # Deform shows the warnings, if there are any.
            job.onWarning = lambda text, about: None
            self._context.jobRunner.run(job)
        self._show()

    def onValue(self, level: float) -> None:
        """Show the preview of a level, once the events that wait have been processed."""
        if not self._dragged:
            return
        self._wanted = float(level)
        if not self._pending:
            self._pending = True
            qt.QTimer.singleShot(0, self._show)

    def watch(self) -> None:
        """Watch for dialogs until :meth:`end`."""
        self._watch.start()

    def onWatch(self) -> None:
        """End the preview when a dialog opens: the one that saves the scene would save that nodes are under it."""
        if qt.QApplication.activeModalWidget() is not None:
            self._onDialog()

    def onReleased(self) -> None:
        """Make the version; its proven field replaces the preview."""
        if not self._dragged:
            return
        self._dragged = False
        self._cancel()
        self._onRelease()

    def end(self) -> None:
        """Show what was shown before the preview, and stop making its fields."""
        self._dragged = False
        self._cancel()
        preview, self._preview = self._preview, None
        self._watch.stop()
        if preview is not None:
            preview.end()

    def forget(self) -> None:
        """End the preview and free its fields."""
        self.end()
        self._ladder = self._key = self.region = None

    def _cancel(self) -> None:
        job, self._job = self._job, None
        if job is not None:
            job.cancel()

    def _onField(self) -> None:
        self._show()

    def _onEnd(self, job: Job) -> None:
        if job is not self._job:
            return
        self._job = None
        if self._context.ui.statusLabel.text == self._making:
            self._showMessage("", Severity.PLAIN)
        if job.state is JobState.FAILED:
            # Nor is a version made when the handle is released.
            self.end()
            self._showMessage(job.text, Severity.ERROR)

    def _show(self) -> None:
        self._pending = False
        if self._preview is not None:
            self._preview.show(self._wanted)


def _state(node: Any) -> Any:
    """What tells whether a node, or what it holds, has changed."""
    if node is None:
        return None
    times = [node.GetID()]
    if node.IsA("vtkMRMLVolumeNode"):
        times += [node.GetImageData().GetMTime() if node.GetImageData() is not None else 0]
        times += [str(mrml.localMatrix(node).tolist())]
    elif node.IsA("vtkMRMLSegmentationNode"):
        times.append(mrml.segmentationState(node))
    else:
        times.append(node.GetMTime())
    return tuple(times)
