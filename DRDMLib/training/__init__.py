"""Train a recovery network on images without labels (Algorithm 1 of the paper)."""

from .config import ModelDesign, TrainingConfig
from .loop import train

__all__ = ["ModelDesign", "TrainingConfig", "train"]
