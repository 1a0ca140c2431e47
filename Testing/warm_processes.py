"""Processes of ``drdm`` that need not import PyTorch: they are forked from a server that has imported it.

Importing everything takes some four seconds of CPU time. On Linux, each process of tests keeps one server. A process
forked from it has its own arguments, environment, folder, standard streams, session and exit status, as one that
Python starts. At its end it waits for its threads and calls what is registered with ``atexit``, but does not delete
its objects one by one. Where the start or the end itself is tested, use ``subprocess``.

The server forks a process for each connection to its socket, answers with the number of the process and, when it has
ended, with its exit status. It kills the process when the connection is closed, and ends with the process of tests.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import gc
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import types
from pathlib import Path
from typing import Any, NoReturn

REPOSITORY = Path(__file__).resolve().parents[1]
START = REPOSITORY / "DRDMLib" / "start.py"
AVAILABLE = sys.platform == "linux"
# As CTK's launcher: the real Python is a child that gets no signals, and a crash becomes status 1.
LAUNCHER = """#!/bin/sh
if [ -n "$DRDM_WARM_PROCESSES" ] && [ "$1" = "{start}" ] && [ "$2" != "{cold}" ]; then
    shift
    exec "{python}" -I -S "{warm}" launch "$DRDM_WARM_PROCESSES" "$@"
fi
"{python}" "$@"
status=$?
if [ $status -gt 128 ]; then
    echo "[{python}] exit abnormally - Report the problem." >&2
    status=1
fi
exit $status
"""
_LENGTH = 8


def environment() -> dict[str, str]:
    """The environment of this process, with which another one finds DRDM in this source tree."""
    return os.environ | {"PYTHONPATH": str(REPOSITORY), "PYTHONDONTWRITEBYTECODE": "1", "PYTHONIOENCODING": "utf-8"}


@functools.cache
def server_name() -> str:
    """Start the server of this process, and return the name of its socket, without the zero before it."""
    name = f"drdm-tests-{os.getpid()}-{os.urandom(6).hex()}"
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(f"\0{name}")
    listener.listen()
    # The server ends when this process closes its end, however that happens.
    ours, theirs = socket.socketpair()
    more = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1", "PYTHONSAFEPATH": "1"}
    server = subprocess.Popen(
        [sys.executable, __file__, str(listener.fileno()), str(theirs.fileno())],
        pass_fds=[listener.fileno(), theirs.fileno()],
        stdin=subprocess.DEVNULL,
        env=environment() | more | {"PYTHONFAULTHANDLER": "1"},
        start_new_session=True,
    )
    listener.close()
    theirs.close()

    def end() -> None:
        ours.close()
        server.wait()

    atexit.register(end)
    return name


def ask(name: str, request: dict[str, Any], descriptors: list[int]) -> tuple[socket.socket, int]:
    """Have the server fork a process; return the connection to it and the number of the process."""
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(f"\0{name}")
    text = json.dumps(request).encode()
    socket.send_fds(connection, [len(text).to_bytes(_LENGTH, "little")], descriptors)
    connection.sendall(text)
    return connection, answer(connection)


def answer(connection: socket.socket) -> int:
    """The next number from the server: that of the process, then its exit status."""
    data = connection.recv(_LENGTH, socket.MSG_WAITALL)
    if len(data) < _LENGTH:
        raise RuntimeError("the server of processes has ended")
    return int.from_bytes(data, "little", signed=True)


def write_launcher(folder: Path, start: Path = START, cold: str = "DRDMLib.probe") -> dict[str, str]:
    """Write an imitation of PythonSlicer; return the environment variables with which it is found and used.

    On Linux, DRDM then runs in processes that need not import PyTorch, unless ``DRDM_WARM_PROCESSES`` is removed.

    Args:
        folder: gets the launcher.
        start: runs of this script come from the server.
        cold: this module always starts anew: the probe says whether PyTorch can be imported.
    """
    script = folder / "PythonSlicer"
    script.write_text(LAUNCHER.format(python=sys.executable, start=start, cold=cold, warm=__file__), encoding="utf-8")
    script.chmod(0o755)
    path = {"PATH": os.pathsep.join([str(folder), os.environ["PATH"]])}
    return path | ({"DRDM_WARM_PROCESSES": server_name()} if AVAILABLE else {})


class WarmProcess:
    """A process of ``drdm``, or of other Python code, that was forked from the server.

    Args:
        arguments: those of the program.
        code: runs instead of ``drdm``.
        env: environment variables; by default those of ``environment()``.
        stdin: whether the process gets a pipe as its standard input; otherwise that has only the text ``given``.

    Attributes:
        pid: number of the process, and of its session.
        stdout: what it prints, a stream of text.
        stdin: the pipe, or None.
        returncode: the exit status, negative after a signal, or None while ``wait()`` was not called.
    """

    def __init__(
        self,
        *arguments: Any,
        code: str | None = None,
        env: dict[str, str] | None = None,
        stdin: bool = False,
        given: str | None = None,
    ) -> None:
        self.returncode: int | None = None
        self._printed: tuple[str, str] | None = None
        output, their_output = os.pipe()
        errors, their_errors = os.pipe()
        their_input, ours = os.pipe() if stdin else (_descriptor_of(given or ""), None)
        all_arguments = [*([] if code else ["DRDMLib"]), *map(str, arguments)]
        request = _request(all_arguments, code, environment() if env is None else env)
        descriptors = [their_input, their_output, their_errors]
        self._connection, self.pid = ask(server_name(), request, descriptors)
        for descriptor in descriptors:
            os.close(descriptor)
        # A process that writes much to both streams must not wait for a reader.
        self._errors: list[str] = []
        self._reader = threading.Thread(target=self._read, args=(errors,), daemon=True)
        self._reader.start()
        self.stdout = os.fdopen(output, encoding="utf-8", errors="replace")
        self.stdin = None if ours is None else os.fdopen(ours, "w", encoding="utf-8")

    def _read(self, descriptor: int) -> None:
        with os.fdopen(descriptor, encoding="utf-8", errors="replace") as stream:
            self._errors.append(stream.read())

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def kill(self) -> None:
        """Kill the process and all that it has started in its session."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)

    def wait(self) -> int:
        """Wait for the end of the process and return its exit status."""
        if self.returncode is None:
            self.returncode = answer(self._connection)
            self._connection.close()
        return self.returncode

    def communicate(self, timeout: float = 600) -> tuple[str, str]:
        """Close its standard input, wait for its end, and return what it has printed on its output and as errors."""
        if self._printed is not None:
            return self._printed
        late = False

        def give_up(*_: Any) -> None:
            nonlocal late
            late = True
            self.kill()

        before = signal.signal(signal.SIGALRM, give_up)
        signal.setitimer(signal.ITIMER_REAL, timeout)
        try:
            if self.stdin is not None:
                self.stdin.close()
            output = self.stdout.read()
            self.stdout.close()
            self.wait()
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
        self._reader.join()
        self._printed = output, "".join(self._errors)
        if late:
            raise subprocess.TimeoutExpired("drdm", timeout, *self._printed)
        return self._printed


def _request(arguments: list[str], code: str | None, env: dict[str, str]) -> dict[str, Any]:
    """Describe a process; it gets the folder and the limit on the size of files of this one."""
    import resource

    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    return {"arguments": arguments, "code": code, "env": env, "folder": str(Path.cwd()), "file_size": limit}


def _descriptor_of(text: str) -> int:
    """A descriptor from which a text can be read."""
    with tempfile.TemporaryFile("w+", encoding="utf-8") as file:
        file.write(text)
        file.seek(0)
        return os.dup(file.fileno())


def _serve(listener: socket.socket, life: socket.socket) -> dict[str, Any]:
    """Fork a process for each connection; return, in that process, with what it has to do."""
    processes: dict[socket.socket, int] = {}
    alarm, ring = os.pipe()
    os.set_blocking(ring, False)
    os.set_blocking(alarm, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(ring)
    while True:
        ready = select.select([listener, life, alarm, *processes], [], [])[0]
        for connection in [c for c in processes if c in ready]:
            # Its other end was closed, for nothing else is ever sent.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(processes[connection], signal.SIGKILL)
            os.waitpid(processes.pop(connection), 0)
            connection.close()
        if life in ready:
            for pid in processes.values():
                os.killpg(pid, signal.SIGKILL)
            os._exit(0)
        if alarm in ready:
            os.read(alarm, 1000)
        for connection, pid in list(processes.items()):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                del processes[connection]
                with contextlib.suppress(OSError):
                    connection.sendall(os.waitstatus_to_exitcode(status).to_bytes(_LENGTH, "little", signed=True))
                connection.close()
        if listener in ready:
            connection = listener.accept()[0]
            length, descriptors, _, _ = socket.recv_fds(connection, _LENGTH, 3)
            request = json.loads(connection.recv(int.from_bytes(length, "little"), socket.MSG_WAITALL))
            pid = os.fork()
            if pid == 0:
                os.setsid()
                connection.sendall(os.getpid().to_bytes(_LENGTH, "little", signed=True))
                signal.set_wakeup_fd(-1)
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                for open_one in (listener, life, connection, *processes):
                    open_one.close()
                os.close(alarm)
                os.close(ring)
                for number, descriptor in enumerate(descriptors):
                    os.dup2(descriptor, number)
                    os.close(descriptor)
                return request
            for descriptor in descriptors:
                os.close(descriptor)
            processes[connection] = pid


def _become(request: dict[str, Any]) -> None:
    """Turn this process into the one that was asked for, run it, and end it."""
    import resource

    # A shell may start its children with Ctrl-C ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.clear()
    os.environ.update(request["env"])
    os.chdir(request["folder"])
    resource.setrlimit(resource.RLIMIT_FSIZE, request["file_size"])
    code, arguments = request["code"], request["arguments"]
    if code is None:
        sys.argv = [str(START), *arguments]
        code = START.read_text(encoding="utf-8")
    else:
        sys.argv = ["-c", *arguments]
    main = sys.modules["__main__"] = types.ModuleType("__main__")
    status: Any = None
    try:
        exec(compile(code, sys.argv[0], "exec"), main.__dict__)
    except SystemExit as ended:
        status = ended.code
    _end(status)


def _end(status: Any) -> NoReturn:
    """End this process as Python does after ``sys.exit(status)``, but without deleting all objects one by one.

    With all that was imported that takes more than two seconds: the memory of the server must first be copied.
    """
    if status is not None and not isinstance(status, int):
        print(status, file=sys.stderr)
        status = 1
    # Waits for threads, as the end of Python does.
    threading._shutdown()
    atexit._run_exitfuncs()
    try:
        sys.stdout.flush()
    except OSError:
        status = 120
    with contextlib.suppress(OSError):
        sys.stderr.flush()
    os._exit((status or 0) & 255)


def launch(name: str, arguments: list[str]) -> int:
    """Be PythonSlicer, CTK's launcher: the process gets these streams, and its crash becomes status 1."""
    status = answer(ask(name, _request(arguments, None, dict(os.environ)), [0, 1, 2])[0])
    if status < 0:
        print(f"[{sys.executable}] exit abnormally - Report the problem.", file=sys.stderr)
        return 1
    return status


if __name__ == "__main__":
    if sys.argv[1] == "launch":
        sys.exit(launch(sys.argv[2], sys.argv[3:]))

    import DRDMLib.cli.batch
    import DRDMLib.cli.commands
    import DRDMLib.cli.train  # noqa: F401

    with contextlib.suppress(ImportError):
        import matplotlib.pyplot  # noqa: F401
    with contextlib.suppress(ImportError):
        import torch.utils.tensorboard
    # PyTorch imports it with the first optimizer.
    import torch._dynamo  # noqa: F401

    # The garbage collector of a process leaves the server's objects alone, so that their memory need not be copied.
    gc.collect()
    gc.freeze()
    _become(_serve(*(socket.socket(fileno=int(number)) for number in sys.argv[1:])))
