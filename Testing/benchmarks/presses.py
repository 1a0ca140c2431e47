"""Seconds from a press of *Deform* in the module's panel to the new version in the views.

Runs the panel on the stand-in for Slicer's application (``python -m benchmarks.presses`` in the folder ``Testing``).
Each press is made twice in turn: by the process that stays, and by a process of its own, as before there was one. The
time ends when three slices of the volume have been cut through the new transform; its figures follow. Then the slider
of the level is dragged over a larger volume.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import SimpleITK as sitk

from .phantom import phantom

ROOT = Path(__file__).resolve().parents[2]
MODELS = ("hippocampus-mr-3d", "brain-t1-3d")


def start_panel() -> Any:
    """Load the module on the stand-in, and return its panel."""
    os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")
    import standin

    standin.install()
    standin.load_module(ROOT / "DRDMDeform" / "DRDMDeform.py")
    standin.finish_startup()
    import slicer

    slicer.util.selectModule("DRDMDeform")
    panel = slicer.util.getModuleWidget("DRDMDeform").panel
    while panel.jobRunner.running:
        slicer.app.processEvents()
        time.sleep(0.01)
    return panel


def add_phantom(side: int, extent: float = 180.0) -> tuple[Any, Any]:
    """Add a phantom and its label, a body with a core, to the scene."""
    import slicer
    from DRDMDeformLib import mrml
    from DRDMDeformLib.mrml import links

    voxels = phantom(3, side)
    image = sitk.GetImageFromArray(voxels.astype(np.int16))
    image.SetSpacing([extent / side] * 3)
    line = np.linspace(-1, 1, side)
    radius = np.sqrt(line[:, None, None] ** 2 + line[:, None] ** 2 + line**2)
    label = sitk.GetImageFromArray((radius < 0.7).astype(np.uint8) + (radius < 0.4).astype(np.uint8))
    label.CopyInformation(image)
    volume = mrml.volumeFromImage(slicer.mrmlScene, image, "Phantom")
    return volume, links.segmentationFromImage(slicer.mrmlScene, label, "Phantom segmentation", volume)


class Slices:
    """Three slices through the middle of a volume, cut through its transform as Slicer's views do."""

    def __init__(self, volume: Any, size: int = 400) -> None:
        import vtk

        self.volume = volume
        self.reslices = []
        for axes in (np.eye(3), np.eye(3)[[0, 2, 1]], np.eye(3)[[1, 2, 0]]):
            reslice = vtk.vtkImageReslice()
            reslice.SetInterpolationModeToLinear()
            reslice.SetOutputDimensionality(2)
            reslice.SetOutputExtent(0, size - 1, 0, size - 1, 0, 0)
            reslice.SetBackgroundLevel(0)
            self.reslices.append((reslice, axes))
        self.size = size

    def cut(self) -> list[np.ndarray]:
        """Cut the slices, and return their pixels."""
        import vtk
        from vtk.util.numpy_support import vtk_to_numpy

        bounds = [0.0] * 6
        self.volume.GetRASBounds(bounds)
        low, high = np.asarray(bounds).reshape(3, 2).T
        step = float((high - low).max()) / self.size
        to_voxels = vtk.vtkMatrix4x4()
        self.volume.GetRASToIJKMatrix(to_voxels)
        cuts = []
        for reslice, axes in self.reslices:
            to_world = vtk.vtkMatrix4x4()
            for row in range(3):
                for column in range(3):
                    to_world.SetElement(row, column, float(axes[column][row]) * step)
                start = (low + high)[row] / 2 - step * self.size / 2 * (axes[0][row] + axes[1][row])
                to_world.SetElement(row, 3, float(start))
            general = vtk.vtkGeneralTransform()
            general.PostMultiply()
            general.Concatenate(to_world)
            parent = self.volume.GetParentTransformNode()
            if parent is not None:
                from_world = vtk.vtkGeneralTransform()
                parent.GetTransformFromWorld(from_world)
                general.Concatenate(from_world)
            general.Concatenate(to_voxels)
            data = vtk.vtkImageData()
            data.ShallowCopy(self.volume.GetImageData())
            reslice.SetInputData(data)
            reslice.SetResliceTransform(general)
            reslice.Update()
            cuts.append(vtk_to_numpy(reslice.GetOutput().GetPointData().GetScalars()))
        return cuts


def processor_seconds() -> float:
    """Seconds of the processor that this process, the one that stays, and those that have ended have used (Linux)."""
    import resource

    from DRDMDeformLib.worker import sharedWorker

    own, ended = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    total = own.ru_utime + own.ru_stime + ended.ru_utime + ended.ru_stime
    if sharedWorker.process is not None:
        fields = Path(f"/proc/{sharedWorker.process._group.process.pid}/stat").read_text(encoding="utf-8").split()
        total += (int(fields[13]) + int(fields[14])) / os.sysconf("SC_CLK_TCK")
    return float(total)


def wait_for_version(panel: Any, slices: Slices) -> None:
    """Wait for the version that is being made, and for its slices."""
    import slicer

    while panel.deform.making:
        slicer.app.processEvents()
        time.sleep(0.002)
    if panel.deform.job.state.value not in ("running", "done"):
        raise SystemExit(panel.deform.job.text)
    slices.cut()


def wait_for_figures(panel: Any) -> None:
    """Wait until the figures of the version are there, too."""
    import slicer

    while panel.deform.running:
        slicer.app.processEvents()
        time.sleep(0.002)
    if panel.deform.job.state.value != "done":
        raise SystemExit(panel.deform.job.text)


def seconds_of_press(panel: Any, slices: Slices) -> tuple[float, float, float]:
    """Press Deform; return seconds to the version, seconds of the processor, and seconds to its figures."""
    used = processor_seconds()
    begin = time.perf_counter()
    panel.ui.deformButton.click()
    wait_for_version(panel, slices)
    seen, used = time.perf_counter() - begin, processor_seconds() - used
    wait_for_figures(panel)
    return seen, used, time.perf_counter() - begin


def measure(side: int, presses: int, models: tuple[str, ...], *, drag: bool) -> dict[str, Any]:
    """Measure both ways in turn."""
    panel = start_panel()
    from DRDMDeformLib.job import DrdmProcess

    volume, segmentation = add_phantom(side)
    panel.ui.inputVolumeSelector.setCurrentNode(volume)
    panel.ui.segmentationSelector.setCurrentNode(segmentation)
    slices = Slices(volume)
    found: dict[str, Any] = {"side": side, "cores": os.cpu_count(), "models": {}}
    for model in models:
        panel.parameter.model = model
        times: dict[str, list[tuple[float, float, float]]] = {"stays": [], "own": []}
        first = seconds_of_press(panel, slices)
        for _ in range(presses):
            times["stays"].append(seconds_of_press(panel, slices))
            with mock.patch("DRDMDeformLib.logic.WorkerProcess", DrdmProcess):
                times["own"].append(seconds_of_press(panel, slices))
        found["models"][model] = {"first": first, **times}
        print(f"{model}: the first press took {first[0]:.2f} s, of the processor {first[1]:.2f} s", flush=True)
        for how, values in times.items():
            seconds, used, last = (statistics.median(column) for column in zip(*values, strict=True))
            print(f"  {how}: median {seconds:.2f} s, of the processor {used:.2f} s, figures {last:.2f} s", flush=True)
    found["drag"] = [measure_frames(panel, 256, 20, model) for model in models] if drag else []
    panel.cleanup()
    return found


def measure_frames(panel: Any, side: int, frames: int, model: str) -> dict[str, Any]:
    """Drag the slider of the level: seconds until the first preview, until all fields are there, and of a frame."""
    import slicer
    from DRDMDeformLib import mrml

    slicer.mrmlScene.Clear(0)
    volume, segmentation = add_phantom(side)
    panel.ui.inputVolumeSelector.setCurrentNode(volume)
    panel.ui.segmentationSelector.setCurrentNode(segmentation)
    panel.parameter.model = model
    panel.ui.strengthComboBox.currentIndex = 3
    slices, slider = Slices(volume), panel.ui.levelSlider
    handle = next(child for child in slider.children() if child.objectName == "Slider")
    begin = time.perf_counter()
    handle.setSliderDown(True)
    pressed, first = time.perf_counter() - begin, 0.0
    while not panel.deform.live.ready:
        slicer.app.processEvents()
        if not first and mrml.isLivePreview(volume.GetParentTransformNode()):
            first = time.perf_counter() - begin
        if not panel.deform.live.shown:
            raise SystemExit(panel.ui.statusLabel.text)
        time.sleep(0.002)
    every = time.perf_counter() - begin
    times, parts = [], []
    for number in range(frames):
        begin = time.perf_counter()
        slider.value = 5 + (7 * number) % 70
        slicer.app.processEvents()
        half = time.perf_counter()
        slices.cut()
        times.append(time.perf_counter() - begin)
        parts.append(half - begin)
    begin = time.perf_counter()
    handle.setSliderDown(False)
    wait_for_version(panel, slices)
    proven = time.perf_counter() - begin
    wait_for_figures(panel)
    found = {"side": side, "pressed": pressed, "first": first, "all": every, "frames": times, "proven": proven}
    print(f"{side}^3, {model}: the press takes {pressed:.2f} s, first preview after {first:.2f} s, all {every:.2f} s")
    print(
        f"  a frame takes {statistics.median(times):.3f} s (panel and blend {statistics.median(parts):.3f} s),", end=""
    )
    print(f" from the release to the proven version {proven:.2f} s", flush=True)
    return found


def main() -> None:
    """Measure, and write all times as JSON if wanted."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--side", type=int, default=128)
    parser.add_argument("--presses", type=int, default=10)
    parser.add_argument("--models", nargs="+", default=list(MODELS))
    parser.add_argument("--drag", action=argparse.BooleanOptionalAction, default=True, help="also drag the slider")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    found = measure(options.side, options.presses, tuple(options.models), drag=options.drag)
    if options.json is not None:
        options.json.write_text(json.dumps(found, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
