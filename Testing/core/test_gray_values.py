"""Versions whose gray values also go part of the way toward those of another scan."""

import json
from dataclasses import replace

import numpy as np
import pytest
import SimpleITK as sitk
from command_helpers import run_process
from production_helpers import RecordingReporter, records_of, settings_for
from test_toward import moved, person, without_labels, write_people

from DRDMLib.cli.parser import build_parser
from DRDMLib.errors import SettingError
from DRDMLib.gray_values import gray_change
from DRDMLib.io.datasets import Case
from DRDMLib.io.images import read_image
from DRDMLib.production.plan import AUGMENT, OTHERS, PHASES, SYNTHESIZE
from DRDMLib.production.regenerate import regenerate
from DRDMLib.production.run import RunRequest, produce
from DRDMLib.production.toward import settled
from DRDMLib.toward import find_way


def array(image):
    return sitk.GetArrayFromImage(image).astype(float)


def like(values, image):
    made = sitk.GetImageFromArray(values.astype(np.float32))
    made.CopyInformation(image)
    return made


def other_scanner(image, power=0.6, bright=1.4):
    """The same scan with another contrast, and brighter on one side."""
    values = array(image).clip(0)
    shading = np.linspace(1, bright, values.shape[-1])
    return like(1000 * (values / values.max()) ** power * shading, image)


def scaled(values):
    low, high = np.percentile(values, [0.5, 99.5])
    return (values - low) / (high - low)


def change_of(image, other):
    """The change of gray values between two scans that need no registration."""
    values = scaled(array(image)).clip(0, 1)
    still = np.zeros((image.GetDimension(), *values.shape))
    everywhere = np.ones(values.shape, bool)
    low, high = np.percentile(array(image), [0.5, 99.5])
    return gray_change(like(values, image), scaled(array(other)).clip(0, 1), everywhere, still, (low, high))


@pytest.mark.parametrize("turn", [lambda image: image, moved])
def test_a_scan_looks_as_if_it_came_from_the_other_scanner(turn):
    image = turn(person()[0])
    other = other_scanner(image)
    change = change_of(image, other)
    body, wanted = array(image) > 50, scaled(array(other))
    made = [array(change.apply(image, share)) for share in (0.0, 0.5, 1.0)]
    off = [np.abs(scaled(one) - wanted)[body].mean() for one in made]
    assert off[2] < 0.25 * off[0] and off[2] < off[1] < off[0]
    np.testing.assert_allclose(made[0], array(image), atol=1e-4)
    assert change.apply(image, 1.0).GetDirection() == image.GetDirection()


def test_the_shape_stays():
    """Of another person, the gray values are taken, and not where the borders are."""
    image, label = person()
    other = other_scanner(person((0.6, 0.5, 0.5))[0], 2.0, 1.0)
    made = array(find_way(image, other).gray.apply(image, 1.0))
    organ, body = array(label) > 0, (array(image) > 80) & (array(label) == 0)
    contrast = [one[organ].mean() / one[body].mean() for one in (array(image), made, array(other))]
    assert contrast[1] > 1.3 * contrast[0]
    # The border of the organ is where it was: half way between both, on a line through the middle.
    line = made[made.shape[0] // 2, made.shape[1] // 2]
    inside = line > (made[organ].mean() + made[body].mean()) / 2
    expected = organ[organ.shape[0] // 2, organ.shape[1] // 2]
    assert (inside[8:-8] != expected[8:-8]).mean() < 0.12


@pytest.mark.parametrize("pixel", [sitk.sitkUInt8, sitk.sitkInt16, sitk.sitkUInt16, sitk.sitkFloat32, sitk.sitkFloat64])
def test_the_type_of_an_image_stays(pixel):
    image = sitk.Cast(sitk.Clamp(person()[0], sitk.sitkFloat32, 0, 250), pixel)
    made = find_way(image, other_scanner(image, 0.4, 4.0)).gray.apply(image, 1.0)
    assert made.GetPixelID() == pixel and made.GetSize() == image.GetSize()
    values = array(made)
    assert np.isfinite(values).all() and np.abs(values - array(image)).max() > 20
    if pixel < sitk.sitkFloat32:
        assert values.min() >= array(image).min() and values.max() <= np.iinfo(sitk.GetArrayFromImage(made).dtype).max


def test_noise_in_the_air_is_not_blown_up():
    image = person()[0]
    noisy = like(array(image) + np.random.default_rng(0).normal(0, 1.0, array(image).shape), image)
    air = array(image) < 1e-6
    made = array(change_of(noisy, other_scanner(image, 0.2, 1.0)).apply(noisy, 1.0))
    assert made[air].std() < 6


def test_hounsfield_units_stay():
    image, other = (person(organ)[0] for organ in ((0.45, 0.4, 0.35), (0.6, 0.5, 0.5)))
    lungs, inside = (like(array(one) * 8 - 1000, one) for one in (image, other)), (0.0, 60.0)
    assert find_way(*lungs).gray is None
    # A part of the body without air has them as well.
    parts = [sitk.Cast(one - 100 + shift, sitk.sitkInt16) for one, shift in zip((image, other), inside, strict=True)]
    assert find_way(*parts).gray is None and find_way(image, other).gray is not None


def test_two_scans_in_one_place_have_the_same_gray_values():
    assert find_way(person()[0], person((0.5, 0.45, 0.4))[0], in_place=True).gray is None


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_single_slice_changes_as_a_2d_image(axis):
    flat = person((0.45, 0.4), size=(44, 40))[0]
    pair = [flat, other_scanner(flat)]
    volumes = []
    for one in pair:
        volume = sitk.GetImageFromArray(np.expand_dims(sitk.GetArrayFromImage(one), 2 - axis))
        volume.SetSpacing([2.0, 2.0, 2.0])
        volumes.append(moved(volume))
    plain, found = find_way(*pair).gray.apply(flat, 0.7), find_way(*volumes).gray.apply(volumes[0], 0.7)
    np.testing.assert_allclose(array(found).squeeze(2 - axis), array(plain), rtol=1e-4, atol=1e-2)
    assert np.abs(array(plain) - array(flat)).max() > 10


def test_shares_of_shape_and_gray_values_are_drawn_apart():
    way = find_way(person()[0], person((0.6, 0.5, 0.5))[0])
    for seeds in (range(200), range(2**128, 2**128 + 200)):
        gray, shape = [way.gray_share(seed) for seed in seeds], [way.share(seed) for seed in seeds]
        assert gray == [way.gray_share(seed) for seed in seeds]
        assert min(gray) < 0.05 and max(gray) > 0.95 and abs(np.corrcoef(gray, shape)[0, 1]) < 0.2


def run(data, folder, model, **more):
    request = RunRequest(data, folder, model=str(model), device="cpu")
    return produce(request, settings_for(AUGMENT, levels=((12,),), **more), RecordingReporter())


def test_labels_do_not_change_and_samples_are_made_again(tmp_path, tiny_models):
    data = write_people(tmp_path / "data", (0.45, 0.6))
    for name, gray in (("own", "own"), ("others", "others")):
        run(data, tmp_path / name, tiny_models[3], toward=OTHERS, gray_values=gray)
    own, others = (records_of(tmp_path / name)["p0_t12_000"] for name in ("own", "others"))
    assert own["digests"]["label"] == others["digests"]["label"] and own["item"] == others["item"]
    assert own["digests"]["image"] != others["digests"]["image"]
    assert "gray" not in own["toward"] and 0 <= others["toward"]["gray"] <= 1
    for name in ("own", "others"):
        record = tmp_path / name / "records" / "p0_t12_000.json"
        made = regenerate(record, tmp_path / f"{name} again", model=str(tiny_models[3]))
        assert "image" in made.compared and not made.differences
    # The originals of the training set stay as they are.
    image = "imagesTr/p0_0000.nii.gz"
    assert (tmp_path / "own" / image).read_bytes() == (tmp_path / "others" / image).read_bytes()
    np.testing.assert_array_equal(
        array(read_image(tmp_path / "others" / image)), array(read_image(data / "images" / "p0.nii.gz"))
    )


def test_gray_values_go_where_versions_go(tmp_path):
    label = tmp_path / "label.nii.gz"
    cases = [Case(f"p{n}", tmp_path / f"p{n}.nii.gz", label if n < 2 else None, subject=f"p{n}") for n in range(12)]

    def found(command=AUGMENT, toward="auto", gray="auto", earlier=None, count=12):
        settings = replace(settings_for(command, toward=toward), gray_values=gray)
        return settled(settings, cases[:count], earlier)[0].gray_values

    assert found() == found(toward=OTHERS) == found(toward="scans") == found(gray="others") == "others"
    assert found(count=5) == found(toward="") == found(toward=PHASES) == found(gray="own") == "own"
    # The field between the images of a pair is exact.
    assert found(SYNTHESIZE, toward=OTHERS) == "own"
    # What was begun goes on.
    assert found(earlier={"settings": {"toward": "unlabeled"}}) == "own"
    assert found(earlier={"settings": {"toward": "unlabeled", "gray_values": "others"}}) == "others"
    for wrong in ({"toward": ""}, {"toward": PHASES}, {"count": 5}, {"command": SYNTHESIZE, "toward": OTHERS}):
        with pytest.raises(SettingError, match="leave out --gray-values"):
            found(gray="others", **wrong)


def test_the_command_says_it(tmp_path, tiny_models):
    data = without_labels(write_people(tmp_path / "data", np.linspace(0.4, 0.6, 12)), ("p0", "p4"))
    how = ["--model", str(tiny_models[3]), "--steps", "1", "--device", "cpu", "--levels", "12"]
    done = run_process("augment", data, "-o", tmp_path / "out", *how)
    assert done.returncode == 0 and "and so do their gray values" in done.stderr, done.stderr
    settings = json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))["settings"]
    assert settings["gray_values"] == "others"
    other = run_process("augment", data, "-o", tmp_path / "out", "--gray-values", "own", "--resume", *how)
    assert other.returncode == 2 and "made with other gray values" in other.stderr
    done = run_process("augment", data, "-o", tmp_path / "own", "--gray-values", "own", *how)
    assert done.returncode == 0 and "gray" not in done.stderr
    # Also where the other scans are named, since it was not asked for.
    said = "gray values of versions go toward those of the other scans"
    for name, more, told in (("named", [], True), ("asked", ["--gray-values", "others"], False)):
        named = run_process("augment", data, "-o", tmp_path / name, "--toward", "others", *more, *how)
        assert named.returncode == 0 and (f"{said}, too, except in CT. Leave" in named.stderr) == told, named.stderr
        notes = json.loads((tmp_path / name / "report.json").read_text(encoding="utf-8"))["notes"]
        assert any(said in note for note in notes)
    assert build_parser().parse_args(["augment", "scans", "-o", "out"]).gray_values == "auto"
