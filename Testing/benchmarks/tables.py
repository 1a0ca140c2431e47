"""Markdown tables of results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd


def markdown(rows: Sequence[Mapping[str, Any]], formats: Mapping[str, str] | None = None, default: str = ".5g") -> str:
    """Return rows as a Markdown table.

    Args:
        rows: the cells of each row by column, all with the same columns. None is shown as "-".
        formats: format specification of the numbers of a column.
        default: format specification of all other floats.
    """

    def cell(column: str, value: Any) -> str:
        if value is None:
            return "-"
        if isinstance(value, (int, float)) and formats and column in formats:
            return format(value, formats[column])
        text = format(value, default) if isinstance(value, float) else str(value)
        return text.replace("|", "/")

    frame = pd.DataFrame([{column: cell(column, value) for column, value in row.items()} for row in rows])
    aligned = ["right" if frame[column].str[:1].str.isdigit().any() else "left" for column in frame]
    return frame.to_markdown(index=False, disable_numparse=True, colalign=aligned)
