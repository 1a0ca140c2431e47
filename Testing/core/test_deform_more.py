"""Pictures of ``drdm deform``, several labels and channels, and ``drdm demo`` of one's own scan."""

import gzip
import json

import numpy as np
import pytest
import SimpleITK as sitk
from command_helpers import array_of, boxes, scene, write

from DRDMLib.drawing import GRID_COLOR, LABEL_COLORS, RESULT
from DRDMLib.pictures import version_picture
from DRDMLib.spatial.coordinates import direction_matrix


@pytest.fixture(scope="module")
def common(tiny_models):
    return ["--model", tiny_models[3], "--device", "cpu", "--steps", 1, "--level", 40]


def shift(image, millimeters):
    array = np.broadcast_to(np.asarray(millimeters, float), (*image.GetSize()[::-1], len(millimeters)))
    field = sitk.GetImageFromArray(np.ascontiguousarray(array), isVector=True)
    field.CopyInformation(image)
    return field


def tiles(path, side=RESULT.side):
    rgb = sitk.GetArrayFromImage(sitk.ReadImage(str(path)))
    return {
        (r, c): rgb[r * side : (r + 1) * side, c * side : (c + 1) * side]
        for r in range(rgb.shape[0] // side)
        for c in range(rgb.shape[1] // side)
    }


def test_the_picture_shows_before_after_grid_and_contours(tmp_path):
    image = scene()
    label = boxes(image)
    found = tiles(version_picture(image, shift(image, (0, 0, 0)), tmp_path / "p.png", (label, label)))
    assert set(found) == {(r, c) for r in range(3) for c in range(3)}
    colors = np.concatenate([LABEL_COLORS, [GRID_COLOR]])
    for (row, column), tile in found.items():
        has = [bool((tile == color).all(axis=-1).any()) for color in colors]
        assert has[0] == (column < 2), "contours are on the original and on the new version"
        if column == 1:
            assert np.array_equal(tile, found[row, 0]), "nothing moved"
    # Slices that are stored in another order are shown the same way up.
    turned = sitk.PermuteAxes(image, [1, 2, 0])
    again = tiles(version_picture(turned, shift(image, (0, 0, 0)), tmp_path / "q.png"))
    plain = tiles(version_picture(image, shift(image, (0, 0, 0)), tmp_path / "r.png"))
    assert {key: tile.mean().round() for key, tile in again.items()}.keys() == plain.keys()
    assert sorted(round(float(t.mean()), 1) for t in again.values()) == sorted(
        round(float(t.mean()), 1) for t in plain.values()
    )
    assert not np.array_equal(direction_matrix(turned), direction_matrix(image))


def test_the_picture_of_a_region_shows_where_it_moves(tmp_path):
    array = np.zeros((40, 40, 40), np.int16)
    array[30:34, ::2] = 100
    image = sitk.GetImageFromArray(array)
    field = np.zeros((40, 40, 40, 3))
    field[29:35, 10:20, 10:20, 0] = 2.0
    field = sitk.GetImageFromArray(field, isVector=True)
    there = tiles(version_picture(image, field, tmp_path / "a.png", where_it_moves=True))[0, 0]
    middle = tiles(version_picture(image, field, tmp_path / "b.png"))[0, 0]
    assert there.std() > 0 and middle.std() == 0


def test_flat_images_have_one_row(tmp_path):
    image = scene((26, 22))
    found = tiles(version_picture(image, shift(image, (0, 0)), tmp_path / "flat.png"))
    assert set(found) == {(0, 0), (0, 1), (0, 2)}
    assert (found[0, 2] != found[0, 1]).any()


def test_no_picture_and_only_field(tmp_path, drdm, common):
    scan = write(scene(), tmp_path / "scan.nii.gz")
    made = drdm("deform", scan, "-o", tmp_path / "a", "--no-picture", *common)
    assert made.status == 0 and not list((tmp_path / "a").glob("*.png"))
    made = drdm("deform", scan, "-o", tmp_path / "b", "--only-field", *common)
    assert made.status == 0 and not list((tmp_path / "b").glob("*.png"))
    plain = drdm("deform", scan, "-o", tmp_path / "c", "--only-field", "--uncompressed", *common)
    assert plain.status == 0
    name = "scan_000_field.nii.gz"
    packed, stored = ((tmp_path / folder / name).read_bytes() for folder in "bc")
    assert len(stored) > len(packed) and gzip.decompress(stored) == gzip.decompress(packed)


def test_several_labels_and_channels_move_alike(tmp_path, drdm, common):
    image = scene()
    scan = write(image, tmp_path / "scan.nii.gz")
    one, two = write(boxes(image), tmp_path / "one.nii.gz"), write(boxes(image) == 3, tmp_path / "x" / "two.nrrd")
    other = write(image * 2, tmp_path / "t2.nii.gz")
    made = drdm(
        *("deform", scan, "-o", tmp_path / "out", "--label", one, "--label", two, "--channel", other, *common),
    )
    assert made.status == 0, made.err
    (item,) = json.loads((tmp_path / "out" / "report.json").read_text())["items"]
    assert item["labels"] == ["scan_000_label_one.nii.gz", "scan_000_label_two.nii.gz"]
    assert item["label"] == item["labels"][0] and item["picture"] == "scan_000.png"
    assert item["channels"] == ["scan_000_channel_t2.nii.gz"]
    out = {name: array_of(tmp_path / "out" / name) for name in [*item["labels"], *item["channels"], item["image"]]}
    assert (out[item["labels"][0]] == 3).sum() == pytest.approx((out[item["labels"][1]] == 1).sum(), abs=3)
    assert np.abs(out[item["channels"][0]] - 2.0 * out[item["image"]]).max() <= 2
    far = sitk.Image(image)
    far.SetOrigin([900.0, 0.0, 0.0])
    made = drdm("deform", scan, "-o", tmp_path / "far", "--channel", write(far, tmp_path / "far.nii.gz"), *common)
    assert made.status == 2 and "does not lie where the image is" in made.err


def test_demo_of_a_scan_of_ones_own(tmp_path, drdm, common):
    pytest.importorskip("matplotlib")
    scan = write(scene(), tmp_path / "mine.nii.gz")
    made = drdm("demo", scan, "-o", tmp_path / "demo", *common)
    assert made.status == 0, made.err
    names = sorted(p.name for p in (tmp_path / "demo").iterdir())
    assert names == ["demo.png", "mine_000_ddf.nii.gz", "mine_000_image.nii.gz", "report.json"]
