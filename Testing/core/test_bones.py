"""Bone in CT is found, stays rigid, and what is not CT is deformed as without this."""

from __future__ import annotations

import json

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from command_helpers import write
from production_helpers import LEVELS, make, records_of
from support import rotation, smooth_image

from DRDMLib import RegionSettings, deform
from DRDMLib.diffusion.rigid import RigidParts
from DRDMLib.diffusion.slip import SlipPlanes
from DRDMLib.errors import ImageError, SettingError
from DRDMLib.invertibility.certificate import certify_on_grid
from DRDMLib.invertibility.inverse import inverse_points
from DRDMLib.output import report_entry
from DRDMLib.production.regenerate import regenerate
from DRDMLib.spatial.bones import find_skeleton, is_ct, rigid_fit, rigidity
from DRDMLib.spatial.coordinates import to_index
from DRDMLib.spatial.region import Region


def trunk(direction=None):
    """A trunk in air with a spine, six pairs of ribs, a heart full of contrast agent, and lungs, on a table; 4 mm."""
    array = np.full((48, 56, 72), -1000, np.int16)
    z, y, x = np.mgrid[:48, :56, :72]
    array[((x - 36) / 32.0) ** 2 + ((y - 25) / 20.0) ** 2 < 1] = 40
    for side in (-1, 1):
        array[((x - 36 - 15 * side) / 10.0) ** 2 + ((y - 24) / 12.0) ** 2 + ((z - 24) / 16.0) ** 2 < 1] = -850
    array[((x - 36) / 6.0) ** 2 + ((y - 16) / 7.0) ** 2 + ((z - 24) / 9.0) ** 2 < 1] = 400
    ring = ((x - 36) / 28.0) ** 2 + ((y - 25) / 16.5) ** 2
    ribs = (abs(ring - 1) < 0.1) & (z % 8 < 2) & (y > 12)
    spine = (x - 36) ** 2 + (y - 38) ** 2 < 20
    array[ribs] = 700
    array[spine & (z % 8 < 6)] = 500
    array[spine & (z % 8 >= 6)] = 450
    table = (abs(y - 49 - ((x - 36) / 40.0) ** 2) <= 0.6) & (abs(x - 36) < 30)
    array[table] = 0
    noise = np.random.default_rng(0).normal(0, 1, array.shape) * np.where(spine | ribs, 130, 15)
    image = sitk.GetImageFromArray(np.maximum(array + noise, -1000).astype(np.int16))
    image.SetSpacing((4.0, 4.0, 4.0))
    image.SetOrigin((-130.0, 20.0, 300.0))
    if direction is not None:
        image.SetDirection(direction.ravel().tolist())
    return image, spine | ribs, table


def moved(made, points):
    return inverse_points(made.field, points)


@pytest.mark.parametrize("direction", [None, rotation(0.2, -0.1, 8.0) @ np.diag([-1.0, -1.0, 1.0])])
def test_bone_stays_rigid_and_the_table_straight(direction, tiny_model):
    image, _, _ = trunk(direction)
    skeleton = find_skeleton(image)
    free = deform(image, tiny_model, 16, 1, steps=2, bones="free")
    made = deform(image, tiny_model, 16, 1, steps=2)
    before, after = (
        rigidity(skeleton.bone, moved(free, skeleton.bone)),
        rigidity(skeleton.bone, moved(made, skeleton.bone)),
    )
    assert before.max_mm > 3.5
    assert after.mean_mm < before.mean_mm / 4 and after.max_mm < before.max_mm / 2.5
    bent, straight = (rigid_fit(skeleton.table, moved(one, skeleton.table))[0].max() for one in (free, made))
    assert bent > 3 and straight < 0.7
    # Still a deformation of about the same size, proven, and without anything from outside of the scan.
    assert made.metrics.mean_mm > 0.5 * free.metrics.mean_mm
    assert certify_on_grid(made.field, image).certified
    assert made.invented_fraction == 0
    entry = report_entry(made, {}, None)
    assert entry["bone_mm"]["max_mm"] == pytest.approx(after.max_mm, rel=0.3)
    assert "bone_mm" not in report_entry(free, {}, None)
    # The same again.
    assert np.array_equal(
        sitk.GetArrayFromImage(deform(image, tiny_model, 16, 1, steps=2).field), sitk.GetArrayFromImage(made.field)
    )


def test_bone_is_told_from_blood_and_table():
    image, bone, table = trunk()
    skeleton = find_skeleton(image)
    for points, truth, share in ((skeleton.bone, bone, 0.9), (skeleton.table, table, 0.99)):
        found = np.zeros_like(truth)
        found[tuple(np.rint(to_index(points, image)).astype(int).T[::-1])] = True
        assert (found & truth).sum() > share * truth.sum()
        # Gaps between vertebrae and ribs may be closed.
        assert (found & ~truth).sum() < 0.15 * truth.sum()


@pytest.mark.parametrize("layer", [False, True], ids=["2D", "one layer"])
def test_bone_stays_rigid_in_a_single_slice(layer, tiny_model_2d):
    """The same holds for a 2D image, and for a volume of one slice, as a DICOM file is."""
    number = slice(25, 26) if layer else 25
    image = trunk(rotation(0.0, 0.0, 12.0) if layer else None)[0][:, :, number]
    skeleton = find_skeleton(image)
    assert is_ct(image) and skeleton.bone.shape[1] == skeleton.table.shape[1] == image.GetDimension()
    free = deform(image, tiny_model_2d, 30, 1, steps=2, bones="free")
    made = deform(image, tiny_model_2d, 30, 1, steps=2)
    before, after = (rigidity(skeleton.bone, moved(one, skeleton.bone)) for one in (free, made))
    assert before.max_mm > 2 and after.max_mm < before.max_mm / 2
    assert made.bone_rigidity.max_mm == pytest.approx(after.max_mm, rel=0.3)
    bent, straight = (rigid_fit(skeleton.table, moved(one, skeleton.table))[0].max() for one in (free, made))
    assert bent > 2 and straight < 0.7
    assert made.metrics.mean_mm > 0.3 * free.metrics.mean_mm
    assert certify_on_grid(made.field, image).certified


def test_other_images_are_deformed_as_before(tiny_model, tiny_model_2d):
    image = smooth_image((26, 30, 22))
    assert not is_ct(image)
    made, free = (deform(image, tiny_model, 50, 3, steps=1, bones=bones) for bones in ("auto", "free"))
    assert np.array_equal(sitk.GetArrayFromImage(made.field), sitk.GetArrayFromImage(free.field))
    assert made.bone_rigidity is None
    flat = deform(trunk()[0], tiny_model_2d, 50, 3, steps=1)
    assert flat.skeleton is None
    with pytest.raises(SettingError, match="3D models only"):
        deform(trunk()[0], tiny_model_2d, 50, 3, steps=1, bones="rigid")
    with pytest.raises(ImageError, match="no bone"):
        deform(sitk.Cast(image, sitk.sitkFloat32) / 10, tiny_model, 50, 3, steps=1, bones="rigid")
    with pytest.raises(SettingError, match="bones='stiff'"):
        deform(image, tiny_model, 50, 3, bones="stiff")


def test_a_scan_without_air_is_taken_for_ct_on_request(tiny_model):
    image = sitk.Clamp(trunk()[0], sitk.sitkInt16, -800, 2000)
    assert not is_ct(image)
    made = deform(image, tiny_model, 30, 1, steps=1, bones="rigid")
    free = deform(image, tiny_model, 30, 1, steps=1)
    assert made.bone_rigidity.max_mm < rigidity(made.skeleton.bone, moved(free, made.skeleton.bone)).max_mm / 2


def test_bone_that_leaves_a_region_does_not_move_there(tiny_model):
    """The spine goes through both ends of the box, so all of it stays nearly where it is."""
    image, _, _ = trunk()
    center = np.asarray(image.TransformContinuousIndexToPhysicalPoint((36, 30, 24)))
    region = RegionSettings((Region(tuple(center - 60), tuple(center + 60)),))
    made, free = (deform(image, tiny_model, 40, 2, steps=1, region=region, bones=bones) for bones in ("auto", "free"))
    spine = np.asarray([image.TransformIndexToPhysicalPoint((36, 38, k)) for k in range(16, 33)])
    lengths = [np.linalg.norm(moved(one, spine) - spine, axis=1).max() for one in (made, free)]
    assert lengths[0] < 0.6 * lengths[1]
    assert made.metrics.max_mm > 2
    assert certify_on_grid(made.field, image).certified


def test_a_pose_moves_bone_as_before(tiny_model):
    image, _, _ = trunk()
    still = deform(image, tiny_model, 0, 1, pose=1.0)
    assert still.metrics.max_mm > 5 and still.bone_rigidity is None
    free = deform(image, tiny_model, 0, 1, pose=1.0, bones="free")
    assert np.array_equal(sitk.GetArrayFromImage(still.field), sitk.GetArrayFromImage(free.field))


def grid_field(size, move):
    """The field (1, 3, *S), fraction of the side, of a function of positions in voxels."""
    nodes = np.stack(np.meshgrid(*[np.arange(size, dtype=float)] * 3, indexing="ij"))
    return torch.from_numpy((move(nodes) - nodes) / size)[None].float()


def rod():
    """Points of a rod of 20 mm thickness along axis 1, voxels of 5 mm."""
    x, y, z = np.meshgrid(np.arange(10, 15), np.linspace(5, 20, 31), np.arange(9, 14), indexing="ij")
    return np.stack([x.ravel(), y.ravel(), z.ravel()], axis=1)


def test_a_rigid_motion_stays_and_a_stretch_goes():
    size, none = 24, SlipPlanes(((), (), ()), 24)
    parts = RigidParts(rod(), (5.0, 5.0, 5.0), none)
    turn, center = rotation(3.0, 9.0, -6.0), np.full((3, 1, 1, 1), 12.0)
    rigid = grid_field(size, lambda at: np.tensordot(turn, at - center, 1) + center + 0.5)
    at = (0, slice(None), 12, slice(6, 20), 11)
    assert (parts.hold(rigid) - rigid)[at].abs().max() * size * 5 < 0.1
    assert parts.hold(torch.zeros_like(rigid)).abs().max() < 1e-9
    stretch = grid_field(size, lambda at: center + 1.15 * (at - center))
    before, after = (
        float((u[0, 1, 12, 19, 11] - u[0, 1, 12, 6, 11]) * size * 5) for u in (stretch, parts.hold(stretch))
    )
    assert before > 9 and abs(after) < 1.5
    # Far from the rod the field is as before; fields of a batch do not matter to each other.
    assert torch.equal(parts.hold(stretch)[..., :1, :, :], stretch[..., :1, :, :])
    both = parts.hold(torch.cat([rigid, stretch]))
    assert torch.equal(both, torch.cat([parts.hold(rigid), parts.hold(stretch)]))


def test_held_bone_and_closed_planes_stay():
    size = 24
    shift = grid_field(size, lambda at: at + np.reshape([0.5, 0.8, 0.6], (3, 1, 1, 1)))
    held = rod()[:, 1] < 6.5
    still = RigidParts(rod(), (5.0, 5.0, 5.0), SlipPlanes(((), (), ()), size), held=held).hold(shift)
    # A rod that is held at one end by a cell hardly moves along itself.
    assert still[0, 1, 12, 6:19, 11].abs().max() * size < 0.15
    planes = SlipPlanes(((), (5.0,), ()), size)
    closed = RigidParts(rod(), (5.0, 5.0, 5.0), planes).hold(planes.hold(shift))
    assert not closed[0, 1, :, 4:6].any()
    assert closed[0, 1, 12, 6:19, 11].abs().max() * size < 0.15
    assert closed[0, 0, 12, 8:19, 11].min() * size > 0.4
    carried = np.asarray([[20.0, y, z] for y in range(2, 22) for z in range(2, 22)])
    bent = grid_field(size, lambda at: at + 0.4 * np.sin(at / 4.0))
    flat = RigidParts(rod(), (5.0, 5.0, 5.0), SlipPlanes(((), (), ()), size), carried=carried).hold(bent)
    assert flat[0, :, 20, 4:20, 4:20].flatten(1).std(dim=1).max() * size < 0.02


@pytest.mark.parametrize("command", ["augment", "synthesize"])
def test_records_say_how_bones_moved_and_repeat_it(command, tmp_path, tiny_models):
    data = tmp_path / "data"
    image, bone, _ = trunk()
    label = sitk.GetImageFromArray(bone.astype(np.uint8))
    label.CopyInformation(image)
    write(image, data / "images" / "a.nii.gz")
    write(label, data / "labels" / "a.nii.gz")
    fields = {}
    for bones in ("auto", "free"):
        folder = tmp_path / bones
        make(data, folder, tiny_models[3], command, bones=bones, copies=1, levels=LEVELS[command][:1])
        name, record = next((k, r) for k, r in records_of(folder).items() if r["levels"])
        assert record.get("bones") == (None if bones == "free" else bones)
        assert ("bone_mm" in record["item"]) == (bones != "free")
        path = folder / "records" / f"{name}.json"
        assert not regenerate(path, tmp_path / f"{bones}-again", model=str(tiny_models[3])).differences
        fields[bones] = record["digests"]["image"]
        assert ("bones" in json.loads((folder / "run.json").read_text())["settings"]) == (bones != "free")
    assert fields["auto"] != fields["free"]
