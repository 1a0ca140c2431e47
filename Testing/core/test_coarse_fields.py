"""``drdm deform`` saves the fields of large scans on the coarse grid, and everything that reads fields takes them."""

import json

import numpy as np
import pytest
import SimpleITK as sitk
from command_helpers import array_of, boxes, names_in, report_of, scene, write

from DRDMLib import output

KINDS = ("image", "label", "inverse")


@pytest.fixture
def all_are_large(monkeypatch):
    monkeypatch.setattr(output, "_MOST_VOXELS", 100)


@pytest.fixture
def arguments(tmp_path, tiny_models):
    def of(size, *more):
        image = scene(size)
        scan, label = write(image, tmp_path / "scan.nii.gz"), write(boxes(image), tmp_path / "label.nii.gz")
        quick = ["--device", "cpu", "--steps", 1, "--level", 30, "--no-picture"]
        model = tiny_models[2 if 1 in size else len(size)]
        return ["deform", scan, "--label", label, "--model", model, *quick, *more]

    return of


def test_the_limit():
    assert not output.is_large(sitk.Image(256, 256, 256, sitk.sitkUInt8))
    assert output.is_large(sitk.Image(512, 512, 300, sitk.sitkUInt8))


@pytest.mark.parametrize(
    ("size", "pose"), [((26, 22, 18), 0), ((26, 22, 18), 1), ((26, 22), 0), ((30, 26, 1), 0)], ids=str
)
def test_a_large_scan_gets_the_coarse_field(tmp_path, succeed, arguments, all_are_large, size, pose):
    scan, common = tmp_path / "scan.nii.gz", arguments(size, "--pose", pose)
    given = succeed(*common, "-o", tmp_path / "a", "--inverse", "--progress", "json")
    assert names_in(tmp_path / "a") == [
        "report.json",
        *(f"scan_000_{kind}.nii.gz" for kind in ("field", "image", "inverse", "label")),
    ]
    (item,) = report_of(tmp_path / "a")["items"]
    assert item["ddf"] is None and item["field"] == "scan_000_field.nii.gz"
    events = [json.loads(line) for line in given.splitlines()]
    (version,) = [event for event in events if event["event"] == "version"]
    assert (version["ddf"], version["field"]) == (None, item["field"])
    (message,) = [event["text"] for event in events if "--full-field" in event.get("text", "")]
    assert "coarse grid" in message
    about = report_of(tmp_path / "a")["fields"]
    assert set(about) == {"field", "inverse", "metrics", "certified_invertible"}
    # On request the full one, too, which is that of an ordinary scan.
    messages = succeed(*common, "-o", tmp_path / "b", "--inverse", "--full-field")
    assert "--full-field" not in messages
    (both,) = report_of(tmp_path / "b")["items"]
    assert both["field"] and both["ddf"] and set(report_of(tmp_path / "b")["fields"]) == {"ddf", *about}
    succeed(*common, "-o", tmp_path / "c", "--inverse", "--no-full-field")
    for kind in (*KINDS, "field"):
        name = f"scan_000_{kind}.nii.gz"
        made = [(tmp_path / folder / name).read_bytes() for folder in "abc"]
        assert made[0] == made[1] == made[2], kind
    # Both files are the same map, in either direction and for the figures.
    for number, field in enumerate((tmp_path / "a" / item["field"], tmp_path / "b" / both["ddf"])):
        (figures,) = json.loads(succeed("evaluate", field, "--on", scan))
        expected = item["metrics"] | ({"certified_invertible": True})
        assert figures["metrics"] == pytest.approx(expected, rel=1e-5, abs=1e-7)
        succeed("apply", field, scan, "--label", tmp_path / "label.nii.gz", "-o", tmp_path / f"new-{number}")
        for name, kind in (("scan", "image"), ("label", "label")):
            again, made = (
                array_of(path).astype(float)
                for path in (tmp_path / f"new-{number}" / f"{name}.nii.gz", tmp_path / "a" / item[kind])
            )
            assert (np.abs(again - made) <= 1).mean() > 0.999, (field, name)
        image = tmp_path / "a" / item["image"]
        succeed("apply", field, image, "--inverse", "-o", tmp_path / f"old-{number}")
    old = [array_of(tmp_path / f"old-{k}" / "scan_000_image.nii.gz").astype(float) for k in range(2)]
    # Between the voxels the full field is a little smoother.
    inner = tuple(slice(n // 4, max(n - n // 4, n // 4 + 1)) for n in old[0].shape)
    moved = np.abs(array_of(scan).astype(float) - array_of(tmp_path / "a" / item["image"]))[inner].mean()
    assert np.abs(old[0] - old[1])[inner].mean() < 0.05 * moved


def test_ordinary_scans_keep_their_files(tmp_path, succeed, arguments):
    messages = succeed(*arguments((26, 22, 18)), "-o", tmp_path / "out")
    assert names_in(tmp_path / "out") == [
        "report.json",
        *(f"scan_000_{kind}.nii.gz" for kind in ("ddf", "image", "label")),
    ]
    assert "coarse" not in messages and "fields" not in report_of(tmp_path / "out")


def test_contradictions_are_refused(tmp_path, drdm, arguments, succeed):
    common = arguments((26, 22, 18))
    made = drdm(*common, "-o", tmp_path / "out", "--only-field", "--full-field")
    assert made.status == 2 and "leave out one" in made.err and not (tmp_path / "out").exists()
    succeed(*common, "-o", tmp_path / "one", "--no-full-field")
    far = scene((26, 22, 18))
    far.SetOrigin([900.0, 0.0, 0.0])
    field = tmp_path / "one" / "scan_000_field.nii.gz"
    for scan in (far, scene((26, 22))):
        made = drdm("evaluate", field, "--on", write(scan, tmp_path / "far.nii.gz"))
        assert made.status == 2 and "choose the scan that was deformed" in made.err
