"""``drdm nnunet``, and the trainer itself where nnU-Net is installed."""

import importlib.metadata
import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from command_helpers import boxes, scene, write

from DRDMLib.loaders import FieldBank, nnunet_install

FILE = "drdm_nnunet_trainer.py"


@pytest.fixture
def nnunet(tmp_path, monkeypatch):
    """A package that looks like nnU-Net."""
    monkeypatch.delenv("nnUNet_extTrainer", raising=False)
    for name in [name for name in sys.modules if name.split(".")[0] == "nnunetv2"]:
        monkeypatch.delitem(sys.modules, name)
    package = tmp_path / "site" / "nnunetv2"
    variants = package / "training" / "nnUNetTrainer" / "variants"
    variants.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "paths.py").write_text("nnUNet_extTrainer = None")
    monkeypatch.syspath_prepend(package.parent)
    return SimpleNamespace(package=package, variants=variants)


def test_the_trainer_is_written_and_removed(nnunet, drdm, tmp_path):
    done = drdm("nnunet", "install")
    path = tmp_path / "drdm-home" / "nnunet" / FILE
    assert done.status == 0 and path.is_file()
    assert "nnUNet_extTrainer" in done.err and str(path.parent) in done.err.splitlines()[-1]
    assert drdm("nnunet", "install").status == 0
    assert drdm("nnunet", "remove").status == 0 and not path.exists()
    again = drdm("nnunet", "remove")
    assert again.status == 2 and "nothing to remove" in again.err


def test_the_folder_of_the_variable_is_used(nnunet, drdm, tmp_path, monkeypatch):
    folders = [tmp_path / "mine", tmp_path / "others"]
    monkeypatch.setenv("nnUNet_extTrainer", os.pathsep.join(map(str, folders)))
    done = drdm("nnunet", "install")
    assert (folders[0] / FILE).is_file() and len(done.err.splitlines()) == 1
    assert drdm("nnunet", "install", "--to", folders[1]).status == 0
    assert drdm("nnunet", "remove").status == 0
    assert not (folders[0] / FILE).exists() and not (folders[1] / FILE).exists()


def test_an_older_nnunet_gets_it_among_its_variants(nnunet, drdm):
    (nnunet.package / "paths.py").write_text("nnUNet_raw = None")
    done = drdm("nnunet", "install")
    assert (nnunet.variants / FILE).is_file() and len(done.err.splitlines()) == 1
    assert drdm("nnunet", "remove").status == 0 and not (nnunet.variants / FILE).exists()


def test_a_file_of_others_stays(nnunet, refused, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / FILE).write_text("mine = 1")
    for action in ("install", "remove"):
        refused("nnunet", action, "--to", tmp_path / "mine", says="was not written by DRDM")


def test_a_missing_or_old_nnunet_is_said(nnunet, refused, monkeypatch):
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "2.5.1")
    refused("nnunet", "install", says="nnU-Net 2.5.1 is too old")
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "nnunetv2" else found(name))
    refused("nnunet", "install", says="nnU-Net v2 is not installed in the environment of 'drdm'")


def test_the_file_says_what_is_missing_without_this_package(nnunet, drdm, tmp_path):
    """nnU-Net imports every file in its folders, so it must not fail where DRDM is gone."""
    assert drdm("nnunet", "install", "--to", tmp_path / "mine").status == 0
    code = (
        "import sys; sys.modules['DRDMLib'] = None; import drdm_nnunet_trainer as made; "
        "print(hasattr(made, 'nnUNetTrainerDRDM'))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path / "mine", capture_output=True, encoding="utf-8", timeout=60
    )
    assert done.stdout.strip() == "False" and "needs DRDM in this environment" in done.stderr


# Fields for a dataset.


@pytest.fixture
def raw(tmp_path, monkeypatch):
    dataset = tmp_path / "raw" / "Dataset007_Drawn"
    write(scene(), dataset / "imagesTr" / "one_0000.nii.gz")
    write(boxes(scene()), dataset / "labelsTr" / "one.nii.gz")
    monkeypatch.setenv("nnUNet_raw", str(tmp_path / "raw"))
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path / "preprocessed"))
    return dataset


def test_fields_are_made_where_the_trainer_looks(raw, drdm, tmp_path, tiny_models):
    more = ("--model", tiny_models[3], "--steps", "1", "--levels", "20", "40", "--copies", "1")
    done = drdm("nnunet", "prepare", "7", *more)
    assert done.status == 0, done.err
    assert "2 fields for each of 1 case" in done.err
    bank = FieldBank(tmp_path / "preprocessed" / raw.name / nnunet_install.BANK)
    assert bank.names == ["one"] and bank.count("one") == 2


def test_the_dataset_is_found_by_number_name_and_folder(raw, tmp_path):
    for text in ("7", "007", raw.name, str(raw)):
        assert nnunet_install.raw_dataset(text) == raw


@pytest.mark.parametrize(
    ("dataset", "variable", "says"),
    [
        ("8", "", "there is none"),
        ("Dataset008_Other", "", "there is none"),
        ("7", "nnUNet_raw", "is not a folder; give the folder of the dataset, or set nnUNet_raw"),
        ("7", "nnUNet_preprocessed", "nnUNet_preprocessed is not set"),
    ],
)
def test_what_is_wrong_with_a_dataset_is_said(raw, refused, monkeypatch, dataset, variable, says):
    if variable:
        monkeypatch.delenv(variable)
    refused("nnunet", "prepare", dataset, says=says)


def test_two_datasets_of_one_number_are_refused(raw, refused, tmp_path):
    (tmp_path / "raw" / "Dataset007_Again").mkdir()
    refused("nnunet", "prepare", "7", says="there is several: 'Dataset007_Again', 'Dataset007_Drawn'")


# The trainer.


class Trainer:
    """What the deformations use of nnU-Net's trainer."""

    num_epochs, current_epoch = 100, 0
    plans_manager = SimpleNamespace(dataset_name="Dataset007_Drawn", transpose_forward=[0, 1, 2])

    def __init__(self, folder):
        self.preprocessed_dataset_folder_base, self.said = str(folder), []

    def get_tr_and_val_datasets(self):
        return SimpleNamespace(identifiers=["one"]), SimpleNamespace(identifiers=["one"])

    def on_train_epoch_start(self):
        self.said.append("epoch")

    def print_to_log_file(self, text):
        self.said.append(text)


@pytest.fixture
def trainer(tmp_path, monkeypatch):
    pytest.importorskip("nnunetv2")
    from DRDMLib.loaders.nnunet_trainer import DRDMDeformations

    for name in ("SHARE", "RAMP", "BANK"):
        monkeypatch.delenv(f"DRDM_NNUNET_{name}", raising=False)
    return type("Both", (DRDMDeformations, Trainer), {})(tmp_path / "preprocessed" / "Dataset007_Drawn")


def test_the_share_rises_over_the_first_epochs(trainer, monkeypatch):
    assert [trainer.share_in(epoch) for epoch in (0, 5, 10, 99)] == [0, 0.25, 0.5, 0.5]
    monkeypatch.setenv("DRDM_NNUNET_SHARE", "0.8")
    monkeypatch.setenv("DRDM_NNUNET_RAMP", "0")
    assert trainer.share_in(0) == 0.8


def test_a_share_that_is_no_fraction_is_refused(trainer, monkeypatch):
    from DRDMLib.errors import SettingError

    for text in ("half", "1.5", "nan"):
        monkeypatch.setenv("DRDM_NNUNET_SHARE", text)
        with pytest.raises(SettingError, match="DRDM_NNUNET_SHARE is"):
            trainer.share_in(3)


def test_a_missing_bank_is_said(trainer):
    from DRDMLib.errors import SettingError

    with pytest.raises(SettingError, match="make them with 'drdm nnunet prepare Dataset007_Drawn'"):
        trainer.get_tr_and_val_datasets()


def test_nnunet_finds_the_trainer(tmp_path, monkeypatch):
    pytest.importorskip("nnunetv2")
    from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

    monkeypatch.setenv("nnUNet_extTrainer", str(tmp_path))
    assert nnunet_install.install() == Path(tmp_path) / FILE
    found = recursive_find_trainer_class_by_name("nnUNetTrainerDRDM")
    assert found.__module__ == "DRDMLib.loaders.nnunet_trainer"
