"""``--format``: the same voxels and geometry in NRRD and MetaImage files as in NIfTI files."""

from __future__ import annotations

import json

import numpy as np
import pytest
import SimpleITK as sitk
from support import smooth_image

from DRDMLib.io.volumes import FORMATS
from DRDMLib.loaders import PairDataset


@pytest.fixture
def scans(tmp_path):
    folder = tmp_path / "scans ä"
    for kind in ("images", "labels"):
        (folder / kind).mkdir(parents=True)
    image = smooth_image((20, 18, 16), (2.0, 2.1, 2.5))
    image.SetDirection((0, 1, 0, 1, 0, 0, 0, 0, -1))
    label = sitk.Cast(image > 150, sitk.sitkUInt8)
    for name in ("a", "b", "c"):
        sitk.WriteImage(image, str(folder / "images" / f"{name}.nrrd"))
        sitk.WriteImage(label, str(folder / "labels" / f"{name}.nrrd"))
    return folder


def same(one, two):
    first, second = sitk.ReadImage(str(one)), sitk.ReadImage(str(two))
    assert first.GetPixelID() == second.GetPixelID() and first.GetSize() == second.GetSize()
    for geometry in ("GetSpacing", "GetOrigin", "GetDirection"):
        assert np.allclose(getattr(first, geometry)(), getattr(second, geometry)(), atol=1e-5)
    assert np.array_equal(sitk.GetArrayFromImage(first), sitk.GetArrayFromImage(second))


@pytest.mark.parametrize("ending", FORMATS[1:])
def test_one_image(scans, tmp_path, drdm, tiny_models, ending):
    source, label = scans / "images" / "a.nrrd", scans / "labels" / "a.nrrd"
    command = ["deform", source, "--label", label, "--model", tiny_models[3], "--steps", "1", "--inverse"]
    assert drdm(*command, "-o", tmp_path / "nii").status == 0
    assert drdm(*command, "-o", tmp_path / "other", "--format", ending).status == 0
    for kind in ("image", "label", "ddf", "inverse"):
        same(tmp_path / "nii" / f"a_000_{kind}.nii.gz", tmp_path / "other" / f"a_000_{kind}.{ending}")
    assert drdm("evaluate", tmp_path / "other" / f"a_000_ddf.{ending}").status == 0


@pytest.mark.parametrize("ending", FORMATS[1:])
def test_datasets(scans, tmp_path, drdm, tiny_models, ending):
    for name in ("b", "c"):
        for kind in ("images", "labels"):
            (scans / kind / f"{name}.nrrd").unlink()
    command = ["synthesize", scans, "--model", tiny_models[3], "--steps", "1", "--format", ending]
    for name in ("one", "two"):
        assert drdm(*command, "-o", tmp_path / name).status == 0
    files = sorted(path for path in (tmp_path / "one").rglob(f"*.{ending}"))
    assert len(files) == 6
    for path in files:
        assert path.read_bytes() == (tmp_path / "two" / path.relative_to(tmp_path / "one")).read_bytes()
    item = PairDataset(tmp_path / "one")[0]
    assert item["name"].endswith("_strong-medium_000")
    record = next((tmp_path / "one" / "records").glob("a_*.json"))
    assert drdm("regenerate", record, "-o", tmp_path / "again", "--model", tiny_models[3]).status == 0
    resumed = drdm(*command[:-1], "nii.gz", "-o", tmp_path / "one", "--resume")
    assert resumed.status == 2 and "format" in resumed.err
    assert drdm("augment", *command[1:], "-o", tmp_path / "set").status == 0
    described = json.loads((tmp_path / "set" / "dataset.json").read_text(encoding="utf-8"))
    assert described["file_ending"] == f".{ending}"
    assert len(list((tmp_path / "set" / "imagesTr").glob(f"*_0000.{ending}"))) == 4
