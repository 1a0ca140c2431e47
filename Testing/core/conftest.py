import signal
from collections import namedtuple

import pytest

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
