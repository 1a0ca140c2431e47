"""Outside Slicer, pytest runs these tests on the stand-in for its application. Inside Slicer this file is not used."""

import atexit
import os
import shutil
import sys
import tempfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]


def putLauncherOnPath():
    """Imitate PythonSlicer; on Windows a script cannot."""
    import warm_processes

    folder = Path(tempfile.mkdtemp(prefix="launcher-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    os.environ.update(warm_processes.write_launcher(folder))


def hideRealPython():
    """Imitate Slicer, whose Python takes the application itself for its executable."""
    sys._base_executable = str(Path(tempfile.gettempdir()) / "SlicerApp-real")


def pytest_configure(config):
    """Provide the modules ``qt``, ``ctk`` and ``slicer`` before the tests are imported."""
    if config.getoption("numprocesses", None) and not hasattr(config, "workerinput"):
        # Processes that pytest-xdist starts run the tests, not this one.
        return
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
