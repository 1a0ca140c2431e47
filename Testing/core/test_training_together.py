"""Training with several processes: losses and weights as with one process, checkpoints, restarts after a failure."""

import csv
import signal
import subprocess
import sys

import pytest
import SimpleITK as sitk
import torch
from command_helpers import PREPARED, environment, run_prepared, scene, start_as_torchrun, write

from DRDMLib.errors import SettingError
from DRDMLib.models.model import ModelMetadata, load_model_file
from DRDMLib.runtime.distributed import ProcessInfo
from DRDMLib.training import TrainingConfig, train
from DRDMLib.training.trainer import Trainer, training_step

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("Bilder ä")
    for k in range(5):
        write(scene((24 + k, 22, 20), sitk.sitkFloat32), folder / "images" / f"{k}.nii.gz")
    return folder


def options(data, run, *more):
    sizes = [
        "--ndim",
        2,
        "--size",
        16,
        "--width",
        8,
        "--batch",
        4,
        "--iterations",
        12,
        "--hold-out",
        3,
        "--device",
        "cpu",
    ]
    return [*map(str, ["train", data, "-o", run, *sizes, *more])]


def train_together(data, run, *more):
    """Train with two processes that have the environment of torchrun."""
    for process in start_as_torchrun(2, "", *options(data, run, *more), code=PREPARED):
        errors = process.communicate()[1]
        assert process.returncode == 0, errors


def train_alone(data, run, *more, prelude=""):
    statuses, errors = run_prepared((prelude, options(data, run, *more)))
    assert statuses == [0], errors


def log_of(run):
    return list(csv.DictReader((run / "log.csv").open(encoding="utf-8")))


def weights(run):
    return load_model_file(run / "model.safetensors", "cpu").network.state_dict()


def largest_difference(one, other):
    """Largest difference between the weights of two runs."""
    theirs = weights(other)
    return max(float((value - theirs[name]).abs().max()) for name, value in weights(one).items())


# One process computes the micro-batches of two.
TWO_MICRO_BATCHES = """
from dataclasses import replace
from DRDMLib.cli import train
config_from = train.config_from
train.config_from = lambda *arguments: replace(config_from(*arguments), micro_batches=2)
"""


@pytest.mark.parametrize("target", ["whole", "step"])
def test_two_processes_train_as_one_with_the_same_batch(data, tmp_path, target):
    train_together(data, tmp_path / "two", "--target", target)
    train_alone(data, tmp_path / "one", "--target", target, prelude=TWO_MICRO_BATCHES)
    # The result if the second process had no effect.
    train_alone(data, tmp_path / "half", "--target", target, "--batch", 2)
    (one_log,), (two_log,), (half_log,) = (log_of(tmp_path / name) for name in ("one", "two", "half"))
    for key in ("loss", "distance", "validation"):
        # Another order of the sums of gradients causes rounding errors: a few times 1e-7 in each of 12 steps.
        assert float(one_log[key]) == pytest.approx(float(two_log[key]), rel=1e-4), key
    assert float(one_log["loss"]) != pytest.approx(float(half_log["loss"]), rel=1e-3)
    # Adam divides by the size of the gradient, so rounding has an effect where a gradient is nearly zero.
    assert largest_difference(tmp_path / "one", tmp_path / "two") < 0.1 * largest_difference(
        tmp_path / "one", tmp_path / "half"
    )
    written = load_model_file(tmp_path / "two" / "model.safetensors", "cpu").metadata.training
    assert (written["processes"], written["portions"], written["batch"], written["steps_done"]) == (2, 2, 4, 12)


def test_a_run_continues_with_another_number_of_processes(data, tmp_path):
    """Six steps with two processes and six with one give the same result as twelve with one."""
    train_together(data, tmp_path / "run", "--iterations", 6, "--checkpoint-minutes", 0.0001)
    # Those of the last checkpoint, and of the one before.
    streams = sorted(p.name for p in (tmp_path / "run" / "streams").iterdir())
    assert streams[-1] == "000000006-001.pt" and len(streams) <= 2
    train_alone(data, tmp_path / "run", "--resume")
    # The checkpoint before is the one that two processes have written.
    assert [p.name for p in (tmp_path / "run" / "streams").iterdir()] == ["000000006-001.pt"]
    train_alone(data, tmp_path / "one", prelude=TWO_MICRO_BATCHES)
    assert float(log_of(tmp_path / "run")[-1]["validation"]) == pytest.approx(
        float(log_of(tmp_path / "one")[-1]["validation"]), rel=0.05
    )
    assert log_of(tmp_path / "run")[-1]["step"] == "12"


# The second process kills itself once, at its 5th step.
FAILING = """
import os, signal, sys
sys.modules["matplotlib"] = None
from DRDMLib import cli
from DRDMLib.training.trainer import Trainer
advance = Trainer.advance
def stumble(self, images):
    if self.step == 5 and os.environ["RANK"] == "1" and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
        os.kill(os.getpid(), getattr(signal, "SIGKILL", signal.SIGTERM))
    return advance(self, images)
Trainer.advance = stumble
sys.exit(cli.main(sys.argv[1:]))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="torchrun's restarts need a POSIX system")
@pytest.mark.parametrize("torchrun", [False, pytest.param(True, marks=pytest.mark.long)])
def test_all_processes_continue_from_the_last_checkpoint_after_a_failure(data, tmp_path, torchrun):
    """With torchrun, and as it does: it ends the other process, and starts both again."""
    code = tmp_path / "failing.py"
    code.write_text(FAILING, encoding="utf-8")
    often = ["--checkpoint-minutes", "0.0000001"]
    words = options(data, tmp_path / "run", *often)
    if torchrun:
        done = subprocess.run(
            [*TORCHRUN, "--max-restarts", "1", str(code), *words],
            capture_output=True,
            encoding="utf-8",
            # Otherwise PyTorch keeps its store over a restart, with the addresses of terminated processes.
            env=environment() | {"OMP_NUM_THREADS": "1", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"},
            timeout=240,
            check=False,
        )
        assert done.returncode == 0, done.stderr
    else:
        first, second = start_as_torchrun(2, *words, code=FAILING, TORCHELASTIC_RESTART_COUNT="0")
        second.communicate()
        assert second.returncode == -signal.SIGKILL
        first.send_signal(signal.SIGTERM)
        first.communicate()
        assert first.returncode != 0
        for process in start_as_torchrun(2, *words, code=FAILING, TORCHELASTIC_RESTART_COUNT="1"):
            errors = process.communicate()[1]
            assert process.returncode == 0, errors
    steps = [int(row["step"]) for row in log_of(tmp_path / "run")]
    assert steps[:5] == [1, 2, 3, 4, 5] and steps[-1] == 12
    train_together(data, tmp_path / "straight", *often)
    a, b = weights(tmp_path / "run"), weights(tmp_path / "straight")
    assert all(torch.equal(value, b[name]) for name, value in a.items())


def metadata():
    return ModelMetadata("t", "compact", 2, 16, options={"width": 8}, amplitude=2.0)


@pytest.mark.parametrize(
    ("batch", "micro_batches", "world", "says"), [(4, 3, 1, "shared equally by 3"), (6, 3, 2, "cannot be shared by 2")]
)
def test_a_batch_that_cannot_be_shared_equally_is_refused(batch, micro_batches, world, says):
    config = TrainingConfig(steps=1, batch=batch, micro_batches=micro_batches)
    with pytest.raises(SettingError, match=says):
        Trainer(metadata(), config, torch.device("cpu"), ProcessInfo(0, world))


def test_resuming_with_other_micro_batches_is_refused(tmp_path):
    images = torch.randint(0, 255, (4, 1, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    train(images, images[:0], metadata(), TrainingConfig(steps=1, batch=4, micro_batches=2), tmp_path, device="cpu")
    with pytest.raises(SettingError, match="among 2 processes"):
        train(images, images[:0], metadata(), TrainingConfig(steps=2, batch=4), tmp_path, device="cpu", resume=True)


def test_micro_batches_add_up_to_the_gradient_of_the_whole_batch():
    """Use the same images, fields and levels at once and in two micro-batches."""
    images = torch.randint(0, 255, (4, 1, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    config = TrainingConfig(steps=1, batch=4, micro_batches=2, clip=0.0)
    trainer = Trainer(metadata(), config, torch.device("cpu"))
    again = Trainer(metadata(), config, torch.device("cpu"))
    terms = trainer.advance(images)
    losses = []
    for sampler in again.samplers:
        batch = images[sampler.choose(len(images), 2)].float() / 255
        losses.append(training_step(again.network, batch, sampler.fields, again.loss, again._augment).total)
    loss = sum(losses) / 2
    loss.backward()
    assert float(terms.total) == pytest.approx(float(loss.detach()), rel=1e-6)
    for a, b in zip(trainer.network.parameters(), again.network.parameters(), strict=True):
        assert torch.allclose(a.grad, b.grad, atol=1e-7)
