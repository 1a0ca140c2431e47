"""Regions on the command line, in runs over datasets, in records and in banks."""

import json
import shutil

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from command_helpers import array_of, boxes, scene, write
from production_helpers import LEVELS, make, records_of, report_of, result, write_cases

from DRDMLib.errors import ImageError, SettingError
from DRDMLib.io.images import read_image
from DRDMLib.loaders import FieldGenerator, make_bank
from DRDMLib.loaders.world import ras_affine
from DRDMLib.production.plan import AUGMENT, SYNTHESIZE
from DRDMLib.production.regenerate import regenerate
from DRDMLib.settings import DeformationSettings, RegionSettings
from DRDMLib.spatial.region import Region, box_of

SIZE = (60, 50, 26)


@pytest.fixture
def scan(tmp_path):
    image = scene(SIZE)
    return write(image, tmp_path / "scan.nii.gz"), write(boxes(image), tmp_path / "label.nii.gz")


def settings(around=(), pose=0.0, **more):
    return DeformationSettings(steps=1, pose=pose, region=RegionSettings(around=around, **more))


def test_deform_around_a_label(drdm, scan, tiny_models, tmp_path):
    image, label = scan
    out = tmp_path / "out"
    arguments = ["--model", tiny_models[3], "--steps", 1, "--around", 1, "--device", "cpu", "--keep", 3, "--margin", 8]
    done = drdm("deform", image, "-o", out, "--label", label, *arguments)
    assert done.status == 0, done.err
    report = report_of(out)
    assert report["region"]["around"] == [1]
    assert report["items"][0]["region"]["kept"]["max_mm"] == 0
    assert report["items"][0]["metrics"]["certified_invertible"]
    assert "beyond the region" in done.err
    before, after = array_of(image), array_of(out / "scan_000_image.nii.gz")
    # The label is 20 mm from the face of the scan, and its box 12 mm.
    assert np.array_equal(before[..., :4], after[..., :4])
    assert not np.array_equal(before, after)


def test_deform_in_six_numbers_on_a_coarse_field(drdm, scan, tiny_models, tmp_path):
    image, _ = scan
    out = tmp_path / "out"
    read = sitk.ReadImage(str(image))
    corners = [read.TransformIndexToPhysicalPoint(index) for index in ([20, 15, 8], [40, 35, 18])]
    numbers = ["--region", *corners[0], *corners[1]]
    done = drdm("deform", image, "-o", out, "--model", tiny_models[3], "--steps", 1, *numbers, "--only-field")
    assert done.status == 0, done.err
    field = sitk.ReadImage(str(out / "scan_000_field.nii.gz"))
    assert field.TransformPhysicalPointToContinuousIndex(corners[0])[0] > 0
    assert not sitk.GetArrayFromImage(field)[0].any()
    assert drdm("evaluate", out / "scan_000_field.nii.gz").status == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--region", 1, 2, 3, 4, 5, 6, 7], "six numbers, two opposite corners in LPS millimeters"),
        (["--region", 900, 900, 900, 990, 990, 990], "outside the scan"),
        (["--region", 1, 1, 1, 9, 9, 9, "--around", 1], "not allowed with"),
        (["--around", 0], "is not a label"),
        (["--around", 1], "no label to deform around"),
        (["--around", 9, "--label", "LABEL"], "no voxel of 9; its values are 1, 3"),
        (["--margin", 5], "margin needs a region"),
        (["--around", 1, "--margin", -5, "--label", "LABEL"], "out of range"),
        (["--around", 1, "--margin", 0.01, "--label", "LABEL"], "too small"),
        (["--keep", "nowhere.nii.gz"], "nowhere.nii.gz"),
        (["--keep", 1, "a.nii"], "one mask file"),
        (["--keep", 8, "--label", "LABEL"], "no voxel of 8"),
    ],
)
def test_mistakes_have_one_sentence(arguments, message, drdm, scan, tiny_models, tmp_path):
    image, label = scan
    arguments = [label if a == "LABEL" else a for a in arguments]
    done = drdm("deform", image, "-o", tmp_path / "out", "--model", tiny_models[3], "--steps", 1, *arguments)
    assert done.status == 2
    assert message in done.err.strip().splitlines()[-1]
    assert "Traceback" not in done.err


@pytest.mark.parametrize("kind", [AUGMENT, SYNTHESIZE])
def test_a_run_is_resumed_and_regenerated_in_the_same_region(kind, tiny_model_path, tmp_path):
    dataset = write_cases(tmp_path / "in", size=(40, 36, 20))
    how = {"deformation": settings(pose=0.5), "levels": LEVELS[kind][:1]}
    run, _ = make(dataset, tmp_path / "1" / "run", tiny_model_path, kind, **how)
    assert run.failures() == []
    written = records_of(tmp_path / "1" / "run")
    made = {name: record for name, record in written.items() if record["levels"]}
    assert all(record["region"]["around"] == "all" for record in made.values())
    assert all(len(record["item"]["region"]["boxes"]) == 1 for record in made.values())
    assert all("region" in item for item in report_of(tmp_path / "1" / "run")["items"])
    # A copy of the run that was interrupted before its last sample.
    shutil.copytree(tmp_path / "1" / "run", tmp_path / "2" / "run")
    gone = sorted(made)[-1]
    (tmp_path / "2" / "run" / "records" / f"{gone}.json").unlink()
    make(dataset, tmp_path / "2" / "run", tiny_model_path, kind, resume=True, **how)
    assert result(tmp_path / "2" / "run") == result(tmp_path / "1" / "run")
    with pytest.raises(SettingError):
        make(dataset, tmp_path / "2" / "run", tiny_model_path, kind, resume=True, levels=LEVELS[kind][:1])
    again = regenerate(
        tmp_path / "1" / "run" / "records" / f"{gone}.json", tmp_path / "again", model=str(tiny_model_path)
    )
    assert again.differences == []


@pytest.mark.filterwarnings("ignore:Labels reach out")
def test_labels_keep_their_original_values_in_options(tiny_model_path, tmp_path):
    dataset = write_cases(tmp_path / "in", names=("a",), size=(40, 36, 20))
    # The label 3 becomes 2 in an nnU-Net dataset.
    run, _ = make(dataset, tmp_path / "out", tiny_model_path, deformation=settings(around=(3,)), levels=((40,),))
    assert run.failures() == []
    (item,) = report_of(tmp_path / "out")["items"]
    start, _ = box_of(Region.of(item["region"]["boxes"][0]), read_image(dataset / "images" / "a.nii.gz"))
    assert not start.any()
    with pytest.raises(ImageError, match="No label has the value 7"):
        make(dataset, tmp_path / "none", tiny_model_path, deformation=settings(around=(7,)), levels=((40,),))


def test_runs_without_a_region_are_written_as_before(tiny_model_path, tmp_path):
    make(write_cases(tmp_path / "in", names=("a",)), tmp_path / "out", tiny_model_path, levels=((40,),))
    assert "region" not in json.loads((tmp_path / "out" / "run.json").read_text(encoding="utf-8"))["settings"]
    assert all("region" not in record for record in records_of(tmp_path / "out").values())


def test_banks_hold_fields_of_regions(tiny_model_path, tmp_path):
    dataset = write_cases(tmp_path / "in", names=("a",), size=(40, 36, 20))
    how = {"model": str(tiny_model_path), "levels": (40,), "copies": 1, "steps": 1, "device": "cpu"}
    region = RegionSettings(around=())
    field = make_bank(dataset, tmp_path / "bank", region=region, **how).field("a", 0)
    assert np.abs(field.vectors.numpy()).max() > 0.1
    for axis in range(1, 4):
        if field.vectors.shape[axis] * np.linalg.norm(field.affine[:3, axis - 1]) < 36:
            assert not field.vectors.numpy().take((0, -1), axis).any()
    make_bank(dataset, tmp_path / "bank", region=region, **how)
    with pytest.raises(SettingError, match="other region"):
        make_bank(dataset, tmp_path / "bank", **how)


def test_a_generator_takes_boxes_but_no_labels(tiny_model_path, tmp_path):
    with pytest.raises(SettingError, match="make_bank"):
        FieldGenerator(str(tiny_model_path), region=RegionSettings(around=()))
    image = read_image(write(scene(SIZE), tmp_path / "a.nii.gz"))
    corners = [image.TransformIndexToPhysicalPoint(index) for index in ([20, 15, 8], [40, 35, 18])]
    region = RegionSettings((Region(*corners),))
    source = FieldGenerator(str(tiny_model_path), levels=(40,), steps=1, device="cpu", region=region)
    affine = ras_affine(image)
    tensor = torch.from_numpy(sitk.GetArrayFromImage(image).T[None].astype(np.float32))
    field = source.draw("a", tensor, affine, 0)
    assert np.abs(field.vectors.numpy()).max() > 0.1
