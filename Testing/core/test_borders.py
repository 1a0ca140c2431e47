"""Where tissue touches a face of the scan, nothing moves in from outside; a pose brings in a mirror image."""

from __future__ import annotations

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from support import rotation, smooth_image

from DRDMLib import deform
from DRDMLib.deformation import displacement_transform
from DRDMLib.diffusion.slip import SlipPlanes
from DRDMLib.invertibility.certificate import certify_on_grid
from DRDMLib.samples import augment
from DRDMLib.settings import DeformationSettings
from DRDMLib.spatial import borders
from DRDMLib.spatial.borders import closed_faces, inside_mask, invented_fraction, outside_fraction
from DRDMLib.spatial.resampling import warp_image, warp_label

OBLIQUE = rotation(0.3, -0.2, 0.5)


def read_index(ddf: sitk.Image) -> np.ndarray:
    """Where each voxel of a deformed image is read, in voxels of the original: (*S, d), by SimpleITK alone."""
    kind = sitk.sitkVectorFloat64
    start = sitk.PhysicalPointSource(kind, ddf.GetSize(), ddf.GetOrigin(), ddf.GetSpacing(), ddf.GetDirection())
    points = sitk.GetArrayFromImage(start) + sitk.GetArrayFromImage(sitk.Cast(ddf, kind))
    # SimpleITK's map from points to indices is affine.
    zero = np.asarray(ddf.TransformPhysicalPointToContinuousIndex([0.0] * len(ddf.GetSize())))
    units = [ddf.TransformPhysicalPointToContinuousIndex(unit) for unit in np.eye(len(zero)).tolist()]
    return points @ (np.asarray(units) - zero) + zero


def beyond(ddf: sitk.Image) -> np.ndarray:
    """How far each voxel is read from outside, in voxels: (d, 2) largest distances beyond the faces of each axis."""
    index, size = read_index(ddf), np.asarray(ddf.GetSize())
    axes = tuple(range(len(size)))
    return np.stack([(-0.5 - index).max(axis=axes), (index - size + 0.5).max(axis=axes)], axis=1)


def tissue(size: tuple[int, ...], *geometry) -> sitk.Image:
    """An image that shows tissue at all of its faces, and holes inside."""
    array = sitk.GetArrayFromImage(smooth_image(size, *geometry)) + 2000
    array[tuple(slice(4, -4) for _ in size)] -= 1500
    image = sitk.GetImageFromArray(array)
    image.CopyInformation(smooth_image(size, *geometry))
    return image


@pytest.mark.parametrize(
    ("size", "spacing", "direction"),
    [
        ((26, 30, 22), (1.0, 1.0, 1.0), np.eye(3)),
        ((30, 24, 9), (0.8, 1.1, 3.0), OBLIQUE),
        # Finer than the model's grid by so much that the field is refined.
        ((54, 44, 40), (1.0, 1.0, 1.0), np.eye(3)),
        ((26, 20, 24), (1.0, 1.2, 0.9), OBLIQUE @ np.diag([-1.0, 1.0, -1.0])),
        ((40, 28), (0.7, 0.9), np.diag([1.0, -1.0])),
    ],
)
@pytest.mark.parametrize("level", [30, 72])
def test_nothing_is_read_from_outside(size, spacing, direction, level, tiny_model, tiny_model_2d):
    scan = tissue(size, spacing, direction)
    assert len(closed_faces(scan)) == 2 * len(size)
    model = tiny_model if len(size) == 3 else tiny_model_2d
    for seed in (0, 1) if level == 30 else (1,):
        made = deform(scan, model, level, seed, border="closed", steps=3)
        assert beyond(made.ddf).max() < 1e-3
        assert made.invented_fraction == 0
        assert certify_on_grid(made.field, scan).certified
        free = deform(scan, model, level, seed, border="open", steps=3)
        outside = (read_index(free.ddf) < -0.5 - 1e-6) | (read_index(free.ddf) > np.asarray(size) - 0.5 + 1e-6)
        assert free.invented_fraction == pytest.approx(outside.any(axis=-1).mean(), abs=0.01)
        assert free.invented_fraction > 0
    assert deform(scan, model, level, 1, steps=3).invented_fraction == 0
    if size[-1] == 9:
        # Slice by slice faces are open by default.
        assert deform(scan, tiny_model_2d, level, 1, steps=3).invented_fraction > 0


def test_tissue_moves_along_a_closed_face(tiny_model):
    scan = tissue((26, 30, 22))
    made = deform(scan, tiny_model, 60, 0)
    layer = sitk.GetArrayFromImage(made.ddf)[0]
    assert np.abs(layer[..., :2]).max() > 1 and np.abs(layer[..., 2]).max() < 0.5


def test_only_faces_with_tissue_are_closed():
    array = np.zeros((30, 40, 36), np.int16)
    array[:20, 10:30, 10:26] = 100
    image = sitk.GetImageFromArray(array)
    image.SetDirection(OBLIQUE.ravel().tolist())
    (face,) = closed_faces(image)
    assert np.allclose(image.TransformPhysicalPointToContinuousIndex(face.point), [17.5, 19.5, -0.5])
    assert np.allclose(face.normal, OBLIQUE[:, 2])
    # A speck of noise does not close a face, a single slice has no faces along its axis.
    array[5, 0, 5] = 100
    assert len(closed_faces(sitk.GetImageFromArray(array))) == 1
    slice_of_tissue = np.full((1, 30, 40), 100, np.int16)
    slice_of_tissue[:, 12:18, 12:18] = 0
    assert len(closed_faces(sitk.GetImageFromArray(slice_of_tissue))) == 4
    hounsfield = np.full((20, 20, 20), -1024, np.int16)
    hounsfield[:, 5:15, 5:15] = 40
    assert len(closed_faces(sitk.GetImageFromArray(hounsfield))) == 2


def test_planes_stay_through_compositions():
    """Both nodes beside a plane have no normal displacement, on the image's grid and on a control grid."""
    planes = SlipPlanes(((-0.5, 15.5), (4.5,)), 16)
    field = torch.rand(2, 2, 16, 16, generator=torch.Generator().manual_seed(0))
    held = planes.hold(field, 0.2)
    assert float(held[:, 0, [0, 15]].abs().max()) == 0 and float(held[:, 1, :, 4:6].abs().max()) == 0
    assert torch.equal(held[:, 0, 7:9], field[:, 0, 7:9])
    padded = planes.hold(field, 0.2, padded=True)
    # The control grid has a node every two voxels, at -7.5, -5.5, ...; -1.5 and 0.5 lie beside -0.5.
    assert float(padded[:, 0, [3, 4, 11, 12]].abs().max()) == 0 and float(padded[:, 0, 2].abs().max()) > 0
    assert SlipPlanes(((), ()), 16).hold(field) is field


@pytest.mark.parametrize("pixel", [sitk.sitkInt16, sitk.sitkFloat32, sitk.sitkUInt8])
def test_a_mirror_image_lies_beyond_the_faces(pixel):
    """SimpleITK's mirror padding is the judge."""
    image = sitk.Cast(
        sitk.Clamp(smooth_image((20, 16, 12), (1.0, 1.5, 2.0), OBLIQUE), lowerBound=0, upperBound=250), pixel
    )
    shift = sitk.TranslationTransform(3, (OBLIQUE @ np.array([6.3, -7.0, 5.1])).tolist())
    expected = sitk.Resample(
        sitk.MirrorPad(image, [12] * 3, [12] * 3), image, shift, sitk.sitkLinear, 0.0, sitk.sitkFloat32
    )
    found = sitk.GetArrayFromImage(warp_image(image, image, shift)).astype(float)
    rounding = 0.51 if pixel != sitk.sitkFloat32 else 1e-3
    assert np.abs(found - sitk.GetArrayFromImage(expected)).max() < rounding


def test_labels_are_mirrored_like_images():
    image = smooth_image((24, 20, 16), (1.0, 1.5, 2.0), OBLIQUE)
    label = sitk.Cast(image > 150, sitk.sitkUInt8)
    shift = sitk.TranslationTransform(3, (OBLIQUE @ np.array([8.0, -9.0, 10.0])).tolist())
    by_image = sitk.GetArrayFromImage(warp_image(image, image, shift)) > 150
    by_label = sitk.GetArrayFromImage(warp_label(label, label, shift)) > 0
    # A whole number of voxels: the borders of labels are smoothed, nothing else changes.
    assert (by_image == by_label).mean() > 0.98
    repeated = sitk.Resample(label, label, shift, sitk.sitkNearestNeighbor, 0.0, sitk.sitkUInt8, True)
    assert (by_image == (sitk.GetArrayFromImage(repeated) > 0)).mean() < 0.95


def test_what_a_pose_brings_in_is_counted(tiny_model):
    scan = tissue((26, 24, 22))
    still = augment(scan, None, tiny_model, DeformationSettings(40), 3).deformation
    posed = augment(scan, None, tiny_model, DeformationSettings(40, pose=1.0), 3).deformation
    faces = closed_faces(scan)
    assert still.invented_fraction == 0 < posed.invented_fraction
    assert posed.invented_fraction == invented_fraction(posed.field, scan, faces)
    assert posed.metrics.certified_invertible


def test_what_is_read_from_outside_is_marked():
    image = smooth_image((24, 20, 18), (1.5, 2.0, 2.5))
    image.SetDirection((0, 1, 0, 1, 0, 0, 0, 0, -1))
    shifted = sitk.Image(image.GetSize(), sitk.sitkVectorFloat64, 3)
    shifted.CopyInformation(image)
    index_shift = np.array([2.0, -3.0, 0.0])
    vector = np.asarray(image.TransformContinuousIndexToPhysicalPoint(index_shift)) - image.GetOrigin()
    values = np.broadcast_to(vector, (18, 20, 24, 3))
    field = sitk.GetImageFromArray(values.copy(), isVector=True)
    field.CopyInformation(image)
    mask = sitk.GetArrayFromImage(inside_mask(field, image))
    # SimpleITK reads its default value where a point is outside.
    judge = sitk.Resample(image * 0 + 1, image, displacement_transform(field), sitk.sitkNearestNeighbor, 0.0)
    assert np.array_equal(mask, sitk.GetArrayFromImage(judge))
    assert mask.mean() == pytest.approx((22 / 24) * (17 / 20))
    assert outside_fraction(field, image) == pytest.approx(1 - mask.mean())


def test_the_limit_of_tissue_is_remembered_by_the_contents_of_a_scan(monkeypatch):
    image = smooth_image((24, 22, 20))
    computed = []
    whole = borders._range_of
    monkeypatch.setattr(borders, "_range_of", lambda sample: computed.append(1) or whole(sample))
    faces = [closed_faces(one) for one in (image, sitk.Image(image), image * 0 + 100, image)]
    assert len(computed) == 2
    assert faces[0] == faces[1] == faces[3] != faces[2]
