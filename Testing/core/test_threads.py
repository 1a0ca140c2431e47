"""One thread for each deformation: the same bits with any number of threads, and the user's settings stay."""

import os
import threading

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from command_helpers import boxes, scene

import DRDMLib
from DRDMLib.runtime.threads import (
    one_thread,
    one_thread_each,
    one_thread_for_each_sample,
    own_cores,
    share_of_cores,
)
from DRDMLib.runtime.waiting import wait_passively

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def restored():
    """Restore the number of threads after a test."""
    threads, itk = torch.get_num_threads(), sitk.ProcessObject.GetGlobalDefaultNumberOfThreads()
    yield
    torch.set_num_threads(threads)
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(itk)


def made(threads: int) -> list[np.ndarray]:
    """Everything of a deformation that is made with this number of threads of PyTorch and ITK."""
    torch.set_num_threads(threads)
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(threads)
    image = scene((36, 40, 30))
    # A shipped model is large enough for PyTorch to use several threads.
    result = DRDMLib.deform(image, "hippocampus-mr-3d", 48, 3, device="cpu", pose=1.0)
    images = [result.field, result.random_field, result.ddf, result.inverse_ddf]
    images += [result.warp(image), result.warp_label(boxes(image))]
    return [*map(sitk.GetArrayFromImage, images), np.array(list(vars(result.metrics).values()))]


def test_the_number_of_threads_changes_no_bit():
    first = made(1)
    for threads in (2, 4):
        assert all(np.array_equal(a, b) for a, b in zip(first, made(threads), strict=True))
        assert torch.get_num_threads() == threads
        assert sitk.ProcessObject.GetGlobalDefaultNumberOfThreads() == threads


def test_settings_are_kept_between_versions_and_after_errors(tiny_models):
    torch.set_num_threads(3)
    image = scene()
    model = DRDMLib.load_model(tiny_models[3], "cpu")
    inside = []
    versions = DRDMLib.deform_all(
        image, model, 4, (0, 1), 2, on_step=lambda done, total: inside.append(torch.get_num_threads())
    )
    for _ in versions:
        assert torch.get_num_threads() == 3
    assert inside == [1] * 4

    def cancel(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        DRDMLib.deform(image, model, 4, on_step=cancel)
    assert torch.get_num_threads() == 3


def test_settings_are_restored_by_the_last_of_several_python_threads():
    torch.set_num_threads(3)
    entered, leave = threading.Event(), threading.Event()
    seen = []

    def other():
        with one_thread():
            entered.set()
            leave.wait(10)
            seen.append(torch.get_num_threads())

    thread = threading.Thread(target=other)
    with one_thread() as before:
        assert before == 3
        thread.start()
        entered.wait(10)
    assert torch.get_num_threads() == 3
    fresh = threading.Thread(target=lambda: seen.append(torch.get_num_threads()))
    leave.set()
    thread.join()
    fresh.start()
    fresh.join()
    assert seen[0] == 1
    assert torch.get_num_threads() == 3


def test_samples_at_the_same_time_use_one_thread_each():
    torch.set_num_threads(3)
    itk = sitk.ProcessObject
    itk.SetGlobalDefaultNumberOfThreads(2)
    with one_thread_each(CPU) as workers:
        assert (workers, torch.get_num_threads(), itk.GetGlobalDefaultNumberOfThreads()) == (3, 1, 1)
        with one_thread():
            pass
        assert torch.get_num_threads() == 1
    assert (torch.get_num_threads(), itk.GetGlobalDefaultNumberOfThreads()) == (3, 2)


def test_several_samples_are_made_beside_a_gpu():
    itk = sitk.ProcessObject
    for threads, expected in ((3, 3), (20, 8)):
        torch.set_num_threads(threads)
        with one_thread_for_each_sample(torch.device("cuda")) as workers:
            assert (workers, torch.get_num_threads(), itk.GetGlobalDefaultNumberOfThreads()) == (expected, 1, 1)
        with one_thread_for_each_sample(CPU) as workers:
            assert workers == threads
        assert torch.get_num_threads() == threads


def test_threads_share_the_cores(monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 12)
    with share_of_cores(4):
        assert own_cores() == 3
        with share_of_cores(100):
            assert own_cores() == 1
        other = []
        thread = threading.Thread(target=lambda: other.append(own_cores()))
        thread.start()
        thread.join()
        assert own_cores() == 3 and other == [12]
    assert own_cores() == 12


@pytest.mark.parametrize("name", ["OMP_WAIT_POLICY", "KMP_BLOCKTIME"])
def test_the_waiting_policy_of_the_user_is_kept(name):
    environment = {"PATH": "/bin"}
    wait_passively(environment)
    assert environment == {"PATH": "/bin", "OMP_WAIT_POLICY": "PASSIVE", "KMP_BLOCKTIME": "0"}
    own = {name: "own"}
    wait_passively(own)
    assert own == {name: "own"}
