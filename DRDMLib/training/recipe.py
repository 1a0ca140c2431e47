"""From the options of ``drdm train`` to a model's description and a training configuration."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

from .. import __version__
from ..errors import SettingError
from ..models.model import ModelMetadata
from .loop import TrainingConfig

CITATION = "Zheng et al., Deformation-Recovery Diffusion Model, Medical Image Analysis 110, 103987 (2026)"
_DESCRIBED = ("anatomy", "modality", "training_data", "licence")

# In 3D the published rule (side / 64) gives 2 at its own side of 128: the deformation is then the same at every side.
AMPLITUDE = 2.0
FIELD_BANK = 256
# As coarse as the differences between people are, far stronger, and with a network that knows where it looks: see
# "A coarser random field" in docs/results.md.
COARSE_FIELD: dict[str, Any] = {"noise_grids": [16, 8, 4], "control_size": 32, "velocity_scale": 6e-5}
COARSE_NETWORK = {"coarse": True, "places": True}
# Images a step, and the peak learning rate: on a GPU 32 images cost little more time than 4, see docs/results.md.
_ON_A_CPU, _ON_A_GPU = (4, 6e-4), (32, 8e-4)


def metadata_from(options: argparse.Namespace, run: Path) -> ModelMetadata:
    """What the model to be trained will say of itself.

    Raises:
        SettingError: the side is not a multiple of 8, or a description is not KEY=TEXT with a known key.
    """
    if options.size % 8:
        raise SettingError(f"--size {options.size} is not a multiple of 8; use {options.size // 8 * 8 or 8}.")
    described = {}
    for text in options.describe:
        key, separator, value = text.partition("=")
        if not separator or key not in _DESCRIBED:
            raise SettingError(f"--describe '{text}' is not known; write one of {', '.join(_DESCRIBED)} as KEY=TEXT.")
        described[key] = value
    metadata = ModelMetadata(
        name=options.name or run.resolve().name,
        architecture=options.architecture,
        ndim=options.ndim,
        size=options.size,
        options=_network_options(options),
        amplitude=AMPLITUDE,
        image_padding=options.outside,
        citation=CITATION,
        version=__version__,
        **described,
    )
    if options.published:
        metadata = replace(metadata, architecture="recresacnet", options={}, amplitude=None, image_padding="zeros")
    elif options.field == "coarse":
        metadata = replace(metadata, **COARSE_FIELD)
    return metadata


def _network_options(options: argparse.Namespace) -> dict[str, int | bool]:
    if options.architecture != "compact":
        return {}
    chosen = {"width": options.width, "depth": options.depth, "whole": options.target == "whole"}
    return chosen | COARSE_NETWORK if options.field == "coarse" else chosen


def config_from(
    options: argparse.Namespace, *, device: str = "cpu", portions: int = 1, earlier: dict[str, Any] | None = None
) -> TrainingConfig:
    """How to train.

    Args:
        device: type of the device; says how many images a step has and how far it goes, where that is not given.
        portions: see :class:`TrainingConfig`; a batch that is not given is a multiple of them.
        earlier: how a run that is resumed was trained so far.
    """
    batch, learning_rate = _ON_A_GPU if device == "cuda" and not options.published else _ON_A_CPU
    usual = {"batch": -(-batch // portions) * portions, "learning_rate": learning_rate} | (earlier or {})
    config = TrainingConfig(
        steps=options.iterations,
        minutes=options.minutes,
        batch=options.batch or usual["batch"],
        portions=portions,
        learning_rate=options.learning_rate or usual["learning_rate"],
        ema=0.998,
        rotation=options.rotation,
        zoom=(options.zoom[0], options.zoom[1]),
        shift=options.shift,
        tones=options.tones,
        loss=options.loss,
        bank=FIELD_BANK,
        seed=options.seed,
        half_precision=options.half,
        checkpoint_minutes=options.checkpoint_minutes,
    )
    if options.published:
        config = replace(config, learning_rate=1e-4, warmup=1, decay=False, clip=0.0, ema=0.0)
        config = replace(config, rotation=180.0, zoom=(0.6, 1.0), shift=0.25, tones=False)
        config = replace(config, loss="published", bank=0)
    return config
