"""Pairs as tensors, banks of fields, and the transforms for TorchIO and MONAI, which warp like DRDM itself."""

import json
import pickle

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from command_helpers import boxes, run_process, scene, write
from production_helpers import make, write_cases
from support import rotation, smooth_image
from torch.utils.data import DataLoader

from DRDMLib.deforming import deform
from DRDMLib.diffusion.fields import warp
from DRDMLib.errors import ImageError, OutputError, SettingError
from DRDMLib.loaders import FieldBank, FieldGenerator, PairDataset, make_bank
from DRDMLib.loaders.bank import case_name
from DRDMLib.loaders.world import WorldField, displacement_on, image_of, ras_affine, warped, world_field
from DRDMLib.production.plan import SYNTHESIZE
from DRDMLib.runtime.distributed import ProcessInfo


def tensor_of(image):
    """Convert an image to a tensor (1, X, Y, Z), as in TorchIO and MONAI."""
    array = sitk.GetArrayFromImage(image).T
    return torch.from_numpy(np.ascontiguousarray(array.reshape(*array.shape, *[1] * (3 - array.ndim))))[None]


def oblique(size=(28, 24, 20)):
    return smooth_image(size, (1.0, 1.3, 1.9), rotation(15, -10, 25), (5.0, -40.0, 12.0), sitk.sitkFloat32)


def reads_inside(voxels):
    """Mask (1, *S) of voxels whose displacement (d, *S, voxels) ends inside the image; ITK differs outside."""
    index = torch.stack(torch.meshgrid(*[torch.arange(n) for n in voxels.shape[1:]], indexing="ij")) + voxels
    last = torch.tensor(voxels.shape[1:]).view(-1, *[1] * (voxels.ndim - 1)) - 1
    inside = ((index > 0.01) & (index < last - 0.01)) | (last == 0)
    assert 0.5 < float(inside.all(dim=0).float().mean()) < 1
    return inside.all(dim=0)[None]


def away_from_borders(label: torch.Tensor) -> torch.Tensor:
    """Where the nearest voxel and its neighbors have one label, any interpolation gives this label."""
    volume = label[None].float()
    largest, least = (sign * torch.nn.functional.max_pool3d(sign * volume, 3, 1, 1) for sign in (1, -1))
    return (largest == least)[0]


# Fields in world coordinates.


def test_a_world_field_warps_like_its_deformation(tiny_model):
    image = oblique()
    label = boxes(image)
    made = deform(image, tiny_model, 40, 0, 1)
    field = world_field(made.field, image)
    assert field.vectors.shape[0] == 3 and field.vectors[0].numel() < made.field.GetNumberOfPixels()
    displacement = displacement_on(field, ras_affine(image), image.GetSize())
    expected, got = tensor_of(made.warp(image)), warped(tensor_of(image), displacement)
    inside = reads_inside(displacement)
    assert float((got - expected)[inside].abs().max()) < 1e-3 * float(expected.max() - expected.min())
    assert float((tensor_of(image) - expected).abs().max()) > 0.1 * float(expected.max() - expected.min())
    names = warped(tensor_of(label), displacement, label=True)
    assert names.dtype == torch.uint8
    equal = names == tensor_of(made.warp_label(label))
    assert float(equal[away_from_borders(names)].float().mean()) > 0.9999
    assert float(equal.float().mean()) > 0.98


def test_a_world_field_applies_to_any_grid(tiny_model):
    """A flipped, cropped and permuted image is warped to the flipped, cropped and permuted result."""
    image = oblique()
    made = deform(image, tiny_model, 40, 0, 1)
    field, affine = world_field(made.field, image), ras_affine(image)
    whole = warped(tensor_of(image), displacement_on(field, affine, image.GetSize()))
    other = tensor_of(image)[:, 3:, :, :].flip(2).permute(0, 3, 1, 2)
    move = np.eye(4)
    # New axes (z, x, y): x starts at 3, y runs backwards.
    move[:3, :3] = np.asarray([[0, 1, 0], [0, 0, -1], [1, 0, 0]])
    move[:3, 3] = [3, image.GetSize()[1] - 1, 0]
    got = warped(other, displacement_on(field, affine @ move, tuple(other.shape[1:])))
    expected = whole[:, 3:, :, :].flip(2).permute(0, 3, 1, 2)
    inside = (slice(None), slice(3, -3), slice(6, -3), slice(3, -3))
    assert float((got - expected)[inside].abs().max()) < 1e-2 * float(expected.max() - expected.min())


def test_2d_images_are_volumes_of_one_slice(tiny_model_2d):
    image = scene((40, 32), sitk.sitkFloat32)
    made = deform(image, tiny_model_2d, 40, 0, 1)
    displacement = displacement_on(world_field(made.field, image), ras_affine(image), (40, 32, 1))
    expected, got = tensor_of(made.warp(image)), warped(tensor_of(image), displacement)
    assert got.shape == (1, 40, 32, 1)
    assert float((got - expected)[reads_inside(displacement)].abs().max()) < 1e-3 * float(
        expected.max() - expected.min()
    )


def test_tensors_are_converted_to_images_and_back():
    image = oblique()
    again = image_of(tensor_of(image)[0], ras_affine(image))
    assert np.array_equal(sitk.GetArrayFromImage(again), sitk.GetArrayFromImage(image))
    for get in ("GetSpacing", "GetOrigin", "GetDirection"):
        assert getattr(again, get)() == pytest.approx(getattr(image, get)(), abs=1e-9)
    sheared = np.eye(4)
    sheared[0, 1] = 0.3
    with pytest.raises(ImageError, match="shear"):
        image_of(tensor_of(image)[0], sheared)


# Pairs.


@pytest.fixture(scope="module")
def pairs(tmp_path_factory, tiny_model_path):
    """Pairs of four subjects with labels, on oblique grids."""
    root = tmp_path_factory.mktemp("pairs")
    image = oblique()
    for k in range(4):
        write(image + 10 * k, root / "data" / "images" / f"s{k}.nii.gz")
        write(boxes(image), root / "data" / "labels" / f"s{k}.nii.gz")
    make(root / "data", root / "out", tiny_model_path, SYNTHESIZE, split=(0.5, 0.25, 0.25), quality=False)
    return root / "out"


@pytest.mark.parametrize("unit", ["voxels", "fraction", "millimetres"])
def test_pairs_come_with_the_field_between_them(pairs, unit):
    data = PairDataset(pairs, unit=unit)
    item = data[0]
    assert len(data) == 2 and item["ddf"].shape == (3, 28, 24, 20) and item["moving"].shape == (1, 28, 24, 20)
    sides = torch.tensor(item["ddf"].shape[1:]).view(3, 1, 1, 1)
    assert torch.allclose(item["spacing"], torch.tensor([1.0, 1.3, 1.9]), atol=1e-5)
    if unit == "millimetres":
        affine = ras_affine(sitk.ReadImage(str(pairs / data.pairs[0]["fixed"])))
        voxels = (torch.tensor(np.linalg.inv(affine[:3, :3]), dtype=torch.float32) @ item["ddf"].flatten(1)).view_as(
            item["ddf"]
        )
    else:
        voxels = item["ddf"] * (sides if unit == "fraction" else 1)
    again = warp(item["moving"][None], (voxels / sides)[None])[0]
    inside = reads_inside(voxels)
    assert float((again - item["fixed"])[inside].abs().max()) < 1e-3
    assert item["mask"].dtype == torch.bool and item["mask"].shape == item["fixed"].shape
    assert float((item["moving"] - item["fixed"]).abs().max()) > 0.1
    assert item["fixed_label"].dtype == torch.int64 and set(item["fixed_label"].unique().tolist()) == {0, 1, 3}
    moved = warp(item["moving_label"][None].float(), (voxels / sides)[None], mode="nearest")[0]
    equal = moved == item["fixed_label"]
    assert float(equal[away_from_borders(moved)].float().mean()) > 0.9999
    assert float(equal.float().mean()) > 0.98


def test_parts_have_different_subjects_and_batches_can_be_made(pairs, tmp_path):
    parts = {part: PairDataset(pairs, part) for part in ("train", "validation", "test")}
    assert [len(part) for part in parts.values()] == [2, 1, 1]
    names = [item["name"].split("_")[0] for part in parts.values() for item in part]
    assert sorted(names) == ["s0", "s1", "s2", "s3"]
    (batch,) = DataLoader(parts["train"], batch_size=2, num_workers=1)
    assert batch["ddf"].shape == (2, 3, 28, 24, 20) and batch["fixed_label"].shape == (2, 1, 28, 24, 20)
    # Batches of pairs of which some have no mask can be made, too.
    part = PairDataset(pairs, "train")
    assert batch["mask"].shape == (2, 1, 28, 24, 20)
    described = json.loads((pairs / "dataset.json").read_text())
    del described["training_paired_images"][1]["mask"]
    (tmp_path / "dataset.json").write_text(json.dumps(described))
    some = PairDataset(tmp_path, "train")
    some.folder = pairs
    (batch,) = DataLoader(some, batch_size=2)
    assert "mask" not in batch and set(batch) == set(part[0]) - {"mask"}
    seen = PairDataset(pairs, transform=lambda item: item["name"])[1]
    assert isinstance(seen, str)


@pytest.mark.parametrize("size", [(16, 24, 20), (32, 24, 26)])
@pytest.mark.parametrize("unit", ["voxels", "fraction"])
def test_pairs_of_one_size_are_still_pairs(pairs, size, unit):
    whole, fitted = PairDataset(pairs, unit="voxels")[0], PairDataset(pairs, unit=unit, size=size)[0]
    assert {key: tuple(fitted[key].shape[1:]) for key in ("moving", "fixed", "ddf", "fixed_label")} == dict.fromkeys(
        ("moving", "fixed", "ddf", "fixed_label"), size
    )
    sides = torch.tensor(size).view(3, 1, 1, 1)
    voxels = fitted["ddf"] * (sides if unit == "fraction" else 1)
    starts = [(have - want) // 2 for have, want in zip(whole["ddf"].shape[1:], size, strict=True)]
    at, there = (10, 12, 11), tuple(a + s for a, s in zip((10, 12, 11), starts, strict=True))
    assert torch.allclose(voxels[(slice(None), *at)], whole["ddf"][(slice(None), *there)], atol=1e-5)
    again = warp(fitted["moving"][None], (voxels / sides)[None])[0]
    # Where the field reads inside what is left of the image.
    inside = reads_inside(voxels)
    assert float((again - fitted["fixed"])[inside].abs().median()) < 1e-4
    with pytest.raises(SettingError, match="size has 2 numbers"):
        PairDataset(pairs, size=(8, 8))[0]


def test_invalid_arguments_for_pairs_are_reported(pairs, tmp_path, tiny_models):
    with pytest.raises(OutputError, match="no finished dataset"):
        PairDataset(tmp_path)
    with pytest.raises(SettingError, match="no part"):
        PairDataset(pairs, "valid")
    with pytest.raises(SettingError, match="no unit"):
        PairDataset(pairs, unit="inches")
    make(write_cases(tmp_path / "d", labels=False), tmp_path / "o", tiny_models[3], SYNTHESIZE, quality=False)
    assert "fixed_label" not in PairDataset(tmp_path / "o")[0]
    with pytest.raises(SettingError, match="labels"):
        PairDataset(tmp_path / "o", labels=True)


# Banks.


SETTINGS = {"levels": (40, 12), "copies": 2, "steps": 1}


@pytest.fixture(scope="module")
def bank(tmp_path_factory, tiny_model_path):
    """A dataset of two oblique images, and a bank for it."""
    root = tmp_path_factory.mktemp("bänk")
    for k in range(2):
        image = oblique((28 + k, 24, 20))
        write(image, root / "data" / "images" / f"case_{k}.nii.gz")
        write(boxes(image), root / "data" / "labels" / f"case_{k}.nii.gz")
    make_bank(root / "data", root / "bank", **SETTINGS, model=str(tiny_model_path))
    return root


def test_a_bank_has_the_fields_of_deform(bank, tiny_model):
    fields = FieldBank(bank / "bank")
    assert fields.names == ["case_0", "case_1"] and fields.count("case_0") == 4
    image = sitk.ReadImage(str(bank / "data" / "images" / "case_1.nii.gz"))
    got = fields.field("case_1", 0)
    from DRDMLib.production.plan import seed_of

    made = deform(image, tiny_model, 40, seed_of(0, "case_1", (40,), 0, 0), 1)
    # A bank is computed by one thread, this deformation by one thread per core.
    assert torch.allclose(got.vectors, world_field(made.field, image).vectors, atol=1e-3)
    drawn = {float(fields.draw("case_0", torch.empty(0), np.eye(4), seed).vectors.sum()) for seed in range(20)}
    assert len(drawn) == 4
    # Workers of a DataLoader receive a copy.
    assert pickle.loads(pickle.dumps(fields)).count("case_1") == 4


def test_a_bank_is_resumed_and_never_mixed(bank, tmp_path, tiny_models):
    arguments = dict(SETTINGS, model=str(tiny_models[3]))
    whole = {p.name: p.read_bytes() for p in (bank / "bank").iterdir()}
    for rank in (1, 0):
        shared = make_bank(bank / "data", tmp_path / "bank", **arguments, process=ProcessInfo(rank, 2))
    assert {p.name: p.read_bytes() for p in shared.folder.iterdir()} == whole
    (shared.folder / "case_0.safetensors").unlink()
    make_bank(bank / "data", shared.folder, **arguments)
    assert {p.name: p.read_bytes() for p in shared.folder.iterdir()} == whole
    with pytest.raises(SettingError, match="made with other copies"):
        make_bank(bank / "data", shared.folder, **(arguments | {"copies": 3}))
    (shared.folder / "case_0.safetensors").write_bytes(whole["case_0.safetensors"][:50])
    with pytest.raises(OutputError, match="damaged"):
        FieldBank(shared.folder).count("case_0")


def test_a_case_without_fields_is_reported(bank, tmp_path):
    with pytest.raises(SettingError, match="no fields for 'x'"):
        FieldBank(bank / "bank").field("x", 0)
    with pytest.raises(SettingError, match="There are no fields"):
        FieldBank(tmp_path)
    assert case_name("a/b/liver_12_0000.nii.gz") == "liver_12" and case_name("liver_12.nii") == "liver_12"


# TorchIO.


def test_torchio_deforms_image_and_label_by_one_field(bank):
    tio = pytest.importorskip("torchio")
    from DRDMLib.loaders import RandomDRDMDeformation

    fields = FieldBank(bank / "bank")
    image, label = (bank / "data" / kind / "case_1.nii.gz" for kind in ("images", "labels"))
    subject = tio.Subject(scan=tio.ScalarImage(image), organs=tio.LabelMap(label), age=3)
    torch.manual_seed(4)
    done = RandomDRDMDeformation(fields)(subject)
    torch.manual_seed(4)
    again = RandomDRDMDeformation(fields)(subject)
    assert torch.equal(done["scan"].data, again["scan"].data) and done["age"] == 3
    # The history has the seed, with which the same can be done again.
    (applied,) = done.history
    assert type(applied).__name__ == "DRDMDeformation" and "seed=" in repr(applied)
    assert torch.equal(applied(subject)["organs"].data, done["organs"].data)
    assert torch.equal(done.get_composed_history()(subject)["scan"].data, done["scan"].data)
    candidates = [displacement_on(fields.field("case_1", k), subject["scan"].affine, (29, 24, 20)) for k in range(4)]
    images = [warped(subject["scan"].data, u) for u in candidates]
    (k,) = [k for k, one in enumerate(images) if torch.equal(one, done["scan"].data)]
    assert torch.equal(done["organs"].data, warped(subject["organs"].data, candidates[k], label=True))
    assert set(done["organs"].data.unique().tolist()) <= {0, 1, 3}
    # TorchIO's affine agrees with SimpleITK's geometry.
    assert np.allclose(subject["scan"].affine, ras_affine(sitk.ReadImage(str(image))), atol=1e-4)
    # After a flip and a crop, which change the affine, the result is the same anatomy.
    before = tio.Compose([tio.ToOrientation("LAS"), tio.Crop(2)])
    torch.manual_seed(4)
    reoriented = RandomDRDMDeformation(fields)(before(subject))
    expected, got = before(done)["scan"].data, reoriented["scan"].data
    inside = (slice(None), *[slice(4, -4)] * 3)
    assert float((expected - got)[inside].abs().max()) < 0.02 * float(expected.max() - expected.min())


def test_torchio_needs_the_name_of_the_case(bank):
    tio = pytest.importorskip("torchio")
    from DRDMLib.loaders import RandomDRDMDeformation

    transform = RandomDRDMDeformation(FieldBank(bank / "bank"))
    nameless = tio.Subject(scan=tio.ScalarImage(tensor=torch.rand(1, 28, 24, 20)))
    with pytest.raises(SettingError, match="Which case"):
        transform(nameless)
    named = tio.Subject(scan=tio.ScalarImage(tensor=torch.rand(1, 28, 24, 20)), name="case_0")
    assert transform(named)["scan"].data.shape == (1, 28, 24, 20)


def test_torchio_generates_fields_on_demand(bank, tiny_model, tiny_model_2d):
    tio = pytest.importorskip("torchio")
    from DRDMLib.loaders import RandomDRDMDeformation

    subject = tio.Subject(scan=tio.ScalarImage(bank / "data" / "images" / "case_0.nii.gz"))
    transform = RandomDRDMDeformation(FieldGenerator(tiny_model, levels=(40,), steps=1))
    torch.manual_seed(0)
    first, second = transform(subject)["scan"].data, transform(subject)["scan"].data
    assert not torch.equal(first, second) and not torch.equal(first, subject["scan"].data)
    flat = tio.Subject(scan=tio.ScalarImage(tensor=torch.rand(1, 30, 26, 1)))
    made = RandomDRDMDeformation(FieldGenerator(tiny_model_2d, levels=(40,), steps=1), name="none")
    flat.add_image(tio.ScalarImage(tensor=torch.rand(1, 30, 26, 1)), "other")
    flat["none"] = "any"
    assert made(flat)["scan"].data.shape == (1, 30, 26, 1)


# MONAI.


def test_monai_deforms_image_and_label_by_one_field(bank):
    pytest.importorskip("monai")
    from monai.transforms import Compose, EnsureChannelFirstd, LoadImaged, Orientationd

    from DRDMLib.loaders import RandDRDMDeformationd

    fields = FieldBank(bank / "bank")
    files = {k: str(bank / "data" / f"{k}s" / "case_1.nii.gz") for k in ("image", "label")}
    load = Compose([LoadImaged(["image", "label"]), EnsureChannelFirstd(["image", "label"])])
    transform = RandDRDMDeformationd(["image", "label"], fields, mode=("bilinear", "nearest"))
    data = load(files)
    done = transform.set_random_state(2)(data)
    again = RandDRDMDeformationd(["image", "label"], fields, mode=("bilinear", "nearest")).set_random_state(2)(data)
    assert torch.equal(done["image"], again["image"]) and done["image"].affine.equal(data["image"].affine)
    affine = np.asarray(data["image"].affine)
    candidates = [displacement_on(fields.field("case_1", k), affine, (29, 24, 20)) for k in range(4)]
    plain = data["image"].as_tensor()
    (k,) = [k for k, u in enumerate(candidates) if torch.equal(warped(plain, u), done["image"].as_tensor())]
    assert torch.equal(done["label"].as_tensor(), warped(data["label"].as_tensor(), candidates[k], label=True))
    # MONAI updates the affine when it reorients an image.
    reoriented = transform.set_random_state(2)(Orientationd(["image", "label"], "PLI", labels=None)(data))
    expected = Orientationd(["image"], "PLI", labels=None)({"image": done["image"]})["image"]
    inside = (slice(None), *[slice(4, -4)] * 3)
    assert float((expected - reoriented["image"])[inside].abs().max()) < 0.02 * float(expected.max() - expected.min())
    never = RandDRDMDeformationd(["image"], fields, prob=0.0)
    assert torch.equal(never(data)["image"], data["image"])


class Draws(torch.utils.data.Dataset):
    """The same image eight times, deformed by MONAI's transform."""

    def __init__(self, transform):
        self.transform = transform

    def __len__(self):
        return 8

    def __getitem__(self, index):
        return self.transform({"a": torch.arange(28 * 24 * 20.0).view(1, 28, 24, 20), "name": "case_0"})["a"].sum()


def test_workers_and_epochs_draw_differently_in_any_dataloader(tmp_path, tiny_model_path):
    monai_data = pytest.importorskip("monai.data")
    from DRDMLib.loaders import RandDRDMDeformationd

    write(oblique(), tmp_path / "images" / "case_0.nii.gz")
    more = {"model": str(tiny_model_path), "levels": (12,), "copies": 24, "steps": 1}
    transform = RandDRDMDeformationd(["a"], make_bank(tmp_path, tmp_path / "bank", **more))

    def epoch(loader):
        return [round(float(one), 3) for one in loader]

    for kind in (DataLoader, monai_data.DataLoader):
        loader = kind(Draws(transform.set_random_state(1)), batch_size=1, num_workers=2)
        torch.manual_seed(0)
        first, second = epoch(loader), epoch(loader)
        assert len(set(first)) > 5 and first != second
        torch.manual_seed(0)
        assert epoch(loader) == first


class Recorder:
    """A source of fields that keeps the last seed it was asked for."""

    seed = -1

    def draw(self, name, image, affine, seed):
        self.seed = seed
        return WorldField(torch.zeros(3, 2, 2, 2), np.diag([40.0, 40.0, 40.0, 1.0]))


class Seeds(torch.utils.data.Dataset):
    """The seeds of the fields that MONAI's transform draws for eight items."""

    def __init__(self, transform):
        self.transform = transform

    def __len__(self):
        return 8

    def __getitem__(self, index):
        self.transform({"a": torch.zeros(1, 4, 4, 4), "name": str(index)})
        return self.transform.source.seed


@pytest.mark.parametrize(("workers", "more"), [(0, {}), (2, {}), (3, {}), (2, {"persistent_workers": True})])
def test_no_draw_of_a_plain_dataloader_is_repeated(workers, more):
    """In 24 draws of three epochs; MONAI's own loader would seed the workers."""
    pytest.importorskip("monai")
    from DRDMLib.loaders import RandDRDMDeformationd

    transform = RandDRDMDeformationd(["a"], Recorder()).set_random_state(7)
    loader = DataLoader(Seeds(transform), batch_size=None, num_workers=workers, **more)
    seeds = [int(seed) for _ in range(3) for seed in loader]
    assert len(seeds) == 24 and len(set(seeds)) == 24 and min(seeds) >= 0


def test_monai_with_plain_tensors_and_2d_images(tiny_model_2d, bank):
    pytest.importorskip("monai")
    from DRDMLib.loaders import RandDRDMDeformationd

    source = FieldGenerator(tiny_model_2d, levels=(40,), steps=1)
    transform = RandDRDMDeformationd(["a", "b"], source, mode=["bilinear", "nearest"]).set_random_state(0)
    picture = torch.rand(1, 30, 26)
    done = transform({"a": picture, "b": (picture > 0.5).long(), "name": "any"})
    assert done["a"].shape == (1, 30, 26) and not torch.equal(done["a"], picture)
    assert done["b"].dtype == torch.int64 and set(done["b"].unique().tolist()) == {0, 1}
    with pytest.raises(SettingError, match="Which case"):
        transform({"a": picture, "b": picture})
    with pytest.raises(SettingError, match="no mode"):
        RandDRDMDeformationd(["a"], source, mode="cubic")


def test_missing_frameworks_are_reported_with_the_command_to_install_them():
    code = """
import json, sys
class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torchio", "monai"):
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Hidden())
import DRDMLib.loaders as loaders
loaders.PairDataset, loaders.FieldBank
messages = []
for name in ("RandomDRDMDeformation", "RandDRDMDeformationd"):
    try:
        getattr(loaders, name)
    except ImportError as error:
        messages.append(str(error))
print(json.dumps(messages))
"""
    done = run_process(code=code)
    assert done.returncode == 0, done.stderr
    messages = json.loads(done.stdout)
    assert len(messages) == 2 and "pip install torchio" in messages[0] and "pip install monai" in messages[1]


def test_an_empty_crop_is_left_as_it_is(tiny_model):
    """Random crops of a pipeline may show background only."""
    monai = pytest.importorskip("monai.transforms")
    torchio = pytest.importorskip("torchio")
    from DRDMLib.loaders import RandDRDMDeformationd, RandomDRDMDeformation

    image, label = torch.full((1, 16, 14, 12), 7.0), torch.zeros(1, 16, 14, 12)
    label[:, 4:9, 5:9, 3:8] = 1
    source = FieldGenerator(tiny_model, levels=(40,), steps=1)
    pipeline = monai.Compose([RandDRDMDeformationd(["image", "label"], source, mode=("bilinear", "nearest"))])
    made = pipeline({"name": "a", "image": image.clone(), "label": label.clone()})
    assert torch.allclose(torch.as_tensor(made["image"]), image) and torch.equal(torch.as_tensor(made["label"]), label)
    subject = torchio.Subject(name="a", image=torchio.ScalarImage(tensor=image), label=torchio.LabelMap(tensor=label))
    moved = RandomDRDMDeformation(source)(subject)
    assert torch.allclose(moved.image.data, image) and torch.equal(moved.label.data.float(), label)
    with pytest.raises(ImageError, match="NaN"):
        source.draw("", torch.full((1, 16, 14, 12), float("nan")), np.eye(4), 0)
