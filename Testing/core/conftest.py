import signal
from collections import namedtuple

import pytest
import torch

from DRDMLib.cli import main
from DRDMLib.models import ModelMetadata, save_model
from DRDMLib.networks import build_network

Outcome = namedtuple("Outcome", "status out err")


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory):
    """Paths of a 2D and a 3D model with random weights that really do something."""
    folder = tmp_path_factory.mktemp("models")
    paths = {}
    for ndim, size in ((2, 24), (3, 16)):
        torch.manual_seed(ndim)
        network = build_network("compact", ndim, 80, {"width": 8})
        torch.nn.init.normal_(network.out.weight, std=0.03)
        metadata = ModelMetadata(
            name=f"tiny-{ndim}d", architecture="compact", ndim=ndim, size=size, options={"width": 8}, amplitude=2.0
        )
        paths[ndim] = folder / f"tiny-{ndim}d.safetensors"
        save_model(paths[ndim], network, metadata)
    return paths


@pytest.fixture
def drdm(capfd, monkeypatch, tmp_path):
    """Run the command line in this process; what C++ libraries print is caught too."""
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
