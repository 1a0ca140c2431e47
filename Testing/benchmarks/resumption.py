"""Kill a run over a dataset at random moments, resume it, and compare what comes out with an undisturbed run.

    python -m benchmarks.resumption DATASET WORK [--command synthesize] [--kills 20] [-- drdm's options]

Every kill is SIGKILL to the whole process group, at a random time after the start of Python. A round ends when the run
is complete; rounds are repeated until there have been enough kills. All files are compared byte for byte, except those
that depend on time: the folder ``logs`` and ``seconds`` in report.json. Prints one line for a kill and a summary as
JSON. Exit status 0: everything was the same.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path


def drdm(command: str, dataset: Path, folder: Path, options: list[str]) -> list[str]:
    """Return the command line of a run."""
    return [sys.executable, "-m", "DRDMLib", command, str(dataset), "-o", str(folder), "--resume", *options]


def start(arguments: list[str], log: Path) -> subprocess.Popen[bytes]:
    """Start a run in a process group of its own."""
    with log.open("ab") as stream:
        return subprocess.Popen(arguments, stdout=stream, stderr=stream, start_new_session=True)


def contents(folder: Path) -> dict[str, str]:
    """Return the digest of every file of a run's folder by its path, without what depends on time."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_dir():
            found[name] = "folder"
        elif not name.startswith("logs/"):
            data = path.read_bytes()
            if name == "report.json":
                report = json.loads(data)
                for item in report["items"]:
                    item.pop("seconds")
                data = json.dumps(report).encode()
            found[name] = hashlib.sha256(data).hexdigest()
    return found


def broken_files(folder: Path, whole: dict[str, str]) -> list[str]:
    """Return the files that have their final name but not the contents of the undisturbed run."""
    wrong = []
    for path in folder.rglob("*.nii.gz"):
        name = path.relative_to(folder).as_posix()
        if not path.name.startswith(".") and hashlib.sha256(path.read_bytes()).hexdigest() != whole.get(name):
            wrong.append(name)
    return wrong


def main() -> int:
    """Kill, resume and compare; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("work", type=Path, help="new folder")
    parser.add_argument("--command", choices=["augment", "synthesize"], default="synthesize")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0, help="of the moments of the kills")
    parser.add_argument(
        "--often", type=float, default=5.0, help="kills come as if the run were cut into this many parts"
    )
    arguments, options = parser.parse_known_args()
    options = [option for option in options if option != "--"]
    arguments.work.mkdir(parents=True)
    log = arguments.work / "output.txt"
    # Equal names: the folder's name is written into the dataset's description.
    undisturbed = arguments.work / "undisturbed" / "set"
    begin = time.monotonic()
    if start(drdm(arguments.command, arguments.dataset, undisturbed, options), log).wait() != 0:
        print(log.read_text(encoding="utf-8", errors="replace"), file=sys.stderr)
        return 1
    whole = contents(undisturbed)
    undisturbed_seconds = time.monotonic() - begin
    print(f"Undisturbed: {len(whole)} files and folders, {undisturbed_seconds:.0f} s", flush=True)
    moments = random.Random(arguments.seed)
    kills, rounds, faults = 0, 0, 0
    stages: dict[str, int] = {"before it had begun": 0, "half-written files there": 0, "between files": 0}
    while kills < arguments.kills:
        rounds += 1
        folder = arguments.work / f"round {rounds}" / "set"
        while True:
            process = start(drdm(arguments.command, arguments.dataset, folder, options), log)
            delay = moments.uniform(0.2, 2 * undisturbed_seconds / arguments.often)
            try:
                status = process.wait(delay if kills < arguments.kills else None)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                kills += 1
                partial = len(list(folder.rglob(".*.partial")))
                done = len(list(folder.glob("records/*.json")))
                begun = (folder / "run.json").is_file()
                stage = "half-written files there" if partial else "between files" if begun else "before it had begun"
                stages[stage] += 1
                wrong = broken_files(folder, whole)
                faults += len(wrong)
                print(f"kill {kills} after {delay:.2f} s: {stage}, {done} records, wrong {wrong}", flush=True)
                continue
            if status != 0:
                print(log.read_text(encoding="utf-8", errors="replace")[-2000:], file=sys.stderr)
                return 1
            break
        made = contents(folder)
        differing = sorted(name for name in whole.keys() | made.keys() if whole.get(name) != made.get(name))
        faults += len(differing)
        print(f"round {rounds}: {len(made)} files and folders, differing: {differing}", flush=True)
        shutil.rmtree(folder.parent)
    print(json.dumps({"kills": kills, "rounds": rounds, "faults": faults, "stages": stages, "files": len(whole)}))
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
