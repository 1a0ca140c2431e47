"""Outside Slicer, pytest runs these tests on the stand-in for its application. Inside Slicer this file is not used."""

import atexit
import os
import shutil
import sys
import tempfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
# As CTK's launcher: the real Python is a child that gets no signals, and a crash becomes status 1.
LAUNCHER = """#!/bin/sh
if [ -n "$DRDM_WARM_PROCESSES" ] && [ "$1" = "{start}" ] && [ "$2" = DRDMLib ]; then
    shift 2
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


def putLauncherOnPath():
    """Imitate PythonSlicer; on Windows a script cannot.

    On Linux, DRDM then runs in processes that need not import PyTorch, unless ``DRDM_WARM_PROCESSES`` is removed.
    """
    import warm_processes

    folder = Path(tempfile.mkdtemp(prefix="launcher-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    script = folder / "PythonSlicer"
    script.write_text(
        LAUNCHER.format(python=sys.executable, start=warm_processes.START, warm=warm_processes.__file__),
        encoding="utf-8",
    )
    script.chmod(0o755)
    os.environ["PATH"] = os.pathsep.join([str(folder), os.environ["PATH"]])
    if warm_processes.AVAILABLE:
        os.environ["DRDM_WARM_PROCESSES"] = warm_processes.server_name()


def hideRealPython():
    """Imitate Slicer, whose Python takes the application itself for its executable."""
    sys._base_executable = str(Path(tempfile.gettempdir()) / "SlicerApp-real")


def pytest_configure():
    """Provide the modules ``qt``, ``ctk`` and ``slicer`` before the tests are imported."""
    slicer = pytest.importorskip("slicer")
    if not hasattr(slicer, "app"):
        sys.path.insert(0, str(ROOT / "Testing"))
        putLauncherOnPath()
        hideRealPython()
        import standin

        standin.install()
        standin.load_module(ROOT / "DRDMDeform" / "DRDMDeform.py")
        standin.finish_startup()


@pytest.fixture(autouse=True)
def no_exception_in_a_slot():
    """Fail the test if a slot raises an exception, which PythonQt would only print."""
    standin = sys.modules.get("standin")
    if standin is not None:
        standin.slot_errors.clear()
    yield
    if standin is not None:
        assert not standin.unexpected_errors()
