"""A pose is an affine map, also beyond the field: for points far outside, for its inverse, in files, and in regions."""

from __future__ import annotations

import dataclasses
from itertools import product

import numpy as np
import pytest
import SimpleITK as sitk
from support import rotation, smooth_image

from DRDMLib import deform
from DRDMLib.application import read_deformation
from DRDMLib.deforming import make_deformations
from DRDMLib.invertibility.certificate import certify_on_grid, certify_saved
from DRDMLib.invertibility.inverse import inverse_points
from DRDMLib.invertibility.metrics import measure_saved
from DRDMLib.invertibility.repair import repair
from DRDMLib.loaders.packing import pack, unpack
from DRDMLib.loaders.world import world_field
from DRDMLib.output import write_field
from DRDMLib.settings import DeformationSettings, RegionSettings
from DRDMLib.spatial.affine import AffineMap
from DRDMLib.spatial.coordinates import direction_matrix, index_to_physical, to_points
from DRDMLib.spatial.field_grid import STORED, FieldGrid
from DRDMLib.spatial.region import Region


@pytest.fixture(scope="module")
def image() -> sitk.Image:
    return smooth_image((40, 30, 36), spacing=(1.0, 1.2, 0.9), direction=rotation(20, -35, 50))


def points_around(image: sitk.Image, factor: float) -> np.ndarray:
    """Points within the box of an image that is enlarged about its center."""
    size = np.asarray(image.GetSize())
    shares = np.random.default_rng(3).uniform(-factor / 2, factor / 2, (300, len(size)))
    return to_points((size - 1) / 2 + shares * size, image)


def through(transform: sitk.Transform, points: np.ndarray) -> np.ndarray:
    return np.asarray([transform.TransformPoint(point) for point in points.tolist()])


def random_map(d: int, seed: int) -> AffineMap:
    generator = np.random.default_rng(seed)
    return AffineMap(np.eye(d) + 0.2 * generator.standard_normal((d, d)), 5 * generator.standard_normal(d))


@pytest.mark.parametrize("d", [2, 3])
def test_affine_maps_agree_with_simpleitk(d):
    one = random_map(d, d)
    points = 30 * np.random.default_rng(0).standard_normal((50, d))
    assert np.allclose(one(points), through(one.transform(), points))
    assert np.allclose(one.inverse()(one(points)), points)
    assert AffineMap.identity(d).moves_nothing and not one.moves_nothing
    like = smooth_image((7, 6, 5)[:d], spacing=(1.0, 2.0, 0.7)[:d])
    grid = FieldGrid.of(
        sitk.TransformToDisplacementField(
            one.transform(),
            sitk.sitkVectorFloat64,
            like.GetSize(),
            like.GetOrigin(),
            like.GetSpacing(),
            like.GetDirection(),
        )
    )
    assert np.allclose(
        one.displacements(grid.origin, grid.steps, [np.arange(n) for n in grid.vectors.shape[:-1]]), grid.vectors
    )
    found = grid.border_map()
    assert found is not None and np.allclose(found.matrix, one.matrix) and np.allclose(found.shift, one.shift)
    assert np.abs(grid.without(found).vectors).max() < 1e-9


def test_a_border_that_folds_or_bends_is_not_affine():
    like = smooth_image((8, 9, 7))
    flipped = AffineMap(np.diag([-1.0, 1.0, 1.0]), np.zeros(3))
    sizes = (like.GetSize(), like.GetOrigin(), like.GetSpacing(), like.GetDirection())
    assert (
        FieldGrid.of(
            sitk.TransformToDisplacementField(flipped.transform(), sitk.sitkVectorFloat64, *sizes)
        ).border_map()
        is None
    )
    field = sitk.TransformToDisplacementField(random_map(3, 1).transform(), sitk.sitkVectorFloat64, *sizes)
    for corner in product((0, -1), repeat=3):
        values = sitk.GetArrayFromImage(field)
        values[corner] += 0.01
        bent = dataclasses.replace(FieldGrid.of(field), vectors=values)
        assert bent.border_map() is None
    # The inner nodes do not count; and 32 bits are enough.
    values = sitk.GetArrayFromImage(field)
    values[1:-1, 1:-1, 1:-1] = 0
    assert dataclasses.replace(FieldGrid.of(field), vectors=values.astype(np.float32)).border_map() is not None


@pytest.mark.parametrize("model_name", ["tiny_model", "tiny_model_2d"])
@pytest.mark.parametrize("pose", [1.0, 2.0])
def test_points_far_outside_follow_the_pose_and_come_back(image, pose, model_name, request):
    model = request.getfixturevalue(model_name)
    result = deform(image, model, level=30, seed=4, steps=3, pose=pose)
    outside = FieldGrid.of(result.field).border_map()
    assert outside is not None
    far = points_around(image, 8)
    index = np.asarray([result.field.TransformPhysicalPointToContinuousIndex(p) for p in far.tolist()])
    beyond = ((index < 0) | (index > np.asarray(result.field.GetSize()) - 1)).any(axis=1)
    assert beyond.sum() > 100
    moved = through(result.transform, far)
    assert np.abs(moved - outside(far))[beyond].max() < 1e-6
    assert np.abs(result.inverse_points(moved) - far).max() < 0.01
    # Within the image it is the same map with which the image is made.
    near = points_around(image, 1)
    assert np.abs(through(result.transform, near) - through(result.grid_transform, near)).max() < 1e-6
    # The field that holds the inverse goes on outside, too.
    back = through(result.inverse_transform, moved)
    assert np.abs(back - far)[beyond].max() < 0.01
    assert np.abs(back - far).mean() < 0.05


def test_at_level_zero_there_is_the_pose_alone(image, tiny_model):
    result = deform(image, tiny_model, level=0, seed=4, pose=2.0)
    points = points_around(image, 6)
    moved = through(result.transform, points)
    design = np.c_[points, np.ones(len(points))]
    fitted = np.linalg.lstsq(design, moved, rcond=None)[0]
    # The random numbers are in single precision.
    assert np.abs(design @ fitted - moved).max() < 1e-4
    assert np.linalg.norm(moved - points, axis=1).mean() > 1


def test_a_saved_field_tells_where_points_outside_go(image, tiny_model, tmp_path):
    result = deform(image, tiny_model, level=30, seed=4, steps=3, pose=2.0)
    path = write_field(tmp_path / "field.nii.gz", result)
    saved = sitk.ReadImage(str(path))
    assert certify_on_grid(saved, image).certified and certify_saved(saved).certified
    assert measure_saved(saved, image).certified_invertible
    read = read_deformation(path)
    far = points_around(image, 8)
    moved = read.to_original(far)
    assert np.abs(moved - through(result.transform, far)).max() < 0.01
    there, wrong = read.to_new(moved)
    assert wrong == 0 and np.abs(there - far).max() < 0.01
    # A scan that reaches past the field, such as one of the whole body, is not torn at its end.
    large = sitk.Image([60, 60, 60], sitk.sitkUInt8)
    large.SetSpacing([3.0] * 3)
    large.SetDirection(image.GetDirection())
    origin = to_points((np.asarray(image.GetSize())[None] - 1) / 2, image)[0] - direction_matrix(image) @ np.full(
        3, 88.5
    )
    large.SetOrigin(origin.tolist())
    used = read.transform(large)
    assert np.abs(through(used, far) - through(result.transform, far)).max() < 0.01


def test_repair_keeps_the_pose_outside():
    image = smooth_image((24, 22, 20))
    outside = random_map(3, 5)
    field = sitk.TransformToDisplacementField(
        outside.transform(), sitk.sitkVectorFloat64, [40, 38, 36], (np.asarray(image.GetOrigin()) - 8).tolist()
    )
    vectors = sitk.GetArrayFromImage(field)
    vectors[10:26, 10:26, 10:26] += 6 * np.random.default_rng(0).standard_normal((16, 16, 16, 3))
    grid = dataclasses.replace(FieldGrid.of(field), vectors=vectors, rounding=STORED)
    assert not certify_on_grid(grid.image(), image).certified
    done = repair(grid, image)
    assert done.rounds > 0 and certify_on_grid(grid.image(), image).certified
    found = grid.border_map()
    assert found is not None and np.allclose(found.matrix, outside.matrix)
    points = points_around(image, 1)
    assert (
        np.abs(
            through(sitk.DisplacementFieldTransform(grid.image()), inverse_points(grid.image(), points)) - points
        ).max()
        < 0.01
    )


@pytest.mark.parametrize("start", [(0, 0, 0), (12, 8, 10)])
def test_a_region_and_a_pose_go_together(image, tiny_model, start):
    corners = to_points(np.asarray([start, np.asarray(start) + 18], float), image)
    region = RegionSettings(regions=(Region(*map(tuple, corners.tolist())),))
    settings = DeformationSettings(30, 3, pose=1.5, region=region)
    (result,) = make_deformations(image, tiny_model, settings, (4,))
    outside = FieldGrid.of(result.field).border_map()
    assert outside is not None and result.metrics.certified_invertible
    assert certify_on_grid(result.field, image).certified
    before = result.before_pose
    assert before is not None
    points = points_around(image, 1)
    wanted = through(sitk.DisplacementFieldTransform(sitk.Image(before)), outside(points))
    error = np.abs(through(result.grid_transform, points) - wanted).max(axis=1)
    assert np.median(error) < 1e-3 and error.max() < 1.0


def test_banks_hold_posed_fields_as_well_as_others(image, tiny_model):
    to_voxels = np.linalg.inv(index_to_physical(image))
    sizes = []
    for pose in (0.0, 1.0):
        result = deform(image, tiny_model, level=30, seed=4, steps=3, pose=pose)
        field = world_field(result.field, image).vectors
        how, data = pack(field, to_voxels)
        assert np.abs(unpack(how, data).numpy() - field.numpy()).max() < 0.02
        sizes.append(len(data))
    assert sizes[1] <= 1.2 * sizes[0]
