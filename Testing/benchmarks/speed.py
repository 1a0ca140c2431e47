"""Seconds and peak memory of one 2D 256^2 and one 3D 128^3 deformation: DRDM beside TorchIO, MONAI and the authors.

    python -m benchmarks.speed [--repeats 3] [--threads N] [--published WEIGHTS] [--authors CHECKOUT] [--sweeps]
        [--json OUT.json] [--plot OUT.png]

A call is timed from an image in memory to the warped image and, where the method returns it, the field.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.draw import draw_speed
from benchmarks.interleaved_timing import Method, Row, machine, note, time_in_turns
from benchmarks.phantom import SIDES
from benchmarks.tables import markdown

LEVEL = 48
RANDOM_LEVEL = 64
MEGABYTE = 1e6
MODEL = "hippocampus-mr-3d"
EVERY_LEVEL = 80
SWEPT_SIDES = (64, 96, 128, 192, 256)
SWEPT_LEVELS = (8, 24, 48, 64, 79)
SWEPT_STEPS = (4, 8, 12, 24, 48)


def methods(options: argparse.Namespace) -> list[Method]:
    """Return every row of the table, in its order."""
    rows = []
    for ndim, shipped in ((3, MODEL), (2, "cardiac-mr-2d")):
        row = partial(Method, ndim=ndim, side=SIDES[ndim], threads=options.threads or 0)
        ours = partial(row, "drdm", device=options.device)
        rows += [
            ours(f"DRDM {shipped}, level {LEVEL}", model=shipped),
            ours(f"DRDM {shipped}, level {LEVEL}, a step for every level", model=shipped, steps=EVERY_LEVEL),
        ]
        if ndim == 3:
            rows.append(
                ours("DRDM, the published 3D network (random weights), 12 steps", model="published-layout-3d", steps=12)
            )
        elif options.published:
            rows.append(ours("DRDM, the published cardiac weights", model=options.published))
        rows.append(row("random", f"DRDM random field alone, level {RANDOM_LEVEL}", level=RANDOM_LEVEL))
        rows.append(row("torchio", "TorchIO RandomElasticDeformation"))
        rows.append(row("monai", f"MONAI Rand{ndim}DElastic"))
        if options.authors:
            timed = ", 80 steps" + (" (2 timed)" if ndim == 3 else "")
            rows.append(row("authors", f"The authors' program{timed}", source=options.authors))
            label = f"The authors' random field alone, level {RANDOM_LEVEL}"
            rows.append(row("authors-random", label, source=options.authors, level=RANDOM_LEVEL))
    return rows


def sweeps(options: argparse.Namespace) -> dict[str, list[Method]]:
    """Return DRDM with one setting changed at a time; with the size, the other libraries too."""
    base = Method("drdm", "", 3, SIDES[3], model=MODEL, threads=options.threads or 0, device=options.device)
    threads = sorted({1, *[2**k for k in range(1, 7) if 2**k <= (os.cpu_count() or 1)]})
    sizes = []
    for side in SWEPT_SIDES:
        sizes.append(replace(base, label=f"DRDM {side}", side=side))
        sizes += [replace(base, kind=kind, label=f"{kind} {side}", side=side) for kind in ("torchio", "monai")]
    return {
        "side": sizes,
        "level": [replace(base, label=f"level {level}", level=level) for level in SWEPT_LEVELS],
        "steps": [replace(base, label=f"{steps} steps", steps=steps) for steps in SWEPT_STEPS],
        "threads": [replace(base, label=f"{count} threads", threads=count) for count in threads],
    }


def table(rows: list[Row]) -> str:
    """Return the rows in Markdown; a method that could not be timed has its problem in place of the seconds."""
    torchio = {row.method.ndim: row.median for row in rows if row.method.kind == "torchio" and not row.problem}
    formats = {
        "Seconds": ".3g",
        "x TorchIO": ".3g",
        "Peak MB": ".0f",
        "Baseline MB": ".0f",
        "Over baseline MB": ".0f",
        "Mean displacement, % of the side": ".2f",
        "Folded, % of voxels": ".3f",
    }
    cells = []
    for row in rows:
        line: dict[str, Any] = {"Method": row.method.label, "Image": f"{row.method.side}^{row.method.ndim}"}
        line |= dict.fromkeys(formats)
        if row.problem:
            cells.append(line | {"Seconds": row.problem})
            continue
        baseline, peak = row.baseline_bytes / MEGABYTE, row.peak_bytes / MEGABYTE
        reference = torchio.get(row.method.ndim)
        values = (
            row.median,
            row.median / reference if reference else None,
            peak,
            baseline,
            peak - baseline,
            row.figures["mean_percent"],
            100 * row.figures["folded_fraction"],
        )
        cells.append(line | dict(zip(formats, values, strict=True)))
    return markdown(cells, formats)


def sweep_table(name: str, rows: list[Row]) -> str:
    """Return a sweep in Markdown."""
    cells = [
        {
            name: row.method.label,
            "Seconds": row.problem or row.median,
            "Peak MB": None if row.problem else row.peak_bytes / MEGABYTE,
        }
        for row in rows
    ]
    return markdown(cells, {"Seconds": ".2f", "Peak MB": ".0f"})


def headline(facts: dict[str, Any], repeats: int) -> str:
    """Return the line above the table."""
    versions = ", ".join(f"{name} {facts[name]}" for name in ("torch", "torchio", "monai") if facts[name])
    return (
        f"{facts['processor'] or facts['system']}, {facts['cpus']} CPUs, {facts['threads']} threads, {versions}, "
        f"Python {facts['python']}; median of {repeats}, one warm-up before."
    )


def positive(text: str) -> int:
    """Parse a whole number of 1 or more, for argparse."""
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number of 1 or more")
    return int(text)


def parse_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description="Time and memory of DRDM's deformations beside others'.")
    parser.add_argument("--repeats", type=positive, default=3, help="timed calls of each method (3)")
    parser.add_argument("--threads", type=positive, help="threads of each method (default: torch and ITK choose)")
    parser.add_argument("--device", default="cpu", help="where DRDM computes (cpu)")
    parser.add_argument("--published", metavar="WEIGHTS", help="also time the authors' 2D weights (.pth)")
    parser.add_argument("--authors", metavar="CHECKOUT", help="also time the authors' program, from its repository")
    parser.add_argument("--sweeps", action="store_true", help="also cost against size, level, steps and threads")
    parser.add_argument("--json", type=Path, metavar="OUT", help="write all figures to this file")
    parser.add_argument("--plot", type=Path, metavar="OUT", help="draw them into this PNG file")
    arguments = parser.parse_args()
    if arguments.published and not Path(arguments.published).is_file():
        parser.error(f"there is no file '{arguments.published}'")
    if arguments.authors and not (Path(arguments.authors) / "Diffusion" / "diffuser.py").is_file():
        parser.error(f"'{arguments.authors}' is not a checkout of the authors' repository")
    for path in (arguments.json, arguments.plot):
        if path and not path.resolve().parent.is_dir():
            parser.error(f"there is no folder for '{path}'")
    return arguments


def main() -> None:
    """Measure everything, print the tables, write the figures."""
    arguments = parse_arguments()
    swept: dict[str, list[Row]] = {}
    try:
        rows = time_in_turns(methods(arguments), arguments.repeats)
        for name, group in sweeps(arguments).items() if arguments.sweeps else ():
            # A few at a time: all of them would not fit into memory.
            parts = [group[k : k + 3] for k in range(0, len(group), 3)]
            swept[name] = [row for part in parts for row in time_in_turns(part, arguments.repeats)]
    except KeyboardInterrupt:
        sys.exit("stopped")
    facts = machine(rows)
    print(headline(facts, arguments.repeats), table(rows), sep="\n\n")
    for name, group_rows in swept.items():
        print("", sweep_table(name, group_rows), sep="\n")
    report = {"machine": facts, "repeats": arguments.repeats, "rows": [row.to_dict() for row in rows]}
    report["sweeps"] = {name: [row.to_dict() for row in group_rows] for name, group_rows in swept.items()}
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    if arguments.plot:
        draw_speed(report, arguments.plot)
        note(f"drawn: {arguments.plot}")


if __name__ == "__main__":
    main()
