"""Trainings that are stopped, killed, resumed with something else, or started in a folder of something else."""

import io
import json
import sys

import pytest
import torch
from command_helpers import PREPARED, run_prepared, scene, snapshot, start_process, write

from DRDMLib.models.metadata import ModelMetadata
from DRDMLib.models.model import load_model_file
from DRDMLib.training.checkpoint import CHECKPOINT
from DRDMLib.training.field_sampler import FieldSampler
from DRDMLib.training.run_file import CHECKPOINT_BEFORE, RUN_FILE

# Sends itself a signal, twice, at a moment in the middle of a step: before or after the CALL-th call of a function.
INTERRUPTED = """
import signal, torch
from DRDMLib.training import field_sampler, trainer
owners = {"draw": field_sampler.FieldSampler, "step": torch.optim.Adam, "_average_weights": trainer.Trainer,
          "state": field_sampler.MicroBatchSampler}
function = getattr(owners[NAME], NAME)
def watched(self, *arguments, **more):
    global CALL
    CALL -= 1
    if CALL == 0 and not AFTER:
        os.kill(os.getpid(), SIGNAL)
        os.kill(os.getpid(), SIGNAL)
    result = function(self, *arguments, **more)
    if CALL == 0 and AFTER:
        os.kill(os.getpid(), SIGNAL)
    return result
setattr(owners[NAME], NAME, watched)
"""

pytestmark = pytest.mark.usefixtures("no_pictures")
posix = pytest.mark.skipif(sys.platform == "win32", reason="needs fork and signals")
OPTIONS = ["--ndim", 2, "--size", 16, "--width", 8, "--hold-out", 2, "--batch", 2, "--device", "cpu"]


@pytest.fixture
def data(tmp_path):
    for number, name in enumerate("abc"):
        write(scene((24 + number, 22)), tmp_path / "data" / "images" / f"{name}.nii.gz")
    return tmp_path / "data"


def weights(run):
    return load_model_file(run / "model.safetensors", "cpu").network.state_dict()


def assert_same_weights(first, second):
    first, second = weights(first), weights(second)
    assert all(torch.equal(value, second[name]) for name, value in first.items())


def test_checkpoints_are_small_and_have_all_fields(tmp_path):
    """A pool of fields is stored by how it was generated, not as voxels."""
    metadata = ModelMetadata("m", "compact", 3, 32, noise_grids=[16, 8], control_size=32, amplitude=2.0)
    sampler = FieldSampler(metadata, torch.Generator().manual_seed(1), pool=10, renew=1)
    for _ in range(7):
        sampler.draw(4)
    stored = io.BytesIO()
    torch.save(sampler.state(), stored)
    assert len(stored.getvalue()) < 100_000 < sampler.fields.ddf.numel() * 4 / 10
    again = FieldSampler(metadata, torch.Generator(), pool=10, renew=1)
    again.load_state(torch.load(io.BytesIO(stored.getvalue()), weights_only=True))
    again.generator.set_state(sampler.generator.get_state())
    assert torch.equal(again.levels, sampler.levels) and again.draws == sampler.draws
    for _ in range(3):
        for one, two in zip(sampler.draw(3)[1], again.draw(3)[1], strict=True):
            assert torch.equal(one, two)


def test_checkpoints_are_at_most_six_times_the_model(drdm, data, tmp_path):
    words = ["train", data, "--ndim", 2, "--size", 64, "--hold-out", 2, "--batch", 2, "--device", "cpu"]
    assert drdm(*words, "--iterations", 3, "-o", tmp_path / "run").status == 0
    model, checkpoint = (tmp_path / "run" / name for name in ("model.safetensors", CHECKPOINT))
    assert checkpoint.stat().st_size < 6 * model.stat().st_size


# Function, its call, whether after it, and the signal.
MOMENTS = [
    (name, call, after, number)
    for name, number in (("draw", 2), ("step", 15), ("_average_weights", 2), ("state", 15))
    for call in (1, 2)
    for after in (False, True)
    # The second state is written only after the training has been interrupted at the first.
    if (name, call) != ("state", 2)
]


@posix
@pytest.mark.parametrize(
    ("moments", "steps"),
    [(MOMENTS[1:12:3] + MOMENTS[-1:], 12), pytest.param(MOMENTS, 25, marks=pytest.mark.long)],
    ids=["five", "all"],
)
def test_a_training_stopped_at_many_moments_ends_with_the_same_weights(data, tmp_path, moments, steps):
    words = ["train", data, *OPTIONS, "--iterations", steps, "-o"]
    stopped = [
        (f"NAME, CALL, AFTER, SIGNAL = {moment}\n{INTERRUPTED}", [*words, tmp_path / "cut", "--resume"])
        for moment in moments
    ]
    statuses, text = run_prepared(
        *stopped, ("", [*words, tmp_path / "cut", "--resume"]), ("", [*words, tmp_path / "whole"])
    )
    # Where only the end of the training writes the state, it is too late to stop.
    early = sum(moment[0] != "state" for moment in moments)
    assert statuses[:early] == [130] * early and statuses[-2:] == [0, 0], (statuses, text)
    assert_same_weights(tmp_path / "cut", tmp_path / "whole")


@pytest.mark.skipif(sys.platform == "win32", reason="a pipe that closes is tested by the module on Windows")
def test_a_training_whose_input_ends_stops_after_a_step(data, tmp_path, drdm):
    words = ["train", data, "-o", tmp_path / "cut", *OPTIONS, "--iterations", 60]
    process = start_process("", *words, "--progress", "json", code=PREPARED, stdin=True, DRDM_END_OF_INPUT="stop")
    for line in process.stdout:
        event = json.loads(line)
        if event["event"] == "progress" and event["task"] == "train":
            break
    process.communicate()
    assert process.returncode == 130
    assert (tmp_path / "cut" / CHECKPOINT).is_file()
    assert drdm(*words, "--resume").status == 0
    words[3] = tmp_path / "whole"
    assert drdm(*words).status == 0
    assert_same_weights(tmp_path / "cut", tmp_path / "whole")


def test_a_folder_of_something_else_is_left_alone(drdm, data, tmp_path):
    run = tmp_path / "mine"
    run.mkdir()
    for name in ("log.csv", "model.safetensors", "preview.png"):
        (run / name).write_text("years of work")
    before = snapshot(run)
    for more in ([], ["--resume"]):
        ended = drdm("train", data, "-o", run, *OPTIONS, "--iterations", 1, *more)
        assert ended.status == 2 and "choose" in ended.err and len(ended.err.splitlines()) == 1, ended.err
        assert snapshot(run) == before


# The process kills itself when its LEFT-th file in the folder is about to get its name.
KILLED = """
import signal
def watch(event, arguments):
    global LEFT
    if event == "os.rename" and str(arguments[1]).startswith(FOLDER):
        LEFT -= 1
        if LEFT == 0:
            os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(watch)
"""


@posix
def test_a_training_killed_before_its_first_checkpoint_starts_again(data, tmp_path, drdm):
    """Before the run file is there, and before the checkpoint is; without and with --resume."""
    runs = {tmp_path / "1": (1, []), tmp_path / "2": (2, []), tmp_path / "3": (2, ["--resume"])}
    words = ["train", data, *OPTIONS, "--iterations", 2, "-o"]
    commands = [(f"FOLDER, LEFT = {str(run)!r}, {left}\n{KILLED}", [*words, run]) for run, (left, _) in runs.items()]
    statuses, text = run_prepared(*commands)
    assert statuses == [-9] * 3, text
    for run, (left, more) in runs.items():
        assert (run / RUN_FILE).is_file() == (left > 1) and not (run / CHECKPOINT).exists()
        ended = drdm(*words, run, *more)
        assert ended.status == 0, ended.err
        assert not [path for path in run.iterdir() if path.name.startswith(".")]


def test_a_model_without_its_checkpoint_is_not_overwritten(drdm, data, tmp_path):
    words = ["train", data, "-o", tmp_path / "run", *OPTIONS, "--iterations", 1]
    assert drdm(*words).status == 0
    (tmp_path / "run" / CHECKPOINT).unlink()
    before = snapshot(tmp_path / "run")
    for more in ([], ["--resume"]):
        ended = drdm(*words, *more)
        assert ended.status == 2 and "no checkpoint any more" in ended.err
    assert snapshot(tmp_path / "run") == before


def test_something_else_is_not_resumed(drdm, data, tmp_path):
    run = tmp_path / "run"
    words = ["train", data, "-o", run, *OPTIONS, "--iterations", 2]
    assert drdm(*words).status == 0
    before = snapshot(run)

    def refused(*more):
        ended = drdm(*words, *more, "--resume")
        assert ended.status == 2 and len(ended.err.splitlines()) == 1, ended.err
        assert snapshot(run) == before
        return ended.err

    assert "seed 0, not 5" in refused("--seed", 5)
    assert "rotation" in refused("--rotation", 3)
    assert "batch 2, not 1" in refused("--batch", 1)
    assert "hold out 2, not 3" in refused("--hold-out", 3)
    assert "image padding" in refused("--outside", "zeros")
    image = data / "images" / "b.nii.gz"
    kept = image.read_bytes()
    write(scene((31, 27)), image)
    assert "changed: 'b'" in refused()
    image.rename(data / "images" / "d.nii.gz")
    assert "new: 'd'; missing: 'b'" in refused()
    (data / "images" / "d.nii.gz").unlink()
    image.write_bytes(kept)
    # A training of an older version has no run file; its settings are in the checkpoint.
    (run / RUN_FILE).unlink()
    before = snapshot(run)
    assert "seed" in refused("--seed", 5)
    assert drdm(*words, "--resume").status == 0
    # Its length and the learning rate may change.
    longer = ["--iterations", 3, "--checkpoint-minutes", 1, "--learning-rate", 0.001]
    assert drdm(*words[:-2], *longer, "--resume").status == 0


@pytest.mark.parametrize("name", [CHECKPOINT, RUN_FILE])
def test_a_training_continues_after_a_power_cut(drdm, data, tmp_path, name):
    """An empty checkpoint: the one before is used. An empty run file: the checkpoint says what it is."""
    words = ["train", data, *OPTIONS, "--checkpoint-minutes", 0.0000001, "-o"]
    assert drdm(*words, tmp_path / "cut", "--iterations", 3).status == 0
    assert (tmp_path / "cut" / CHECKPOINT_BEFORE).is_file()
    (tmp_path / "cut" / name).write_bytes(b"")
    ended = drdm(*words, tmp_path / "cut", "--iterations", 6, "--resume")
    assert ended.status == 0 and "is damaged; the training continues from" in ended.err, ended.err
    assert drdm(*words, tmp_path / "whole", "--iterations", 6).status == 0
    assert_same_weights(tmp_path / "cut", tmp_path / "whole")


def test_two_damaged_checkpoints_are_an_error(drdm, data, tmp_path):
    words = ["train", data, *OPTIONS, "--checkpoint-minutes", 0.0000001, "-o", tmp_path / "run", "--iterations", 2]
    assert drdm(*words).status == 0
    for name in (CHECKPOINT, CHECKPOINT_BEFORE):
        (tmp_path / "run" / name).write_bytes(b"")
    ended = drdm(*words, "--resume")
    assert ended.status == 2 and "is damaged" in ended.err
