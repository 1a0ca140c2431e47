"""Algorithm 1: training a recovery network on images without labels."""

from .loop import TrainingConfig, train

__all__ = ["TrainingConfig", "train"]
