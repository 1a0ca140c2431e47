"""Check that the files of a finished run are as they were written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from .. import output
from ..errors import OutputError
from ..io.datasets import Case
from ..io.files import digest_of_files, file_name, read_object, require_no_links_out
from . import records, run_folder, schemas
from .plan import AUGMENT, RunSettings, make_plan
from .report import report_entry

_OTHER = "has other content than when it was written"


def verify(folder: Path, on_sample: Callable[[int, int], None] = lambda done, total: None) -> list[str]:
    """Check every file of a finished run of ``augment`` or ``synthesize``; nothing is changed.

    Samples, their records, the description of the dataset, the quality page and an adapted model are compared with
    their digests, and the report with the records. Files that do not belong to the run are not looked at.

    Args:
        folder: folder of the run.
        on_sample: called with (done, total) after each sample.

    Returns:
        One sentence for each file that is missing or not as it was written.

    Raises:
        OutputError: the folder has no run, or a run that is not finished, or links that lead out of it.
        SettingError: another process is working on the run.
    """
    if not (folder / run_folder.RUN).is_file():
        raise OutputError(f"'{folder}' is not the folder of a run of augment or synthesize; choose one.")
    require_no_links_out(folder)
    run_folder.require_inactive(folder)
    damaged = []
    try:
        run = run_folder.read_run(folder)
        names = _names(run)
    except (OutputError, ValueError):
        # Without the plan of the run, its records say which samples there are.
        run, names = None, sorted(path.stem for path in (folder / records.RECORDS).glob("*.json"))
        damaged.append(_sentence(folder, run_folder.RUN, "is damaged"))
    report = _report(folder)
    listed = report.get("digests")
    digests: dict[str, Any] = listed if isinstance(listed, dict) else {}
    done: list[dict[str, Any]] = []
    missing: list[str] = []
    for number, name in enumerate(names, start=1):
        path = records.record_path(folder, name)
        relative = path.relative_to(folder).as_posix()
        if not path.is_file() and relative not in digests:
            missing.append(relative)
        else:
            found = _check_sample(folder, path, run, digests.get(relative), done)
            damaged += [_sentence(folder, file, how) for file, how in found.items()]
        on_sample(number, len(names))
    if missing and not digests and (report or not (folder / output.REPORT).exists()):
        raise OutputError(
            f"The run in '{folder}' is not finished ({len(missing)} of {len(names)} samples are missing); continue it "
            "with --resume."
        )
    damaged += [_sentence(folder, name, "is missing") for name in missing]
    found = _check_descriptions(folder, run, digests, done, report)
    return damaged + [_sentence(folder, file, how) for file, how in found.items()]


def _sentence(folder: Path, file: str, how: str) -> str:
    return f"'{folder / file}' {how}."


def _names(run: dict[str, Any]) -> list[str]:
    """Return the names of all samples of a run.

    Raises:
        ValueError: a case has a name that no file can have.
    """
    settings = run["settings"]
    if any(file_name(one["name"]) != one["name"] for one in run["cases"]):
        raise ValueError("the name of a case is not valid")
    levels = tuple((one,) if settings["command"] == AUGMENT else tuple(one) for one in settings["levels"])
    plan = make_plan(
        RunSettings(settings["command"], levels, copies=settings["copies"]),
        [Case(case["name"], Path()) for case in run["cases"]],
    )
    return [task.name for task in plan.tasks]


def _report(folder: Path) -> dict[str, Any]:
    try:
        return read_object(folder / output.REPORT, ("items", "model"))
    except (OSError, ValueError):
        return {}


def _check_sample(
    folder: Path, path: Path, run: dict[str, Any] | None, digest: Any, done: list[dict[str, Any]]
) -> dict[str, str]:
    """Check the record and the files of a sample; a record of a sample that was made is added to ``done``.

    Returns:
        Path in the run's folder -> how it differs.
    """
    name = path.relative_to(folder).as_posix()
    if not path.is_file():
        return {name: "is missing"}
    try:
        record = records.read_record(path)
        if record["status"] != records.DONE:
            return {} if digest in (None, digest_of_files([path])) else {name: _OTHER}
        files = records.files_of(folder, record)
        if files is None or not records.is_whole(record):
            return {name: "is damaged"}
        changed = records.changed_files(folder, record)
        done.append(record)
        if digest is not None and digest_of_files([path]) != digest:
            return {name: _OTHER} | changed
        if run is not None and record.get("configuration") != run_folder.configuration_digest(run):
            return {name: "belongs to a run with another configuration"} | changed
        return changed
    except (OutputError, TypeError):
        return {name: "is damaged"}
    except OSError as error:
        return {name: f"cannot be read ({error.strerror})"}


def _check_descriptions(
    folder: Path,
    run: dict[str, Any] | None,
    digests: dict[str, Any],
    done: list[dict[str, Any]],
    report: dict[str, Any],
) -> dict[str, str]:
    """Check the files of a run besides its samples."""
    found: dict[str, str] = {}
    for name, digest in digests.items():
        # Records have been checked.
        if name.startswith(f"{records.RECORDS}/") or not schemas.is_inside(name):
            continue
        if name == run_folder.RUN and run is None:
            continue
        found |= _compare(folder, name, digest)
    if "dataset.json" not in digests:
        # The run is of an older version, or its report is damaged.
        found |= _readable(folder, "dataset.json")
    if not report:
        found[output.REPORT] = "is damaged" if (folder / output.REPORT).exists() else "is missing"
    elif not _agrees(report, done):
        found[output.REPORT] = "does not list the samples of the records"
    entry = run["model"] if run is not None else {}
    if isinstance(entry, dict) and isinstance(entry.get("file"), str) and schemas.is_inside(entry["file"]):
        found |= _compare(folder, entry["file"], entry.get("digest"))
    return found


def _compare(folder: Path, name: str, digest: Any) -> dict[str, str]:
    path = folder / name
    if not path.is_file():
        return {name: "is missing"}
    try:
        return {} if digest_of_files([path]) == digest else {name: _OTHER}
    except OSError as error:
        return {name: f"cannot be read ({error.strerror})"}


def _readable(folder: Path, name: str) -> dict[str, str]:
    if not (folder / name).is_file():
        return {name: "is missing"}
    try:
        read_object(folder / name)
    except (OSError, ValueError):
        return {name: "is damaged"}
    return {}


def _agrees(report: dict[str, Any], done: list[dict[str, Any]]) -> bool:
    """Whether the samples of a report are those of the records, with the same figures."""
    try:
        expected = [report_entry(record, None) for record in done if record["levels"]]
        items = [{**item, "seconds": None} for item in report["items"]]
        # Without the plan, the records are in the order of their names.
        return sorted(items, key=_name) == sorted(expected, key=_name)
    except (KeyError, TypeError):
        return False


def _name(item: dict[str, Any]) -> str:
    return str(item["name"])
