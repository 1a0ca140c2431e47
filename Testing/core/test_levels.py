"""Words for levels: what they mean for each model, and how they travel through commands and records."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from DRDMLib.deforming import make_deformations
from DRDMLib.errors import SettingError
from DRDMLib.io.resources import resource
from DRDMLib.levels import MEANING, STRENGTHS, read_level
from DRDMLib.models.catalogue import CATALOGUE, load_model
from DRDMLib.models.fit import Fit
from DRDMLib.models.metadata import ModelMetadata, read_header
from DRDMLib.models.strength import level_of, mean_displacement, people_differ, reach, with_level
from DRDMLib.settings import DeformationSettings
from DRDMLib.training.adaptation import adapted_metadata

SHIPPED = [entry for entry in CATALOGUE if not entry.url]


@pytest.mark.parametrize("entry", SHIPPED, ids=lambda entry: entry.name)
def test_words_mean_the_same_share_for_every_model(entry):
    metadata = read_header(entry.path)
    levels = [level_of(word, metadata) for word in STRENGTHS]
    assert levels == sorted(set(levels))
    for word, level, most in zip(STRENGTHS, levels, (0.25, 0.4, 0.6), strict=True):
        # Less where it would be near the most that recovery leaves.
        expected = min(MEANING[word] * people_differ(metadata), most * reach(metadata))
        assert mean_displacement(level, metadata) == pytest.approx(expected, rel=0.1)


def test_numbers_stay_as_they_are():
    metadata = read_header(SHIPPED[0].path)
    assert [level_of(level, metadata) for level in (0, 48, 79)] == [0, 48, 79]


def test_displacement_is_what_the_model_does():
    # On an image that the model knows; on one that it does not know, displacements differ.
    image = sitk.ReadImage(str(resource("Sample", "sample.nii.gz")), sitk.sitkFloat32)
    model = load_model("hippocampus-mr-3d", "cpu")
    settings = DeformationSettings("strong", steps=12)
    made = list(make_deformations(image, model, settings, range(4)))
    assert {one.level for one in made} == {level_of("strong", model.metadata)}
    assert {one.strength for one in made} == {"strong"}
    share = np.mean([one.metrics.mean_percent for one in made]) / 100
    assert share == pytest.approx(mean_displacement(made[0].level, model.metadata), rel=0.4)


def test_a_word_gives_the_field_of_its_level():
    image = sitk.ReadImage(str(resource("Sample", "sample.nii.gz")), sitk.sitkFloat32)
    model = load_model("hippocampus-mr-3d", "cpu")
    word = next(make_deformations(image, model, DeformationSettings("subtle", steps=1), (3,)))
    number = next(make_deformations(image, model, DeformationSettings(word.level, steps=1), (3,)))
    assert sitk.GetArrayFromImage(word.field).tobytes() == sitk.GetArrayFromImage(number.field).tobytes()
    assert number.strength == ""


def test_adapted_models_inherit_how_far_they_reach():
    source = read_header(next(entry for entry in SHIPPED if entry.name == "general-3d").path)
    adapted = adapted_metadata(source, "knees", 20)
    # Another anatomy, about which nothing is known.
    assert people_differ(adapted) == people_differ(source)
    assert level_of("strong", adapted) == level_of("strong", source)
    unknown = dataclasses.replace(adapted, reach=None)
    assert level_of("strong", unknown) > level_of("strong", adapted)


def test_models_with_few_levels_have_words():
    small = ModelMetadata("tiny", "compact", 2, 16, timesteps=10, noise_grids=[16, 8, 4], control_size=32)
    assert 1 <= level_of("subtle", small) <= level_of("strong", small) <= 9
    with_level(DeformationSettings("strong"), small).schedule(10)


@pytest.mark.parametrize("text", ["bold", "", "4.5", "-3", "1e1", "²"])
def test_what_is_no_level_is_refused(text):
    with pytest.raises(ValueError, match="subtle, medium, strong"):
        read_level(text)
    with pytest.raises(SettingError, match="subtle, medium, strong"):
        DeformationSettings(text or "none")


def test_a_word_has_no_schedule_before_the_model_is_known():
    with pytest.raises(SettingError, match="choose the model"):
        DeformationSettings("medium").schedule(80)


def test_records_repeat_the_level_that_a_word_meant(tmp_path, drdm, monkeypatch):
    for kind, name in (("images", "sample.nii.gz"), ("labels", "sample_label.nii.gz")):
        (tmp_path / "scans" / kind).mkdir(parents=True)
        (tmp_path / "scans" / kind / "s.nii.gz").write_bytes(Path(resource("Sample", name)).read_bytes())
    command = ["synthesize", tmp_path / "scans", "-o", tmp_path / "pairs", "--levels", "strong:7", "--steps", 1]
    assert drdm(*command, "--model", "hippocampus-mr-3d").status == 0
    record = tmp_path / "pairs" / "records" / "s_strong-07_000.json"
    written = json.loads(record.read_text(encoding="utf-8"))
    level = level_of("strong", read_header(resource("Models", "hippocampus-mr-3d.safetensors")))
    assert written["levels"] == ["strong", 7] and written["item"]["levels"] == [level, 7]
    # Should the word mean another level one day, the record still gives the same files.
    monkeypatch.setitem(MEANING, "strong", 0.5)
    assert drdm("regenerate", record, "-o", tmp_path / "again").status == 0


@pytest.mark.parametrize(
    ("undone", "displacement", "expected"),
    [(0.7, 0.04, False), (0.35, 0.04, True), (0.35, 0.025, False), (0.05, 0.001, True), (None, 0.1, False)],
)
def test_strong_deformations_need_a_good_fit(undone, displacement, expected):
    assert Fit("m", undone).doubtful(displacement) is expected
