"""The end of a run: once all samples are there, whoever made them, the dataset is described."""

from __future__ import annotations

import contextlib
import json
from typing import Any

from ..errors import ImageError, OutputError
from ..io.files import write_text
from . import records, run_folder
from .layouts import learn2reg_dataset, nnunet_dataset, nnunet_splits, subject_splits
from .plan import AUGMENT
from .quality import write_quality_page
from .report import read_times, write_report
from .run_state import Run


def close_run(run: Run) -> bool:
    """Describe the result if all of it is there; says whether it is.

    Raises:
        ImageError: no case could be used.
        OutputError: the disk is full.
    """
    for task in run.plan.tasks:
        if task.number not in run.done:
            with contextlib.suppress(OutputError):
                run.done[task.number] = records.read_record(records.record_path(run.folder, task.name))
    read_times(run)
    write_report(run)
    if not run.complete:
        return False
    done = [run.done[task.number] for task in run.plan.tasks]
    done = [record for record in done if record["status"] == records.DONE]
    if not any(record["levels"] for record in done):
        raise ImageError(f"None of the {len(run.plan.cases)} cases can be used; the first: {run.failures()[0]}")
    if run.plan.settings.command == AUGMENT:
        _describe_training_set(run, done)
    else:
        _describe_pairs(run, done)
    if run.plan.settings.quality:
        write_quality_page(run.folder, run.plan, [run.done[task.number] for task in run.plan.samples])
    run_folder.tidy(run.folder)
    return True


def _describe_training_set(run: Run, done: list[dict[str, Any]]) -> None:
    described, labels = run.description["source_description"], run.description["labels"]
    _write_json(run, "dataset.json", nnunet_dataset(run.plan, done, labels, run.becomes, described))
    splits = nnunet_splits(run.plan, done)
    if splits:
        _write_json(run, "splits_final.json", splits)


def _describe_pairs(run: Run, done: list[dict[str, Any]]) -> None:
    _write_json(run, "dataset.json", learn2reg_dataset(run.plan, done, run.parts, run.folder.name, run.model))
    _write_json(run, "splits.json", subject_splits(run.plan, done, run.parts))


def _write_json(run: Run, name: str, value: Any) -> None:
    write_text(run.folder / name, json.dumps(value, indent=2, ensure_ascii=False) + "\n")
