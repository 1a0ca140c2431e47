"""Algorithm 1: training a recovery network on images without labels."""

from .trainer import TrainingConfig, train

__all__ = ["TrainingConfig", "train"]
