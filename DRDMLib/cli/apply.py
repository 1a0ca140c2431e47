"""The command ``drdm apply``."""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path

from ..application import IMAGE, LABEL, MESH, POINTS, apply_field, read_deformation
from ..production.run_folder import BEGINNINGS, locked_folder
from ..runtime.reporter import Reporter

_NAMES = {IMAGE: "image(s)", LABEL: "label map(s)", POINTS: "list(s) of points", MESH: "mesh(es)"}


def apply(options: argparse.Namespace, reporter: Reporter) -> None:
    """Run ``drdm apply``."""
    field = read_deformation(options.field)
    with locked_folder(Path(options.output)) as folder:
        done = apply_field(
            field,
            options.files,
            folder,
            inverse=options.inverse,
            labels=options.label,
            images=options.image,
            besides=BEGINNINGS,
            on_file=lambda number, total: reporter.progress("apply", number, total),
        )
    for one in done:
        reporter.item(source=str(one.source), file=one.path.name, kind=one.kind, not_exact=one.not_exact)
    counts = Counter(one.kind for one in done)
    text = ", ".join(f"{counts[kind]} {name}" for kind, name in _NAMES.items() if counts[kind])
    reporter.message(f"{text} are in '{options.output}'.")
