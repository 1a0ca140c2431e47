"""Test a registration: a case of the phantom, transforms of several kinds, the table, the error map, the places."""

import sys
from pathlib import Path
from urllib.parse import urlparse
from urllib.request import url2pathname

import numpy as np
import SimpleITK as sitk
import slicer
import vtk
from DRDMDeformLib import mrml
from modulesupport import ModuleTestCase, arrayOf, waitFor


def slices():
    """The slice composite nodes and slice nodes of the views."""
    logics = slicer.app.applicationLogic().GetSliceLogics()
    each = [logics.GetItemAsObject(n) for n in range(logics.GetNumberOfItems())]
    return [one.GetSliceCompositeNode() for one in each], [one.GetSliceNode() for one in each]


class RegistrationTestCase(ModuleTestCase):
    def make(self):
        """Make a case in the panel."""
        volume, segmentation = self.choosePhantom(steps=1)
        self.ui.challengeRecipeComboBox.currentIndex = 2
        self.ui.challengeSeedSpinBox.value = 4
        self.ui.challengeFolderPath.currentPath = str(self.folder)
        self.ui.challengeButton.click()
        self.end(self.ui.challengeLabel)
        return volume, segmentation

    def end(self, label):
        job = self.panel.registration.job
        self.assertIsNotNone(job, label.text)
        waitFor(lambda: not job.running)
        self.assertEqual(job.state.value, "done", job.text)

    def score(self, transform):
        self.ui.challengeTransformSelector.setCurrentNode(transform)
        self.ui.scoreButton.click()
        self.end(self.ui.scoreLabel)
        return {
            self.ui.scoreTable.item(row, 0).text(): [
                float(self.ui.scoreTable.item(row, column).text() or "nan") for column in (1, 2, 3)
            ]
            for row in range(self.ui.scoreTable.rowCount)
        }

    def testACaseAndScores(self):
        self.assertTrue(self.ui.registrationSection.collapsed)
        self.assertFalse(self.ui.challengeButton.enabled or self.ui.scoreButton.enabled)
        volume, _segmentation = self.make()
        fixed = self.ui.challengeFixedSelector.currentNode()
        case = mrml.caseOf(fixed)
        self.assertEqual(case.truth.parents[2], self.folder)
        self.assertIn(str(case.truth), self.ui.challengeLabel.text)
        self.assertEqual(case.moving.GetName(), f"{volume.GetName()} moving")
        moving = sitk.ReadImage(str(case.truth.parents[1] / "pairs" / case.truth.name / "moving.nii.gz"))
        np.testing.assert_array_equal(arrayOf(case.moving), sitk.GetArrayFromImage(moving))
        # The truth does not enter the scene.
        self.assertFalse(slicer.util.getNodesByClass("vtkMRMLGridTransformNode"))
        composites, views = slices()
        self.assertTrue(all(node.GetBackgroundVolumeID() == fixed.GetID() for node in composites))

        # Nothing.
        nothing = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLinearTransformNode", "nothing")
        rows = self.score(nothing)
        before, result, floor = rows["body, mm: mean"]
        self.assertEqual(before, result)
        self.assertLess(floor, 0.2 * before)
        self.assertTrue(self.ui.scoreTable.visible or self.ui.registrationSection.collapsed)
        errors = next(n for n in slicer.util.getNodesByClass("vtkMRMLScalarVolumeNode") if "errors" in n.GetName())
        counts = arrayOf(errors) >= 0
        self.assertAlmostEqual(arrayOf(errors)[counts].mean(), before, delta=0.02)
        self.assertTrue(all(node.GetForegroundVolumeID() == errors.GetID() for node in composites))
        self.assertTrue(slicer.vtkSlicerColorLogic.GetColorLegendDisplayNode(errors).GetVisibility())

        # The worst place, in all views at a click.
        self.ui.worstTable.setCurrentCell(0, 0)
        self.panel.registration.onPlace(0, 0)
        at, error, _before = self.panel.registration._score.worst[0]
        index = [0.0, 0.0, 0.0, 1.0]
        matrix = vtk.vtkMatrix4x4()
        errors.GetRASToIJKMatrix(matrix)
        matrix.MultiplyPoint([*at, 1.0], index)
        self.assertAlmostEqual(float(arrayOf(errors)[tuple(round(i) for i in index[2::-1])]), error, delta=0.01)
        for view in views:
            offset = view.GetSliceToRAS()
            normal = np.asarray([offset.GetElement(k, 2) for k in range(3)])
            center = np.asarray([offset.GetElement(k, 3) for k in range(3)])
            self.assertLess(abs(normal @ (center - at)), 1e-3)

        # The truth as Slicer loads it from a file, and its inverse.
        field = sitk.ReadImage(str(case.truth / "field.nii.gz"))
        right = mrml.createTransform(slicer.mrmlScene, sitk.Cast(field, sitk.sitkVectorFloat64), "right")
        rows = self.score(right)
        self.assertLess(rows["body, mm: mean"][1], 0.02)
        self.assertEqual(self.ui.scoreLabel.text, "")
        self.assertEqual(errors.GetName(), "right errors")
        right.Inverse()
        rows = self.score(right)
        self.assertGreater(rows["body, mm: mean"][1], before)
        self.assertIn("inverse", self.ui.scoreLabel.text)

        # Another transform: the score is no longer shown, and the errors do not change.
        self.ui.challengeTransformSelector.setCurrentNode(nothing)
        self.assertEqual(self.ui.scoreLabel.text, "")
        self.assertFalse(self.ui.scorePageButton.enabled)
        # Slicer is closed and opened, the truth is gone.
        (case.truth / "case.json").unlink()
        self.ui.scoreButton.click()
        self.assertIn("make the test case again", self.ui.scoreLabel.text)

    def testThePage(self):
        opened = sys.modules["standin"].opened_urls if "standin" in sys.modules else None
        if opened is None:
            self.skipTest("a browser would open")
        self.make()
        self.score(slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLinearTransformNode", "nothing"))
        self.ui.scorePageButton.click()
        self.assertEqual(Path(url2pathname(urlparse(opened[-1]).path)).name, "score.html")

    def testCancel(self):
        self.choosePhantom(steps=40)
        self.ui.challengeFolderPath.currentPath = str(self.folder)
        content = len(slicer.util.getNodesByClass("vtkMRMLScalarVolumeNode"))
        self.ui.challengeButton.click()
        self.assertTrue(self.ui.challengeCancelButton.enabled)
        self.ui.challengeCancelButton.click()
        waitFor(lambda: not self.panel.jobRunner.running)
        self.assertIn("Canceled", self.ui.challengeLabel.text)
        self.assertEqual(len(slicer.util.getNodesByClass("vtkMRMLScalarVolumeNode")), content)

    def testAVolumeThatIsNoCase(self):
        volume, _segmentation = self.choosePhantom()
        self.ui.challengeFixedSelector.setCurrentNode(volume)
        self.ui.challengeTransformSelector.setCurrentNode(
            slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLinearTransformNode", "nothing")
        )
        self.ui.scoreButton.click()
        self.assertIn("not the fixed image of a test case", self.ui.scoreLabel.text)
