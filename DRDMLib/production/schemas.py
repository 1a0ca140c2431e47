"""What records and ``run.json`` may contain; they are read from folders that may come from anywhere."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Any

from ..io import schema
from ..levels import AUTO_POSE, REFLECTIONS, STRENGTHS
from ..models.metadata import POSES

# Most copies of a sample that are drawn together.
MOST_COPIES = 16
_NAME = schema.text(1000)
_LEVEL = schema.either(schema.whole(-1, 100_000), schema.one_of(*STRENGTHS))
_FIGURE = schema.optional(schema.number())
_NUMBER = schema.whole(-1, 100_000)
_NUMBERS = schema.listing(_NUMBER, 2, 2)
_MODEL = schema.record({"name": schema.text(), "digest": schema.text(200)}, {"file": schema.text()})
_POSE = schema.either(schema.number(0, 100), schema.one_of(AUTO_POSE))
_FIT = schema.record(
    {"model": schema.text()},
    {
        "undone": schema.optional(schema.number(high=1)),
        "still": schema.optional(schema.number()),
        "ndim": schema.whole(2, 3),
    },
)


def is_inside(value: Any) -> bool:
    """Whether a value is a relative path that stays in the folder of its run, on every system."""
    if not isinstance(value, str) or set(value) & set(":\\\0") or len(value) > 1000:
        return False
    parts = PurePosixPath(value).parts
    # Names of files that are written here are text, and not longer than any file system allows.
    if not parts or value.startswith("/") or ".." in parts or any("\ud800" <= letter <= "\udfff" for letter in value):
        return False
    return all(len(part.encode()) <= 255 for part in parts)


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
    "batch": schema.record(
        {"copies": schema.listing(schema.whole(0, 10**9), MOST_COPIES, 2), "at_once": schema.whole(1, MOST_COPIES)}
    ),
    "steps": schema.optional(schema.whole(1, 10**6)),
    "pose": schema.either(_POSE, POSES),
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
        {"label_geometry": schema.text(100), "relative": schema.table(schema.text())},
    ),
    "files": schema.table(is_inside),
    "digests": schema.table(schema.text(200)),
    "sizes": schema.table(schema.whole(0)),
    "seed_scheme": schema.text(100),
    "bones": schema.one_of("auto", "rigid", "free"),
    "mirror": schema.record(
        {
            "reflections": schema.listing(schema.one_of(*REFLECTIONS), len(REFLECTIONS)),
            "sides": schema.optional(schema.listing(schema.listing(schema.whole(1), 2, 2), 10_000)),
        }
    ),
    "changed": schema.truth,
    "toward": schema.optional(
        schema.record(
            {"files": schema.record({"image": schema.text()}), "digests": schema.record({"image": schema.text(200)})},
            {
                "series": schema.text(),
                "relative": schema.table(schema.text()),
                "case": _NAME,
                "in_place": schema.truth,
                "turn": schema.number(-360, 360),
            },
        )
    ),
    "item": schema.both(schema.table(schema.remark), schema.record({}, {"level": _NUMBER, "levels": _NUMBERS})),
    "histograms": schema.table(schema.listing(schema.number())),
}
# What the record of a finished task has, too; that of a sample has also what reports need.
DONE: dict[str, schema.Check] = {
    "case": _NAME,
    "subject": _NAME,
    "levels": RECORD["levels"],
    "model": _MODEL,
    "files": schema.record({"image": is_inside}),
    "digests": RECORD["digests"],
    "source": schema.record(
        {"files": schema.record({"image": schema.text()}), "digests": schema.table(schema.text(200))}
    ),
}
SAMPLE: dict[str, schema.Check] = {
    "seed": RECORD["seed"],
    "redrawn": RECORD["redrawn"],
    "item": schema.record(
        {
            "seed": RECORD["seed"],
            "level": _NUMBER,
            "steps": schema.whole(0, 10**6),
            "pose": _POSE,
            "metrics": schema.record(
                dict.fromkeys(("mean_mm", "max_mm", "mean_percent", "min_jacobian", "folded_fraction"), _FIGURE)
            ),
            "repair": schema.table(_FIGURE),
        }
    ),
}
_PAIR = schema.listing(_LEVEL, 2, 2)
# As the command line allows.
_SETTINGS = {"copies": schema.whole(1, 100_000), "seed": schema.whole(0, 2**130)}
RUN_NEEDED: dict[str, schema.Check] = {
    "settings": schema.either(
        schema.record({"command": schema.one_of("augment"), **_SETTINGS, "levels": schema.listing(_LEVEL, 10_000, 1)}),
        schema.record(
            {"command": schema.one_of("synthesize"), **_SETTINGS, "levels": schema.listing(_PAIR, 10_000, 1)}
        ),
    ),
    "model": _MODEL,
    "cases": schema.listing(schema.record({"name": _NAME}, {"subject": _NAME})),
    "software": schema.record({"drdm": schema.text(100)}),
    "device": RECORD["device"],
    "label_values": RECORD["label_values"],
    "labels": schema.table(schema.either(schema.whole(), schema.listing(schema.whole()))),
    "source_description": schema.table(lambda _: True),
    "parts": schema.table(schema.one_of("train", "validation", "test")),
}
RUN: dict[str, schema.Check] = {
    "candidates": schema.listing(_MODEL, 10_000),
    "dimension": schema.whole(2, 3),
}
