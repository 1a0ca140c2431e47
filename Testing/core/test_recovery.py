"""The recovery steps of Algorithm 2, in 2D and 3D, with real networks."""

from __future__ import annotations

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from support import smooth_image

from DRDMLib.deforming import deform, deform_all
from DRDMLib.diffusion.fields import compose, warp
from DRDMLib.diffusion.forward import random_ddf
from DRDMLib.diffusion.recovery import recover, step_schedule
from DRDMLib.errors import SettingError
from DRDMLib.generation import generate
from DRDMLib.settings import DeformationSettings


def test_step_schedules():
    assert [t for t, _ in step_schedule(80, 5, None)] == [5, 4, 3, 2, 1, 0]
    assert [t for t, _ in DeformationSettings(5).schedule(80)] == [5, 4, 3, 2, 1, 0]
    assert [t for t, _ in DeformationSettings(5, start="full").schedule(80)] == list(range(79, -1, -1))
    few = step_schedule(80, 47, 6)
    assert len(few) == 6
    assert sum(times for _, times in few) == 48
    assert [t for t, _ in few] == sorted((t for t, _ in few), reverse=True)


@pytest.mark.parametrize("how", [{"level": 80}, {}, {"level": 4, "steps": 0}, {"level": 4, "start": "up"}])
def test_recovery_refuses_invalid_arguments(how, tiny_model):
    with pytest.raises(SettingError):
        recover(tiny_model, torch.rand(1, 1, 24, 24, 24), torch.zeros(1, 3, 24, 24, 24), **how)


@pytest.mark.parametrize("wrong", [{"steps": 0}, {"pose": -0.5}, {"pose": 3.0}, {"start": "up"}, {"plane": "oblique"}])
def test_settings_refuse_invalid_values(wrong):
    with pytest.raises(SettingError):
        DeformationSettings(**wrong)


@pytest.mark.parametrize("ndim", [2, 3])
def test_each_step_warps_the_original(ndim, tiny_model, tiny_model_2d):
    """Compare with Algorithm 2 written out step by step."""
    model = tiny_model if ndim == 3 else tiny_model_2d
    image = torch.rand(1, 1, *[24] * ndim, generator=torch.Generator().manual_seed(0))
    start = random_ddf(24, ndim, 6, torch.Generator().manual_seed(1), amplitude=2.0)
    phi = start
    for t in range(6, -1, -1):
        psi = model.predict(warp(image, phi, padding="zeros"), t, quick=True)
        phi = compose(phi, psi)
    result = recover(model, image, start, level=6)
    assert torch.equal(result, phi)
    assert not torch.allclose(result, start, atol=1e-4)


def test_a_batch_equals_single_images(tiny_model):
    images = torch.rand(3, 1, 24, 24, 24, generator=torch.Generator().manual_seed(0))
    start = random_ddf(24, 3, 4, torch.Generator().manual_seed(1), amplitude=2.0)
    together = recover(tiny_model, images, start, level=4)
    for i in range(3):
        assert torch.allclose(together[i : i + 1], recover(tiny_model, images[i : i + 1], start, level=4), atol=1e-6)


def test_canceling_stops_at_once(tiny_model):
    image, start = torch.rand(1, 1, 24, 24, 24), torch.zeros(1, 3, 24, 24, 24)
    steps = []

    def on_step(done, total, phi):
        steps.append(done)
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        recover(tiny_model, image, start, level=20, on_step=on_step)
    assert steps == [1, 2, 3]


def test_a_batch_of_seeds_equals_single_seeds(tiny_model):
    """They differ only by rounding; on a CPU, versions are made one by one and are identical."""
    image = torch.rand(1, 1, 24, 24, 24, generator=torch.Generator().manual_seed(0))
    together = generate(image, tiny_model, DeformationSettings(20), (3, 4, 5))
    for number, seed in enumerate((3, 4, 5)):
        alone = generate(image, tiny_model, DeformationSettings(20), (seed,))
        assert torch.equal(together.random[number : number + 1], alone.random)
        assert torch.allclose(together.recovered[number : number + 1], alone.recovered, atol=1e-5)
    assert not torch.allclose(together.recovered[0], together.recovered[1], atol=1e-3)
    volume = smooth_image((20, 22, 18))
    versions = list(deform_all(volume, tiny_model, 20, (3, 4)))
    assert [version.seed for version in versions] == [3, 4]
    for version in versions:
        alone = deform(volume, tiny_model, 20, version.seed)
        assert np.array_equal(sitk.GetArrayFromImage(version.ddf), sitk.GetArrayFromImage(alone.ddf))
        assert np.array_equal(sitk.GetArrayFromImage(version.random_field), sitk.GetArrayFromImage(alone.random_field))
