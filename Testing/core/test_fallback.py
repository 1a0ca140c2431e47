"""Fallback when a GPU fails: fewer images at a time, then the CPU, with a warning.

The tests need no GPU: they raise the same errors as PyTorch; everything else is real.
"""

import json
import warnings

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from support import smooth_image

import DRDMLib
from DRDMLib.cli import main
from DRDMLib.errors import FallbackWarning, SettingError
from DRDMLib.models.model import Model
from DRDMLib.runtime import fallback
from DRDMLib.runtime.fallback import DeviceLimit, device_limit, with_fallback
from DRDMLib.training.config import TrainingConfig
from DRDMLib.training.trainer import Trainer

CUDA, MPS, CPU = torch.device("cuda"), torch.device("mps"), torch.device("cpu")


@pytest.mark.parametrize(
    ("error", "device", "lacking"),
    [
        (torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."), CUDA, DeviceLimit.MEMORY),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), CUDA, DeviceLimit.MEMORY),
        (RuntimeError("MPS backend out of memory (MPS allocated: 8.1 GB)"), MPS, DeviceLimit.MEMORY),
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
            CPU,
            DeviceLimit.MEMORY,
        ),
        (
            NotImplementedError("'aten::grid_sampler_3d' is not currently implemented for the MPS device"),
            MPS,
            DeviceLimit.OPERATOR,
        ),
        (RuntimeError("Conv3D is not supported on MPS"), MPS, DeviceLimit.OPERATOR),
        (TypeError("Cannot convert a MPS Tensor to float64 dtype"), MPS, DeviceLimit.OPERATOR),
        (RuntimeError("The size of tensor a (3) must match the size of tensor b (4)"), MPS, DeviceLimit.NOTHING),
        (NotImplementedError("not yet"), CUDA, DeviceLimit.NOTHING),
        (ValueError("out of memory"), CUDA, DeviceLimit.NOTHING),
    ],
)
def test_errors_are_classified(error, device, lacking):
    assert device_limit(error, device) is lacking


def test_a_real_failed_allocation_is_classified():
    with pytest.raises(RuntimeError) as raised:
        torch.empty(2**55, dtype=torch.uint8)
    assert device_limit(raised.value, CPU) is DeviceLimit.MEMORY


def on_a_gpu(model: Model) -> Model:
    """A copy of the model that claims to be on a GPU."""
    copy = model.on("cpu")
    copy.device = CUDA
    return copy


def test_the_batch_is_halved_then_the_cpu_is_used(tiny_model):
    tried = []

    def compute(model, batch):
        tried.append((model.device.type, batch))
        if model.device.type == "cuda":
            raise torch.cuda.OutOfMemoryError("CUDA out of memory.")
        return model.predict(torch.zeros(1, 1, 16, 16, 16), 3)

    with pytest.warns(FallbackWarning) as caught:
        result = with_fallback(compute, on_a_gpu(tiny_model), 4)
    assert tried == [("cuda", 4), ("cuda", 2), ("cuda", 1), ("cpu", 1)]
    assert "2 images at a time" in str(caught[0].message) and "CPU is used" in str(caught[-1].message)
    # The copy has the same weights.
    assert torch.equal(result, tiny_model.predict(torch.zeros(1, 1, 16, 16, 16), 3))


def test_a_missing_operator_leads_to_the_cpu_at_once(tiny_model):
    tried = []

    def compute(model, batch):
        tried.append((model.device.type, batch))
        if model.device.type == "mps":
            raise NotImplementedError("The operator 'aten::x' is not currently implemented for the MPS device.")
        return batch

    apple = tiny_model.on("cpu")
    apple.device = MPS
    with pytest.warns(FallbackWarning, match="aten::x.*CPU is used"):
        assert with_fallback(compute, apple, 8) == 8
    assert tried == [("mps", 8), ("cpu", 8)]


def test_other_errors_and_full_main_memory_are_not_hidden(tiny_model):
    def wrong(model, batch):
        raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="shapes"):
        with_fallback(wrong, on_a_gpu(tiny_model), 4)

    def full(model, batch):
        torch.empty(2**55, dtype=torch.uint8)

    with pytest.warns(FallbackWarning), pytest.raises(MemoryError):
        with_fallback(full, tiny_model, 4)


def short_of_memory(monkeypatch, most):
    """Let networks raise the error of a full GPU for more than ``most`` images."""
    predict = Model.predict

    def limited(self, image, *more, **how):
        if len(image) > most:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return predict(self, image, *more, **how)

    monkeypatch.setattr(Model, "predict", limited)


def test_smaller_batches_of_slices_give_the_same_field(tiny_model_2d, monkeypatch):
    stack = smooth_image((24, 20, 7), (1.0, 1.0, 5.0))
    usual = DRDMLib.deform(stack, tiny_model_2d, level=6, seed=3)
    short_of_memory(monkeypatch, 2)
    with pytest.warns(FallbackWarning, match="1 images|2 images|3 images"):
        small = DRDMLib.deform(stack, tiny_model_2d, level=6, seed=3)
    assert small.device == "cpu"
    difference = sitk.GetArrayFromImage(small.field) - sitk.GetArrayFromImage(usual.field)
    assert np.abs(difference).max() < 1e-4


def test_the_command_reports_a_fallback(tiny_model_2d_path, tmp_path, monkeypatch, capsys):
    image = tmp_path / "stack.nii.gz"
    sitk.WriteImage(smooth_image((24, 20, 7), (1.0, 1.0, 5.0)), str(image))
    short_of_memory(monkeypatch, 4)
    arguments = ["deform", str(image), "-o", str(tmp_path / "out"), "--model", str(tiny_model_2d_path), "--level", "4"]
    assert main([*arguments, "--device", "cpu", "--progress", "json"]) == 0
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert any(event["event"] == "warning" and "images at a time" in event["text"] for event in events)


def test_training_accumulates_gradients_when_memory_is_short(tiny_model, monkeypatch):
    trainer = Trainer(tiny_model.metadata, TrainingConfig(steps=4, batch=4), CPU)
    images = torch.randint(0, 255, (5, 1, *[tiny_model.size] * 3), dtype=torch.uint8)
    real = type(trainer.network).forward

    def limited(most):
        def forward(self, image, *more):
            if len(image) > most:
                raise torch.cuda.OutOfMemoryError("CUDA out of memory.")
            return real(self, image, *more)

        return forward

    monkeypatch.setattr(type(trainer.network), "forward", limited(1))
    with pytest.warns(FallbackWarning, match="computed 1 at a time"):
        trainer.advance(images)
    assert (trainer.chunk, trainer.step) == (1, 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trainer.advance(images)
    monkeypatch.setattr(type(trainer.network), "forward", limited(0))
    with pytest.raises(SettingError, match="does not hold one image"):
        trainer.advance(images)


def test_memory_is_released_after_the_error_is_deleted(tiny_model, monkeypatch):
    """The error refers to the tensors of the failed attempt; it must be deleted before the cache is emptied."""
    import gc
    import weakref

    held, alive = [], []
    monkeypatch.setattr(fallback, "release_memory", lambda device: alive.append(held[0]() is not None))

    def compute(model, batch):
        if model.device.type == "cpu":
            return 0
        large = torch.zeros(8)
        held.append(weakref.ref(large))
        raise torch.cuda.OutOfMemoryError("CUDA out of memory.")

    gc.disable()
    try:
        with pytest.warns(FallbackWarning):
            with_fallback(compute, on_a_gpu(tiny_model), 1)
    finally:
        gc.enable()
    assert alive == [False]
