"""The folder of a run: its configuration, and locks for the processes that share its work."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from .. import output
from ..errors import DRDMError, OutputError, SettingError
from ..io.files import output_error, read_object, require_no_links_out, write_text
from ..io.locks import OWNER, Lock, LockTaken, Owner, is_taken
from ..io.schema import wrong_key
from ..runtime.distributed import ProcessInfo
from ..training.adaptation import STATE
from ..training.run_file import RUN_FILE
from . import records, schemas
from .plan import Plan

RUN = "run.json"
ADAPTED = "adapted"
_LOCK, _LOCK_OF = ".drdm.lock", ".drdm-"
_LOCKS = (".drdm*.lock", f".drdm*{OWNER}", f".drdm*{OWNER}.*")
# Prefixes of the files that a run leaves if it is killed while it starts.
BEGINNINGS = (".drdm", f".{RUN}", f".{RUN_FILE}")

T = TypeVar("T")


def configuration_digest(run: dict[str, Any]) -> str:
    """Return a digest of a configuration."""
    return "sha256:" + hashlib.sha256(json.dumps(run, sort_keys=True).encode()).hexdigest()


def read_run(folder: Path) -> dict[str, Any]:
    """Read ``run.json``: settings, cases, model, labels.

    Raises:
        OutputError: the file is damaged.
    """
    path = folder / RUN
    try:
        run = read_object(path, tuple(schemas.RUN_NEEDED))
        wrong = wrong_key(run, schemas.RUN_NEEDED, schemas.RUN)
        if wrong is not None:
            raise ValueError(f"'{wrong}' is not valid.")
        return run
    except (OSError, ValueError) as error:
        raise OutputError(f"'{path}' is damaged, so this run cannot be resumed; choose a new folder.") from error


def is_damaged(folder: Path) -> bool:
    """Whether a folder has a ``run.json`` that cannot be read, such as one that a power cut has emptied."""
    if not (folder / RUN).is_file():
        return False
    try:
        read_run(folder)
    except OutputError:
        return True
    return False


def require_same_configuration(run: dict[str, Any], folder: Path) -> None:
    """Require that the samples in a folder were made with a configuration, when ``run.json`` cannot say so any more.

    Args:
        run: the new content of ``run.json``.

    Raises:
        SettingError: one of them was made with another one.
    """
    digest = configuration_digest(run)
    for path in sorted((folder / records.RECORDS).glob("*.json")):
        with contextlib.suppress(OutputError):
            if records.read_record(path).get("configuration") != digest:
                raise SettingError(
                    f"'{folder / RUN}' is damaged, and '{path.stem}' was made with other settings, images, models or "
                    "software; use the same ones again, or choose a new folder."
                )


def earlier_run(folder: Path, *, resume: bool) -> dict[str, Any] | None:
    """Read the run in a folder.

    Returns:
        The content of ``run.json``, or ``None`` if the folder is empty or does not exist, or the file is damaged.

    Raises:
        SettingError: the folder has a run and ``resume`` is false.
        OutputError: the folder has other files, the run of an old version, or links that lead out of it.
    """
    report = folder / output.REPORT
    if (folder / RUN).is_file():
        if not resume:
            raise output.holds_a_run(folder)
        require_no_links_out(folder)
        return None if is_damaged(folder) else read_run(folder)
    if report.is_file():
        if not resume:
            raise output.holds_a_run(folder)
        output.read_report(folder)
        raise OutputError(f"The run in '{folder}' was made by another version and has no '{RUN}'; choose a new folder.")
    if not resume and (folder / ADAPTED / STATE).is_file():
        raise output.holds_a_run(folder)
    output.require_empty_folder(folder, besides=beginnings(folder))
    require_no_links_out(folder)
    return None


def beginnings(folder: Path) -> tuple[str, ...]:
    """Return the prefixes of files that a run leaves if it is stopped before ``run.json`` is written."""
    return (*BEGINNINGS, ADAPTED) if (folder / ADAPTED / STATE).is_file() else BEGINNINGS


def require_same(run: dict[str, Any], plan: Plan, device: str, version: str, folder: Path) -> None:
    """Check that the run in a folder has these settings, cases, device and version.

    Args:
        run: content of ``run.json``.

    Raises:
        SettingError: one of them differs.
    """
    wanted = plan.settings.to_dict() | {"cases": [case.name for case in plan.cases]}
    written = run["settings"] | {"cases": [case["name"] for case in run["cases"]]}
    wanted |= {"device": device, "version of DRDM": version}
    written |= {"device": run["device"]["type"], "version of DRDM": run["software"]["drdm"]}
    # Settings that are left out by default may be in one of them only. What versions go toward comes first: the cases
    # depend on it.
    for key in dict.fromkeys(["toward", *wanted, *written]):
        # Converted to JSON and back, as the written value was.
        if json.loads(json.dumps(wanted.get(key))) != written.get(key):
            name = "scans to go toward" if key == "toward" else key.replace("_", " ")
            raise SettingError(
                f"The run in '{folder}' was made with other {name}; use the same settings, or choose a new folder."
            )


@contextlib.contextmanager
def run_lock(folder: Path, *, wait: bool = True) -> Iterator[None]:
    """Let one process at a time prepare or finalize a run.

    Args:
        wait: wait for another process instead of raising an error.

    Raises:
        SettingError: another process has the lock, and ``wait`` is false.
        OutputError: the folder cannot be written to.
    """
    with _lock(folder, _LOCK, wait=wait):
        yield


@contextlib.contextmanager
def share_of_folder(folder: Path, process: ProcessInfo, opening: Callable[[], T]) -> Iterator[T]:
    """Prepare a run, and lock this process's share of it while the block runs.

    Args:
        opening: prepares the run, while no other process prepares or finalizes it; the block receives its result.

    Raises:
        SettingError: another process works on this share, or on a share of another number of processes.
        OutputError: the folder cannot be written to.
    """
    made, there, entered = not folder.exists(), _locks(folder), False
    with contextlib.ExitStack() as kept:
        try:
            with run_lock(folder, wait=process.world > 1):
                entered = True
                if is_active(folder, besides=process.world):
                    raise _busy(folder)
                kept.enter_context(_lock(folder, f"{_LOCK_OF}{process.rank + 1}-of-{process.world}.lock", wait=False))
                opened = opening()
        except BaseException:
            kept.close()
            # Without the lock, nothing of the folder belongs to this process.
            if entered:
                _roll_back(folder, made, there)
            raise
        yield opened


@contextlib.contextmanager
def locked_folder(folder: Path, *, new: bool = True) -> Iterator[Path]:
    """Keep other runs out of the folder of a run without ``run.json`` while the block runs.

    Args:
        new: create the folder unless it exists, and require that it is empty.

    Raises:
        SettingError: another process writes into the folder.
        OutputError: the folder is not empty, or cannot be written to.
    """
    require_inactive(folder)
    if new:
        # Checked first, so that a lock is never placed in a folder of something else.
        output.require_empty_folder(folder, besides=BEGINNINGS)

    def opening() -> Path:
        return output.make_output_folder(folder, besides=BEGINNINGS) if new else folder

    locked = False
    try:
        with share_of_folder(folder, ProcessInfo(), opening) as opened:
            locked = True
            yield opened
    finally:
        if locked and folder.is_dir():
            with contextlib.suppress(DRDMError), run_lock(folder):
                clean_up(folder)


def require_inactive(folder: Path) -> None:
    """Require that no other process writes into a folder.

    Raises:
        SettingError: another process does.
    """
    if is_active(folder):
        raise _busy(folder)


def is_active(folder: Path, *, besides: int = 0) -> bool:
    """Return whether any process works in the folder, apart from those that share the work of ``besides`` processes."""
    # Without locks of the operating system there may be files of owners only.
    found = {path.with_suffix(".lock") for path in _locks(folder) if path.name.startswith(_LOCK_OF)}
    return any(is_taken(path) for path in found if path.stem.rpartition("-")[2] != str(besides))


def _locks(folder: Path) -> set[Path]:
    """Return the files of all locks in a folder."""
    return {path for pattern in _LOCKS for path in folder.glob(pattern)}


def _busy(folder: Path, owner: Owner | None = None) -> SettingError:
    named = [Owner.read(path) for path in sorted(folder.glob(f"{_LOCK_OF}*{OWNER}"))]
    owner = owner or next((one for one in named if one is not None and not one.has_ended), None)
    known = "" if owner is None else f" ({owner})"
    return SettingError(f"Another run is writing into '{folder}' now{known}; wait until it ends, or stop it.")


def _roll_back(folder: Path, made: bool, there: set[Path]) -> None:
    """Remove the files of a run that could not start."""
    if is_active(folder):
        return
    with contextlib.suppress(OSError):
        for path in _locks(folder) - there:
            path.unlink(missing_ok=True)
        if made:
            folder.rmdir()


@contextlib.contextmanager
def _lock(folder: Path, name: str, *, wait: bool) -> Iterator[None]:
    path = folder / name
    lock = Lock(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire(wait=wait)
    except LockTaken as error:
        raise _busy(folder, error.owner) from error
    except OSError as error:
        raise output_error(path, error) from error
    try:
        yield
    finally:
        lock.release()


def clean_up(folder: Path) -> None:
    """Remove locks and the incomplete files of killed processes, unless another process still works in the folder."""
    if is_active(folder):
        return
    for path in [
        *_locks(folder),
        *folder.glob(".*.partial"),
        *folder.glob("*/.*.partial"),
        *folder.glob("*/.*.partial.*"),
    ]:
        with contextlib.suppress(OSError):
            path.unlink()


def make_folders(folder: Path, names: list[str]) -> None:
    """Make folders inside the run's folder.

    Raises:
        OutputError: they cannot be made.
    """
    for name in names:
        try:
            (folder / name).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise output_error(folder / name, error) from error


def write_run(folder: Path, run: dict[str, Any]) -> None:
    """Write ``run.json``."""
    write_text(folder / RUN, json.dumps(run, indent=1, ensure_ascii=False) + "\n")
