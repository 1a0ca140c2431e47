"""What a model file says of itself; read without PyTorch, so that models can be listed before it is installed."""

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
    """What a model file says of itself.

    Attributes:
        name: catalogue name, or the file's stem.
        architecture, options: network and its options, see ``DRDMLib.networks``.
        ndim, size, timesteps: dimension, voxels a side, number of levels T.
        velocity_scale, amplitude, noise_grids, control_size: the random deformation it was trained on, see
            ``DRDMLib.diffusion.forward``.
        intensity: ``"percentile"`` or ``"minmax"``; how images become 0..1.
        geometry: ``"isotropic"`` or ``"stretch"``; how images are fitted to the cube.
        orientation: ``"LPS"`` (axes permuted and flipped to the patient's) or ``"native"`` (as stored).
        axes: ``"kji"`` or ``"ijk"``, order of the tensor's axes.
        composition_padding, image_padding, image_interpolation: what ``recover`` uses when it warps. An image that was
            cut out of a larger one is best continued by its ``"border"``: with zeros outside, the network sees the
            edges of the cut and aligns those instead of the anatomy.
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
    licence: str = ""
    citation: str = ""
    version: str = ""

    @staticmethod
    def from_dict(values: dict[str, Any]) -> ModelMetadata:
        """Unknown keys, as a later version may write, are ignored.

        Raises:
            ModelError: a needed key is missing, or dimension or size make no sense.
        """
        known = {f.name for f in fields(ModelMetadata)}
        for key, allowed in _POLICIES.items():
            if values.get(key, allowed[0]) not in allowed:
                raise ModelError(f"The model asks for {key} '{values[key]}', which this version of DRDM does not know.")
        try:
            metadata = ModelMetadata(**{k: v for k, v in values.items() if k in known})
            usable = metadata.ndim in (2, 3) and metadata.size % 8 == 0 and metadata.size > 0
        except TypeError as error:
            raise ModelError("The model file does not say what network it holds; it is not a DRDM model.") from error
        if not usable:
            raise ModelError(f"The model file asks for {metadata.ndim}D images of side {metadata.size}: it is damaged.")
        return metadata


def read_header(path: str | os.PathLike[str]) -> ModelMetadata:
    """Metadata of a ``.safetensors`` file, from its header alone.

    Raises:
        ModelError: missing, damaged, or not a DRDM model.
    """
    path = Path(path)
    try:
        with path.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if length > min(path.stat().st_size, 2**26):
                raise ValueError
            header = json.loads(stream.read(length))
        values = json.loads(header.pop("__metadata__", {})[METADATA_KEY])
        # A file that was cut short still has its whole header.
        if 8 + length + max(tensor["data_offsets"][1] for tensor in header.values()) != path.stat().st_size:
            raise ValueError
        return ModelMetadata.from_dict({"name": path.stem, **values})
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"'{path}' is not a readable DRDM model file (safetensors).") from error
