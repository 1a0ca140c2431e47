"""Settings for exact arithmetic on a GPU; PyTorch has these settings without a GPU too."""

import threading

import pytest
import torch

from DRDMLib.runtime.device import full_precision

GPU, CPU = torch.device("cuda"), torch.device("cpu")
cudnn = torch.backends.cudnn


def switches():
    flags = [cudnn.benchmark, cudnn.deterministic]
    if hasattr(cudnn, "conv"):
        return [*flags, cudnn.conv.fp32_precision, torch.backends.cuda.matmul.fp32_precision]
    return [*flags, cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32]


@pytest.fixture
def others(monkeypatch):
    """Settings that another program in the same process has chosen."""
    monkeypatch.setattr(cudnn, "benchmark", True)
    monkeypatch.setattr(cudnn, "deterministic", False)
    return switches()


def is_exact():
    benchmark, deterministic, *precision = switches()
    return not benchmark and deterministic and all(p in ("ieee", False) for p in precision)


def test_earlier_settings_are_restored(others):
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


def test_one_thread_does_not_change_the_settings_of_another(others):
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
