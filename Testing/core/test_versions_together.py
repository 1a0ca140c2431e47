"""Several versions in one batch, as on a GPU. There, and here on the CPU, a batch rounds differently than one version.

The tests need no GPU: they let the CPU make batches, too; everything else is real.
"""

import json
import os
import threading

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from command_helpers import report_of, scene
from production_helpers import write_cases
from support import smooth_image
from test_fallback import on_a_gpu, short_of_memory

import DRDMLib
from DRDMLib import deforming, versions
from DRDMLib.cli import main
from DRDMLib.cli.progress import JsonReporter
from DRDMLib.deforming import make_deformations
from DRDMLib.errors import DRDMError, FallbackWarning
from DRDMLib.loaders import FieldGenerator, make_bank
from DRDMLib.loaders.world import ras_affine
from DRDMLib.models.model import Model
from DRDMLib.runtime import batches
from DRDMLib.runtime.batches import versions_together
from DRDMLib.runtime.threads import own_cores
from DRDMLib.settings import DeformationSettings, RegionSettings
from DRDMLib.spatial.region import region_of
from DRDMLib.toward import find_way

SEEDS = (3, 4, 5, 6, 7)
# Rounding, in mm; a version moves by several.
CLOSE = 1e-3


@pytest.fixture
def together(monkeypatch):
    """Let the CPU make up to three versions in a batch; what is yielded lists the sizes of all batches."""
    sizes = []
    predict = Model.predict

    def seen(self, image, *more, **how):
        sizes.append(len(image))
        return predict(self, image, *more, **how)

    monkeypatch.setattr(Model, "predict", seen)
    monkeypatch.setitem(batches.MOST, "cpu", 3)
    return sizes


def field(made):
    return sitk.GetArrayFromImage(made.field)


def difference(one, other):
    return float(np.abs(field(one) - field(other)).max())


def alone(image, model, **how):
    """The same versions, each in a batch of its own."""
    return [next(make_deformations(image, model, DeformationSettings(20, 2), (s,), **how)) for s in SEEDS]


def test_a_gpu_makes_batches_and_a_cpu_does_not(tiny_model):
    assert versions_together(tiny_model) == 1
    gpu = on_a_gpu(tiny_model)
    assert versions_together(gpu) == 8
    # The published 3D network needs two gigabytes for one image.
    large = tiny_model.metadata.__class__("large", "recresacnet", 3, 128)
    gpu.metadata = large
    assert versions_together(gpu) == 4
    gpu.metadata = large.__class__("huge", "recresacnet", 3, 512)
    assert versions_together(gpu) == 1


@pytest.mark.parametrize("ndim", [2, 3])
def test_a_batch_gives_the_versions_of_single_seeds(ndim, tiny_model, tiny_model_2d, together):
    model, image = (tiny_model_2d, tiny_model)[ndim - 2], scene((30, 26, 18)[:ndim])
    expected = alone(image, model)
    assert set(together) == {1}
    together.clear()
    made = list(DRDMLib.deform_all(image, model, 20, SEEDS, 2))
    assert together == [3, 3, 2, 2]
    assert [one.seed for one in made] == list(SEEDS)
    for one, other in zip(made, expected, strict=True):
        assert difference(one, other) < CLOSE
        assert one.metrics.certified_invertible
        assert (one.level, one.steps, one.device, one.model) == (other.level, other.steps, "cpu", other.model)
        random = sitk.GetArrayFromImage(one.random_field) - sitk.GetArrayFromImage(other.random_field)
        assert np.abs(random).max() < CLOSE
    assert difference(made[0], made[1]) > 100 * CLOSE


def test_poses_and_other_scans_in_a_batch(tiny_model, together):
    image = smooth_image((40, 36, 30), (1.5,) * 3)
    way = find_way(image, smooth_image((40, 36, 30), (1.6,) * 3))
    assert way is not None
    for more in ({"pose": 1.0}, {"toward": way}):
        toward = more.get("toward")
        how = DeformationSettings(20, 2, more.get("pose", 0.0))
        expected = [next(make_deformations(image, tiny_model, how, (s,), toward=toward)) for s in SEEDS]
        made = list(make_deformations(image, tiny_model, how, SEEDS, toward=toward))
        assert max(difference(*pair) for pair in zip(made, expected, strict=True)) < CLOSE
        assert [one.toward for one in made] == [one.toward for one in expected]
        assert np.allclose([one.own_percent for one in made], [one.own_percent for one in expected], atol=1e-4)
    assert max(together) == 3


def test_slices_of_a_stack_are_a_batch_of_their_own(tiny_model_2d, together):
    stack = smooth_image((24, 20, 7), (1.0, 1.0, 5.0))
    made = list(DRDMLib.deform_all(stack, tiny_model_2d, 6, (1, 2), 1))
    assert set(together) == {7}
    again = DRDMLib.deform(stack, tiny_model_2d, 6, 2, 1)
    assert difference(made[1], again) == 0


def test_many_threads_prove_in_order(tiny_model, together, monkeypatch):
    image = scene()
    threads = torch.get_num_threads()
    monkeypatch.setattr(deforming, "proven_at_once", lambda count: 1)
    one_thread = list(DRDMLib.deform_all(image, tiny_model, 20, SEEDS, 2))
    monkeypatch.setattr(deforming, "proven_at_once", lambda count: 4)
    several = DRDMLib.deform_all(image, tiny_model, 20, SEEDS, 2)
    try:
        torch.set_num_threads(3)
        for before in one_thread:
            made = next(several)
            assert made.seed == before.seed and np.array_equal(field(made), field(before))
        assert next(several, None) is None
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(threads)


def test_threads_that_prove_share_the_cores(tiny_model, together, monkeypatch):
    seen = []
    finish = deforming.finish

    def watched(drawn):
        seen.append(own_cores())
        return finish(drawn)

    monkeypatch.setattr(deforming, "finish", watched)
    monkeypatch.setattr(deforming, "proven_at_once", lambda count: 2)
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    list(DRDMLib.deform_all(scene(), tiny_model, 20, SEEDS, 2))
    assert seen == [3] * 5 and own_cores() == 6


def provers():
    return [one for one in threading.enumerate() if one.name.startswith("prove")]


@pytest.mark.parametrize("kind", [KeyboardInterrupt, DRDMLib.errors.Cancelled, RuntimeError])
def test_a_batch_is_canceled(kind, tiny_model, together):
    done = []

    def on_step(now, total):
        done.append(now / total)
        if now / total > 0.3:
            raise kind

    threads = torch.get_num_threads()
    made = DRDMLib.deform_all(scene(), tiny_model, 20, SEEDS, 2, on_step=on_step)
    with pytest.raises(kind):
        list(made)
    # After the first step of the second batch.
    assert together == [3, 3, 2]
    assert torch.get_num_threads() == threads and not provers()


def test_progress_counts_every_version_and_its_proof(tiny_model, together):
    done = []
    for _ in DRDMLib.deform_all(scene(), tiny_model, 20, SEEDS, 2, on_step=lambda *step: done.append(step)):
        pass
    assert [now for now, _ in done] == sorted(now for now, _ in done)
    assert {total for _, total in done} == {20} and done[-1] == (20, 20)


def test_without_batches_progress_is_as_before(tiny_model):
    done = []
    list(DRDMLib.deform_all(scene(), tiny_model, 20, (1, 2, 3), 2, on_step=lambda *step: done.append(step)))
    assert done == [(number, 6) for number in range(1, 7)]


def test_who_needs_no_more_versions_leaves_no_thread(tiny_model, together):
    made = DRDMLib.deform_all(scene(), tiny_model, 20, SEEDS, 2)
    next(made)
    made.close()
    assert not provers()


def fail_at(seed, monkeypatch):
    """Let the proof of a version fail."""
    finish = deforming.finish

    def failing(drawn, *more):
        if drawn.seed == seed:
            raise DRDMError("This deformation cannot be made invertible.")
        return finish(drawn, *more)

    monkeypatch.setattr(deforming, "finish", failing)


def test_a_version_that_fails_does_not_lose_the_others(tiny_model, together, monkeypatch):
    fail_at(5, monkeypatch)
    made = []
    with pytest.raises(DRDMError, match="invertible"):
        for one in DRDMLib.deform_all(scene(), tiny_model, 20, SEEDS, 2):
            made.append(one.seed)
    assert made == [3, 4]


def test_a_batch_that_fails_does_not_lose_the_one_before(tiny_model, together, monkeypatch):
    generate = versions.generate

    def failing(images, model, settings, seeds, **how):
        if 7 in seeds:
            raise RuntimeError("CUDA error: device-side assert triggered")
        return generate(images, model, settings, seeds, **how)

    monkeypatch.setattr(versions, "generate", failing)
    made = []
    with pytest.raises(RuntimeError, match="assert"):
        for one in DRDMLib.deform_all(scene(), tiny_model, 20, SEEDS, 2):
            made.append(one.seed)
    assert made == [3, 4, 5]


def test_low_memory_makes_batches_smaller_and_keeps_them_small(tiny_model, monkeypatch):
    image = scene()
    expected = alone(image, tiny_model)
    monkeypatch.setitem(batches.MOST, "cpu", 3)
    short_of_memory(monkeypatch, 1)
    with pytest.warns(FallbackWarning) as caught:
        made = list(DRDMLib.deform_all(image, tiny_model, 20, SEEDS, 2))
    # Three at a time are tried once; the second batch knows.
    assert [str(one.message) for one in caught] == [
        "Memory is low on 'cpu'; the computation continues with 1 images at a time."
    ]
    assert max(difference(*pair) for pair in zip(made, expected, strict=True)) < CLOSE


def test_a_full_gpu_leads_to_the_cpu(tiny_model, monkeypatch):
    image = scene()
    expected = alone(image, tiny_model)
    gpu = on_a_gpu(tiny_model)
    predict = Model.predict
    tried = []

    def limited(self, image, *more, **how):
        tried.append((self.device.type, len(image)))
        if self.device.type == "cuda":
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return predict(self, image, *more, **how)

    # What is not the network computes on the CPU, which this GPU is.
    monkeypatch.setattr(torch, "Generator", lambda device="cpu", made=torch.Generator: made("cpu"))
    monkeypatch.setattr(torch.Tensor, "to", to_no_gpu(torch.Tensor.to))
    monkeypatch.setattr(Model, "predict", limited)
    with pytest.warns(FallbackWarning, match="CPU is used"):
        made = list(DRDMLib.deform_all(image, gpu, 20, SEEDS, 2))
    assert [size for kind, size in tried if kind == "cuda"] == [5, 2, 1]
    assert [one.device for one in made] == ["cpu"] * 5
    assert max(difference(*pair) for pair in zip(made, expected, strict=True)) < CLOSE


def to_no_gpu(to):
    def moved(self, *more, **how):
        return to(self, *["cpu" if str(one) == "cuda" else one for one in more], **how)

    return moved


def deformed(folder, scan, model, count=5):
    arguments = ["deform", scan, "-o", folder, "--model", model, "--level", 20, "--steps", 2, "--count", count]
    return main([*map(str, arguments), "--no-picture", "--device", "cpu", "--progress", "json"])


def test_the_command_makes_the_same_files_in_batches(tiny_model_path, scan, tmp_path, together, capsys, monkeypatch):
    assert deformed(tmp_path / "batches", scan, tiny_model_path) == 0
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert max(together) == 3
    monkeypatch.setitem(batches.MOST, "cpu", 1)
    assert deformed(tmp_path / "single", scan, tiny_model_path) == 0
    usual = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    kinds = [[one["event"] for one in some if one["event"] != "progress"] for some in (events, usual)]
    assert kinds[0] == kinds[1] and kinds[0].count("version") == kinds[0].count("item") == 5
    made, single = (sorted(path.name for path in (tmp_path / name).iterdir()) for name in ("batches", "single"))
    assert made == single
    for name in made:
        if name.endswith("ddf.nii.gz"):
            one, other = (
                sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / f / name))) for f in ("batches", "single")
            )
            assert np.abs(one - other).max() < CLOSE
    one, other = (report_of(tmp_path / name)["items"] for name in ("batches", "single"))
    assert [item["seed"] for item in one] == [item["seed"] for item in other] == list(range(5))
    shown = [(event["done"], event["total"]) for event in events if event["event"] == "progress"]
    assert shown == sorted(shown) and shown[-1][0] == shown[-1][1]


def test_the_command_is_stopped_between_versions_of_a_batch(tiny_model_path, scan, tmp_path, together, monkeypatch):
    version = JsonReporter.version
    seen = []

    def stopping(self, **values):
        version(self, **values)
        seen.append(values["seed"])
        if len(seen) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(JsonReporter, "version", stopping)
    assert deformed(tmp_path / "out", scan, tiny_model_path) == 130
    # Its figures were not written, its files are complete.
    assert [item["seed"] for item in report_of(tmp_path / "out")["items"]] == [0]
    assert not provers()
    assert not list((tmp_path / "out").rglob("*.part*"))


def test_the_command_keeps_what_was_made_before_a_version_that_fails(
    tiny_model_path, scan, tmp_path, together, monkeypatch
):
    fail_at(4, monkeypatch)
    assert deformed(tmp_path / "out", scan, tiny_model_path) == 2
    assert [item["seed"] for item in report_of(tmp_path / "out")["items"]] == [0, 1, 2, 3]


def test_versions_of_regions(tiny_model, together, monkeypatch):
    """Each region of a version has random numbers of its own, in a batch and alone."""
    image = scene()
    boxes = ((1, 1, 1), (12, 10, 8)), ((14, 11, 9), (25, 21, 17))
    regions = tuple(region_of(tuple(map(np.array, box)), image) for box in boxes)
    settings = DeformationSettings(20, 2, region=RegionSettings(regions=regions))
    done = []
    made = list(
        make_deformations(image, tiny_model, settings, SEEDS[:4], on_step=lambda *step: done.append(step[0] / step[1]))
    )
    # Two regions and two steps; the fourth version is alone.
    assert together == [3, 3, 3, 3, 1, 1, 1, 1]
    assert done == sorted(done) and done[-1] == 1
    monkeypatch.setitem(batches.MOST, "cpu", 1)
    for seed, one in zip(SEEDS[:4], made, strict=True):
        (other,) = make_deformations(image, tiny_model, settings, (seed,))
        assert difference(one, other) < CLOSE and one.seed == seed
        assert (
            np.abs(sitk.GetArrayFromImage(one.random_field) - sitk.GetArrayFromImage(other.random_field)).max() < CLOSE
        )
        assert one.target is not None and len(one.target.boxes) == 2
    assert len({one.metrics.mean_mm for one in made}) == 4


def test_a_bank_is_made_in_batches(tiny_model_path, tmp_path, together, monkeypatch):
    write_cases(tmp_path / "data", labels=False, names=("a",))
    how = {"model": str(tiny_model_path), "levels": (20, 12), "copies": 4, "steps": 1, "device": "cpu"}
    made = make_bank(tmp_path / "data", tmp_path / "batches", **how)
    assert together == [3, 1, 3, 1]
    monkeypatch.setitem(batches.MOST, "cpu", 1)
    single = make_bank(tmp_path / "data", tmp_path / "single", **how)
    affine = ras_affine(sitk.ReadImage(str(tmp_path / "data" / "images" / "a.nii.gz")))
    image = torch.zeros(1, 22, 20, 18)
    for seed in range(8):
        one, other = (bank.draw("a", image, affine, seed).vectors for bank in (made, single))
        # Banks keep fields with 16 bits.
        assert float((one - other).abs().max()) < 0.02 < float(other.abs().max())


def test_several_fields_for_one_image(tiny_model, together):
    image = scene()
    tensor, affine = torch.from_numpy(sitk.GetArrayFromImage(image).T.copy())[None], ras_affine(image)
    source = FieldGenerator(tiny_model, levels=(20, 12), steps=2)
    seeds = (4, 5, 6, 8, 7, 10)
    made = source.draw_all("a", tensor, affine, seeds)
    assert together == [3, 3, 1, 1, 2, 2]
    for seed, one in zip(seeds, made, strict=True):
        alone = source.draw("a", tensor, affine, seed)
        assert float((one.vectors - alone.vectors).abs().max()) < CLOSE < float(one.vectors.abs().max())
    empty = source.draw_all("a", torch.ones(1, 5, 6, 7), affine, (1, 2))
    assert len(empty) == 2 and not empty[0].vectors.any()
