"""The command ``drdm serve``: run commands that another program sends, in one process.

Most of the time of a short command is the import of PyTorch. Here it is imported once, and models stay in memory. The
commands run one after the other, by the same code as those of ``drdm``, and make the same files. After ``"yields":
true`` in a request, those that arrive while the figures of its versions are computed are run in between.

Each line of standard input is a request, a JSON object: ``{"id": 1, "arguments": ["deform", "scan.nii.gz", "-o",
"out"], "folder": "/where/paths/start"}``, or ``{"cancel": 1}``. Each line of standard output is an event as of
``--progress json`` with the ``id`` of its request; the last one of a request is ``end``. Before it, a line on standard
error marks the end of what the request has printed there. Everything else that is printed goes to standard error.
"""

from __future__ import annotations

import argparse
import contextlib
import contextvars
import gc
import importlib
import io
import json
import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import _base as futures_base
from concurrent.futures import thread as futures_thread
from contextlib import AbstractContextManager
from dataclasses import dataclass
from types import FrameType
from typing import Any

from .. import runtime
from ..errors import DRDMError, SettingError
from ..io.files import shown
from ..runtime.probe import require_torch
from ..runtime.reporter import END_OF_REQUEST
from . import run_command
from .parser import build_parser
from .progress import JsonReporter
from .standard_input import GRACE_SECONDS, VARIABLE, chunks, interrupt_main_thread, kill_later, take_standard_input

# Commands whose results are files. Trainings take long, and others print their results.
COMMANDS = ("apply", "augment", "deform", "fit", "preview", "synthesize")
_INTERRUPTED = 130
# Waiting is interrupted so often, since on Windows a signal does not end it.
_WAIT_SECONDS = 1.0
# So many commands wait in the middle of their figures at most; each keeps its images in memory.
_MOST_WAITING = 3
# How often such a command is asked to let others pass, until it is at a place where it can.
_NUDGE_SECONDS = 0.01
# Of two signals of its own, the second may come when the handler of the first has already done the work of both.
_LATE_SECONDS = 1.0
# Files whose functions hold locks, except while they only wait, and those that hold them while they wait.
_WITH_LOCKS = {
    *(module.__file__ for module in (threading, futures_base, futures_thread)),
    os.path.join(runtime.__path__[0], "threads.py"),  # noqa: PTH118
}
_ONLY_WAITS = {"wait", "join", "_wait_for_tstate_lock"}
_STARTS_THREADS = {"submit", "_adjust_thread_count", "start", "use_one", "restore"}


@dataclass(frozen=True)
class Request:
    """A line of standard input.

    Attributes:
        id: the name that its sender gave it; part of all its events.
        arguments: those of ``drdm``.
        yields: whether later requests are answered before the figures of this one, if they arrive meanwhile.
        folder: from which relative paths start; empty for that in which the server was started.
        fault: why the line is not a valid request, one sentence; empty if it is.
    """

    id: Any = None
    arguments: tuple[str, ...] = ()
    folder: str = ""
    yields: bool = False
    fault: str = ""


def read_request(line: bytes) -> Request | Any:
    """Read a line: a request, or the ``id`` of the one to cancel in a list of one."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        value = None
    if isinstance(value, dict) and "cancel" in value:
        return [value["cancel"]]
    if not isinstance(value, dict) or isinstance(value.get("id"), (dict, list)) or value.get("id") is None:
        return Request(
            fault='A line of the input is not a request; send JSON such as {"id": 1, "arguments": ["deform", ...]}.'
        )
    arguments, folder = value.get("arguments"), value.get("folder", "")
    if not isinstance(arguments, list) or not arguments or not all(isinstance(one, str) for one in arguments):
        return Request(value["id"], fault="The arguments of a request must be a list of texts; send such a list.")
    if not isinstance(folder, str):
        return Request(value["id"], fault="The folder of a request must be a text; send the path of a folder.")
    return Request(value["id"], tuple(arguments), folder, yields=value.get("yields") is True)


class _ServedReporter(JsonReporter):
    def __init__(self, server: Server, request: Request, write: Callable[[str], None]) -> None:
        super().__init__(write, id=request.id)
        self._server, self._yields = server, request.yields

    def apart(self) -> AbstractContextManager[None]:
        """Answer other requests in the middle of the block, if the request allows it."""
        return self._server.apart() if self._yields else contextlib.nullcontext()


def _may_hold_a_lock(frame: FrameType | None) -> bool:
    """Whether a function in the middle of which a signal has come may hold a lock that other commands need.

    These are the functions that start threads, and the import of a module, which others must not use yet.
    """
    if frame is not None and frame.f_code.co_filename in _WITH_LOCKS and frame.f_code.co_name not in _ONLY_WAITS:
        return True
    while frame is not None:
        code = frame.f_code
        if code.co_filename.startswith("<frozen importlib"):
            return True
        if code.co_filename in _WITH_LOCKS and code.co_name in _STARTS_THREADS:
            return True
        frame = frame.f_back
    return False


class Server:
    """Runs requests in the main thread, while another thread reads them.

    Args:
        output: descriptor for the events.
        stop_at_end: whether the end of standard input stops the running request and drops those that wait; otherwise
            all that were read are finished.
    """

    def __init__(self, output: int, *, stop_at_end: bool) -> None:
        self._output = output
        self._stop_at_end = stop_at_end
        self._start_folder = os.getcwd()  # noqa: PTH109
        self._inbox: queue.SimpleQueue[Request | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._current: Any = None
        self._canceled: set[Any] = set()
        # For the handler of signals: what is to be interrupted, and whether anything may be.
        self._interrupt: Any = None
        self._interruptible = False
        self._interrupted: Any = None
        self._ended = False
        # Whether the running request lets others pass, whether it is asked to, and how many let others pass now.
        self._arrived = threading.Event()
        self._apart = False
        self._nudged = False
        self._waiting = 0
        self._sent = -_LATE_SECONDS

    def run(self, idle_seconds: float | None) -> int:
        """Answer requests until the end of standard input, a signal, or a time without requests."""
        last = time.monotonic()
        while not self._ended:
            try:
                request = self._inbox.get(timeout=_WAIT_SECONDS)
            except queue.Empty:
                if idle_seconds is not None and time.monotonic() - last > idle_seconds:
                    return 0
                continue
            if request is None:
                return 0
            self._answer(request)
            del request
            gc.collect()
            last = time.monotonic()
        return _INTERRUPTED

    def read(self, descriptor: int) -> None:
        """Read requests until the end; runs in a thread of its own."""
        rest = b""
        for chunk in chunks(descriptor):
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                self._take(line)
        self._take(rest)
        if self._stop_at_end:
            self._ended = True
            with self._lock:
                self._interrupt = self._current
                self._signal()
        self._inbox.put(None)
        if self._stop_at_end:
            kill_later(GRACE_SECONDS)

    def nudge(self) -> None:
        """Ask the running request to let those pass that arrive; runs in a thread of its own."""
        while True:
            self._arrived.wait()
            self._arrived.clear()
            while self._apart and not self._inbox.empty():
                self._nudged = True
                self._signal()
                time.sleep(_NUDGE_SECONDS)

    def _take(self, line: bytes) -> None:
        if not line.strip():
            return
        request = read_request(line)
        if isinstance(request, Request):
            self._inbox.put(request)
            self._arrived.set()
            return
        with self._lock, contextlib.suppress(TypeError):
            if self._current is not None and self._current == request[0]:
                self._interrupt = self._current
                self._signal()
            else:
                self._canceled.add(request[0])

    def _signal(self) -> None:
        self._sent = time.monotonic()
        interrupt_main_thread()

    def on_signal(self, number: int, frame: FrameType | None) -> None:
        """Interrupt the running request: because it was canceled, or to end, when the signal comes from outside.

        Or answer others in the middle of it.
        """
        nudged, self._nudged = self._nudged, False
        asked, self._interrupt = self._interrupt, None
        late = number == signal.SIGINT and time.monotonic() - self._sent < _LATE_SECONDS
        if asked is not None or not (nudged or late):
            if asked is None:
                self._ended = True
                self._inbox.put(None)
            if self._interruptible and (self._ended or asked == self._current):
                # Once: another one would disturb the cleanup.
                self._interruptible = False
                raise KeyboardInterrupt
            # Perhaps of the request that is about to start.
            self._interrupted = asked
        if self._apart and not _may_hold_a_lock(frame):
            self._answer_others()

    @contextlib.contextmanager
    def apart(self) -> Iterator[None]:
        """Answer the requests that wait, and those that arrive in the block, in the middle of the running one."""
        self._apart = self._waiting < _MOST_WAITING
        try:
            if self._apart:
                self._answer_others()
            yield
        finally:
            self._apart = False

    def _answer_others(self) -> None:
        """Answer the requests that wait in the middle of the running one, which goes on afterward."""
        if self._inbox.empty():
            return
        current, folder = self._current, os.getcwd()  # noqa: PTH109
        self._apart = False
        self._waiting += 1
        try:
            while not self._ended and (request := self._next()) is not None:
                self._interruptible = False
                # The running request may have changed how NumPy handles errors.
                contextvars.Context().run(self._answer, request)
        finally:
            self._waiting -= 1
            self._interruptible = True
            with contextlib.suppress(OSError):
                os.chdir(folder)
            with self._lock:
                self._current = current
                canceled = current in self._canceled
                self._canceled.discard(current)
            self._apart = True
        if canceled or self._ended:
            self._interruptible = False
            raise KeyboardInterrupt

    def _next(self) -> Request | None:
        """Take a request that waits; ``None`` if there is none."""
        with contextlib.suppress(queue.Empty):
            request = self._inbox.get_nowait()
            if request is None:
                # The end of the requests, which is not for the running one.
                self._inbox.put(None)
            return request
        return None

    def _answer(self, request: Request) -> None:
        reporter = _ServedReporter(self, request, self._write)
        # The end of standard input stops the request when nobody reads the output any more.
        reporter.needs_reader = False
        with self._lock:
            canceled = request.id in self._canceled
            self._canceled.discard(request.id)
            self._current = request.id
        status = _INTERRUPTED if canceled else self._interruptibly(lambda: self._run(request, reporter))
        with self._lock:
            self._current = self._interrupted = None
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        with contextlib.suppress(OSError):
            os.write(2, f"\n{END_OF_REQUEST}{request.id}\n".encode())
        reporter.ended(status)

    def _interruptibly(self, act: Callable[[], int]) -> int:
        try:
            self._interruptible = True
            try:
                if self._ended or self._interrupted == self._current is not None:
                    return _INTERRUPTED
                return act()
            finally:
                self._interruptible = False
        except KeyboardInterrupt:
            return _INTERRUPTED

    def _run(self, request: Request, reporter: JsonReporter) -> int:
        """Run the command of a request, and return its exit status."""
        try:
            if request.fault:
                raise SettingError(request.fault)
            options = parse(request.arguments)
            try:
                os.chdir(request.folder or self._start_folder)
            except OSError as error:
                raise SettingError(
                    f"The folder '{shown(request.folder)}' of the request cannot be used ({error.strerror}); check it."
                ) from error
        except DRDMError as error:
            reporter.failed(str(error))
            return 2
        _forget_files()
        return run_command(options, reporter)

    def _write(self, line: str) -> None:
        data = f"{line}\n".encode()
        while data:
            data = data[os.write(self._output, data) :]


def parse(arguments: tuple[str, ...]) -> argparse.Namespace:
    """Parse the arguments of a request.

    Raises:
        SettingError: they are not valid.
    """
    if arguments[0] not in COMMANDS:
        raise SettingError(
            f"'drdm serve' runs {', '.join(COMMANDS)}, not '{shown(arguments[0])}'; start that command by itself."
        )
    errors = io.StringIO()
    try:
        with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(io.StringIO()):
            options = build_parser().parse_args(arguments)
    except SystemExit as end:
        text = errors.getvalue().strip().removeprefix(f"drdm {arguments[0]}: ")
        raise SettingError(text or "A request cannot ask for help; call 'drdm --help'.") from end
    options.command_line = list(arguments)
    # Some commands print for a reader otherwise.
    options.progress = "json"
    return options


def _forget_files() -> None:
    """Forget what an earlier request has found out about files and devices, which may have changed."""
    with contextlib.suppress(ImportError):
        from ..io.geometry import itk_geometry
        from ..runtime.device import forget_device_tests

        itk_geometry.cache_clear()
        forget_device_tests()


def _import_all() -> None:
    """Import what most commands need; where that fails, each request says why."""
    with contextlib.suppress(Exception):
        require_torch()
        for name in ("batch", "commands"):
            importlib.import_module(f".{name}", __package__)
    # What was imported stays; looking through it after each request would take long.
    gc.collect()
    gc.freeze()


def serve(options: argparse.Namespace) -> int:
    """Run ``drdm serve`` and return its exit status."""
    from ..models.catalogue import keep_models

    stop_at_end = os.environ.pop(VARIABLE, "") == "stop"
    events = os.dup(1)
    # Libraries print on standard output, too.
    os.dup2(2, 1)
    server = Server(events, stop_at_end=stop_at_end)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, server.on_signal)
    threading.Thread(target=server.nudge, name="nudge", daemon=True).start()
    threading.Thread(target=server.read, args=(take_standard_input(),), name="standard input", daemon=True).start()
    keep_models()
    _import_all()
    return server.run(None if options.idle_minutes is None else 60 * options.idle_minutes)
