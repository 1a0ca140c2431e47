"""Runs over a dataset: resumed after a kill, invalid cases skipped, settings never mixed."""

import json
import time

import pytest
import SimpleITK as sitk
from command_helpers import boxes, run_process, scene, snapshot, start_process, write


@pytest.fixture
def dataset(tmp_path):
    folder = tmp_path / "däta set"
    for name in ("a", "b", "c"):
        image = scene()
        write(image, folder / "images" / f"{name}.nii.gz")
        write(boxes(image), folder / "labels" / f"{name}.nii.gz")
    return folder


def contents(folder):
    """All files and the report, without times."""
    found = snapshot(folder)
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    for item in report["items"]:
        item.pop("seconds")
    timeless = {path: data for path, data in found.items() if path.name != "report.json" and path.parts[0] != "logs"}
    return timeless, report


ARGUMENTS = {"augment": ["--levels", "8", "16"], "synthesize": ["--levels", "16:8", "--copies", "2"]}


@pytest.mark.parametrize("name", ["augment", "synthesize"])
def test_a_killed_run_is_resumed(name, dataset, tmp_path, tiny_models):
    settings = [*ARGUMENTS[name], "--steps", "2", "--model", tiny_models[3], "--device", "cpu"]
    whole, broken = tmp_path / "whole" / "set", tmp_path / "broken" / "set"
    assert run_process(name, dataset, "-o", whole, *settings).returncode == 0

    process = start_process(name, dataset, "-o", broken, *settings, "--progress", "json")
    items = 0
    for line in process.stdout:
        items += json.loads(line)["event"] == "item"
        if items == 2:
            process.kill()
    process.communicate()
    assert process.returncode != 0
    made = {path: path.stat().st_mtime_ns for path in broken.rglob("*.nii.gz")}
    time.sleep(0.05)

    refused = run_process(name, dataset, "-o", broken, *settings)
    assert refused.returncode == 2 and "--resume" in refused.stderr

    resumed = run_process(name, dataset, "-o", broken, *settings, "--resume", "--progress", "json")
    assert resumed.returncode == 0, resumed.stderr
    events = [json.loads(line) for line in resumed.stdout.splitlines()]
    total = len(contents(whole)[1]["items"])
    assert 0 < sum(event["event"] == "item" for event in events) <= total - 2
    assert contents(broken) == contents(whole)
    kept = [path for path, at in made.items() if path.stat().st_mtime_ns == at and "_t" in path.name]
    assert len(kept) >= 2 * len(("image", "label"))


def test_resuming_with_other_settings_is_refused(dataset, tmp_path, tiny_models):
    folder = tmp_path / "out"
    arguments = ["augment", dataset, "-o", folder, "--steps", "1", "--model", tiny_models[3], "--device", "cpu"]
    assert run_process(*arguments, "--levels", "8").returncode == 0
    before = snapshot(folder)
    for change in (["--levels", "16"], ["--levels", "8", "--seed", "1"], ["--levels", "8", "--copies", "2"]):
        result = run_process(*arguments, *change, "--resume")
        assert result.returncode == 2
        assert len(result.stderr.splitlines()) == 1 and "new folder" in result.stderr
    assert snapshot(folder) == before
    again = run_process(*arguments, "--levels", "8", "--resume")
    assert again.returncode == 0, again.stderr
    assert contents(folder)[0] == {p: d for p, d in before.items() if p.name != "report.json" and p.parts[0] != "logs"}


def test_a_case_of_another_dimension_is_skipped(dataset, tmp_path, tiny_models):
    image = sitk.GetImageFromArray(sitk.GetArrayFromImage(scene())[:1])
    write(image, dataset / "images" / "b.nii.gz")
    write(boxes(image), dataset / "labels" / "b.nii.gz")
    folder = tmp_path / "out"
    result = run_process(
        "augment", dataset, "-o", folder, "--levels", "8", "--steps", "1", "--model", tiny_models[3], "--device", "cpu"
    )
    assert result.returncode == 0, result.stderr
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    assert [item["source"] for item in report["items"]] == ["a", "c"]
    assert len(report["failures"]) == 1 and report["failures"][0].startswith("b: ")
    assert "Left out: b" in result.stderr


def test_deform_writes_only_the_field(tmp_path, tiny_models):
    image = write(scene(), tmp_path / "scan.nii.gz")
    settings = ["--level", "16", "--steps", "2", "--model", tiny_models[3], "--device", "cpu"]
    assert run_process("deform", image, "-o", tmp_path / "a", *settings, "--only-field").returncode == 0
    assert run_process("deform", image, "-o", tmp_path / "b", *settings).returncode == 0
    assert [p.name for p in sorted((tmp_path / "a").iterdir())] == ["report.json", "scan_000_field.nii.gz"]
    field = sitk.ReadImage(str(tmp_path / "a" / "scan_000_field.nii.gz"), sitk.sitkVectorFloat64)
    ddf = sitk.ReadImage(str(tmp_path / "b" / "scan_000_ddf.nii.gz"), sitk.sitkVectorFloat64)
    coarse, fine = sitk.DisplacementFieldTransform(field), sitk.DisplacementFieldTransform(ddf)
    for index in [(3, 3, 3), (12, 10, 9), (25, 21, 17)]:
        point = sitk.ReadImage(str(image)).TransformIndexToPhysicalPoint(index)
        assert coarse.TransformPoint(point) == pytest.approx(fine.TransformPoint(point), abs=1e-3)


def test_a_truncated_report_is_reported(dataset, tmp_path, tiny_models):
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "report.json").write_text('{"model": "x", "items": [', encoding="utf-8")
    result = run_process("augment", dataset, "-o", folder, "--model", tiny_models[3], "--resume")
    assert result.returncode == 2 and "damaged" in result.stderr
