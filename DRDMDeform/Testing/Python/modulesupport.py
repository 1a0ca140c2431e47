"""What the tests of the module share; they run inside Slicer and on the stand-in."""

import importlib.util
import shutil
import tempfile
import time
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
# Where extensions are built for the Extensions Manager there is none, and in testing mode none is installed.
HAS_TORCH = importlib.util.find_spec("torch") is not None


def waitFor(condition, seconds=400.0):
    """Let the application work until ``condition()``; the seconds that it took.

    Raises:
        AssertionError: it did not become true in time.
    """
    begin = time.monotonic()
    while not condition():
        slicer.app.processEvents()
        time.sleep(0.005)
        if time.monotonic() - begin > seconds:
            raise AssertionError(f"not within {seconds} s")
    return time.monotonic() - begin


def letWork(seconds):
    """Let the application work for a while."""
    begin = time.monotonic()
    while time.monotonic() - begin < seconds:
        slicer.app.processEvents()
        time.sleep(0.005)


class ModuleTestCase(unittest.TestCase):
    """A fresh scene with the phantom, its segmentation, a temporary folder, and the panel.

    Attributes:
        needsTorch: whether its tests need PyTorch; they are skipped where it is not installed.
    """

    needsTorch = True

    def setUp(self):
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
        waitFor(lambda: not self.panel.jobs.running)

    def addPhantom(self, name="Phantom"):
        """The shipped sample and its segmentation."""
        image = sitk.ReadImage(str(resource("Sample", "sample.nii.gz")))
        label = sitk.ReadImage(str(resource("Sample", "sample_label.nii.gz")))
        volume = mrml.volumeFromImage(slicer.mrmlScene, image, name)
        segmentation = links.segmentationFromImage(slicer.mrmlScene, label, f"{name} segmentation", volume)
        return volume, segmentation

    def addMarkups(self, point=(1.0, 2.0, 3.0)):
        markups = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLMarkupsFiducialNode", "Landmarks")
        markups.AddControlPoint(*point)
        return markups

    def choosePhantom(self, steps=2):
        """The phantom chosen in the panel, with few steps, so that it is quick."""
        volume, segmentation = self.addPhantom()
        self.ui.inputVolumeSelector.setCurrentNode(volume)
        self.ui.segmentationSelector.setCurrentNode(segmentation)
        self.ui.stepsSpinBox.value = steps
        return volume, segmentation

    def deform(self, seconds=400.0):
        """Press Deform and wait for the end."""
        self.ui.deformButton.click()
        self.assertTrue(self.panel.deform.job is not None and self.panel.deform.job.running, self.ui.statusLabel.text)
        waitFor(lambda: not self.panel.deform.job.running, seconds)
        self.assertEqual(self.panel.deform.job.state.value, "done", self.panel.deform.job.text)

    def writeScans(self, count=3, size=(20, 22, 18), labels=True, name="scans"):
        """A folder with small scans and labels."""
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


def displacements(transformNode, reach=20.0):
    """Where a transform takes points around the phantom from, minus the points, millimetres."""
    transform = vtk.vtkGeneralTransform()
    transformNode.GetTransformFromWorld(transform)
    points = np.stack(np.meshgrid(*[np.linspace(-reach, reach, 5)] * 3), -1).reshape(-1, 3)
    return np.array([transform.TransformPoint(point) for point in points]) - points


def arrayOf(volumeNode):
    """The voxels of a volume, copied."""
    return slicer.util.arrayFromVolume(volumeNode).copy()


def sceneContent():
    """What must not change by a failure: every node with its parent transform (parameter nodes left aside)."""
    content = {}
    for n in range(slicer.mrmlScene.GetNumberOfNodes()):
        node = slicer.mrmlScene.GetNthNode(n)
        if node.IsA("vtkMRMLScriptedModuleNode"):
            continue
        parent = node.GetTransformNodeID() if node.IsA("vtkMRMLTransformableNode") else None
        content[node.GetID()] = (node.GetName(), parent)
    return content
