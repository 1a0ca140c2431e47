"""The command ``drdm apply``."""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path

from ..application import IMAGE, LABEL, MESH, POINTS, apply_field, read_deformation
from ..io.files import counted
from ..production.run_folder import BEGINNINGS, locked_folder
from ..runtime.reporter import Reporter

_NAMES = {
    IMAGE: ("image", "images"),
    LABEL: ("label map", "label maps"),
    POINTS: ("list of points", "lists of points"),
    MESH: ("mesh", "meshes"),
}


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
    text = ", ".join(counted(counts[kind], *names) for kind, names in _NAMES.items() if counts[kind])
    reporter.message(f"{text} {'is' if len(done) == 1 else 'are'} in '{options.output}'.")
