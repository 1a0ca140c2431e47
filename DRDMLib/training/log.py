"""What a training run says of itself: a table, and curves for TensorBoard."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

LOG_COLUMNS = ["step", "seconds", "loss", "distance", "angle", "regularity", "validation", "learning_rate"]


class RunLog:
    """``log.csv``, and TensorBoard's events where tensorboard is installed."""

    def __init__(self, run: Path, *, resumed_at: int) -> None:
        self.path = run / "log.csv"
        if resumed_at == 0 or not self.path.is_file():
            with self.path.open("w", newline="", encoding="utf-8") as stream:
                csv.writer(stream).writerow(LOG_COLUMNS)
        self.board: Any = None
        try:
            from torch.utils.tensorboard import SummaryWriter

            self.board = SummaryWriter(str(run / "tensorboard"))
        except ImportError:
            pass

    def write(self, step: int, seconds: float, figures: dict[str, float]) -> None:
        """One row, one point on each curve."""
        values = {"step": step, "seconds": round(seconds, 1), **figures}
        with self.path.open("a", newline="", encoding="utf-8") as stream:
            csv.DictWriter(stream, LOG_COLUMNS).writerow(values)
        if self.board is not None:
            for name, value in figures.items():
                self.board.add_scalar(name, value, step)
            self.board.flush()
