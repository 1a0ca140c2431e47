"""The folder of a run: opened once for one configuration, joined by processes that share the work, resumed, closed."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from .. import output
from ..distributed import Place
from ..errors import OutputError, SettingError
from ..files import output_error, write_text
from .plan import Plan

RUN = "run.json"
_LOCK = ".drdm.lock"


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
        run: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        run["settings"], run["model"], run["cases"], run["software"], run["device"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise OutputError(f"'{path}' is damaged, so this run cannot be resumed; name a new folder.") from error
    return run


def earlier_run(folder: Path, *, resume: bool) -> dict[str, Any] | None:
    """The run that the folder holds, or nothing if it is empty or not there.

    Raises:
        SettingError: it holds a run and ``resume`` is not asked for.
        OutputError: it holds something else, or a run that cannot be read.
    """
    report = folder / output.REPORT
    if (folder / RUN).is_file():
        if not resume:
            raise SettingError(f"'{folder}' holds a run already; add --resume to go on, or name a new folder.")
        return read_run(folder)
    if report.is_file():
        if not resume:
            raise SettingError(f"'{folder}' holds a run already; add --resume to go on, or name a new folder.")
        output.read_report(folder)
        raise OutputError(f"The run in '{folder}' was made by another version and has no '{RUN}'; name a new folder.")
    # A run that was killed before it had begun has left a lock and nothing else.
    output.check_folder(folder, besides=(".drdm",))
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
def opening(folder: Path, place: Place) -> Iterator[None]:
    """One process at a time, where several work together."""
    if place.world == 1:
        yield
        return
    with _lock(folder, _LOCK, wait=True):
        yield


@contextlib.contextmanager
def holding(folder: Path, place: Place) -> Iterator[None]:
    """Keeps a second process from doing the same share at the same time.

    Raises:
        SettingError: one is at work.
    """
    with _lock(folder, f".drdm-{place.rank + 1}-of-{place.world}.lock", wait=False):
        yield


@contextlib.contextmanager
def _lock(folder: Path, name: str, *, wait: bool) -> Iterator[None]:
    path = folder / name
    lock = FileLock(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=-1 if wait else 0)
    except Timeout as error:
        raise SettingError(f"Another run is writing into '{folder}' now; wait until it has ended, or stop it.") from (
            error
        )
    except OSError as error:
        raise output_error(path, error) from error
    except NotImplementedError:
        # A file system without locks: nothing is guarded there, and nothing else is lost.
        pass
    try:
        yield
    finally:
        lock.release()


def remove_locks(folder: Path) -> None:
    """When all is done."""
    for path in folder.glob(".drdm*.lock"):
        with contextlib.suppress(OSError):
            path.unlink()


def write_run(folder: Path, run: dict[str, Any]) -> None:
    """Write ``run.json``."""
    write_text(folder / RUN, json.dumps(run, indent=1, ensure_ascii=False) + "\n")
