"""The folder of a run: opened once for one configuration, joined by processes that share the work, resumed, closed."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from filelock import FileLock, Timeout

from .. import output
from ..errors import OutputError, SettingError
from ..io.files import output_error, read_object, write_text
from ..runtime.distributed import ProcessInfo
from .plan import Plan

RUN = "run.json"
_LOCK, _LOCK_OF, _LOCKS = ".drdm.lock", ".drdm-", ".drdm*.lock"
# How the names begin of what a run leaves that is killed before it has begun.
BEGINNINGS = (".drdm", f".{RUN}")

T = TypeVar("T")


def configuration_digest(run: dict[str, Any]) -> str:
    """What tells one configuration from another."""
    return "sha256:" + hashlib.sha256(json.dumps(run, sort_keys=True).encode()).hexdigest()


def read_run(folder: Path) -> dict[str, Any]:
    """``run.json``: settings, cases, model, labels.

    Raises:
        OutputError: it is damaged.
    """
    path = folder / RUN
    try:
        return read_object(path, ("settings", "model", "cases", "software", "device"))
    except (OSError, ValueError) as error:
        raise OutputError(f"'{path}' is damaged, so this run cannot be resumed; name a new folder.") from error


def earlier_run(folder: Path, *, resume: bool) -> dict[str, Any] | None:
    """The run that the folder holds, or nothing if it is empty or not there.

    Raises:
        SettingError: it holds a run and ``resume`` is not asked for.
        OutputError: it holds something else, or a run that cannot be read.
    """
    report = folder / output.REPORT
    if (folder / RUN).is_file():
        if not resume:
            raise output.holds_a_run(folder)
        return read_run(folder)
    if report.is_file():
        if not resume:
            raise output.holds_a_run(folder)
        output.read_report(folder)
        raise OutputError(f"The run in '{folder}' was made by another version and has no '{RUN}'; name a new folder.")
    output.require_empty_folder(folder, besides=BEGINNINGS)
    return None


def require_same(run: dict[str, Any], plan: Plan, device: str, version: str, folder: Path) -> None:
    """Raises SettingError unless a folder's run has these settings, cases, device and software."""
    wanted = plan.settings.to_dict() | {"cases": [case.name for case in plan.cases]}
    written = run["settings"] | {"cases": [case["name"] for case in run["cases"]]}
    wanted |= {"device": device, "version of DRDM": version}
    written |= {"device": run["device"]["type"], "version of DRDM": run["software"]["drdm"]}
    for key, value in wanted.items():
        # Through JSON, as the other has been.
        if json.loads(json.dumps(value)) != written.get(key):
            raise SettingError(
                f"The run in '{folder}' was made with other {key}; repeat its settings, or name a new folder."
            )


@contextlib.contextmanager
def run_lock(folder: Path, *, wait: bool = True) -> Iterator[None]:
    """One process at a time: while a run is opened, and while it is closed.

    Raises:
        SettingError: another one is at it, and is not waited for.
    """
    with _lock(folder, _LOCK, wait=wait):
        yield


@contextlib.contextmanager
def share_of_folder(folder: Path, process: ProcessInfo, opening: Callable[[], T]) -> Iterator[T]:
    """Opens a run and keeps every process out that would do the same work at the same time.

    Args:
        opening: called while no other process opens or closes the run; its result is handed on.

    Raises:
        SettingError: a process is at work on this share, or on a share by another number of processes.
        OutputError: the folder cannot be written to.
    """
    made, there = not folder.exists(), set(folder.glob(_LOCKS))
    with contextlib.ExitStack() as kept:
        try:
            with run_lock(folder, wait=process.world > 1):
                if is_active(folder, besides=process.world):
                    raise _busy(folder)
                kept.enter_context(_lock(folder, f"{_LOCK_OF}{process.rank + 1}-of-{process.world}.lock", wait=False))
                opened = opening()
        except BaseException:
            kept.close()
            _roll_back(folder, made, there)
            raise
        yield opened


def is_active(folder: Path, *, besides: int = 0) -> bool:
    """Whether any process works in the folder, apart from those that share the work among ``besides``."""
    for path in folder.glob(f"{_LOCK_OF}*.lock"):
        if path.stem.rpartition("-")[2] == str(besides):
            continue
        lock = FileLock(path)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            return True
        except (OSError, NotImplementedError):
            continue
        lock.release()
    return False


def _busy(folder: Path) -> SettingError:
    return SettingError(f"Another run is writing into '{folder}' now; wait until it has ended, or stop it.")


def _roll_back(folder: Path, made: bool, there: set[Path]) -> None:
    """A run that could not begin leaves nothing behind."""
    if is_active(folder):
        return
    with contextlib.suppress(OSError):
        for path in set(folder.glob(_LOCKS)) - there:
            path.unlink()
        if made:
            folder.rmdir()


@contextlib.contextmanager
def _lock(folder: Path, name: str, *, wait: bool) -> Iterator[None]:
    path = folder / name
    lock = FileLock(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=-1 if wait else 0)
    except Timeout as error:
        raise _busy(folder) from error
    except OSError as error:
        raise output_error(path, error) from error
    except NotImplementedError:
        # A file system without locks: nothing is guarded there, and nothing else is lost.
        pass
    try:
        yield
    finally:
        lock.release()


def clean_up(folder: Path) -> None:
    """When all is done: what killed processes have left half-written goes, and the locks, unless others still work."""
    if is_active(folder):
        return
    for path in [*folder.glob(_LOCKS), *folder.glob(".*.partial"), *folder.glob("*/.*.partial")]:
        with contextlib.suppress(OSError):
            path.unlink()


def make_folders(folder: Path, names: list[str]) -> None:
    """Make folders within the run's folder.

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
