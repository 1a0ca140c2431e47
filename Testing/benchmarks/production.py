"""What a run over a dataset costs beyond generating and warping, and what a second process brings.

    python Testing/benchmarks/benchmark_production.py DATASET WORK --cases 4 --copies 3

Runs ``drdm`` on the first cases of a dataset, every process with one thread:

    bare        the same samples in memory, one after the other: generation and warping, nothing else
    one core    one process that may use a single core for everything (Linux), so that nothing can overlap for free
    one         one process, as it comes
    two         two processes started by torchrun

Prints JSON. Times count from the first sample's beginning to the end of the process, the quality page included; what
``one`` and ``two`` have made is compared byte for byte.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
sys.path.insert(0, str(Path(__file__).resolve().parent))

from prove_resumption import contents  # noqa: E402

from DRDMLib.datasets import find_cases  # noqa: E402

BARE = """
import json, sys, time
import torch
import SimpleITK
torch.set_num_threads(1)
SimpleITK.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
from DRDMLib import algorithms, catalogue, datasets
from DRDMLib.images import read_image, read_label
from DRDMLib.production.plan import make_plan, Settings
dataset, command, model, levels, copies, steps = json.loads(sys.argv[1])
plan = make_plan(Settings(command, tuple(map(tuple, levels)), copies=copies, steps=steps), datasets.find_cases(dataset))
model = catalogue.load_model(model, "cpu")
sources = []
for case in plan.cases:
    image = read_image(case.image, case.series)
    sources.append((image, read_label(case.label, image) if case.label else None))
how = algorithms.augment if command == "augment" else algorithms.synthesize
begin = time.perf_counter()
for task in plan.samples:
    image, label = sources[task.case]
    how(image, label, model, task.levels[0] if command == "augment" else task.levels, plan.seed(task, 0), steps=steps)
print(time.perf_counter() - begin)
"""


def first_cases(dataset: Path, count: int, work: Path) -> Path:
    """A table of some of a dataset's cases."""
    rows = ["name,image,label,subject"]
    for case in find_cases(dataset)[:count]:
        label = "" if case.label is None else case.label.resolve()
        rows.append(f"{case.name},{case.image.resolve()},{label},{case.subject}")
    table = work / "cases.csv"
    table.write_text("\n".join(rows) + "\n", encoding="utf-8")
    return table


def timed(command: list[str], cores: set[int] | None = None) -> tuple[float, list[str]]:
    """Seconds from the first progress of the work itself to the end, and the messages."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, env=environment, encoding="utf-8")
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


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("work", type=Path, help="new folder")
    parser.add_argument("--command", choices=["augment", "synthesize"], default="synthesize")
    parser.add_argument("--model", default="hippocampus-mr-3d")
    parser.add_argument("--cases", type=int, default=4)
    parser.add_argument("--copies", type=int, default=3)
    parser.add_argument("--levels", nargs="+", help="default: 40, or 40:24")
    parser.add_argument("--steps", type=int)
    parser.add_argument("--only", nargs="+", choices=["bare", "one core", "one", "two"])
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True)
    table = first_cases(arguments.dataset, arguments.cases, arguments.work)
    levels = arguments.levels or (["40"] if arguments.command == "augment" else ["40:24"])
    options = ["--model", arguments.model, "--levels", *levels, "--copies", str(arguments.copies), "--device", "cpu"]
    options += ["--max-folded", "1", "--progress", "json"]
    options += [] if arguments.steps is None else ["--steps", str(arguments.steps)]

    def drdm(name: str) -> list[str]:
        return ["-m", "DRDMLib", arguments.command, str(table), "-o", str(arguments.work / name / "set"), *options]

    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    told = [
        str(table),
        arguments.command,
        arguments.model,
        [[int(level) for level in text.split(":")] for text in levels],
        arguments.copies,
        arguments.steps,
    ]
    figures: dict[str, object] = {}
    wanted = arguments.only or ["bare", "one core", "one", "two"]
    if "bare" in wanted:
        bare = [sys.executable, "-c", BARE, json.dumps(told)]
        environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        figures["bare"] = float(subprocess.run(bare, env=environment, capture_output=True, check=True).stdout)
    if "one core" in wanted and hasattr(os, "sched_setaffinity"):
        figures["one core"], _ = timed([sys.executable, *drdm("one core")], {0})
    if "one" in wanted:
        figures["one"], figures["said of one"] = timed([sys.executable, *drdm("one")])
    if "two" in wanted:
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
