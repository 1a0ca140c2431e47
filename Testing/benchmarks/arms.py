"""Networks trained on copies, arm by arm on the same subjects, with confidence intervals of their differences.

    python -m benchmarks.arms choose DATA OUT [--draws 2] [--device cuda]
    python -m benchmarks.arms run DATA OUT [--draws 10] [--device cuda]
    python -m benchmarks.arms tables OUT

The rule, written down before any test subject was looked at: the settings of each method are those with the largest
mean Dice on the people for choosing (those of ``yardstick.py``), labeled subjects drawn from them; without ``choose``,
the first of those to be tried, which were best for networks in ``fewshot.py --choose``. ``run`` then trains on subjects
from among the other people, and tests on all the others. Every arm of a draw has the same labeled subjects, initial
weights and number of steps, and every arm with copies the same number of them. ``toward`` copies go toward the images
of the people for choosing, whose labels are not used. One labeled heart and twenty of them get what was chosen for
five; of the few prostates nothing is chosen, and half of the others lend their images, while the rest are tested.

Copies are made in processes while networks are trained in others; on a GPU all of it takes minutes. Rows are written
after each network, and what is there already is not computed again.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import time
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import stats

from benchmarks.coverage import choose as draw_subjects
from benchmarks.example_sets import Recipe, arrays_of, read_examples, read_subject, write_examples
from benchmarks.graph_training import NetworkTrainer
from benchmarks.tables import markdown
from benchmarks.yardstick import TABLES, read, setting
from DRDMLib.io.datasets import Case

OURS, OURS_BESIDES = "ours, chosen", "nnU-Net's augmentation, and our copies as they come"


@dataclass(frozen=True)
class Comparison:
    """One table.

    Attributes:
        title: of the table.
        table: of ``yardstick.py``, whose people these are.
        shots: number of labeled subjects.
        copies: of each subject.
        window: shape of what the network sees, array order; 2D for the slices of stacks.
        classes: with the background.
        iterations: of each training.
        anyone: labeled subjects are drawn from all people, not from the healthy ones alone.
        weighted: give rare structures more weight.
        nnunet: train with nnU-Net's augmentation, too.
        draws: of the labeled subjects, at most.
        tried: settings to choose from, by arm; what was chosen for the comparison of another name; or fixed settings.
    """

    title: str
    table: str
    shots: int
    copies: int
    window: tuple[int, ...]
    classes: int
    iterations: int
    anyone: bool = False
    weighted: bool = False
    nnunet: bool = False
    draws: int = 100
    tried: dict[str, tuple[str, ...]] | str = field(default_factory=dict)


_SLICES, _CROP = (64, 64), (40, 56, 40)
# Side of a pixel in the slices of stacks, millimeters.
_PIXEL = 2.25
COMPARISONS = {
    "hearts": Comparison(
        "Hearts, five healthy subjects",
        "hearts",
        shots=5,
        copies=12,
        window=_SLICES,
        classes=4,
        iterations=800,
        nnunet=True,
        tried={
            "poses": ("pose+2", "pose+0.5", "pose+1", "pose+auto"),
            "elastic": ("torchio-mm@30+2", "torchio-mm@30+1", "torchio-mm@15+2", "torchio-mm@15+1", "torchio-mm+1"),
            "ours": tuple(f"general-3d:toward:gray{rest}" for rest in ("+2", "", "+auto", "+1", ":strong+1")),
        },
    ),
    "hippocampus": Comparison(
        "Hippocampi, one subject",
        "hippocampus",
        shots=1,
        copies=60,
        window=_CROP,
        classes=3,
        iterations=400,
        tried={
            "poses": ("pose+0.5", "pose+1", "pose+auto"),
            "elastic": ("torchio-mm@3+0.5", "torchio-mm@5+0.5", "torchio-mm@5+1"),
            "ours": tuple(f"hippocampus-mr-3d:toward:gray{rest}" for rest in ("", "+auto", "+0.5", ":strong+0.5")),
        },
    ),
    "heart": Comparison(
        "Hearts, one healthy subject",
        "heart",
        shots=1,
        copies=60,
        window=_SLICES,
        classes=4,
        iterations=800,
        tried="hearts",
    ),
    "prostate": Comparison(
        "Prostates, one subject",
        "prostate",
        shots=1,
        copies=40,
        window=(64, 64, 64),
        classes=2,
        iterations=400,
        draws=6,
        tried={"poses": ("pose+0.5",), "elastic": ("torchio-mm+0.5",), "ours": ("general-3d:toward:gray+0.5",)},
    ),
    "hearts20": Comparison(
        "Hearts, twenty subjects of all kinds",
        "hearts",
        shots=20,
        copies=6,
        window=_SLICES,
        classes=4,
        iterations=800,
        draws=5,
        anyone=True,
        nnunet=True,
        tried="hearts",
    ),
    "head": Comparison(
        "Deep structures of heads, one subject",
        "head",
        shots=1,
        copies=40,
        window=(48, 32, 64),
        classes=6,
        iterations=500,
        weighted=True,
        tried={"poses": ("pose+0.5",), "elastic": ("torchio-mm+0.5",), "ours": ("brain-t1-3d:toward:gray:subtle",)},
    ),
}


@dataclass(frozen=True)
class Task:
    """One network.

    Attributes:
        name: of the comparison.
        method: of the copies.
        nnunet: with nnU-Net's augmentation.
        draw: of the labeled subjects.
        people: those that are tested.
        recipe: of the examples.
    """

    name: str
    method: str
    nnunet: bool
    draw: int
    people: tuple[Case, ...]
    recipe: Recipe

    @property
    def key(self) -> dict[str, Any]:
        """What identifies its row."""
        return {"table": self.name, "draw": self.draw, "method": self.method, "nnunet": self.nnunet}

    def file(self, folder: Path) -> Path:
        """Return where its examples are kept."""
        plain = "".join(c if c.isalnum() else "_" for c in self.method)
        return folder / f"{self.name}-{self.draw}-{plain}{'-nnunet' if self.nnunet else ''}.npz"


def arms(name: str, chosen: dict[str, dict[str, str]]) -> dict[str, tuple[str, bool]]:
    """Return the arms of a comparison by the words of its rows: method of the copies, whether with nnU-Net's."""
    one = COMPARISONS[name]
    model = TABLES[one.table].model
    source = one.tried if isinstance(one.tried, str) else name
    tried = COMPARISONS[source].tried
    assert not isinstance(tried, str)
    best = chosen.get(source) or {arm: settings[0] for arm, settings in tried.items()}
    result = {
        "no copies": ("none", False),
        "TorchIO's elastic deformation, default": ("torchio-mm", False),
        "poses, chosen": (best["poses"], False),
        "elastic with poses, chosen": (best["elastic"], False),
        "ours, as `drdm augment` comes": (f"{model}:toward:gray+auto", False),
        "the same with `--gray-values own`": (f"{model}:toward+auto", False),
        "the same with `--gray-values own --pose 0`": (f"{model}:toward", False),
        OURS: (best["ours"], False),
    }
    if one.nnunet:
        result["nnU-Net's augmentation"] = ("none", True)
        result[OURS_BESIDES] = (f"{model}:toward:gray+auto", True)
    return result


def tasks(
    name: str,
    data: Path,
    draws: int,
    methods: list[tuple[str, bool]],
    copies: int | None = None,
    *,
    choosing: bool,
) -> Iterator[list[Task]]:
    """Yield the networks of each draw; ``copies`` of each subject, if not those of the comparison."""
    one = COMPARISONS[name]
    people = setting(TABLES[one.table], data, choosing=choosing)
    for draw in range(min(draws, one.draws)):
        first, rest = draw_subjects(people.cases, one.shots, 1000, "" if one.anyone else people.people, draw)
        # Without people for choosing, every second one of the others lends the image and is not tested.
        others = people.others or rest[1::2]
        rest = rest if people.others else rest[::2]
        yield [
            Task(
                name,
                method,
                nnunet,
                draw,
                tuple(rest),
                Recipe(tuple(first), tuple(others), method, nnunet, copies or one.copies, one.window, _PIXEL, draw),
            )
            for method, nnunet in dict.fromkeys(methods)
        ]


@lru_cache(maxsize=8)
def _trainer(window: tuple[int, ...], classes: int, device: str) -> NetworkTrainer:
    return NetworkTrainer(window, classes, torch.device(device))


@lru_cache(maxsize=512)
def _arrays(case: Case, window: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    return arrays_of(read_subject(case), window, _PIXEL)


def train_and_test(task: Task, path: Path, device: str, iterations: int | None) -> dict[str, Any]:
    """Train one network on the examples in a file, and return its row: mean Dice, and that of each person."""
    torch.set_num_threads(1)
    one = COMPARISONS[task.name]
    trainer = _trainer(one.window, one.classes, device)
    begin = time.perf_counter()
    steps = iterations or one.iterations
    trainer.train(read_examples(path), task.draw, steps, augment=not task.nnunet, weighted=one.weighted)
    found = trainer.test([_arrays(case, one.window) for case in task.people])
    facts = {"iterations": steps, "seconds": round(time.perf_counter() - begin, 2)}
    return task.key | {"dice": float(np.mean(found)), **facts, "people": [round(value, 4) for value in found]}


def compute(groups: list[list[Task]], path: Path, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Make the examples and train the networks that are missing in a file of rows; return all rows."""
    rows: list[dict[str, Any]] = read(path)
    end = time.monotonic() + 60 * options.minutes

    def missing(task: Task) -> bool:
        return not any(all(row[key] == value for key, value in task.key.items()) for row in rows)

    folder = options.folders[-1] / path.stem
    folder.mkdir(parents=True, exist_ok=True)
    context = multiprocessing.get_context("spawn")
    with (
        ProcessPoolExecutor(options.makers, context) as making,
        ProcessPoolExecutor(options.trainers, context) as training,
    ):
        made = {making.submit(write_examples, t.recipe, t.file(folder)): t for g in groups for t in g if missing(t)}
        trained: dict[Future[dict[str, Any]], Task] = {}
        waiting: set[Future[Any]] = set(made)
        try:
            while waiting:
                done = next(as_completed(waiting, timeout=max(0.0, end - time.monotonic())))
                waiting.remove(done)
                task = made[done] if done in made else trained[done]
                if done.exception() is not None:
                    print(f"{task.key} failed: {done.exception()!r}", flush=True)
                elif done in made:
                    later = training.submit(train_and_test, task, done.result(), options.device, options.iterations)
                    trained[later] = task
                    waiting.add(later)
                else:
                    rows.append(done.result())
                    print(json.dumps({k: v for k, v in rows[-1].items() if k != "people"}), flush=True)
                    path.write_text(json.dumps(rows) + "\n", encoding="utf-8")
                    task.file(folder).unlink(missing_ok=True)
        except TimeoutError:
            print(f"The time is over; {len(waiting)} parts are left out.", flush=True)
            making.shutdown(wait=False, cancel_futures=True)
            training.shutdown(wait=False, cancel_futures=True)
    return rows


def choose(options: argparse.Namespace) -> None:
    """Choose the settings of each comparison, and write them."""
    data, out = options.folders
    groups: list[list[Task]] = []
    for name in options.tables:
        tried = COMPARISONS[name].tried
        if not isinstance(tried, str) and any(len(group) > 1 for group in tried.values()):
            methods = [(method, False) for group in tried.values() for method in group]
            groups += tasks(name, data, options.draws, methods, options.copies, choosing=True)
    rows = compute(groups, out / "choosing.json", options)
    chosen = dict(read(out / "chosen.json"))
    for name in dict.fromkeys(group[0].name for group in groups):
        worth: dict[str, list[float]] = {}
        for row in rows:
            if row["table"] == name:
                worth.setdefault(row["method"], []).append(row["dice"])
        tried = COMPARISONS[name].tried
        assert not isinstance(tried, str)
        chosen[name] = {
            arm: max(group, key=lambda method: float(np.mean(worth.get(method, [-1.0]))))
            for arm, group in tried.items()
        }
        print(name, chosen[name], {method: round(float(np.mean(v)), 4) for method, v in worth.items()}, flush=True)
    (out / "chosen.json").write_text(json.dumps(chosen, indent=1) + "\n", encoding="utf-8")


def run(options: argparse.Namespace) -> None:
    """Measure the arms of each comparison, one draw of all of them after the other."""
    data, out = options.folders
    chosen = dict(read(out / "chosen.json"))
    by_table = [
        list(tasks(name, data, options.draws, list(arms(name, chosen).values()), options.copies, choosing=False))
        for name in options.tables
    ]
    groups = [table[draw] for draw in range(options.draws) for table in by_table if draw < len(table)]
    compute(groups, out / "rows.json", options)


def interval(differences: list[float]) -> float:
    """Return half of the 95 % confidence interval of the mean of some differences (Student's t)."""
    n = len(differences)
    if n < 2:
        return float("nan")
    return float(stats.t.ppf(0.975, n - 1) * np.std(differences, ddof=1) / np.sqrt(n))


def tables(out: Path) -> str:
    """Return all tables: mean Dice, and how far the chosen settings of ours are ahead on the same subjects."""
    chosen, rows, texts = dict(read(out / "chosen.json")), read(out / "rows.json"), []
    for name, one in COMPARISONS.items():
        found = {
            words: {r["draw"]: r["dice"] for r in rows if (r["table"], r["method"], r["nnunet"]) == (name, *arm)}
            for words, arm in arms(name, chosen).items()
        }
        lines = []
        for words, values in found.items():
            if not values:
                continue
            with_nnunet = arms(name, chosen)[words][1]
            reference = found[OURS_BESIDES if with_nnunet else OURS]
            common = sorted(set(values) & set(reference))
            differences = [reference[draw] - values[draw] for draw in common]
            same = reference is values or not differences
            ahead = "" if same else f"{np.mean(differences):+.3f} ± {interval(differences):.3f}"
            line = {"copies": words, "method": f"`{arms(name, chosen)[words][0]}`", "draws": len(values)}
            lines.append(
                line | {"Dice": float(np.mean(list(values.values()))), "ours, chosen or besides, is ahead by": ahead}
            )
        if lines:
            texts.append(f"{one.title}:\n\n{markdown(lines, {'Dice': '.3f', 'draws': 'd'})}\n")
    return "\n".join(texts)


def parse_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("task", choices=["choose", "run", "tables"])
    parser.add_argument("folders", type=Path, nargs="+", metavar="DATA OUT", help="for 'tables' OUT only")
    parser.add_argument("--tables", nargs="+", choices=list(COMPARISONS), default=list(COMPARISONS))
    parser.add_argument("--draws", type=int, default=10)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--makers", type=int, default=max(1, (os.cpu_count() or 2) - 2), help="processes for copies")
    parser.add_argument("--trainers", type=int, default=1, help="processes that train")
    parser.add_argument("--iterations", type=int, help="of each training, to try it out")
    parser.add_argument("--copies", type=int, help="of each subject, if not those of the table")
    parser.add_argument("--minutes", type=float, default=1e6, help="after which nothing else is begun")
    return parser.parse_args()


def main() -> None:
    """Choose, run, or print the tables."""
    options = parse_arguments()
    options.folders[-1].mkdir(parents=True, exist_ok=True)
    if options.task == "choose":
        choose(options)
    elif options.task == "run":
        run(options)
    if options.task != "choose":
        print(tables(options.folders[-1]))


if __name__ == "__main__":
    main()
