"""How well models fit scans, and the choice of a model by it, on drawn scans."""

import json
import shutil

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from command_helpers import boxes, write
from drawn_scans import body, head, noise, scan, thick_slices

from DRDMLib.deforming import deform, model_and_choice
from DRDMLib.errors import ModelError
from DRDMLib.io.images import read_image
from DRDMLib.loaders import FieldGenerator, make_bank
from DRDMLib.loaders.bank_making import _written
from DRDMLib.loaders.world import ras_affine
from DRDMLib.models import catalogue, choice
from DRDMLib.models.catalogue import add_user_model, find
from DRDMLib.models.choice import (
    Choice,
    choose_model,
    has_thick_slices,
    is_part,
    loaded,
    looks_like_ct,
    reasons_against,
)
from DRDMLib.models.fit import _FITS, Fit, Probe, measure_fit
from DRDMLib.production.case_models import fit_sentences


def fit_of(image, name):
    return measure_fit(image, loaded(find(name)))


def forget():
    _FITS.forget()


def test_a_model_fits_what_it_knows_better_than_noise_or_another_anatomy():
    known, unknown, other = (fit_of(image, "brain-t1-3d").undone for image in (head(), noise(), body()))
    assert known > 0.2 > 0.1 > unknown > other
    assert fit_of(body(), "general-3d").undone > 0.15
    assert fit_of(head(), "brain-t1-3d").still < fit_of(body(), "brain-t1-3d").still


def test_the_fit_is_identical_for_any_number_of_threads():
    image, before = head(), torch.get_num_threads()
    found = []
    for threads in (1, 2, 1):
        forget()
        torch.set_num_threads(threads)
        found.append(fit_of(image, "general-3d"))
    torch.set_num_threads(before)
    assert found[0] == found[1] == found[2]


def test_fits_are_remembered_by_the_contents_of_the_scan(monkeypatch):
    model, image = loaded(find("hippocampus-mr-3d")), head(40, 60.0)
    forget()
    first = measure_fit(image, model)
    with monkeypatch.context() as patched:
        patched.setattr(model, "predict_to", None)
        assert measure_fit(sitk.Image(image), model) == first
        changed = sitk.Image(image)
        changed[20, 20, 20] = 500.0
        with pytest.raises(TypeError):
            measure_fit(changed, model)
        moved = sitk.Image(image)
        moved.SetSpacing((1.0, 1.5, 2.0))
        with pytest.raises(TypeError):
            measure_fit(moved, model)


def test_the_fit_of_a_model_that_predicts_small_steps_is_not_known(tiny_model):
    fit = measure_fit(head(32), tiny_model)
    assert fit == Fit("tiny") and fit.word == "not known" and not fit.poor
    assert "not known" in str(fit)


@pytest.mark.parametrize(("undone", "word"), [(0.6, "good"), (0.3, "fair"), (0.05, "poor"), (-2.0, "poor")])
def test_the_fit_is_said_in_words_and_as_a_number(undone, word):
    fit = Fit("general-3d", undone, 0.02)
    assert fit.word == word
    assert str(fit) == f"general-3d; undoes {100 * undone:.0f} % on this scan: {word}"
    assert Fit("general-2d", undone, 0.02, ndim=2).word in (word, "poor")
    assert Fit.from_dict(json.loads(json.dumps(fit.to_dict()))) == fit
    assert bool(Choice("general-3d", fit).warning()) == (word == "poor")


def test_ct_is_told_from_mr():
    assert looks_like_ct(body())
    inside = sitk.Clamp(body(), sitk.sitkFloat32, -150, 300)
    assert looks_like_ct(inside)
    assert not looks_like_ct(head())
    assert not looks_like_ct(noise())
    assert not looks_like_ct(sitk.Normalize(head()))


def test_a_part_of_a_head_does_not_get_the_head_model():
    part = head(96, 320.0)[22:74, 15:80, 26:70]
    assert is_part(part) and not is_part(head()) and max(part.GetSize()) * part.GetSpacing()[0] > 150
    (reason,) = reasons_against(part, [find("brain-t1-3d")])
    assert "part" in reason and choose_model(part).name == "general-3d"
    assert reasons_against(head(), [find("brain-t1-3d")]) == [""]


@pytest.mark.parametrize("millimeters", [50.0, 200.0, 400.0])
def test_ct_never_gets_a_model_for_mr_only(millimeters):
    image = body(40, millimeters)
    assert choose_model(image).name == "general-3d"
    # Also if nothing else may be chosen, and if such a model would fit better.
    only_mr = [find(name) for name in ("brain-t1-3d", "hippocampus-mr-3d")]
    assert choose_model(image, among=only_mr).name == "general-3d"
    assert all("CT" in reason or "mm" in reason for reason in reasons_against(image, only_mr))


def test_thick_slices_get_a_model_for_volumes_if_one_suits(tmp_path, monkeypatch):
    monkeypatch.setenv("DRDM_HOME", str(tmp_path))
    image = thick_slices()
    assert has_thick_slices(image)
    # It keeps the slices together, although each slice alone is easier.
    chosen = choose_model(image)
    assert chosen.name == "general-3d" and {fit.model for fit in chosen.others} == {"general-2d", "brain-t1-3d"}
    assert fit_of(image, "general-2d").undone > chosen.fit.undone
    only = [find(name) for name in ("hippocampus-mr-3d", "general-2d")]
    assert choose_model(image, among=only).name == "general-2d"
    # Slices that are thin for the grid of a 3D model, a volume of cubes, and a single slice.
    assert not has_thick_slices(scan(np.zeros((80, 100, 100)), (0.7, 0.7, 5.0)))
    assert not has_thick_slices(head())
    assert not has_thick_slices(image[:, :, 3]) and choose_model(image[:, :, 3]).name == "general-2d"
    # The user's own model for slices is made for such stacks.
    add_user_model(find("general-2d").path, "mine")
    assert choose_model(image).name == "mine"


def test_of_models_that_fit_alike_the_users_own_is_preferred(tmp_path, monkeypatch):
    monkeypatch.setenv("DRDM_HOME", str(tmp_path))
    image = head()
    assert choose_model(image).name == "general-3d"
    own = add_user_model(find("general-3d").path, "mine")
    chosen = choose_model(image)
    assert chosen.name == own.name == "mine" and chosen.fit.model == "mine"
    assert chosen.fit.undone == fit_of(image, "general-3d").undone
    # One that fits worse is not, and one that is damaged is left out.
    weights = bytearray(own.path.read_bytes())
    weights[-4000:] = b"\xff" * 4000
    own.path.write_bytes(weights)
    assert choose_model(image).name == "general-3d"
    add_user_model(find("hippocampus-mr-3d").path, "other")
    assert choose_model(image).name == "general-3d"


def test_a_model_made_for_an_anatomy_is_preferred_unless_it_fits_much_worse(monkeypatch):
    image = head()
    general, special = (fit_of(image, name).undone for name in ("general-3d", "brain-t1-3d"))
    for difference, name in ((general - special - 0.01, "general-3d"), (general - special + 0.01, "brain-t1-3d")):
        monkeypatch.setattr(choice, "PREFERENCE", difference)
        assert choose_model(image).name == name


def test_a_named_model_is_used_and_its_fit_is_said():
    model, chosen = model_and_choice(body(40), "brain-t1-3d", "cpu")
    assert model.metadata.name == chosen.fit.model == "brain-t1-3d" and chosen.named
    assert chosen.fit.poor and "brain-t1-3d" in chosen.warning() and "drdm train --from" in chosen.warning()
    assert deform(body(40), "brain-t1-3d", 8, steps=1, device="cpu").model == "brain-t1-3d"
    assert deform(body(40), None, 8, steps=1, device="cpu").model == "general-3d"


def test_without_a_model_of_the_dimension_an_error_says_what_to_do(monkeypatch):
    monkeypatch.setattr(catalogue, "CATALOGUE", ())
    monkeypatch.setattr(choice, "CATALOGUE", ())
    with pytest.raises(ModelError, match="No 3D model"):
        choose_model(head(24), among=[])


def test_the_smaller_copy_of_a_large_scan_gives_nearly_the_same_fit():
    image = head(96)
    large = sitk.Resample(image, [256, 256, 256], sitk.Transform(), sitk.sitkLinear, image.GetOrigin(), [0.9] * 3)
    fits = [fit_of(one, "general-3d").undone for one in (image, large)]
    assert fits[0] == pytest.approx(fits[1], abs=0.05)
    assert Probe(large).tensor(loaded(find("general-3d"))).shape == (3, 1, 48, 48, 48)


# Batches


def mixed_cases(folder):
    """A dataset of a CT, a single slice and a head."""
    for name, image in (("ct", body(40)), ("slices", thick_slices(5)[:, :, 2:3]), ("zhead", head(64))):
        write(image, folder / "images" / f"{name}.nii.gz")
        write(boxes(image), folder / "labels" / f"{name}.nii.gz")
    return folder


MODELS = {"ct": "general-3d", "slices": "general-2d", "zhead": "general-3d"}


def records_of(folder):
    found = [json.loads(path.read_text(encoding="utf-8")) for path in sorted((folder / "records").glob("*.json"))]
    return {record["name"]: record for record in found}


def contents(folder):
    kinds = ("records", "imagesTr", "labelsTr")
    return {path.relative_to(folder): path.read_bytes() for kind in kinds for path in (folder / kind).iterdir()}


def test_each_case_of_a_batch_has_its_own_model(drdm, tmp_path):
    data, out = mixed_cases(tmp_path / "data"), tmp_path / "out"
    settings = ("--levels", 12, "--steps", 1, "--device", "cpu")
    made = drdm("augment", data, "-o", out, *settings)
    assert made.status == 0 and "general-2d on 1 image" in made.err, made.err
    for record in records_of(out).values():
        assert record["model"]["name"] == record["fit"]["model"] == MODELS[record["case"]]
        assert record["model"]["digest"] == catalogue.digest_of(find(record["model"]["name"]).path, "sha256")
    report = json.loads((out / "report.json").read_text(encoding="utf-8"))
    assert {item["source"]: item["model"] for item in report["items"]} == MODELS
    assert all(item["fit"]["word"] in ("good", "fair") for item in report["items"])
    assert set(report["model"].split(", ")) == set(MODELS.values())
    page = (out / "quality.html").read_text(encoding="utf-8")
    assert "on this scan: " in page
    run = json.loads((out / "run.json").read_text(encoding="utf-8"))
    assert {"general-3d", "general-2d", "brain-t1-3d"} <= {one["name"] for one in run["candidates"]}

    # A resumed run makes what is missing with the same models, also when another model would now be chosen.
    whole = contents(out)
    for name in ("slices_t12_000", "zhead_t12_000"):
        (out / "records" / f"{name}.json").unlink()
    assert add_user_model(find("brain-t1-3d").path, "mine").available
    again = drdm("augment", data, "-o", out, *settings, "--resume")
    assert again.status == 0, again.err
    assert contents(out) == whole
    assert (
        "chooses a model for each image"
        in drdm("augment", data, "-o", out, *settings, "--resume", "--model", "general-3d").err
    )
    regenerated = drdm("regenerate", out / "records" / "slices_t12_000.json", "-o", tmp_path / "again")
    assert regenerated.status == 0, regenerated.err

    # Several processes choose the same.
    shutil.rmtree(catalogue.user_models_folder())
    for share in ("1/2", "2/2"):
        assert drdm("augment", data, "-o", tmp_path / "shared", *settings, "--share", share).status == 0
    assert contents(tmp_path / "shared") == whole

    # A named model is used for all, and the warning names the cases that it does not fit.
    named = drdm("augment", data, "-o", tmp_path / "named", *settings, "--model", "brain-t1-3d")
    assert named.status == 0 and "does not fit" in named.err and "--adapt" in named.err
    assert {record["model"]["name"] for record in records_of(tmp_path / "named").values()} == {"brain-t1-3d"}


def test_a_run_whose_candidate_is_gone_says_so(drdm, tmp_path, monkeypatch):
    data, out = tmp_path / "data", tmp_path / "out"
    write(body(24), data / "images" / "a.nii.gz")
    settings = ("--levels", "12:8", "--steps", 1, "--device", "cpu")
    own = add_user_model(find("general-3d").path, "mine")
    assert drdm("synthesize", data, "-o", out, *settings).status == 0
    own.path.unlink()
    gone = drdm("synthesize", data, "-o", out, *settings, "--resume")
    assert gone.status == 2 and "'mine'" in gone.err and "no longer" in gone.err


def test_fits_of_a_batch_are_summarized():
    def record(case, model, undone):
        return {"case": case, "fit": Fit(model, undone).to_dict()}

    models, warning = fit_sentences(
        [record("a", "x", 0.5), record("b", "x", 0.3), record("c", "y", -0.1), {"case": "d"}]
    )
    assert models == "Models: x on 2 images (undoes 30 to 50 %: good, fair); y on 1 image (undoes -10 %: poor)."
    assert "1 of 3 images" in warning and "(c)" in warning
    assert fit_sentences([{"case": "a"}]) == ("", "")
    assert fit_sentences([record("a", "x", None)]) == ("Models: x on 1 image (fit not known).", "")


# The command line


def test_drdm_fit_prints_a_table(drdm, tmp_path):
    path = write(body(40), tmp_path / "ct.nii.gz")
    table = drdm("fit", path)
    assert table.status == 0, table.err
    line = next(line for line in table.out.splitlines() if "general-3d" in line)
    assert "good" in line and line.endswith("chosen")
    assert "for MR, but this looks like CT" in table.out and "general-2d" in table.out
    few = drdm("fit", path, path, "--model", "brain-t1-3d")
    assert few.out.count("brain-t1-3d") == 2 and "poor" in few.out and "general" not in few.out
    events = [json.loads(line) for line in drdm("fit", path, "--progress", "json").out.splitlines()]
    assert events[0]["chosen"] == "general-3d" and {one["model"] for one in events[0]["fits"]} >= {"general-2d"}
    assert drdm("fit", path, "--model", "nothing").status == 2


def test_drdm_deform_says_the_fit(drdm, tmp_path):
    path = write(body(40), tmp_path / "ct.nii.gz")
    settings = ("--level", 8, "--steps", 1, "--device", "cpu")
    made = drdm("deform", path, "-o", tmp_path / "a", *settings)
    assert "Model: general-3d; undoes" in made.err and "good" in made.err and "does not fit" not in made.err
    fit = json.loads((tmp_path / "a" / "report.json").read_text(encoding="utf-8"))["fit"]
    assert fit["model"] == "general-3d" and fit["word"] == "good"
    named = drdm("deform", path, "-o", tmp_path / "b", *settings, "--model", "brain-t1-3d")
    assert named.status == 0 and "does not fit this scan well (it undoes nothing" in named.err


# Loaders


def test_loaders_choose_for_each_image(tmp_path):
    data = tmp_path / "data"
    for name, image in (("ct", body(32)), ("slices", thick_slices(4)[:, :, 1:2])):
        write(image, data / "images" / f"{name}.nii.gz")
    bank = make_bank(data, tmp_path / "bank", levels=(8,), copies=1, steps=1, device="cpu")
    assert {name: _written(tmp_path / "bank" / f"{name}.safetensors")["model"] for name in bank.names} == {
        "ct": "general-3d",
        "slices": "general-2d",
    }
    assert _written(tmp_path / "bank" / "ct.safetensors")["fit"]["word"] == "good"
    before = {path.name: path.read_bytes() for path in (tmp_path / "bank").iterdir()}
    make_bank(data, tmp_path / "bank", levels=(8,), copies=1, steps=1, device="cpu")
    assert {path.name: path.read_bytes() for path in (tmp_path / "bank").iterdir()} == before

    source = FieldGenerator(levels=(8,), steps=1, device="cpu")
    for image in (body(32), thick_slices(4)[:, :, 1:2]):
        voxels = torch.from_numpy(sitk.GetArrayFromImage(image).transpose(2, 1, 0).copy())[None]
        source.draw("case", voxels, ras_affine(image), 0)
    assert set(source._chosen) == {"general-3d", "general-2d"}


# Real scans that none of the models was trained on

_REAL = {
    "brain_ixi/images/IXI013-HH-1212.nii.gz": {"brain-t1-3d"},
    "brain_misc/images/colin27_T1.nii.gz": {"brain-t1-3d", "general-3d"},
    "brain_misc/images/datalad_anat_T1w_1.5mm.nii.gz": {"brain-t1-3d", "general-3d"},
    "hippocampus/images/hippocampus_003.nii.gz": {"hippocampus-mr-3d"},
    "cardiac_acdc/images/patient001_ED.nii.gz": {"general-3d"},
    "ct/images/lung_baseline.nii.gz": {"general-3d"},
    "prostate_mr/images/prostate_19.nii.gz": {"general-3d"},
}


@pytest.mark.parametrize("path", _REAL)
def test_real_scans_get_a_model_that_suits(shared, path):
    chosen = choose_model(read_image(shared / "data" / path))
    assert chosen.name in _REAL[path] and chosen.fit.word in ("good", "fair"), chosen
    assert all(fit.undone <= chosen.fit.undone + 0.1 for fit in chosen.others if fit.ndim == chosen.fit.ndim)


@pytest.mark.parametrize("name", ["IXI013-HH-1212", "IXI284-HH-2354"])
def test_parts_of_a_head_do_not_get_the_head_model(shared, name):
    image = read_image(shared / "data" / "brain_ixi" / "images" / f"{name}.nii.gz")
    for side, start in ((80, (5, 20, 5)), (55, (40, 25, 30)), (30, (30, 50, 30))):
        size = [min(side, n - first) for n, first in zip(image.GetSize(), start, strict=True)]
        assert choose_model(sitk.RegionOfInterest(image, size, start)).name == "general-3d"
