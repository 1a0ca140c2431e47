"""Seconds and peak memory of ``drdm deform`` on a large CT.

    python -m benchmarks.memory [--size 512 512 400] [--model hippocampus-mr-3d]

Makes a synthetic CT with a label map, deforms both with the real command in a process of its own, and prints what that
process needed. Then times the parts in memory, the final warps beside SimpleITK's own resampler. Needs about 2 GB of
disk for a while. Not for Windows, which does not report a child's peak memory.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

import DRDMLib


def write_ct(folder: Path, size: tuple[int, int, int]) -> tuple[Path, Path]:
    """Write an elliptic body with round organs, 16-bit HU, and the organs' labels; return the paths."""
    columns, rows, slices = size
    z, y, x = np.ogrid[0:slices, 0:rows, 0:columns]
    body = ((x - columns / 2) / (0.4 * columns)) ** 2 + ((y - rows / 2) / (0.3 * rows)) ** 2 < 1
    ct = np.full((slices, rows, columns), -1000, np.int16)
    ct[np.broadcast_to(body, ct.shape)] = 40
    label = np.zeros(ct.shape, np.uint8)
    generator = np.random.default_rng(0)
    for value in range(1, 13):
        center = generator.uniform(0.25, 0.75, 3) * (slices, rows, columns)
        radius = generator.uniform(0.03, 0.09) * rows
        low, high = int(max(0, center[0] - radius)), int(min(slices, center[0] + radius))
        ball = (z[low:high] - center[0]) ** 2 + (y - center[1]) ** 2 + (x - center[2]) ** 2 < radius**2
        ct[low:high][ball] = generator.integers(-800, 800)
        label[low:high][ball] = value
    paths = []
    for name, array in (("ct", ct), ("label", label)):
        image = sitk.GetImageFromArray(array)
        image.SetSpacing((0.8, 0.8, 1.0))
        paths.append(folder / f"{name}.nii.gz")
        sitk.WriteImage(image, str(paths[-1]))
    return paths[0], paths[1]


def compare_warps(folder: Path, model: str) -> None:
    """Print the seconds of each part in memory, and of SimpleITK's resampler doing the same warp."""
    image, label = (sitk.ReadImage(str(folder / f"{name}.nii.gz")) for name in ("ct", "label"))
    small = sitk.Shrink(image, [8] * 3)
    seconds: dict[str, float] = {}

    def timed(name: str, work: Callable[[], Any]) -> Any:
        begin = time.perf_counter()
        made = work()
        seconds[name] = time.perf_counter() - begin
        return made

    network = DRDMLib.load_model(model, "cpu")
    DRDMLib.deform(small, network, level=48, seed=1)
    timed("generation for an eighth of the voxels a side", lambda: DRDMLib.deform(small, network, level=48, seed=0))
    result = timed("generation", lambda: DRDMLib.deform(image, network, level=48, seed=0))
    transform = result.transform
    for _ in range(2):
        timed("warp of the image", lambda: result.warp(image))
        timed("warp of the label", lambda: result.warp_label(label))
        timed("SimpleITK, image", lambda: sitk.Resample(image, image, transform, sitk.sitkLinear))
        timed("SimpleITK, label", lambda: sitk.Resample(label, label, transform, sitk.sitkNearestNeighbor))
    for name, value in seconds.items():
        print(f"{name}: {value:.2f} s")
    ours = seconds["warp of the image"] + seconds["warp of the label"]
    print(f"both warps, times SimpleITK: {ours / (seconds['SimpleITK, image'] + seconds['SimpleITK, label']):.2f}")


def run(command: list[str]) -> tuple[float, float, int]:
    """Run a process; return its seconds, peak GiB and exit status."""
    begin = time.monotonic()
    child = subprocess.Popen(command)
    _, status, usage = os.wait4(child.pid, 0)
    scale = 1 if sys.platform == "darwin" else 1024
    return time.monotonic() - begin, usage.ru_maxrss * scale / 2**30, status


def main() -> None:
    """Run the command and the comparison, each in a process of its own."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--size", type=int, nargs=3, default=(512, 512, 400))
    parser.add_argument("--model", default="hippocampus-mr-3d")
    # What a process of its own does, for a process reports at least the peak of the one that started it.
    parser.add_argument("--write", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--compare", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.write:
        write_ct(options.write, tuple(options.size))
        return
    if options.compare:
        compare_warps(options.compare, options.model)
        return
    own = [sys.executable, "-m", "benchmarks.memory", "--model", options.model]
    size = "x".join(map(str, options.size))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        subprocess.run([*own, "--size", *map(str, options.size), "--write", name], check=True)
        command = [sys.executable, "-m", "DRDMLib", "deform", str(folder / "ct.nii.gz"), "-o", str(folder / "out")]
        command += ["--label", str(folder / "label.nii.gz"), "--model", options.model]
        seconds, peak, status = run(command)
        print(f"{size} CT with label, the command: {seconds:.0f} s, peak {peak:.2f} GiB, exit status {status}")
        _, peak, _ = run([*own, "--compare", name])
        print(f"{size} CT with label, in memory: peak {peak:.2f} GiB")


if __name__ == "__main__":
    main()
