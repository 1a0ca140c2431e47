"""Metadata of model files; read without PyTorch, so that models can be listed before PyTorch is installed."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from ..diffusion.published import CONTROL_SIZE, TIMESTEPS, VELOCITY_SCALE, noise_sides
from ..errors import ModelError
from ..io import schema
from ..io.files import shown

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
# The spread of a population, see :meth:`DRDMLib.diffusion.poses.PoseSpread.to_dict`.
POSES = schema.record(
    {"covariance": schema.listing(schema.listing(schema.number(-1, 1), 12, 1), 12, 6), "scans": schema.whole(0, 10**9)},
    {"drawn": schema.number(0, 16)},
)
# What the values of each key may be. Model files come from anywhere, and their values become sizes of arrays.
_TEXT = schema.text(20_000)
_VALUES: dict[str, schema.Check] = {
    "name": schema.text(300),
    "architecture": schema.text(100),
    "ndim": schema.whole(2, 3),
    "size": lambda value: schema.whole(8, 512)(value) and value % 8 == 0,
    "timesteps": schema.whole(1, 10_000),
    "options": schema.table(schema.either(schema.truth, schema.whole(0, 4096), schema.number(), schema.text(100)), 40),
    "velocity_scale": schema.number(0, 1e3),
    "amplitude": schema.optional(schema.number(0, 1e6)),
    "people_differ": schema.optional(schema.number(1e-4, 1)),
    "reach": schema.optional(schema.number(1e-4, 1)),
    "poses": schema.optional(POSES),
    "noise_grids": schema.optional(schema.listing(schema.whole(1, 1024), 20, 1)),
    "control_size": schema.whole(4, 1024),
    "training": schema.table(schema.remark, 200),
    **dict.fromkeys(_POLICIES, schema.text(100)),
    **dict.fromkeys(("anatomy", "modality", "training_data", "licence", "citation", "version"), _TEXT),
}
_NEEDED = ("name", "architecture", "ndim", "size")
_LONGEST_HEADER = 2**26
# Most nodes of a control grid.
_LARGEST_CONTROL = 2**24


@dataclass(frozen=True)
class ModelMetadata:
    """Metadata of a model, stored in its file.

    Attributes:
        name: catalog name, or the name of the file without its suffix.
        architecture, options: the network and its options, see ``DRDMLib.networks``.
        ndim, size, timesteps: dimension of the images (2 or 3), voxels along each side, number of levels T.
        velocity_scale, amplitude, noise_grids, control_size: the random deformations that new versions are drawn from,
            see ``DRDMLib.diffusion.forward``: those of the training, or smoother ones of the same size at each level.
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
        poses: spread of the poses of people, see :class:`DRDMLib.diffusion.poses.PoseSpread`; ``None`` if it is not
            known.
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
    poses: dict[str, Any] | None = None
    licence: str = ""
    citation: str = ""
    version: str = ""

    @staticmethod
    def from_dict(values: dict[str, Any]) -> ModelMetadata:
        """Make the metadata from a dictionary.

        Unknown keys are ignored, because later versions may add some.

        Raises:
            ModelError: a required key is missing, or a value is not supported or not valid.
        """
        known = {f.name for f in fields(ModelMetadata)}
        if not isinstance(values, dict) or any(key not in values for key in _NEEDED):
            raise ModelError(
                "The model file does not describe its network, so it is not a DRDM model; choose another file."
            )
        for key, allowed in _POLICIES.items():
            if values.get(key, allowed[0]) not in allowed:
                raise ModelError(
                    f"The model needs {key} '{shown(str(values[key]))}', which this version of DRDM does not support; "
                    "update DRDM."
                )
        wrong = schema.wrong_key(values, {key: _VALUES[key] for key in _NEEDED}, _VALUES)
        if wrong is not None:
            raise ModelError(
                f"The model file is damaged (its '{wrong}' is {shown(json.dumps(values[wrong]))}); "
                "download or copy it again."
            )
        metadata = ModelMetadata(**{key: value for key, value in values.items() if key in known})
        sides = noise_sides(metadata.control_size)
        if metadata.control_size**metadata.ndim > _LARGEST_CONTROL or not set(metadata.noise_grids or ()) <= set(sides):
            raise ModelError(
                "The model file is damaged (its random fields cannot be drawn); download or copy it again."
            )
        return metadata


def read_tensor_header(path: Path) -> tuple[dict[str, Any], int]:
    """Read the header of a ``.safetensors`` file: a table of its tensors, and its length in bytes.

    Raises:
        OSError, ValueError, RecursionError: it cannot be read, is too long or no table.
    """
    with path.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if length > min(path.stat().st_size, _LONGEST_HEADER):
            raise ValueError("The header is longer than the file.")
        header = json.loads(stream.read(length))
    if not isinstance(header, dict):
        raise ValueError("The header is not a table.")
    return header, length


def read_header(path: str | os.PathLike[str]) -> ModelMetadata:
    """Read the metadata of a ``.safetensors`` file from its header.

    Raises:
        ModelError: the file is missing, damaged, or not a DRDM model.
    """
    path = Path(path)
    try:
        header, length = read_tensor_header(path)
        values = json.loads(header.pop("__metadata__", {})[METADATA_KEY])
        # A truncated file still has its complete header.
        if 8 + length + max(tensor["data_offsets"][1] for tensor in header.values()) != path.stat().st_size:
            raise ValueError
        return ModelMetadata.from_dict({"name": path.stem, **values})
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise ModelError(
            f"'{path}' is not a readable DRDM model file (safetensors); download or copy it again."
        ) from error
