"""The benchmarks: every module can be imported, and the helpers without a library's own tests are right."""

from __future__ import annotations

import importlib
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from support import smooth_image

FOLDER = Path(__file__).resolve().parents[1] / "benchmarks"
MODULES = sorted(path.stem for path in FOLDER.glob("*.py") if path.stem != "__init__")
EXTRA = ("monai", "torchio", "pandas", "tabulate", "skimage", "matplotlib")


@pytest.fixture(autouse=True)
def extra() -> None:
    for name in EXTRA:
        pytest.importorskip(name, reason=f"the extra 'benchmark' is not installed: there is no {name}")


@pytest.mark.parametrize("name", MODULES)
def test_a_module_can_be_imported(name):
    assert importlib.import_module(f"benchmarks.{name}").__doc__


def _imports(name: str) -> set[str]:
    """The modules that a module of the package imports at its top: those of the package and other packages."""
    text = (FOLDER / f"{name}.py").read_text(encoding="utf-8")
    own = re.findall(r"^(?:from benchmarks\.|from benchmarks import )(\w+)", text, re.MULTILINE)
    return {*own, *re.findall(r"^(?:from|import) (\w+)", text, re.MULTILINE)}


def test_imports_form_no_circle():
    left = {name: _imports(name) & set(MODULES) for name in MODULES}
    while left:
        leaves = {name for name, needed in left.items() if not needed & left.keys()}
        assert leaves, f"these modules import each other: {sorted(left)}"
        left = {name: needed for name, needed in left.items() if name not in leaves}


def test_the_driver_of_the_speed_benchmark_loads_no_large_library():
    # A process reports at least the peak memory of the process that started it.
    reached, new = set(), {"speed"}
    while new:
        reached |= new
        new = {needed for name in new & set(MODULES) for needed in _imports(name)} - reached
    assert "interleaved_timing" in reached
    assert not reached & {"torch", "SimpleITK", "monai", "torchio", "DRDMLib"}


def test_no_script_changes_the_search_path_for_modules_of_its_own():
    # The authors' checkout is no package, so one module adds it.
    users = [name for name in MODULES if "sys.path" in (FOLDER / f"{name}.py").read_text(encoding="utf-8")]
    assert users == ["reference_implementation"]


# ---------------------------------------------------------------------------------------------------------- tables


def test_a_table_in_markdown():
    from benchmarks.tables import markdown

    rows = [
        {"method": "a|b", "folded, %": 0.25, "change": "0.5 → 0.1", "seconds": None},
        {"method": "c", "folded, %": 12.0, "change": "1.5 → 0.2", "seconds": 1 / 3},
    ]
    head, rule, *lines = markdown(rows, {"folded, %": ".3f"}).splitlines()
    assert [cell.strip() for cell in head.strip("|").split("|")] == ["method", "folded, %", "change", "seconds"]
    assert [cell.strip().endswith(":") and not cell.strip().startswith(":") for cell in rule.strip("|").split("|")] == [
        False,
        True,
        True,
        True,
    ]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert cells == [["a/b", "0.250", "0.5 → 0.1", "-"], ["c", "12.000", "1.5 → 0.2", "0.33333"]]


# --------------------------------------------------------------------------------------------------------- overlap


def test_dice_of_structures():
    from benchmarks.overlap import dice

    predicted = torch.tensor([[1, 1, 0, 2], [0, 0, 0, 0]])
    truth = torch.tensor([[1, 0, 0, 0], [1, 0, 3, 0]])
    one, two, three, four = dice(predicted, truth, 5)
    assert one == pytest.approx(0.5)
    assert (two, three) == (0, 0)
    assert math.isnan(four)


def test_dice_is_that_of_monai():
    from benchmarks.overlap import dice
    from monai.metrics import compute_dice
    from monai.networks import one_hot

    generator = torch.Generator().manual_seed(0)
    predicted, truth = torch.randint(4, (2, 1, 1, 9, 8, 7), generator=generator)
    theirs = compute_dice(one_hot(predicted, 4), one_hot(truth, 4), include_background=False)[0]
    assert dice(predicted, truth, 4) == pytest.approx(theirs.tolist(), abs=1e-6)


def test_the_loss_is_that_of_monai():
    from benchmarks.overlap import dice_cross_entropy
    from monai.losses import DiceCELoss

    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(2, 4, 9, 8, 7, generator=generator)
    label = torch.randint(4, (2, 9, 8, 7), generator=generator)
    monai = DiceCELoss(False, to_onehot_y=True, softmax=True, batch=True, smooth_nr=1, smooth_dr=1)
    assert float(dice_cross_entropy(scores, label)) == pytest.approx(float(monai(scores, label[:, None])), abs=1e-6)


# -------------------------------------------------------------------------------------------------------- topology


def _ball(side: int, radius: float) -> np.ndarray:
    axes = np.meshgrid(*[np.arange(side) - side // 2] * 3, indexing="ij")
    return sum(x * x for x in axes) <= radius**2


def _torus() -> np.ndarray:
    z, y, x = np.meshgrid(*[np.arange(21) - 10] * 3, indexing="ij")
    return (np.hypot(x, y) - 6) ** 2 + z**2 <= 4


@pytest.mark.parametrize(
    ("mask", "topology"),
    [
        (_ball(13, 4), (1, 1)),
        (_ball(13, 5) & ~_ball(13, 2), (1, 2)),
        (_torus(), (1, 0)),
        (np.concatenate([_ball(13, 4), _ball(13, 4)]), (2, 2)),
        (np.eye(2)[:, None] > 0, (1, 1)),
        (np.zeros((4, 4, 4), bool), (0, 0)),
    ],
    ids=["ball", "shell", "torus", "two balls", "cubes that meet at an edge", "nothing"],
)
def test_topology_of_known_shapes(mask, topology):
    from benchmarks.invertible import topology as measured

    assert measured(mask) == topology


# ------------------------------------------------------------------------------------------------ fields, networks


def test_an_affine_map_leaves_nothing_beyond_it():
    from benchmarks.displacement import beyond_affine

    inside = np.ones((4, 5, 6), bool)
    field = np.argwhere(inside) @ np.array([[0.1, 0.3, 0.0], [0.0, -0.2, 0.1], [0.4, 0.0, 0.2]]) + (1.0, -2.0, 0.5)
    assert np.abs(beyond_affine(field.reshape(4, 5, 6, 3), inside)).max() < 1e-9


@pytest.mark.parametrize("name", ["torchio", "torchio@2", "monai", "affine", "torchio+1", "torchio-mm@2x5"])
def test_a_method_draws_fields_on_the_grid_of_the_image(name):
    from benchmarks.methods import deformer, is_elastic

    image = sitk.Image((12, 10, 8), sitk.sitkFloat32)
    image.SetSpacing((1.0, 1.5, 2.0))
    method = deformer(name)
    field = method(image, 3, 0)
    assert field.shape == (8, 10, 12, 3)
    assert np.abs(field).max() > 0
    assert np.array_equal(field, method(image, 3, 0))
    assert is_elastic(name)


def test_unseen_people_are_all_different():
    from benchmarks.coverage import choose

    from DRDMLib.io.datasets import Case

    cases = [Case(f"p{k:02d}", Path(f"p{k:02d}.nii")) for k in range(12)]
    first, rest = choose(cases, 2, 50, "p0[0-5]", 1)
    assert [case.name for case in first] == ["p01", "p04"]
    assert len({case.name for case in rest}) == len(rest) == 10
    assert len(choose(cases, 1, 4, "", 0)[1]) == 4
    # Two draws share nobody; what comes after them is another choice, and not one of them again.
    draws = [{case.name for case in choose(cases, 6, 50, "", draw)[0]} for draw in range(4)]
    assert not draws[0] & draws[1] and len({frozenset(draw) for draw in draws}) == 4
    assert all(len(draw) == 6 for draw in draws)


def test_elastic_fields_in_space_are_in_millimeters():
    from benchmarks.methods import deformer

    image = smooth_image((20, 24, 28))
    image.SetSpacing((1.0, 1.0, 3.0))
    field = deformer("torchio-mm@2x5")(image, 1, 0)
    assert field.shape == (*image.GetSize()[::-1], 3)
    assert 0.5 < np.abs(field).max() <= 2.0


def test_the_field_of_monai_is_the_one_it_deforms_with():
    from benchmarks.methods import monai_displacement, monai_transform

    for shape in ((24, 20), (12, 10, 8)):
        grid = torch.stack(torch.meshgrid(*map(torch.arange, shape), indexing="ij")).float()
        transform = monai_transform(len(shape))
        deformed = transform.set_random_state(5)(grid)
        field = torch.from_numpy(monai_displacement(transform.set_random_state(5), shape)).float()
        last = torch.tensor(shape).view(-1, *[1] * len(shape)) - 1
        # An image of coordinates becomes the map itself, kept inside by the border.
        assert torch.allclose(
            deformed.as_tensor(), (grid + field).clamp(min=torch.zeros_like(last), max=last), atol=1e-3
        )


def test_the_oracle_gives_the_shape_of_another_subject_and_the_same_one_again():
    from benchmarks.displacement import as_transform
    from benchmarks.labeled_views import LabeledImage
    from benchmarks.oracle import Oracle
    from benchmarks.overlap import dice

    one, other = (
        LabeledImage(
            sitk.Image(21, 21, 21, sitk.sitkFloat32), sitk.GetImageFromArray(_ball(21, radius).astype(np.uint8))
        )
        for radius in (4, 6)
    )
    oracle = Oracle([[other]])
    field = oracle.field(one, 0, 3)
    assert np.array_equal(field, oracle.field(one, 0, 3))
    deformed = sitk.Resample(one.label, as_transform(field, one.label), sitk.sitkNearestNeighbor)
    before, after = (
        dice(*(torch.from_numpy(sitk.GetArrayFromImage(x).astype(int)) for x in (label, other.label)), 2)[0]
        for label in (one.label, deformed)
    )
    assert after > 0.9 > 0.5 > before


def test_networks_keep_the_size_of_the_image():
    from benchmarks.networks import RegistrationNetwork, UNet

    for shape in ((16, 24), (16, 8, 24)):
        d, image = len(shape), torch.zeros(1, 1, *shape)
        assert UNet(d, 1, 4, (4, 8, 16), 0.01)(image).shape == (1, 4, *shape)
        assert RegistrationNetwork(d, 4)(image, image).shape == (1, d, *shape)


def test_reports_of_few_subjects_are_drawn_together_in_words():
    from benchmarks.draw import overlaps

    def rows(method: str, shots: int, *dice: float) -> dict[str, Any]:
        return {"rows": [{"method": method, "shots": shots, "dice": value} for value in dice]}

    reports = [
        rows("all", 0, 0.9, 0.9),
        rows("torchio@30+2", 5, 0.7, 0.8),
        rows("none", 5, 0.6, 0.6),
        rows("toward:cardiac-mr-2d+2", 5, 0.8, 0.8),
        rows("cardiac-mr-2d", 20, 0.85, 0.85),
        rows("toward+2", 5, 0.5),
    ]
    assert overlaps(reports) == {
        "5 subjects: no copies": [0.6, 0.6],
        "5 subjects: elastic copies, tuned, poses": [0.7, 0.8],
        "5 subjects: DRDM toward unlabeled others, poses": [0.8, 0.8],
        "20 subjects: DRDM copies": [0.85, 0.85],
        "all subjects labeled": [0.9, 0.9],
    }


# ------------------------------------------------------------------------------------------------- networks by arm


def _written_heart(folder: Path, name: str, radius: int) -> Any:
    """Write a stack of four slices with a ball as its label, and return its case."""
    from DRDMLib.io.datasets import Case

    ball = sitk.GetImageFromArray(np.stack([_ball(24, radius)[12]] * 4).astype(np.uint8))
    ball.SetSpacing((1.5, 1.5, 10.0))
    image = sitk.Cast(ball, sitk.sitkFloat32) * 100
    for kind, one in (("image", image), ("label", ball)):
        sitk.WriteImage(one, str(folder / f"{name}_{kind}.nii.gz"))
    return Case(name, folder / f"{name}_image.nii.gz", folder / f"{name}_label.nii.gz")


def test_examples_are_the_slices_of_the_subjects_and_then_of_their_copies(tmp_path):
    from benchmarks.example_sets import Recipe, read_examples, write_examples

    cases = tuple(_written_heart(tmp_path, f"p{k}", 4 + k) for k in range(2))
    found = {
        method: read_examples(
            write_examples(Recipe(cases, (), method, False, 3, (16, 16), 1.5, 5), tmp_path / f"{number}.npz")
        )
        for number, method in enumerate(("none", "pose+2", "torchio-mm@8+2"))
    }
    originals = found.pop("none")
    assert originals.images.shape == originals.labels.shape == (8, 16, 16) and originals.originals == 8
    # 24 voxels are cropped to the 16 in the middle.
    assert np.array_equal(originals.labels[0], _ball(24, 4)[12][4:20, 4:20])
    for examples in found.values():
        assert examples.images.shape == (8 + 2 * 3 * 4, 16, 16) and examples.originals == 8
        assert np.array_equal(examples.images[:8], originals.images)
        copies = examples.labels[8:].reshape(6, 4, 16, 16)
        assert set(np.unique(copies)) == {0, 1} and len({copy.tobytes() for copy in copies}) == 6
        # The label of a copy is where its image is bright.
        bright = examples.images[8:].astype(np.float32) > 1
        assert np.mean(bright == examples.labels[8:].astype(bool)) > 0.95


def test_slices_with_other_pixels_keep_their_middle():
    from benchmarks.example_sets import with_pixels

    disk = sitk.GetImageFromArray(np.stack([_ball(24, 8)[12]] * 3).astype(np.uint8))
    disk.SetSpacing((1.5, 1.5, 10.0))
    coarse = with_pixels(disk, 3.0, sitk.sitkNearestNeighbor)
    assert coarse.GetSize() == (12, 12, 3) and coarse.GetSpacing() == (3.0, 3.0, 10.0)
    centers = [
        one.TransformContinuousIndexToPhysicalPoint([(n - 1) / 2 for n in one.GetSize()]) for one in (disk, coarse)
    ]
    assert np.allclose(*centers)
    areas = [sitk.GetArrayFromImage(one).sum() * one.GetSpacing()[0] ** 2 for one in (disk, coarse)]
    assert areas[1] == pytest.approx(areas[0], rel=0.1)


def test_a_network_learns_from_its_examples_the_same_each_time():
    from benchmarks.example_sets import Examples
    from benchmarks.graph_training import NetworkTrainer

    rng = np.random.default_rng(0)
    labels = np.stack([np.roll(_ball(16, 4)[8], rng.integers(-3, 4, 2), (0, 1)) for _ in range(12)]).astype(np.uint8)
    images = (labels + 0.3 * rng.normal(size=labels.shape)).astype(np.float16)
    trainer = NetworkTrainer((16, 16), 2, torch.device("cpu"), widths=(8, 16, 16))
    people = [(images[k : k + 2], labels[k : k + 2]) for k in (8, 10)]
    found = []
    for seed, steps in ((1, 60), (1, 1), (2, 60), (1, 60)):
        trainer.train(Examples(images[:8], labels[:8], 4), seed, steps, augment=True)
        found.append(trainer.test(people))
    assert found[0] == found[3] != found[2]
    assert min(found[0]) > 0.9 > max(found[1])


def test_the_interval_of_differences():
    from benchmarks.arms import interval

    # Student's t with two degrees of freedom: 4.3027; the standard error is 0.01 / sqrt(3).
    assert interval([0.01, 0.02, 0.03]) == pytest.approx(4.3027 * 0.01 / math.sqrt(3), rel=1e-4)
    assert math.isnan(interval([0.5]))


def test_examples_augmented_as_nnunet_does_are_half_originals(monkeypatch):
    pytest.importorskip("batchgeneratorsv2")
    from benchmarks import example_sets

    monkeypatch.setitem(example_sets.AUGMENTED, 2, 40)
    # Originals show the structure 1, copies 2.
    labels = np.stack([_ball(32, 8)[16] * (1 + k // 3) for k in range(6)]).astype(np.uint8)
    before = example_sets.Examples(labels.astype(np.float16), labels, 3)
    after = example_sets.augmented(before, 7)
    assert after.images.shape == (40, 32, 32) and after.originals == 40
    assert [int(label.max()) for label in after.labels] == [2, 1] * 20
    assert np.array_equal(after.images, example_sets.augmented(before, 7).images)


# ----------------------------------------------------------------------------------------------------------- views


def test_a_view_crops_and_repeats_the_border():
    from benchmarks.labeled_views import View, crop_to_view

    tensor = torch.arange(12.0).reshape(1, 3, 4)
    assert crop_to_view(tensor, View((1, 2))).tolist() == [[[5.0, 6.0]]]
    assert crop_to_view(tensor, View((1, 2), (2, 3))).tolist() == [[[10.0, 11.0]]]
    assert crop_to_view(tensor, View((5, 4)))[0, :, 0].tolist() == [0.0, 0.0, 4.0, 8.0, 8.0]


def test_shapes_that_do_not_move_have_their_voxels():
    from benchmarks.label_methods import METHODS
    from benchmarks.label_shapes import draw_scene, true_label
    from benchmarks.labels import Sample, measure, pieces, summary

    grid = smooth_image((40, 42, 38), (1.0, 1.0, 2.0))
    scene = draw_scene(grid, 6, seed=0)
    assert [shape.kind for shape in scene.shapes][:4] == ["balls", "tori", "sheets", "tubes, 1 thick"]
    field = sitk.Image(grid.GetSize(), sitk.sitkVectorFloat64, 3)
    field.CopyInformation(grid)
    array = sitk.GetArrayFromImage(scene.label)
    truth = true_label(scene, grid, field)
    assert np.array_equal(truth, array) and pieces(array == 4) == 1
    field[0, 0, 0] = (0.1, 0.0, 0.0)
    sample = Sample("scan", 48, grid, scene.label, scene, truth, field)
    rows = {name: summary(name, measure(METHODS[name], sample)) for name in ("nearest voxel (TorchIO, MONAI)", "ours")}
    assert rows["nearest voxel (TorchIO, MONAI)"]["wrong, %"] == 0
    assert rows["ours"]["wrong, %"] < 5 and rows["ours"]["tubes whole, %"] == 100
