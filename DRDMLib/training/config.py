"""How to train, and what to train: the settings of Algorithm 1, with the choices behind the shipped models."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

from .. import __version__
from ..errors import SettingError
from ..models.metadata import ModelMetadata

CITATION = "Zheng et al., Deformation-Recovery Diffusion Model, Medical Image Analysis 110, 103987 (2026)"

# In 3D the published rule (side / 64) gives 2 at its own side of 128: the deformation is then the same at every side.
AMPLITUDE = 2.0
FIELD_POOL = 256
# As coarse as the differences between people are, far stronger, and with a network that knows where it looks: see
# "A coarser random field" in docs/results.md.
COARSE_FIELD: dict[str, Any] = {"noise_grids": [16, 8, 4], "control_size": 32, "velocity_scale": 6e-5}
COARSE_NETWORK = {"coarse": True, "places": True}
# Images a step and peak learning rate: on a GPU 32 images cost little more time than 4, see docs/results.md.
_ON_A_CPU, _ON_A_GPU = (4, 6e-4), (32, 8e-4)
# Names of three settings in checkpoints and model files.
_STORED_NAMES = {"micro_batches": "portions", "random_contrast": "tones", "field_pool": "bank"}


@dataclass(frozen=True)
class TrainingConfig:
    """How to train.

    Attributes:
        steps: number of optimizer steps; ``None`` trains for ``minutes`` instead.
        minutes: time budget of all sessions together.
        batch: images a step, over all processes and micro-batches.
        micro_batches: equal parts of a step's images whose gradients are added up. Each has random numbers of its own,
            so that 4 processes with one part each, 2 with two and 1 with four train alike.
        learning_rate: peak; rises over ``warmup`` steps and, with ``decay``, falls along a cosine to a hundredth.
        ema: decay of the running mean of the weights that is saved; 0 saves the weights themselves.
        rotation: largest random rotation, degrees (180 as published).
        zoom, shift: least and greatest share of the side that is seen, and how far it moves (shares of half a side).
        random_contrast: change contrasts at random, see ``augment_images``.
        loss: ``"published"`` or ``"energy"``, see ``DRDMLib.training.losses``; a network that predicts whole
            deformations has its own.
        clip: largest norm of the gradient; 0 leaves it as it is, as published.
        field_pool: number of random fields kept for reuse, see ``FieldSampler``; 0 draws each afresh, as published.
        half_precision: compute in bfloat16 where PyTorch's autocast allows it; ``None`` does so on a GPU only.
        checkpoint_minutes: how often to save, and to log a validation loss and a picture.
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
    loss: str = "published"
    field_pool: int = 0
    clip: float = 1.0
    decay: bool = True
    seed: int = 0
    half_precision: bool | None = None
    checkpoint_minutes: float = 5.0

    def to_dict(self) -> dict[str, Any]:
        """Plain values under the names that checkpoints and model files use."""
        return {_STORED_NAMES.get(key, key): value for key, value in asdict(self).items()}

    def published(self) -> TrainingConfig:
        """The same run with everything as published: augmentation, optimizer, loss and fresh fields."""
        config = replace(self, learning_rate=1e-4, warmup=1, decay=False, clip=0.0, ema=0.0, field_pool=0)
        return replace(config, rotation=180.0, zoom=(0.6, 1.0), shift=0.25, random_contrast=False, loss="published")


def default_batch(device: str, micro_batches: int = 1) -> tuple[int, float]:
    """Images a step, a multiple of ``micro_batches``, and the peak learning rate for a type of device."""
    batch, learning_rate = _ON_A_GPU if device == "cuda" else _ON_A_CPU
    return -(-batch // micro_batches) * micro_batches, learning_rate


@dataclass(frozen=True)
class ModelDesign:
    """What to train.

    Attributes:
        name: of the model.
        ndim, size: dimension, and voxels along each side of its grid, a multiple of 8.
        architecture: ``"compact"`` or ``"recresacnet"``.
        width, depth: of the compact network, see :class:`DRDMLib.networks.CompactNet`.
        target: what the compact network predicts: the ``"whole"`` of what is left to undo, or the last ``"step"``.
        field: random deformations, ``"coarse"`` and strong as differences between people, or ``"published"``.
        padding: what is seen outside of an image: its ``"border"`` continued, or ``"zeros"`` as published.
        published: network, field and padding as published, whatever the other settings are.
        description: ``anatomy``, ``modality``, ``training_data``, ``licence`` of the model's metadata.

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
        """The metadata of the model to be trained."""
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
