"""Algorithm 1: train a recovery network on images without labels."""

from .config import ModelDesign, TrainingConfig
from .loop import train

__all__ = ["ModelDesign", "TrainingConfig", "train"]
