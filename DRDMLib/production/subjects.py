"""Splits by subject: what shows one person stays together."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

PARTS = ("train", "validation", "test")


def in_random_order(subjects: Sequence[str], seed: int) -> list[str]:
    """Each subject once, in an order that depends on their names and the seed alone."""
    return sorted(set(subjects), key=lambda name: hashlib.sha256(f"{seed}/{name}".encode()).digest())


def split_subjects(subjects: Sequence[str], shares: Sequence[float], seed: int) -> dict[str, str]:
    """Subject -> part (``train``, ``validation``, ``test``).

    Each part with a share gets at least one subject once there are enough of them; with too few, training goes first.
    """
    order = in_random_order(subjects, seed)
    total = sum(shares)
    counts = [max(1, round(len(order) * share / total)) if share > 0 else 0 for share in shares]
    for part in (2, 1):
        # Training keeps at least half.
        while counts[part] > 0 and sum(counts[1:]) > len(order) // 2:
            counts[part] -= 1
    held: dict[str, str] = {}
    for part in (1, 2):
        held |= {order.pop(): PARTS[part] for _ in range(counts[part])}
    return dict.fromkeys(order, "train") | held


def folds(subjects: Sequence[str], seed: int, most: int = 5) -> list[set[str]]:
    """Subjects of each fold of a cross-validation; none with a single subject."""
    order = in_random_order(subjects, seed)
    number = min(most, len(order))
    return [set(order[k::number]) for k in range(number)] if number > 1 else []
