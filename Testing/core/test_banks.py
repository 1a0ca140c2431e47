"""Banks of every kind of scan: packed fields, fields of different sizes, and their use by MONAI and TorchIO."""

import json

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from command_helpers import boxes, write
from safetensors.torch import save_file
from support import rotation, smooth_image
from test_positions import nifti
from torch.utils.data import DataLoader

from DRDMLib.deforming import deform, model_for
from DRDMLib.errors import ImageError
from DRDMLib.io.images import read_image
from DRDMLib.loaders import FieldBank, FieldGenerator, make_bank
from DRDMLib.loaders.packing import MOST_VOXELS, pack, unpack
from DRDMLib.loaders.world import displacement_on, ras_affine, warped, world_field
from DRDMLib.production.plan import seed_of

# The collections of real scans, and a model for each.
COLLECTIONS = {
    "hippocampus": "hippocampus-mr-3d",
    "brain_ixi": "brain-t1-3d",
    "brain_misc": "brain-t1-3d",
    "cardiac_acdc": "cardiac-mr-2d",
    "cardiac_sunnybrook": "cardiac-mr-2d",
    "ct": "general-3d",
    "prostate_mr": "general-3d",
}


def error_in_voxels(packed, field, image):
    to_voxels = torch.as_tensor(np.linalg.inv(ras_affine(image)[:3, :3]), dtype=torch.float32)
    return float((to_voxels @ (packed - field).flatten(1)).norm(dim=0).max())


def scans():
    """Small scans: finer than the model's grid, coarse, oblique, of thick slices, flat, and of a single slice."""
    turn = rotation(15, -10, 25)
    return {
        "fine": smooth_image((60, 52, 44), (0.8, 0.8, 0.8)),
        "coarse": smooth_image((20, 18, 16), (3.0, 3.0, 3.0)),
        "oblique": smooth_image((40, 36, 30), (1.0, 1.3, 1.9), turn, pixel=sitk.sitkFloat32),
        "thick": smooth_image((48, 44, 9), (1.0, 1.0, 6.0), turn),
        "flat": smooth_image((50, 40), (1.0, 1.2)),
        "slice": smooth_image((50, 40, 1), (1.0, 1.2, 5.0)),
    }


# Packed fields.


@pytest.mark.parametrize("kind", list(scans()))
def test_a_packed_field_is_the_same_map_in_less_space(kind, tiny_model, tiny_model_2d):
    image = scans()[kind]
    flat = kind in ("thick", "flat", "slice")
    field = world_field(deform(image, tiny_model_2d if flat else tiny_model, 40, 0, 1, pose=0.5).field, image).vectors
    described, data = pack(field, np.linalg.inv(ras_affine(image)[:3, :3]))
    again = unpack(json.loads(json.dumps(described)), data)
    assert again.shape == field.shape and again.dtype == torch.float32
    assert error_in_voxels(again, field, image) <= MOST_VOXELS
    assert pack(field, np.linalg.inv(ras_affine(image)[:3, :3])) == (described, data)
    assert len(data) <= field.numel() * 4 / 2
    if kind == "fine":
        # Cubic splines along all axes, an eighth of the nodes and a few more.
        assert all(described["axes"]) and len(data) < field.numel() * 4 / 9


def test_a_field_that_does_not_fit_is_kept_as_it_is():
    generator = np.random.default_rng(0)
    field = torch.from_numpy(generator.normal(size=(3, 12, 11, 10)).astype(np.float32))
    described, data = pack(field, np.eye(3))
    assert described["type"] == "int16" and not any(described["axes"])
    field[0, 0, 0, 0] = 5000
    described, data = pack(field, np.eye(3))
    assert described["type"] == "float32" and torch.equal(unpack(described, data), field)
    zero = torch.zeros(3, 12, 11, 10)
    assert torch.equal(unpack(*pack(zero, np.eye(3))), zero)


def test_fields_of_different_sizes_and_old_banks(tmp_path, tiny_model_path, monkeypatch):
    write(smooth_image((40, 36, 30)), tmp_path / "data" / "images" / "a.nii.gz")
    settings = {"model": str(tiny_model_path), "levels": (30,), "copies": 3, "steps": 1}
    plain = make_bank(tmp_path / "data", tmp_path / "plain", **settings)

    cuts = iter((0, 1, 2))

    def uneven(field, image):
        whole, cut = world_field(field, image), next(cuts)
        return type(whole)(whole.vectors[:, : whole.vectors.shape[1] - cut], whole.affine)

    monkeypatch.setattr("DRDMLib.loaders.bank_making.world_field", uneven)
    bank = make_bank(tmp_path / "data", tmp_path / "bank", **settings)
    sizes = [bank.field("a", k).vectors.shape[1] for k in range(3)]
    assert sizes == [sizes[0], sizes[0] - 1, sizes[0] - 2]
    one = plain.field("a", 1)
    (tmp_path / "old").mkdir()
    metadata = {"drdm": json.dumps({"affine": one.affine.tolist()})}
    save_file({"fields": torch.stack([one.vectors] * 2)}, str(tmp_path / "old" / "a.safetensors"), metadata)
    old = FieldBank(tmp_path / "old")
    assert old.count("a") == 2 and torch.equal(old.field("a", 1).vectors, one.vectors)
    assert torch.equal(old.draw("a", torch.zeros(1, 40, 36, 30), np.eye(4), 0).vectors, one.vectors)


# Readers.


def deformed(path, model, bank):
    """The image as DRDMLib.deform gives it for the first field of a bank."""
    image = read_image(path)
    made = deform(image, model, 40, seed_of(0, "case", (40,), 0, 0), 1)
    return sitk.GetArrayFromImage(made.warp(image)).T.astype(float), sitk.GetArrayFromImage(image).T.astype(float)


TURNED = [[0, -1, 0, 50], [1, 0, 0, -60], [0, 0, 1, 7], [0, 0, 0, 1]]
FILES = {
    "one place": {},
    "sform and qform differ": {"sform": TURNED, "s_code": 2, "q_code": 1},
    "no transform": {"s_code": 0},
    "microns": {"sform": np.diag([10.0, 10, 10, 1]), "q_code": 1, "steps": (10, 10, 10), "unit": 3},
    "sheared a little": {"sform": [[-1, 0.004, 0, 10], [0, 1, 0, -20], [0, 0, 1, -30], [0, 0, 0, 1]]},
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", list(FILES))
def test_a_bank_gives_every_reader_the_same_voxels(kind, tmp_path, tiny_model, tiny_model_path):
    monai = pytest.importorskip("monai.transforms")
    tio = pytest.importorskip("torchio")
    from DRDMLib.loaders import RandDRDMDeformationd, RandomDRDMDeformation

    path = nifti(tmp_path / "images" / "case.nii", **FILES[kind])
    settings = {"model": str(tiny_model_path), "levels": (40,), "copies": 1, "steps": 1}
    bank = make_bank(tmp_path, tmp_path / "bank", **settings, device="cpu")
    want, before = deformed(path, tiny_model, bank)
    load = [monai.LoadImaged(["s"]), monai.EnsureChannelFirstd(["s"])]
    crop = monai.SpatialCropd(["s"], roi_start=(6, 5, 4), roi_end=(22, 20, 16))
    flip = monai.Flipd(["s"], 0)
    ours = RandDRDMDeformationd(["s"], bank)
    whole = np.asarray(monai.Compose([*load, ours])({"s": str(path)})["s"][0], float)
    part = np.asarray(monai.Compose([*load, flip, crop, ours, flip])({"s": str(path)})["s"][0], float)
    theirs = np.asarray(RandomDRDMDeformation(bank)(tio.Subject(s=tio.ScalarImage(path)))["s"].data[0], float)
    change = np.abs(want - before).mean()
    inner = (slice(4, -4),) * 3
    for got in (whole, theirs):
        assert np.abs(got - want)[inner].mean() < 0.05 * change
    cut = want[::-1][6:22, 5:20, 4:16][::-1]
    assert np.abs(part - cut)[inner].mean() < 0.05 * change


def test_another_image_is_refused(tmp_path, tiny_model_path):
    monai = pytest.importorskip("monai.transforms")
    from DRDMLib.loaders import RandDRDMDeformationd

    image = smooth_image((28, 24, 20))
    path = write(image, tmp_path / "images" / "case.nii.gz")
    bank = make_bank(tmp_path, tmp_path / "bank", model=str(tiny_model_path), levels=(30,), copies=1, steps=1)
    image.SetOrigin((0, 0, 0))
    write(image, path)
    data = monai.Compose([monai.LoadImaged(["s"]), monai.EnsureChannelFirstd(["s"])])({"s": str(path)})
    with pytest.raises(ImageError, match="not where the image lies"):
        RandDRDMDeformationd(["s"], bank)(data)


# Every kind of scan, through everything.


def pipelines(keys, source, size):
    """A pipeline of MONAI and one of TorchIO: flips, resampling and crops, then the deformation."""
    monai = pytest.importorskip("monai.transforms")
    tio = pytest.importorskip("torchio")
    from DRDMLib.loaders import RandDRDMDeformationd, RandomDRDMDeformation

    modes = ("bilinear", "nearest")[: len(keys)]
    first = monai.Compose(
        [
            monai.LoadImaged(keys),
            monai.EnsureChannelFirstd(keys),
            monai.Orientationd(keys, "LPI", labels=None),
            monai.Spacingd(keys, [1.25 * s for s in size], mode=modes),
            monai.RandSpatialCropd(keys, [16, 14, 8], random_size=False),
            monai.ResizeWithPadOrCropd(keys, [16, 14, 8]),
            RandDRDMDeformationd(keys, source, mode=modes),
        ]
    )
    second = tio.Compose(
        [
            tio.ToOrientation("LAS"),
            tio.Resample(tuple(1.25 * s for s in size)),
            tio.CropOrPad((16, 14, 8)),
            RandomDRDMDeformation(source),
        ]
    )
    return first, lambda item: second(
        tio.Subject(
            image=tio.ScalarImage(item["image"]),
            **({"label": tio.LabelMap(item["label"])} if "label" in item else {}),
        )
    )


class Items(torch.utils.data.Dataset):
    def __init__(self, items, transform):
        self.items, self.transform = items, transform

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        done = self.transform(self.items[index])
        images = [done[key] for key in ("image", "label") if key in self.items[index]]
        return [torch.as_tensor(getattr(one, "data", one)).as_subclass(torch.Tensor).float() for one in images]


def through_everything(item, model, bank, levels):
    """Draw from a bank with two workers, and from a generator, in MONAI and TorchIO; return the number of results."""
    image = read_image(item["image"])
    assert image.GetDimension() == 3
    keys, results = [key for key in ("image", "label") if key in item], 0
    generator = FieldGenerator(model, levels=levels, steps=1, device="cpu")
    for source, workers in ((bank, 2), (generator, 0)):
        for transform in pipelines(keys, source, image.GetSpacing()):
            loader = DataLoader(Items([item] * workers or [item], transform), num_workers=workers)
            for batch in loader:
                assert all(tuple(one.shape) == (1, 1, 16, 14, 8) and bool(torch.isfinite(one).all()) for one in batch)
                results += 1
    return results


@pytest.mark.parametrize("kind", ["fine", "oblique", "thick", "slice"])
def test_every_kind_of_scan_through_everything(kind, tmp_path, tiny_models):
    image = scans()[kind]
    write(image, tmp_path / "images" / "case.nii.gz")
    item = {"image": str(tmp_path / "images" / "case.nii.gz")}
    item["label"] = str(write(boxes(image), tmp_path / "labels" / "case.nii.gz"))
    model = str(tiny_models[2 if kind in ("thick", "slice") else 3])
    bank = make_bank(tmp_path, tmp_path / "bank", model=model, levels=(40,), copies=2, steps=1, device="cpu")
    assert through_everything(item, model, bank, (40,)) == 6


def test_a_flat_image_from_a_bank(tmp_path, tiny_models):
    monai = pytest.importorskip("monai.transforms")
    from DRDMLib.loaders import RandDRDMDeformationd

    path = write(scans()["flat"], tmp_path / "images" / "case.nii.gz")
    bank = make_bank(tmp_path, tmp_path / "bank", model=str(tiny_models[2]), levels=(40,), copies=1, steps=1)
    transforms = [monai.LoadImaged(["s"]), monai.EnsureChannelFirstd(["s"]), RandDRDMDeformationd(["s"], bank)]
    got = monai.Compose(transforms)({"s": str(path)})["s"].as_tensor()
    field = bank.field("case", 0)
    image = read_image(path)
    expected = torch.from_numpy(np.ascontiguousarray(sitk.GetArrayFromImage(image).T))[None, ..., None].float()
    expected = warped(expected, displacement_on(field, ras_affine(image), (50, 40, 1)))[..., 0]
    assert float((got - expected).abs().max()) < 0.05 * float(expected.max() - expected.min())


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("collection", list(COLLECTIONS))
def test_real_scans_through_everything(collection, shared, tmp_path):
    folder = shared / "data" / collection
    scan = sorted((folder / "images").glob("*.nii.gz"))[0]
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "case.nii.gz").symlink_to(scan)
    item = {"image": str(tmp_path / "images" / "case.nii.gz")}
    if (folder / "labels" / scan.name).is_file():
        item["label"] = str(folder / "labels" / scan.name)
    model = COLLECTIONS[collection]
    bank = make_bank(tmp_path, tmp_path / "bank", model=model, levels=(40,), copies=1, steps=1, device="cpu")
    image = read_image(scan)
    stored = (bank.folder / "case.safetensors").stat().st_size
    assert stored < 0.52 * 4 * bank.field("case", 0).vectors.numel()
    # A field that keeps bone rigid is no coarse spline.
    assert stored < (5_000_000 if collection == "ct" else 1_000_000) or "cardiac" in collection
    made = deform(image, model_for(image, model, "cpu"), 40, seed_of(0, "case", (40,), 0, 0), 1)
    assert error_in_voxels(bank.field("case", 0).vectors, world_field(made.field, image).vectors, image) < 0.02
    assert through_everything(item, model, bank, (40,)) == 6
