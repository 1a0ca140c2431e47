"""Settings of Algorithm 1: how to train and which model to train. The constants are those of the shipped models."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

from .. import __version__
from ..errors import SettingError
from ..models.metadata import ModelMetadata

CITATION = "Zheng et al., Deformation-Recovery Diffusion Model, Medical Image Analysis 110, 103987 (2026)"

# The published rule, side / 64, gives 2 at the published 3D side of 128 voxels. A constant makes deformations
# equally strong at every side.
AMPLITUDE = 2.0
FIELD_POOL = 256
# Random fields as coarse as the differences between people, and much stronger. The network for them also receives the
# position of each voxel. See "A coarser random field" in docs/results.md.
COARSE_FIELD: dict[str, Any] = {"noise_grids": [16, 8, 4], "control_size": 32, "velocity_scale": 6e-5}
COARSE_NETWORK = {"coarse": True, "places": True}
# Images per step and peak learning rate. On a GPU, 32 images take little more time than 4, see docs/results.md.
_ON_A_CPU, _ON_A_GPU = (4, 6e-4), (32, 8e-4)
# Names of some settings in checkpoints and model files.
_STORED_NAMES = {
    "micro_batches": "portions",
    "random_contrast": "tones",
    "mirror_axes": "mirror",
    "partial_views": "views",
    "scanner_effects": "scanners",
    "field_pool": "bank",
}


@dataclass(frozen=True)
class TrainingConfig:
    """How to train a model.

    Attributes:
        steps: number of optimizer steps; ``None`` trains for ``minutes`` instead.
        minutes: time budget over all sessions of the run.
        batch: images per step, over all processes and micro-batches.
        micro_batches: number of equal parts of a batch, whose gradients are added up. Each part has its own random
            numbers. Training is therefore the same, up to rounding, with 4 processes of one part each, 2 processes of
            two parts, or 1 process of four.
        learning_rate: peak value. It rises linearly over ``warmup`` steps and, with ``decay``, falls along a cosine to
            1 % of the peak.
        ema: decay of the exponential moving average of the weights, which is saved; 0 saves the weights themselves.
        rotation: largest random rotation, degrees. Published: 180.
        zoom: smallest and largest visible fraction of the image's side.
        shift: largest shift, as a fraction of half the side.
        random_contrast, mirror_axes, partial_views, scanner_effects: further augmentation, see ``augment_images``; the
            defaults change nothing, as published.
        loss: ``"published"`` or ``"energy"``, see ``DRDMLib.training.losses``. A network that predicts whole
            deformations always uses ``Residual``.
        clip: largest norm of the gradient; 0 does not clip, as published.
        field_pool: number of random fields to keep for reuse, see ``FieldSampler``; 0 generates a new field each time,
            as published.
        half_precision: run the network in bfloat16 where PyTorch's autocast allows it, everything else in 32 bits;
            ``None`` does so on a GPU only.
        checkpoint_minutes: interval between checkpoints; each also logs the validation loss and draws a picture.
    """

    steps: int | None = None
    minutes: float = 60.0
    batch: int = 4
    micro_batches: int = 1
    learning_rate: float = 1e-4
    warmup: int = 100
    ema: float = 0.0
    rotation: float = 180.0
    zoom: tuple[float, float] = (0.6, 1.0)
    shift: float = 0.25
    random_contrast: bool = False
    mirror_axes: tuple[int, ...] = ()
    partial_views: float = 0.0
    scanner_effects: float = 0.0
    loss: str = "published"
    field_pool: int = 0
    clip: float = 1.0
    decay: bool = True
    seed: int = 0
    half_precision: bool | None = None
    checkpoint_minutes: float = 5.0

    def to_dict(self) -> dict[str, Any]:
        """Return plain values under the names that checkpoints and model files use."""
        return {stored_name(key): value for key, value in asdict(self).items()}

    def published(self) -> TrainingConfig:
        """Return these settings with the published augmentation, optimizer, loss and random fields."""
        config = replace(self, learning_rate=1e-4, warmup=1, decay=False, clip=0.0, ema=0.0, field_pool=0)
        config = replace(config, rotation=180.0, zoom=(0.6, 1.0), shift=0.25, random_contrast=False, loss="published")
        return replace(config, mirror_axes=(), partial_views=0.0, scanner_effects=0.0)


def stored_name(setting: str) -> str:
    """Return the name of a setting of :class:`TrainingConfig` in checkpoints and model files."""
    return _STORED_NAMES.get(setting, setting)


def default_batch(device: str, micro_batches: int = 1) -> tuple[int, float]:
    """Return the images per step, a multiple of ``micro_batches``, and the peak learning rate for a type of device."""
    batch, learning_rate = _ON_A_GPU if device == "cuda" else _ON_A_CPU
    return -(-batch // micro_batches) * micro_batches, learning_rate


@dataclass(frozen=True)
class ModelDesign:
    """The model to train.

    Attributes:
        name: name of the model.
        ndim: dimension, 2 or 3.
        size: voxels along each side of the model's grid, a multiple of 8.
        architecture: ``"compact"`` or ``"recresacnet"``.
        width, depth: size of the compact network, see :class:`DRDMLib.networks.CompactNet`.
        target: prediction of the compact network: the ``"whole"`` remaining deformation, or only its last ``"step"``.
        field: random deformations: ``"coarse"`` and strong, like the differences between people, or ``"published"``.
        padding: values outside the image: ``"border"`` repeats its border voxels, ``"zeros"`` is published.
        published: use the published network, field and padding, whatever the other settings are.
        description: pairs of a key (``anatomy``, ``modality``, ``training_data`` or ``licence``) and its text, for the
            model's metadata.

    Raises:
        SettingError: ``size`` is not a multiple of 8.
    """

    name: str
    ndim: int = 3
    size: int = 48
    architecture: str = "compact"
    width: int = 16
    depth: int = 2
    target: str = "whole"
    field: str = "coarse"
    padding: str = "border"
    published: bool = False
    description: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        if self.size % 8:
            raise SettingError(f"--size {self.size} is not a multiple of 8; use {self.size // 8 * 8 or 8}.")

    def metadata(self) -> ModelMetadata:
        """Return the metadata of the model."""
        metadata = ModelMetadata(
            name=self.name,
            architecture=self.architecture,
            ndim=self.ndim,
            size=self.size,
            options=self._network_options(),
            amplitude=AMPLITUDE,
            image_padding=self.padding,
            citation=CITATION,
            version=__version__,
            **dict[str, Any](self.description),
        )
        if self.published:
            return replace(metadata, architecture="recresacnet", options={}, amplitude=None, image_padding="zeros")
        return replace(metadata, **COARSE_FIELD) if self.field == "coarse" else metadata

    def _network_options(self) -> dict[str, int | bool]:
        if self.architecture != "compact":
            return {}
        options = {"width": self.width, "depth": self.depth, "whole": self.target == "whole"}
        return options | COARSE_NETWORK if self.field == "coarse" else options
