"""Everything the module does, without its panel."""

from __future__ import annotations

import contextlib
import json
import shutil
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import SimpleITK as sitk
import slicer
from slicer.i18n import tr as _

from DRDMLib.catalogue import add_own_model
from DRDMLib.errors import DRDMError

from . import mrml
from .job import Job, JobState, Progress
from .models import ModelInfo, bestModel, listModels, modelInfo
from .mrml import SceneError, links

# What a deformation makes in the scene: a transform node, or the sequence browser node of several.
Deformations: TypeAlias = Any
Source: TypeAlias = str | Path | Sequence[Any]

DEFAULT_LEVEL = 48


class Logic:
    """Deforms volumes of a scene, applies the result, makes training data and trains models.

    Usage example:
    >>> logic = slicer.util.getModuleLogic("DRDMDeform")
    >>> transform = logic.deform(volume, level=48, seed=1)
    >>> newVolume, newSegmentation = logic.apply(transform, [volume, segmentation])
    >>> logic.figures(transform)[0]["metrics"]["max_mm"]
    """

    scene: slicer.vtkMRMLScene | None = None

    def mrmlScene(self) -> slicer.vtkMRMLScene:
        """The scene that is worked on: the application's, unless ``scene`` was set."""
        return self.scene if self.scene is not None else slicer.mrmlScene

    # Models

    def availableModels(self) -> list[ModelInfo]:
        """Every model that is here or can be downloaded; shipped ones first."""
        return listModels()

    def bestModel(self, volumeNode: slicer.vtkMRMLScalarVolumeNode) -> ModelInfo | None:
        """The model that is taken for a volume when none is named."""
        dimension, extent = mrml.imageDimension(volumeNode)
        return bestModel(dimension, max(extent))

    def fitWarnings(self, volumeNode: slicer.vtkMRMLScalarVolumeNode, model: str) -> list[str]:
        """Sentences on what does not fit between a volume and a model; empty if all seems well."""
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
        onProgress: Callable[[float], None] | None = None,
    ) -> slicer.vtkMRMLGridTransformNode:
        """A new version of a volume as a transform node; the volume itself stays as it is.

        Computed in this process, so it needs PyTorch here and blocks until it is done; ``startDeform`` does not.

        Args:
            volumeNode: single channel, 2D or 3D; its position in the world counts.
            model: name or path; ``None`` takes the best one for the volume.
            level: T', 1 (subtle) to 79 (strong).
            seed: the same seed gives the same deformation.
            onProgress: called with 0 to 1; may raise to cancel.

        Raises:
            SceneError: the volume cannot be used.
            DRDMError: model, level, steps or device cannot be used.
        """
        from DRDMLib import deform, load_model

        image = mrml.imageFromVolume(volumeNode)
        name = model or self._best(volumeNode)

        def report(done: int, total: int) -> None:
            if onProgress is not None:
                onProgress(done / total)

        result = deform(image, load_model(name, device), level, seed, steps, plane=plane, on_step=report)
        record = {
            "seed": seed,
            "level": level,
            "steps": result.steps,
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
        onMade: Callable[[list[Deformations]], None] | None = None,
    ) -> Job:
        """A job that makes ``count`` new versions (seeds from ``seed`` on) in a process of its own; start it.

        Nothing in the scene changes before the last one is complete. Then ``onMade`` gets the transform nodes, or with
        ``asSequence`` one sequence browser.

        Raises:
            SceneError, DRDMError: the volume or the model cannot be used.
        """
        image = mrml.imageFromVolume(volumeNode)
        name = model or self._best(volumeNode)
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
                kept = ("seed", "level", "steps", "seconds", "metrics")
                records = [{**{k: item[k] for k in kept}, "model": report["model"]} for item in report["items"]]
                made = mrml.addVariants(scene, volumeNode, fields, records, asSequence=asSequence and count > 1)
            except (OSError, ValueError, KeyError, RuntimeError) as error:
                job.state, job.text = JobState.FAILED, str(error)
            else:
                if onMade is not None:
                    onMade([made[1]] if isinstance(made, tuple) else made)
            finally:
                shutil.rmtree(folder, ignore_errors=True)

        job.whenEnded(take)
        return job

    def _best(self, volumeNode: slicer.vtkMRMLScalarVolumeNode) -> str:
        best = self.bestModel(volumeNode)
        if best is None:
            dimension = mrml.imageDimension(volumeNode)[0]
            raise SceneError(_("No {n}D model is here yet; choose one to download.").format(n=dimension))
        return best.name

    # What was made

    def deformations(self, volumeNode: slicer.vtkMRMLScalarVolumeNode) -> list[slicer.vtkMRMLTransformNode]:
        """The transform nodes that were made for a volume."""
        return mrml.variantTransforms(self.mrmlScene(), volumeNode)

    def figures(self, deformations: Deformations) -> list[dict[str, Any]]:
        """Seed, level, model and metrics of each variant of a transform or of a sequence browser."""
        return mrml.records(deformations)

    def transformOf(self, deformations: Deformations) -> slicer.vtkMRMLTransformNode:
        """The transform node that nodes follow: itself, or a sequence browser's."""
        if deformations.IsA("vtkMRMLSequenceBrowserNode"):
            return deformations.GetProxyNode(deformations.GetMasterSequenceNode())
        return deformations

    def variants(self, volumeNode: slicer.vtkMRMLScalarVolumeNode) -> list[tuple[Deformations, int, dict[str, Any]]]:
        """Every variant that was made for a volume: its transform or sequence browser, its place there, its record."""
        return mrml.variantsOf(self.mrmlScene(), volumeNode)

    def shownVariant(self, deformations: Deformations) -> int:
        """Which variant of a sequence is shown; 0 for a single transform."""
        browser = deformations.IsA("vtkMRMLSequenceBrowserNode")
        return deformations.GetSelectedItemNumber() if browser else 0

    def showVariant(self, browserNode: slicer.vtkMRMLSequenceBrowserNode, index: int) -> None:
        """Scroll a sequence of variants."""
        mrml.selectVariant(browserNode, index)

    def preview(self, transformNode: slicer.vtkMRMLTransformNode, nodes: Iterable[Any], on: bool = True) -> None:
        """Let nodes follow the transform at once, or show them as they were.

        Raises:
            SceneError: a node lies under another transform than the volume.
        """
        (mrml.follow if on else mrml.original)(transformNode, list(nodes))

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
        """
        if nodes is None:
            drawn = None if volumeNode is None else links.segmentationOf(self.mrmlScene(), volumeNode)
            nodes = [volumeNode] if drawn is None else [volumeNode, drawn]
        return mrml.applyVariants(self.mrmlScene(), volumeNode, list(nodes), originalGrid, onProgress)

    def removeVariant(self, deformations: Deformations, index: int = 0) -> None:
        """Remove a transform, or one variant of a sequence; what follows a transform that goes shows the original.

        Raises:
            SceneError: there is no such variant.
        """
        mrml.removeVariant(deformations, index)

    def showDeformation(self, transformNode: slicer.vtkMRMLTransformNode, mode: str | None) -> None:
        """Draw the deformation in the views: ``"grid"``, ``"glyph"``, ``"contour"`` or ``None``."""
        mrml.showDeformation(transformNode, mode)

    def jacobian(
        self, transformNode: slicer.vtkMRMLTransformNode, volumeNode: slicer.vtkMRMLScalarVolumeNode
    ) -> slicer.vtkMRMLScalarVolumeNode:
        """The Jacobian determinant as a volume: above 1 the new version is smaller there, below 1 larger, 0 folds."""
        return mrml.jacobianVolume(self.mrmlScene(), transformNode, volumeNode)

    # Training data

    def augment(
        self,
        source: Source,
        outputFolder: str | Path,
        levels: Sequence[int] = (20, 40, 60),
        copies: int = 4,
        *,
        wait: bool = True,
        **settings: Any,
    ) -> Job:
        """Labelled images for training a segmentation network (Algorithm 3), as an nnU-Net raw dataset.

        Args:
            source: a folder or dataset, or volume nodes; the label of a volume is the segmentation drawn on it.
            outputFolder: new or empty, or that of an interrupted run with ``resume=True``.
            levels, copies: strengths, and versions for each.
            wait: return when it is done, else at once with a job to start.
            settings: ``model``, ``seed``, ``steps``, ``device``, ``plane``, ``segmentations``, ``resume``.

        Raises:
            SceneError: the source cannot be used.
            DRDMError: it did not succeed.
        """
        return self._batch("augment", source, outputFolder, [str(n) for n in levels], copies, wait, **settings)

    def generateRegistrationPairs(
        self,
        source: Source,
        outputFolder: str | Path,
        levels: Sequence[tuple[int, int]] = ((40, 24),),
        copies: int = 4,
        *,
        wait: bool = True,
        **settings: Any,
    ) -> Job:
        """Moving and fixed images with their exact field (Algorithm 4), as a Learn2Reg-style dataset.

        Args:
            levels: pairs of strengths, original to moving and moving to fixed; the rest as in ``augment``.
        """
        pairs = [f"{a}:{b}" for a, b in levels]
        return self._batch("synthesize", source, outputFolder, pairs, copies, wait, **settings)

    def _batch(
        self,
        command: str,
        source: Source,
        outputFolder: str | Path,
        levels: list[str],
        copies: int,
        wait: bool,
        *,
        model: str | None = None,
        seed: int = 0,
        steps: int | None = None,
        device: str = "auto",
        plane: str = "auto",
        segmentations: dict[str, Any] | None = None,
        resume: bool = False,
    ) -> Job:
        temporary: Path | None = None
        if isinstance(source, (str, Path)):
            folder = Path(source)
        else:
            folder = temporary = self._export(list(source), segmentations or {}, needLabels=command == "augment")
        arguments: list[object] = [command, folder, "-o", outputFolder, "--levels", *levels, "--copies", copies]
        arguments += ["--seed", seed, "--device", device, "--plane", plane]
        arguments += (["--model", model] if model else []) + (["--steps", steps] if steps else [])
        arguments += ["--resume"] if resume else []
        job = Job(arguments)

        def clean(job: Job) -> None:
            if temporary is not None:
                shutil.rmtree(temporary, ignore_errors=True)

        job.whenEnded(clean)
        return self._finished(job) if wait else job

    def _export(self, volumeNodes: list[Any], segmentations: dict[str, Any], *, needLabels: bool) -> Path:
        """The volumes and their labels as a dataset in a temporary folder."""
        if not volumeNodes:
            raise SceneError(_("No volume is chosen; tick the volumes to work on."))
        folder = Path(tempfile.mkdtemp(prefix="drdm-"))
        try:
            (folder / "images").mkdir()
            (folder / "labels").mkdir()
            taken: set[str] = set()
            for node in volumeNodes:
                name = _fileName(node.GetName(), taken)
                sitk.WriteImage(mrml.imageFromVolume(node), str(folder / "images" / f"{name}.nrrd"))
                segmentation = segmentations.get(node.GetID()) or links.segmentationOf(self.mrmlScene(), node)
                if segmentation is not None:
                    label = links.labelOf(segmentation, node)
                    sitk.WriteImage(label, str(folder / "labels" / f"{name}.nrrd"))
                elif needLabels:
                    raise SceneError(
                        _("No segmentation is drawn on the volume '{name}'; segment it first, or untick it.").format(
                            name=node.GetName()
                        )
                    )
        except BaseException as error:
            shutil.rmtree(folder, ignore_errors=True)
            if isinstance(error, RuntimeError):
                raise SceneError(_("There is no room for temporary copies of the volumes.")) from error
            raise
        return folder

    def summary(self, outputFolder: str | Path) -> dict[str, Any]:
        """What a batch has made so far: {"made": number, "failures": sentences, "items": [...]}."""
        with contextlib.suppress(OSError, ValueError, KeyError):
            report = json.loads((Path(outputFolder) / "report.json").read_text(encoding="utf-8"))
            items = report["items"]
            return {"made": len(items), "failures": report.get("failures", []), "items": items}
        return {"made": 0, "failures": [], "items": []}

    def canResume(self, outputFolder: str | Path) -> bool:
        """Whether a folder holds an interrupted or complete run."""
        folder = Path(outputFolder)
        return (folder / "report.json").is_file() or (folder / "checkpoint.pt").is_file()

    def loadSample(self, outputFolder: str | Path, index: int = 0) -> list[Any]:
        """Bring one result of a batch into the scene: its images, and its labels as segmentations.

        Raises:
            SceneError: there is none.
        """
        items = self.summary(outputFolder)["items"]
        if not items:
            raise SceneError(_("There is no result in '{folder}' yet.").format(folder=outputFolder))
        item = items[index % len(items)]
        nodes = []
        for image, label in (("image", "label"), ("moving", "moving_label")):
            if not item.get(image):
                continue
            read = sitk.ReadImage(str(Path(outputFolder) / item[image]))
            nodes.append(mrml.volumeFromImage(self.mrmlScene(), read, Path(item[image]).name.split(".")[0]))
            if item.get(label):
                read = sitk.ReadImage(str(Path(outputFolder) / item[label]))
                name = Path(item[label]).name.split(".")[0] + " label"
                nodes.append(links.segmentationFromImage(self.mrmlScene(), read, name, nodes[-1]))
        return nodes

    # Training

    def train(
        self,
        folder: str | Path,
        outputFolder: str | Path,
        name: str = "my-model",
        dimension: int = 3,
        size: int = 48,
        minutes: float = 60,
        *,
        device: str = "auto",
        resume: bool = False,
        wait: bool = True,
        onProgress: Callable[[Progress], None] | None = None,
    ) -> Job:
        """Train a model on the images of a folder, without labels; it then appears among ``availableModels()``.

        Args:
            dimension: 3 for volumes, 2 for slices.
            size: voxels a side of the model's grid, a multiple of 8.
            minutes: time budget; a run that was stopped goes on with ``resume=True``.

        Raises:
            DRDMError: it did not succeed.
        """
        arguments: list[object] = ["train", folder, "-o", outputFolder, "--name", name]
        arguments += ["--ndim", dimension, "--size", size]
        arguments += ["--minutes", minutes, "--device", device, "--checkpoint-minutes", min(5.0, minutes / 4)]
        arguments += ["--resume"] if resume else []
        job = Job(arguments)
        if onProgress is not None:
            job.onProgress = onProgress

        def keep(job: Job) -> None:
            if job.state is JobState.DONE:
                try:
                    job.items.append({"model": add_own_model(Path(outputFolder) / "model.safetensors", name).name})
                except DRDMError as error:
                    job.state, job.text = JobState.FAILED, str(error)

        job.whenEnded(keep)
        return self._finished(job) if wait else job

    def _finished(self, job: Job) -> Job:
        job.start()
        app = getattr(slicer, "app", None)
        job.wait(app.processEvents if app is not None else None)
        if job.state is JobState.FAILED:
            raise DRDMError(job.text)
        return job


def _fileName(name: str, taken: set[str]) -> str:
    """A file name for a node that no other has; letters of any language stay."""
    plain = "".join(c if c.isalnum() or c in "-." else "-" for c in name).strip("-.") or "volume"
    unique, number = plain, 2
    while unique in taken:
        unique, number = f"{plain}-{number}", number + 1
    taken.add(unique)
    return unique
