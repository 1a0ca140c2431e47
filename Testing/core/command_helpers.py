"""Small images, and the ``drdm`` command as a process, for the tests of the command line."""

import json
import re
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from support import smooth_image
from warm_processes import AVAILABLE, WarmProcess, environment

REPOSITORY = Path(__file__).resolve().parents[2]


def scene(size=(26, 22, 18), pixel=sitk.sitkInt16):
    """A small 2D or 3D image with structure everywhere and anisotropic voxels."""
    return smooth_image(size, (1.0, 1.2, 2.0)[: len(size)], pixel=pixel)


def boxes(image):
    """A label map on the grid of ``image``: 1 in the middle, 3 near one corner, 0 elsewhere."""
    array = np.zeros(image.GetSize()[::-1], np.uint8)
    array[tuple(slice(n // 3, 2 * n // 3) for n in array.shape)] = 1
    array[tuple(slice(1, n // 4) for n in array.shape)] = 3
    label = sitk.GetImageFromArray(array)
    label.CopyInformation(image)
    return label


def write(image, path):
    """Write an image and make its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(image, str(path))
    return path


def array_of(path):
    return sitk.GetArrayFromImage(sitk.ReadImage(str(path)))


def snapshot(folder):
    """All content of a folder: path -> bytes, or None for a folder."""
    return {p.relative_to(folder): p.read_bytes() if p.is_file() else None for p in sorted(folder.rglob("*"))}


def report_of(folder):
    return json.loads((folder / "report.json").read_text(encoding="utf-8"))


def names_in(folder):
    return sorted(p.name for p in folder.iterdir())


def command(*arguments, code=None):
    """The command line that runs drdm, or that passes the arguments to ``code`` instead."""
    start = ["-m", "DRDMLib"] if code is None else ["-c", code]
    return [sys.executable, *start, *map(str, arguments)]


def run_process(*arguments, code=None, timeout=600, fresh=False, given=None):
    """Run drdm, or ``code``, in a separate process.

    Args:
        given: text for its standard input.
        fresh: whether Python starts anew, with nothing imported, instead of being forked from a process that has
            imported everything.
    """
    if not AVAILABLE or fresh:
        return subprocess.run(
            command(*arguments, code=code),
            input=given or "",
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            env=environment(),
            timeout=timeout,
        )
    process = WarmProcess(*arguments, code=code, given=given)
    output, errors = process.communicate(timeout)
    return subprocess.CompletedProcess(arguments, process.returncode, output, errors)


def start_process(*arguments, code=None, stdin=False, **variables):
    """Start drdm, or ``code``, as a process of its own session; see ``WarmProcess`` for what is returned.

    Args:
        stdin: whether it gets a pipe as standard input.
        variables: added to its environment.
    """
    if AVAILABLE:
        return WarmProcess(*arguments, code=code, stdin=stdin, env=environment() | variables)
    return subprocess.Popen(
        command(*arguments, code=code),
        stdin=subprocess.PIPE if stdin else subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        env=environment() | variables,
        start_new_session=True,
    )


def start_as_torchrun(count, *arguments, code=None, **variables):
    """Start drdm several times, with the environment that torchrun gives its processes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    shared |= variables
    own = [{name: str(rank) for name in ("RANK", "LOCAL_RANK")} for rank in range(count)]
    return [start_process(*arguments, code=code, **shared, **names) for names in own]


# Runs a command without matplotlib, whose pictures would take most of the time, after code that prepares it.
PREPARED = """
import os, sys
from DRDMLib import cli
sys.modules["matplotlib"] = None
exec(sys.argv.pop(1), globals())
sys.exit(cli.main(sys.argv[1:]))
"""


def run_prepared(*commands, timeout=600):
    """Run drdm several times, each in a process of its own, without pictures.

    Args:
        commands: pairs of code that runs first, and a list of arguments.

    Returns:
        The exit statuses, and what all of them have printed on standard error.
    """
    done = [run_process(prelude, *words, code=PREPARED, timeout=timeout) for prelude, words in commands]
    return [one.returncode for one in done], "".join(one.stderr for one in done)


def check_refusal(status, err, says):
    """Check that a command refused its input in one line."""
    assert status == 2, err
    assert "Traceback" not in err
    assert len(err.splitlines()) == 1, f"not one line:\n{err}"
    assert re.search(says, err, re.IGNORECASE), err
