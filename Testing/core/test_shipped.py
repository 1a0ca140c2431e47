"""The shipped models on held-out subjects, the sample image, and the demo."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from DRDMLib.cli import main
from DRDMLib.diffusion.fields import compose, warp
from DRDMLib.diffusion.forward import random_ddf
from DRDMLib.generation import generate, prepare
from DRDMLib.invertibility.metrics import folded_fraction, roughness
from DRDMLib.io.datasets import Case, find_cases
from DRDMLib.io.images import read_image, read_label
from DRDMLib.io.resources import resource
from DRDMLib.models.catalogue import CATALOGUE, default_entry, load_model
from DRDMLib.models.model import Model
from DRDMLib.settings import DeformationSettings
from DRDMLib.training.data import split

SHIPPED = [entry for entry in CATALOGUE if not entry.url and entry.available]


def test_the_default_model_fits_the_size_of_the_image():
    for extent, name in ((50.0, "hippocampus-mr-3d"), (240.0, "brain-t1-3d")):
        if name in [entry.name for entry in SHIPPED]:
            assert default_entry(3, extent).name == name
    # The general model is used for very small or large images, and if the size is unknown.
    assert default_entry(3, 2.0).name == default_entry(3, 900.0).name == default_entry(3).name == "general-3d"
    # Slices of any size get the general model; the models of hearts are used only when they are named.
    assert {default_entry(2, extent).name for extent in (None, 20.0, 350.0, 900.0)} == {"general-2d"}


def test_these_models_are_shipped():
    names = {"hippocampus-mr-3d", "brain-t1-3d", "general-3d", "general-2d", "cardiac-mr-2d", "heart-region-2d"}
    assert {entry.name for entry in SHIPPED} == names


@pytest.mark.parametrize("entry", SHIPPED, ids=lambda e: e.name)
def test_shipped_models_have_complete_metadata(entry):
    metadata = load_model(entry.name, "cpu").metadata
    assert metadata.ndim == entry.ndim
    assert metadata.anatomy and metadata.modality and metadata.training_data and metadata.licence and metadata.citation
    assert metadata.training["steps_done"] > 1000
    assert entry.path.stat().st_size < 8e6
    assert entry.path.with_suffix(".md").is_file()


@pytest.mark.parametrize(
    ("level", "rough", "far", "bent"), [(16, 0.97, 1.0, 0.076), (48, 0.9, 0.8, 0.160), (79, 0.8, 0.7, 0.217)]
)
def test_hippocampus_model_recovers_held_out_subjects(shared, level, rough, far, bent):
    """Fields become smoother and smaller with no more folds, but not zero; two seeds differ."""
    model = as_trained("hippocampus-mr-3d")
    left_out = split(find_cases(shared / "data" / "hippocampus"), 8)[1][:2]
    tensors = [prepare(read_image(case.image), model)[1] for case in left_out]
    made = [generate(t, model, DeformationSettings(level), (seed,)) for seed, t in enumerate(tensors)]
    before, after = (torch.cat([getattr(m, kind) for m in made]) for kind in ("random", "recovered"))
    assert bool((roughness(after) < rough * roughness(before)).all())
    assert bool((folded_fraction(after) <= folded_fraction(before)).all())
    lengths = [f.norm(dim=1).mean() for f in (before, after)]
    assert 0.2 * lengths[0] < lengths[1] < far * lengths[0]
    assert (after[0] - after[1]).norm(dim=0).mean() > 0.3 * lengths[1]
    # Half of the roughness that an earlier model left, which had 48 nodes per side; the unit is its voxel.
    assert bool((roughness(after) * model.size / 48 < bent).all())


def middles(model: Model, cases: list[Case]) -> torch.Tensor:
    """Load volumes, or the middle slices of stacks, onto the model's grid: (N, 1, *S)."""
    made = [prepare(read_image(case.image), model)[1] for case in cases]
    return torch.cat([m[len(m) // 2 :][:1] for m in made])


# Random fields of the training of a model whose new versions are drawn from smoother ones.
TRAINED_ON: dict[str, dict[str, Any]] = {"hippocampus-mr-3d": {"noise_grids": [16, 8, 4], "velocity_scale": 6e-5}}


def eight(images: torch.Tensor) -> torch.Tensor:
    """Repeat a few images, so that each is deformed in several ways."""
    return images.repeat(-(-8 // len(images)), *[1] * (images.ndim - 1))[:8]


def as_trained(name: str) -> Model:
    """Load a shipped model that draws the random fields of its training."""
    model = load_model(name, "cpu")
    model.metadata = replace(model.metadata, **TRAINED_ON[name])
    return model


def energy_left_by_one_prediction(model: Model, images: torch.Tensor, level: int) -> float:
    """Fraction of the energy of random deformations that one prediction does not undo."""
    metadata = model.metadata
    psi = random_ddf(
        metadata.size,
        metadata.ndim,
        level,
        torch.Generator().manual_seed(level),
        batch=len(images),
        velocity_scale=metadata.velocity_scale,
        amplitude=metadata.amplitude,
        control_size=metadata.control_size,
        noise_grids=metadata.noise_grids,
    )
    with torch.inference_mode():
        undone = compose(psi, model.predict_to(warp(images, psi, padding=metadata.image_padding), level, -1))
    return float(undone.square().sum() / psi.square().sum())


@pytest.mark.parametrize(("level", "left"), [(32, 0.7), (48, 0.5), (79, 0.4)])
def test_hippocampus_model_undoes_most_of_a_deformation_in_one_prediction(shared, level, left):
    """Held-out crops show no border of the image, so only the anatomy shows the deformation."""
    model = as_trained("hippocampus-mr-3d")
    cases = split(find_cases(shared / "data" / "hippocampus"), 8)[1][:8]
    assert energy_left_by_one_prediction(model, middles(model, cases), level) < left


def test_cardiac_model_recovers_hearts_of_another_hospital(shared):
    """On ACDC, which is not in its training data, fields become smoother without folds; two versions differ."""
    model = load_model("cardiac-mr-2d", "cpu")
    cases = [c for c in find_cases(shared / "data" / "cardiac_acdc") if c.name.endswith("_ED")][:8]
    hearts = middles(model, cases)
    made = [
        generate(heart[None], model, DeformationSettings(72, steps=12), (seed,))
        for seed, heart in enumerate(hearts[:3])
    ]
    before, after = (torch.cat([getattr(m, kind) for m in made]) for kind in ("random", "recovered"))
    assert bool((roughness(after) < 0.65 * roughness(before)).all())
    # Two thirds of the roughness that the previous model left, which was trained on a finer field.
    assert float(roughness(after).mean()) < 0.107
    assert float(folded_fraction(after).max()) == 0
    assert 0.2 < float(after.norm(dim=1).mean() / before.norm(dim=1).mean()) < 0.7
    assert (after[0] - after[1]).norm(dim=0).mean() > 0.5 * after[0].norm(dim=0).mean()
    assert energy_left_by_one_prediction(model, hearts, 72) < 0.5


# Cases of small datasets that the general models have not seen, by their indices in the sorted list.
UNSEEN = {"ct": slice(0, 9, 8), "prostate_mr": slice(12, 18)}


def unseen(shared, dataset: str, every: int = 8) -> list[Case]:
    """List cases that the general models have not seen; of hearts, 8 of ACDC at the end of diastole."""
    cases = find_cases(shared / "data" / dataset)
    if dataset == "cardiac_acdc":
        return [case for case in cases if case.name.endswith("_ED")][:8]
    if dataset == "brain_misc":
        return [case for case in cases if case.name.startswith("colin27")]
    return cases[UNSEEN[dataset]] if dataset in UNSEEN else split(cases, every)[1]


@pytest.mark.parametrize(
    ("dataset", "left"), [("hippocampus", 0.30), ("ct", 0.48), ("prostate_mr", 0.44), ("cardiac_acdc", 0.47)]
)
def test_general_model_recovers_held_out_subjects(shared, dataset, left):
    model = load_model("general-3d", "cpu")
    images = middles(model, unseen(shared, dataset)[:6])
    made = [generate(images[k : k + 1], model, DeformationSettings(64, steps=12), (k,)) for k in range(2)]
    before, after = (torch.cat([getattr(m, kind) for m in made]) for kind in ("random", "recovered"))
    assert bool((roughness(after) < 0.65 * roughness(before)).all())
    assert bool((folded_fraction(after) <= folded_fraction(before)).all())
    assert (after[0] - after[1]).norm(dim=0).mean() > 0.3 * after[0].norm(dim=0).mean()
    assert energy_left_by_one_prediction(model, eight(images), 64) < left


@pytest.mark.parametrize(
    ("dataset", "left_32", "left_72"),
    [
        ("cardiac_acdc", 0.3, 0.21),
        ("prostate_mr", 0.65, 0.32),
        ("ct", 0.45, 0.31),
        ("brain_misc", 0.51, 0.32),
        ("brain_ixi", 0.42, 0.29),
        ("hippocampus", 0.39, 0.18),
    ],
)
def test_general_2d_model_recovers_held_out_slices(shared, dataset, left_32, left_72):
    """Middle slices, none of which it has seen, from small as from large deformations."""
    model = load_model("general-2d", "cpu")
    slices = middles(model, unseen(shared, dataset, 5 if dataset == "brain_ixi" else 8)[:8])
    made = [generate(slices[:1], model, DeformationSettings(72, steps=12), (seed,)) for seed in range(2)]
    before, after = (torch.cat([getattr(m, kind) for m in made]) for kind in ("random", "recovered"))
    assert bool((roughness(after) < 0.72 * roughness(before)).all())
    assert float(folded_fraction(after).max()) == 0
    assert 0.2 < float(after.norm(dim=1).mean() / before.norm(dim=1).mean()) < 0.7
    assert (after[0] - after[1]).norm(dim=0).mean() > 0.5 * after[0].norm(dim=0).mean()
    assert energy_left_by_one_prediction(model, eight(slices), 32) < left_32
    assert energy_left_by_one_prediction(model, eight(slices), 72) < left_72


@pytest.mark.parametrize(("level", "rough", "far", "left"), [(48, 0.66, 0.75, 0.41), (79, 0.53, 0.65, 0.36)])
def test_brain_model_recovers_held_out_subjects(shared, level, rough, far, left):
    model = load_model("brain-t1-3d", "cpu")
    left_out = split(find_cases(shared / "data" / "brain_ixi"), 5)[1][:4]
    heads = middles(model, left_out)
    made = [generate(head[None], model, DeformationSettings(level), (seed,)) for seed, head in enumerate(heads[:2])]
    before, after = (torch.cat([getattr(m, kind) for m in made]) for kind in ("random", "recovered"))
    assert bool((roughness(after) < rough * roughness(before)).all())
    assert bool((folded_fraction(after) <= folded_fraction(before)).all())
    lengths = [f.norm(dim=1).mean() for f in (before, after)]
    assert 0.2 * lengths[0] < lengths[1] < far * lengths[0]
    assert (after[0] - after[1]).norm(dim=0).mean() > 0.3 * lengths[1]
    assert energy_left_by_one_prediction(model, heads, level) < left


@pytest.mark.parametrize(("level", "left"), [(48, 0.68), (64, 0.64)])
def test_brain_model_recovers_a_head_from_elsewhere(shared, level, left):
    """Colin27 is from another scanner than the training images. An earlier model left more than 0.9 at level 48."""
    model = load_model("brain-t1-3d", "cpu")
    head = middles(model, unseen(shared, "brain_misc"))
    assert energy_left_by_one_prediction(model, eight(head), level) < left


def test_brain_model_recovers_brains_without_skull(shared):
    """An earlier model left about 1.0 at level 48."""
    model = load_model("brain-t1-3d", "cpu")
    brains = []
    for case in split(find_cases(shared / "data" / "brain_ixi"), 5)[1][:4]:
        image = read_image(case.image)
        mask = sitk.BinaryDilate(sitk.Cast(read_label(case.label, image) > 0, sitk.sitkUInt8), [1, 1, 1])
        statistics = sitk.LabelShapeStatisticsImageFilter()
        statistics.Execute(mask)
        box = statistics.GetBoundingBox(1)
        brain = sitk.RegionOfInterest(sitk.Mask(image, mask), box[3:], box[:3])
        brains.append(prepare(brain, model)[1])
    assert energy_left_by_one_prediction(model, torch.cat(brains), 48) < 0.6


@pytest.mark.parametrize("name", TRAINED_ON)
def test_new_versions_are_drawn_from_smoother_fields(name):
    """They are as large as with the fields of the training, and smoother."""
    image = read_image(resource("Sample", "sample.nii.gz"))
    found = []
    for model in (as_trained(name), load_model(name, "cpu")):
        tensor = prepare(image, model)[1]
        fields = [generate(tensor, model, DeformationSettings(40, steps=6), (k,)).recovered for k in range(3)]
        field = torch.cat(fields)
        found.append((float(roughness(field).mean()), float(field.norm(dim=1).mean())))
    (rough, far), (smoother, as_far) = found
    assert smoother < 0.9 * rough and 0.9 * far < as_far < 1.3 * far, found


def test_demo(tmp_path):
    """The README's first command writes the picture and the files of ``deform``."""
    out = tmp_path / "my demo"
    assert main(["demo", "-o", str(out), "--level", "20", "--steps", "2", "--device", "cpu"]) == 0
    names = {path.name for path in out.iterdir()}
    assert names == {"demo.png", "report.json", *(f"chest_000_{kind}.nii.gz" for kind in ("image", "label", "ddf"))}
    assert (out / "demo.png").stat().st_size > 50_000
    (item,) = json.loads((out / "report.json").read_text(encoding="utf-8"))["items"]
    assert item["metrics"]["folded_fraction"] == 0
    assert 0.1 < item["metrics"]["mean_mm"] < 15
    sample, new = (sitk.ReadImage(str(p)) for p in (resource("Sample", "chest.nii.gz"), out / item["image"]))
    assert np.abs(sitk.GetArrayFromImage(sample).astype(float) - sitk.GetArrayFromImage(new)).mean() > 1


def test_a_second_demo_does_not_change_the_first(tmp_path, monkeypatch, tiny_model_path):
    monkeypatch.chdir(tmp_path)
    options = ["--model", str(tiny_model_path), "--level", "3", "--steps", "1", "--device", "cpu"]
    for _ in range(2):
        assert main(["demo", str(resource("Sample", "sample.nii.gz")), *options]) == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["drdm-demo", "drdm-demo-2"]


def test_the_chest_looks_as_its_script_draws_it():
    """Drawn with a quarter of the voxels along each axis, and with large vessels only."""
    import runpy

    script = runpy.run_path(str(resource("Sample", "make_chest.py")))
    names, fine = script["draw"].__globals__, script["SIZE"]
    vessels, names["SIZE"] = names["vessels"], tuple(n // 4 for n in fine)
    names["SPACING"] = tuple(4 * s for s in script["SPACING"])
    names["vessels"] = lambda *curve: vessels(*curve) if curve[-1] > 2.2 else None
    image, label = script["draw"]()
    # The voxels of the shipped files at the same places.
    coarse = [np.rint((np.arange(n // 4) - (n // 4 - 1) / 2) * 4 + (n - 1) / 2 - 0.01).astype(int) for n in fine[::-1]]
    chest, shipped = (
        sitk.GetArrayFromImage(read_image(resource("Sample", name)))[np.ix_(*coarse)]
        for name in ("chest.nii.gz", "chest.seg.nrrd")
    )
    assert (shipped != label).mean() < 0.04 and np.median(np.abs(chest - image)) < 50
    for value in script["LABELS"].values():
        both = np.count_nonzero((shipped == value) & (label == value))
        assert both > 0.7 * max(np.count_nonzero(shipped == value), np.count_nonzero(label == value))


@pytest.mark.long
def test_the_chest_is_the_output_of_its_script():
    """The chest is drawn, not a scan; its segments have names."""
    import runpy

    script = runpy.run_path(str(resource("Sample", "make_chest.py")))
    image, label = script["draw"]()
    chest, shipped = (read_image(resource("Sample", name)) for name in ("chest.nii.gz", "chest.seg.nrrd"))
    assert np.abs(sitk.GetArrayFromImage(chest).astype(float) - image).max() <= 8
    assert (sitk.GetArrayFromImage(shipped) != label).mean() < 1e-4
    assert shipped.GetMetaData("Segment2_Name") == "heart" and script["LABELS"]["heart"] == 3


def test_the_sample_is_the_output_of_its_script():
    """The sample is a phantom, not a scan."""
    import runpy

    image, label = runpy.run_path(str(resource("Sample", "make_sample.py")))["draw"]()
    sample = read_image(resource("Sample", "sample.nii.gz"))
    assert np.abs(sitk.GetArrayFromImage(sample).astype(float) - image).max() <= 1
    shipped = read_label(resource("Sample", "sample_label.nii.gz"), sample)
    assert (sitk.GetArrayFromImage(shipped) != label).mean() < 1e-3
