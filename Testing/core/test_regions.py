"""Deforming in regions: geometry (SimpleITK is the judge), proof, margin, kept structures, boxes around labels."""

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from support import rotation, smooth_image

from DRDMLib.deforming import deform, deform_all
from DRDMLib.errors import FallbackWarning, ImageError, SettingError
from DRDMLib.invertibility.certificate import certify_on_grid, certify_saved
from DRDMLib.invertibility.metrics import measure_ddf
from DRDMLib.output import write_ddf, write_warped
from DRDMLib.regions import find_target
from DRDMLib.samples import synthesize
from DRDMLib.settings import DeformationSettings, RegionSettings
from DRDMLib.spatial.bones import bone_points, is_ct
from DRDMLib.spatial.coordinates import to_index, to_points
from DRDMLib.spatial.model_grid import model_grid
from DRDMLib.spatial.region import Region, box_of, faded_field, regions_around

OBLIQUE = rotation(20, -35, 50)
KINDS = {
    "isotropic": dict(size=(50, 50, 50)),
    "anisotropic": dict(size=(50, 44, 20), spacing=(0.8, 0.8, 3.0)),
    "oblique": dict(size=(50, 44, 46), spacing=(1.0, 1.2, 1.5), direction=OBLIQUE),
    "flipped": dict(size=(60, 50, 56), direction=np.diag([-1.0, 1.0, -1.0])),
    "float": dict(size=(60, 56, 52), pixel=sitk.sitkFloat32, spacing=(1.5, 1.5, 1.5)),
    "2D": dict(size=(90, 80)),
    "2D turned": dict(size=(90, 80), direction=np.array([[0.0, -1.0], [1.0, 0.0]])),
}


def box_in(image, low, high):
    """A region from fractions of the image's size."""
    ends = np.asarray([low, high]) * np.asarray(image.GetSize()) - 0.5
    corner, opposite = to_points(ends, image)
    return Region(tuple(corner), tuple(opposite))


def middle(image, low=0.35, high=0.65, **more):
    d = image.GetDimension()
    return RegionSettings((box_in(image, (low,) * d, (high,) * d),), **more)


def distance_outside(image, region):
    """Distance of each voxel's center from a region along the worst axis, millimeters; array order."""
    index = np.indices(image.GetSize()[::-1]).reshape(image.GetDimension(), -1)[::-1].T.astype(float)
    ends = np.sort(to_index(np.asarray([region.corner, region.opposite]), image), axis=0)
    away = np.maximum(ends[0] - index, index - ends[1]) * image.GetSpacing()
    return away.max(axis=1).reshape(image.GetSize()[::-1])


def blob_label(image, *centers, radius=0.08, values=None):
    """Balls of label values at fractions of the image's size."""
    array = np.zeros(image.GetSize()[::-1], np.uint8)
    places = np.indices(array.shape)[::-1]
    for number, center in enumerate(centers):
        scaled = [(p - c * n) / n for p, c, n in zip(places, center, image.GetSize(), strict=True)]
        array[sum(s**2 for s in scaled) < radius**2] = 1 if values is None else values[number]
    label = sitk.GetImageFromArray(array)
    label.CopyInformation(image)
    return label


@pytest.fixture
def models(tiny_model, tiny_model_2d):
    return {2: tiny_model_2d, 3: tiny_model}


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_moves_outside_box_and_margin(kind, models, tmp_path):
    image = smooth_image(**KINDS[kind])
    settings = middle(image)
    result = deform(image, models[image.GetDimension()], level=60, seed=3, steps=2, region=settings)
    ddf = sitk.ReadImage(str(write_ddf(tmp_path / "ddf.nii.gz", result)))
    warped = sitk.ReadImage(str(write_warped(tmp_path / "image.nii.gz", image, result)))
    (region,) = result.target.regions
    away = distance_outside(image, region)
    assert result.margin_mm > 0
    assert (away > result.margin_mm).any()
    vectors = sitk.GetArrayFromImage(ddf)
    assert not vectors[away > result.margin_mm].any()
    before, after = sitk.GetArrayFromImage(image), sitk.GetArrayFromImage(warped)
    assert np.array_equal(before[away > result.margin_mm], after[away > result.margin_mm])
    # Inside, SimpleITK with the saved field gives the same image.
    assert np.abs(vectors[away < 0]).max() > 0.2
    transform = sitk.DisplacementFieldTransform(sitk.Cast(ddf, sitk.sitkVectorFloat64))
    expected = sitk.GetArrayFromImage(sitk.Resample(image, image, transform, sitk.sitkLinear, 0.0, sitk.sitkFloat64))
    span = float(before.max()) - float(before.min())
    assert np.abs(expected - after)[away < 0].mean() < 0.01 * span


@pytest.mark.parametrize("kind", ["oblique", "anisotropic", "2D"])
def test_the_field_of_a_region_is_proven(kind, models):
    image = smooth_image(**KINDS[kind])
    result = deform(image, models[image.GetDimension()], level=79, seed=1, steps=1, region=middle(image))
    assert certify_on_grid(result.field, image).certified
    assert certify_saved(result.field).certified
    assert certify_saved(result.ddf).certified
    assert measure_ddf(result.ddf).certified_invertible
    points = to_points(np.random.default_rng(0).uniform(0, 1, (200, image.GetDimension())) * image.GetSize(), image)
    moved = np.asarray([result.transform.TransformPoint(p) for p in result.inverse_points(points).tolist()])
    assert np.abs(moved - points).max() < 0.01 * min(image.GetSpacing())
    assert result.inverse_ddf.GetSize() == image.GetSize()
    if kind == "2D":
        there = np.asarray([result.inverse_transform.TransformPoint(p) for p in points.tolist()])
        assert np.abs(there - result.inverse_points(points)).max() < 0.2 * min(image.GetSpacing())


def test_the_model_grid_fills_the_box(models):
    image = smooth_image(size=(60, 64, 50), spacing=(1.0, 1.2, 1.5), direction=OBLIQUE)
    target = find_target(image, middle(image))
    whole, inner = (model_grid(one, models[3].metadata) for one in (image, target.largest))
    assert max(inner.spacing) < 0.4 * max(whole.spacing)
    start, stop = target.boxes[0]
    assert np.allclose(target.largest.GetOrigin(), image.TransformIndexToPhysicalPoint(start.tolist()))
    assert target.largest.GetSize() == tuple((stop - start).tolist())


def test_two_corners_in_any_order_are_the_same_region(models):
    image = smooth_image(size=(60, 64, 50), direction=OBLIQUE)
    (one,) = middle(image).regions
    a, b = box_of(one, image), box_of(Region(one.opposite, one.corner), image)
    assert all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


def test_a_margin_is_a_limit_and_scales_the_field(models):
    image = smooth_image(size=(80, 80, 80))
    free = deform(image, models[3], level=70, seed=2, steps=1, region=middle(image))
    limit = 0.4 * free.margin_mm
    with pytest.warns(FallbackWarning, match="margin"):
        bound = deform(image, models[3], level=70, seed=2, steps=1, region=middle(image, margin=limit))
    assert 0 < bound.scale < 1
    assert bound.margin_mm <= limit
    assert bound.metrics.max_mm < free.metrics.max_mm
    away = distance_outside(image, bound.target.regions[0])
    assert not sitk.GetArrayFromImage(bound.ddf)[away > limit].any()
    wide = deform(image, models[3], level=70, seed=2, steps=1, region=middle(image, margin=100.0))
    assert wide.scale == 1
    assert wide.margin_mm == free.margin_mm
    with pytest.raises(SettingError, match="too small"):
        deform(image, models[3], level=40, region=middle(image, margin=0.1))


def test_the_margin_follows_the_normal_displacement(models):
    image = smooth_image(size=(80, 80))
    grid = model_grid(image, models[2].metadata)
    along = torch.zeros(1, 2, *grid.size)
    along[:, 1] = 0.05
    narrow = faded_field(along * 0.01, grid, image)
    wide = faded_field(along, grid, image)
    assert narrow.margin_mm == pytest.approx(0.125 * 80, abs=2 * grid.spacing[0])
    assert wide.margin_mm == pytest.approx(max(2.5 * 4, 0.125 * 80), abs=2 * grid.spacing[0])


def test_kept_structures_do_not_move(models):
    image = smooth_image(size=(70, 60, 50), spacing=(1.0, 1.0, 1.4))
    label = blob_label(image, (0.5, 0.5, 0.5), (0.42, 0.5, 0.5), radius=0.05, values=(4, 7))
    settings = middle(image, 0.3, 0.7, keep=(7,))
    result = deform(image, models[3], level=60, seed=5, steps=1, region=settings, label=label)
    kept = sitk.GetArrayFromImage(label) == 7
    lengths = np.linalg.norm(sitk.GetArrayFromImage(result.ddf), axis=-1)
    assert lengths[kept].max() < 1e-6
    assert lengths.max() > 0.5
    assert result.target.described(result)["kept"]["max_mm"] == 0
    assert certify_on_grid(result.field, image).certified
    assert np.array_equal(sitk.GetArrayFromImage(result.warp_label(label)) == 7, kept)


def test_a_mask_file_can_be_kept(models, tmp_path):
    image = smooth_image(size=(60, 60))
    sitk.WriteImage(blob_label(image, (0.5, 0.45), values=(3,)), str(tmp_path / "mask.nii.gz"))
    settings = RegionSettings(keep_mask=str(tmp_path / "mask.nii.gz"))
    result = deform(image, models[2], level=60, seed=5, steps=1, region=settings)
    lengths = np.linalg.norm(sitk.GetArrayFromImage(result.ddf), axis=-1)
    assert lengths[sitk.GetArrayFromImage(sitk.ReadImage(settings.keep_mask)) > 0].max() < 1e-6
    assert lengths.max() > 0.5


def test_a_pose_moves_the_whole_scan_after_the_field(models):
    image = smooth_image(size=(40, 38, 36))
    bare, posed = (
        deform(image, models[3], level=50, seed=4, steps=1, pose=p, region=middle(image)) for p in (0.0, 1.0)
    )
    pose = deform(image, models[3], level=0, seed=4, steps=1, pose=1.0, region=middle(image))
    assert certify_on_grid(posed.field, image).certified
    corner = image.TransformIndexToPhysicalPoint([2, 2, 2])
    assert np.linalg.norm(np.subtract(posed.transform.TransformPoint(corner), corner)) > 0.5
    # The pose reads the image that the field has made.
    for index in ([20, 19, 18], [17, 20, 17], [22, 17, 19]):
        point = image.TransformIndexToPhysicalPoint(index)
        expected = bare.transform.TransformPoint(pose.transform.TransformPoint(point))
        assert np.allclose(posed.transform.TransformPoint(point), expected, atol=0.35)


def test_paired_structures_get_a_box_each_and_near_ones_share_it(models):
    image = smooth_image(size=(120, 60, 60))
    apart = blob_label(image, (0.2, 0.5, 0.5), (0.8, 0.5, 0.5), radius=0.06)
    near = blob_label(image, (0.42, 0.5, 0.5), (0.58, 0.5, 0.5), radius=0.06)
    assert len(regions_around(apart, ())) == 2
    assert len(regions_around(near, ())) == 1
    result = deform(image, models[3], level=50, seed=1, steps=1, region=RegionSettings(around=(1,)), label=apart)
    assert certify_on_grid(result.field, image).certified
    lengths = np.linalg.norm(sitk.GetArrayFromImage(result.ddf), axis=-1)
    first, second = (distance_outside(image, region) for region in result.target.regions)
    assert lengths[first < 0].max() > 0.2
    assert lengths[second < 0].max() > 0.2
    assert not lengths[(first > result.margin_mm) & (second > result.margin_mm)].any()


def test_fields_of_overlapping_margins_are_proven(models):
    image = smooth_image(size=(100, 50, 50))
    boxes = box_in(image, (0.15, 0.2, 0.2), (0.48, 0.8, 0.8)), box_in(image, (0.5, 0.2, 0.2), (0.85, 0.8, 0.8))
    result = deform(image, models[3], level=79, seed=1, steps=1, region=RegionSettings(boxes))
    assert certify_on_grid(result.field, image).certified


def test_around_chosen_labels():
    image = smooth_image(size=(100, 80))
    label = blob_label(image, (0.3, 0.3), (0.7, 0.7), radius=0.05, values=(2, 5))
    for value, center in ((2, (30, 24)), (5, (70, 56))):
        (region,) = regions_around(label, (value,))
        start, stop = box_of(region, label)
        assert np.allclose((start + stop - 1) / 2, center, atol=1.5)
        assert ((stop - start) > 2 * 0.05 * np.asarray(image.GetSize())).all()
    with pytest.raises(ImageError, match="no voxel of 9; its values are 2, 5"):
        regions_around(label, (9,))
    with pytest.raises(ImageError, match="empty"):
        regions_around(label * 0, ())


def test_a_label_that_reaches_out_is_said():
    image = smooth_image(size=(60, 60))
    label = blob_label(image, (0.35, 0.5), radius=0.1, values=(6,))
    with pytest.warns(FallbackWarning, match=r"reach out of the region \(6\)"):
        find_target(image, middle(image), label)


def test_a_stack_of_slices_has_a_region_in_plane_and_along_the_slices(models):
    image = smooth_image(size=(60, 56, 10), spacing=(1.0, 1.0, 8.0))
    region = RegionSettings((box_in(image, (0.3, 0.3, 0.4), (0.7, 0.7, 0.6)),))
    result = deform(image, models[2], level=60, seed=3, steps=1, region=region)
    moved = np.linalg.norm(sitk.GetArrayFromImage(result.ddf), axis=-1).max(axis=(1, 2))
    assert moved[4] > 0.2
    assert moved[5] > 0.2
    assert moved[0] == moved[9] == 0
    assert certify_on_grid(result.field, image).certified
    posed = deform(image, models[2], level=60, seed=3, steps=1, pose=1.0, region=region)
    assert certify_on_grid(posed.field, image).certified


def test_the_same_seed_gives_the_same_field_and_others_differ(models):
    image = smooth_image(size=(60, 60))
    a, b, c = deform_all(image, models[2], level=40, seeds=(1, 1, 2), steps=1, region=middle(image))
    assert np.array_equal(*(sitk.GetArrayFromImage(one.field) for one in (a, b)))
    assert not np.array_equal(*(sitk.GetArrayFromImage(one.field) for one in (a, c)))


def test_the_second_field_of_a_pair_lies_around_the_moved_label(models):
    image = smooth_image(size=(80, 80))
    label = blob_label(image, (0.4, 0.5), (0.55, 0.5), radius=0.06, values=(1, 2))
    settings = DeformationSettings(50, 1, 1.0, region=RegionSettings(around=(1,), keep=(2,)))
    pair = synthesize(image, label, models[2], (settings, settings), 3)
    places = [np.argwhere(sitk.GetArrayFromImage(one) == 1).mean(axis=0) for one in (label, pair.moving_label)]
    centers = [np.mean(one.target.boxes[0], axis=0)[::-1] - 0.5 for one in (pair.first, pair.second)]
    assert np.abs(places[0] - places[1]).max() > 1
    assert all(np.abs(p - c).max() < 3 for p, c in zip(places, centers, strict=True))
    assert pair.second.certified


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Region.of(range(7)), "six numbers"),
        (lambda: Region((0.0, float("nan")), (1.0, 1.0)), "finite"),
        (lambda: RegionSettings((Region((0.0, 0.0), (1.0, 1.0)),), around=(1,)), "not both"),
        (lambda: RegionSettings(around=(), margin=-2.0), "out of range"),
        (lambda: RegionSettings(keep=(1,), margin=2.0), "needs a region"),
        (lambda: RegionSettings.of({"boxes": 3}), "no valid 'region'"),
    ],
)
def test_settings_that_are_not_valid(make, message):
    with pytest.raises(SettingError, match=message):
        make()


def test_regions_that_do_not_fit_the_image(models):
    image = smooth_image(size=(40, 40, 40))
    with pytest.raises(SettingError, match="3D image has 6 numbers"):
        deform(image, models[3], region=RegionSettings((Region((0.0, 0.0), (9.0, 9.0)),)))
    with pytest.raises(ImageError, match="outside the scan"):
        deform(image, models[3], region=RegionSettings((Region((900.0,) * 3, (990.0,) * 3),)))
    with pytest.raises(ImageError, match="no label to deform around"):
        deform(image, models[3], region=RegionSettings(around=()))
    with pytest.raises(ImageError, match="structures to keep"):
        deform(image, models[3], region=middle(image, keep=(1,)))


def test_settings_survive_a_record():
    settings = RegionSettings((Region((0.0, 1.0, 2.5), (9.0, 8.0, 7.0)),), None, 12.5, (3,), "")
    assert RegionSettings.of(settings.to_dict()) == settings
    around = RegionSettings(around=(), keep=(2, 4))
    assert RegionSettings.of(around.to_dict()) == around
    assert RegionSettings(around=(5,), keep=(9, 7)).renumbered({0: 0, 5: 1, 9: 2}) == RegionSettings(
        around=(1,), keep=(2,)
    )
    with pytest.raises(ImageError, match="No label has the value 8"):
        RegionSettings(around=(8,)).renumbered({0: 0, 5: 1})


def ct_phantom():
    """A body with a spine, in air, above a table that touches nothing; 3 mm."""
    array = np.full((40, 70, 70), -1000, np.int16)
    y, x = np.mgrid[:70, :70]
    array[:, ((x - 35) / 28.0) ** 2 + ((y - 32) / 20.0) ** 2 < 1] = 40
    array[:, ((x - 35) ** 2 + (y - 44) ** 2) < 25] = 600
    array[:, 58:60, 8:62] = 500
    image = sitk.GetImageFromArray(array)
    image.SetSpacing((3.0, 3.0, 3.0))
    return image


def test_bone_is_found_without_the_table(models):
    image = ct_phantom()
    assert is_ct(image)
    index = to_index(bone_points(image), image)
    # All of the spine, and nothing of the table.
    assert len(index) >= 40 * 60
    assert np.hypot(index[:, 0] - 35, index[:, 1] - 44).max() < 5
    assert not is_ct(smooth_image(size=(30, 30, 30)))
    result = deform(image, models[3], level=60, seed=0, steps=1, region=middle(image, 0.3, 0.6))
    bone = result.target.described(result)["bone"]
    assert bone["inside"] is None or bone["inside"]["max_mm"] >= bone["inside"]["mean_mm"]
    assert bone["outside"]["mean_mm"] < 60
