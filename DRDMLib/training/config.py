"""How to train."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class TrainingConfig:
    """How to train.

    Attributes:
        steps: number of optimiser steps; ``None`` trains for ``minutes`` instead.
        minutes: time budget of all sessions together.
        batch: images a step, all processes and portions together.
        portions: a step's images are worked on in so many portions, whose gradients are added up. Each has random
            numbers of its own, so that 4 processes with one portion, 2 with two and 1 with four train alike.
        learning_rate: peak; rises over ``warmup`` steps and, with ``decay``, falls along a cosine to a hundredth.
        ema: decay of the running mean of the weights that is saved; 0 saves the weights themselves.
        rotation: largest random rotation, degrees (180 as published).
        zoom, shift: least and greatest share of the side that is seen, and how far it moves (shares of half a side).
        tones: change contrasts at random, see ``augment_images``.
        loss: ``"published"`` or ``"energy"``, see ``DRDMLib.training.losses``; a network that predicts whole
            deformations has its own.
        clip: largest norm of the gradient; 0 leaves it as it is, as published.
        bank: number of random fields kept for reuse, see ``FieldSource``; 0 draws each afresh, as published.
        checkpoint_minutes: how often to save, and to log a validation loss and a picture.
    """

    steps: int | None = None
    minutes: float = 60.0
    batch: int = 4
    portions: int = 1
    learning_rate: float = 1e-4
    warmup: int = 100
    ema: float = 0.0
    rotation: float = 180.0
    zoom: tuple[float, float] = (0.6, 1.0)
    shift: float = 0.25
    tones: bool = False
    loss: str = "published"
    bank: int = 0
    clip: float = 1.0
    decay: bool = True
    seed: int = 0
    half_precision: bool | None = None
    checkpoint_minutes: float = 5.0
