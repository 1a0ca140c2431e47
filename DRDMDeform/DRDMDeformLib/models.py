"""The models of the list in the panel; read without PyTorch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slicer.i18n import tr as _

from DRDMLib.errors import DRDMError, ModelError
from DRDMLib.models.catalogue import Entry, available_models, default_entry, find, model_metadata


@dataclass(frozen=True)
class ModelInfo:
    """One model of the list.

    Attributes:
        name: for ``deform(model=...)``: a catalogue name, or the path of a file.
        ndim: 2 for slices, 3 for volumes.
        about: anatomy and modality in a few words.
        here: whether the model is installed; otherwise it has to be downloaded first.
        megabytes: size of the download.
        trainedOn: the training images.
        licence: license of the model.
        extent: smallest and largest length of the longest side of suitable images, millimeters; ``None``: any.
    """

    name: str
    ndim: int
    about: str
    here: bool = True
    megabytes: float = 0.0
    trainedOn: str = ""
    licence: str = ""
    extent: tuple[float, float] | None = None

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
        entry.name, entry.ndim, entry.about, entry.available, entry.megabytes, trainedOn, licence, entry.extent_mm
    )
