"""Test cases for registration programs, and the score of a result, checked with SimpleITK by itself."""

from __future__ import annotations

import base64
import csv
import json
import re
import shutil
import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from command_helpers import boxes, snapshot
from scipy import ndimage
from support import rotation, smooth_image

from DRDMLib.challenge.changes import RECIPES, Recipe, alter, cut, draw_changes, fixed_grid
from DRDMLib.challenge.landmarks import choose_landmarks
from DRDMLib.challenge.score import Score, score
from DRDMLib.challenge.transforms import read_result
from DRDMLib.challenge.truth import Truth, read_truth
from DRDMLib.errors import ImageError
from DRDMLib.invertibility.certificate import certify_saved
from DRDMLib.io.points import read_points
from DRDMLib.io.resources import resource
from DRDMLib.spatial.coordinates import to_points

FLIP = np.asarray([-1.0, -1.0, 1.0])


def scan(size=(30, 26, 22), spacing=(1.5, 1.2, 2.0)) -> sitk.Image:
    direction = rotation(10, -20, 30) if len(size) == 3 else None
    return smooth_image(size, spacing[: len(size)], direction)


def make(drdm, folder: Path, model: Path, image: sitk.Image, *more: object) -> Path:
    """Make a case with ``drdm challenge``, and return the folder of its truth."""
    folder.mkdir(exist_ok=True)
    sitk.WriteImage(image, str(folder / "scan.nii.gz"))
    sitk.WriteImage(boxes(image), str(folder / "label.nii.gz"))
    given = ["--label", folder / "label.nii.gz", "--model", model, "--steps", 1, "--progress", "none", *more]
    outcome = drdm("challenge", folder / "scan.nii.gz", "-o", folder / "cases", *given)
    assert outcome.status == 0, outcome.err
    return folder / "cases" / "truth" / "scan_000"


@pytest.fixture(scope="module")
def case(tmp_path_factory, tiny_models) -> Path:
    """The truth of a case with every change in it."""
    from DRDMLib.cli import main

    folder = tmp_path_factory.mktemp("case")
    image = scan()
    sitk.WriteImage(image, str(folder / "scan.nii.gz"))
    sitk.WriteImage(boxes(image), str(folder / "label.nii.gz"))
    given = ["--label", str(folder / "label.nii.gz"), "--model", str(tiny_models[3]), "--steps", "1"]
    more = ["--recipe", "hard", "--levels", "60", "--progress", "none", "--seed", "11"]
    assert main(["challenge", str(folder / "scan.nii.gz"), "-o", str(folder / "cases"), *given, *more]) == 0
    return folder / "cases" / "truth" / "scan_000"


@pytest.fixture(scope="module")
def truth(case) -> Truth:
    return read_truth(case)


def displacements(transform: sitk.Transform, grid: sitk.Image) -> np.ndarray:
    """Displacements at the voxels, by SimpleITK."""
    geometry = grid.GetSize(), grid.GetOrigin(), grid.GetSpacing(), grid.GetDirection()
    return sitk.GetArrayFromImage(sitk.TransformToDisplacementField(transform, sitk.sitkVectorFloat64, *geometry))


def field_of(vectors: np.ndarray, grid: sitk.Image) -> sitk.Image:
    field = sitk.GetImageFromArray(np.ascontiguousarray(vectors, dtype=np.float64), isVector=True)
    field.CopyInformation(grid)
    return field


def save_field(vectors: np.ndarray, grid: sitk.Image, path: Path) -> Path:
    sitk.WriteImage(sitk.Cast(field_of(vectors, grid), sitk.sitkVectorFloat32), str(path))
    return path


def score_file(path: Path, truth: Truth, convention: str = "mm") -> Score:
    return score(read_result([path], truth.fixed, convention), truth, convention)


def test_the_truth_is_what_it_says(case, truth):
    record = truth.record
    assert record["recipe"]["name"] == "hard" and record["level"] == 60 and record["model"]["digest"].startswith("sha")
    assert set(record["digests"]) == set(record["files"]) >= {"moving", "fixed", "field", "landmarks", "fixed_label"}
    assert truth.fixed.GetSpacing() != pytest.approx((1.5, 1.2, 2.0), rel=1e-3)
    assert not [p for p in (case.parents[1] / "pairs" / "scan_000").iterdir() if p.stem[:5] not in ("movin", "fixed")]
    # Without the changes of gray values, the fixed image is the moving one resampled with the truth.
    moved = np.asarray([truth.transform.TransformPoint(p) for p in truth.on_fixed.tolist()])
    assert np.abs(moved - truth.on_moving).max() < 2e-3
    counted = sitk.GetArrayFromImage(truth.counted)
    share = (counted == 2).sum() / np.isin(counted, (1, 2)).sum()
    assert record["not_counted"]["voxels"] == pytest.approx(share) and 0 < share < 1


def test_without_changes_simpleitk_makes_the_same_fixed_image(drdm, tmp_path, tiny_models):
    off = [word for name in ("noise", "blur", "bias", "contrast", "resample", "crop") for word in (f"--{name}", "0")]
    truth = read_truth(make(drdm, tmp_path, tiny_models[3], scan(), "--levels", "60", "--pose", "0", *off))
    moving = sitk.ReadImage(str(tmp_path / "cases" / "pairs" / "scan_000" / "moving.nii.gz"))
    resampled = sitk.GetArrayFromImage(sitk.Resample(moving, truth.fixed, truth.transform, sitk.sitkLinear, 0.0))
    inside = sitk.GetArrayFromImage(truth.counted) == 1
    difference = np.abs(resampled.astype(float) - sitk.GetArrayFromImage(truth.fixed))[inside]
    assert np.mean(difference <= 1) > 0.99
    assert truth.record["not_counted"] == {"voxels": 0.0, "landmarks": 0.0}


def test_the_same_case_has_the_same_bytes(drdm, tmp_path, tiny_models):
    made = [make(drdm, tmp_path / name, tiny_models[3], scan((20, 18, 16)), "--count", 2) for name in "ab"]
    first, second = (snapshot(path.parents[1]) for path in made)
    assert first == second and len([path for path in first if path.name == "fixed.nii.gz"]) == 2


def test_score_of_the_truth_and_of_nothing(truth):
    nothing = score(sitk.Transform(3, sitk.sitkIdentity), truth)
    counts = sitk.GetArrayFromImage(truth.counted) == 1
    known = np.linalg.norm(displacements(truth.transform, truth.fixed), axis=-1)[counts]
    expected = {"mean": known.mean(), "median": np.median(known), "p95": np.percentile(known, 95), "max": known.max()}
    assert nothing.result.body == pytest.approx(expected) and nothing.result == nothing.before
    assert nothing.looks_like is None and nothing.worst[0]["error_mm"] == pytest.approx(known.max())
    assert nothing.min_jacobian == pytest.approx(1) and nothing.folded_fraction == 0

    right = score(truth.transform, truth)
    assert right.result.body["max"] < 1e-9 and right.result.landmarks["max"] < 2e-3 and right.looks_like is None
    assert all(figures["dice"] > 0.95 for figures in right.result.labels.values())
    assert set(right.result.labels) == {1, 3}

    # The truth at the voxels is exact there, and loses at the landmarks what the floor says.
    vectors = displacements(truth.transform, truth.fixed)
    sampled = score(sitk.DisplacementFieldTransform(field_of(vectors, truth.fixed)), truth)
    assert sampled.result.body["max"] < 1e-6
    assert sampled.result.landmarks["mean"] == pytest.approx(sampled.floor.landmarks["mean"], abs=2e-3)
    assert 0 < sampled.floor.landmarks["mean"] < 0.1 * nothing.before.landmarks["mean"]


def test_labels_by_simpleitk(truth):
    shifted = sitk.TranslationTransform(3, (1.0, -2.0, 1.5))
    figures = score(shifted, truth).result.labels
    resampled = sitk.Resample(truth.moving_label, truth.fixed, shifted, sitk.sitkNearestNeighbor, 0)
    known = sitk.Cast(truth.counted <= 1, truth.fixed_label.GetPixelID())
    measure = sitk.LabelOverlapMeasuresImageFilter()
    measure.Execute(resampled * known, truth.fixed_label * known)
    assert figures[1]["dice"] == pytest.approx(measure.GetDiceCoefficient(1))
    masks = [sitk.GetArrayFromImage(x * known == 1) > 0 for x in (resampled, truth.fixed_label)]
    points = []
    for mask in masks:
        edge = np.argwhere(mask & ~ndimage.binary_erosion(mask))
        points.append(edge * truth.fixed.GetSpacing()[::-1])
    apart = np.linalg.norm(points[0][:, None] - points[1][None], axis=-1)
    expected = max(np.percentile(apart.min(axis=1), 95), np.percentile(apart.min(axis=0), 95))
    assert figures[1]["hausdorff95"] == pytest.approx(expected)


def test_formats(truth, tmp_path):
    vectors = displacements(truth.transform, truth.fixed)
    field = field_of(vectors, truth.fixed)
    for name in ("a.nii.gz", "a.mha", "a.nrrd", "a.mhd"):
        assert score_file(save_field(vectors, truth.fixed, tmp_path / name), truth).result.body["max"] < 1e-4, name
    for name in ("a.h5", "b.h5", "b.tfm"):
        transform = sitk.DisplacementFieldTransform(sitk.Image(field))
        sitk.WriteTransform(sitk.CompositeTransform([transform]) if name[0] == "b" else transform, str(tmp_path / name))
        assert score_file(tmp_path / name, truth).result.body["max"] < 1e-4, name
    # NIfTI fields with the intent of a displacement are RAS.
    ras = save_field(vectors * FLIP, truth.fixed, tmp_path / "ras.nii")
    content = bytearray(ras.read_bytes())
    struct.pack_into("<h", content, 68, 1006)
    ras.write_bytes(content)
    assert score_file(ras, truth).result.body["max"] < 1e-4
    # Arrays of millimeters and of voxels, in both orders of the axes.
    direction = np.asarray(truth.fixed.GetDirection()).reshape(3, 3)
    voxels = vectors @ direction / np.asarray(truth.fixed.GetSpacing())
    arrays = {
        "mm": [vectors, np.moveaxis(vectors, -1, 0)[None]],
        "voxels": [
            voxels.transpose(2, 1, 0, 3),
            np.moveaxis(voxels.transpose(2, 1, 0, 3), -1, 0),
            np.moveaxis(voxels[..., ::-1], -1, 0),
        ],
    }
    for convention, given in arrays.items():
        for number, array in enumerate(given):
            path = tmp_path / f"{convention}{number}.npy"
            np.save(path, array)
            assert score_file(path, truth, convention).result.body["max"] < 1e-4, path
    np.savez(tmp_path / "a.npz", warp=arrays["voxels"][0])
    assert score_file(tmp_path / "a.npz", truth, "voxels").result.body["max"] < 1e-4
    # As nibabel writes an array (X, Y, Z, 3), and as an ITK vector image.
    four = sitk.GetImageFromArray(arrays["voxels"][0].T.astype(np.float32), isVector=False)
    sitk.WriteImage(four, str(tmp_path / "four.nii.gz"))
    assert score_file(tmp_path / "four.nii.gz", truth, "voxels").result.body["max"] < 1e-4
    with pytest.raises(ImageError, match="--convention voxels"):
        score_file(tmp_path / "four.nii.gz", truth)
    save_field(voxels, truth.fixed, tmp_path / "vector.nii.gz")
    assert score_file(tmp_path / "vector.nii.gz", truth, "voxels").result.body["max"] < 1e-4


def test_several_files_in_the_order_of_their_points(truth, tmp_path):
    affine = sitk.AffineTransform(3)
    affine.SetMatrix((rotation(4, -3, 6) * 1.05).ravel().tolist())
    affine.SetTranslation((3.0, -2.0, 1.0))
    sitk.WriteTransform(affine, str(tmp_path / "0GenericAffine.mat"))
    # The warp goes first, so that the affine takes its points to the truth.
    rest = sitk.CompositeTransform([affine.GetInverse(), truth.transform])
    warp = save_field(displacements(rest, truth.fixed), truth.fixed, tmp_path / "1Warp.nii.gz")
    right = read_result([warp, tmp_path / "0GenericAffine.mat"], truth.fixed)
    assert score(right, truth).result.body["max"] < 1e-4
    wrong = read_result([tmp_path / "0GenericAffine.mat", warp], truth.fixed)
    assert score(wrong, truth).result.body["mean"] > 1


def wrong_conventions(truth: Truth, folder: Path) -> dict[str, tuple[Path, str]]:
    """Files of the truth in other conventions: name -> file, convention."""
    vectors = displacements(truth.transform, truth.fixed)
    grid, direction = truth.fixed, np.asarray(truth.fixed.GetDirection()).reshape(3, 3)
    voxels = vectors @ direction / np.asarray(grid.GetSpacing())
    index = np.stack(np.unravel_index(np.arange(vectors[..., 0].size), vectors.shape[:-1])[::-1], axis=1)
    points = to_points(index.astype(float), grid)
    back = truth.inverse_points(points) - points
    made = {
        "inverse": back.reshape(vectors.shape),
        "RAS": vectors * FLIP,
        "voxels": voxels,
        "voxels, reversed": voxels[..., ::-1],
        "swapped": vectors[..., ::-1],
        "axes": vectors @ direction,
    }
    files = {name: (save_field(v, grid, folder / f"w{k}.mha"), "mm") for k, (name, v) in enumerate(made.items())}
    np.save(folder / "mm.npy", vectors)
    files["millimeters"] = folder / "mm.npy", "voxels"
    return files


@pytest.mark.parametrize("seed", range(4))
def test_wrong_conventions_are_recognized(seed, drdm, tmp_path, tiny_models):
    random = np.random.default_rng(seed)
    image = smooth_image(
        tuple(random.permutation([20, 18, 16]).tolist()),
        tuple(random.uniform(1.5, 3.0, 3).tolist()),
        rotation(*random.uniform(-30, 30, 3)),
        seed=seed,
    )
    made = make(drdm, tmp_path, tiny_models[3], image, "--recipe", "medium", "--seed", seed)
    truth = read_truth(made)
    for name, (path, convention) in wrong_conventions(truth, made).items():
        found = score_file(path, truth, convention)
        assert found.looks_like is not None and found.looks_like.name == name, name
        # The score is that of the file as it was given.
        assert found.result.body["mean"] > 2 * found.looks_like.mean_mm

    # No alarm: the truth with errors of its own, parts of it, and nothing at all.
    vectors = displacements(truth.transform, truth.fixed)
    noise = np.stack([ndimage.gaussian_filter(random.standard_normal(vectors.shape[:-1]), 2) for _ in range(3)], -1)
    size = np.linalg.norm(vectors, axis=-1).mean()
    for sound in (
        *(vectors + noise * (part * size / np.linalg.norm(noise, axis=-1).mean()) for part in (0.1, 0.4, 0.8)),
        0.5 * vectors,
        vectors.mean(axis=(0, 1, 2)) + 0 * vectors,
        0 * vectors,
        3 * noise,
    ):
        assert score(sitk.DisplacementFieldTransform(field_of(sound, truth.fixed)), truth).looks_like is None


def test_transposed_arrays_and_positions_are_recognized(drdm, tmp_path, tiny_models):
    grid_kept = ["--resample", 0, "--crop", 0]
    image = smooth_image((18, 18, 18), (1.5, 2.0, 2.5))
    truth = read_truth(make(drdm, tmp_path, tiny_models[3], image, *grid_kept))
    vectors = displacements(truth.transform, truth.fixed)
    voxels = vectors / np.asarray(truth.fixed.GetSpacing())
    for number, array in enumerate((voxels, voxels[..., ::-1])):
        np.save(tmp_path / f"{number}.npy", array)
        found = score_file(tmp_path / f"{number}.npy", truth, "voxels").looks_like
        assert found is not None and found.name == "transposed"
    index = np.indices(vectors.shape[:-1]).reshape(3, -1).T[:, ::-1].astype(float)
    positions = to_points(index, truth.fixed).reshape(vectors.shape) + vectors
    for name, values in (("positions", positions), ("positions, RAS", positions * FLIP)):
        found = score_file(save_field(values, truth.fixed, tmp_path / "p.mha"), truth).looks_like
        assert found is not None and found.name == name


def test_demons_and_broken_results_are_ranked(case, truth):
    pair = case.parents[1] / "pairs" / "scan_000"
    fixed, moving = (sitk.ReadImage(str(pair / f"{name}.nii.gz"), sitk.sitkFloat32) for name in ("fixed", "moving"))
    demons = sitk.FastSymmetricForcesDemonsRegistrationFilter()
    demons.SetNumberOfIterations(40)
    demons.SetStandardDeviations(1.5)
    found = demons.Execute(fixed, sitk.HistogramMatching(sitk.Resample(moving, fixed), fixed))
    vectors = sitk.GetArrayFromImage(found)
    results = [vectors, 0.5 * vectors, vectors + [8.0, 0, 0]]
    scores = [score(sitk.DisplacementFieldTransform(field_of(v, fixed)), truth) for v in results]
    means = [one.result.body["mean"] for one in scores]
    assert means == sorted(means) and means[0] < scores[0].before.body["mean"]
    assert scores[0].looks_like is None


def test_the_pages(drdm, case, truth, tmp_path):
    vectors = 0.8 * displacements(truth.transform, truth.fixed)
    path = save_field(vectors, truth.fixed, tmp_path / "<ä>.nii.gz")
    back = save_field(-vectors, truth.fixed, tmp_path / "back.nii.gz")
    outcome = drdm("score", path, "--truth", case, "-o", tmp_path / "out", "--backward", back)
    assert outcome.status == 0 and "error over the body, mean" in outcome.out and "there and back" in outcome.out
    found = json.loads((tmp_path / "out" / "score.json").read_text(encoding="utf-8"))
    assert found["result"]["body"]["mean"] == pytest.approx(0.2 * found["before"]["body"]["mean"], rel=1e-4)
    assert found["inverse_consistency"]["mean"] > 0 and found["looks_like"] is None
    with (tmp_path / "out" / "score.csv").open(encoding="utf-8", newline="") as file:
        table = {row["figure"]: row for row in csv.DictReader(file)}
    assert float(table["error over the body, mean"]["result"]) == pytest.approx(found["result"]["body"]["mean"])
    errors = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "out" / "errors.nii.gz")))
    assert errors.max() == pytest.approx(found["result"]["body"]["max"], rel=1e-5)
    with (tmp_path / "out" / "landmarks.csv").open(encoding="utf-8", newline="") as file:
        listed = [float(row["error_mm"]) for row in csv.DictReader(file)]
    assert listed == sorted(listed, reverse=True) and len(listed) == found["landmarks"] > 5

    text = (tmp_path / "out" / "score.html").read_text(encoding="utf-8")
    assert "src=" not in text.split("<script>")[0] and "<ä>" not in text.split("<script>")[0]
    shown = json.loads(re.search(r'id="data">(.*?)</script>', text, re.DOTALL).group(1))
    assert [set(row) for row in shown["pictures"]] == [{"fixed", "before", "result"}] * 3
    assert sum(shown["result"]) == pytest.approx(1, abs=1e-3) and len(shown["worst"]) > 2
    picture = tmp_path / "picture.png"
    picture.write_bytes(base64.b64decode(shown["pictures"][0]["result"].partition(",")[2]))
    assert max(sitk.ReadImage(str(picture)).GetSize()) == 300
    assert drdm("score", path, "--truth", case, "-o", tmp_path / "again").status == 0
    assert (tmp_path / "again" / "errors.nii.gz").read_bytes() == (tmp_path / "out" / "errors.nii.gz").read_bytes()


def test_two_dimensions(drdm, tmp_path, tiny_models):
    made = make(drdm, tmp_path, tiny_models[2], scan((40, 32)), "--recipe", "hard", "--levels", "40")
    truth = read_truth(made)
    field = save_field(displacements(truth.transform, truth.fixed), truth.fixed, tmp_path / "a.mha")
    assert drdm("score", field, "--truth", made, "-o", tmp_path / "out").status == 0
    found = json.loads((tmp_path / "out" / "score.json").read_text(encoding="utf-8"))
    assert found["result"]["body"]["max"] < 1e-4 < found["before"]["body"]["mean"]
    assert found["looks_like"] is None


def test_points_of_the_user(drdm, tmp_path, tiny_models):
    image = scan((20, 18, 16))
    points = np.asarray([image.TransformIndexToPhysicalPoint(i) for i in ((8, 8, 8), (10, 9, 7), (7, 10, 9))])
    lps, ras = points.round(4), (points * FLIP).round(4)
    control = [{"label": "p", "position": point} for point in ras.tolist()]
    texts = {
        "a.csv": "name,x,y,z\n" + "".join(f"p{k},{x},{y},{z}\n" for k, (x, y, z) in enumerate(lps)),
        "b.csv": "".join(f"{x};{y};{z}\n" for x, y, z in lps),
        "elastix.txt": "point\n3\n" + "".join(f"{x} {y} {z}\n" for x, y, z in lps),
        "c.fcsv": "# Markups fiducial file version = 4.11\n# CoordinateSystem = 0\n# columns = id,x,y,z,ow,label\n"
        + "".join(f"{k},{x},{y},{z},0,p{k}\n" for k, (x, y, z) in enumerate(ras)),
        "d.fcsv": "# CoordinateSystem = LPS\n# columns = id,x,y,z\n"
        + "".join(f"{k},{x},{y},{z}\n" for k, (x, y, z) in enumerate(lps)),
        "e.mrk.json": json.dumps({"markups": [{"coordinateSystem": "RAS", "controlPoints": control}]}),
    }
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
        assert np.allclose(read_points(tmp_path / name, 3).points, points, atol=1e-3), name
    made = make(drdm, tmp_path, tiny_models[3], image, "--points", tmp_path / "a.csv", "--recipe", "mild")
    truth = read_truth(made)
    assert truth.record["landmarks"] == {"count": 3, "given": True}
    assert {name: tuple(p) for name, p in zip(truth.names, truth.on_moving.round(3).tolist(), strict=True)}.items() <= {
        f"p{k}": tuple(p) for k, p in enumerate(points.round(3).tolist())
    }.items()


def test_cases_of_the_shipped_phantom(drdm, tmp_path, tiny_models, monkeypatch):
    monkeypatch.chdir(tmp_path)
    how = ["--model", tiny_models[3], "--steps", 1, "--recipe", "mild", "--progress", "none"]
    assert drdm("challenge", "phantom", "-o", "cases", *how).status == 0
    truth = read_truth(tmp_path / "cases" / "truth" / "phantom_000")
    assert truth.moving_label is not None and len(truth.names) > 20


def test_the_shipped_case_is_the_same_for_everybody(drdm, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert drdm("challenge", "reference", "-o", "cases", "--progress", "none").status == 0
    shipped = resource("Challenge")
    named = [path for path in shipped.rglob("*") if path.is_file() and "reference" in path.parent.name]
    copied = {path: content for path, content in snapshot(tmp_path / "cases").items() if content is not None}
    assert copied == {path.relative_to(shipped): path.read_bytes() for path in named} and len(copied) == 8
    truth = read_truth(tmp_path / "cases" / "truth" / "reference")
    # The figures that the page on registration tests names.
    nothing = score(sitk.Transform(3, sitk.sitkIdentity), truth)
    assert nothing.result.body["mean"] == pytest.approx(2.806, abs=2e-3)
    assert nothing.result.landmarks["mean"] == pytest.approx(2.972, abs=2e-3)
    assert nothing.floor.body["mean"] == pytest.approx(0.015, abs=2e-3)
    assert certify_saved(sitk.Cast(truth.field, sitk.sitkVectorFloat32)).certified
    outcome = drdm("challenge", "reference", "-o", "other", "--noise", "0")
    assert outcome.status == 2 and "leave out '--noise'" in outcome.err and not Path("other").exists()


def test_landmarks_lie_apart_on_features():
    noise = np.random.default_rng(0).standard_normal((32, 36, 40)).astype(np.float32)
    image = sitk.GetImageFromArray(ndimage.gaussian_filter(noise, 1.5))
    everywhere = sitk.Image(image.GetSize(), sitk.sitkUInt8) + 1
    everywhere.CopyInformation(image)
    points = choose_landmarks(image, everywhere, 50).points
    apart = np.linalg.norm(points[:, None] - points[None], axis=-1) + 1e9 * np.eye(len(points))
    assert 20 < len(points) <= 50 and apart.min() > 2


def test_changes_are_those_of_the_recipe():
    image = scan()
    nothing = draw_changes(Recipe((1,)), image, 5)
    assert cut(image, nothing) is image and fixed_grid(image, nothing).GetSize() == image.GetSize()
    assert np.array_equal(sitk.GetArrayFromImage(alter(image, nothing)), sitk.GetArrayFromImage(image))
    hard = draw_changes(RECIPES["hard"], image, 5)
    # Switching one change off leaves the others as they are.
    quiet = draw_changes(replace(RECIPES["hard"], noise=0.0), image, 5)
    assert quiet.noise == 0 and replace(quiet, noise=hard.noise, bias=hard.bias) == hard
    noisy = sitk.GetArrayFromImage(alter(image, replace(nothing, noise=20.0))).astype(float)
    assert (noisy - sitk.GetArrayFromImage(image)).std() == pytest.approx(20, rel=0.05)
    grid = fixed_grid(image, hard)
    corner = image.TransformPhysicalPointToContinuousIndex(grid.TransformContinuousIndexToPhysicalPoint([-0.5] * 3))
    starts = [start * n - 0.5 for (start, _), n in zip(hard.fixed_crop, image.GetSize(), strict=True)]
    assert np.allclose(corner, starts, atol=1e-6)


def test_bad_input(drdm, case, truth, tmp_path, monkeypatch):
    def refused(*arguments: object, words: str) -> None:
        outcome = drdm(*arguments)
        assert outcome.status == 2 and outcome.err.strip().count("\n") == 0 and words in outcome.err, outcome.err

    def result(name: object, words: str, *more: object) -> None:
        refused("score", tmp_path / str(name), "--truth", case, *more, words=words)

    flat = scan((20, 18))
    save_field(np.zeros((18, 20, 2)), flat, tmp_path / "flat.mha")
    sitk.WriteTransform(sitk.AffineTransform(2), str(tmp_path / "flat.tfm"))
    far = sitk.Image(truth.fixed)
    far.SetOrigin([1000.0, 0.0, 0.0])
    save_field(np.zeros((*far.GetSize()[::-1], 3)), far, tmp_path / "far.nii.gz")
    save_field(np.full((*far.GetSize()[::-1], 3), np.nan), truth.fixed, tmp_path / "nan.mha")
    for name in ("bad.tfm", "bad.nii.gz", "bad.npy", "bad.h5", "bad.unknown"):
        (tmp_path / name).write_bytes(b"nothing of use")
        result(name, name)
    (tmp_path / "TransformParameters.0.txt").write_text('(Transform "EulerTransform")\n(NumberOfParameters 6)\n')
    monkeypatch.setitem(__import__("sys").modules, "itk", None)
    np.save(tmp_path / "small.npy", np.zeros((3, 4, 5, 3)))
    result("flat.mha", "2D")
    result("flat.tfm", "2D")
    result("far.nii.gz", "does not lie at the fixed image")
    result("nan.mha", "NaN")
    result("none.tfm", "There is no result")
    result("TransformParameters.0.txt", "itk-elastix")
    result("small.npy", "shape", "--convention", "voxels")
    refused("score", case / "fixed_label.nii.gz", "--truth", case, words="is an image")
    refused("score", case / "field.nii.gz", "--truth", tmp_path, words="is not the truth of a case")

    copied = tmp_path / "copied"
    shutil.copytree(case.parents[1], copied)
    pair = copied / "pairs" / "scan_000" / "fixed.nii.gz"
    pair.write_bytes((copied / "pairs" / "scan_000" / "moving.nii.gz").read_bytes())
    again = ["score", case / "field.nii.gz", "--truth", copied / "truth" / "scan_000"]
    refused(*again, words="is not the file that belongs to the case")
    pair.unlink()
    refused(*again, words="side by side")

    image = tmp_path / "scan.nii.gz"
    sitk.WriteImage(scan(), str(image))
    (tmp_path / "outside.csv").write_text("x,y,z\n1000,0,0\n")
    (tmp_path / "words.csv").write_text("these,are,words\n")
    wrong = {
        "outside.csv": "lie outside of the scan",
        "words.csv": "is not a list of points",
        "no.csv": "cannot be read",
    }
    for name, words in wrong.items():
        refused("challenge", image, "-o", tmp_path / "new", "--points", tmp_path / name, words=words)
    refused("challenge", image, "-o", tmp_path / "new", "--noise", "-1", words="noise")
    refused("challenge", image, "-o", tmp_path / "new", "--crop", "0.9", words="crop")
    assert not (tmp_path / "new").exists()
