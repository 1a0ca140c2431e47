"""Tests on a real GPU, if there is one: equal seeds give equal bits, and the results agree with those of the CPU."""

import copy
import gc
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from production_helpers import make, records_of, result, write_cases
from support import smooth_image

import DRDMLib
from DRDMLib.deforming import finish
from DRDMLib.diffusion.forward import ForwardProcess, random_ddf
from DRDMLib.diffusion.recovery import recover
from DRDMLib.diffusion.seeds import random_generator
from DRDMLib.errors import FallbackWarning
from DRDMLib.generation import generate, prepare
from DRDMLib.invertibility import device_bounds
from DRDMLib.invertibility.certificate import failing_cells
from DRDMLib.invertibility.device_bounds import DeviceBounds
from DRDMLib.invertibility.repair import MARGIN
from DRDMLib.invertibility.sample_bounds import least_between_samples
from DRDMLib.loaders import FieldGenerator
from DRDMLib.models.catalogue import load_model
from DRDMLib.models.metadata import ModelMetadata
from DRDMLib.models.model import Model, load_model_file, save_model
from DRDMLib.networks import build_network
from DRDMLib.production.regenerate import regenerate
from DRDMLib.runtime import graphs
from DRDMLib.runtime.device import full_precision
from DRDMLib.runtime.distributed import ProcessInfo
from DRDMLib.runtime.probe import works
from DRDMLib.spatial.field_grid import continued, positions
from DRDMLib.spatial.model_grid import physical_field
from DRDMLib.training import TrainingConfig, train
from DRDMLib.versions import PreparedScan

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")

SHIPPED = {
    **dict.fromkeys(("hippocampus-mr-3d", "brain-t1-3d", "general-3d"), 3),
    **dict.fromkeys(("general-2d", "cardiac-mr-2d", "heart-region-2d"), 2),
}


def scan(ndim, size=72):
    return smooth_image((size, size - 8, size - 16)[:ndim], (1.5,) * ndim, pixel=sitk.sitkFloat32)


def arrays(deformation):
    return [sitk.GetArrayFromImage(x) for x in (deformation.field, deformation.ddf)]


@pytest.mark.parametrize("name", SHIPPED)
def test_a_seed_always_gives_the_same_certified_field(name):
    image = scan(SHIPPED[name])
    model = load_model(name, "cuda")
    with warnings.catch_warnings():
        warnings.simplefilter("error", FallbackWarning)
        first, again = (DRDMLib.deform(image, model, level=64, seed=5, pose=1.0) for _ in range(2))
    assert first.device == "cuda" and first.certified
    for a, b in zip(arrays(first), arrays(again), strict=True):
        assert np.array_equal(a, b)
    assert not np.array_equal(arrays(first)[0], arrays(DRDMLib.deform(image, model, level=64, seed=6, pose=1.0))[0])


@pytest.mark.parametrize("name", SHIPPED)
def test_recovery_agrees_with_the_cpu(name):
    """From the same random field, they differ by less than 0.1 % of the side and 1 % of the displacement."""
    model = load_model(name, "cpu")
    _, images = prepare(scan(SHIPPED[name]), model)
    m = model.metadata
    start = random_ddf(m.size, m.ndim, 64, torch.Generator().manual_seed(3), noise_grids=m.noise_grids, amplitude=2.0)
    usual = recover(model, images, start, level=64, steps=12)
    there = recover(model.on("cuda"), images, start, level=64, steps=12).cpu()
    assert float((usual - start).norm()) > 0.02 * float(start.norm())
    assert float((there - usual).abs().max()) < 1e-3
    assert float((there - usual).norm()) < 0.01 * float(usual.norm())


def recovered(model, count, seed=0):
    m = model.metadata
    draws = torch.Generator().manual_seed(seed)
    start = random_ddf(m.size, m.ndim, 64, draws, batch=count, noise_grids=m.noise_grids, amplitude=2.0)
    images = prepare(scan(m.ndim), model)[1].expand(count, *[-1] * (m.ndim + 1))
    with full_precision(model.device):
        return recover(model, images, start, level=64, steps=6)


@pytest.mark.parametrize("name", SHIPPED)
@pytest.mark.parametrize("count", [1, 5])
def test_graphs_give_the_same_bits(name, count, monkeypatch):
    model = load_model(name, "cuda")
    monkeypatch.setattr(graphs, "ENABLED", False)
    plain = [recovered(model, count, seed) for seed in range(4)]
    assert len(model.graphs) == 0
    monkeypatch.setattr(graphs, "ENABLED", True)
    for again in range(2):
        for seed in range(4):
            assert torch.equal(recovered(model, count, seed), plain[seed])
        assert len(model.graphs) == 1, "no graph was made"
        if not again:
            # Another size has its own graph, and the first one is still right.
            recovered(model, count + 1), recovered(model, count + 1)
            assert len(model.graphs) in (1, 2)
            assert torch.equal(recovered(model, count), plain[0])
            model.graphs.clear()
            assert len(model.graphs) == 0
    assert len(copy.deepcopy(model).graphs) == 0


def test_threads_share_graphs(monkeypatch):
    """On the same stream and on streams of their own, while another model makes its graphs."""
    monkeypatch.setattr(graphs, "ENABLED", True)
    monkeypatch.setattr(graphs, "CALLS", 3)
    model, other = load_model("hippocampus-mr-3d", "cuda"), load_model("cardiac-mr-2d", "cuda")
    with monkeypatch.context() as patched:
        patched.setattr(graphs, "ENABLED", False)
        plain = {(one, seed): recovered(one, 2, seed) for one in (model, other) for seed in range(6)}

    def check(number):
        own = torch.cuda.Stream() if number % 2 else torch.cuda.default_stream()
        one = (model, other)[number // 2 % 2]
        with torch.cuda.stream(own):
            found = recovered(one, 2, number % 6)
        own.synchronize()
        return torch.equal(found, plain[one, number % 6])

    torch.cuda.synchronize()
    with ThreadPoolExecutor(6) as pool:
        assert all(pool.map(check, range(36)))
    assert len(model.graphs) == len(other.graphs) == 1


def test_a_graph_that_cannot_be_made_changes_nothing(monkeypatch):
    monkeypatch.setattr(graphs, "ENABLED", True)
    monkeypatch.setattr(graphs, "CALLS", 1)
    one, x = graphs.Graphs(), torch.arange(4.0, device="cuda")

    def wrong(values):
        """Gives other values each time."""
        wrong.calls += 1
        return values + wrong.calls

    wrong.calls = 0
    with torch.inference_mode():
        for _ in range(3):
            before = wrong.calls
            assert torch.equal(one.run("wrong", wrong, x), x + before + 1)
        assert len(one) == 0


@pytest.mark.parametrize("name", ["hippocampus-mr-3d", "cardiac-mr-2d"])
def test_fields_are_drawn_together_with_the_bits_of_single_ones(name):
    process = ForwardProcess.of(load_model(name, "cpu").metadata).invertible()
    for seeds in ((3, 4, 5), (2**128 + 7, 2**128 + 8)):
        single = [process.ddf(48, random_generator(seed, "cuda")) for seed in seeds]
        together = process.ddf(48, [random_generator(seed, "cuda") for seed in seeds], batch=len(seeds))
        assert torch.equal(torch.cat(single), together)


@pytest.mark.parametrize("name", ["hippocampus-mr-3d", "brain-t1-3d", "cardiac-mr-2d"])
@pytest.mark.parametrize("level", [20, 79])
def test_the_same_is_proven_as_by_the_processor(name, level, monkeypatch):
    image, model = scan(SHIPPED[name], 128), load_model(name, "cuda")
    monkeypatch.setattr(device_bounds, "ENABLED", True)
    monkeypatch.setattr(device_bounds, "LEAST_NODES", 0)
    prepared = PreparedScan(image, model, DRDMLib.DeformationSettings(level))
    (drawn,) = prepared.draw([7])
    field = physical_field(drawn.recovered, prepared.grid, refine=True)
    grid = continued(field, positions(field, image), 4.0)
    bounds, usual = DeviceBounds(field, model.device), least_between_samples(grid)
    least = bounds._least(grid)
    np.testing.assert_allclose(least.least, usual.least, rtol=1e-5, atol=1e-5)
    assert (least.least > MARGIN).any()
    for one in (field, grid):
        cells = failing_cells(one, MARGIN)
        np.testing.assert_array_equal(failing_cells(one, MARGIN, on_device=bounds), cells)
    shared = finish(drawn)
    monkeypatch.setattr(device_bounds, "ENABLED", False)
    alone = finish(drawn)
    assert shared.repaired == alone.repaired
    assert np.array_equal(arrays(shared)[0], arrays(alone)[0])


def test_a_batch_of_seeds_equals_single_seeds():
    image, model = scan(3), load_model("hippocampus-mr-3d", "cuda")
    together = list(DRDMLib.deform_all(image, model, 48, (1, 2, 3)))
    for seed, one in zip((1, 2, 3), together, strict=True):
        alone = DRDMLib.deform(image, model, 48, seed)
        assert np.abs(arrays(alone)[1] - arrays(one)[1]).max() < 0.01


@pytest.mark.parametrize("name", ["hippocampus-mr-3d", "cardiac-mr-2d"])
def test_batches_give_the_same_bits_each_time(name):
    image, model = scan(SHIPPED[name]), load_model(name, "cuda")
    first, again = (list(DRDMLib.deform_all(image, model, 48, range(11))) for _ in range(2))
    assert [one.seed for one in first] == list(range(11))
    for one, other in zip(first, again, strict=True):
        assert one.device == "cuda" and one.certified and np.array_equal(arrays(one)[0], arrays(other)[0])
    alone = DRDMLib.deform(image, model, 48, 9)
    assert np.abs(arrays(alone)[1] - arrays(first[9])[1]).max() < 0.01


@pytest.mark.parametrize("command", ["augment", "synthesize"])
def test_a_run_in_batches_is_resumed_and_shared_with_the_same_bits(command, tiny_model_path, tmp_path):
    how = {"device": "cuda", "copies": 10}
    data = write_cases(tmp_path / "data")
    make(data, tmp_path / "1" / "set", tiny_model_path, command, **how)
    whole = result(tmp_path / "1" / "set")
    found = records_of(tmp_path / "1" / "set")
    assert {tuple(one["batch"]["copies"]) for one in found.values() if one["levels"]} == {tuple(range(8)), (8, 9)}
    for rank in (1, 0):
        make(data, tmp_path / "2" / "set", tiny_model_path, command, process=ProcessInfo(rank, 2), **how)
    assert result(tmp_path / "2" / "set") == whole
    for name in found:
        if name.endswith(("003", "006")):
            (tmp_path / "1" / "set" / "records" / f"{name}.json").unlink()
    make(data, tmp_path / "1" / "set", tiny_model_path, command, resume=True, **how)
    assert result(tmp_path / "1" / "set") == whole


def test_a_full_gpu_leads_to_the_cpu():
    torch.manual_seed(0)
    network = build_network("recresacnet", 3, 80)
    metadata = ModelMetadata("large", "recresacnet", 3, 96)
    model = Model(network, metadata, torch.device("cuda"))
    _, images = prepare(scan(3), model)
    expected = generate(images, model, DRDMLib.DeformationSettings(2, steps=1), (0,))
    gc.collect()
    torch.cuda.empty_cache()
    share = (torch.cuda.memory_allocated() + 2**27) / torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(share)
    try:
        with pytest.warns(FallbackWarning, match="memory of the GPU"):
            made = generate(images, model, DRDMLib.DeformationSettings(2, steps=1), (0,))
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert made.recovered.device.type == "cpu" and expected.recovered.device.type == "cuda"
    assert bool(torch.isfinite(made.recovered).all())


@pytest.mark.parametrize("command", ["augment", "synthesize"])
def test_a_regenerated_sample_is_identical(command, tiny_model_path, tmp_path):
    write_cases(tmp_path / "data")
    make(tmp_path / "data", tmp_path / "run", tiny_model_path, command, device="cuda", copies=2)
    records = records_of(tmp_path / "run")
    assert records and all(record["device"]["type"] == "cuda" for record in records.values())
    name = next(iter(records))
    again = regenerate(tmp_path / "run" / "records" / f"{name}.json", tmp_path / "again", model=str(tiny_model_path))
    assert not again.differences


def test_resumed_training_agrees_with_uninterrupted_training(tmp_path):
    """They are not identical, because a GPU adds up the gradients of the warp in any order."""
    images = torch.stack([torch.tensor(sitk.GetArrayFromImage(smooth_image((16,) * 3, seed=s))) for s in range(4)])
    images = ((images - images.amin()) / (images.amax() - images.amin()) * 255).to(torch.uint8)[:, None]
    metadata = ModelMetadata("t", "compact", 3, 16, options={"width": 8, "whole": True}, amplitude=2.0)
    config = TrainingConfig(steps=20, batch=2, ema=0.9, field_pool=4, warmup=2, learning_rate=1e-4)

    def stop(step, share, figures):
        raise KeyboardInterrupt

    whole = train(images, images[:1], metadata, config, tmp_path / "whole", device="cuda")
    with pytest.raises(KeyboardInterrupt):
        train(images, images[:1], metadata, config, tmp_path / "cut", device="cuda", on_step=stop)
    resumed = train(images, images[:1], metadata, config, tmp_path / "cut", device="cuda", resume=True)
    a, b = (load_model_file(path, "cpu") for path in (whole, resumed))
    assert b.metadata.training["steps_done"] == 20 and b.metadata.training["device"].startswith("cuda")
    fresh = build_network("compact", 3, 80, metadata.options).state_dict()
    for name, weight in a.network.state_dict().items():
        assert weight.shape == fresh[name].shape
        assert torch.allclose(weight, b.network.state_dict()[name], atol=2e-4), name


def test_fields_are_made_on_demand():
    image = scan(3, 40)
    tensor = torch.from_numpy(sitk.GetArrayFromImage(image).T.copy())[None]
    source = FieldGenerator("hippocampus-mr-3d", levels=(48,), device="cuda")
    first, again = (source.draw("a", tensor, np.diag([1.5, 1.5, 1.5, 1.0]), 4) for _ in range(2))
    assert torch.equal(first.vectors, again.vectors) and float(first.vectors.abs().max()) > 1


def test_the_probe_reports_the_gpu():
    report = works()
    assert report["device"] == "cuda" and report["gpu"] and not report["kernel_fault"]


@pytest.mark.parametrize("ndim", [2, 3])
def test_settings_of_other_programs_do_not_change_a_field(ndim, tmp_path):
    """Another extension in the same process may allow convolutions with ten bits, or select them by their speed."""
    torch.manual_seed(0)
    path = tmp_path / "published.safetensors"
    save_model(path, build_network("recresacnet", ndim, 80), ModelMetadata("published", "recresacnet", ndim, 48))
    usual, there = (load_model_file(path, device) for device in ("cpu", "cuda"))
    _, images = prepare(scan(ndim), usual)
    expected = usual.predict(images, 40)
    with torch.backends.cudnn.flags(enabled=True, benchmark=True, deterministic=False, allow_tf32=True):
        made = [there.predict(images, 40).cpu() for _ in range(3)]
    assert float((made[0] - expected).abs().max()) < 1e-4 * float(expected.abs().max())
    assert torch.equal(made[0], made[1]) and torch.equal(made[0], made[2])
