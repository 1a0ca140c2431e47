"""Dice overlap, as a measure and as a loss.

MONAI's ``DiceMetric`` and ``DiceLoss`` compute the same in another order of single-precision operations; the published
figures were made with these.
"""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor


def dice(predicted: Tensor, truth: Tensor, classes: int) -> list[float]:
    """Return the Dice overlap of each structure, 1 to ``classes`` - 1, of two label maps; NaN if neither shows it."""
    overlaps = []
    for c in range(1, classes):
        a, b = predicted == c, truth == c
        size = float(a.sum() + b.sum())
        overlaps.append(2 * float((a & b).sum()) / size if size else math.nan)
    return overlaps


def dice_cross_entropy(scores: Tensor, label: Tensor, weight: Tensor | None = None) -> Tensor:
    """Add cross-entropy, its classes weighted, and soft Dice loss over the whole batch.

    Args:
        scores: logits (N, classes, *S).
        label: (N, *S).
        weight: of the classes in the cross-entropy, (classes,).
    """
    probability = scores.softmax(1)
    truth = F.one_hot(label, scores.shape[1]).movedim(-1, 1).float()
    dims = (0, *range(2, truth.ndim))
    overlap = (2 * (probability * truth).sum(dims) + 1) / (probability.sum(dims) + truth.sum(dims) + 1)
    return F.cross_entropy(scores, label, weight) + 1 - overlap[1:].mean()
