"""The panel: one parameter node, six sections, and the jobs that run behind it."""

from __future__ import annotations

from typing import Any

import qt
import slicer
import vtk
from slicer.i18n import tr as _

from .job_runner import JobRunner
from .models import ModelInfo
from .mrml import SceneError
from .parameter import DRDMDeformParameterNode
from .sections import ApplySection, BatchSection, DeformSection, InputSection, Section, SetupSection, TrainSection
from .sections.section import ERROR_STYLE
from .setup.environment import Environment, EnvironmentProtocol


class Panel(slicer.util.VTKObservationMixin):
    """Binds the widgets of the .ui file to the scene.

    Args:
        widget: the loaded .ui file.
        logic: the module's logic.
        environment: what is installed; tests hand in another.
    """

    def __init__(self, widget: Any, logic: Any, environment: EnvironmentProtocol | None = None) -> None:
        super().__init__()
        self.widget = widget
        self.ui = slicer.util.childWidgetVariables(widget)
        self.logic = logic
        self.environment = environment or Environment()
        self.jobRunner = JobRunner()
        self.parameter: Any = None
        self._guiTag: Any = None
        self._updating = False
        # Transform, what follows it, and the transform that it is under itself.
        self._followed: tuple[Any, list[Any], Any] | None = None
        self._browser: Any = None
        self._wanted: tuple[Any, ...] = ()
        self.setup = SetupSection(self)
        self.input = InputSection(self)
        self.deform = DeformSection(self)
        self.apply = ApplySection(self)
        self.batch = BatchSection(self)
        self.train = TrainSection(self)
        self.sections: list[Section] = [self.setup, self.input, self.deform, self.apply, self.batch, self.train]
        scene = slicer.mrmlScene
        self.addObserver(scene, scene.StartCloseEvent, self.onSceneStartClose)
        self.addObserver(scene, scene.EndCloseEvent, self.onSceneEnd)
        self.addObserver(scene, scene.StartImportEvent, self.onSceneStartImport)
        self.addObserver(scene, scene.EndImportEvent, self.onSceneEnd)
        self.addObserver(scene, scene.NodeRemovedEvent, self.onNodeRemoved)
        self.attach()
        self.setup.check()

    # The scene

    def attach(self) -> None:
        """Use the scene's parameter node; a fresh one takes the volume that the views show."""
        self.detach()
        node = self.logic.getParameterNode()
        self.parameter = DRDMDeformParameterNode(node)  # type: ignore[call-arg]
        self._guiTag = self.parameter.connectGui(self.widget)
        self.input.restore()
        self.addObserver(node, vtk.vtkCommand.ModifiedEvent, self.onModified)
        self.enter()

    def enter(self) -> None:
        """The panel comes into view: models may have come, and a volume may have been loaded meanwhile."""
        if self.parameter is None:
            return
        self.input.invalidate()
        if self.parameter.inputVolume is None:
            self.parameter.inputVolume = _shownVolume()
        self.update()

    def detach(self) -> None:
        """Let go of the parameter node."""
        if self.parameter is None:
            return
        self.parameter.disconnectGui(self._guiTag)
        self.removeObserver(self.parameter.parameterNode, vtk.vtkCommand.ModifiedEvent, self.onModified)
        self._watch(None)
        self.parameter = None
        self._followed, self._wanted = None, ()

    def onSceneStartClose(self, caller: Any, event: Any) -> None:
        """A deformation that is being made has lost its volume; batches and trainings go on."""
        self.deform.cleanup()
        self.detach()

    def onSceneStartImport(self, caller: Any, event: Any) -> None:
        """The node selectors lose their nodes while a scene comes in; that must not reach the parameter node."""
        self.detach()

    def onSceneEnd(self, caller: Any, event: Any) -> None:
        """A new scene: its own parameter node."""
        self.train.onSceneClosed()
        self.attach()

    def onNodeRemoved(self, caller: Any, event: Any) -> None:
        """A node that is shown may be gone; look once the scene is done with it."""
        if not slicer.mrmlScene.IsClosing():
            qt.QTimer.singleShot(0, self.update)

    def onModified(self, caller: Any, event: Any) -> None:
        """A setting has changed."""
        self.update()

    # Showing

    def update(self) -> None:
        """Show everything as it is now."""
        if self.parameter is None or self._updating:
            return
        self._updating = True
        try:
            self.input.chooseSegmentation()
            if not self._belongs(self.parameter.deformations):
                self.parameter.deformations = None
            self._watch(self.parameter.deformations)
            self._follow()
            for section in self.sections:
                section.update()
            self.deform.showDisplay()
        finally:
            self._updating = False

    def show(self, deformations: Any) -> None:
        """Show a transform or a sequence of variants."""
        self.parameter.deformations = deformations
        self.update()

    def nodesToDeform(self) -> list[Any]:
        """The volume and what moves along with it."""
        return self.input.nodesToDeform()

    def _belongs(self, deformations: Any) -> bool:
        """Whether what is shown is a deformation of the chosen volume; with another volume it goes."""
        return deformations is None or self.logic.volumeOf(deformations) is self.parameter.inputVolume

    def _watch(self, deformations: Any) -> None:
        """A sequence can also be scrolled through with Slicer's own tool bar."""
        browser = deformations if deformations is not None and deformations.IsA("vtkMRMLSequenceBrowserNode") else None
        if browser is self._browser:
            return
        if self._browser is not None:
            self.removeObserver(self._browser, vtk.vtkCommand.ModifiedEvent, self.onModified)
        self._browser = browser
        if browser is not None:
            self.addObserver(browser, vtk.vtkCommand.ModifiedEvent, self.onModified)

    def _follow(self) -> None:
        """Put what moves under the shown deformation, and nothing else."""
        p = self.parameter
        transform: Any = None if p.deformations is None else self.logic.transformOf(p.deformations)
        nodes = self.nodesToDeform() if p.preview and transform is not None else []
        wanted = (transform and transform.GetID(), *(node.GetID() for node in nodes))
        if wanted == self._wanted:
            return
        self._wanted = wanted
        if self._followed is not None:
            self._release(transform, nodes)
        if not nodes:
            return
        followers, refused = [], []
        for node in nodes:
            try:
                self.logic.preview(transform, [node])
                followers.append(node)
            except SceneError as error:
                refused.append(str(error))
        self._followed = (transform, followers, transform.GetParentTransformNode())
        if refused:
            self.deform.showMessage(self.ui.statusLabel, " ".join(refused), ERROR_STYLE)

    def _release(self, transform: Any, nodes: list[Any]) -> None:
        """Bring back what followed another deformation, or follows no more."""
        assert self._followed is not None
        old, followers, parent = self._followed
        self._followed = None
        followers = [node for node in followers if slicer.mrmlScene.IsNodePresent(node)]
        if slicer.mrmlScene.IsNodePresent(old):
            gone = [node for node in followers if node not in nodes or old is not transform]
            self.logic.preview(old, [node for node in gone if node.GetParentTransformNode() is old], on=False)
        elif parent is not None and slicer.mrmlScene.IsNodePresent(parent):
            # The transform was deleted in the scene, and what was under it fell out of its parent as well.
            for node in followers:
                if node.GetParentTransformNode() is None:
                    node.SetAndObserveTransformNodeID(parent.GetID())

    # What a run needs

    def requireTorch(self) -> None:
        """Raises SceneError, and opens Setup, while nothing can be computed."""
        state = self.environment.state()
        if state.problem:
            self.ui.setupSection.collapsed = False
            raise SceneError(
                _("{problem} Press '{button}' in Setup.").format(problem=state.problem, button=state.remedy)
            )

    def requireModel(self) -> ModelInfo:
        """The model in use.

        Raises:
            SceneError: there is none, or it is not downloaded yet.
        """
        if not self.parameter.model:
            # Says so itself when the volume cannot be used at all.
            self.logic.bestModel(self.parameter.inputVolume)
        model = self.input.model()
        if model is None:
            raise SceneError(_("Choose a model in Input."))
        if not model.here:
            raise SceneError(_("The model '{name}' is not here yet; press Download in Input.").format(name=model.name))
        return model

    def cleanup(self) -> None:
        """Stop what runs and let go of the scene."""
        for section in self.sections:
            section.cleanup()
        self.jobRunner.cleanup()
        self.removeObservers()
        self._browser = None
        if self.parameter is not None:
            self.parameter.disconnectGui(self._guiTag)
            self.parameter = None


def _shownVolume() -> Any:
    """The volume in the background of the slice views, if it can be deformed at all."""
    selection = slicer.app.applicationLogic().GetSelectionNode()
    node = slicer.mrmlScene.GetNodeByID(selection.GetActiveVolumeID() or "")
    # Label maps and color images are scalar volumes by inheritance.
    return node if node is not None and node.GetClassName() == "vtkMRMLScalarVolumeNode" else None
