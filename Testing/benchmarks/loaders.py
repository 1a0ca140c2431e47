"""Time one random deformation in training: read from a bank, newly generated, or TorchIO's elastic deformation.

    python -m benchmarks.loaders IMAGE WORK --label LABEL

Run it in ``Testing``; WORK is a new folder for the bank (fields that are computed in advance). Prints JSON: median
milliseconds with one thread, without the first draw; voxels of the image; megabytes of a field. Without --label only
the image is warped.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torchio as tio

from DRDMLib.io.files import image_stem
from DRDMLib.loaders import FieldGenerator, RandomDRDMDeformation, make_bank


def milliseconds(call: Callable[[], object], times: int) -> float:
    """Return the median time of a call, after one that warms up."""
    call()
    seconds = []
    for _ in range(times):
        begin = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - begin)
    return round(1000 * statistics.median(seconds), 1)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("image", type=Path)
    parser.add_argument("work", type=Path, help="new folder")
    parser.add_argument("--label", type=Path)
    parser.add_argument("--model")
    parser.add_argument("--fields", type=int, default=4, help="fields in the bank")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    bank = make_bank(arguments.image, arguments.work, levels=(40,), copies=arguments.fields, model=arguments.model)
    name = image_stem(arguments.image)
    images: dict[str, tio.Image] = {"scan": tio.ScalarImage(arguments.image)}
    if arguments.label:
        images["organs"] = tio.LabelMap(arguments.label)
    subject = tio.Subject(name=name, **images)
    subject.load()
    scan = subject.get_first_image()
    data, affine = scan.data, scan.affine
    seeds = iter(range(10**6))
    generator = FieldGenerator(arguments.model, levels=(40,))
    elastic, banked = tio.RandomElasticDeformation(), RandomDRDMDeformation(bank)
    fresh = RandomDRDMDeformation(generator)
    figures = {
        "voxels": list(subject.spatial_shape),
        "draw from the bank": milliseconds(lambda: bank.draw(name, data, affine, next(seeds)).vectors.clone(), 30),
        "bank, image and label warped": milliseconds(lambda: banked(subject), 15),
        "generated anew, image and label warped": milliseconds(lambda: fresh(subject), 3),
        "TorchIO RandomElasticDeformation": milliseconds(lambda: elastic(subject), 5),
        "megabytes a field": round((arguments.work / f"{name}.safetensors").stat().st_size / arguments.fields / 1e6, 2),
    }
    print(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
