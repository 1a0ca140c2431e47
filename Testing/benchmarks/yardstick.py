"""All tables of coverage and plausibility: who covers the shapes of other people best, from five subjects and from one.

    python -m benchmarks.yardstick choose DATA OUT
    python -m benchmarks.yardstick run DATA OUT [--draws 0 1 2]
    python -m benchmarks.yardstick tables OUT

The rule, written down before any test subject was looked at: settings of a method are chosen by the largest sum of
coverage and plausibility on other people (``choose``), one draw; then ``run`` measures what was chosen, and beside it
the defaults of every method, on people that were not used for choosing. Of hearts, every second patient is for choosing
(patients are sorted by disease), and of hippocampi and heads, those that the model was trained on; of the few prostates
nothing is chosen, and the general model has seen most of them. Five healthy hearts are judged by hearts of four
diseases and other healthy ones; one heart gets what was chosen for five. One subject is another one in each draw.

``OUT/rows.json`` has one row for each setting, draw and method; what is there is not computed again.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.coverage import Setting, measure
from benchmarks.tables import markdown
from DRDMLib.io.datasets import find_cases
from DRDMLib.training.data import split

# Every second patient is for choosing; others are held out by the recipes, see recipes/training_images.py.
HALF, HOLD_OUT, HOLD_OUT_HEADS = 2, 8, 5
HEALTHY = "patient0(6[1-9]|7[0-9]|80)"
COPIES = 60
# Draws of one subject are so far apart in the list; there are only ten healthy hearts.
APART = 3


@dataclass(frozen=True)
class Table:
    """One table.

    Attributes:
        title: of the table.
        folder: of the dataset in DATA.
        model: that ``drdm augment`` takes there.
        hold_out: every so-manieth case was not used for training the model.
        only: pattern of the cases that are used.
        people: pattern of the subjects that may be copied.
        shots: number of subjects.
        elastic: what is tried of TorchIO.
        ours: what is tried of ours.
        choice: name of the table whose settings are used, if they are not chosen.
    """

    title: str
    folder: str
    model: str
    hold_out: int
    only: str = ""
    people: str = ""
    shots: int = 1
    elastic: tuple[str, ...] = ()
    ours: tuple[str, ...] = ()
    choice: str = ""


_HEARTS = Table(
    "Hearts, five healthy subjects",
    "cardiac_acdc",
    "general-3d",
    HALF,
    only="_ED",
    people=HEALTHY,
    shots=5,
    elastic=("torchio-mm@15", "torchio-mm@30", "torchio-mm@15x5", "torchio-mm@30x5"),
    ours=("general-3d:strong", "heart-region-2d:around", "heart-region-2d:around:medium,strong"),
)
TABLES = {
    "hearts": _HEARTS,
    "heart": replace(_HEARTS, title="Hearts, one healthy subject", shots=1, choice="hearts"),
    "hippocampus": Table(
        "Hippocampi, one subject",
        "hippocampus",
        "hippocampus-mr-3d",
        HOLD_OUT,
        elastic=("torchio-mm@3", "torchio-mm@5", "torchio-mm@3x5", "torchio-mm@5x5"),
        ours=("hippocampus-mr-3d:medium,strong", "hippocampus-mr-3d:strong"),
    ),
    "head": Table(
        "Deep structures of heads, one subject",
        "brain_ixi",
        "brain-t1-3d",
        HOLD_OUT_HEADS,
        elastic=("torchio-mm@15", "torchio-mm@15x9", "torchio-mm@7.5x9"),
        ours=("brain-t1-3d:medium,strong", "brain-t1-3d:strong"),
    ),
    "prostate": Table("Prostates, one subject", "prostate_mr", "general-3d", 1),
}
POSES = ("pose+0.5", "pose+1", "pose+2", "pose+auto")


def setting(table: Table, data: Path, *, choosing: bool) -> Setting:
    """Return the subjects of a table, those for choosing or those for the test."""
    cases = [case for case in find_cases(data / table.folder) if case.label and re.search(table.only, case.name)]
    others, pool = split(cases, table.hold_out) if table.hold_out > 1 else ([], cases)
    if choosing:
        pool, others = others[:: max(1, len(others) // 50)], pool
    return Setting(pool, others or None, table.people, table.shots, COPIES // table.shots)


def candidates(table: Table) -> dict[str, tuple[str, ...]]:
    """Return what is tried for each arm whose settings are chosen."""
    ours = tuple(f"{one}{pose}" for one in (table.model, *table.ours) for pose in ("", "+0.5", "+auto"))
    toward = (f"{table.model}:toward", f"{table.model}:toward:subtle", f"{table.model}:toward+0.5")
    return {"poses": POSES, "elastic": ("torchio-mm", *table.elastic), "ours": ours, "toward": toward}


def arms(table: Table, chosen: dict[str, str]) -> dict[str, str]:
    """Return the methods of a table by the words of its rows."""
    result = {
        "the originals, repeated": "none",
        "nnU-Net's default": "nnunet",
        "TorchIO's elastic deformation, default": "torchio-mm",
        "poses alone, as people differ": "pose+auto",
        "ours, default": table.model,
        "ours, default, then nnU-Net's": f"{table.model}>nnunet",
        "ours with `--pose auto`": f"{table.model}+auto",
        "ours with `--toward others`": f"{table.model}:toward",
        "the way toward others alone": f"{table.model}:toward:0",
        "other real people in place of copies": "people",
    }
    if chosen:
        elastic, pose = chosen["elastic"], chosen["poses"].removeprefix("pose")
        result |= {
            "poses alone, chosen": chosen["poses"],
            "TorchIO's, chosen": elastic,
            "TorchIO's, chosen, with poses": f"{elastic}{pose}",
            "ours, chosen": chosen["ours"],
        }
    if "toward" in chosen:
        result["ours toward others, chosen"] = chosen["toward"]
    return result


def read(path: Path) -> Any:
    """Read a JSON file; an empty list if it is not there."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []


def compute(name: str, setting: Setting, methods: Sequence[str], draw: int, path: Path) -> list[dict[str, Any]]:
    """Measure what is missing in a file of rows, and return the rows of one draw."""
    rows: list[dict[str, Any]] = read(path)
    done = [row["method"] for row in rows if (row["table"], row["draw"]) == (name, draw)]
    for row in measure(setting, list(dict.fromkeys(methods)), draw, done):
        rows.append({"table": name} | row)
        print(rows[-1], flush=True)
        path.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    return [row for row in rows if (row["table"], row["draw"]) == (name, draw)]


def choose(name: str, data: Path, out: Path) -> None:
    """Choose the settings of one table, and write them."""
    table = TABLES[name]
    if table.choice or not table.elastic:
        return
    tried = candidates(table)
    methods = [method for group in tried.values() for method in group]
    rows = compute(name, setting(table, data, choosing=True), methods, 0, out / "choosing.json")
    worth = {row["method"]: row["coverage"] + row["plausibility"] for row in rows}
    chosen = dict(read(out / "chosen.json"))
    chosen[name] = {arm: max(group, key=lambda method: worth[method]) for arm, group in tried.items()}
    print(name, chosen[name], flush=True)
    (out / "chosen.json").write_text(json.dumps(chosen, indent=1) + "\n", encoding="utf-8")


def run(name: str, data: Path, out: Path, draws: Sequence[int]) -> None:
    """Measure the arms of one table."""
    table = TABLES[name]
    methods = list(arms(table, dict(read(out / "chosen.json")).get(table.choice or name, {})).values())
    for draw in draws:
        number = draw if table.shots > 1 else draw * APART
        compute(name, setting(table, data, choosing=False), methods, number, out / "rows.json")


def tables(out: Path) -> str:
    """Return all tables: means over the draws, and their standard deviations of coverage."""
    chosen, rows, texts = dict(read(out / "chosen.json")), read(out / "rows.json"), []
    for name, table in TABLES.items():
        lines = []
        for words, method in arms(table, chosen.get(table.choice or name, {})).items():
            found = [row for row in rows if row["table"] == name and row["method"] == method]
            if not found:
                continue
            line: dict[str, Any] = {"copies": words, "method": f"`{method}`"}
            for figure in ("coverage", "plausibility"):
                values = [row[figure] for row in found]
                line[figure] = f"{np.mean(values):.3f} ({', '.join(f'{value:.3f}' for value in values)})"
            lines.append(line | {k: float(np.mean([row[k] for row in found])) for k in ("recall", "precision")})
        if lines:
            texts.append(f"{table.title}:\n\n{markdown(lines, dict.fromkeys(('recall', 'precision'), '.2f'))}\n")
    return "\n".join(texts)


def main() -> None:
    """Choose, run, or print the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("task", choices=["choose", "run", "tables"])
    parser.add_argument("folders", type=Path, nargs="+", metavar="DATA OUT", help="for 'tables' OUT only")
    parser.add_argument("--tables", nargs="+", choices=list(TABLES), default=list(TABLES))
    parser.add_argument("--draws", type=int, nargs="+", default=[0, 1, 2])
    options = parser.parse_args()
    out = options.folders[-1]
    out.mkdir(parents=True, exist_ok=True)
    for name in options.tables if options.task != "tables" else ():
        if options.task == "choose":
            choose(name, options.folders[0], out)
        else:
            run(name, options.folders[0], out, options.draws)
    if options.task != "choose":
        print(tables(out))


if __name__ == "__main__":
    main()
