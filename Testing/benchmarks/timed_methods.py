"""The process of a method in the speed benchmark: ``interleaved_timing`` starts it and talks to it in lines of JSON."""

from __future__ import annotations

import importlib
import json
import signal
import sys
import time
import warnings
from collections.abc import Callable
from typing import Any

import SimpleITK as sitk
import torch

import DRDMLib
from benchmarks import reference_implementation
from benchmarks.displacement import voxel_field
from benchmarks.interleaved_timing import Method, Task
from benchmarks.methods import monai_displacement, monai_transform, torchio_displacement, unit_grid
from benchmarks.phantom import SEED, phantom
from DRDMLib.invertibility.metrics import measure_ddf
from DRDMLib.models.metadata import ModelMetadata
from DRDMLib.models.model import Model
from DRDMLib.networks import build_network


def drdm_task(method: Method) -> Task:
    """Compute the field with ``DRDMLib.deform``, and the warped image."""
    image = sitk.GetImageFromArray(phantom(method.ndim, method.side))
    if method.model == "published-layout-3d":
        # The authors' 3D weights are not available everywhere; the time does not depend on their values.
        network = published_layout(method.device)
    else:
        network = DRDMLib.load_model(method.model, method.device)
    assert isinstance(network, Model)

    def call() -> tuple[sitk.Image, sitk.Image]:
        result = DRDMLib.deform(image, network, level=method.level, seed=SEED, steps=method.steps)
        return result.warp(image), result.ddf

    return Task(call, lambda output: output[1])


def published_layout(device: str) -> Model:
    """Make the published 3D network with random weights that predict small steps."""
    torch.manual_seed(SEED)
    network = build_network("recresacnet", 3, 80)
    with torch.no_grad():
        network.conv_out.weight.mul_(1e-3)  # type: ignore[union-attr, operator]
        network.conv_out.bias.zero_()  # type: ignore[union-attr, operator]
    policies = {"intensity": "minmax", "geometry": "stretch", "orientation": "native", "axes": "ijk"}
    metadata = ModelMetadata("published-layout-3d", "recresacnet", 3, 128, **policies)  # type: ignore[arg-type]
    return Model(network, metadata, torch.device(device))


def random_task(method: Method) -> Task:
    """Compute the random field alone, without recovery and without an image."""

    def call() -> torch.Tensor:
        return DRDMLib.random_ddf(method.side, method.ndim, method.level, torch.Generator().manual_seed(SEED))

    return Task(call, lambda ddf: voxel_field(ddf[0].numpy() * method.side))


def torchio_task(method: Method) -> Task:
    """Deform with TorchIO's ``RandomElasticDeformation`` and its defaults; a 2D image is a volume of one slice."""
    import torchio

    image = phantom(method.ndim, method.side)
    tensor = torch.from_numpy(image).reshape(1, *image.shape, *[1] * (3 - method.ndim))
    subject = torchio.Subject(image=torchio.ScalarImage(tensor=tensor))
    transform = torchio.RandomElasticDeformation()

    def call() -> torchio.Subject:
        torch.manual_seed(SEED)
        return transform(subject)

    return Task(call, lambda deformed: torchio_displacement(deformed, unit_grid(sitk.GetImageFromArray(image))))


def monai_task(method: Method) -> Task:
    """Deform with MONAI's ``Rand2DElastic`` or ``Rand3DElastic``, only the elastic part."""
    image = torch.from_numpy(phantom(method.ndim, method.side))[None]
    transform = monai_transform(method.ndim)

    def call() -> torch.Tensor:
        return transform.set_random_state(SEED)(image)

    def field(_: torch.Tensor) -> sitk.Image:
        return voxel_field(monai_displacement(transform.set_random_state(SEED), image.shape[1:]))

    return Task(call, field)


# Kind -> what it does, and the library that is imported before the memory of the baseline is read.
KINDS: dict[str, tuple[Callable[[Method], Task], str]] = {
    "drdm": (drdm_task, "DRDMLib"),
    "random": (random_task, "DRDMLib"),
    "torchio": (torchio_task, "torchio"),
    "monai": (monai_task, "monai.transforms"),
    "authors": (reference_implementation.deformation, "torch"),
    "authors-random": (reference_implementation.random_field, "torch"),
}


def peak_bytes() -> int:
    """Return the most memory that this process has held so far."""
    if sys.platform == "win32":
        import psutil

        return psutil.Process().memory_info().peak_wset
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def work(method: Method, send: Callable[..., None]) -> None:
    """Warm up, make one timed call for each line read, and at the end of the input send memory and figures."""
    prepare, library = KINDS[method.kind]
    importlib.import_module(library)
    # TorchIO turns warnings on when it is imported, and then gives one for each 2D image.
    warnings.simplefilter("ignore")
    baseline = peak_bytes()
    task = prepare(method)
    task.call()
    send(baseline_bytes=baseline, threads=torch.get_num_threads())
    output: Any = None
    while sys.stdin.readline().strip() == "run":
        # The output of one call must not be in memory during the next.
        output = None
        begin = time.perf_counter()
        output = task.call()
        seconds = time.perf_counter() - begin
        send(seconds=seconds if task.seconds is None else task.seconds(output))
    peak = peak_bytes()
    send(peak_bytes=peak, figures={} if output is None else measure_ddf(task.field(output)).to_dict())


def main(described: str) -> None:
    """Be the process of the method ``described`` in JSON; send problems to the driver in one line."""
    # Ctrl-C reaches the driver, which ends this process.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    channel, sys.stdout = sys.stdout, sys.stderr

    def send(**message: Any) -> None:
        print(json.dumps(message), file=channel, flush=True)

    try:
        work(Method(**json.loads(described)), send)
    except ModuleNotFoundError as error:
        send(problem=f"{error.name} is not installed")
    except Exception as error:
        # DRDM's own messages are for users; the advice comes after the semicolon.
        own = type(error).__module__.startswith("DRDMLib")
        send(problem=str(error).partition(";")[0] if own else f"failed: {type(error).__name__}: {error}")


if __name__ == "__main__":
    main(sys.argv[1])
