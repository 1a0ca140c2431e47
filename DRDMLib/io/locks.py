"""Locks between processes, also on file systems that have none.

A lock of the operating system ends with its process, however that ends. Some network shares and containers have no such
locks. There a file that is created exclusively is the lock. It names its owner, so that it can be removed when that
process has ended.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import socket
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from ..runtime.processes import is_running
from .files import read_object

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

# What a file system answers that has no locks.
_NO_LOCKS = {errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL}
# And one whose lock another process has.
_TAKEN = {errno.EACCES, errno.EAGAIN, errno.EWOULDBLOCK, errno.EDEADLK}
# Seconds between two attempts; and after which a file without an owner was left by a process that was killed.
_EVERY, _UNFINISHED = 0.1, 10.0
# Suffix of the file that names the owner of a lock.
OWNER = ".owner"
# Namespace of the numbers of processes outside of all containers; this number is the same on all computers.
_NO_CONTAINER = "pid:[4026531836]"


@dataclass(frozen=True)
class Owner:
    """The process that has a lock.

    Attributes:
        host: name of the computer.
        process: number of the process.
        started: when the process was started, as the system counts; empty if unknown.
        since: date and time at which it took the lock.
        alone: whether the file with these values is itself the lock.
        boot: what tells the starts of a computer apart (Linux); empty if unknown.
        container: what tells its containers apart, in which numbers of processes are valid (Linux).
        machine: what tells computers with the same name apart (Linux).
    """

    host: str
    process: int
    started: str = ""
    since: str = ""
    alone: bool = False
    boot: str = ""
    container: str = ""
    machine: str = ""

    @staticmethod
    def this(*, alone: bool) -> Owner:
        """Describe this process."""
        now = time.strftime("%Y-%m-%d %H:%M:%S")
        return Owner(process=os.getpid(), started=_started(os.getpid()), since=now, alone=alone, **_place())

    @staticmethod
    def read(path: Path) -> Owner | None:
        """Read the owner from a file; ``None`` if the file does not exist or is not complete."""
        try:
            values = read_object(path, ("host", "process"))
        except (OSError, ValueError):
            return None
        keys = ("host", "started", "since", "boot", "container", "machine")
        texts = {key: str(values.get(key, ""))[:200] for key in keys}
        if "boot" not in values:
            # Earlier versions wrote all of it into one text.
            parts = [*texts["host"].split(" "), "", ""][:3]
            texts |= dict(zip(("host", "boot", "container"), parts, strict=True))
        process = values["process"]
        if not isinstance(process, int) or isinstance(process, bool) or not 0 < process < 2**31:
            return None
        return Owner(process=process, alone=values.get("alone") is True, **texts)

    @property
    def has_ended(self) -> bool:
        """Whether this process is known to have ended; never for one on another computer."""
        here = _place()
        if (self.host, self.container) != (here["host"], here["container"]):
            return False
        if self.boot != here["boot"]:
            # The computer was started again. Containers are not: those with equal names may run on different computers.
            known = bool(self.boot and self.machine) and self.machine == here["machine"]
            return known and self.container == _NO_CONTAINER
        if not is_running(self.process):
            return True
        return bool(self.started) and _started(self.process) != self.started

    @property
    def is_this(self) -> bool:
        """Whether this is the process that asks."""
        here = _place()
        own = (here["host"], here["boot"], here["container"], os.getpid())
        return (self.host, self.boot, self.container, self.process) == own

    def __str__(self) -> str:
        """Return the words for a message."""
        return f"process {self.process} on {self.host} since {self.since or 'an unknown time'}"


def _place() -> dict[str, str]:
    """Describe this computer, its start and its container."""
    place = {"host": socket.gethostname() or "unknown", "boot": "", "container": "", "machine": ""}
    with contextlib.suppress(OSError):
        place["boot"] = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        place["container"] = str(Path("/proc/self/ns/pid").readlink())
        # Its identity is not to be made public.
        machine = Path("/etc/machine-id").read_bytes().strip()
        place["machine"] = hashlib.sha256(b"drdm" + machine).hexdigest()[:16] if machine else ""
    return place


def _started(process: int) -> str:
    """Return when a process was started (Linux), because numbers of processes are used again; empty if unknown."""
    try:
        # The name of the program, in parentheses, may contain spaces.
        return (
            Path(f"/proc/{process}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[19]
        )
    except (OSError, IndexError):
        return ""


def _lock_file(file: int) -> None:
    """Take the operating system's lock of an open file, or raise OSError."""
    if sys.platform == "win32":
        msvcrt.locking(file, msvcrt.LK_NBLCK, 1)
    else:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


class LockTaken(Exception):
    """Another process has the lock.

    Attributes:
        owner: that process, if it is known.
    """

    def __init__(self, owner: Owner | None) -> None:
        super().__init__(str(owner))
        self.owner = owner


class Lock:
    """A lock between processes, of the operating system or, where there is none, a file.

    Args:
        path: file of the lock. The owner is named in a file beside it, with the suffix ``.owner``.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._owner_path = path, owner_path(path)
        self._file: int | None = None
        self._held = self._named = False

    def acquire(self, *, wait: bool, named: bool = True) -> None:
        """Take the lock.

        Args:
            wait: wait for another process instead of raising an error.
            named: name this process as the owner.

        Raises:
            LockTaken: another process has it, and ``wait`` is false.
            OSError: the file cannot be written.
        """
        self._named = named
        while not self._held:
            try:
                self._take(named)
            except LockTaken:
                if not wait:
                    raise
                time.sleep(_EVERY)

    def _take(self, named: bool) -> None:
        if not self._take_system_lock():
            self._take_file(named)
            return
        try:
            # Another computer may see the same folder without locks.
            self._require_no_owner(alone=True)
            if named:
                with contextlib.suppress(OSError):
                    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | getattr(os, "O_NOFOLLOW", 0)
                    self._write_owner(os.open(self._owner_path, flags, 0o644), alone=False)
        except BaseException:
            self._close()
            raise
        self._held = True

    def _take_system_lock(self) -> bool:
        """Take the lock of the operating system; return whether there is one.

        Raises:
            LockTaken, OSError: as :meth:`acquire`.
        """
        self._file = os.open(self._path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o644)
        try:
            _lock_file(self._file)
            # Another process may have removed the file between these two steps.
            if not os.path.samestat(os.fstat(self._file), self._path.stat()):
                raise LockTaken(None)
        except (OSError, LockTaken) as error:
            self._close()
            if isinstance(error, (LockTaken, FileNotFoundError)) or error.errno in _TAKEN:
                raise LockTaken(Owner.read(self._owner_path)) from error
            if error.errno in _NO_LOCKS:
                return False
            raise
        return True

    def _close(self) -> None:
        """Close the file, which gives the lock of the operating system back."""
        if self._file is not None:
            file, self._file = self._file, None
            os.close(file)

    def _take_file(self, named: bool) -> None:
        self._require_no_owner(alone=False)
        if named:
            try:
                file = os.open(self._owner_path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
            except FileExistsError as error:
                raise LockTaken(Owner.read(self._owner_path)) from error
            self._write_owner(file, alone=True)
        self._held = True

    def _write_owner(self, file: int, *, alone: bool) -> None:
        with os.fdopen(file, "w", encoding="utf-8") as stream:
            json.dump(asdict(Owner.this(alone=alone)), stream)

    def _require_no_owner(self, *, alone: bool) -> None:
        """Raise :class:`LockTaken` if the file names a process that may still run; remove the file of one that ended.

        Args:
            alone: consider only files that are locks themselves.
        """
        owner = Owner.read(self._owner_path)
        if owner is None:
            try:
                age = time.time() - self._owner_path.stat().st_mtime
            except FileNotFoundError:
                return
            if alone:
                return
            if age < _UNFINISHED:
                raise LockTaken(None)
        elif alone and not owner.alone:
            return
        elif not owner.has_ended:
            raise LockTaken(owner)
        # Renamed first: of two processes that find it, one takes it away, and nobody removes the file of a new owner.
        gone = self._owner_path.with_name(f"{self._owner_path.name}.{os.getpid()}")
        with contextlib.suppress(FileNotFoundError):
            self._owner_path.rename(gone)
            if Owner.read(gone) != owner:
                with contextlib.suppress(FileExistsError, OSError):
                    os.link(gone, self._owner_path)
            gone.unlink(missing_ok=True)

    def release(self) -> None:
        """Give the lock back."""
        if not self._held:
            return
        self._held = False
        if self._named:
            with contextlib.suppress(OSError):
                owner = Owner.read(self._owner_path)
                if owner is not None and owner.is_this:
                    self._owner_path.unlink()
        self._close()


def owner_path(path: Path) -> Path:
    """Return the file that names the owner of a lock."""
    return path.with_suffix(OWNER)


def is_taken(path: Path) -> bool:
    """Whether another lock on this file is held, in this process or another one."""
    lock = Lock(path)
    try:
        lock.acquire(wait=False, named=False)
    except LockTaken:
        return True
    except OSError:
        return False
    lock.release()
    return False
