"""Fields of a bank on nnU-Net's preprocessed grids, judged by SimpleITK; nnU-Net itself is not needed."""

import itertools
import pickle
from types import SimpleNamespace

import numpy as np
import pytest
import SimpleITK as sitk
import torch
import torch.nn.functional as F
from command_helpers import boxes, write
from support import rotation, smooth_image

from DRDMLib.errors import ImageError, SettingError
from DRDMLib.loaders import FieldBank, make_bank
from DRDMLib.loaders.nnunet_cases import CaseDeformation, CaseFields, DeformedArray, DeformedDataset, PreprocessedGrid
from DRDMLib.loaders.world import WorldField, ras_affine

SIZE, SPACING = (40, 46, 20), (1.0, 1.3, 2.5)
CROP = ((2, 18), (5, 41), (4, 37))  # Z, Y, X
TARGET = (1.7, 1.1, 1.4)


def image_of(array, spacing=SPACING):
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(spacing)
    image.SetOrigin((10, -20, 30))
    image.SetDirection(rotation(15, -10, 25).ravel().tolist())
    return image


def waves(seed, size=SIZE):
    """A smooth array (Z, Y, X)."""
    array = sitk.GetArrayFromImage(smooth_image(size, (1.0,) * 3, pixel=sitk.sitkFloat32)).astype(np.float32)
    return np.roll(array, 3 * seed, axis=(0, 1, 2))


def world_field(image, amount=4.0):
    """A smooth field on a coarse grid over an image."""
    nodes = (10, 11, 7)
    step = np.diag([*[(n - 1) / (m - 1) for n, m in zip(image.GetSize(), nodes, strict=True)], 1.0])
    grid = np.stack(np.meshgrid(*[np.linspace(0, np.pi, n) for n in nodes], indexing="ij"))
    vectors = amount * np.stack([np.sin(grid[1]) * np.cos(grid[2]), np.sin(grid[0]), np.cos(grid[0] + grid[1])])
    return WorldField(torch.from_numpy(vectors.astype(np.float32)), ras_affine(image) @ step)


def transform_of(field, image):
    """The same field for SimpleITK."""
    vectors = field.vectors.numpy().astype(float).transpose(3, 2, 1, 0) * [-1, -1, 1]
    made = sitk.GetImageFromArray(vectors, isVector=True)
    steps = np.linalg.inv(ras_affine(image)) @ field.affine
    made.SetSpacing((np.diag(steps)[:3] * image.GetSpacing()).tolist())
    made.SetOrigin(image.GetOrigin())
    made.SetDirection(image.GetDirection())
    return sitk.DisplacementFieldTransform(made)


def preprocessed(array, transpose, spacing=SPACING, crop=CROP, target=TARGET, mode="trilinear"):
    """What nnU-Net's preprocessing does with the grid: transpose, crop, resample by the faces of the voxels."""
    turned = array.transpose(transpose)
    box = [crop[axis] for axis in transpose]
    cut = turned[tuple(slice(*one) for one in box)]
    own = [spacing[::-1][axis] for axis in transpose]
    shape = [round(n * a / b) for n, a, b in zip(cut.shape, own, target, strict=True)]
    source = torch.from_numpy(np.ascontiguousarray(cut).astype(np.float32))[None, None]
    more = {} if mode == "nearest-exact" else {"align_corners": False}
    made = F.interpolate(source, size=shape, mode=mode, **more)[0].numpy()
    return made, {"shape_before_cropping": turned.shape, "bbox_used_for_cropping": box}


def as_sitk_properties(image):
    return {
        "sitk_stuff": {
            "spacing": image.GetSpacing(),
            "origin": image.GetOrigin(),
            "direction": image.GetDirection(),
        }
    }


def middle_of(deformed, deformation):
    """The part of a deformed case that lies on the grid of the undeformed one."""
    return deformed[(..., *[slice(s, s + n) for s, n in zip(deformation.start, deformation.grid.shape, strict=True)])]


@pytest.mark.parametrize("transpose", list(itertools.permutations(range(3))))
def test_a_field_is_carried_to_the_preprocessed_grid(transpose):
    """Deformed and then preprocessed is the same as preprocessed and then deformed."""
    array = waves(0)
    image = image_of(array)
    field = world_field(image)
    moved = sitk.GetArrayFromImage(sitk.Resample(image, image, transform_of(field, image), sitk.sitkLinear))
    case, properties = preprocessed(array, transpose)
    expected, _ = preprocessed(moved, transpose)
    grid = PreprocessedGrid.of(properties | as_sitk_properties(image), case.shape[1:], transpose, np.eye(4))
    deformation = CaseDeformation(field, grid)
    found = middle_of(DeformedArray(case, deformation, label=False)[:], deformation)
    inside = (0, *[slice(5, -5)] * 3)
    error = np.abs(found - expected)[inside].mean()
    assert error < 0.06 * np.abs(case - expected)[inside].mean()


def test_positions_are_exact_where_nothing_is_interpolated():
    """The position that is read, in mm, from an image that holds the coordinates of its voxels."""
    image = image_of(np.zeros(SIZE[::-1], np.float32))
    index = np.stack(np.meshgrid(*[np.arange(n) for n in SIZE[::-1]], indexing="ij"))[::-1]
    points = np.einsum("ij,jzyx->izyx", ras_affine(image)[:3, :3], index) + ras_affine(image)[:3, 3].reshape(3, 1, 1, 1)
    transpose = (2, 0, 1)
    made = [preprocessed(one, transpose) for one in points]
    case, properties = np.concatenate([m[0] for m in made]), made[0][1]
    grid = PreprocessedGrid.of(properties | as_sitk_properties(image), case.shape[1:], transpose, np.eye(4))
    voxel = (9, 12, 11)
    # The preprocessed voxels lie where the grid says.
    np.testing.assert_allclose((grid.affine @ [*voxel, 1])[:3], case[(slice(None), *voxel)], atol=1e-3)
    field = world_field(image)
    deformation = CaseDeformation(field, grid)
    place = [n + s for n, s in zip(voxel, deformation.start, strict=True)]
    read = DeformedArray(case, deformation, label=False)[(slice(None), *[slice(n, n + 1) for n in place])].ravel()
    lps = case[(slice(None), *voxel)] * [-1, -1, 1]
    expected = np.asarray(transform_of(field, image).TransformPoint(lps.tolist())) * [-1, -1, 1]
    np.testing.assert_allclose(read, expected, atol=2e-3)


def test_a_patch_is_the_same_part_of_the_whole():
    image = image_of(waves(0))
    labels = (waves(0) > np.median(waves(0))).astype(np.int16)
    case, properties = preprocessed(waves(0), (0, 1, 2))
    seg = preprocessed(labels, (0, 1, 2), mode="nearest-exact")[0].astype(np.int16)
    grid = PreprocessedGrid.of(properties | as_sitk_properties(image), case.shape[1:], (0, 1, 2), np.eye(4))
    deformation = CaseDeformation(world_field(image), grid)
    part = (slice(None), slice(2, 15), slice(20, 41), slice(5, 6))
    for array, label in ((case, False), (seg, True)):
        lazy = DeformedArray(array, deformation, label=label)
        whole = lazy[:]
        assert whole.shape == lazy.shape and whole.dtype == array.dtype
        np.testing.assert_allclose(lazy[part], whole[part], atol=2e-2)
    assert set(np.unique(whole)) <= {-1, 0, 1}


def test_labels_move_with_the_image():
    array = waves(0)
    image = image_of(array)
    middle = np.median(array)
    case, properties = preprocessed(array, (0, 1, 2))
    seg = (case > middle).astype(np.int16)
    grid = PreprocessedGrid.of(properties | as_sitk_properties(image), case.shape[1:], (0, 1, 2), np.eye(4))
    deformation = CaseDeformation(world_field(image), grid)
    moved = middle_of(DeformedArray(case, deformation, label=False)[:], deformation) > middle
    found = middle_of(DeformedArray(seg, deformation, label=True)[:], deformation)
    inside = (0, *[slice(4, -4)] * 3)
    assert (found == moved)[inside].mean() > 0.97
    assert (seg == moved)[inside].mean() < 0.93


def test_tissue_that_leaves_the_crop_is_kept():
    """The crop to what is not zero ends at the tissue; a field that moves it outward must not cut it off."""
    array = np.zeros(SIZE[::-1], np.float32)
    array[tuple(slice(*one) for one in CROP)] = 5
    image = image_of(array)
    case, properties = preprocessed(array, (0, 1, 2))
    grid = PreprocessedGrid.of(properties | as_sitk_properties(image), case.shape[1:], (0, 1, 2), np.eye(4))
    shift = np.linalg.inv(np.linalg.inv(grid.affine)[:3, :3]) @ [0, 3, 0]  # by three voxels
    vectors = torch.as_tensor(shift, dtype=torch.float32).view(3, 1, 1, 1).expand(3, 2, 2, 2).clone()
    deformation = CaseDeformation(WorldField(vectors, ras_affine(image)), grid)
    made = DeformedArray(case, deformation, label=False)[:]
    assert made.sum() == pytest.approx(case.sum(), rel=1e-5)
    labels = DeformedArray(np.ones(case.shape, np.int16), deformation, label=True)[:]
    assert (labels == 1).sum() == case.size and (labels[made == 0] == -1).all()


def test_a_mirror_image_lies_beyond_a_face_of_the_image():
    array = waves(0)
    image = image_of(array)
    whole = tuple((0, n) for n in array.shape)
    case, properties = preprocessed(array, (0, 1, 2), crop=whole, target=SPACING[::-1])
    grid = PreprocessedGrid.of(properties | as_sitk_properties(image), case.shape[1:], (0, 1, 2), np.eye(4))
    shift = ras_affine(image)[:3, :3] @ [4, 0, 0]
    vectors = torch.as_tensor(shift, dtype=torch.float32).view(3, 1, 1, 1).expand(3, 2, 2, 2).clone()
    made = DeformedArray(case, CaseDeformation(WorldField(vectors, ras_affine(image)), grid), label=False)[:]
    assert made.shape == case.shape
    expected = np.concatenate([case[..., 4:], case[..., :-5:-1]], axis=-1)
    np.testing.assert_allclose(made, expected, atol=1e-2)


def test_a_voxel_of_a_class_is_found_after_the_deformation():
    array = waves(0)
    image = image_of(array)
    case, properties = preprocessed(array, (0, 1, 2))
    grid = PreprocessedGrid.of(properties | as_sitk_properties(image), case.shape[1:], (0, 1, 2), np.eye(4))
    deformation = CaseDeformation(world_field(image), grid)
    for voxel in ((10, 20, 12), (14, 25, 9)):
        place = deformation.place_of(voxel)
        read, _ = deformation.positions(tuple(slice(n, n + 1) for n in place))
        assert np.abs(read.ravel() - voxel).max() < 1


# Datasets of nnU-Net.


class Stored:
    """What nnU-Net's datasets have."""

    def __init__(self, cases):
        self.cases, self.identifiers, self.source_folder = cases, list(cases), "here"

    def load_case(self, identifier):
        return self.cases[identifier]


@pytest.fixture(scope="module")
def made(tmp_path_factory, tiny_model_path):
    """A bank of two cases, and the same cases as nnU-Net stores them."""
    folder = tmp_path_factory.mktemp("nnunet")
    raw = folder / "Dataset007_Drawn"
    cases = {}
    for name in ("first", "second"):
        image = smooth_image((30, 28, 24), (1.0, 1.2, 1.5), rotation(5, 10, 0))
        write(image, raw / "imagesTr" / f"{name}_0000.nii.gz")
        write(boxes(image), raw / "labelsTr" / f"{name}.nii.gz")
        array = sitk.GetArrayFromImage(image).astype(np.float32)
        crop = ((1, 24), (0, 28), (2, 30))
        data, properties = preprocessed(array, (0, 1, 2), image.GetSpacing(), crop, (1.2, 1.2, 1.2))
        label = sitk.GetArrayFromImage(boxes(image))
        seg = preprocessed(label, (0, 1, 2), image.GetSpacing(), crop, (1.2, 1.2, 1.2), "nearest-exact")[0]
        located = {1: np.argwhere(seg == 1), 2: np.zeros((0, 4), int)}
        properties |= as_sitk_properties(image) | {"class_locations": located}
        cases[name] = (data, seg.astype(np.int16), None, properties)
    (raw / "dataset.json").write_text("{}")
    bank = make_bank(raw, folder / "bank", model=str(tiny_model_path), levels=(50,), copies=2, steps=1, device="cpu")
    return SimpleNamespace(raw=raw, bank=bank, cases=cases)


def dataset(made, share=1.0, cases=None):
    return DeformedDataset(
        Stored(made.cases if cases is None else cases),
        CaseFields(made.bank, (0, 1, 2)),
        SimpleNamespace(value=share),
    )


def test_cases_are_deformed_with_the_probability_of_the_share(made):
    none = dataset(made, 0.0)
    assert none.load_case("first")[0] is made.cases["first"][0]
    assert none.identifiers == ["first", "second"] and none.source_folder == "here"
    half = dataset(made, 0.5)
    np.random.seed(0)  # noqa: NPY002
    loaded = [half.load_case("first") for _ in range(60)]
    assert 18 < sum(isinstance(one[0], DeformedArray) for one in loaded) < 42


def test_all_arrays_of_a_case_are_deformed_alike_and_can_be_repeated(made):
    data, seg, _, properties = made.cases["first"]
    cascade = {"first": (data, seg, seg[0], properties)}
    for _ in range(2):
        np.random.seed(3)  # noqa: NPY002
        image, label, previous, changed = dataset(made, cases=cascade).load_case("first")
        again = image[:]
    np.random.seed(3)  # noqa: NPY002
    np.testing.assert_array_equal(dataset(made, cases=cascade).load_case("first")[0][:], again)
    np.testing.assert_array_equal(label[:][0], previous[:])
    places = changed["class_locations"]
    assert properties["class_locations"][1] is not places[1] and len(places[2]) == 0
    for k in range(0, len(places[1]), 90):
        channel, *place = places[1][k]
        read, _ = label._deformation.positions(tuple(slice(n, n + 1) for n in place))
        assert channel == 0 and np.abs(read.ravel() - properties["class_locations"][1][k][1:]).max() < 1.5


def test_a_dataset_can_be_sent_to_a_spawned_worker(made):
    sent = pickle.loads(pickle.dumps(dataset(made)))
    np.random.seed(1)  # noqa: NPY002
    expected = dataset(made).load_case("second")[0][:]
    np.random.seed(1)  # noqa: NPY002
    np.testing.assert_array_equal(sent.load_case("second")[0][:], expected)


def test_cases_without_fields_are_named_and_stay_as_they_are(made):
    cases = {**made.cases, "third": made.cases["first"]}
    mixed = dataset(made, cases=cases)
    assert mixed.check() == ["third"]
    assert mixed.load_case("third")[0] is cases["third"][0]


def test_a_bank_of_other_cases_is_refused(made):
    with pytest.raises(SettingError, match=r"no fields for the cases of this dataset \('other'\)"):
        dataset(made, cases={"other": made.cases["first"]}).check()
    data, seg, _, properties = made.cases["first"]
    larger = {**properties, "shape_before_cropping": (24, 28, 31)}
    with pytest.raises(SettingError, match="not of the size"):
        dataset(made, cases={"first": (data, seg, None, larger)}).check()
    elsewhere = {**properties["sitk_stuff"], "origin": (500.0, 0.0, 0.0)}
    with pytest.raises(ImageError, match="not where the image lies"):
        dataset(made, cases={"first": (data, seg, None, {**properties, "sitk_stuff": elsewhere})}).check()


@pytest.mark.parametrize("key", ["original_affine", "reoriented_affine"])
def test_the_position_may_come_from_nibabel(made, key):
    data, _, _, properties = made.cases["first"]
    image = sitk.ReadImage(str(made.raw / "imagesTr" / "first_0000.nii.gz"))
    stuff = {"original_affine": np.eye(4), key: ras_affine(image)}
    plain = {k: v for k, v in properties.items() if k != "sitk_stuff"}
    fields = CaseFields(made.bank, (0, 1, 2))
    expected = fields.grid("first", properties, data.shape[1:])
    found = fields.grid("first", {**plain, "nibabel_stuff": stuff}, data.shape[1:])
    np.testing.assert_allclose(found.affine, expected.affine, atol=1e-5)
    # Without a position, as in PNG files, the voxels are those of the file.
    np.testing.assert_allclose(fields.grid("first", plain, data.shape[1:]).affine, expected.affine, atol=1e-4)
    assert fields.deformation("first", fields.grid("first", plain, data.shape[1:]), 1).field is not None


def test_a_flat_image_is_deformed(tmp_path, tiny_model_2d_path):
    image = smooth_image((40, 36), (1.0, 1.2))
    write(image, tmp_path / "flat.nii.gz")
    bank = make_bank(tmp_path, tmp_path / "bank", model=str(tiny_model_2d_path), levels=(60,), copies=1, steps=1)
    data = sitk.GetArrayFromImage(image)[None, None].astype(np.float32)
    properties = {
        "shape_before_cropping": data.shape[1:],
        "bbox_used_for_cropping": [[0, n] for n in data.shape[1:]],
        **as_sitk_properties(image),
    }
    fields = CaseFields(FieldBank(bank.folder), (0, 1, 2))
    deformation = fields.deformation("flat", fields.grid("flat", properties, data.shape[1:]), 0)
    made = DeformedArray(data, deformation, label=False)[:]
    assert made.shape == data.shape and np.abs(made - data).max() > 0
