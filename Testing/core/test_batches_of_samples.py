"""Samples of a run whose fields are drawn in batches, as on a GPU.

The tests let the CPU do so, too, and let the last bits of a field depend on the number of images in its batch: with the
tiny model they do not, with the shipped ones they do, as on GPUs.
"""

import json

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from command_helpers import scene, write
from production_helpers import LEVELS, RecordingReporter, make, records_of, result, settings_for, write_cases
from test_fallback import short_of_memory

from DRDMLib.errors import FallbackWarning, OutputError
from DRDMLib.io.datasets import Case
from DRDMLib.models.model import Model
from DRDMLib.production.batches import FieldBatches
from DRDMLib.production.limits import Limits
from DRDMLib.production.plan import AUGMENT, SYNTHESIZE, make_plan
from DRDMLib.production.regenerate import regenerate
from DRDMLib.production.run import RunRequest, produce
from DRDMLib.production.verify import verify
from DRDMLib.runtime import batches
from DRDMLib.runtime.distributed import ProcessInfo

SIZE = (18, 16, 14)
COPIES = 4
# Rounding, in mm; the fields move by several.
CLOSE = 1e-3
HOW = {AUGMENT: {"levels": ((40,),)}, SYNTHESIZE: {"levels": LEVELS[SYNTHESIZE], "split": (1, 0, 0)}}


@pytest.fixture
def rounding(monkeypatch):
    """Let the network round in another way for each number of images."""
    predict = Model.predict

    def rounded(self, image, *more, **how):
        return predict(self, image, *more, **how) * (1 + 1e-5 * len(image))

    monkeypatch.setattr(Model, "predict", rounded)


@pytest.fixture
def together(monkeypatch, rounding):
    """Let the CPU make up to three samples in a batch."""
    monkeypatch.setitem(batches.MOST, "cpu", 3)


@pytest.fixture
def data(tmp_path):
    """Two cases with real numbers as voxels, so that rounding of the fields is seen in them."""
    folder = write_cases(tmp_path / "data", size=SIZE)
    for path in (folder / "images").iterdir():
        write(sitk.ReadImage(str(path), sitk.sitkFloat32), path)
    return folder


def made(data, folder, model, command=AUGMENT, **more):
    return make(data, folder, model, command, **({"copies": COPIES} | HOW[command] | more))


def batches_in(folder):
    """Name of each sample -> copies of its batch, or none."""
    found = records_of(folder)
    return {name: one.get("batch", {}).get("copies") for name, one in found.items() if one["levels"]}


def ddf(folder, name):
    return sitk.GetArrayFromImage(sitk.ReadImage(str(folder / "displacementsTr" / f"{name}.nii.gz")))


@pytest.mark.parametrize("command", [AUGMENT, SYNTHESIZE])
def test_samples_are_those_of_single_ones(command, data, tmp_path, tiny_model_path, monkeypatch, rounding):
    made(data, tmp_path / "single", tiny_model_path, command)
    assert set(batches_in(tmp_path / "single").values()) == {None}
    monkeypatch.setitem(batches.MOST, "cpu", 3)
    made(data, tmp_path / "batches", tiny_model_path, command)
    found = batches_in(tmp_path / "batches")
    # The last of four copies is alone.
    for name, copies in found.items():
        assert copies == (None if name.endswith("003") else [0, 1, 2])
    assert verify(tmp_path / "batches") == []
    one, other = records_of(tmp_path / "batches"), records_of(tmp_path / "single")
    assert one.keys() == other.keys() and len(found) == 2 * COPIES
    for name in found:
        assert one[name]["seed"] == other[name]["seed"]
        assert abs(one[name]["item"]["metrics"]["mean_mm"] - other[name]["item"]["metrics"]["mean_mm"]) < CLOSE
        if command == SYNTHESIZE:
            assert np.abs(ddf(tmp_path / "batches", name) - ddf(tmp_path / "single", name)).max() < CLOSE


@pytest.mark.parametrize("command", [AUGMENT, SYNTHESIZE])
def test_processes_threads_and_resuming_change_no_bit(command, data, tmp_path, tiny_model_path, together):
    made(data, tmp_path / "1" / "set", tiny_model_path, command)
    whole = result(tmp_path / "1" / "set")
    for rank in (1, 0):
        made(data, tmp_path / "2" / "set", tiny_model_path, command, process=ProcessInfo(rank, 2))
    assert result(tmp_path / "2" / "set") == whole
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        made(data, tmp_path / "3" / "set", tiny_model_path, command)
    finally:
        torch.set_num_threads(threads)
    assert result(tmp_path / "3" / "set") == whole
    # In the middle of a batch.
    for name in batches_in(tmp_path / "1" / "set"):
        if name.endswith(("001", "002")):
            (tmp_path / "1" / "set" / "records" / f"{name}.json").unlink()
    _, reporter = made(data, tmp_path / "1" / "set", tiny_model_path, command, resume=True)
    assert len(reporter.items) == 4 and result(tmp_path / "1" / "set") == whole


class Stopping(RecordingReporter):
    def item(self, **values):
        super().item(**values)
        if len(self.items) == 2:
            raise KeyboardInterrupt


def test_a_run_is_stopped_in_a_batch_and_continued(data, tmp_path, tiny_model_path, together):
    made(data, tmp_path / "whole" / "set", tiny_model_path)
    request = RunRequest(data, tmp_path / "cut" / "set", model=str(tiny_model_path), device="cpu")
    with pytest.raises(KeyboardInterrupt):
        produce(request, settings_for(AUGMENT, copies=COPIES, **HOW[AUGMENT]), Stopping())
    assert 2 <= len(batches_in(tmp_path / "cut" / "set")) < 2 * COPIES
    made(data, tmp_path / "cut" / "set", tiny_model_path, resume=True)
    assert result(tmp_path / "cut" / "set") == result(tmp_path / "whole" / "set")


@pytest.mark.parametrize("command", [AUGMENT, SYNTHESIZE])
def test_a_sample_of_a_batch_is_regenerated_exactly(command, data, tmp_path, tiny_model_path, together, monkeypatch):
    made(data, tmp_path / "set", tiny_model_path, command)
    name = next(name for name, copies in batches_in(tmp_path / "set").items() if copies and name.endswith("001"))
    # What the record says counts, not what this device does now.
    monkeypatch.setitem(batches.MOST, "cpu", 1)
    path = tmp_path / "set" / "records" / f"{name}.json"
    again = regenerate(path, tmp_path / "again", model=str(tiny_model_path))
    assert not again.differences and not again.environment_differences and "image" in again.compared
    third = regenerate(tmp_path / "again" / "records" / path.name, tmp_path / "third", model=str(tiny_model_path))
    assert not third.differences
    # Alone it has other last bits, and says so.
    record = json.loads(path.read_text(encoding="utf-8"))
    assert record.pop("batch")["at_once"] == 3
    path.write_text(json.dumps(record), encoding="utf-8")
    alone = regenerate(path, tmp_path / "alone", model=str(tiny_model_path))
    assert "image" in alone.differences
    if command == SYNTHESIZE:
        assert np.abs(ddf(tmp_path / "alone", name) - ddf(tmp_path / "set", name)).max() < CLOSE


def test_attempts_are_batches_too(data, tmp_path, tiny_model_path, together):
    free = made(data, tmp_path / "free", tiny_model_path)[0]
    moved = sorted(one["item"]["metrics"]["mean_mm"] for one in free.done.values() if one["levels"])
    limits = Limits(folded=None, least_mm=moved[3], max_attempts=20)
    made(data, tmp_path / "set", tiny_model_path, limits=limits)
    records = records_of(tmp_path / "set")
    again = [name for name, one in records.items() if one.get("attempt") and one.get("batch")]
    assert again
    for name in again:
        path = tmp_path / "set" / "records" / f"{name}.json"
        assert not regenerate(path, tmp_path / f"again-{name}", model=str(tiny_model_path)).differences
    whole = result(tmp_path / "set")
    (tmp_path / "set" / "records" / f"{again[0]}.json").unlink()
    made(data, tmp_path / "set", tiny_model_path, limits=limits, resume=True)
    assert result(tmp_path / "set") == whole


def test_low_memory_is_in_the_record(data, tmp_path, tiny_model_path, together, monkeypatch):
    with monkeypatch.context() as limited, pytest.warns(FallbackWarning) as caught:
        short_of_memory(limited, 1)
        made(data, tmp_path / "set", tiny_model_path)
    # The second case knows of the first.
    assert sum("1 images at a time" in str(one.message) for one in caught) == 1
    records = records_of(tmp_path / "set")
    assert {one["batch"]["at_once"] for one in records.values() if "batch" in one} == {1}
    name = next(name for name, one in records.items() if "batch" in one)
    path = tmp_path / "set" / "records" / f"{name}.json"
    # With as much memory as now, all of the batch could be computed at a time.
    assert not regenerate(path, tmp_path / "again", model=str(tiny_model_path)).differences
    with monkeypatch.context() as limited, pytest.warns(FallbackWarning):
        record = json.loads(path.read_text(encoding="utf-8"))
        record["batch"]["at_once"] = 3
        path.write_text(json.dumps(record), encoding="utf-8")
        short_of_memory(limited, 1)
        other = regenerate(path, tmp_path / "other", model=str(tiny_model_path))
    assert other.environment_differences == ["images computed at a time were 3, are now 1"]


def test_an_odd_record_is_refused(data, tmp_path, tiny_model_path, together):
    made(data, tmp_path / "set", tiny_model_path)
    name = next(name for name, copies in batches_in(tmp_path / "set").items() if copies)
    path = tmp_path / "set" / "records" / f"{name}.json"
    record = json.loads(path.read_text(encoding="utf-8"))
    for batch in (
        {"copies": [5, 6, 7], "at_once": 3},
        {"copies": list(range(10**4)), "at_once": 3},
        {"copies": [0, 1], "at_once": 0},
        {"copies": "0", "at_once": 1},
        {"copies": [0, 1]},
        [],
    ):
        path.write_text(json.dumps(record | {"batch": batch}), encoding="utf-8")
        with pytest.raises(OutputError, match="batch"):
            regenerate(path, tmp_path / "again", model=str(tiny_model_path))


def test_a_sample_that_fails_does_not_lose_the_others(data, tmp_path, tiny_model_path, together, monkeypatch):
    from DRDMLib import samples
    from DRDMLib.errors import DRDMError

    finish = samples.finish
    seen = []

    def failing(drawn, image):
        seen.append(drawn.seed)
        if len(seen) == 2:
            raise DRDMError("This deformation cannot be made invertible.")
        return finish(drawn, image)

    monkeypatch.setattr(samples, "finish", failing)
    run, _ = made(data, tmp_path / "set", tiny_model_path)
    assert len(run.failures()) == 1 and len(seen) == 6
    assert sum(one["status"] == "done" and bool(one["levels"]) for one in run.done.values()) == 2 * COPIES - 1


def test_slices_and_other_scans_are_made_alone(tmp_path, tiny_model_path, tiny_model_2d_path, together):
    for number in range(2):
        write(scene((18, 16, 7 + number)), tmp_path / "stacks" / "images" / f"{number}.nii.gz")
        write(
            sitk.Cast(scene((18, 16, 7 + number)) > 60, sitk.sitkUInt8),
            tmp_path / "stacks" / "labels" / f"{number}.nii.gz",
        )
    made(tmp_path / "stacks", tmp_path / "sliced", tiny_model_2d_path, copies=2)
    assert set(batches_in(tmp_path / "sliced").values()) == {None}
    made(tmp_path / "stacks", tmp_path / "toward", tiny_model_path, copies=2, toward="others")
    assert set(batches_in(tmp_path / "toward").values()) == {None}


def test_fields_that_nobody_waits_for_are_not_kept(tiny_model, together):
    plan = make_plan(settings_for(AUGMENT, levels=((40,),), copies=3), [Case("a", None)])
    tasks = [task for task in plan.samples if task.copy != 1]
    source = FieldBatches(plan, tasks)
    how = plan.settings.at_level(40)
    image = scene(SIZE)
    first = source.draw(tasks[0], 0, image, tiny_model, how)
    assert first.copies == (0, 1, 2) and first.drawn.seed == plan.seed(tasks[0], 0)
    (group,) = source._groups.values()
    assert set(group.drawn) == {(0, 2)}
    # The second attempt of the first copy.
    assert source.draw(tasks[0], 1, image, tiny_model, how).drawn.seed == plan.seed(tasks[0], 1)
    assert set(group.drawn) == {(0, 2), (1, 2)}
    source.ended(tasks[0])
    source.draw(tasks[1], 0, image, tiny_model, how)
    source.ended(tasks[1])
    assert not group.drawn and not source._groups
