"""Versions that go part of the way toward another scan."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from command_helpers import run_process
from production_helpers import RecordingReporter, records_of, result, settings_for

import DRDMLib
from DRDMLib.deforming import make_deformations
from DRDMLib.errors import ImageError, SettingError
from DRDMLib.io.datasets import Case
from DRDMLib.io.images import read_image
from DRDMLib.loaders import make_bank
from DRDMLib.models.catalogue import load_model
from DRDMLib.production.plan import AUGMENT, OTHERS, make_plan
from DRDMLib.production.regenerate import regenerate
from DRDMLib.production.run import RunRequest, produce
from DRDMLib.production.toward import settled
from DRDMLib.settings import DeformationSettings, RegionSettings
from DRDMLib.spatial.model_grid import from_millimeters, to_millimeters
from DRDMLib.spatial.resampling import field_on_grid
from DRDMLib.toward import LEAST_SHARE, MOST_SHARE, find_way

SIZE = (44, 40, 36)


def person(organ=(0.45, 0.4, 0.35), at=(0.0, 0.0, 0.0), size=SIZE, spacing=2.0):
    """Draw a body with an organ and a vessel in it; return the image and the label of the organ."""
    d = len(size)
    axes = np.meshgrid(*[np.linspace(-1, 1, n) for n in size[::-1]], indexing="ij")
    places = [x - m for x, m in zip(axes, at[:d], strict=True)]

    def ellipsoid(radii, shift=0.0):
        return sum(((x - shift) / r) ** 2 for x, r in zip(places, radii[:d], strict=True)) < 1

    label = ellipsoid(organ)
    values = 100.0 * ellipsoid((0.85, 0.8, 0.8)) + 80.0 * label + 60.0 * ellipsoid((0.12, 0.12, 0.12), 0.15)
    image = sitk.SmoothingRecursiveGaussian(sitk.GetImageFromArray(values.astype(np.float32)), 0.8)
    found = sitk.GetImageFromArray(label.astype(np.uint8))
    for one in (image, found):
        one.SetSpacing([spacing] * d)
    return image, found


def dice(a, b):
    a, b = (sitk.GetArrayFromImage(x) > 0 for x in (a, b))
    return 2 * (a & b).sum() / (a.sum() + b.sum())


def moved(image, angles=(0.3, -0.2, 0.4), origin=(-30.0, 12.0, 80.0)):
    """Return an image with an oblique direction and another origin."""
    turned = sitk.Image(image)
    rotation = sitk.Euler3DTransform((0, 0, 0), *angles)
    turned.SetDirection(rotation.GetMatrix())
    turned.SetOrigin(origin)
    return turned


def warped(label, way):
    field = sitk.DisplacementFieldTransform(sitk.Image(way.field))
    return sitk.Resample(label, label, field, sitk.sitkNearestNeighbor)


def test_the_organ_becomes_that_of_the_other_person():
    (image, label), (other, expected) = person(), person((0.6, 0.5, 0.5))
    before = dice(label, expected)
    way = find_way(image, other)
    assert before < 0.75 and dice(warped(label, way), expected) > 0.93
    assert way.after > 0.97 > way.before


@pytest.mark.parametrize(("power", "left", "right"), [(0.5, 100, 100), (2, 100, 100), (1, 40, 160)])
def test_contrast_and_brightness_of_another_scanner_do_not_count(power, left, right):
    (image, label), (other, expected) = person(), person((0.6, 0.5, 0.5))
    values = sitk.GetArrayFromImage(other)
    values = (values.clip(0) / values.max()) ** power * np.linspace(left, right, values.shape[2], dtype=np.float32)
    changed = sitk.GetImageFromArray(values)
    changed.CopyInformation(other)
    organ = warped(label, find_way(image, changed))
    # Where the two are laid on each other is another question.
    place = [np.argwhere(sitk.GetArrayFromImage(one)).mean(axis=0)[::-1] for one in (organ, expected)]
    shift = sitk.TranslationTransform(3, ((place[0] - place[1]) * label.GetSpacing()).tolist())
    assert dice(sitk.Resample(organ, shift, sitk.sitkNearestNeighbor), expected) > 0.95


def test_where_the_other_person_lies_does_not_count():
    image, label = person()
    other, _ = person((0.6, 0.5, 0.5), at=(0.1, -0.15, 0.1))
    way = find_way(image, other)
    # In the place of the first one.
    assert dice(warped(label, way), person((0.6, 0.5, 0.5))[1]) > 0.9


def test_oblique_scans_have_the_same_way():
    image, other = person()[0], person((0.6, 0.5, 0.5))[0]
    plain, turned = find_way(image, other), find_way(moved(image), moved(other))
    direction = np.reshape(turned.field.GetDirection(), (3, 3))
    vectors = sitk.GetArrayFromImage(turned.field) @ direction
    # Rounding decides whether points on the edge are inside.
    difference = np.abs(vectors - sitk.GetArrayFromImage(plain.field))
    assert difference.max() < 0.3 and difference.mean() < 0.06


def test_a_scan_of_something_else_has_no_way():
    draw = np.random.default_rng(0)
    for shape in (SIZE[::-1], (16, 18, 20), (10, 64, 64)):
        first, second = (sitk.GetImageFromArray(draw.normal(size=shape).astype(np.float32)) for _ in range(2))
        assert find_way(person()[0], first) is None and find_way(first, second) is None


def test_a_slab_of_few_thin_slices_has_a_way_within_them():
    (image, label), (other, expected) = (person(organ, size=(200, 190, 4)) for organ in ((9, 0.4, 0.45), (9, 0.5, 0.6)))
    moved = warped(label, find_way(image, other))
    # The grid of the way has one slice, which ends before the last one of the image.
    sizes = [int((sitk.GetArrayFromImage(one)[:3] > 0).sum()) for one in (label, moved, expected)]
    assert sizes[0] < 0.65 * sizes[2] and sizes[1] == pytest.approx(sizes[2], rel=0.03)


def test_a_slice_and_a_volume_cannot_be_compared():
    with pytest.raises(ImageError, match="one kind"):
        find_way(person()[0], person(size=(40, 40))[0])


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_single_slices_have_the_way_of_a_2d_image(axis):
    flat = [person(organ, size=(44, 40))[0] for organ in ((0.45, 0.4), (0.6, 0.5))]
    volumes = []
    for one in flat:
        array = np.expand_dims(sitk.GetArrayFromImage(one), 2 - axis)
        volume = sitk.GetImageFromArray(array)
        volume.SetSpacing([2.0, 2.0, 2.0])
        volumes.append(moved(volume))
    plain, found = find_way(*flat), find_way(*volumes)
    others = [a for a in range(3) if a != axis]
    direction = np.reshape(volumes[0].GetDirection(), (3, 3))
    vectors = sitk.GetArrayFromImage(found.field).squeeze(2 - axis) @ direction
    np.testing.assert_allclose(vectors[..., others], sitk.GetArrayFromImage(plain.field), atol=1e-9)
    np.testing.assert_allclose(vectors[..., axis], 0, atol=1e-9)


def test_the_way_does_not_depend_on_the_number_of_threads():
    image, other = (person(organ, size=(30, 28, 26))[0] for organ in ((0.45, 0.4, 0.35), (0.6, 0.5, 0.5)))
    before = sitk.ProcessObject.GetGlobalDefaultNumberOfThreads()
    fields = []
    try:
        for threads in (1, 3):
            sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(threads)
            fields.append(sitk.GetArrayFromImage(find_way(image, other).field))
    finally:
        sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(before)
    assert all(np.array_equal(fields[0], field) for field in fields)


def test_shares_are_drawn_with_the_seed():
    way = find_way(person()[0], person((0.6, 0.5, 0.5))[0])
    shares = [way.share(seed) for seed in range(200)]
    assert shares == [way.share(seed) for seed in range(200)]
    assert LEAST_SHARE <= min(shares) < 0.25 and 0.9 * way.most < max(shares) <= way.most <= MOST_SHARE


@pytest.mark.parametrize(("axes", "stack"), [("kji", False), ("ijk", False), ("kji", True)])
def test_a_field_on_the_model_grid_and_back(axes, stack, model_grids):
    grid = model_grids(moved(person()[0]), axes, stack)
    ddf = torch.from_numpy(np.random.default_rng(1).normal(0, 0.01, grid_shape(grid)).astype(np.float32))
    field = sitk.GetImageFromArray(to_millimeters(ddf, grid), isVector=True)
    field.SetSpacing(grid.spacing)
    field.SetOrigin(grid.origin)
    field.SetDirection(grid.direction.ravel().tolist())
    torch.testing.assert_close(from_millimeters(field, grid), ddf, atol=1e-6, rtol=1e-4)


def grid_shape(grid):
    spatial = grid.size[::-1] if grid.axes == "kji" else grid.size
    return (spatial[0], 2, *spatial[1:]) if grid.stack else (1, 3, *spatial)


@pytest.fixture
def model_grids():
    from DRDMLib.spatial.model_grid import ModelGrid

    def make(image, axes, stack):
        direction = np.reshape(image.GetDirection(), (3, 3))
        size, spacing = ((16, 16, 9), (5.0, 5.0, 8.0)) if stack else ((16, 16, 16), (5.0, 5.0, 5.0))
        return ModelGrid(size, spacing, image.GetOrigin(), direction, stack, axes)

    return make


@pytest.mark.parametrize("kind", [3, 2])
def test_level_0_is_a_share_of_the_way(kind, tiny_models):
    """With a 3D model; with a 2D model it is the part of it within the slices."""
    image, other = person()[0], person((0.6, 0.5, 0.5))[0]
    way, model = find_way(image, other), load_model(str(tiny_models[kind]), "cpu")
    settings = DeformationSettings(0, steps=1, border="open")
    made = next(make_deformations(image, model, settings, (3,), toward=way))
    assert made.toward == way.share(3) and made.metrics.certified_invertible and made.own_percent == 0
    expected = made.toward * field_on_grid(way.field, image, 0, image.GetSize()[2])
    if kind == 2:
        expected[..., 2] = 0
    inside = (slice(6, -6),) * 3
    # The grid of the tiny model is coarse.
    difference = np.abs(sitk.GetArrayFromImage(made.ddf) - expected)[inside]
    assert difference.mean() < 0.15 * np.abs(expected[inside]).mean()


def test_own_displacement_leaves_out_what_leads_to_others(tiny_models):
    image, other = person()[0], person((0.6, 0.5, 0.5))[0]
    model = load_model(str(tiny_models[3]), "cpu")
    settings = DeformationSettings(8, steps=1)
    plain = next(make_deformations(image, model, settings, (3,)))
    assert plain.own_percent is None and plain.model_fraction == plain.metrics.mean_percent / 100
    posed = next(make_deformations(image, model, DeformationSettings(8, steps=1, pose=2.0), (3,)))
    assert posed.metrics.mean_percent > 2 * plain.metrics.mean_percent
    assert posed.model_fraction == pytest.approx(plain.model_fraction, rel=0.1)
    made = next(make_deformations(image, model, settings, (3,), toward=find_way(image, other)))
    # The model sees another image.
    assert made.model_fraction == pytest.approx(plain.model_fraction, rel=0.3)


def test_a_region_and_a_way_do_not_go_together(tiny_models):
    image, other = person()[0], person((0.6, 0.5, 0.5))[0]
    settings = DeformationSettings(0, region=RegionSettings(around=()))
    with pytest.raises(SettingError, match="whole scans"):
        next(
            make_deformations(
                image, str(tiny_models[3]), settings, (0,), label=person()[1], toward=find_way(image, other)
            )
        )
    with pytest.raises(SettingError, match="whole scans"):
        settings_for(AUGMENT, toward=OTHERS).__class__(AUGMENT, ((1,),), deformation=settings, toward=OTHERS)


def write_people(folder, radii, labels=True):
    for kind in ("images", "labels") if labels else ("images",):
        (folder / kind).mkdir(parents=True)
    for number, radius in enumerate(radii):
        image, label = person((radius, radius - 0.05, radius - 0.1), size=(28, 26, 24), spacing=3.0)
        sitk.WriteImage(sitk.Cast(image, sitk.sitkInt16), str(folder / "images" / f"p{number}.nii.gz"))
        if labels:
            sitk.WriteImage(label, str(folder / "labels" / f"p{number}.nii.gz"))
    return folder


def run(dataset, folder, model, *, toward=None, resume=False, **more):
    reporter = RecordingReporter()
    request = RunRequest(dataset, folder, model=str(model), device="cpu", resume=resume, toward=toward)
    name = OTHERS if toward is None else toward.name
    made = produce(request, settings_for(AUGMENT, levels=((12,),), toward=name, **more), reporter)
    return made, reporter


def test_copies_go_toward_different_people_and_are_made_again(tmp_path, tiny_models):
    data = write_people(tmp_path / "data", (0.45, 0.5, 0.55, 0.6))
    run(data, tmp_path / "out", tiny_models[3], copies=3)
    made = {name: record for name, record in records_of(tmp_path / "out").items() if record["levels"]}
    for case in ("p0", "p1", "p2", "p3"):
        toward = [record["toward"]["case"] for record in made.values() if record["case"] == case]
        assert sorted(toward) == [name for name in ("p0", "p1", "p2", "p3") if name != case]
    record = tmp_path / "out" / "records" / "p1_t12_002.json"
    assert made["p1_t12_002"]["item"]["toward"] > 0
    assert not regenerate(record, tmp_path / "again", model=str(tiny_models[3])).differences
    # A run that was stopped makes the same ones.
    (tmp_path / "out" / "records" / "p1_t12_002.json").unlink()
    first = result(tmp_path / "out")
    run(data, tmp_path / "out", tiny_models[3], copies=3, resume=True)
    second = result(tmp_path / "out")
    assert {name for name in first if first[name] != second.get(name)} <= {"report.json", "quality.html"}


def test_a_changed_scan_is_noticed_when_a_sample_is_made_again(tmp_path, tiny_models):
    data = write_people(tmp_path / "data", (0.45, 0.6))
    run(data, tmp_path / "out", tiny_models[3])
    record = tmp_path / "out" / "records" / "p0_t12_000.json"
    moved_to = tmp_path / "elsewhere"
    shutil.copytree(data, moved_to)
    sitk.WriteImage(sitk.ReadImage(str(data / "images" / "p1.nii.gz")) + 1, str(data / "images" / "p1.nii.gz"))
    with pytest.raises(ImageError, match="toward which the sample goes"):
        regenerate(record, tmp_path / "again", model=str(tiny_models[3]))
    assert not regenerate(record, tmp_path / "found", model=str(tiny_models[3]), images=moved_to).differences


def test_scans_that_cannot_be_registered_are_left_out_with_a_warning(tmp_path, tiny_models):
    data = write_people(tmp_path / "data", (0.45,))
    others = tmp_path / "scans"
    others.mkdir()
    noise = np.random.default_rng(0).normal(100, 30, (24, 26, 28)).astype(np.int16)
    sitk.WriteImage(sitk.GetImageFromArray(noise), str(others / "noise.nii.gz"))
    _, reporter = run(data, tmp_path / "out", tiny_models[3], toward=others)
    assert records_of(tmp_path / "out")["p0_t12_000"]["toward"] is None
    assert any("go toward no other scan (p0)" in text for text in reporter.messages)
    assert not regenerate(
        tmp_path / "out" / "records" / "p0_t12_000.json", tmp_path / "again", model=str(tiny_models[3])
    ).differences


def test_the_commands(tmp_path, tiny_models):
    """Toward scans without labels in a folder, and toward one scan."""
    data, others = write_people(tmp_path / "data", (0.45,)), write_people(tmp_path / "scans", (0.55, 0.6), labels=False)
    image, scan = data / "images" / "p0.nii.gz", others / "images" / "p1.nii.gz"
    how = ["--model", str(tiny_models[3]), "--steps", "1", "--device", "cpu"]
    assert (
        run_process("augment", data, "-o", tmp_path / "out", "--levels", "12", "--toward", others, *how).returncode == 0
    )
    assert records_of(tmp_path / "out")["p0_t12_000"]["toward"]["case"] in ("p0", "p1")
    assert run_process("deform", image, "-o", tmp_path / "one", "--level", "12", "--toward", scan, *how).returncode == 0
    report = json.loads((tmp_path / "one" / "report.json").read_text())
    assert report["toward"]["file"] == "p1.nii.gz" and report["items"][0]["toward"] >= LEAST_SHARE
    box = ["--region", "0", "0", "0", "9", "9", "9"]
    failed = run_process("deform", image, "-o", tmp_path / "no", *box, "--toward", scan, *how)
    assert failed.returncode == 2 and "whole scans" in failed.stderr


def test_a_folder_without_a_name_is_not_ignored(tmp_path, tiny_models, monkeypatch):
    data, others = write_people(tmp_path / "data", (0.45,)), write_people(tmp_path / "scans", (0.55,), labels=False)
    monkeypatch.chdir(others / "images")
    how = ["--model", str(tiny_models[3]), "--steps", "1", "--device", "cpu", "--levels", "12"]
    done = run_process("augment", data, "-o", tmp_path / "out", "--toward", ".", *how)
    assert done.returncode == 0, done.stderr
    assert records_of(tmp_path / "out")["p0_t12_000"]["toward"]["case"] == "p0"


def without_labels(folder, labeled):
    """Remove the labels of all cases but these."""
    for path in (folder / "labels").iterdir():
        if path.name.partition(".")[0] not in labeled:
            path.unlink()
    return folder


@pytest.mark.parametrize(("count", "goes"), [(12, True), (11, False)])
def test_versions_go_toward_ten_scans_without_a_label(count, goes, tmp_path, tiny_models):
    data = without_labels(write_people(tmp_path / "data", np.linspace(0.4, 0.6, count)), ("p0", "p4"))
    how = ["--model", str(tiny_models[3]), "--steps", "1", "--device", "cpu", "--levels", "12"]
    done = run_process("augment", data, "-o", tmp_path / "out", "--pose", "0", *how)
    assert done.returncode == 0, done.stderr
    assert ("2 labeled images go part of the way toward 10 scans without a label" in done.stderr) == goes
    # Missing labels are no slip if the images are used.
    assert ("2 of" in done.stderr) != goes
    notes = json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))["notes"]
    assert len(notes) == 1 and ("toward 10 scans" in notes[0]) == goes
    records = records_of(tmp_path / "out")
    made = [record for name, record in records.items() if name in ("p0_t12_000", "p4_t12_000")]
    assert len(made) == 2 and all(("toward" in record) == goes for record in made)
    if goes:
        assert len(records) == 4 and not {record["toward"]["case"] for record in made} & {"p0", "p4"}
        other = run_process("augment", data, "-o", tmp_path / "out", "--toward", "none", "--resume", *how)
        assert other.returncode == 2 and "made with other scans to go toward" in other.stderr
    # A run goes on as it was begun, also when it was begun without.
    run_process("augment", data, "-o", tmp_path / "none", "--toward", "none", "--pose", "0", *how)
    (tmp_path / "none" / "records" / "p0_t12_000.json").unlink()
    done = run_process("augment", data, "-o", tmp_path / "none", "--resume", *how)
    assert done.returncode == 0, done.stderr
    again = records_of(tmp_path / "none")["p0_t12_000"]
    assert "toward" not in again and again["pose"] == 0


@pytest.mark.parametrize("word", ["auto", "unlabeled"])
def test_a_bank_needs_no_labels_and_says_so(word, tmp_path, tiny_models):
    data = write_people(tmp_path / "data", (0.45, 0.5))
    with pytest.raises(SettingError, match="use others, phases, or a folder"):
        make_bank(data, tmp_path / "bank", model=str(tiny_models[3]), toward=word, device="cpu")
    assert not (tmp_path / "bank").exists()


def test_no_scan_is_without_a_label(tmp_path, tiny_models):
    data = write_people(tmp_path / "data", (0.45, 0.5))
    done = run_process("augment", data, "-o", tmp_path / "out", "--toward", "unlabeled", "--model", str(tiny_models[3]))
    assert done.returncode == 2 and "name a folder with other scans" in done.stderr
    assert not (tmp_path / "out").exists()


def test_poses_are_those_of_all_scans(tmp_path):
    label = tmp_path / "label.nii.gz"
    cases = [Case(f"p{n}", tmp_path / f"p{n}.nii.gz", label if n < 2 else None, subject=f"p{n}") for n in range(12)]
    settings, labeled, others = settled(settings_for(AUGMENT, toward="auto"), cases)
    assert (settings.toward, len(labeled), len(others)) == ("unlabeled", 2, 10)
    assert replace(make_plan(settings, labeled), others=others).scans == cases
    # Regions are deformed where the labels are.
    around = settings_for(AUGMENT, toward="auto", deformation=DeformationSettings(region=RegionSettings(around=())))
    assert settled(around, cases)[0].toward == ""


def test_public_names(tiny_models):
    way = DRDMLib.find_way(person()[0], person((0.6, 0.5, 0.5))[0])
    made = DRDMLib.deform(person()[0], str(tiny_models[3]), 0, toward=way)
    assert made.toward == way.share(0)


def test_a_bank_leads_toward_other_scans(tmp_path, tiny_models):
    data = write_people(tmp_path / "data", (0.45, 0.6), labels=False)
    how = {"model": str(tiny_models[3]), "levels": (0,), "copies": 2, "steps": 1, "border": "open", "device": "cpu"}
    bank = make_bank(data, tmp_path / "bank", toward="others", **how)
    image, other = (read_image(data / "images" / f"p{number}.nii.gz") for number in (0, 1))
    # Level 0 has no deformation of its own. The organ of the first person grows: what is read lies farther inside.
    field = bank.field("p0", 0)
    assert float(field.vectors.abs().max()) > 1 and find_way(image, other) is not None
    made_again = make_bank(data, tmp_path / "again", toward=data, **how)
    for number in (0, 1):
        assert torch.equal(bank.field("p0", number).vectors, made_again.field("p0", number).vectors)
    assert make_bank(data, tmp_path / "bank", toward="others", **how).names == ["p0", "p1"]
    with pytest.raises(SettingError, match="other toward"):
        make_bank(data, tmp_path / "bank", **how)
    with pytest.raises(SettingError, match="whole scans"):
        make_bank(data, tmp_path / "no", toward="others", region=RegionSettings(around=()), **how)
