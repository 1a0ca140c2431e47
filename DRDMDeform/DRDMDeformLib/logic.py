"""Everything the module does, without its panel."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeAlias

import SimpleITK as sitk
import slicer
from slicer.i18n import tr as _

from . import mrml
from .batches import BatchLogic
from .job import Job, JobState
from .models import ModelInfo, bestModel, listModels, modelInfo
from .mrml import SceneError, links

# What a deformation makes in the scene: a transform node, or the sequence browser node of several.
Deformations: TypeAlias = Any

DEFAULT_LEVEL = 48


class Logic(BatchLogic):
    """Deforms volumes of a scene, applies the result, makes training data and trains models.

    In the examples below ``volume`` and ``segmentation`` are nodes of the scene, ``transform`` is what ``deform`` has
    made of the volume, ``scans`` a folder with ``images`` and ``labels``, ``out`` a folder that is not there yet. They
    run as tests.

    Usage example:
    >>> logic = slicer.util.getModuleLogic("DRDMDeform")
    >>> transform = logic.deform(volume, level=48, seed=1)
    >>> newVolume, newSegmentation = logic.apply(transform, [volume, segmentation])
    >>> logic.figures(transform)[0]["metrics"]["certified_invertible"]
    True
    """

    # Models

    def availableModels(self) -> list[ModelInfo]:
        """Every model that is here or can be downloaded; shipped ones first.

        Usage example:
        >>> [model.name for model in logic.availableModels() if model.here and model.ndim == 2]
        ['cardiac-mr-2d']
        """
        return listModels()

    def bestModel(self, volumeNode: slicer.vtkMRMLScalarVolumeNode) -> ModelInfo | None:
        """The model that is taken for a volume when none is named.

        Usage example:
        >>> logic.bestModel(volume).name
        'hippocampus-mr-3d'
        """
        dimension, extent = mrml.imageDimension(volumeNode)
        return bestModel(dimension, max(extent))

    def fitWarnings(self, volumeNode: slicer.vtkMRMLScalarVolumeNode, model: str) -> list[str]:
        """Sentences on what does not fit between a volume and a model; empty if all seems well.

        Usage example:
        >>> warning = logic.fitWarnings(volume, "brain-t1-3d")[0]
        >>> warning[:74]
        "'Phantom' is 52 mm long, but brain-t1-3d is meant for images 150 to 290 mm"
        """
        return mrml.fitWarnings(volumeNode, modelInfo(model).mapping())

    def downloadModel(self, name: str) -> Job:
        """A job that downloads a model of the list; start it."""
        return Job(["models", "fetch", name])

    # Deforming

    def deform(
        self,
        volumeNode: slicer.vtkMRMLScalarVolumeNode,
        model: str | None = None,
        level: int = DEFAULT_LEVEL,
        seed: int = 0,
        steps: int | None = None,
        device: str = "auto",
        plane: str = "auto",
        pose: float = 0.0,
        onProgress: Callable[[float], None] | None = None,
    ) -> slicer.vtkMRMLGridTransformNode:
        """A new version of a volume as a transform node; the volume itself stays as it is.

        Computed in this process, so it needs PyTorch here and blocks until it is done; ``startDeform`` does not.

        Args:
            volumeNode: single channel, 2D or 3D; its position in the world counts.
            model: name or path; ``None`` takes the best one for the volume.
            level: T', 1 (subtle) to 79 (strong).
            seed: the same seed gives the same deformation.
            pose: how much the whole is turned, resized and shifted besides, 0 to 2 (1: by up to 15 degrees and 15 %).
            onProgress: called with 0 to 1; may raise to cancel.

        Raises:
            SceneError: the volume cannot be used.
            DRDMError: model, level, steps, pose or device cannot be used.

        Usage example:
        >>> transform = logic.deform(volume, level=20, seed=7)
        >>> transform.GetName()
        'Phantom deformation 2 (level 20, seed 7)'
        """
        from DRDMLib import deform, load_model

        image = mrml.imageFromVolume(volumeNode)
        name = model or self._bestModelName(volumeNode)

        def report(done: int, total: int) -> None:
            if onProgress is not None:
                onProgress(done / total)

        used = load_model(name, device)
        result = deform(image, used, level, seed, steps, pose=pose, plane=plane, on_step=report)
        record = {
            "seed": seed,
            "level": level,
            "steps": result.steps,
            "pose": pose,
            "seconds": round(result.seconds, 3),
            "metrics": result.metrics.to_dict(),
            "model": result.model,
        }
        return mrml.addVariants(self.mrmlScene(), volumeNode, [result.field], [record], asSequence=False)[0]

    def startDeform(
        self,
        volumeNode: slicer.vtkMRMLScalarVolumeNode,
        model: str | None = None,
        level: int = DEFAULT_LEVEL,
        seed: int = 0,
        count: int = 1,
        asSequence: bool = True,
        steps: int | None = None,
        device: str = "auto",
        plane: str = "auto",
        pose: float = 0.0,
        onMade: Callable[[list[Deformations]], None] | None = None,
    ) -> Job:
        """A job that makes ``count`` new versions (seeds from ``seed`` on) in a process of its own; start it.

        Nothing in the scene changes before the last one is complete. Then ``onMade`` gets the transform nodes, or with
        ``asSequence`` one sequence browser.

        Raises:
            SceneError, DRDMError: the volume or the model cannot be used.

        Usage example:
        >>> job = logic.startDeform(volume, count=3, onMade=lambda made: print(made[0].GetName()))
        >>> job.start()
        >>> job.wait(slicer.app.processEvents)
        Phantom deformations browser
        <JobState.DONE: 'done'>
        """
        image = mrml.imageFromVolume(volumeNode)
        name = model or self._bestModelName(volumeNode)
        folder = Path(tempfile.mkdtemp(prefix="drdm-"))
        try:
            sitk.WriteImage(image, str(folder / "scan.nrrd"))
        except RuntimeError as error:
            shutil.rmtree(folder, ignore_errors=True)
            raise SceneError(
                _("There is no room for a temporary copy of the volume in '{folder}'.").format(folder=folder.parent)
            ) from error
        arguments: list[object] = ["deform", folder / "scan.nrrd", "-o", folder / "out", "--only-field"]
        arguments += ["--model", name]
        arguments += ["--level", level, "--seed", seed, "--count", count, "--device", device, "--plane", plane]
        arguments += ["--pose", pose] if pose else []
        arguments += ["--steps", steps] if steps else []
        job = Job(arguments)
        volumeID = volumeNode.GetID()
        scene = self.mrmlScene()

        def take(job: Job) -> None:
            try:
                if job.state is not JobState.DONE:
                    return
                if scene.GetNodeByID(volumeID) is not volumeNode:
                    job.state, job.text = JobState.FAILED, _("The volume was removed meanwhile; nothing was added.")
                    return
                report = json.loads((folder / "out" / "report.json").read_text(encoding="utf-8"))
                fields = [sitk.ReadImage(str(folder / "out" / item["field"])) for item in report["items"]]
                kept = ("seed", "level", "steps", "pose", "seconds", "metrics")
                records = [{**{k: item[k] for k in kept}, "model": report["model"]} for item in report["items"]]
                made = mrml.addVariants(scene, volumeNode, fields, records, asSequence=asSequence and count > 1)
            except (OSError, ValueError, KeyError, RuntimeError) as error:
                job.state, job.text = JobState.FAILED, str(error)
            else:
                if onMade is not None:
                    onMade([made[1]] if isinstance(made, tuple) else made)
            finally:
                shutil.rmtree(folder, ignore_errors=True)

        job.onFinished(take)
        return job

    def _bestModelName(self, volumeNode: slicer.vtkMRMLScalarVolumeNode) -> str:
        best = self.bestModel(volumeNode)
        if best is None:
            dimension = mrml.imageDimension(volumeNode)[0]
            raise SceneError(_("No {n}D model is here yet; choose one to download.").format(n=dimension))
        return best.name

    # What was made

    def deformations(self, volumeNode: slicer.vtkMRMLScalarVolumeNode) -> list[slicer.vtkMRMLTransformNode]:
        """The transform nodes that were made for a volume.

        Usage example:
        >>> logic.deformations(volume) == [transform]
        True
        """
        return mrml.variantTransforms(self.mrmlScene(), volumeNode)

    def volumeOf(self, deformations: Deformations) -> slicer.vtkMRMLScalarVolumeNode | None:
        """The volume that a transform or sequence browser was made for, if it is still there.

        Usage example:
        >>> logic.volumeOf(transform) is volume
        True
        """
        return mrml.volumeOf(deformations)

    def figures(self, deformations: Deformations) -> list[dict[str, Any]]:
        """Seed, level, model and metrics of each variant of a transform or of a sequence browser.

        Usage example:
        >>> record = logic.figures(transform)[0]
        >>> record["level"], record["seed"], record["model"]
        (48, 1, 'hippocampus-mr-3d')
        >>> sorted(record["metrics"])[:4]
        ['certified_invertible', 'folded_fraction', 'max_mm', 'max_percent']
        """
        return mrml.records(deformations)

    def transformOf(self, deformations: Deformations) -> slicer.vtkMRMLTransformNode:
        """The transform node that nodes follow: itself, or a sequence browser's."""
        if deformations.IsA("vtkMRMLSequenceBrowserNode"):
            return deformations.GetProxyNode(deformations.GetMasterSequenceNode())
        return deformations

    def variants(self, volumeNode: slicer.vtkMRMLScalarVolumeNode) -> list[tuple[Deformations, int, dict[str, Any]]]:
        """Every variant that was made for a volume: its transform or sequence browser, its place there, its record.

        Usage example:
        >>> [record["seed"] for _node, _index, record in logic.variants(volume)]
        [1]
        """
        return mrml.variantsOf(self.mrmlScene(), volumeNode)

    def shownVariant(self, deformations: Deformations) -> int:
        """Which variant of a sequence is shown; 0 for a single transform."""
        browser = deformations.IsA("vtkMRMLSequenceBrowserNode")
        return deformations.GetSelectedItemNumber() if browser else 0

    def showVariant(self, browserNode: slicer.vtkMRMLSequenceBrowserNode, index: int) -> None:
        """Scroll a sequence of variants.

        Usage example:
        >>> job = logic.startDeform(volume, count=2)
        >>> job.start()
        >>> state = job.wait(slicer.app.processEvents)
        >>> browser = logic.variants(volume)[-1][0]
        >>> logic.showVariant(browser, 1)
        >>> logic.figures(logic.transformOf(browser))[0]["seed"]
        1
        """
        mrml.selectVariant(browserNode, index)

    def preview(self, transformNode: slicer.vtkMRMLTransformNode, nodes: Iterable[Any], on: bool = True) -> None:
        """Let nodes follow the transform at once, or show them as they were.

        Raises:
            SceneError: a node lies under another transform than the volume.

        Usage example:
        >>> logic.preview(transform, [volume, segmentation])
        >>> segmentation.GetParentTransformNode() is transform
        True
        >>> logic.preview(transform, [volume, segmentation], on=False)
        """
        (mrml.enablePreview if on else mrml.disablePreview)(transformNode, list(nodes))

    def apply(
        self,
        transformNode: slicer.vtkMRMLTransformNode,
        nodes: Iterable[Any],
        copies: bool = True,
        originalGrid: bool = True,
    ) -> list[Any]:
        """Harden the transform: onto copies, or onto the nodes themselves.

        Args:
            nodes: volumes, segmentations, label maps, models, markups.
            originalGrid: volumes keep their voxel grid; otherwise as Slicer hardens, which may change the extent.

        Returns:
            The hardened nodes, in the order of ``nodes``.

        Raises:
            SceneError: a node cannot be deformed; nothing is changed then.

        Usage example:
        >>> [node.GetName() for node in logic.apply(transform, [volume, segmentation])]
        ['Phantom deformed', 'Phantom segmentation deformed']
        """
        return mrml.apply(transformNode, list(nodes), copies=copies, originalGrid=originalGrid)

    def applyAll(
        self,
        volumeNode: slicer.vtkMRMLScalarVolumeNode,
        nodes: Iterable[Any] | None = None,
        originalGrid: bool = True,
        onProgress: Callable[[int, int], None] | None = None,
    ) -> list[list[Any]]:
        """Harden every variant of a volume onto copies of its own, in a folder of the subject hierarchy.

        Args:
            volumeNode: whose variants.
            nodes: what is copied and deformed; by default the volume and the segmentation that was drawn on it.
            originalGrid: as in ``apply``.
            onProgress: called with the variants done and all of them; may raise to cancel.

        Returns:
            For each variant its copies, in the order of ``nodes``.

        Raises:
            SceneError: there is no variant, or a node cannot be deformed; nothing is changed then.

        Usage example:
        >>> another = logic.deform(volume, level=48, seed=2)
        >>> versions = logic.applyAll(volume)
        >>> [node.GetName() for node in versions[1]]
        ['Phantom deformed 2', 'Phantom segmentation deformed 2']
        """
        if nodes is None:
            drawn = None if volumeNode is None else links.segmentationOf(self.mrmlScene(), volumeNode)
            nodes = [volumeNode] if drawn is None else [volumeNode, drawn]
        return mrml.applyVariants(self.mrmlScene(), volumeNode, list(nodes), originalGrid, onProgress)

    def removeVariant(self, deformations: Deformations, index: int = 0) -> None:
        """Remove a transform, or one variant of a sequence; what follows a transform that goes shows the original.

        Raises:
            SceneError: there is no such variant.

        Usage example:
        >>> logic.removeVariant(transform)
        >>> logic.variants(volume)
        []
        """
        mrml.removeVariant(deformations, index)

    def showDeformation(self, transformNode: slicer.vtkMRMLTransformNode, mode: str | None) -> None:
        """Draw the deformation in the views: ``"grid"``, ``"glyph"``, ``"contour"`` or ``None``.

        Usage example:
        >>> logic.showDeformation(transform, "grid")
        >>> bool(transform.GetDisplayNode().GetVisibility())
        True
        """
        mrml.showDeformation(transformNode, mode)

    def jacobian(
        self, transformNode: slicer.vtkMRMLTransformNode, volumeNode: slicer.vtkMRMLScalarVolumeNode
    ) -> slicer.vtkMRMLScalarVolumeNode:
        """The Jacobian determinant as a volume: above 1 the new version is smaller there, below 1 larger, 0 folds.

        Usage example:
        >>> determinant = slicer.util.arrayFromVolume(logic.jacobian(transform, volume))
        >>> bool(determinant.min() > 0)
        True
        """
        return mrml.jacobianVolume(self.mrmlScene(), transformNode, volumeNode)
