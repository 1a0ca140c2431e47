"""Processor seconds of one version of a scan and its label, part by part, beside TorchIO, MONAI and SimpleITK.

    python -m benchmarks.parts DATA [--rounds 7] [--json OUT.json]
    python -m benchmarks.parts --ct 512 512 300 [--rounds 1]

One thread each, all in turns: in every round each method deforms the image and the label of each kind of scan once.
DRDM generates and proves the field, and warps both. TorchIO's and MONAI's elastic deformations have the settings of
``benchmarks.methods``. The floor is SimpleITK's affine resampling of both, which has neither a field nor a proof.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
import torch

import DRDMLib
from benchmarks.interleaved_timing import machine, note
from benchmarks.labeled_views import load_case
from benchmarks.memory import write_ct
from benchmarks.methods import monai_transform
from benchmarks.phantom import phantom
from benchmarks.tables import markdown
from DRDMLib.io.datasets import find_cases
from DRDMLib.models.model import Model

LEVEL = 48
# Largest tilt of the affine map, radians.
TILT = 0.1
# MONAI smooths a random field of the image's size with one kernel, which needs 47 GB for a CT of 512 x 512 x 300.
MONAI_VOXELS = 2**25
# Words of a row -> folder in DATA, pattern of the case, model.
SCANS = {
    "hippocampus, cropped": ("hippocampus", "", "hippocampus-mr-3d"),
    "heart, ten slices": ("cardiac_acdc", "_ED", "general-3d"),
    "the same, model for 2D images": ("cardiac_acdc", "_ED", "general-2d"),
    "head, 148 labels": ("brain_ixi", "", "brain-t1-3d"),
}

# Seed -> seconds by the part of the work.
Method = Callable[[int], dict[str, float]]


@dataclass(frozen=True)
class Scan:
    """An image in memory with its label, and the model that deforms it."""

    words: str
    image: sitk.Image
    label: sitk.Image
    model: str


def scans(data: Path | None, ct: tuple[int, int, int] | None) -> Iterator[Scan]:
    """Yield the scans of DATA and the phantom of 128^3; or a drawn CT."""
    if ct is not None:
        with tempfile.TemporaryDirectory() as folder:
            image, label = (sitk.ReadImage(str(path)) for path in write_ct(Path(folder), ct))
        yield Scan("CT, twelve organs", image, label, "hippocampus-mr-3d")
        layers = sitk.GetImageFromArray(thin_layers(label))
        layers.CopyInformation(label)
        yield Scan("CT, many thin layers", image, layers, "hippocampus-mr-3d")
        return
    for words, (folder, only, model) in SCANS.items():
        if data is not None:
            labeled = [case for case in find_cases(data / folder) if only in case.name and case.label is not None]
            one = load_case(labeled[1])
            yield Scan(words, one.image, one.label, model)
    values = phantom(3)
    image, label = sitk.GetImageFromArray(values), sitk.GetImageFromArray((values > 300).astype(np.uint8))
    for model in ("hippocampus-mr-3d", "brain-t1-3d"):
        yield Scan("phantom", image, label, model)


def thin_layers(label: sitk.Image) -> np.ndarray:
    """Label every sixth pair of layers within the lower half of an image: (*S), uint8."""
    array = sitk.GetArrayFromImage(label)
    number = np.arange(array.shape[0])[:, None, None]
    half = np.arange(array.shape[1])[None, :, None] < array.shape[1] // 2
    result: np.ndarray = (1 + number // 12 % 200) * ((number % 12 < 2) & half)
    return np.ascontiguousarray(np.broadcast_to(result, array.shape)).astype(np.uint8)


def seconds(work: Callable[[], Any]) -> tuple[Any, float]:
    """Return the result of some work, and the processor seconds that it took."""
    begin = time.process_time()
    result = work()
    return result, time.process_time() - begin


def ours(scan: Scan) -> Method:
    """Return DRDM's method."""
    model = DRDMLib.load_model(scan.model, "cpu")
    assert isinstance(model, Model)

    def version(seed: int) -> dict[str, float]:
        made, field = seconds(lambda: DRDMLib.deform(scan.image, model, LEVEL, seed))
        return {
            "field and proof": field,
            "image": seconds(lambda: made.warp(scan.image))[1],
            "label": seconds(lambda: made.warp_label(scan.label))[1],
        }

    return version


def theirs(scan: Scan) -> Method:
    """Return TorchIO's method."""
    import torchio

    image, label = torchio.ScalarImage.from_sitk(scan.image), torchio.LabelMap.from_sitk(scan.label)
    subject = torchio.Subject(image=image, label=label)
    transform = torchio.RandomElasticDeformation()

    def version(seed: int) -> dict[str, float]:
        torch.manual_seed(seed)
        return {"TorchIO": seconds(lambda: transform(subject))[1]}

    return version


def monai(scan: Scan) -> Method:
    """Return MONAI's method; the same random field for image and label."""
    image, label = (torch.from_numpy(sitk.GetArrayFromImage(one)).float()[None] for one in (scan.image, scan.label))
    transform = monai_transform(3)

    def both(seed: int) -> None:
        transform.set_random_state(seed)(image)
        transform.set_random_state(seed)(label, mode="nearest")

    return lambda seed: {"MONAI": seconds(lambda: both(seed))[1]}


def floor(scan: Scan) -> Method:
    """Return SimpleITK's affine resampling."""

    def version(seed: int) -> dict[str, float]:
        turn = sitk.Euler3DTransform(
            scan.image.TransformContinuousIndexToPhysicalPoint([n / 2 for n in scan.image.GetSize()]), 0, TILT, TILT / 2
        )
        return {
            "floor, image": seconds(lambda: sitk.Resample(scan.image, scan.image, turn, sitk.sitkLinear))[1],
            "floor, label": seconds(lambda: sitk.Resample(scan.label, scan.label, turn, sitk.sitkNearestNeighbor))[1],
        }

    return version


def measure(scan: Scan, rounds: int, *, warm: bool = True) -> dict[str, Any]:
    """Time all methods in turns, and return the row of a scan."""
    others = (theirs, monai) if scan.image.GetNumberOfPixels() < MONAI_VOXELS else (theirs,)
    methods = [make(scan) for make in (ours, *others, floor)]
    found: list[dict[str, float]] = []
    for number in range(-1 if warm else 0, rounds):
        parts: dict[str, float] = {}
        for method in methods:
            parts |= method(number + 1)
        if number >= 0:
            found.append(parts)
            note(f"{scan.words}, {scan.model}: {parts}")
    middle = {part: statistics.median(one[part] for one in found) for part in found[0]}
    own = middle["field and proof"] + middle["image"] + middle["label"]
    size = " x ".join(map(str, scan.image.GetSize()))
    return {"scan": scan.words, "voxels": size, "model": scan.model, "all of it": own} | {
        **{part: middle.get(part) for part in ("field and proof", "image", "label", "TorchIO", "MONAI")},
        "x TorchIO": own / middle["TorchIO"],
        "image, x floor": middle["image"] / middle["floor, image"],
        "floor, label": middle["floor, label"],
        "floor, image": middle["floor, image"],
    }


def main() -> None:
    """Measure, print the table, write the figures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("data", type=Path, nargs="?")
    parser.add_argument("--ct", type=int, nargs=3, metavar="VOXELS", help="only a drawn CT of this size")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    ct = tuple(options.ct) if options.ct else None
    rows = [measure(scan, options.rounds, warm=ct is None) for scan in scans(options.data, ct)]
    shown = [{k: v for k, v in row.items() if not k.startswith("floor")} for row in rows]
    print(markdown(shown, {"x TorchIO": ".2f", "image, x floor": ".1f"}, ".2f"))
    if options.json:
        facts = machine([]) | {"threads": 1}
        options.json.write_text(json.dumps({"machine": facts, "rows": rows}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
