"""The slider of the level: a preview while it is dragged, a proven version when it is released."""

from unittest import mock

import numpy as np
import qt
import slicer
from DRDMDeformLib import mrml
from DRDMDeformLib.worker import sharedWorker
from modulesupport import BY_LEVEL, MODEL, ModuleTestCase, displacements, processEvents, sceneContent, waitFor

from DRDMLib.levels import LADDER


class LiveTestCase(ModuleTestCase):
    def setUp(self):
        super().setUp()
        self.addCleanup(sharedWorker.end)
        self.volume, self.segmentation = self.choosePhantom(steps=2)
        self.panel.parameter.model = MODEL
        self.ui.strengthComboBox.currentIndex = BY_LEVEL
        self.ui.levelSlider.value = 30
        self.live = self.panel.deform.live
        processEvents(0.05)
        self.addCleanup(self.release)

    def handle(self):
        slider = next(child for child in self.ui.levelSlider.children() if child.objectName == "Slider")
        # CTK's slider for real numbers has Qt's inside.
        inner = slider.findChildren(qt.QSlider)
        return inner[0] if inner else slider

    def press(self):
        self.handle().sliderDown = True

    def release(self):
        self.handle().sliderDown = False

    def previewNode(self):
        parent = self.volume.GetParentTransformNode()
        return parent if mrml.isLivePreview(parent) else None

    def testNoPreviewTowardAnotherScan(self):
        self.panel.parameter.towardVolume, _segmentation = self.addPhantom("Other")
        self.press()
        processEvents(0.1)
        self.assertFalse(self.live.shown)
        self.release()
        processEvents(0.1)
        self.assertIsNone(self.panel.deform.job)

    def testAPreviewFollowsTheSlider(self):
        before = sceneContent()
        self.press()
        waitFor(lambda: self.live.ready, 120)
        node = self.previewNode()
        self.assertIsNotNone(node)
        self.assertIs(self.segmentation.GetParentTransformNode(), node)
        far = []
        for level in (10, 40, 70):
            self.ui.levelSlider.value = level
            processEvents(0.05)
            self.assertIs(self.previewNode(), node)
            far.append(np.abs(displacements(node)).max())
        self.assertLess(far[0], far[1])
        self.assertLess(far[1], far[2])
        # It cannot be saved, chosen or used.
        self.assertIn("not proven", node.GetName())
        self.assertFalse(node.GetSaveWithScene())
        self.assertTrue(node.GetHideFromEditors())
        self.assertEqual(self.logic.deformations(self.volume), [])
        self.assertIsNone(self.panel.parameter.deformations)
        for use in (mrml.fieldFromTransform, lambda n: self.logic.apply(n, [self.volume])):
            with self.assertRaisesRegex(mrml.SceneError, "only a preview"):
                use(node)
        with self.assertRaises(mrml.SceneError):
            self.logic.applyAll(self.volume)
        self.assertIs(self.previewNode(), node)
        # Batches and new versions start from the original.
        moved = mrml.imageFromVolume(self.volume)
        self.release()
        waitFor(lambda: not self.panel.deform.job.running)
        self.assertEqual(self.panel.deform.job.state.value, "done", self.panel.deform.job.text)
        proven = self.volume.GetParentTransformNode()
        self.assertIs(proven, self.panel.parameter.deformations)
        self.assertIs(self.segmentation.GetParentTransformNode(), proven)
        record = self.logic.figures(proven)[0]
        self.assertEqual((record["level"], record["seed"]), (70, self.panel.parameter.seed))
        self.assertTrue(record["metrics"]["certified_invertible"])
        # At a level of the ladder it differs from the preview by the repair only.
        self.assertLess(abs(np.abs(displacements(proven)).max() - far[2]), 0.1 * far[2])
        self.assertEqual(set(sceneContent()) - set(before) - {proven.GetID()}, set())
        self.assertEqual(moved.GetOrigin(), mrml.imageFromVolume(self.volume).GetOrigin())

    def testTheNextDragUsesTheSameFields(self):
        self.press()
        waitFor(lambda: self.live.ready, 120)
        self.ui.levelSlider.value = 40
        self.release()
        waitFor(lambda: not self.panel.deform.job.running)
        with mock.patch.object(self.logic, "startPreview", side_effect=AssertionError("computed again")):
            self.press()
            self.assertTrue(self.live.ready)
            self.assertIsNotNone(self.previewNode())
            self.release()
            waitFor(lambda: not self.panel.deform.job.running)
            # A segment that has another name may be one that is kept still.
            self.segmentation.GetSegmentation().GetNthSegment(0).SetName("another")
            with self.assertRaises(AssertionError):
                self.live._begin()
            self.live.forget()
            self.panel.parameter.deformations = None
        self.press()
        waitFor(lambda: self.live.ready, 120)
        # A version that is being made is given up when the slider is pressed again.
        self.ui.levelSlider.value = 50
        self.release()
        job = self.panel.deform.job
        self.press()
        self.assertEqual(job.state.value, "canceled")
        self.assertIsNotNone(self.previewNode())
        self.panel.deform.live.end()
        self.assertIsNone(self.volume.GetParentTransformNode())
        self.release()
        self.assertFalse(self.panel.deform.running)

    def testSavingEndsThePreview(self):
        self.press()
        waitFor(lambda: self.live.ready, 120)
        path = self.folder / "scene.mrml"
        # As a script may do; the transform is not saved, and no other can be taken for it.
        slicer.mrmlScene.SetURL(str(path))
        slicer.mrmlScene.Commit(str(path))
        text = path.read_text(encoding="utf-8")
        self.assertNotIn("not proven", text)
        self.assertNotIn("DRDM.preview", text)
        self.assertEqual(self.previewNode().GetID(), "vtkMRMLGridTransformNodeDRDMPreview")
        # A dialog, such as the one that saves the scene, ends the preview before it can save.
        dialog = qt.QDialog()
        dialog.modal = True
        dialog.show()
        waitFor(lambda: not self.live.shown)
        dialog.close()
        self.assertIsNone(self.previewNode())
        self.release()
        self.assertFalse(self.panel.deform.running)
        self.press()
        self.assertIsNotNone(self.previewNode())
        slicer.mrmlScene.InvokeEvent(slicer.mrmlScene.StartSaveEvent)
        self.assertIsNone(self.previewNode())

    def drag(self, level):
        """Drag the slider to a level, and wait for the version and its figures."""
        self.press()
        waitFor(lambda: self.live.ready, 120)
        self.ui.levelSlider.value = level
        self.release()
        waitFor(lambda: not self.panel.deform.running)
        self.assertEqual(self.panel.deform.job.state.value, "done", self.panel.deform.job.text)
        return self.panel.parameter.deformations

    def levels(self):
        return [record["level"] for _node, _index, record in self.logic.variants(self.volume)]

    def testAReleaseReplacesTheLastOne(self):
        self.drag(20)
        second = self.drag(50)
        self.assertEqual(self.levels(), [50])
        self.assertIs(self.volume.GetParentTransformNode(), second)
        self.assertEqual(self.ui.variantsTable.rowCount, 1)
        # Whatever the user does with a version keeps it.
        self.panel.deform.onVariantClicked()
        third = self.drag(30)
        self.assertEqual(self.levels(), [50, 30])
        self.ui.applyButton.click()
        self.ui.previewCheckBox.checked = True
        self.drag(40)
        self.assertEqual(self.levels(), [50, 30, 40])
        third.SetName("mine")
        self.panel.parameter.deformations.SetName("mine, too")
        self.drag(45)
        self.assertEqual(self.levels(), [50, 30, 40, 45])
        markups = self.addMarkups()
        markups.SetAndObserveTransformNodeID(self.panel.parameter.deformations.GetID())
        self.drag(46)
        self.assertEqual(self.levels(), [50, 30, 40, 45, 46])
        # Another seed makes another patient.
        self.ui.newSeedButton.click()
        self.drag(47)
        self.assertEqual(self.levels(), [50, 30, 40, 45, 46, 47])
        self.drag(48)
        self.assertEqual(self.levels(), [50, 30, 40, 45, 46, 48])
        # So does Deform.
        self.deform()
        self.drag(20)
        self.assertEqual(self.levels()[5:], [48, 48, 20])

    def testAReleaseBeforeTheFiguresOfTheLastOne(self):
        self.press()
        waitFor(lambda: self.live.ready, 120)
        self.release()
        waitFor(lambda: not self.panel.deform.making)
        first = self.panel.deform.job
        self.press()
        self.assertIsNotNone(self.previewNode())
        processEvents(0.3)
        # The end of the first job does not end the preview.
        self.assertIsNotNone(self.previewNode())
        self.ui.levelSlider.value = 60
        self.release()
        waitFor(lambda: not self.panel.deform.running and not first.running)
        self.assertEqual(self.panel.deform.job.state.value, "done", self.panel.deform.job.text)
        self.assertEqual(self.levels(), [60])
        self.assertIs(self.volume.GetParentTransformNode(), self.panel.parameter.deformations)

    def testWithoutThePreview(self):
        self.ui.liveCheckBox.checked = False
        self.press()
        self.ui.levelSlider.value = 50
        self.release()
        processEvents(0.05)
        self.assertFalse(self.live.shown)
        self.assertFalse(self.panel.deform.running)
        self.ui.liveCheckBox.checked = True
        # Nor does a number that is typed start anything.
        self.ui.levelSlider.value = 60
        processEvents(0.05)
        self.assertFalse(self.live.shown)

    def testTheSceneIsClosed(self):
        self.press()
        waitFor(lambda: self.previewNode() is not None)
        slicer.mrmlScene.Clear(0)
        self.assertFalse(self.live.shown)
        self.assertEqual(list(slicer.util.getNodesByClass("vtkMRMLGridTransformNode")), [])
        self.release()
        self.assertFalse(self.panel.deform.running)

    def testAMistakeIsSaid(self):
        self.panel.parameter.model = "nobody's"
        self.press()
        waitFor(lambda: not self.live.shown)
        self.assertIn("nobody's", self.ui.statusLabel.text)
        self.release()
        self.assertFalse(self.panel.deform.running)

    def testPlay(self):
        self.ui.strengthComboBox.currentIndex = 1
        self.assertFalse(self.ui.playButton.enabled)
        self.deform()
        proven = self.volume.GetParentTransformNode()
        before, far = sceneContent(), np.abs(displacements(proven)).max()
        self.ui.playButton.click()
        self.assertEqual(self.ui.playButton.text, "Stop")
        self.assertIn("not proven", self.ui.statusLabel.text)
        proxy = self.previewNode()
        self.assertIs(self.segmentation.GetParentTransformNode(), proxy)
        browser = self.panel.deform._playback.browser
        self.assertTrue(browser.GetPlaybackActive())
        browser.SetPlaybackActive(False)
        reach = []
        count = browser.GetNumberOfItems()
        for index in (0, count // 4, count // 2, count - 1):
            browser.SetSelectedItemNumber(index)
            processEvents(0.05)
            self.assertTrue(mrml.isLivePreview(self.previewNode()))
            reach.append(np.abs(displacements(self.previewNode())).max())
        self.assertLess(reach[0], 1e-6)
        self.assertLess(reach[3], 1e-6)
        self.assertAlmostEqual(reach[1], reach[2] / 2, delta=0.05 * far)
        self.assertAlmostEqual(reach[2], far, delta=0.1 * far)
        for node in (proxy, browser):
            self.assertFalse(node.GetSaveWithScene())
        self.ui.playButton.click()
        self.assertIs(self.volume.GetParentTransformNode(), proven)
        self.assertEqual(sceneContent(), before)
        # The original is shown, another version is made, or a dialog opens: each ends it.
        self.ui.playButton.click()
        self.ui.previewCheckBox.checked = False
        self.assertIsNone(self.volume.GetParentTransformNode())
        self.ui.playButton.click()
        self.assertIsNotNone(self.previewNode())
        self.deform()
        self.assertIs(self.volume.GetParentTransformNode(), self.panel.parameter.deformations)
        self.ui.playButton.click()
        dialog = qt.QDialog()
        dialog.modal = True
        dialog.show()
        waitFor(lambda: self.previewNode() is None, 60)
        dialog.close()
        self.assertEqual(self.ui.playButton.text, "Play")

    def testUnderATransformThatStretches(self):
        node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLinearTransformNode", "Stretch")
        matrix = np.diag([1.0, 1.0, 2.0, 1.0])
        node.SetMatrixTransformToParent(slicer.util.vtkMatrixFromArray(matrix))
        self.volume.SetAndObserveTransformNodeID(node.GetID())
        self.press()
        self.assertIn("press Deform", self.ui.statusLabel.text)
        self.release()
        self.assertFalse(self.panel.deform.running)
        self.assertEqual(len(LADDER), len(set(LADDER)))
