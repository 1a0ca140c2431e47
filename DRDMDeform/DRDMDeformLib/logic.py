"""Everything that the module does, without its panel."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeAlias

import slicer

from DRDMLib.levels import DEFAULT_LEVEL

from . import mrml
from .batches import BatchLogic, RunSettings
from .job import Job
from .models import ModelLogic
from .mrml import links
from .previews import PreviewLogic
from .regions import SceneRegion, sceneRegion
from .registration_tests import RegistrationTestLogic
from .scans import nameToward, wayToward, writeScan
from .versions import NewVersions
from .worker import WorkerProcess

# What a deformation is in the scene: a transform node, or a sequence browser node of several variants.
Deformations: TypeAlias = Any


class Logic(ModelLogic, BatchLogic, PreviewLogic, RegistrationTestLogic):
    """Deforms volumes of a scene, applies the result, makes training data, trains models and tests registrations.

    In the examples below ``volume`` and ``segmentation`` are nodes of the scene, ``transform`` is a result of
    ``deform`` for the volume, ``other`` is a volume of the same kind, ``scans`` is a folder with ``images`` and
    ``labels``, ``people`` is one with scans of the same kind of two people, and ``out`` is a folder that does not exist
    yet. The examples are run as tests.

    Usage example:
    >>> logic = slicer.util.getModuleLogic("DRDMDeform")
    >>> transform = logic.deform(volume, level=48, seed=1)
    >>> newVolume, newSegmentation = logic.apply(transform, [volume, segmentation])
    >>> logic.figures(transform)[0]["metrics"]["certified_invertible"]
    True
    """

    # Deforming

    def deform(
        self,
        volumeNode: slicer.vtkMRMLScalarVolumeNode,
        model: str | None = None,
        level: int | str = DEFAULT_LEVEL,
        seed: int = 0,
        steps: int | None = None,
        device: str = "auto",
        plane: str = "auto",
        pose: float = 0.0,
        onProgress: Callable[[float], None] | None = None,
        toward: slicer.vtkMRMLScalarVolumeNode | None = None,
    ) -> slicer.vtkMRMLGridTransformNode:
        """Deform a volume and return the deformation as a transform node; the volume itself is not changed.

        This imports PyTorch into Slicer's own process and returns when the deformation has been computed.
        ``startDeform`` computes in a separate process instead.

        Args:
            volumeNode: single channel, 2D or 3D; deformed at its position in the world.
            model: name or path; ``None``: the one that fits the volume best.
            level: ``"subtle"``, ``"medium"`` or ``"strong"``, which mean the same for every model; or T', 1 to 79.
            seed: the same seed gives the same deformation.
            steps: number of recovery steps; ``None``: the default of the model.
            device: ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"mps"``.
            plane: plane of the slices that a 2D model deforms.
            pose: amount of additional rotation, scaling and translation, 0 to 2 (1: up to 15 degrees, 15 % and 6 % of
                the side).
            onProgress: called with 0 to 1; may raise an exception to cancel.
            toward: a volume of the same kind of another person; the version first goes a part of the way toward it,
                which the seed decides. No labels are needed.

        Raises:
            SceneError: a volume cannot be used, or the two cannot be matched.
            DRDMError: model, level, steps, pose or device cannot be used.

        Usage example:
        >>> transform = logic.deform(volume, level=20, seed=7)
        >>> transform.GetName()
        'Phantom deformation 2 (level 20, seed 7)'
        >>> nearer = logic.deform(volume, "general-3d", level="subtle", toward=other)
        >>> 0.2 <= logic.figures(nearer)[0]["toward"] <= 1
        True
        """
        from DRDMLib import deform
        from DRDMLib.deforming import model_and_choice

        image = mrml.imageFromVolume(volumeNode)
        way = None if toward is None else wayToward(volumeNode, toward)
        loaded, choice = model_and_choice(image, model or None, device, plane=plane)

        def report(done: int, total: int) -> None:
            if onProgress is not None:
                onProgress(done / total)

        result = deform(image, loaded, level, seed, steps, pose=pose, plane=plane, toward=way, on_step=report)
        record = {
            "seed": seed,
            "level": result.level,
            "strength": result.strength,
            "steps": result.steps,
            "pose": pose,
            **({} if way is None else {"toward": round(result.toward, 4)}),
            "seconds": round(result.seconds, 3),
            "metrics": result.metrics.to_dict(),
            "model": result.model,
            "fit": choice.fit.to_dict(),
            "doubtful": choice.fit.doubtful(result.model_fraction),
        }
        return mrml.addVariants(self.mrmlScene(), volumeNode, [result.field], [record], asSequence=False)[0]

    def startDeform(
        self,
        volumeNode: slicer.vtkMRMLScalarVolumeNode,
        model: str | None = None,
        level: int | str = DEFAULT_LEVEL,
        seed: int = 0,
        count: int = 1,
        asSequence: bool = True,
        steps: int | None = None,
        device: str = "auto",
        plane: str = "auto",
        pose: float = 0.0,
        region: SceneRegion | None = None,
        onMade: Callable[[list[Deformations]], None] | None = None,
        onVersion: Callable[[slicer.vtkMRMLTransformNode], None] | None = None,
        toward: slicer.vtkMRMLScalarVolumeNode | None = None,
    ) -> Job:
        """Return a job that makes variants of a volume in a separate process.

        The scene does not change before the last variant is complete, unless ``onVersion`` is given.

        Args:
            volumeNode: as in :meth:`deform`.
            model: as in :meth:`deform`.
            level: as in :meth:`deform`.
            seed: of the first variant; the others take the following numbers.
            count: number of variants.
            asSequence: several variants become one sequence, otherwise one transform node each.
            steps: as in :meth:`deform`.
            device: as in :meth:`deform`.
            plane: as in :meth:`deform`.
            pose: as in :meth:`deform`.
            region: where to deform, from :meth:`regionOf`; ``None``: the whole volume. Without a model the best one for
                the region is used.
            onMade: called with the transform nodes, or with one sequence browser, in a list.
            onVersion: called with the transform node of a single variant as soon as its field is proven and in the
                scene. Its figures follow; until then, and if the job is canceled or fails, ``figures`` has only
                ``certified_invertible``. Of several variants none comes early.
            toward: as in :meth:`deform`; only without a region.

        Raises:
            SceneError, DRDMError: a volume or the model cannot be used.

        Usage example:
        >>> job = logic.startDeform(volume, count=3, onMade=lambda made: print(made[0].GetName()))
        >>> job.start()
        >>> job.wait(slicer.app.processEvents)
        Phantom deformations browser
        <JobState.DONE: 'done'>
        """
        settings = RunSettings(model, seed, steps, pose, device, plane)
        folder = writeScan(volumeNode, region, toward)
        arguments = ["deform", folder / "scan.nrrd", "-o", folder / "out", "--only-field", "--uncompressed"]
        arguments += ["--level", level, "--count", count, *settings.arguments()]
        arguments += [] if region is None else region.arguments(folder / "label.nrrd")
        arguments += [] if toward is None else ["--toward", folder / "toward.nrrd"]
        job = Job(arguments, WorkerProcess())
        if toward is not None:
            nameToward(job, folder, toward.GetName())
        early = onVersion if count == 1 else None
        NewVersions(job, folder, self.mrmlScene(), volumeNode, asSequence and count > 1, early, onMade)
        return job

    def regionOf(
        self,
        volumeNode: slicer.vtkMRMLScalarVolumeNode,
        roi: slicer.vtkMRMLMarkupsROINode | None = None,
        segmentation: Any = None,
        around: bool = True,
        margin: float | None = None,
        keep: Sequence[str] = (),
    ) -> SceneRegion | None:
        """A region of a volume, for :meth:`startDeform`; ``None`` for the whole volume.

        Args:
            volumeNode: the volume.
            roi: an ROI; a turned one, or one under a transform, stands for its bounding box along the axes of the
                volume.
            segmentation: segmentation or label map of the volume.
            around: without an ROI, deform around the segmentation.
            margin: largest distance from the region at which anything moves, mm; ``None``: as needed.
            keep: names of segments (for a label map, values) that do not move.

        Raises:
            SceneError: a node cannot be used, or there is no such segment.

        Usage example:
        >>> region = logic.regionOf(volume, segmentation=segmentation)
        >>> region.arguments("label.nrrd")
        ['--label', 'label.nrrd', '--around', 'all']
        """
        return sceneRegion(volumeNode, roi, segmentation, around, margin, keep)

    # Variants

    def deformations(self, volumeNode: slicer.vtkMRMLScalarVolumeNode) -> list[slicer.vtkMRMLTransformNode]:
        """The transform nodes of a volume.

        Usage example:
        >>> logic.deformations(volume) == [transform]
        True
        """
        return mrml.variantTransforms(self.mrmlScene(), volumeNode)

    def volumeOf(self, deformations: Deformations) -> slicer.vtkMRMLScalarVolumeNode | None:
        """The volume of a transform or sequence browser, or ``None`` if it has been removed.

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
        (48, 1, 'general-3d')
        >>> sorted(record["metrics"])[:4]
        ['certified_invertible', 'folded_fraction', 'max_mm', 'max_percent']
        """
        return mrml.records(deformations)

    def transformOf(self, deformations: Deformations) -> slicer.vtkMRMLTransformNode:
        """The transform node of a deformation: the node itself, or the proxy node of a sequence browser."""
        return mrml.transformOf(deformations)

    def variants(self, volumeNode: slicer.vtkMRMLScalarVolumeNode) -> list[tuple[Deformations, int, dict[str, Any]]]:
        """Every variant of a volume: its transform or sequence browser, its index there, and its record.

        Usage example:
        >>> [record["seed"] for _node, _index, record in logic.variants(volume)]
        [1]
        """
        return mrml.variantsOf(self.mrmlScene(), volumeNode)

    def shownVariant(self, deformations: Deformations) -> int:
        """The index of the shown variant of a sequence; 0 for a single transform."""
        return deformations.GetSelectedItemNumber() if mrml.isSequence(deformations) else 0

    def showVariant(self, browserNode: slicer.vtkMRMLSequenceBrowserNode, index: int) -> None:
        """Show one variant of a sequence.

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
        """Put nodes under the transform, or back under their previous parent.

        Raises:
            SceneError: a node has another parent transform than the volume.

        Usage example:
        >>> logic.preview(transform, [volume, segmentation])
        >>> segmentation.GetParentTransformNode() is transform
        True
        >>> logic.preview(transform, [volume, segmentation], on=False)
        """
        if on:
            mrml.enablePreview(transformNode, list(nodes))
        else:
            mrml.disablePreview(transformNode, list(nodes))

    def apply(
        self,
        transformNode: slicer.vtkMRMLTransformNode,
        nodes: Iterable[Any],
        copies: bool = True,
        originalGrid: bool = True,
    ) -> list[Any]:
        """Harden the transform on copies of nodes, or on the nodes themselves.

        Args:
            transformNode: a transform made by this module.
            nodes: volumes, segmentations, label maps, models, markups.
            copies: harden on copies; otherwise the nodes themselves are changed.
            originalGrid: volumes keep their voxel grid; otherwise they are hardened as by Slicer, which may change the
                extent.

        Returns:
            The hardened nodes, in the order of ``nodes``.

        Raises:
            SceneError: a node cannot be deformed; nothing is changed.

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
        """Harden every variant of a volume on its own copies, in a folder of the subject hierarchy.

        Args:
            volumeNode: the volume.
            nodes: nodes to copy and deform; by default the volume and its segmentation.
            originalGrid: as in :meth:`apply`.
            onProgress: called with the number of finished variants and of all variants; may raise an exception to
                cancel.

        Returns:
            For each variant its copies, in the order of ``nodes``.

        Raises:
            SceneError: there is no variant, or a node cannot be deformed; nothing is changed.

        Usage example:
        >>> another = logic.deform(volume, level=48, seed=2)
        >>> copies = logic.applyAll(volume)
        >>> [node.GetName() for node in copies[1]]
        ['Phantom deformed 2', 'Phantom segmentation deformed 2']
        """
        if nodes is None:
            segmentation = None if volumeNode is None else links.segmentationOf(self.mrmlScene(), volumeNode)
            nodes = [volumeNode] if segmentation is None else [volumeNode, segmentation]
        return mrml.applyVariants(self.mrmlScene(), volumeNode, list(nodes), originalGrid, onProgress)

    def removeVariant(self, deformations: Deformations, index: int = 0) -> None:
        """Remove a transform, or one variant of a sequence; previewed nodes return to their original state.

        Raises:
            SceneError: there is no such variant.

        Usage example:
        >>> logic.removeVariant(transform)
        >>> logic.variants(volume)
        []
        """
        mrml.removeVariant(deformations, index)

    def showDeformation(self, transformNode: slicer.vtkMRMLTransformNode, mode: str | None) -> None:
        """Draw the deformation in the views as ``"grid"``, ``"glyph"`` or ``"contour"``; ``None`` hides it.

        Usage example:
        >>> logic.showDeformation(transform, "grid")
        >>> bool(transform.GetDisplayNode().GetVisibility())
        True
        """
        mrml.showDeformation(transformNode, mode)

    def jacobian(
        self, transformNode: slicer.vtkMRMLTransformNode, volumeNode: slicer.vtkMRMLScalarVolumeNode
    ) -> slicer.vtkMRMLScalarVolumeNode:
        """Compute the Jacobian determinant as a volume: above 1 tissue has shrunk, below 1 grown, 0 or below folded.

        Usage example:
        >>> determinant = slicer.util.arrayFromVolume(logic.jacobian(transform, volume))
        >>> bool(determinant.min() > 0)
        True
        """
        return mrml.jacobianVolume(self.mrmlScene(), transformNode, volumeNode)
