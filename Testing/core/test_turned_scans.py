"""Stacks of thick slices and 2D images are turned, as their operators have turned them, to find the way to them."""

import json
from dataclasses import replace

import numpy as np
import pytest
import SimpleITK as sitk
from production_helpers import RecordingReporter, records_of, settings_for
from test_toward import dice, moved, warped

from DRDMLib import toward
from DRDMLib.deforming import make_deformations
from DRDMLib.diffusion.poses import PoseSpread
from DRDMLib.models.catalogue import load_model
from DRDMLib.production.plan import AUGMENT, OTHERS
from DRDMLib.production.regenerate import regenerate
from DRDMLib.production.run import RunRequest, produce
from DRDMLib.settings import DeformationSettings
from DRDMLib.toward import find_way

STILL = PoseSpread(tuple(tuple(0.0 for _ in range(12)) for _ in range(12)))


def stack(wall=0.3, turned=0.0, size=(64, 64, 8), spacing=(2.0, 2.0, 10.0)):
    """Draw slices of something like a heart, turned about the middle; return the image and the label."""
    d = len(size)
    x, y = np.meshgrid(np.linspace(-1, 1, size[0]), np.linspace(-1, 1, size[1]))
    c, s = np.cos(np.radians(turned)), np.sin(np.radians(turned))
    x, y = c * x + s * y, c * y - s * x
    body = ((x - 0.05) / 0.85) ** 2 + (y / 0.8) ** 2 < 1
    spine = (x - 0.2) ** 2 + (y - 0.6) ** 2 < 0.03
    ring = (x - 0.1) ** 2 + y**2 < wall**2
    beside = ((x + 0.3) / 0.25) ** 2 + (y / 0.35) ** 2 < 1
    flat = 60.0 * body + 60.0 * beside + 100.0 * ring + 80.0 * spine
    label = (ring + 2 * (beside & ~ring)).astype(np.uint8)
    arrays = [flat.astype(np.float32), label]
    if d == 3:
        arrays = [np.repeat(one[None], size[2], axis=0) for one in arrays]
    images = [sitk.GetImageFromArray(one) for one in arrays]
    for one in images:
        one.SetSpacing(spacing[:d])
    return sitk.SmoothingRecursiveGaussian(images[0], 1.5), images[1]


def turned_back(label, way):
    """The label of another scan as the scan itself lies, by SimpleITK alone."""
    middle = label.TransformContinuousIndexToPhysicalPoint([(n - 1) / 2 for n in label.GetSize()])
    # About the normal of the slices.
    axis = np.reshape(label.GetDirection(), (3, 3))[:, 2]
    turn = sitk.VersorTransform(axis.tolist(), np.radians(way.turn))
    turn.SetCenter(middle)
    return sitk.Resample(label, turn, sitk.sitkNearestNeighbor)


@pytest.mark.parametrize("lies", [lambda image: image, moved])
@pytest.mark.parametrize("degrees", [60.0, -75.0])
def test_a_stack_that_is_turned_is_found(degrees, lies):
    (image, label), (other, expected) = stack(), stack(0.34, degrees)
    way = find_way(lies(image), lies(other))
    assert abs(way.turn) == abs(degrees) and way.after > 0.95
    # As well as where nobody turned the other one, except for the voxels of a turned label.
    alike, same = stack(0.34)
    as_well = dice(warped(label, find_way(image, alike)), same)
    assert dice(warped(lies(label), way), turned_back(lies(expected), way)) > as_well - 0.03 > 0.85
    ahead = find_way(lies(image), lies(other), turn=0.0)
    assert ahead is None or ahead.after < way.after - 0.05


def test_what_lies_alike_is_not_turned():
    (image, _), (other, _) = stack(), stack(0.34, 5.0)
    assert find_way(image, other).turn == 0 and "turn" not in find_way(image, other).to_dict()
    # Nor what no operator has turned: volumes without thick slices, and the same person.
    thin = {"size": (48, 48, 40), "spacing": (2.0, 2.0, 2.0)}
    found = find_way(stack(**thin)[0], stack(0.34, 60.0, **thin)[0])
    assert found is None or found.turn == 0
    found = find_way(image, stack(0.34, 60.0)[0], in_place=True)
    assert found is None or found.turn == 0


def test_a_2d_image_and_the_only_slice_of_a_volume_are_turned():
    flat = {"size": (64, 64)}
    image, other = stack(**flat)[0], stack(0.34, 60.0, **flat)[0]
    way = find_way(image, other)
    assert abs(way.turn) == 60
    volumes = [sitk.JoinSeries([one]) for one in (image, other)]
    for axes in ([0, 1, 2], [2, 0, 1]):
        found = find_way(*(sitk.PermuteAxes(one, axes) for one in volumes))
        assert abs(found.turn) == 60 and found.plane == tuple(k for k in range(3) if axes[k] != 2)


@pytest.mark.parametrize("lies", [lambda image: image, moved])
def test_versions_with_the_poses_of_people_are_turned_too(tiny_models, lies):
    (image, label), (other, expected) = ((lies(one) for one in pair) for pair in (stack(), stack(0.3, 60.0)))
    way, model = replace(find_way(image, other), most=toward.LEAST_SHARE), load_model(str(tiny_models[3]), "cpu")
    seed = max(range(20), key=lambda one: abs(way.turned(one)))
    assert 25 < abs(way.turned(seed)) <= 30 and way.turned(seed) * way.turn > 0

    def made(pose):
        return next(make_deformations(image, model, DeformationSettings(0, pose=pose), (seed,), toward=way))

    still, turned = made(0.0), made(STILL)
    assert (
        turned.certified and dice(turned.warp_label(label), expected) > dice(still.warp_label(label), expected) + 0.02
    )
    # By how much, and about which point.
    middle = np.asarray(image.TransformContinuousIndexToPhysicalPoint([(n - 1) / 2 for n in image.GetSize()]))
    axes = np.reshape(image.GetDirection(), (3, 3))
    for along in axes.T[:2]:
        before, after = (
            np.asarray(one.transform.TransformPoint((middle + 25 * along).tolist())) for one in (still, turned)
        )
        cosine = (before - middle) @ (after - middle) / np.linalg.norm(before - middle) / np.linalg.norm(after - middle)
        assert np.degrees(np.arccos(cosine)) == pytest.approx(abs(way.turned(seed)), abs=8)
    # Numbers say what a user wants.
    np.testing.assert_array_equal(*(sitk.GetArrayFromImage(made(pose).field) for pose in (0.0, 0)))


@pytest.fixture
def patients(tmp_path):
    """Three stacks with labels, one of them turned."""
    for kind in ("images", "labels"):
        (tmp_path / "data" / kind).mkdir(parents=True)
    for name, (wall, degrees) in {"a": (0.3, 0.0), "b": (0.34, 60.0), "c": (0.32, -60.0)}.items():
        for kind, one in zip(("images", "labels"), stack(wall, degrees), strict=True):
            sitk.WriteImage(one, str(tmp_path / "data" / kind / f"{name}.nii.gz"))
    return tmp_path / "data"


def run(dataset, folder, model):
    settings = settings_for(AUGMENT, toward=OTHERS, pose=STILL, levels=((12,),), copies=2)
    produce(RunRequest(dataset, folder, model=str(model), device="cpu"), settings, RecordingReporter())
    return {name: one for name, one in records_of(folder).items() if one["levels"]}


def test_records_know_the_turn_and_old_ones_have_none(patients, tmp_path, tiny_models, monkeypatch):
    records = run(patients, tmp_path / "out", tiny_models[3])
    turns = {name: one["toward"].get("turn", 0.0) for name, one in records.items() if one["toward"]}
    assert {60.0, -60.0} & set(turns.values())
    name = next(name for name, turn in turns.items() if turn)
    file = tmp_path / "out" / "records" / f"{name}.json"
    assert not regenerate(file, tmp_path / "again", model=str(tiny_models[3])).differences
    # As an older version made it, which turned nothing.
    monkeypatch.setattr(toward, "slice_plane", lambda image: None)
    old = run(patients, tmp_path / "old", tiny_models[3])[name]
    monkeypatch.undo()
    assert "turn" not in (old["toward"] or {})
    file = tmp_path / "old" / "records" / f"{name}.json"
    assert not regenerate(file, tmp_path / "same", model=str(tiny_models[3])).differences
    assert json.loads(file.read_text())["digests"]["image"] != records[name]["digests"]["image"]


@pytest.mark.parametrize("axes", [None, (0, 1, 2), (2, 0, 1)])
def test_versions_of_2d_images_and_single_slices_are_turned(tiny_models, axes):
    (image, label), (other, expected) = stack(size=(64, 64)), stack(0.3, 60.0, size=(64, 64))
    still = PoseSpread(tuple(tuple(0.0 for _ in range(6)) for _ in range(6)))
    if axes is not None:
        image, label, other, expected = (
            sitk.PermuteAxes(sitk.JoinSeries([one]), axes) for one in (image, label, other, expected)
        )
    way = replace(find_way(image, other), most=toward.LEAST_SHARE)
    seed = max(range(20), key=lambda one: abs(way.turned(one)))
    model = load_model(str(tiny_models[2]), "cpu")
    alike = []
    for pose in (0.0, still):
        made = next(make_deformations(image, model, DeformationSettings(0, pose=pose), (seed,), toward=way))
        alike.append(dice(made.warp_label(label), expected))
    assert made.certified and alike[1] > alike[0] + 0.02
