"""Seconds and peak memory of ``drdm deform`` on a large CT: ``python Testing/benchmarks/benchmark_memory.py``.

Makes a synthetic CT of 512 x 512 x 400 voxels with a label map, deforms both with the real command in a process of its
own, and prints what that process needed. Then times the parts in memory, the final warps beside SimpleITK's own.
Needs about 2 GB of disk for a while. Not for Windows (no rusage there).
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

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))


def write_ct(folder: Path, size: tuple[int, int, int]) -> tuple[Path, Path]:
    """An elliptic body with round organs, 16-bit HU, and the organs' labels."""
    columns, rows, slices = size
    z, y, x = np.ogrid[0:slices, 0:rows, 0:columns]
    body = ((x - columns / 2) / (0.4 * columns)) ** 2 + ((y - rows / 2) / (0.3 * rows)) ** 2 < 1
    ct = np.full((slices, rows, columns), -1000, np.int16)
    ct[np.broadcast_to(body, ct.shape)] = 40
    label = np.zeros(ct.shape, np.uint8)
    generator = np.random.default_rng(0)
    for value in range(1, 13):
        centre = generator.uniform(0.25, 0.75, 3) * (slices, rows, columns)
        radius = generator.uniform(0.03, 0.09) * rows
        low, high = int(max(0, centre[0] - radius)), int(min(slices, centre[0] + radius))
        ball = (z[low:high] - centre[0]) ** 2 + (y - centre[1]) ** 2 + (x - centre[2]) ** 2 < radius**2
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
    """Seconds of each part in memory, and of SimpleITK's own resampler doing the same warp."""
    import DRDMLib

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
    """Seconds, peak GiB and exit status of a process."""
    begin = time.monotonic()
    child = subprocess.Popen(command)
    _, status, usage = os.wait4(child.pid, 0)
    scale = 1 if sys.platform == "darwin" else 1024
    return time.monotonic() - begin, usage.ru_maxrss * scale / 2**30, status


def main() -> None:
    """Run as a script."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, nargs=3, default=(512, 512, 400))
    parser.add_argument("--model", default="hippocampus-mr-3d")
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.folder:
        compare_warps(options.folder, options.model)
        return
    size = "x".join(map(str, options.size))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        maker = [sys.executable, "-c", "import sys; from benchmark_memory import *; write_ct(Path(sys.argv[1]), "]
        # In a process of its own: a child's peak starts at its parent's.
        maker[-1] += f"{tuple(options.size)})"
        subprocess.run([*maker, name], check=True, cwd=Path(__file__).parent)
        command = [sys.executable, "-m", "DRDMLib", "deform", str(folder / "ct.nii.gz"), "-o", str(folder / "out")]
        command += ["--label", str(folder / "label.nii.gz"), "--model", options.model]
        seconds, peak, status = run(command)
        print(f"{size} CT with label, the command: {seconds:.0f} s, peak {peak:.2f} GiB, exit status {status}")
        again = [sys.executable, str(Path(__file__).resolve()), "--model", options.model, "--folder", name]
        _, peak, _ = run(again)
        print(f"{size} CT with label, in memory: peak {peak:.2f} GiB")


if __name__ == "__main__":
    main()
