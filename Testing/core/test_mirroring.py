"""Mirror images among the versions of a training set."""

import json
from dataclasses import replace

import numpy as np
import pytest
import SimpleITK as sitk
from command_helpers import boxes, run_process, scene, write
from production_helpers import make, records_of, settings_for

from DRDMLib.errors import ImageError, SettingError
from DRDMLib.io.images import read_image
from DRDMLib.levels import REFLECTIONS
from DRDMLib.production.mirroring import Mirroring
from DRDMLib.production.plan import AUGMENT
from DRDMLib.production.regenerate import regenerate
from DRDMLib.spatial.reflection import reflected_image

ALL = Mirroring(REFLECTIONS)


def array(image):
    return sitk.GetArrayFromImage(image)


def oblique(size=(11, 9, 7), turn=0.3):
    """A scan whose axes are tilted and in another order than those of the patient."""
    image = sitk.GetImageFromArray(np.random.default_rng(0).normal(size=size[::-1]).astype(np.float32))
    order = np.asarray([[0, -1, 0], [0, 0, 1], [1, 0, 0]], float)
    tilt = np.asarray([[np.cos(turn), -np.sin(turn), 0], [np.sin(turn), np.cos(turn), 0], [0, 0, 1]])
    image.SetDirection((tilt @ order).ravel().tolist())
    image.SetSpacing((0.7, 1.1, 2.5))
    image.SetOrigin((12.3, -45.6, 78.9))
    return image


@pytest.mark.parametrize(("how", "axis"), [("left-right", 1), ("front-back", 2), ("head-feet", 0)])
def test_a_reflection_is_along_the_nearest_axis_of_the_scan(how, axis):
    image = oblique()
    mirrored = reflected_image(image, [how])
    # SimpleITK is the judge: its filter keeps each voxel at its place, so only the array is compared.
    expected = sitk.Flip(image, [k == axis for k in range(3)])
    np.testing.assert_array_equal(array(mirrored), array(expected))
    assert (mirrored.GetOrigin(), mirrored.GetDirection()) == (image.GetOrigin(), image.GetDirection())
    np.testing.assert_array_equal(array(reflected_image(mirrored, [how])), array(image))


@pytest.mark.parametrize("size", [(11, 9, 7), (11, 9)])
def test_rows_and_columns_change_places_with_their_spacings(size):
    image = oblique() if len(size) == 3 else oblique((*size, 1))[:, :, 0]
    mirrored = reflected_image(image, ["rows-columns"])
    assert mirrored.GetSize() == (9, 11, *size[2:]) and mirrored.GetDirection() == image.GetDirection()
    np.testing.assert_allclose(mirrored.GetSpacing()[:2], image.GetSpacing()[1::-1])
    swapped = sitk.PermuteAxes(image, [1, 0, *range(2, len(size))])
    np.testing.assert_array_equal(array(mirrored), array(swapped))
    middles = [
        one.TransformContinuousIndexToPhysicalPoint([(n - 1) / 2 for n in one.GetSize()]) for one in (image, mirrored)
    ]
    np.testing.assert_allclose(*middles, atol=1e-9)


def test_a_mirror_image_is_a_reflection_in_space():
    """Voxel by voxel: a point and its mirror image about the middle plane have the same value."""
    image = oblique()
    for how in REFLECTIONS:
        mirrored = reflected_image(image, [how])
        middle = np.asarray(image.TransformContinuousIndexToPhysicalPoint([(n - 1) / 2 for n in image.GetSize()]))
        direction = np.asarray(image.GetDirection()).reshape(3, 3)
        between = np.eye(3)
        if how == "rows-columns":
            between[:2, :2] = [[0, 1], [1, 0]]
        else:
            nearest = {"left-right": 1, "front-back": 2, "head-feet": 0}[how]
            between[nearest, nearest] = -1
        matrix = direction @ between @ direction.T
        assert np.linalg.det(matrix) == pytest.approx(-1)
        for index in [(0, 0, 0), (3, 2, 1), (8, 6, 4)]:
            point = np.asarray(mirrored.TransformIndexToPhysicalPoint(index))
            other = image.TransformPhysicalPointToIndex((middle + matrix @ (point - middle)).tolist())
            assert mirrored[index] == image[other]


def test_labels_of_two_sides_change_places_where_the_body_is_mirrored():
    image = oblique()
    label = sitk.Cast(image > 0, sitk.sitkUInt8) + 2 * sitk.Cast(image > 1, sitk.sitkUInt8)
    one = Mirroring(("left-right",), ((1, 3),))
    swapped = array(one.label(label))
    plain = array(replace(one, sides=()).label(label))
    np.testing.assert_array_equal(swapped, np.asarray([0, 3, 2, 1])[plain])
    # Two reflections turn the body; three mirror it again.
    two = Mirroring(("left-right", "front-back"), ((1, 3),))
    np.testing.assert_array_equal(array(two.label(label)), array(replace(two, sides=()).label(label)))
    three = Mirroring(("left-right", "front-back", "head-feet"), ((1, 3),))
    assert (array(three.label(label)) != array(replace(three, sides=()).label(label))).any()


def test_each_reflection_is_drawn_for_half_of_the_versions_by_itself():
    drawn = [ALL.drawn(seed).reflections for seed in range(400)]
    for how in REFLECTIONS:
        assert 150 < sum(how in one for one in drawn) < 250
    assert len(set(drawn)) == 2 ** len(REFLECTIONS)
    # With fewer to choose from, the same ones are drawn of these.
    few = Mirroring(("rows-columns", "left-right"))
    for seed, one in enumerate(drawn):
        assert few.drawn(seed).reflections == tuple(how for how in one if how in few.reflections)
        assert few.drawn(seed).drawn(seed) == few.drawn(seed)


@pytest.mark.parametrize("sides", [((1, 2), (2, 3)), ((1, 1),), ((0, 2),)])
def test_pairs_that_make_no_sense_are_refused(sides):
    with pytest.raises(SettingError, match="has one partner"):
        Mirroring(("left-right",), sides)
    with pytest.raises(SettingError, match="use left-right, front-back"):
        Mirroring(("upside-down",))


def test_a_flat_image_has_no_head_and_feet():
    with pytest.raises(ImageError, match="leave out 'head-feet'"):
        reflected_image(oblique()[:, :, 3], ["head-feet"])
    flat = oblique((8, 6, 1))[:, :, 0]
    flat.SetDirection((0, 1, 1, 0))
    np.testing.assert_array_equal(array(reflected_image(flat, ["left-right"])), array(flat)[::-1])


@pytest.fixture
def halves(tmp_path):
    """A dataset with two channels and labels 17 and 53 on the two sides of a body."""
    image = scene((22, 20, 18))
    write(image, tmp_path / "data" / "imagesTr" / "a_0000.nii.gz")
    write(image * 2, tmp_path / "data" / "imagesTr" / "a_0001.nii.gz")
    label = array(boxes(image))
    label = np.where(label > 0, np.where(np.arange(label.shape[2]) < label.shape[2] // 2, 17, 53), 0).astype(np.uint8)
    made = sitk.GetImageFromArray(label)
    made.CopyInformation(image)
    write(made, tmp_path / "data" / "labelsTr" / "a.nii.gz")
    return tmp_path / "data"


def test_versions_are_mirrored_after_they_were_deformed(halves, tmp_path, tiny_models):
    mirroring = Mirroring(("left-right", "rows-columns"), ((17, 53),))
    make(halves, tmp_path / "plain", tiny_models[3], copies=6)
    make(halves, tmp_path / "out", tiny_models[3], copies=6, mirroring=mirroring)
    found = records_of(tmp_path / "out")
    seen = set()
    for name, record in found.items():
        if not record["levels"]:
            assert "mirror" not in record
            continue
        seen.add(tuple(record["mirror"]["reflections"]))
        drawn = Mirroring(tuple(record["mirror"]["reflections"]), ((1, 2),))
        for kind, path in record["files"].items():
            if kind in ("image", "channel_0001", "label"):
                before = read_image(tmp_path / "plain" / path, need_contrast=False)
                expected = drawn.label(before) if kind == "label" else drawn.image(before)
                made = read_image(tmp_path / "out" / path, need_contrast=False)
                np.testing.assert_array_equal(array(made), array(expected))
                np.testing.assert_allclose(made.GetOrigin(), expected.GetOrigin(), atol=1e-4)
        file = tmp_path / "out" / "records" / f"{name}.json"
        again = regenerate(file, tmp_path / "again" / name, model=tiny_models[3])
        assert not again.differences and "label" in again.compared
    assert {(), ("left-right",), ("rows-columns",), ("left-right", "rows-columns")} == seen
    page = (tmp_path / "out" / "quality.html").read_text(encoding="utf-8")
    assert '"mirrored": "left-right, rows-columns"' in page or '"mirrored":"left-right, rows-columns"' in page


def test_a_run_with_mirror_images_goes_on_as_it_was_begun(halves, tmp_path, tiny_models):
    mirroring = Mirroring(("left-right",), ((17, 53),))
    make(halves, tmp_path / "out", tiny_models[3], mirroring=mirroring)
    make(halves, tmp_path / "out", tiny_models[3], mirroring=mirroring, resume=True)
    with pytest.raises(SettingError, match="made with other mirror"):
        make(halves, tmp_path / "out", tiny_models[3], resume=True)
    assert settings_for(AUGMENT).to_dict().keys() == settings_for(AUGMENT, mirroring=None).to_dict().keys()
    assert "mirror" not in settings_for(AUGMENT).to_dict()


def test_names_of_sides_must_be_explained(halves, tmp_path, tiny_models):
    names = {"background": 0, "Left-Hippocampus": 17, "Right-Hippocampus": 53}
    (halves / "dataset.json").write_text(json.dumps({"labels": names, "channel_names": {"0": "a", "1": "b"}}))
    for how in (Mirroring(("left-right",)), Mirroring(("left-right",), ((17, 54),))):
        with pytest.raises((SettingError, ImageError), match="--sides"):
            make(halves, tmp_path / "out", tiny_models[3], mirroring=how)
        assert not (tmp_path / "out").exists()
    _, reporter = make(halves, tmp_path / "out", tiny_models[3], mirroring=Mirroring(("left-right",), ()))
    assert not any("--sides" in text for text in reporter.messages)
    for name in ("rh_cortex", "lung_L", "left ventricle"):
        with pytest.raises(SettingError, match="names a side"):
            Mirroring(("left-right",)).require_sides(["background", name])
    Mirroring(("left-right",)).require_sides(["background", "liver", "lobe"])


def test_the_command_mirrors(halves, tmp_path, tiny_models):
    how = ["--model", tiny_models[3], "--steps", "1", "--device", "cpu", "--levels", "12"]
    done = run_process("augment", halves, "-o", tmp_path / "out", "--mirror", "left-right", "front-back", *how)
    assert done.returncode == 0 and "keep their values in mirror images" in done.stderr
    settings = json.loads((tmp_path / "out" / "run.json").read_text(encoding="utf-8"))["settings"]
    assert settings["mirror"] == {"reflections": ["left-right", "front-back"], "sides": None}
    for words, told in [
        (["--sides", "17:53"], "add --mirror"),
        (["--mirror", "left-right", "--sides", "none", "17:53"], "'none' alone"),
        (["--mirror", "left-right", "--sides", "17-53"], "give two values such as 17:53"),
        (["--mirror", "sideways"], "invalid choice"),
    ]:
        done = run_process("augment", halves, "-o", tmp_path / "other", *words, *how)
        assert done.returncode == 2 and told in done.stderr, done.stderr
        assert not (tmp_path / "other").exists()
