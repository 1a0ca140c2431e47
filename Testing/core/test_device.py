"""How a GPU is told to compute; the switches are there without one."""

import threading

import pytest
import torch

from DRDMLib.runtime.device import full_precision

GPU, CPU = torch.device("cuda"), torch.device("cpu")
cudnn = torch.backends.cudnn


def switches():
    told = [cudnn.benchmark, cudnn.deterministic]
    if hasattr(cudnn, "conv"):
        return [*told, cudnn.conv.fp32_precision, torch.backends.cuda.matmul.fp32_precision]
    return [*told, cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32]


@pytest.fixture
def others(monkeypatch):
    """What another program of the process has asked for."""
    monkeypatch.setattr(cudnn, "benchmark", True)
    monkeypatch.setattr(cudnn, "deterministic", False)
    return switches()


def is_exact():
    benchmark, deterministic, *precision = switches()
    return not benchmark and deterministic and all(p in ("ieee", False) for p in precision)


def test_what_others_have_set_holds_again_afterwards(others):
    assert not is_exact()
    with full_precision(CPU):
        assert switches() == others
    with full_precision(GPU):
        assert is_exact()
        with full_precision(GPU):
            assert is_exact()
        assert is_exact()
    assert switches() == others
    with pytest.raises(ValueError), full_precision(GPU):
        raise ValueError
    assert switches() == others


def test_one_thread_does_not_end_it_for_another(others):
    inside, done, seen = threading.Event(), threading.Event(), []

    def long():
        with full_precision(GPU):
            inside.set()
            done.wait(10)
            seen.append(is_exact())

    thread = threading.Thread(target=long)
    thread.start()
    assert inside.wait(10)
    with full_precision(GPU):
        pass
    done.set()
    thread.join()
    assert seen == [True]
    assert switches() == others
