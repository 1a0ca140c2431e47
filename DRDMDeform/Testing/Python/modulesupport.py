"""Shared code of the module's tests, which run inside Slicer and on the stand-in."""

import contextlib
import functools
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import time
import types
import unittest
from pathlib import Path

import numpy as np
import SimpleITK as sitk
import slicer
import vtk
from DRDMDeformLib import mrml
from DRDMDeformLib.mrml import links

from DRDMLib.io.resources import resource

MODEL = "hippocampus-mr-3d"
# Entry of the list of strengths that uses the slider.
BY_LEVEL = 3
# Build servers of the Extensions Manager do not have PyTorch, and in testing mode it is not installed.
HAS_TORCH = importlib.util.find_spec("torch") is not None


def waitFor(condition, seconds=400.0):
    """Process events until ``condition()`` is true and return the seconds it took.

    Raises:
        AssertionError: the condition is not true in time.
    """
    begin = time.monotonic()
    while not condition():
        slicer.app.processEvents()
        time.sleep(0.005)
        if time.monotonic() - begin > seconds:
            raise AssertionError(f"not within {seconds} s")
    return time.monotonic() - begin


def processEvents(seconds):
    """Process events for a while."""
    begin = time.monotonic()
    while time.monotonic() - begin < seconds:
        slicer.app.processEvents()
        time.sleep(0.005)


def processesOf(folder):
    """Numbers of the processes with a folder in their command line: launchers and the real ones (Linux)."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            command = (path / "cmdline").read_bytes()
        except OSError:
            continue
        if str(folder).encode() in command:
            found.append(int(path.name))
    return sorted(found)


def cleanEnvironment():
    """The environment without what makes a Python use the packages of this one."""
    return {name: value for name, value in os.environ.items() if name not in ("PYTHONHOME", "PYTHONPATH")}


@functools.cache
def realPython(withPip=False):
    """The path of an interpreter of this version that is no launcher, with pip if wanted; empty if there is none.

    In Slicer, ``sys.executable`` and ``sys._base_executable`` may be Slicer itself.
    """
    base = Path(sys.base_prefix)
    names = ("bin/python-real", "bin/python3", "bin/python", "python-real.exe", "python.exe")
    candidates = [sys.executable] if withPip else []
    candidates += [getattr(sys, "_base_executable", None), *(str(base / name) for name in names), sys.executable]
    code = "import sys; print(sys.version_info[:2])" + ("; import pip" if withPip else "")
    for path in dict.fromkeys(candidates):
        if not path or not Path(path).is_file() or "slicer" in Path(path).name.lower():
            continue
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):
            run = [path, "-c", code]
            done = subprocess.run(run, env=cleanEnvironment(), capture_output=True, encoding="utf-8", timeout=60)
            if done.returncode == 0 and done.stdout.strip() == str(sys.version_info[:2]):
                return path
    return ""


def renew(namespace):
    """Replace what a test file has imported from the module's package by what is there now; a test reloads it."""
    for name, value in list(namespace.items()):
        origin = value.__name__ if isinstance(value, types.ModuleType) else getattr(value, "__module__", None)
        if not isinstance(origin, str) or origin.partition(".")[0] != "DRDMDeformLib" or origin not in sys.modules:
            continue
        current = sys.modules[origin]
        found = current if isinstance(value, types.ModuleType) else getattr(value, "__name__", name)
        namespace[name] = getattr(current, found, value) if isinstance(found, str) else found


class ModuleTestCase(unittest.TestCase):
    """An empty scene, a temporary folder, and the panel.

    Attributes:
        needsTorch: whether the tests need PyTorch; they are skipped if it is not installed.
    """

    needsTorch = True

    def setUp(self):
        for file in (type(self).__module__, __name__):
            renew(vars(sys.modules[file]) if file in sys.modules else {})
        if self.needsTorch and not HAS_TORCH:
            self.skipTest("PyTorch is not installed")
        slicer.mrmlScene.Clear(0)
        self.folder = Path(tempfile.mkdtemp(prefix="drdm tést "))
        self.addCleanup(shutil.rmtree, self.folder, ignore_errors=True)
        slicer.util.selectModule("DRDMDeform")
        self.widget = slicer.util.getModuleWidget("DRDMDeform")
        self.panel = self.widget.panel
        self.ui = self.panel.ui
        self.logic = self.widget.logic
        self.addCleanup(self.stopAll)

    def stopAll(self):
        for section in self.panel.sections:
            section.cleanup()
        waitFor(lambda: not self.panel.jobRunner.running)

    def addPhantom(self, name="Phantom"):
        """Add the shipped sample and its segmentation."""
        image = sitk.ReadImage(str(resource("Sample", "sample.nii.gz")))
        label = sitk.ReadImage(str(resource("Sample", "sample_label.nii.gz")))
        volume = mrml.volumeFromImage(slicer.mrmlScene, image, name)
        segmentation = links.segmentationFromImage(slicer.mrmlScene, label, f"{name} segmentation", volume)
        return volume, segmentation

    def addMarkups(self, point=(1.0, 2.0, 3.0)):
        markups = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLMarkupsFiducialNode", "Landmarks")
        markups.AddControlPoint(*point)
        return markups

    def choosePhantom(self, steps=2, model=MODEL):
        """Choose the phantom in the panel, with few steps for speed.

        Args:
            model: name of the model; empty for the one that fits best, which takes time to find.
        """
        volume, segmentation = self.addPhantom()
        self.ui.inputVolumeSelector.setCurrentNode(volume)
        self.ui.segmentationSelector.setCurrentNode(segmentation)
        self.ui.stepsSpinBox.value = steps
        self.panel.parameter.model = model
        return volume, segmentation

    def deform(self, seconds=400.0):
        """Press Deform and wait until the job has ended."""
        self.ui.deformButton.click()
        self.assertTrue(self.panel.deform.job is not None and self.panel.deform.job.running, self.ui.statusLabel.text)
        waitFor(lambda: not self.panel.deform.job.running, seconds)
        self.assertEqual(self.panel.deform.job.state.value, "done", self.panel.deform.job.text)

    def writeScans(self, count=3, size=(20, 22, 18), labels=True, name="scans"):
        """Write a folder with small scans and labels."""
        folder = self.folder / name
        generator = np.random.default_rng(0)
        for kind in ("images", "labels"):
            (folder / kind).mkdir(parents=True)
        for number in range(count):
            noise = sitk.GetImageFromArray(generator.normal(size=size[::-1]).astype(np.float32))
            image = sitk.SmoothingRecursiveGaussian(noise, 2.0)
            sitk.WriteImage(image, str(folder / "images" / f"scan{number}.nii.gz"))
            if labels:
                label = sitk.Cast(image > 0, sitk.sitkUInt8)
                sitk.WriteImage(label, str(folder / "labels" / f"scan{number}.nii.gz"))
        return folder

    def writePeople(self, count=3, size=(30, 28, 26), name="people", step=0.08):
        """Write a folder with small scans of the same kind and their labels: a body with an organ of another size."""
        folder = self.folder / name
        places = np.meshgrid(*[np.linspace(-1, 1, n) for n in size[::-1]], indexing="ij")
        for kind in ("images", "labels"):
            (folder / kind).mkdir(parents=True)
        for number in range(count):
            organ, body = (sum((x / radius) ** 2 for x in places) < 1 for radius in (0.4 + step * number, 0.85))
            values = (100.0 * body + 80.0 * organ).astype(np.float32)
            image = sitk.SmoothingRecursiveGaussian(sitk.GetImageFromArray(values), 0.8)
            label = sitk.GetImageFromArray(organ.astype(np.uint8))
            for kind, one in (("images", image), ("labels", label)):
                one.SetSpacing((2.0, 2.0, 2.0))
                sitk.WriteImage(one, str(folder / kind / f"person{number}.nii.gz"))
        return folder


def displacements(transformNode, reach=20.0, middle=(0.0, 0.0, 0.0)):
    """Displacements of points around the phantom, or around ``middle``, by a transform, millimeters."""
    transform = vtk.vtkGeneralTransform()
    transformNode.GetTransformFromWorld(transform)
    points = np.stack(np.meshgrid(*[np.linspace(-reach, reach, 5)] * 3), -1).reshape(-1, 3) + middle
    return np.array([transform.TransformPoint(point) for point in points]) - points


def volumeBounds(volumeNode):
    """The bounds of a volume in the world: x least and most, y, z, millimeters."""
    bounds = [0.0] * 6
    volumeNode.GetRASBounds(bounds)
    return bounds


def arrayOf(volumeNode):
    """A copy of the voxels of a volume."""
    return slicer.util.arrayFromVolume(volumeNode).copy()


def sceneContent():
    """Name and parent transform of every node except parameter nodes, to check that nothing has changed."""
    content = {}
    for n in range(slicer.mrmlScene.GetNumberOfNodes()):
        node = slicer.mrmlScene.GetNthNode(n)
        if node.IsA("vtkMRMLScriptedModuleNode"):
            continue
        parent = node.GetTransformNodeID() if node.IsA("vtkMRMLTransformableNode") else None
        content[node.GetID()] = (node.GetName(), parent)
    return content
