import signal
import sys
from collections import namedtuple

import pytest
from command_helpers import check_refusal, scene, snapshot, write

from DRDMLib.cli import main

Outcome = namedtuple("Outcome", "status out err")


@pytest.fixture(scope="session")
def tiny_models(tiny_model_path, tiny_model_2d_path):
    """Paths of a tiny 2D and a tiny 3D model."""
    return {2: tiny_model_2d_path, 3: tiny_model_path}


@pytest.fixture
def drdm(capfd, monkeypatch, tmp_path):
    """Run the command line in this process; the output of C++ libraries is captured too."""
    monkeypatch.setenv("DRDM_HOME", str(tmp_path / "drdm-home"))
    before = signal.getsignal(signal.SIGTERM)

    def run(*arguments):
        capfd.readouterr()
        try:
            status = main([str(a) for a in arguments])
        except SystemExit as ended:
            status = ended.code
        return Outcome(status, *capfd.readouterr())

    yield run
    signal.signal(signal.SIGTERM, before)


@pytest.fixture
def no_pictures(monkeypatch):
    """Leave the pictures of trainings out; they would take most of the time."""
    monkeypatch.setitem(sys.modules, "matplotlib", None)


@pytest.fixture
def succeed(drdm):
    """Run a command that must succeed; return its standard output."""

    def run(*arguments):
        outcome = drdm(*arguments)
        assert outcome.status == 0, outcome.err
        return outcome.out

    return run


@pytest.fixture
def scan(tmp_path):
    return write(scene(), tmp_path / "scan.nii.gz")


@pytest.fixture
def flat_scan(tmp_path):
    return write(scene((30, 26)), tmp_path / "flat.nii.gz")


@pytest.fixture
def refused(drdm, tmp_path):
    """Run a command that must fail, and check its message and that no file was changed."""

    def run(*arguments, says):
        before = snapshot(tmp_path)
        outcome = drdm(*arguments)
        check_refusal(outcome.status, outcome.err, says)
        assert snapshot(tmp_path) == before, "something was created or changed"
        return outcome

    return run


@pytest.fixture
def deform_refused(refused, tiny_models, tmp_path):
    """Run ``drdm deform IMAGE`` with a 3D model; it must fail."""

    def run(image, *more, says, model=tiny_models[3]):
        return refused("deform", image, "-o", tmp_path / "out", "--level", 4, "--model", model, *more, says=says)

    return run
