"""The models of the list in the panel, read without PyTorch; training of the user's own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import slicer
from slicer.i18n import tr as _

from DRDMLib.errors import DRDMError, ModelError
from DRDMLib.models.catalogue import (
    Entry,
    add_user_model,
    available_models,
    default_entry,
    find,
    model_metadata,
    remove,
)

from . import mrml
from .job import Job, JobState, Progress, runToEnd


@dataclass(frozen=True)
class ModelInfo:
    """One model of the list.

    Attributes:
        name: for ``deform(model=...)``: a catalog name, or the path of a file.
        ndim: 2 for slices, 3 for volumes.
        about: anatomy and modality in a few words.
        here: whether the model is installed; otherwise it has to be downloaded first.
        megabytes: size of the download.
        trainedOn: the training images.
        licence: license of the model.
        extent: smallest and largest length of the longest side of suitable images, millimeters; ``None``: any.
        removable: whether it was downloaded or trained by the user, and not shipped.
    """

    name: str
    ndim: int
    about: str
    here: bool = True
    megabytes: float = 0.0
    trainedOn: str = ""
    licence: str = ""
    extent: tuple[float, float] | None = None
    removable: bool = False

    @property
    def label(self) -> str:
        """Text in the list."""
        shown = Path(self.name).stem if self.name.endswith(".safetensors") else self.name
        return shown if self.here else _("{name} (download, {size} MB)").format(name=shown, size=f"{self.megabytes:g}")

    def mapping(self) -> dict[str, Any]:
        """The model as ``mrml.fitWarnings`` expects it."""
        return {"name": self.name, "ndim": self.ndim, "anatomy": self.about, "extent_mm": self.extent}


def listModels() -> list[ModelInfo]:
    """List shipped models first, then the user's own, then those that can be downloaded."""
    return [_info(entry) for entry in available_models()]


def modelInfo(name: str) -> ModelInfo:
    """Describe a model, given its name or the path of its file.

    Raises:
        ModelError: there is no such model.
    """
    entry = find(name)
    if entry is not None:
        return _info(entry)
    path = Path(name)
    if not path.is_file():
        raise ModelError(_("There is no model '{name}'; choose one from the list.").format(name=name))
    if path.suffix.lower() == ".pth":
        # The dimension of a .pth file is only known after loading it with PyTorch, so it is guessed from the name.
        return ModelInfo(str(path), 2 if "2d" in path.stem.lower() or "cmr" in path.stem.lower() else 3, _("a file"))
    metadata = model_metadata(path)
    about = ", ".join(part for part in (metadata.anatomy, metadata.modality) if part)
    return ModelInfo(
        str(path), metadata.ndim, about or _("a file"), trainedOn=metadata.training_data, licence=metadata.licence
    )


def bestModel(ndim: int, extent: float) -> ModelInfo | None:
    """The best model for images of a dimension and a longest side (mm), or ``None``."""
    try:
        return _info(default_entry(ndim, extent))
    except ModelError:
        return None


def _info(entry: Entry) -> ModelInfo:
    trainedOn, licence = "", ""
    if entry.available and entry.path.suffix == ".safetensors":
        try:
            metadata = model_metadata(entry.path)
            trainedOn, licence = metadata.training_data, metadata.licence
        except DRDMError:
            pass
    return ModelInfo(
        entry.name,
        entry.ndim,
        entry.about,
        entry.available,
        entry.megabytes,
        trainedOn,
        licence,
        entry.extent_mm,
        entry.removable,
    )


class ModelLogic:
    """The part of the logic that lists, downloads, removes and trains models; see ``DRDMDeformLib.logic.Logic``."""

    def availableModels(self) -> list[ModelInfo]:
        """List every model that is installed or can be downloaded; shipped models come first.

        Usage example:
        >>> [model.name for model in logic.availableModels() if model.here and model.ndim == 2]
        ['general-2d', 'cardiac-mr-2d', 'heart-region-2d']
        """
        return listModels()

    def bestModel(self, volumeNode: slicer.vtkMRMLScalarVolumeNode) -> ModelInfo | None:
        """The model that suits the dimension and the size of a volume.

        When no model is given, a deformation chooses among the models that may suit by how well they fit the voxels,
        so it may use another one; ``figures`` says which, and how well it fits.

        Usage example:
        >>> logic.bestModel(volume).name
        'hippocampus-mr-3d'
        """
        dimension, extent = mrml.imageDimension(volumeNode)
        return bestModel(dimension, max(extent))

    def fitWarnings(self, volumeNode: slicer.vtkMRMLScalarVolumeNode, model: str) -> list[str]:
        """Warn if a model does not fit a volume, in one sentence for each reason.

        Usage example:
        >>> warning = logic.fitWarnings(volume, "brain-t1-3d")[0]
        >>> warning[:74]
        "'Phantom' is 52 mm long, but brain-t1-3d is meant for images 150 to 290 mm"
        """
        return mrml.fitWarnings(volumeNode, modelInfo(model).mapping())

    def downloadModel(self, name: str) -> Job:
        """Return a job that downloads a model of the list."""
        return Job(["models", "fetch", name])

    def removeModel(self, name: str) -> Path:
        """Remove the file of a model that was downloaded or trained by the user, and return its path.

        Raises:
            DRDMError: there is no such model, it is shipped, or its file cannot be removed.

        Usage example:
        >>> job = logic.train(scans, out, "not-good", size=16, minutes=0.05)
        >>> logic.removeModel("not-good").name
        'not-good.safetensors'
        >>> "not-good" in [model.name for model in logic.availableModels()]
        False
        """
        return remove(name)

    def train(
        self,
        folder: str | Path,
        outputFolder: str | Path,
        name: str = "my-model",
        dimension: int = 3,
        size: int = 48,
        minutes: float = 60,
        *,
        source: str = "",
        device: str = "auto",
        resume: bool = False,
        wait: bool = True,
        onProgress: Callable[[Progress], None] | None = None,
    ) -> Job:
        """Train a model on the images of a folder, without labels, and add it to ``availableModels()``.

        Args:
            folder: the images.
            outputFolder: a new folder for checkpoints and the model, or that of an earlier run with ``resume=True``.
            name: of the model.
            dimension: 3 for volumes, 2 for slices.
            size: voxels per side of the model's grid, a multiple of 8.
            minutes: time budget.
            source: adapt this model, by its name or the path of its file, instead of training a new one, and keep the
                better of the two; dimension and size are then those of the model. Five minutes are enough.
            device: ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"mps"``.
            resume: continue the run in ``outputFolder``.
            wait: return when the job has ended; otherwise return a job to start.
            onProgress: called with the progress of the job.

        Raises:
            DRDMError: the job failed.

        Usage example:
        >>> job = logic.train(scans, out, "my-scans", size=16, minutes=0.05)
        >>> "my-scans" in [model.name for model in logic.availableModels()]
        True
        """
        arguments: list[object] = ["train", folder, "-o", outputFolder, "--name", name]
        arguments += ["--from", source] if source else ["--ndim", dimension, "--size", size]
        arguments += ["--minutes", minutes, "--device", device, "--checkpoint-minutes", min(5.0, minutes / 4)]
        arguments += ["--resume"] if resume else []
        job = Job(arguments)
        if onProgress is not None:
            job.onProgress = onProgress

        def addToList(job: Job) -> None:
            if job.state is JobState.DONE:
                try:
                    job.items.append({"model": add_user_model(Path(outputFolder) / "model.safetensors", name).name})
                except DRDMError as error:
                    job.state, job.text = JobState.FAILED, str(error)

        job.onFinished(addToList)
        return runToEnd(job) if wait else job
