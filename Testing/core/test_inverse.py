"""The inverse of a field: a point that is moved there and back returns to its start."""

import numpy as np
import pytest
import SimpleITK as sitk
from command_helpers import run_process, scene, write

import DRDMLib
from DRDMLib.io.resources import resource
from DRDMLib.output import write_inverse


def inner_points(image, count=400, seed=0):
    """Random points inside an image, not only at voxels: (K, d), millimeters."""
    generator = np.random.default_rng(seed)
    index = generator.random((count, image.GetDimension())) * (np.array(image.GetSize()) - 1)
    return np.array([image.TransformContinuousIndexToPhysicalPoint(i.tolist()) for i in index])


def through(transform, points):
    """Apply a SimpleITK transform, the independent reference, to points."""
    return np.array([transform.TransformPoint(p.tolist()) for p in points])


@pytest.fixture(scope="module")
def sample():
    return sitk.ReadImage(str(resource("Sample", "sample.nii.gz")))


@pytest.fixture(scope="module")
def shipped():
    return DRDMLib.load_model("hippocampus-mr-3d", device="cpu")


@pytest.mark.parametrize("level", [8, 24, 40, 56, 72, 79])
def test_points_return_at_every_level_of_the_shipped_model(sample, shipped, level):
    made = DRDMLib.deform(sample, shipped, level, seed=level, steps=8)
    points = inner_points(sample)
    back = made.inverse_points(points)
    missed = np.linalg.norm(through(made.transform, back) - points, axis=1)
    assert missed.mean() < 0.001
    assert missed.max() < 0.01 * min(sample.GetSpacing())
    assert np.linalg.norm(back - points, axis=1).max() > 0.2, "the points do not move"
    # The other way round: points of the new image to the original and back.
    again = made.inverse_points(through(made.transform, points))
    assert np.linalg.norm(again - points, axis=1).max() < 0.01 * min(sample.GetSpacing())


@pytest.mark.parametrize("level", [16, 64])
def test_the_saved_inverse_is_accurate_at_every_voxel(sample, shipped, level):
    made = DRDMLib.deform(sample, shipped, level, seed=3, steps=8)
    forward = sitk.DisplacementFieldTransform(sitk.Cast(made.ddf, sitk.sitkVectorFloat64))
    inverse = sitk.GetArrayFromImage(made.inverse_ddf)
    assert sitk.GetArrayFromImage(made.ddf).shape == inverse.shape
    size = np.array(sample.GetSize())
    missed = []
    for index in np.random.default_rng(0).integers(2, size - 2, (600, 3)):
        point = np.array(sample.TransformIndexToPhysicalPoint(index.tolist()))
        target = point + inverse[tuple(index[::-1])]
        where = np.array(sample.TransformPhysicalPointToContinuousIndex(target.tolist()))
        # The saved field is not defined outside its grid.
        if ((where > 0) & (where < size - 1)).all():
            missed.append(np.linalg.norm(np.subtract(forward.TransformPoint(target.tolist()), point)))
    assert len(missed) > 300
    assert np.mean(missed) < 0.01
    assert np.max(missed) < 0.1 * min(sample.GetSpacing())


def test_the_inverse_transform_is_defined_everywhere(sample, shipped):
    made = DRDMLib.deform(sample, shipped, 16, seed=5, steps=8)
    points = inner_points(sample)
    missed = np.linalg.norm(through(made.transform, through(made.inverse_transform, points)) - points, axis=1)
    assert missed.mean() < 0.01
    assert missed.max() < 0.1 * min(sample.GetSpacing())
    # Far outside nothing moves, in both directions.
    far = points + 500.0
    np.testing.assert_allclose(through(made.inverse_transform, far), far)


@pytest.mark.parametrize("ndim", [2, 3])
def test_inverse_on_oblique_and_anisotropic_grids(ndim, tiny_models):
    image = scene((26, 22, 18)[:ndim])
    if ndim == 3:
        angle = np.deg2rad(20)
        matrix = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
        image.SetDirection(matrix.ravel().tolist())
    image.SetOrigin([10.0, -20.0, 30.0][:ndim])
    made = DRDMLib.deform(image, tiny_models[ndim], 40, seed=1, steps=2, device="cpu")
    points = inner_points(image)
    missed = np.linalg.norm(through(made.transform, made.inverse_points(points)) - points, axis=1)
    assert missed.max() < 0.01 * min(image.GetSpacing())


def test_the_command_writes_the_inverse(tmp_path, tiny_models):
    scan = write(scene(), tmp_path / "scan.nii.gz")
    arguments = ["deform", scan, "-o", tmp_path / "out", "--model", tiny_models[3], "--level", "30", "--steps", "2"]
    ended = run_process(*arguments, "--device", "cpu", "--inverse")
    assert ended.returncode == 0, ended.stderr
    ddf = sitk.ReadImage(str(tmp_path / "out" / "scan_000_ddf.nii.gz"), sitk.sitkVectorFloat64)
    inverse = sitk.ReadImage(str(tmp_path / "out" / "scan_000_inverse.nii.gz"), sitk.sitkVectorFloat64)
    assert inverse.GetSize() == ddf.GetSize() and inverse.GetOrigin() == pytest.approx(ddf.GetOrigin())
    # Resampling by the field and then by its inverse gives the original image.
    image = sitk.Cast(sitk.ReadImage(str(scan)), sitk.sitkFloat32)
    there = sitk.Resample(image, sitk.DisplacementFieldTransform(ddf))
    back = sitk.Resample(there, sitk.DisplacementFieldTransform(inverse))
    inner = (slice(4, -4),) * 3
    before, between, after = (sitk.GetArrayFromImage(i)[inner] for i in (image, there, back))
    assert np.abs(after - before).mean() < 0.25 * np.abs(between - before).mean()


def test_the_written_inverse_equals_the_computed_one(tmp_path, tiny_models):
    # Large enough that the memory of an image without references is released and used again.
    image = scene((60, 56, 52))
    made = DRDMLib.deform(image, str(tiny_models[3]), 24, seed=0, steps=1, device="cpu")
    written = sitk.ReadImage(str(write_inverse(tmp_path / "inverse.nii.gz", made)))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(written), sitk.GetArrayFromImage(made.inverse_ddf))
