"""Pictures of slices: thumbnails and figures are drawn by the same code."""

import numpy as np
import pytest
import SimpleITK as sitk

from DRDMLib.drawing import BACKGROUND, FIGURE, GRID_COLOR, LABEL_COLORS, Plane, SlicePicture, Style, fullest_plane

# Ten pixels for each voxel of an image of 12 by 12.
TEN = Style(side=120, lines=6)


def image_of(array, spacing=None):
    image = sitk.GetImageFromArray(array)
    if spacing:
        image.SetSpacing(spacing)
    return image


def no_field(image):
    field = sitk.Image(image.GetSize(), sitk.sitkVectorFloat64, image.GetDimension())
    field.CopyInformation(image)
    return field


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int64])
def test_contours_are_the_pixels_beside_another_value(dtype):
    """Where a label ends at the border of the image there is no contour."""
    names = np.zeros((12, 12), dtype)
    names[:5, :6], names[3:9, 6:], names[9, 3] = 1, 2, 9
    picture = SlicePicture(image_of(np.zeros((12, 12), np.uint8)), Plane(), TEN, (0.0, 1.0))
    picture.draw_contours(image_of(names))
    rows, columns = (np.rint(np.linspace(0, 11, 120)).astype(int) for _ in range(2))
    large = np.pad(names[np.ix_(rows, columns)], 1, mode="edge")
    inner = large[1:-1, 1:-1]
    beside = [large[:-2, 1:-1], large[2:, 1:-1], large[1:-1, :-2], large[1:-1, 2:]]
    edge = (inner != 0) & np.any([inner != other for other in beside], axis=0)
    expected = np.where(edge[..., None], LABEL_COLORS[(inner.astype(int) - 1) % len(LABEL_COLORS)], 0)
    assert np.array_equal(picture.rgb, expected)
    assert edge.any() and not edge[0, :50].any()


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("alone", [False, True])
def test_a_grid_that_nothing_bends_is_straight(ndim, alone):
    image = image_of(np.zeros((12,) * ndim, np.uint8))
    picture = SlicePicture(image, fullest_plane(image, None), TEN, (0.0, 1.0))
    picture.draw_grid(no_field(image), alone=alone)
    line = GRID_COLOR if alone else (0.55 * GRID_COLOR).astype(np.uint8)
    on = (picture.rgb == line).all(axis=2)
    assert on.all(axis=1).sum() == on.all(axis=0).sum() == TEN.lines - 1
    assert (picture.rgb[~on] == (BACKGROUND if alone else 0)).all()


def test_a_grid_shows_where_the_image_was_read():
    """Two voxels to the right: the lines go two voxels to the left, in every plane."""
    image = image_of(np.zeros((12, 12, 12), np.uint8), (1.0, 2.0, 3.0))
    for axis in range(3):
        across = Plane(axis).in_plane[0]
        field = no_field(image)
        array = sitk.GetArrayFromImage(field)
        array[..., across] = 2 * image.GetSpacing()[across]
        moved = image_of(array)
        moved.CopyInformation(image)
        on = []
        for one in (field, moved):
            picture = SlicePicture(image, Plane(axis, 6), TEN)
            picture.draw_grid(one, alone=True)
            on.append((picture.rgb == GRID_COLOR).all(axis=2).all(axis=0))
        pixels = 2 * on[0].size / 12
        straight, bent = (np.flatnonzero(o) for o in on)
        shifted = straight[:, None] - bent[None]
        assert (np.abs(shifted - pixels).min(axis=1) <= 3).sum() >= len(straight) - 1


@pytest.mark.parametrize("storage", ["LPS", "RAS", "LAI", "RPI"])
def test_every_plane_is_upright(storage):
    """A bright corner at the front, the head and the patient's right is found at the top left of each plane."""
    array = np.zeros((8, 8, 8), np.float32)
    array[4:, :4, :4] = 1
    image = sitk.DICOMOrient(image_of(array), storage)
    for axis in range(3):
        plane = fullest_plane(image, image > 0, axis)
        upright = SlicePicture(image, plane, FIGURE).upright()
        assert upright[60, 60, 0] == 255 and upright[-60, 60, 0] == upright[60, -60, 0] == upright[-60, -60, 0] == 0
        small = plane.upright(plane.cut(image), image)
        assert small[0, 0] == 1 and small[-1, 0] == small[0, -1] == 0


def test_proportions_are_true():
    image = image_of(np.random.default_rng(0).random((10, 20, 30)).astype(np.float32), (1.0, 2.0, 6.0))
    shapes = [SlicePicture(image, Plane(axis), TEN).rgb.shape for axis in range(3)]
    assert shapes == [(120, 80, 3), (120, 60, 3), (120, 90, 3)]
    assert all(SlicePicture(image, Plane(a), TEN).upright_square().shape == (120, 120, 3) for a in range(3))


def test_the_layer_with_most_of_the_label_is_shown():
    label = np.zeros((6, 8, 10), np.uint8)
    label[1, 2:5, 3:9] = label[4, 7, 3] = 1
    image = image_of(label)
    assert [fullest_plane(image, image, axis).layer for axis in (1, 2)] == [2, 1]
    assert fullest_plane(image, image, 0).layer == 3
    assert [fullest_plane(image, None, axis).layer for axis in range(3)] == [5, 4, 3]
    assert fullest_plane(image, image_of(np.zeros_like(label)), 2).layer == 3
    assert fullest_plane(image[:, :, 0], None) == Plane()


def test_smooth_contours_keep_single_voxels():
    names = np.zeros((12, 12), np.uint8)
    names[5, 5], names[2:4, 8:] = 1, 2
    picture = SlicePicture(image_of(names), Plane(), FIGURE)
    picture.draw_contours(image_of(names))
    for color in LABEL_COLORS[:2]:
        assert (picture.rgb == color).all(axis=2).sum() > 100


def test_a_label_with_very_many_values_is_outlined():
    pytest.importorskip("matplotlib")
    from DRDMLib.drawing import joined_if_many

    few, many = (image_of((np.indices((12, 12)).sum(axis=0) % n).astype(np.uint8)) for n in (8, 9))
    assert np.unique(sitk.GetArrayViewFromImage(joined_if_many(few))).tolist() == list(range(8))
    assert np.array_equal(sitk.GetArrayFromImage(joined_if_many(many)), sitk.GetArrayFromImage(many) != 0)
