"""Training data from many scans, and training, as jobs that run ``drdm``."""

from __future__ import annotations

import contextlib
import json
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import SimpleITK as sitk
import slicer
from slicer.i18n import tr as _

from DRDMLib.errors import DRDMError
from DRDMLib.models.catalogue import add_user_model

from . import mrml
from .job import Job, JobState, Progress
from .mrml import SceneError, links

Source: TypeAlias = str | Path | Sequence[Any]


class BatchLogic:
    """The part of the logic that works on many scans; see ``DRDMDeformLib.logic.Logic``."""

    scene: slicer.vtkMRMLScene | None = None

    def mrmlScene(self) -> slicer.vtkMRMLScene:
        """The scene that is worked on: the application's, unless ``scene`` was set."""
        return self.scene if self.scene is not None else slicer.mrmlScene

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
            settings: ``model``, ``seed``, ``steps``, ``pose``, ``device``, ``plane``, ``segmentations``, ``resume``.

        Raises:
            SceneError: the source cannot be used.
            DRDMError: it did not succeed.

        Usage example:
        >>> job = logic.augment([volume], out, levels=[20], copies=2)
        >>> logic.summary(out)["made"]
        2
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

        Usage example:
        >>> job = logic.generateRegistrationPairs(scans, out, levels=[(40, 24)], copies=1, seed=5)
        >>> logic.summary(out)["made"]
        2
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
        pose: float = 0.0,
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
        arguments += ["--pose", pose] if pose else []
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
        """What a batch has made so far.

        Returns:
            ``made`` (a number), ``failures`` (sentences), ``redrawn`` (draws that broke a limit and were drawn again),
            ``complete``, ``qualityPage`` (path or ``None``), ``items`` as in the folder's ``report.json``.
        """
        folder = Path(outputFolder)
        report: dict[str, Any] = {}
        with contextlib.suppress(OSError, ValueError):
            read = json.loads((folder / "report.json").read_text(encoding="utf-8"))
            report = read if isinstance(read, dict) else {}
        page = folder / "quality.html"
        items = report.get("items", [])
        return {
            "made": len(items),
            "failures": report.get("failures", []),
            "redrawn": report.get("redrawn", {}).get("draws", 0),
            "complete": bool(items) and (folder / "run.json").is_file() and (folder / "dataset.json").is_file(),
            "qualityPage": page if page.is_file() else None,
            "items": items,
        }

    def canResume(self, outputFolder: str | Path) -> bool:
        """Whether a folder holds an interrupted or complete run."""
        folder = Path(outputFolder)
        return (folder / "report.json").is_file() or (folder / "checkpoint.pt").is_file()

    def loadSample(self, outputFolder: str | Path, index: int = 0) -> list[Any]:
        """Bring one result of a batch into the scene.

        Of an augmented set its image, and its label as a segmentation; of a set of pairs also the moving image and its
        label, and the exact field as a transform: whatever of the moving side is put under it becomes the fixed side.

        Returns:
            The nodes; the image (of a pair: the fixed one) first.

        Raises:
            SceneError: there is none, or its files cannot be read.

        Usage example:
        >>> job = logic.generateRegistrationPairs(scans, out, levels=[(16, 8)], copies=1)
        >>> fixed, fixedLabel, moving, movingLabel, transform = logic.loadSample(out)
        >>> logic.preview(transform, [moving])
        """
        items = self.summary(outputFolder)["items"]
        if not items:
            raise SceneError(_("There is no result in '{folder}' yet.").format(folder=outputFolder))
        item, folder, scene = items[index % len(items)], Path(outputFolder), self.mrmlScene()
        nodes: list[Any] = []
        try:
            for image, label in (("image", "label"), ("moving", "moving_label")):
                if not item.get(image):
                    continue
                nodes.append(mrml.volumeFromImage(scene, _read(folder / item[image]), _stem(item[image])))
                if not item.get(label):
                    continue
                read = _read(folder / item[label])
                # A segment may have been pushed out of the image; there is nothing to show then.
                if sitk.GetArrayViewFromImage(read).any():
                    name = f"{_stem(item[label])} label"
                    nodes.append(links.segmentationFromImage(scene, read, name, nodes[-1]))
            if item.get("moving") and item.get("ddf"):
                field = _read(folder / item["ddf"], sitk.sitkVectorFloat64)
                nodes.append(mrml.createTransform(scene, field, f"{_stem(item['ddf'])} moving to fixed"))
        except BaseException:
            for node in nodes:
                mrml.removeNode(node)
            raise
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

        Usage example:
        >>> job = logic.train(scans, out, "my-scans", size=16, minutes=0.05)
        >>> "my-scans" in [model.name for model in logic.availableModels()]
        True
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
                    job.items.append({"model": add_user_model(Path(outputFolder) / "model.safetensors", name).name})
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


def _stem(path: str) -> str:
    return Path(path).name.split(".nii")[0]


def _read(path: Path, pixel: int = sitk.sitkUnknown) -> sitk.Image:
    try:
        return sitk.ReadImage(str(path), pixel)
    except RuntimeError as error:
        raise SceneError(_("'{file}' cannot be read; has it been moved or changed?").format(file=path)) from error
