"""What records and ``run.json`` may contain; they are read from folders that may come from anywhere."""

from __future__ import annotations

from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

from ..io import schema
from ..levels import STRENGTHS

_NAME = schema.text(1000)
_LEVEL = schema.either(schema.whole(-1, 100_000), schema.one_of(*STRENGTHS))
_MODEL = schema.record({"name": schema.text(), "digest": schema.text(200)}, {"file": schema.text()})
_FIT = schema.record(
    {"model": schema.text()},
    {
        "undone": schema.optional(schema.number(high=1)),
        "still": schema.optional(schema.number()),
        "ndim": schema.whole(2, 3),
    },
)


def _inside(value: Any) -> bool:
    """Accept paths that stay in the folder of the run."""
    if not isinstance(value, str) or "\0" in value or len(value) > 1000:
        return False
    windows = PureWindowsPath(value)
    # Names of files that are written here are text, and not longer than any file system allows.
    if not windows.parts or any("\ud800" <= letter <= "\udfff" for letter in value):
        return False
    if any(len(part.encode()) > 255 for part in windows.parts):
        return False
    return not (PurePosixPath(value).is_absolute() or windows.drive or windows.root or ".." in windows.parts)


RECORD_NEEDED: dict[str, schema.Check] = {"name": _NAME, "status": schema.one_of("done", "failed", "rejected")}
RECORD: dict[str, schema.Check] = {
    "command": schema.one_of("augment", "synthesize"),
    "case": _NAME,
    "subject": _NAME,
    "reason": schema.text(100_000),
    "levels": schema.listing(_LEVEL, 2),
    "copy": schema.whole(0, 10**9),
    "run_seed": schema.whole(0, 2**130),
    "seed": schema.whole(0, 2**130),
    "attempt": schema.whole(0, 10**6),
    "redrawn": schema.listing(schema.table(schema.anything), 10**6),
    "steps": schema.optional(schema.whole(1, 10**6)),
    "pose": schema.number(0, 100),
    "plane": schema.text(100),
    "border": schema.text(100),
    "region": schema.optional(schema.table(schema.anything)),
    "model": _MODEL,
    "fit": _FIT,
    "configuration": schema.text(200),
    "device": schema.record({"type": schema.text(100)}, {"name": schema.text()}),
    "software": schema.table(schema.text(), 100),
    "label_values": schema.table(schema.whole(), keys=schema.whole_text),
    "source": schema.record(
        {"files": schema.table(schema.text()), "digests": schema.table(schema.text(200)), "series": schema.text()},
        {"label_geometry": schema.text(100)},
    ),
    "files": schema.table(_inside),
    "digests": schema.table(schema.text(200)),
    "item": schema.table(schema.remark),
    "histograms": schema.table(schema.listing(schema.number())),
}
RUN_NEEDED: dict[str, schema.Check] = {
    "settings": schema.table(schema.anything),
    "model": _MODEL,
    "cases": schema.listing(schema.record({"name": _NAME}, {"subject": _NAME})),
    "software": schema.record({"drdm": schema.text(100)}),
    "device": RECORD["device"],
}
RUN: dict[str, schema.Check] = {
    "candidates": schema.listing(_MODEL, 10_000),
    "dimension": schema.whole(2, 3),
    "label_values": RECORD["label_values"],
    "labels": schema.table(schema.either(schema.whole(), schema.listing(schema.whole()))),
    "source_description": schema.table(lambda _: True),
    "parts": schema.table(schema.one_of("train", "validation", "test")),
}
