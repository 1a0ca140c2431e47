"""Write the report of a run: the times of its samples, ``report.json``, and the description of the dataset."""

from __future__ import annotations

import contextlib
import json
import time
from pathlib import Path
from typing import Any

from .. import output
from ..errors import DRDMError, ImageError, OutputError
from ..io.files import digest_of_files, finite, read_object, to_json, write_text
from . import records, run_folder
from .layouts import learn2reg_dataset, nnunet_dataset, nnunet_splits, subject_splits
from .plan import AUGMENT
from .quality import PAGE, write_quality_page
from .run_state import LOGS, Run
from .sampling import Product

# The report of a long run is large; writing it may take at most this fraction of the time.
_REPORT_SHARE = 0.02
# Files of a finished run besides its samples, their records and the report.
DESCRIPTIONS = (run_folder.RUN, "dataset.json", "splits_final.json", "splits.json", PAGE)


def report_entry(record: dict[str, Any], seconds: float | None) -> dict[str, Any]:
    """Return the entry of a sample in ``report.json``."""
    files = {kind: path for kind, path in record["files"].items() if kind not in ("thumbnail", "layers")}
    item = record["item"]
    return {
        "name": record["name"],
        "source": record["case"],
        "model": record["model"]["name"],
        **({"fit": record["fit"]} if "fit" in record else {}),
        **({"levels": item["levels"]} if "levels" in item else {}),
        "image": files.pop("image"),
        "label": files.pop("label", None),
        "ddf": files.pop("ddf", None),
        **files,
        **{key: item[key] for key in ("seed", "level", "steps", "pose")},
        "seconds": seconds,
        "metrics": item["metrics"],
        "repair": item["repair"],
        **{
            key: item[key]
            for key in ("strength", "toward", "from_outside", "invented_fraction", "bone_mm", "region")
            if key in item
        },
    }


def model_names(run: Run, done: list[dict[str, Any]]) -> str:
    """Return the names of all models of a run."""
    made = [record["model"]["name"] for record in done if record["status"] == records.DONE]
    return ", ".join(dict.fromkeys(made)) or run.model.metadata.name


def log_times(run: Run, product: Product) -> None:
    """Write the times of a sample as one line of a log file, so that results do not depend on them."""
    seconds = sum(v for k, v in product.seconds.items() if k != "write")
    run.seconds[product.record["name"]] = round(seconds, 3)
    line = {"name": product.record["name"], "seconds": round(seconds, 3)}
    line |= {part: round(value, 4) for part, value in product.seconds.items()}
    path = run.folder / LOGS / f"{run.process.rank + 1:03d}-of-{run.process.world:03d}.jsonl"
    with contextlib.suppress(OSError), path.open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(finite(line)) + "\n")


def read_times(run: Run) -> None:
    """Read the times of all samples, made by any process."""
    for path in sorted((run.folder / LOGS).glob("*.jsonl")):
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            # The last line is incomplete if the run was killed while it was written.
            with contextlib.suppress(ValueError, KeyError, TypeError):
                entry = json.loads(line)
                run.seconds[entry["name"]] = entry["seconds"]


def written_digests(folder: Path) -> dict[str, str]:
    """Return the digests that the report of a finished run lists: path in its folder -> ``sha256:...``."""
    try:
        digests = read_object(folder / output.REPORT, ("digests",))["digests"]
    except (OSError, ValueError):
        return {}
    return {str(path): str(digest) for path, digest in digests.items()} if isinstance(digests, dict) else {}


def write_report(run: Run, digests: dict[str, str] | None = None) -> None:
    """Write ``report.json``: settings, failures, unused files of the dataset, rejected attempts and every sample.

    Args:
        digests: of the records and of the other files of a finished run, by their path in its folder.

    Raises:
        OutputError: the disk is full or the folder cannot be written to.
    """
    done = [run.done[number] for number in sorted(run.done)]
    draws = [draw["reason"] for record in done for draw in record.get("redrawn", [])]
    output.write_report(
        run.folder,
        model_names(run, done),
        [report_entry(r, run.seconds.get(r["name"])) for r in done if r["status"] == records.DONE and r["levels"]],
        settings=run.plan.settings.to_dict() | {"cases": [case.name for case in run.plan.cases]},
        failures=run.failures(),
        notes=run.notes,
        unused=run.unused,
        redrawn={
            "draws": len(draws),
            "samples": sum(bool(record.get("redrawn")) for record in done),
            "given_up": sum(record["status"] == records.REJECTED for record in done),
            "reasons": {reason: draws.count(reason) for reason in sorted(set(draws))},
        },
        **({} if digests is None else {"digests": digests}),
    )


class ReportKeeper:
    """Keep ``report.json`` up to date, as often as its length allows; only for a run with a single process."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self._written = 0.0
        self._cost = 0.0

    def update(self) -> None:
        """Write the report if it is time to; called after each sample."""
        now = time.monotonic()
        if self.run.process.world > 1 or self._cost > _REPORT_SHARE * (now - self._written):
            return
        write_report(self.run)
        self._written = time.monotonic()
        self._cost = self._written - now


def interrupted(run: Run) -> None:
    """Write the report of an interrupted run, if it can be written and there is anything new."""
    with contextlib.suppress(DRDMError, OSError):
        if run.process.world == 1 and (run.clock.samples or not (run.folder / output.REPORT).exists()):
            _read_records(run)
            read_times(run)
            write_report(run)


def _read_records(run: Run) -> None:
    """Read the records of tasks that this process has not done itself."""
    for task in run.plan.tasks:
        if task.number not in run.done:
            with contextlib.suppress(OutputError):
                record = records.read_record(records.record_path(run.folder, task.name))
                if record["status"] != records.DONE or records.is_whole(record):
                    run.done[task.number] = record


def finalize_run(run: Run) -> bool:
    """Write the report and, if every sample is there, the description of the dataset.

    Returns:
        Whether the run is complete.

    Raises:
        ImageError: no case could be used.
        OutputError: the disk is full or the folder cannot be written to.
    """
    _read_records(run)
    read_times(run)
    write_report(run)
    if not run.complete:
        return False
    done = [run.done[task.number] for task in run.plan.tasks]
    done = [record for record in done if record["status"] == records.DONE]
    if not any(record["levels"] for record in done):
        raise ImageError(f"None of the {len(run.plan.cases)} cases can be used; the first problem: {run.failures()[0]}")
    if run.plan.settings.command == AUGMENT:
        _describe_training_set(run, done)
    else:
        _describe_pairs(run, done)
    if run.plan.settings.quality:
        write_quality_page(run.folder, run.plan, [run.done[task.number] for task in run.plan.samples])
    write_report(run, _digests_of_run(run))
    run_folder.clean_up(run.folder)
    return True


def _digests_of_run(run: Run) -> dict[str, str]:
    """Return the digests of the records and of the files that describe a finished run.

    Raises:
        OutputError: a file cannot be read any more.
    """
    paths = [path for name in DESCRIPTIONS if (path := run.folder / name).is_file()]
    paths += [records.record_path(run.folder, task.name) for task in run.plan.tasks]
    try:
        return {path.relative_to(run.folder).as_posix(): digest_of_files([path]) for path in paths}
    except OSError as error:
        raise OutputError(f"'{error.filename}' cannot be read again ({error.strerror}); check the disk.") from error


def _describe_training_set(run: Run, done: list[dict[str, Any]]) -> None:
    described, labels = run.description["source_description"], run.description["labels"]
    _write_json(run, "dataset.json", nnunet_dataset(run.plan, done, labels, run.label_mapping, described))
    splits = nnunet_splits(run.plan, done)
    if splits:
        _write_json(run, "splits_final.json", splits)


def _describe_pairs(run: Run, done: list[dict[str, Any]]) -> None:
    described = learn2reg_dataset(run.plan, done, run.parts, run.folder.name, run.model)
    if "dimension" in run.description:
        # A 2D model can have made pairs of volumes, slice by slice.
        described["tensorImageSize"] = f"{run.description['dimension']}D"
    _write_json(run, "dataset.json", described)
    _write_json(run, "splits.json", subject_splits(run.plan, done, run.parts))


def _write_json(run: Run, name: str, value: Any) -> None:
    write_text(run.folder / name, to_json(value, indent=2) + "\n")
