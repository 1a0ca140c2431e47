"""The section Deform of the panel, operated through its widgets."""

import time

import numpy as np
import SimpleITK as sitk
import slicer
import vtk
from DRDMDeformLib import mrml
from DRDMDeformLib.sections.texts import fitText
from modulesupport import (
    BY_LEVEL,
    MODEL,
    ModuleTestCase,
    arrayOf,
    displacements,
    processEvents,
    sceneContent,
    volumeBounds,
    waitFor,
)

from DRDMLib.io.resources import resource


class DeformTestCase(ModuleTestCase):
    def testStrengthIsDescribed(self):
        self.choosePhantom(model="")
        self.assertEqual(self.ui.strengthComboBox.currentText, "Medium")
        self.assertTrue(self.ui.levelSlider.isHidden())
        self.assertIn("75 %", self.ui.levelLabel.text)
        self.ui.strengthComboBox.currentIndex = BY_LEVEL
        self.assertFalse(self.ui.levelSlider.isHidden())
        for level in (5, 79):
            self.ui.levelSlider.value = level
            self.assertEqual(self.panel.parameter.level, level)
            self.assertIn(f"{level} of 79", self.ui.levelLabel.text)

    def testStrengthsMeanLevelsOfTheModel(self):
        self.choosePhantom(steps=1)
        for number in range(BY_LEVEL):
            self.ui.strengthComboBox.currentIndex = number
            self.deform()
        self.ui.strengthComboBox.currentIndex = BY_LEVEL
        self.ui.levelSlider.value = 7
        self.deform()
        texts = [self.ui.variantsTable.item(row, 1).text() for row in range(4)]
        self.assertEqual([text.partition(" ")[2] for text in texts], ["(subtle)", "(medium)", "(strong)", ""])
        levels = [int(text.partition(" ")[0]) for text in texts]
        self.assertEqual(levels, [*sorted(levels[:3]), 7])

    def testNewSeedButton(self):
        self.choosePhantom()
        seeds = set()
        for _ in range(5):
            self.ui.newSeedButton.click()
            seeds.add(self.panel.parameter.seed)
        self.assertEqual(self.ui.seedSpinBox.value, self.panel.parameter.seed)
        self.assertGreater(len(seeds), 1)

    def testDeformButton(self):
        volume, segmentation = self.choosePhantom(model="")
        markups = self.addMarkups()
        self.ui.otherNodesSelector.setCheckState(markups, 2)
        before = arrayOf(volume)
        self.deform()
        transform = volume.GetParentTransformNode()
        self.assertIsNotNone(transform)
        self.assertTrue(transform.IsA("vtkMRMLGridTransformNode"))
        self.assertIn("Phantom", transform.GetName())
        self.assertIs(segmentation.GetParentTransformNode(), transform)
        self.assertIs(markups.GetParentTransformNode(), transform)
        np.testing.assert_array_equal(arrayOf(volume), before)
        hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(slicer.mrmlScene)
        places = [hierarchy.GetItemParent(hierarchy.GetItemByDataNode(node)) for node in (transform, volume)]
        self.assertEqual(places[0], places[1])
        # The metrics in the table.
        table = self.ui.variantsTable
        self.assertEqual(table.rowCount, 1)
        self.assertTrue(table.item(0, 1).text().endswith("(medium)"), table.item(0, 1).text())
        self.assertGreater(float(table.item(0, 4).text()), float(table.item(0, 3).text()))
        # How well the model fits the scan.
        (record,) = self.logic.figures(transform)
        self.assertEqual(record["fit"]["model"], record["model"])
        percent = round(100 * record["fit"]["undone"])
        self.assertIn(f"{record['model']}; undoes {percent} % on this scan", self.ui.statusLabel.text)
        fit = {**record["fit"], "undone": -0.5, "word": "poor"}
        self.assertIn("; undoes nothing on this scan: poor.", fitText(fit))
        # The preview check box.
        self.ui.previewCheckBox.checked = False
        self.assertIsNone(volume.GetParentTransformNode())
        self.assertIsNone(markups.GetParentTransformNode())
        self.ui.previewCheckBox.checked = True
        self.assertIs(volume.GetParentTransformNode(), transform)
        # Check another markups node, uncheck the first.
        other = self.addMarkups()
        self.ui.otherNodesSelector.setCheckState(other, 2)
        self.assertIs(other.GetParentTransformNode(), transform)
        self.ui.otherNodesSelector.setCheckState(markups, 0)
        self.assertIsNone(markups.GetParentTransformNode())

    def testSameSeedGivesSameVariant(self):
        volume, _segmentation = self.choosePhantom()
        self.ui.seedSpinBox.value = 7
        self.ui.keepSeedCheckBox.checked = True
        self.deform()
        self.deform()
        first, second = self.logic.deformations(volume)
        self.assertGreater(np.abs(displacements(first)).max(), 1.0)
        np.testing.assert_array_equal(displacements(first), displacements(second))
        self.assertEqual(self.ui.variantsTable.rowCount, 2)
        # Without the lock each press makes another variant.
        self.ui.keepSeedCheckBox.checked = False
        self.deform()
        third = self.logic.deformations(volume)[-1]
        self.assertGreater(np.abs(displacements(first) - displacements(third)).max(), 0.1)
        self.assertEqual(self.logic.figures(third)[0]["seed"], self.ui.seedSpinBox.value)
        # A seed that was entered is used.
        self.ui.seedSpinBox.value = 7
        self.deform()
        np.testing.assert_array_equal(displacements(first), displacements(self.logic.deformations(volume)[-1]))

    def testPanelAndConsoleAgree(self):
        volume, _segmentation = self.choosePhantom(steps=3, model="")
        self.ui.aroundCheckBox.checked = False
        self.ui.seedSpinBox.value = 3
        self.ui.poseSpinBox.value = 0.5
        self.deform()
        other = self.logic.deform(volume, level="medium", seed=3, steps=3, pose=0.5, device="cpu")
        made = volume.GetParentTransformNode()
        self.assertGreater(np.abs(displacements(made)).max(), 1.0)
        self.assertLess(np.abs(displacements(made) - displacements(other)).max(), 0.01)
        upright = self.logic.deform(volume, level="medium", seed=3, steps=3, device="cpu")
        self.assertGreater(np.abs(displacements(made) - displacements(upright)).max(), 1.0)

    def testRegion(self):
        volume, segmentation = self.choosePhantom()
        self.assertTrue(self.ui.aroundCheckBox.checked)
        self.assertTrue(self.ui.aroundCheckBox.enabled)
        self.ui.keepEdit.text = "no such segment"
        self.ui.deformButton.click()
        self.assertIn("no such segment", self.ui.statusLabel.text)
        self.ui.keepEdit.text = segmentation.GetSegmentation().GetNthSegment(0).GetName()
        self.deform()
        around = self.logic.figures(volume.GetParentTransformNode())[0]["region"]
        self.assertLess(around["kept"]["max_mm"], 1e-3)
        self.ui.keepEdit.text = ""
        # An ROI comes before the segmentation; nothing moves outside its margin.
        roi = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLMarkupsROINode", "R")
        bounds = [0.0] * 6
        volume.GetRASBounds(bounds)
        center = [(bounds[2 * a] + bounds[2 * a + 1]) / 2 for a in range(3)]
        roi.SetCenter(*center)
        roi.SetSize(14.0, 14.0, 14.0)
        self.ui.regionSelector.setCurrentNode(roi)
        self.assertFalse(self.ui.aroundCheckBox.enabled)
        self.ui.marginSpinBox.value = 8.0
        self.deform()
        transform = volume.GetParentTransformNode()
        record = self.logic.figures(transform)[0]
        self.assertEqual(len(record["region"]["boxes"]), 1)
        self.assertLessEqual(record["region"]["margin_mm"], 8.0)
        self.assertTrue(record["metrics"]["certified_invertible"])
        general = vtk.vtkGeneralTransform()
        transform.GetTransformFromWorld(general)
        for offset in (17.0, -17.0, 60.0):
            point = [center[0] + offset, center[1], center[2]]
            np.testing.assert_allclose(general.TransformPoint(point), point, atol=1e-6)

    def addLargerPhantom(self, name="Larger"):
        """Add the phantom as it would be in a somewhat larger person."""
        image = sitk.ReadImage(str(resource("Sample", "sample.nii.gz")))
        larger = sitk.ScaleTransform(3, (0.85, 0.9, 0.85))
        larger.SetCenter(image.TransformContinuousIndexToPhysicalPoint([(n - 1) / 2 for n in image.GetSize()]))
        return mrml.volumeFromImage(slicer.mrmlScene, sitk.Resample(image, image, larger), name)

    def testVariantsTowardAnotherScan(self):
        volume, _segmentation = self.choosePhantom(steps=1)
        ui, other = self.ui, self.addLargerPhantom()
        self.panel.parameter.keepSeed = True
        self.panel.parameter.towardVolume = other
        self.assertIs(ui.towardSelector.currentNode(), other)
        # The whole scan is deformed, and there is no preview.
        self.assertFalse(ui.aroundCheckBox.enabled or ui.liveCheckBox.enabled)
        self.deform()
        made = self.panel.parameter.deformations
        record = self.logic.figures(made)[0]
        self.assertTrue(0.2 <= record["toward"] <= 1)
        self.assertNotIn("region", record)
        again = self.logic.deform(volume, MODEL, "medium", record["seed"], 1, toward=other)
        self.assertEqual(self.logic.figures(again)[0]["toward"], record["toward"])
        np.testing.assert_allclose(displacements(again), displacements(made), atol=1e-3)
        alone = self.logic.deform(volume, MODEL, "medium", record["seed"], 1)
        # Toward a larger person the phantom grows: each point shows what is nearer to its middle.
        low, high = np.reshape(volumeBounds(volume), (3, 2)).T
        middle, reach = (low + high) / 2, (high - low).min() / 4
        inward = displacements(again, reach, middle) - displacements(alone, reach, middle)
        places = np.stack(np.meshgrid(*[np.linspace(-reach, reach, 5)] * 3), -1).reshape(-1, 3)
        self.assertLess((inward * places).sum(), 0)
        self.panel.parameter.towardVolume = None
        self.assertTrue(ui.aroundCheckBox.enabled and ui.liveCheckBox.enabled)

    def testTowardScansThatCannotBeUsed(self):
        volume, _segmentation = self.choosePhantom(steps=1)
        ui, p = self.ui, self.panel.parameter
        p.towardVolume = volume
        ui.deformButton.click()
        self.assertIn("another one to go toward", ui.statusLabel.text)
        p.towardVolume = self.addLargerPhantom()
        p.keep = "1"
        ui.deformButton.click()
        self.assertIn("Only whole scans", ui.statusLabel.text)
        p.keep = ""
        noise = np.random.default_rng(0).normal(size=(20, 24, 28)).astype(np.float32)
        p.towardVolume = mrml.volumeFromImage(slicer.mrmlScene, sitk.GetImageFromArray(noise), "Noise")
        ui.deformButton.click()
        waitFor(lambda: not self.panel.deform.job.running)
        self.assertIn("The scan 'Noise' cannot be registered", ui.statusLabel.text)
        with self.assertRaisesRegex(mrml.SceneError, "'Noise' cannot be registered"):
            self.logic.deform(volume, toward=p.towardVolume)
        self.assertEqual(self.logic.deformations(volume), [])

    def testVariantsAsSequence(self):
        volume, _segmentation = self.choosePhantom()
        self.ui.variantsSpinBox.value = 3
        self.deform()
        table = self.ui.variantsTable
        self.assertEqual(table.rowCount, 3)
        # The scroll bar of a narrow panel covers no row.
        rows = table.horizontalHeader().height + sum(table.rowHeight(row) for row in range(3))
        self.assertGreaterEqual(table.minimumHeight, rows + table.horizontalScrollBar().sizeHint.height())
        self.assertEqual([table.item(row, 2).text() for row in range(3)], ["0", "1", "2"])
        transform = volume.GetParentTransformNode()
        fields = []
        for row in range(3):
            table.selectRow(row)
            self.assertIs(volume.GetParentTransformNode(), transform)
            fields.append(displacements(transform))
        self.assertGreater(np.abs(fields[0] - fields[1]).max(), 0.1)
        self.assertGreater(np.abs(fields[1] - fields[2]).max(), 0.1)
        table.selectRow(0)
        np.testing.assert_array_equal(displacements(transform), fields[0])

    def testVariantsAsSeparateNodes(self):
        volume, _segmentation = self.choosePhantom()
        self.ui.variantsSpinBox.value = 2
        self.ui.sequenceCheckBox.checked = False
        self.deform()
        self.assertEqual(len(self.logic.deformations(volume)), 2)
        first = volume.GetParentTransformNode()
        self.ui.variantsTable.selectRow(1)
        second = volume.GetParentTransformNode()
        self.assertIsNot(first, second)
        self.assertEqual(self.panel.parameter.deformations.GetID(), second.GetID())

    def testBrowseAndRemove(self):
        volume, _segmentation = self.choosePhantom()
        self.ui.variantsSpinBox.value = 3
        self.deform()
        table, remove = self.ui.variantsTable, self.ui.removeButton
        table.selectRow(1)
        remove.click()
        self.assertEqual([table.item(row, 2).text() for row in range(table.rowCount)], ["0", "2"])
        # The next variant is shown.
        self.assertEqual(table.currentRow(), 1)
        self.assertEqual(self.logic.figures(volume.GetParentTransformNode())[0]["seed"], 2)
        remove.click()
        self.assertEqual(self.logic.figures(volume.GetParentTransformNode())[0]["seed"], 0)
        remove.click()
        self.assertEqual(table.rowCount, 0)
        self.assertIsNone(volume.GetParentTransformNode())
        self.assertIsNone(self.panel.parameter.deformations)
        self.assertFalse(remove.enabled)
        self.assertFalse(self.ui.applyButton.enabled)
        self.assertEqual(slicer.util.getNodesByClass("vtkMRMLSequenceBrowserNode"), [])
        self.deform()

    def testTheOriginalIsNotShownBetweenTwoVersions(self):
        """Slicer needs some tenths of a second to show a volume under no transform, and under one again."""
        volume, segmentation = self.choosePhantom()
        self.deform()
        first = volume.GetParentTransformNode()
        parents = []

        def onTransform(caller, _event):
            parents.append(caller.GetParentTransformNode())

        event = slicer.vtkMRMLTransformableNode.TransformModifiedEvent
        tags = [(node, node.AddObserver(event, onTransform)) for node in (volume, segmentation)]
        self.deform()
        second = volume.GetParentTransformNode()
        self.assertIsNot(second, first)
        self.ui.variantsTable.selectRow(0)
        self.assertIs(volume.GetParentTransformNode(), first)
        self.assertIs(segmentation.GetParentTransformNode(), first)
        for node, tag in tags:
            node.RemoveObserver(tag)
        self.assertGreater(len(parents), 3)
        self.assertNotIn(None, parents)

    def testCancel(self):
        self.choosePhantom(steps=0)
        self.ui.variantsSpinBox.value = 20
        self.ui.strengthComboBox.currentIndex = BY_LEVEL
        self.ui.levelSlider.value = 79
        before = sceneContent()
        self.ui.deformButton.click()
        self.assertTrue(self.ui.cancelButton.enabled)
        self.assertFalse(self.ui.deformButton.enabled)
        process = self.panel.deform.job.process
        waitFor(lambda: self.ui.progressBar.value > 0)
        waitFor(lambda: "left" in self.ui.progressBar.format)
        self.ui.cancelButton.click()
        # Cancel takes effect at once.
        self.assertTrue(self.ui.deformButton.enabled)
        self.assertFalse(self.ui.cancelButton.enabled)
        waitFor(lambda: process.poll()[1] is not None)
        self.assertEqual(sceneContent(), before)
        self.assertIn("Canceled", self.ui.statusLabel.text)

    def testApplicationStaysResponsive(self):
        self.choosePhantom(steps=0)
        self.ui.deformButton.click()
        rounds = 0
        while self.panel.deform.job.running and self.ui.progressBar.value < 500:
            slicer.app.processEvents()
            time.sleep(0.005)
            rounds += 1
        self.ui.cancelButton.click()
        # If the computation ran in this process, it would block the events.
        self.assertGreater(rounds, 50)

    def testVolumeDeletedDuringAJob(self):
        volume, _segmentation = self.choosePhantom()
        self.ui.deformButton.click()
        slicer.mrmlScene.RemoveNode(volume)
        before = sceneContent()
        waitFor(lambda: not self.panel.deform.job.running)
        processEvents(0.1)
        self.assertIn("removed", self.ui.statusLabel.text)
        self.assertEqual(sceneContent(), before)

    def testSceneClosedDuringAJob(self):
        self.choosePhantom(steps=0)
        self.ui.deformButton.click()
        job = self.panel.deform.job
        slicer.mrmlScene.Clear(0)
        self.assertFalse(job.running)
        self.assertIsNone(self.panel.parameter.inputVolume)
        self.assertFalse(self.ui.deformButton.enabled)
        self.choosePhantom()
        self.deform()

    def testShownTransformDeleted(self):
        volume, _segmentation = self.choosePhantom()
        self.deform()
        slicer.mrmlScene.RemoveNode(volume.GetParentTransformNode())
        processEvents(0.1)
        self.assertEqual(self.ui.variantsTable.rowCount, 0)
        self.assertIsNone(self.panel.parameter.deformations)
        self.assertFalse(self.ui.applyButton.enabled)

    def testNodeUnderAnotherTransform(self):
        _volume, segmentation = self.choosePhantom()
        elsewhere = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLinearTransformNode", "Elsewhere")
        segmentation.SetAndObserveTransformNodeID(elsewhere.GetID())
        self.deform()
        self.assertIn(segmentation.GetName(), self.ui.statusLabel.text)
        self.assertIs(segmentation.GetParentTransformNode(), elsewhere)

    def testDeformationIsDrawn(self):
        volume, _segmentation = self.choosePhantom()
        self.deform()
        display = None
        for index, visible in ((1, True), (2, True), (3, True), (0, False)):
            self.ui.displayComboBox.currentIndex = index
            display = volume.GetParentTransformNode().GetDisplayNode()
            self.assertEqual(bool(display.GetVisibility()), visible)
        self.ui.jacobianButton.click()
        made = slicer.util.getNodesByClass("vtkMRMLScalarVolumeNode")[-1]
        self.assertIsNot(made, volume)
        values = arrayOf(made)
        self.assertLess(values.min(), 1.0)
        self.assertGreater(values.max(), 1.0)

    def testTheJacobianGoesWithItsVariant(self):
        self.choosePhantom(steps=1)
        self.ui.variantsSpinBox.value = 2
        self.deform()
        composite = slicer.app.applicationLogic().GetSliceLogics().GetItemAsObject(0).GetSliceCompositeNode()

        def overlay():
            return bool(composite.GetForegroundVolumeID())

        for leave in (
            lambda: self.ui.variantsTable.selectRow(1),
            lambda: setattr(self.ui.previewCheckBox, "checked", 0),
        ):
            self.ui.jacobianButton.click()
            self.assertTrue(overlay())
            leave()
            self.assertFalse(overlay())

    def testNoSentenceStaysAfterTheSceneIsClosed(self):
        labels = (self.ui.applyLabel, self.ui.batchLabel)
        for label in labels:
            self.panel.apply.showMessage(label, "Created: Phantom deformed.")
        slicer.mrmlScene.Clear(0)
        self.assertEqual([label.text for label in labels], ["", ""])
