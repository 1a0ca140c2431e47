"""What a run over a dataset costs beyond generating and warping, and what a second process brings.

    python -m benchmarks.production DATASET WORK --cases 4 --copies 3

Runs ``drdm`` on the first cases of a dataset, every process with one thread:

    bare        the same samples in memory, one after the other: generation and warping, nothing else
    one core    one process on a single core (Linux), so that nothing can overlap for free
    one         one process on all cores
    two         two processes started by torchrun

Prints JSON. Times count from the start of the first sample to the end of the process, the quality page included; the
files of ``one`` and ``two`` are compared byte for byte.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import SimpleITK as sitk
import torch

from benchmarks.resumption import contents
from DRDMLib.io.datasets import find_cases
from DRDMLib.io.images import read_image, read_label
from DRDMLib.models.catalogue import load_model
from DRDMLib.production.plan import RunSettings, make_plan
from DRDMLib.samples import augment, synthesize
from DRDMLib.settings import DeformationSettings

KINDS = ("bare", "one core", "one", "two")
ONE_THREAD = {"OMP_NUM_THREADS": "1"}


def bare_seconds(dataset: str, command: str, model: str, levels: list[list[int]], copies: int, steps: int) -> float:
    """Return the seconds of all samples in memory, once images and model are loaded."""
    torch.set_num_threads(1)
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    deformation = DeformationSettings(steps=steps)
    settings = RunSettings(command, tuple(map(tuple, levels)), copies=copies, deformation=deformation)
    plan = make_plan(settings, find_cases(dataset))
    network = load_model(model, "cpu")
    sources = []
    for case in plan.cases:
        image = read_image(case.image, case.series)
        sources.append((image, read_label(case.label, image) if case.label else None))
    begin = time.perf_counter()
    for task in plan.samples:
        image, label = sources[task.case]
        seed = plan.seed(task, 0)
        if command == "augment":
            augment(image, label, network, settings.at_level(task.levels[0]), seed)
        else:
            first, second = map(settings.at_level, task.levels)
            synthesize(image, label, network, (first, second), seed)
    return time.perf_counter() - begin


def write_table(dataset: Path, count: int, work: Path) -> Path:
    """Write a table of the first cases of a dataset."""
    rows = ["name,image,label,subject"]
    for case in find_cases(dataset)[:count]:
        label = "" if case.label is None else case.label.resolve()
        rows.append(f"{case.name},{case.image.resolve()},{label},{case.subject}")
    table = work / "cases.csv"
    table.write_text("\n".join(rows) + "\n", encoding="utf-8")
    return table


def timed(command: list[str], cores: set[int] | None = None) -> tuple[float, list[str]]:
    """Run a command; return the seconds from its first sample to its end, and its messages."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, env=os.environ | ONE_THREAD, encoding="utf-8")
    if cores:
        os.sched_setaffinity(process.pid, cores)
    begin, messages = None, []
    assert process.stdout is not None
    for line in process.stdout:
        # torchrun passes on the lines of two processes; some come together.
        event = json.JSONDecoder().raw_decode(line, line.index("{"))[0] if "{" in line else {}
        if event.get("task") in ("augment", "synthesize") and begin is None:
            begin = time.perf_counter()
        if event.get("event") == "message":
            messages.append(event["text"])
    if process.wait() != 0 or begin is None:
        raise SystemExit("The run failed.")
    return time.perf_counter() - begin, messages


def parse_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("work", type=Path, help="new folder")
    parser.add_argument("--command", choices=["augment", "synthesize"], default="synthesize")
    parser.add_argument("--model", default="hippocampus-mr-3d")
    parser.add_argument("--cases", type=int, default=4)
    parser.add_argument("--copies", type=int, default=3)
    parser.add_argument("--levels", nargs="+", help="default: 40, or 40:24")
    parser.add_argument("--steps", type=int)
    parser.add_argument("--only", nargs="+", choices=KINDS, default=KINDS)
    # What the process "bare" does: the arguments of bare_seconds in JSON.
    parser.add_argument("--bare", help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    """Measure and print."""
    arguments = parse_arguments()
    if arguments.bare:
        print(bare_seconds(*json.loads(arguments.bare)))
        return
    arguments.work.mkdir(parents=True)
    table = write_table(arguments.dataset, arguments.cases, arguments.work)
    levels = arguments.levels or (["40"] if arguments.command == "augment" else ["40:24"])
    options = ["--model", arguments.model, "--levels", *levels, "--copies", str(arguments.copies), "--device", "cpu"]
    options += ["--max-folded", "1", "--progress", "json"]
    options += [] if arguments.steps is None else ["--steps", str(arguments.steps)]

    def drdm(name: str) -> list[str]:
        return ["-m", "DRDMLib", arguments.command, str(table), "-o", str(arguments.work / name / "set"), *options]

    figures: dict[str, Any] = {}
    if "bare" in arguments.only:
        numbers = [[int(level) for level in text.split(":")] for text in levels]
        settings = [str(table), arguments.command, arguments.model, numbers, arguments.copies, arguments.steps]
        # The dataset and the folder are only there because the command line asks for them.
        own = [sys.executable, "-m", "benchmarks.production", str(arguments.dataset), str(arguments.work)]
        bare = [*own, "--bare", json.dumps(settings)]
        printed = subprocess.run(bare, env=os.environ | ONE_THREAD, stdout=subprocess.PIPE, check=True).stdout
        figures["bare"] = float(printed)
    if "one core" in arguments.only and hasattr(os, "sched_setaffinity"):
        figures["one core"], _ = timed([sys.executable, *drdm("one core")], {0})
    if "one" in arguments.only:
        figures["one"], figures["said of one"] = timed([sys.executable, *drdm("one")])
    if "two" in arguments.only:
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
        figures["two"], _ = timed([*torchrun, *drdm("two")])
    samples = len(find_cases(table)) * arguments.copies * len(levels)
    figures["samples"] = samples
    for name in ("one core", "one"):
        if name in figures and "bare" in figures:
            figures[f"overhead, {name}"] = round(figures[name] / figures["bare"] - 1, 3)
    if "one" in figures and "two" in figures:
        figures["speed of two"] = round(figures["one"] / figures["two"], 3)
        figures["samples an hour, two"] = round(3600 * samples / figures["two"])
        same = contents(arguments.work / "one" / "set") == contents(arguments.work / "two" / "set")
        figures["the same files"] = same
    print(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
