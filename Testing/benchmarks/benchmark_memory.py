"""Seconds and peak memory of ``drdm deform`` on a large CT: ``python Testing/benchmarks/benchmark_memory.py``.

Makes a synthetic CT of 512 x 512 x 400 voxels with a label map, deforms both with the real command in a process of its
own, and prints what that process needed. Needs about 2 GB of disk for a while. Not for Windows (no rusage there).
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import SimpleITK as sitk


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


def main() -> None:
    """Run as a script."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, nargs=3, default=(512, 512, 400))
    parser.add_argument("--model", default="hippocampus-mr-3d")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        maker = [sys.executable, "-c", "import sys; from benchmark_memory import *; write_ct(Path(sys.argv[1]), "]
        # In a process of its own: a child's peak starts at its parent's.
        maker[-1] += f"{tuple(options.size)})"
        subprocess.run([*maker, name], check=True, cwd=Path(__file__).parent)
        command = [sys.executable, "-m", "DRDMLib", "deform", str(folder / "ct.nii.gz"), "-o", str(folder / "out")]
        command += ["--label", str(folder / "label.nii.gz"), "--model", options.model]
        begin = time.monotonic()
        child = subprocess.Popen(command)
        _, status, usage = os.wait4(child.pid, 0)
        seconds = time.monotonic() - begin
    scale = 1 if sys.platform == "darwin" else 1024
    print(
        f"{'x'.join(map(str, options.size))} CT with label: {seconds:.0f} s, "
        f"peak {usage.ru_maxrss * scale / 2**30:.2f} GiB, exit status {status}"
    )


if __name__ == "__main__":
    main()
