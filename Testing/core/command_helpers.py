"""Small images, and the ``drdm`` command as a process, for the tests of the command line."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from support import smooth_image

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


def command(*arguments, code=None):
    """The command line that runs drdm, or that passes the arguments to ``code`` instead."""
    start = ["-m", "DRDMLib"] if code is None else ["-c", code]
    return [sys.executable, *start, *map(str, arguments)]


def environment():
    return os.environ | {"PYTHONPATH": str(REPOSITORY), "PYTHONDONTWRITEBYTECODE": "1", "PYTHONIOENCODING": "utf-8"}


def run_process(*arguments, code=None, timeout=180):
    """Run drdm in a separate process."""
    return subprocess.run(
        command(*arguments, code=code), capture_output=True, encoding="utf-8", env=environment(), timeout=timeout
    )


# Runs each command in a process of its own, after code that prepares it. They are forked, so that PyTorch is imported
# once, and have no matplotlib, whose pictures would take most of the time. Prints the exit status of each; that of a
# signal is negative.
FORKED = """
import json, os, sys
from DRDMLib import cli
import DRDMLib.cli.batch, DRDMLib.cli.commands, DRDMLib.cli.train
sys.modules["matplotlib"] = None
for prelude, arguments in json.load(sys.stdin):
    child = os.fork()
    if child == 0:
        exec(prelude, globals())
        status = cli.main(arguments)
        sys.stderr.flush()
        os._exit(status)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


def run_forked(*commands, timeout=900):
    """Run drdm several times, each in a process of its own.

    Args:
        commands: pairs of code that runs first, and a list of arguments.

    Returns:
        The exit statuses, and what all of them have printed on standard error.
    """
    done = subprocess.run(
        command(code=FORKED),
        input=json.dumps([[prelude, [str(word) for word in words]] for prelude, words in commands]),
        capture_output=True,
        encoding="utf-8",
        env=environment() | {"OMP_NUM_THREADS": "1"},
        timeout=timeout,
    )
    return [int(line) for line in done.stdout.split()], done.stderr


def check_refusal(status, err, says):
    """Check that a command refused its input in one line."""
    assert status == 2, err
    assert "Traceback" not in err
    assert len(err.splitlines()) == 1, f"not one line:\n{err}"
    assert re.search(says, err, re.IGNORECASE), err
