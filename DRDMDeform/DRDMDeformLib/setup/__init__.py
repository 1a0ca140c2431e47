"""Find out whether PyTorch works in Slicer's Python, and install or repair it."""

from .environment import Environment, EnvironmentState

__all__ = ["Environment", "EnvironmentState"]
