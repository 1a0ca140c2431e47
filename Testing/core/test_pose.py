"""Poses: they are affine and within their bounds, and do not change the anatomy of a seed."""

from __future__ import annotations

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from support import rotation, smooth_image

from DRDMLib import deform
from DRDMLib.diffusion.affine import MAX_ROTATION_DEGREES, MAX_SCALING, MAX_SHIFT, random_pose
from DRDMLib.diffusion.fields import compose
from DRDMLib.diffusion.forward import random_ddf
from DRDMLib.generation import generate
from DRDMLib.settings import DeformationSettings
from DRDMLib.spatial.field_grid import FieldGrid

SIDE = 24


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def parts(field: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Matrix and shift (fractions of the side) of an affine field around the center; fails for other fields."""
    ndim, side = field.shape[1], field.shape[2]
    line = (np.arange(side) + 0.5) / side - 0.5
    points = np.stack(np.meshgrid(*[line] * ndim, indexing="ij"), -1).reshape(-1, ndim)
    moved = points + field[0].flatten(1).T.double().numpy()
    design = np.c_[points, np.ones(len(points))]
    solution = np.linalg.lstsq(design, moved, rcond=None)[0]
    assert np.abs(design @ solution - moved).max() < 1e-6
    return solution[:ndim].T, solution[ndim]


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("amount", [0.5, 1.0, 2.0])
def test_a_pose_is_affine_and_keeps_its_bounds(ndim, amount):
    angles, scales, shifts = [], [], []
    for seed in range(60):
        matrix, shift = parts(random_pose(SIDE, ndim, amount, seeded(seed)))
        zooms = np.linalg.norm(matrix, axis=0)
        orthogonal = matrix / zooms
        assert np.allclose(orthogonal.T @ orthogonal, np.eye(ndim), atol=1e-4) and np.linalg.det(orthogonal) > 0
        cosine = orthogonal[0, 0] if ndim == 2 else (np.trace(orthogonal) - 1) / 2
        angles.append(np.degrees(np.arccos(np.clip(cosine, -1, 1))))
        scales.append(np.abs(np.log(zooms)).max())
        shifts.append(np.abs(shift).max())
    for found, bound in (
        (angles, amount * MAX_ROTATION_DEGREES),
        (scales, amount * MAX_SCALING * 4 / 3),
        (shifts, amount * MAX_SHIFT),
    ):
        assert 0.75 * bound < max(found) < 1.01 * bound


@pytest.mark.parametrize("ndim", [2, 3])
def test_a_pose_is_added_to_the_same_anatomy(ndim, tiny_model, tiny_model_2d):
    model = tiny_model if ndim == 3 else tiny_model_2d
    image = torch.rand(1, 1, *[model.metadata.size] * ndim, generator=seeded(0))
    plain, posed = (generate(image, model, DeformationSettings(20, pose=pose), (5, 6)) for pose in (0.0, 1.0))
    for number in range(2):
        one = slice(number, number + 1)
        inner = (slice(None), slice(None), *[slice(6, -6)] * ndim)
        # The pose is drawn from the seed's random numbers after those of the deformation.
        assert (posed.recovered[one] - plain.recovered[one]).abs().max() > 0.02
        source = seeded(5 + number)
        m = model.metadata
        random_ddf(
            m.size, ndim, 20, source, control_size=m.control_size, noise_grids=m.noise_grids, velocity_scale=1e-5
        )
        pose = random_pose(m.size, ndim, 1.0, source)
        assert torch.allclose(posed.recovered[one][inner], compose(plain.recovered[one], pose)[inner], atol=1e-6)
        assert torch.allclose(posed.random[one][inner], compose(plain.random[one], pose)[inner], atol=1e-6)
    assert not torch.allclose(posed.recovered[0] - plain.recovered[0], posed.recovered[1] - plain.recovered[1])


@pytest.mark.parametrize("pose", [1.0, 2.0])
@pytest.mark.parametrize("seed", range(3))
def test_a_posed_version_is_certified(pose, seed, tiny_model):
    image = smooth_image((40, 30, 36), spacing=(1.0, 1.2, 0.9), direction=rotation(20, -35, 50))
    result = deform(image, tiny_model, level=30, seed=seed, steps=3, pose=pose)
    assert result.pose == pose
    assert result.metrics.certified_invertible and result.metrics.folded_fraction == 0
    reference = sitk.DisplacementFieldTransform(sitk.Cast(result.ddf, sitk.sitkVectorFloat64))
    inside = sitk.GetArrayFromImage(sitk.Resample(image * 0 + 1, image, reference, sitk.sitkNearestNeighbor)) > 0
    expected = sitk.GetArrayFromImage(sitk.Resample(image, image, reference, sitk.sitkLinear)).astype(float)
    made = sitk.GetArrayFromImage(result.warp(image)).astype(float)
    assert np.abs(made - expected)[inside].mean() < 0.005 * np.ptp(made)
    # A point that is moved there and back returns to its start.
    points = np.asarray([image.TransformIndexToPhysicalPoint(i) for i in ((20, 15, 18), (12, 10, 20), (30, 20, 9))])
    there = np.asarray([result.transform.TransformPoint(p) for p in points.tolist()])
    assert np.abs(result.inverse_points(there) - points).max() < 0.01
    # Outside the image it decreases to the pose alone.
    outside = FieldGrid.of(result.field).border_map()
    assert outside is not None and not outside.moves_nothing
