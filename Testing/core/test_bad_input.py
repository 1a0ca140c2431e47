"""Invalid options, folders, weights and datasets: the command prints one clear line and changes no file."""

import json
import os
import pickle
import sys

import numpy as np
import pytest
import safetensors.torch
import SimpleITK as sitk
import torch
from command_helpers import array_of, boxes, check_refusal, run_process, scene, snapshot, write

from DRDMLib.models import catalogue
from DRDMLib.models.model import ModelMetadata, load_model_file, save_model

# Options.


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--level", "bold"], "--level.*subtle, medium, strong"),
        (["--level", "4.5"], "--level.*a number from 0 to 79"),
        (["--level", "-3"], "--level.*a number from 0 to 79"),
        (["--level", "80"], "level 80 is out of range.*79"),
        (["--level", "1000"], "level 1000 is out of range.*79"),
        (["--count", "0"], "--count.*out of range"),
        (["--count", "-1"], "--count.*out of range"),
        (["--count", "many"], "--count.*whole number"),
        (["--steps", "0"], "--steps.*out of range"),
        (["--seed", "-1"], "--seed.*out of range"),
        (["--seed", str(2**31)], "--seed.*out of range"),
        (["--pose", "-0.5"], "Pose -0.5 is out of range"),
        (["--pose", "3"], "Pose 3 is out of range"),
        (["--pose", "much"], "--pose"),
        (["--plane", "oblique"], "--plane.*oblique"),
        (["--device", "toaster"], "device 'toaster' is not known"),
        (["--device", "cuda:99"], "device 'cuda:99' is not available on this computer"),
        (["--colour", "red"], "unrecognized arguments: --colour"),
        (["--progress", "loud"], "--progress"),
    ],
    ids=lambda v: " ".join(v) if isinstance(v, list) else "",
)
def test_option_out_of_range(deform_refused, scan, options, says):
    deform_refused(scan, *options, says=says)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_missing_device(deform_refused, scan):
    deform_refused(scan, "--device", "cuda", says="device 'cuda' is not available on this computer")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "COMMAND"),
        (["melt"], "melt"),
        (["deform"], "IMAGE"),
        (["deform", "scan.nii.gz"], "--output"),
        (["models", "info"], "which model"),
        (["models", "fetch"], "which model"),
        (["models", "eat"], "eat"),
        (["models", "info", "no-such-model"], "no model 'no-such-model'"),
        (["models", "fetch", "no-such-model"], "no model 'no-such-model'"),
    ],
    ids=" ".join,
)
def test_wrong_usage(refused, arguments, says):
    refused(*arguments, says=says)


def test_level_out_of_range_of_the_shipped_model(refused, scan, tmp_path):
    if not catalogue.default_entry(3).available:
        pytest.skip("no shipped 3D model")
    refused("deform", scan, "-o", tmp_path / "out", "--level", 80, says="level 80 is out of range")


# Output folders.


def test_output_folder_that_is_not_empty(refused, scan, tmp_path, tiny_models):
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.txt").write_text("years of work")
    refused("deform", scan, "-o", out, "--level", 2, "--model", tiny_models[3], says="not empty")


def test_output_that_is_a_file(refused, scan, tmp_path, tiny_models):
    out = tmp_path / "out"
    out.write_text("years of work")
    refused("deform", scan, "-o", out, "--level", 2, "--model", tiny_models[3], says="is a file")


def test_output_under_a_file(refused, scan, tmp_path, tiny_models):
    (tmp_path / "notes.txt").write_text("years of work")
    out = tmp_path / "notes.txt" / "out"
    refused("deform", scan, "-o", out, "--level", 2, "--model", tiny_models[3], says="cannot be written")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /proc")
def test_output_where_no_folder_can_be_made(refused, scan, tiny_models):
    refused("deform", scan, "-o", "/proc/drdm-out", "--level", 2, "--model", tiny_models[3], says="cannot be written")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_output_in_a_read_only_folder(refused, scan, tmp_path, tiny_models):
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o500)
    refused("deform", scan, "-o", locked / "out", "--level", 2, "--model", tiny_models[3], says="cannot be written")
    refused("deform", scan, "-o", locked, "--level", 2, "--model", tiny_models[3], says="cannot be written")


# Limits the size of files, as if the disk were full.
FULL_DISK = """
import resource, signal, sys
from DRDMLib import cli
import DRDMLib.cli.commands
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
limit = int(sys.argv.pop(1))
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
sys.exit(cli.main(sys.argv[1:]))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs setrlimit")
@pytest.mark.parametrize("limit", [10, 30000], ids=["no header", "no field"])
def test_full_disk(scan, tmp_path, tiny_models, limit):
    before = snapshot(tmp_path)
    out = tmp_path / "out"
    ended = run_process(
        limit, "deform", scan, "-o", out, "--level", 2, "--count", 2, "--model", tiny_models[3], code=FULL_DISK
    )
    # The model is named before.
    check_refusal(ended.returncode, ended.stderr.splitlines()[-1], "disk is full")
    after = snapshot(tmp_path)
    assert {path: after[path] for path in before} == before
    assert not [p for p in after if p.name.startswith(".")]
    for path in out.glob("*.nii.gz"):
        array_of(path)
    assert not (out / "report.json").exists()


@pytest.mark.skipif(sys.platform == "win32", reason="needs setrlimit")
def test_full_disk_while_training(tmp_path):
    for k in range(2):
        write(scene((20, 20 + k)), tmp_path / "images" / f"{k}.nii.gz")
    options = ["--ndim", 2, "--size", 16, "--width", 8, "--iterations", 2, "--hold-out", 2]
    run = tmp_path / "run"
    ended = run_process(10**6, "train", tmp_path, "-o", run, *options, code=FULL_DISK)
    check_refusal(ended.returncode, ended.stderr, "disk is full")
    assert not [p for p in snapshot(run) if p.name.startswith(".")]
    assert not (run / "model.safetensors").exists()


# Weights.


class Trap:
    """Creates a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f'touch "{self.path}"',)


@pytest.mark.parametrize("name", ["trap.pth", "trap.safetensors", "trap.pt"])
@pytest.mark.parametrize("how", ["pickle", "torch"])
def test_weights_with_code_are_refused(deform_refused, scan, tmp_path, name, how):
    sprung = tmp_path / "sprung"
    path = tmp_path / name
    if how == "pickle":
        path.write_bytes(pickle.dumps(Trap(sprung)))
    else:
        torch.save({"conv_out.weight": Trap(sprung), "time_embed.weight": torch.zeros(80, 100)}, path)
    deform_refused(scan, model=path, says="refused|not a readable")
    assert not sprung.exists()


def damaged(path, good):
    """Write a damaged model file; its name determines the damage."""
    data = bytearray(good.read_bytes())
    if path.stem == "corrupt":
        data[:8] = b"\xff" * 8
    elif path.stem == "header":
        data[20:40] = b"?" * 20
    elif path.stem == "truncated":
        del data[len(data) // 2 :]
    elif path.stem == "text":
        data = b"These are not the weights that you are looking for.\n" * 20
    elif path.stem == "empty":
        data = b""
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize("stem", ["corrupt", "header", "truncated", "text", "empty"])
@pytest.mark.parametrize("use", ["deform", "info"])
def test_damaged_weights(refused, scan, tmp_path, tiny_models, stem, suffix, use):
    path = damaged(tmp_path / f"{stem}{suffix}", tiny_models[3])
    says = "not a readable|damaged"
    if use == "deform":
        refused("deform", scan, "-o", tmp_path / "out", "--model", path, says=says)
    else:
        refused("models", "info", path, says=says)


def test_safetensors_without_metadata(deform_refused, scan, tmp_path):
    path = tmp_path / "plain.safetensors"
    safetensors.torch.save_file({"a": torch.zeros(3)}, path)
    deform_refused(scan, model=path, says="not a DRDM model")


@pytest.mark.parametrize(
    "described",
    ["", "[1, 2]", "{", '"text"', '{"ndim": 3, "size": 16, "architecture": "compact", "timesteps": "many"}'],
)
def test_safetensors_with_invalid_metadata(deform_refused, scan, tmp_path, described):
    path = tmp_path / "odd.safetensors"
    safetensors.torch.save_file({"a": torch.zeros(3)}, path, metadata={"drdm": described})
    deform_refused(scan, model=path, says="model|options")


@pytest.mark.parametrize(
    "wrong",
    [{"ndim": 4}, {"size": 20}, {"size": -8}, {"architecture": "oracle"}, {"options": {"width": 16}}, {"ndim": 2}]
    + [{"options": {"colour": 1}}, {"options": {"width": 0}}, {"timesteps": 0}, {"geometry": "round"}],
    ids=str,
)
def test_safetensors_with_metadata_that_do_not_fit_the_weights(deform_refused, scan, tmp_path, tiny_models, wrong):
    """For example, metadata of another dimension than the weights."""
    good = load_model_file(tiny_models[3], "cpu")
    path = tmp_path / "odd.safetensors"
    save_model(path, good.network, ModelMetadata(**(vars(good.metadata) | wrong)))
    deform_refused(scan, model=path, says="model|architecture|weights|options")


def test_weights_with_nan(deform_refused, scan, tmp_path, tiny_models):
    good = load_model_file(tiny_models[3], "cpu")
    torch.nn.init.constant_(good.network.out.weight, float("nan"))
    path = tmp_path / "nan.safetensors"
    save_model(path, good.network, good.metadata)
    deform_refused(scan, model=path, says="weights|model")


def test_volume_model_on_a_2d_image(deform_refused, flat_scan):
    deform_refused(flat_scan, says="2D model")


def test_volume_model_on_a_single_slice(deform_refused, tmp_path):
    deform_refused(write(scene((26, 22, 1)), tmp_path / "slice.nii.gz"), says="2D model")


@pytest.mark.parametrize("name", ["no-such-model", "no/such/model.safetensors", "no-such.pth", ""])
def test_missing_model(deform_refused, scan, name):
    deform_refused(scan, model=name, says="no model")


def test_model_before_its_download(deform_refused, scan):
    deform_refused(scan, model="published-lung-ct-3d", says="drdm models fetch published-lung-ct-3d")


# The other commands.


def test_evaluate_an_image(refused, scan):
    refused("evaluate", scan, says="not a displacement field")


@pytest.mark.parametrize("name", ["none.nii.gz", "text.nii.gz", "half.nii.gz", "empty.nii.gz", "folder"])
def test_evaluate_an_unreadable_file(refused, tmp_path, name):
    path = tmp_path / name
    if name.startswith("text"):
        path.write_text("text\n" * 100)
    elif name.startswith("half"):
        write(sitk.Compose([scene(pixel=sitk.sitkFloat32)] * 3), path)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif name.startswith("empty"):
        path.touch()
    elif name == "folder":
        path.mkdir()
    refused("evaluate", path, says="field")


def test_evaluate_a_field_with_nan(refused, tmp_path):
    """Its metrics would not be valid JSON."""
    array = np.zeros((8, 9, 10, 3), np.float32)
    array[2, 3, 4] = np.nan
    refused("evaluate", write(sitk.GetImageFromArray(array, isVector=True), tmp_path / "field.nrrd"), says="NaN")


@pytest.fixture
def dataset(tmp_path):
    """Two 2D images with labels."""
    folder = tmp_path / "data"
    for k in range(2):
        image = scene((24, 20 + k))
        write(image, folder / "images" / f"case{k}.nii.gz")
        write(boxes(image), folder / "labels" / f"case{k}.nii.gz")
    return folder


@pytest.mark.parametrize("command", ["augment", "synthesize", "train"])
@pytest.mark.parametrize("kind", ["missing", "empty folder", "folder of text", "empty list", "list of nothing"])
def test_dataset_without_images(refused, tmp_path, tiny_models, command, kind):
    path = tmp_path / "data.txt" if "list" in kind else tmp_path / "data"
    if "folder" in kind:
        (path / "images").mkdir(parents=True)
    if kind == "folder of text":
        (path / "images" / "readme.txt").write_text("none")
    if "list" in kind:
        path.write_text("none.nii.gz\n" if kind == "list of nothing" else "# nothing\n\n")
    more = ["--ndim", 2, "--size", 16, "--iterations", 1] if command == "train" else ["--model", tiny_models[2]]
    refused(command, path, "-o", tmp_path / "out", *more, says="there (is|are) no|None of the")


@pytest.mark.parametrize(
    ("command", "options", "says"),
    [
        ("augment", ["--levels", "80"], "level 80 is out of range"),
        ("augment", ["--levels", "bold"], "subtle, medium, strong"),
        ("augment", ["--copies", "0"], "out of range"),
        ("augment", ["--model", "no-such-model"], "no model"),
        ("augment", ["--device", "toaster"], "toaster"),
        ("synthesize", ["--levels", "40"], "strong:medium or 40:24"),
        ("synthesize", ["--levels", "20:80"], "level 80 is out of range"),
        ("synthesize", ["--copies", "0"], "out of range"),
        ("synthesize", ["--steps", "0"], "out of range"),
    ],
)
def test_dataset_options_out_of_range(refused, dataset, tmp_path, tiny_models, command, options, says):
    refused(command, dataset, "-o", tmp_path / "out", "--model", tiny_models[2], *options, says=says)


def test_augment_needs_labels(refused, tmp_path, tiny_models):
    write(scene((24, 20)), tmp_path / "data" / "images" / "case.nii.gz")
    refused("augment", tmp_path / "data", "-o", tmp_path / "out", "--model", tiny_models[2], says="no label")


@pytest.mark.parametrize("command", ["augment", "synthesize", "train"])
def test_dataset_command_with_a_folder_that_is_not_empty(refused, dataset, tmp_path, tiny_models, command):
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.txt").write_text("years of work")
    more = ["--ndim", 2, "--size", 16, "--iterations", 1] if command == "train" else ["--model", tiny_models[2]]
    refused(command, dataset, "-o", out, *more, says="not empty")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--size", "20"], "--size 20 is not a multiple of 8"),
        (["--size", "8"], "--size.*out of range"),
        (["--ndim", "4"], "--ndim"),
        (["--ndim", "3"], "--ndim 2"),
        (["--iterations", "0"], "--iterations.*out of range"),
        (["--minutes", "-1"], "--minutes.*out of range"),
        (["--minutes", "nan"], "--minutes.*out of range"),
        (["--width", "11"], "width"),
        (["--rotation", "nan"], "--rotation"),
        (["--describe", "colour=red"], "--describe"),
        (["--device", "toaster"], "toaster"),
    ],
    ids=lambda v: " ".join(v) if isinstance(v, list) else "",
)
def test_training_option_out_of_range(refused, dataset, tmp_path, options, says):
    start = ["--ndim", 2, "--size", 16, "--width", 8, "--iterations", 1]
    refused("train", dataset, "-o", tmp_path / "run", *start, *options, says=says)


def test_training_in_the_folder_of_another_run(refused, dataset, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "checkpoint.pt").write_bytes(b"days of work")
    refused("train", dataset, "-o", run, "--ndim", 2, "--size", 16, says="--resume")


def test_resuming_from_a_damaged_checkpoint(refused, dataset, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "checkpoint.pt").write_bytes(b"days of work")
    more = ["--ndim", 2, "--size", 16, "--width", 8, "--iterations", 1, "--resume"]
    refused("train", dataset, "-o", run, *more, says="checkpoint")


# The same in a separate process, whose output must not contain messages of libraries.


@pytest.mark.parametrize("case", ["truncated", "trap", "not empty"])
def test_invalid_input_in_a_separate_process(scan, tmp_path, tiny_models, case):
    image, model, out, says = scan, tiny_models[3], tmp_path / "out", "incomplete|cannot be read"
    if case == "truncated":
        image = write(scene(), tmp_path / "cut.mha")
        image.write_bytes(image.read_bytes()[:-5000])
    elif case == "trap":
        model, says = tmp_path / "trap.pth", "refused"
        model.write_bytes(pickle.dumps(Trap(tmp_path / "sprung")))
    else:
        out, says = tmp_path, "not empty"
    before = snapshot(tmp_path)
    ended = run_process("deform", image, "-o", out, "--model", model)
    check_refusal(ended.returncode, ended.stderr, says)
    assert ended.stdout == ""
    assert snapshot(tmp_path) == before


def test_error_and_end_are_the_last_json_events(drdm, tmp_path):
    """With --progress json, the last lines on standard output are the error and the exit status."""
    outcome = drdm("deform", tmp_path / "none.nii.gz", "-o", tmp_path / "out", "--progress", "json")
    last, end = map(json.loads, outcome.out.splitlines()[-2:])
    assert (last["event"], end) == ("error", {"event": "end", "status": 2})
    assert "There is no image" in last["text"]
