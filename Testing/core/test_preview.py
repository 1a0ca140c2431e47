"""``drdm preview``: fields of one seed at many levels, which are not proven."""

from __future__ import annotations

import json

import numpy as np
import pytest
import SimpleITK as sitk
from command_helpers import array_of, boxes, scene, write

from DRDMLib import deform
from DRDMLib.models.model import load_model_file
from DRDMLib.previews import MOST_NODES
from DRDMLib.spatial.coordinates import thinned_grid
from DRDMLib.spatial.field_grid import FieldGrid


def on(field, grid):
    return sitk.GetArrayFromImage(sitk.Resample(field, grid, sitk.Transform(), sitk.sitkLinear, 0.0))


@pytest.mark.parametrize("more", [[], ["--around", "1"], ["--pose", "0.2"], ["--pose", "auto"]], ids=" ".join)
def test_the_fields_are_those_of_deform(drdm, tmp_path, tiny_models, more):
    image = scene()
    scan, label = write(image, tmp_path / "scan.nii.gz"), write(boxes(image), tmp_path / "label.nii.gz")
    more = [*more, "--label", label] if "--around" in more else more
    quick = ["--model", tiny_models[3], "--steps", "2", "--seed", "5", "--progress", "json"]
    outcome = drdm("preview", scan, "-o", tmp_path / "out", "--levels", "16", "8", *more, *quick)
    assert outcome.status == 0, outcome.err
    items = [one for one in map(json.loads, outcome.out.splitlines()) if one["event"] == "item"]
    assert [(one["level"], one["field"]) for one in items] == [(16, "level_16.nrrd"), (8, "level_08.nrrd")]
    fields = [sitk.ReadImage(str(tmp_path / "out" / one["field"])) for one in items]
    assert fields[0].GetSize() == fields[1].GetSize() and fields[0].GetOrigin() == fields[1].GetOrigin()
    plain = ["deform", scan, "-o", tmp_path / "made", "--only-field", "--level", "8", *more, *quick]
    assert drdm(*plain).status == 0
    # The repair changes nothing in so gentle a field, and the thinned grid little.
    made = sitk.ReadImage(str(tmp_path / "made" / "scan_000_field.nii.gz"))
    theirs, ours = on(made, image), on(fields[1], image)
    assert np.abs(ours - theirs).max() < 0.1 * np.abs(theirs).max() > 0
    # Nothing is lost at the border of the grid: what is beyond does not move, or follows the pose.
    if "0.2" in more:
        assert FieldGrid.of(fields[0]).border_map() is not None
    else:
        assert np.abs(sitk.GetArrayFromImage(fields[0])[[0, -1]]).max() < 1e-6


def test_a_2d_image(drdm, tmp_path, tiny_models):
    image = scene((26, 22))
    scan = write(image, tmp_path / "scan.nii.gz")
    quick = ["--model", tiny_models[2], "--steps", "1", "--levels", "20"]
    outcome = drdm("preview", scan, "-o", tmp_path / "out", *quick)
    assert outcome.status == 0, outcome.err
    field = array_of(tmp_path / "out" / "level_20.nrrd")
    assert field.shape[-1] == 2 and np.abs(field).max() > 0
    made = deform(image, load_model_file(tiny_models[2], "cpu"), 20, 0, 1).field
    assert np.abs(on(made, image) - on(sitk.ReadImage(str(tmp_path / "out" / "level_20.nrrd")), image)).max() < 0.5


def test_large_fields_are_thinned():
    field = sitk.Image([150, 140, 3], sitk.sitkVectorFloat32, 3)
    field.SetSpacing((1.0, 2.0, 3.0))
    assert thinned_grid(field, MOST_NODES).GetSize() == field.GetSize()
    field = sitk.Image([150, 140, 130], sitk.sitkVectorFloat32, 3)
    field.SetSpacing((1.0, 2.0, 3.0))
    grid = thinned_grid(field, MOST_NODES)
    assert np.prod(grid.GetSize()) <= MOST_NODES
    far = [grid.TransformIndexToPhysicalPoint([n - 1 for n in grid.GetSize()])]
    assert np.allclose(far, [149.0, 278.0, 387.0])


@pytest.mark.parametrize("levels", [["0"], ["80"], ["strong"]])
def test_levels_that_are_not_possible(refused, tmp_path, scan, tiny_models, levels):
    refused("preview", scan, "-o", tmp_path / "out", "--model", tiny_models[3], "--levels", *levels, says="levels")


def test_nothing_is_overwritten(refused, tmp_path, scan, tiny_models):
    kept = tmp_path / "out" / "level_20.nrrd"
    kept.parent.mkdir()
    kept.write_bytes(b"mine")
    refused("preview", scan, "-o", kept.parent, "--model", tiny_models[3], "--levels", "20", says="not empty")
    assert kept.read_bytes() == b"mine"
