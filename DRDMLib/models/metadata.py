"""Metadata of model files; read without PyTorch, so that models can be listed before PyTorch is installed."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from ..diffusion.published import CONTROL_SIZE, TIMESTEPS, VELOCITY_SCALE
from ..errors import ModelError

METADATA_KEY = "drdm"
_POLICIES: dict[str, tuple[str, ...]] = {
    "intensity": ("percentile", "minmax"),
    "geometry": ("isotropic", "stretch"),
    "orientation": ("LPS", "native"),
    "axes": ("kji", "ijk"),
    "composition_padding": ("border", "zeros"),
    "image_padding": ("zeros", "border"),
    "image_interpolation": ("linear", "cubic"),
}


@dataclass(frozen=True)
class ModelMetadata:
    """Metadata of a model, stored in its file.

    Attributes:
        name: catalog name, or the name of the file without its suffix.
        architecture, options: the network and its options, see ``DRDMLib.networks``.
        ndim, size, timesteps: dimension of the images (2 or 3), voxels along each side, number of levels T.
        velocity_scale, amplitude, noise_grids, control_size: the random deformations that the model was trained on, see
            ``DRDMLib.diffusion.forward``.
        intensity: how intensities are scaled to 0..1: ``"percentile"`` (0.5th and 99.5th percentile) or ``"minmax"``.
        geometry: how images are fitted to the model grid: ``"isotropic"`` (proportions kept) or ``"stretch"``.
        orientation: ``"LPS"`` (axes permuted and flipped to the patient's axes) or ``"native"`` (as stored).
        axes: order of the tensor's spatial axes: ``"kji"`` (SimpleITK's array order) or ``"ijk"``.
        composition_padding, image_padding, image_interpolation: how :func:`DRDMLib.recover` composes fields and warps
            images. For an image that was cropped from a larger one, ``image_padding="border"`` is best: with zeros
            outside, the network sees the edges of the crop and aligns them instead of the anatomy.
        anatomy, modality, training_data, training: what the model was trained on, and how.
        people_differ: how much two people of the anatomy differ, as a fraction of the longest side of the image: the
            mean distance between matching surfaces, centers together. ``None`` if it is not known.
        reach: mean displacement that recovered deformations approach as the random ones get stronger, fraction of the
            side; ``None`` if it was not measured.
        licence, citation, version: license of the weights, publication to cite, and version of DRDM.
    """

    name: str
    architecture: str
    ndim: int
    size: int
    timesteps: int = TIMESTEPS
    options: dict[str, Any] = field(default_factory=dict)
    velocity_scale: float = VELOCITY_SCALE
    amplitude: float | None = None
    noise_grids: list[int] | None = None
    control_size: int = CONTROL_SIZE
    intensity: str = "percentile"
    geometry: str = "isotropic"
    orientation: str = "LPS"
    axes: str = "kji"
    composition_padding: str = "border"
    image_padding: str = "zeros"
    image_interpolation: str = "linear"
    anatomy: str = ""
    modality: str = ""
    training_data: str = ""
    training: dict[str, Any] = field(default_factory=dict)
    people_differ: float | None = None
    reach: float | None = None
    licence: str = ""
    citation: str = ""
    version: str = ""

    @staticmethod
    def from_dict(values: dict[str, Any]) -> ModelMetadata:
        """Make the metadata from a dictionary.

        Unknown keys are ignored, because later versions may add some.

        Raises:
            ModelError: a required key is missing, a value is not supported, or dimension or size are not valid.
        """
        known = {f.name for f in fields(ModelMetadata)}
        for key, allowed in _POLICIES.items():
            if values.get(key, allowed[0]) not in allowed:
                raise ModelError(
                    f"The model needs {key} '{values[key]}', which this version of DRDM does not support; update DRDM."
                )
        try:
            metadata = ModelMetadata(**{k: v for k, v in values.items() if k in known})
            usable = metadata.ndim in (2, 3) and metadata.size % 8 == 0 and metadata.size > 0
        except TypeError as error:
            raise ModelError(
                "The model file does not describe its network, so it is not a DRDM model; choose another file."
            ) from error
        if not usable:
            raise ModelError(
                f"The model file is damaged (it asks for {metadata.ndim}D images of side {metadata.size}); "
                "download or copy it again."
            )
        return metadata


def read_header(path: str | os.PathLike[str]) -> ModelMetadata:
    """Read the metadata of a ``.safetensors`` file from its header.

    Raises:
        ModelError: the file is missing, damaged, or not a DRDM model.
    """
    path = Path(path)
    try:
        with path.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if length > min(path.stat().st_size, 2**26):
                raise ValueError
            header = json.loads(stream.read(length))
        values = json.loads(header.pop("__metadata__", {})[METADATA_KEY])
        # A truncated file still has its complete header.
        if 8 + length + max(tensor["data_offsets"][1] for tensor in header.values()) != path.stat().st_size:
            raise ValueError
        return ModelMetadata.from_dict({"name": path.stem, **values})
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(
            f"'{path}' is not a readable DRDM model file (safetensors); download or copy it again."
        ) from error
