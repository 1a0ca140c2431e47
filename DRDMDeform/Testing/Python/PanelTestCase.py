"""The panel, operated through its widgets."""

import os
from unittest import mock

import numpy as np
import qt
import SimpleITK as sitk
import slicer
from DRDMDeformLib.mrml import links
from DRDMDeformLib.sections.section import Severity, contrast, messageColor, rgb
from DRDMDeformLib.setup.environment import EnvironmentState
from modulesupport import BY_LEVEL, ModuleTestCase, arrayOf, processEvents, sceneContent, waitFor

from DRDMLib.io.resources import resource
from DRDMLib.models.catalogue import add_user_model


class InputTestCase(ModuleTestCase):
    def testButtonsAreDisabledWithoutAVolume(self):
        self.assertIsNone(self.panel.parameter.inputVolume)
        self.assertFalse(self.ui.deformButton.enabled)
        self.assertFalse(self.ui.applyButton.enabled)
        self.assertIn("volume", self.ui.statusLabel.text)

    def testAScanThatIsLoadedWhileThePanelIsShownIsChosen(self):
        image = str(resource("Sample", "sample.nii.gz"))
        volume = slicer.util.loadVolume(image, {"name": "scan"})
        processEvents(0.05)
        self.assertIs(self.panel.parameter.inputVolume, volume)
        self.assertIsNone(self.panel.parameter.inputSegmentation)
        label = sitk.ReadImage(str(resource("Sample", "sample_label.nii.gz")))
        segmentation = links.segmentationFromImage(slicer.mrmlScene, label, "labels", volume)
        waitFor(lambda: self.panel.parameter.inputSegmentation is segmentation)
        # Another scan does not take its place.
        slicer.util.loadVolume(image, {"name": "other"})
        processEvents(0.05)
        self.assertIs(self.panel.parameter.inputVolume, volume)

    def testSetupIsCollapsedWhenReady(self):
        self.panel.setup.check()
        waitFor(lambda: "Ready" in self.ui.setupStatusLabel.text)
        self.assertIn("PyTorch 2", self.ui.setupStatusLabel.text)
        self.assertTrue(self.ui.setupSection.collapsed)
        self.assertFalse(self.ui.setupButton.visible)

    def testTheBestModelIsDescribed(self):
        self.choosePhantom(model="")
        self.assertTrue(self.ui.deformButton.enabled)
        self.assertIn("Trained on", self.ui.modelInfoLabel.text)
        self.assertIn("3D", self.ui.modelInfoLabel.text)

    def testModelThatMustBeDownloaded(self):
        self.choosePhantom(model="")
        texts = [self.ui.modelComboBox.itemText(i) for i in range(self.ui.modelComboBox.count)]
        self.assertIn("hippocampus-mr-3d", texts)
        index = next(i for i, text in enumerate(texts) if text.startswith("published-lung-ct-3d"))
        if "download" not in texts[index]:
            self.skipTest("the model has been downloaded on this computer")
        self.ui.modelComboBox.currentIndex = index
        self.assertEqual(self.panel.parameter.model, "published-lung-ct-3d")
        self.assertIn("5.3 MB", texts[index])
        before = sceneContent()
        self.ui.deformButton.click()
        self.assertIn("press Download", self.ui.statusLabel.text)
        self.assertIsNone(self.panel.deform.job)
        self.assertEqual(sceneContent(), before)

    def testRemoveAModel(self):
        change = mock.patch.dict(os.environ, {"DRDM_HOME": str(self.folder / "home")})
        change.start()
        self.addCleanup(change.stop)
        own = add_user_model(resource("Models", "general-2d.safetensors"), "mine")
        self.panel.enter()
        self.choosePhantom(model="")

        def choose(name):
            texts = [self.ui.modelComboBox.itemText(i) for i in range(self.ui.modelComboBox.count)]
            self.ui.modelComboBox.currentIndex = texts.index(name)

        choose("hippocampus-mr-3d")
        self.assertFalse(self.ui.removeModelButton.visible)
        choose("mine")
        self.assertTrue(self.ui.removeModelButton.visible)
        for answer in (False, True):
            with mock.patch.object(slicer.util, "confirmOkCancelDisplay", return_value=answer) as asked:
                self.ui.removeModelButton.click()
            self.assertIn("'mine'", asked.call_args.args[0])
            self.assertEqual(own.path.exists(), not answer)
        self.assertEqual(self.panel.parameter.model, "")
        self.assertFalse(self.ui.removeModelButton.visible)
        self.assertRaises(ValueError, choose, "mine")

    def testModelOfAnotherDimension(self):
        self.choosePhantom(model="")
        flat = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "Slice")
        slicer.util.updateVolumeFromArray(flat, np.random.default_rng(0).random((1, 30, 40)).astype(np.float32))
        self.ui.inputVolumeSelector.setCurrentNode(flat)
        index = [self.ui.modelComboBox.itemText(i) for i in range(self.ui.modelComboBox.count)].index(
            "hippocampus-mr-3d"
        )
        self.ui.modelComboBox.currentIndex = index
        self.assertTrue(self.ui.fitLabel.text)
        before = sceneContent()
        self.ui.deformButton.click()
        waitFor(lambda: self.panel.deform.job is None or not self.panel.deform.job.running)
        self.assertIn("single slice", self.ui.statusLabel.text)
        self.assertEqual(sceneContent(), before)

    def testVolumeThatDoesNotFitTheModel(self):
        volume, _segmentation = self.choosePhantom(model="")
        self.assertEqual(self.ui.fitLabel.text, "")
        names = [self.ui.modelComboBox.itemText(i) for i in range(self.ui.modelComboBox.count)]
        self.ui.modelComboBox.currentIndex = names.index("hippocampus-mr-3d")
        volume.SetSpacing(6.0, 6.0, 6.0)
        self.panel.update()
        self.assertIn("mm", self.ui.fitLabel.text)

    def testVolumeWithoutData(self):
        empty = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "Empty")
        self.ui.inputVolumeSelector.setCurrentNode(empty)
        self.ui.deformButton.click()
        self.assertIn("Empty", self.ui.statusLabel.text + self.ui.fitLabel.text)
        self.assertIsNone(self.panel.deform.job)

    def testPyTorchIsNotInstalled(self):
        self.choosePhantom(model="")
        missing = EnvironmentState(problem="PyTorch is not installed yet.", remedy="Install PyTorch")
        with mock.patch.object(self.panel.environment, "state", return_value=missing):
            self.panel.setup.show()
            self.assertFalse(self.ui.setupSection.collapsed)
            self.assertEqual(self.ui.setupButton.text, "Install PyTorch")
            self.ui.deformButton.click()
            self.assertIn("Setup", self.ui.statusLabel.text)
            self.assertIsNone(self.panel.deform.job)
            # Everything else still works.
            self.ui.strengthComboBox.currentIndex = BY_LEVEL
            self.ui.levelSlider.value = 20
            self.assertEqual(self.panel.parameter.level, 20)
        self.panel.setup.show()
        self.assertTrue(self.ui.setupSection.collapsed)


class ColorsTestCase(ModuleTestCase):
    needsTorch = False

    def testMessagesCanBeReadOnEveryPalette(self):
        """On Slicer's light and dark styles, and on a background between them."""
        for background, text in (("#ffffff", "#000000"), ("#efefef", "#202020"), ("#353535", "#ffffff")):
            palette = qt.QPalette(qt.QColor(background))
            palette.setColor(qt.QPalette.Window, qt.QColor(background))
            palette.setColor(qt.QPalette.WindowText, qt.QColor(text))
            colors = {severity: messageColor(palette, severity) for severity in Severity}
            self.assertEqual(len(set(colors.values())), 3)
            for color in colors.values():
                self.assertGreaterEqual(contrast(rgb(qt.QColor(color)), rgb(qt.QColor(background))), 4.5)

    def testTheDarkStyle(self):
        light = qt.QApplication.palette()
        dark = qt.QPalette(qt.QColor("#353535"))
        dark.setColor(qt.QPalette.Window, qt.QColor("#353535"))
        dark.setColor(qt.QPalette.WindowText, qt.QColor("#ffffff"))
        self.addCleanup(qt.QApplication.setPalette, light)
        label, section = self.ui.statusLabel, self.panel.deform
        section.showMessage(label, "It failed.", Severity.ERROR)
        colors = [label.styleSheet]
        qt.QApplication.setPalette(dark)
        processEvents(0.1)
        # Again, although the label has a color of its own by now.
        for _ in range(2):
            section.showMessage(label, "It failed.", Severity.ERROR)
            colors.append(label.styleSheet)
        self.assertNotEqual(colors[0], colors[1])
        self.assertEqual(colors[1], colors[2])
        shown = qt.QColor(colors[1].split(":")[1].strip(" ;"))
        self.assertGreaterEqual(contrast(rgb(shown), rgb(qt.QColor("#353535"))), 4.5)


class ApplyTestCase(ModuleTestCase):
    def testOnCopies(self):
        volume, segmentation = self.choosePhantom()
        self.deform()
        transform = volume.GetParentTransformNode()
        before = arrayOf(volume)
        self.ui.applyButton.click()
        self.assertIn("deformed", self.ui.applyLabel.text)
        made = slicer.util.getNodesByClass("vtkMRMLScalarVolumeNode")[-1]
        self.assertIsNot(made, volume)
        self.assertIsNone(made.GetParentTransformNode())
        # The original is shown; one click shows the deformation again.
        self.assertFalse(self.ui.previewCheckBox.checked)
        self.assertIsNone(volume.GetParentTransformNode())
        self.ui.previewCheckBox.checked = True
        self.assertIs(volume.GetParentTransformNode(), transform)
        np.testing.assert_array_equal(arrayOf(volume), before)
        self.assertEqual(arrayOf(made).shape, before.shape)
        self.assertGreater(np.abs(arrayOf(made).astype(float) - before).max(), 0.05 * np.ptp(before))
        self.assertEqual(len(slicer.util.getNodesByClass("vtkMRMLSegmentationNode")), 2)
        self.assertEqual(segmentation.GetSegmentation().GetNumberOfSegments(), 2)

    def testPermanently(self):
        volume, segmentation = self.choosePhantom()
        self.ui.copiesCheckBox.checked = False
        self.deform()
        self.assertEqual(self.ui.applyButton.text, "Apply permanently")
        before = arrayOf(volume)
        self.ui.applyButton.click()
        self.assertIsNone(volume.GetParentTransformNode())
        self.assertIsNone(segmentation.GetParentTransformNode())
        self.assertGreater(np.abs(arrayOf(volume).astype(float) - before).max(), 0.05 * np.ptp(before))
        self.assertFalse(self.ui.applyButton.enabled)
        self.assertEqual(len(slicer.util.getNodesByClass("vtkMRMLScalarVolumeNode")), 1)

    def testAsSlicerHardens(self):
        volume, _segmentation = self.choosePhantom()
        self.deform()
        self.ui.gridComboBox.currentIndex = 1
        self.ui.applyButton.click()
        made = slicer.util.getNodesByClass("vtkMRMLScalarVolumeNode")[-1]
        self.assertIsNot(made, volume)
        self.assertIsNone(made.GetParentTransformNode())

    def testEveryVariant(self):
        volume, segmentation = self.choosePhantom(steps=1)
        self.ui.variantsSpinBox.value = 3
        self.deform()
        self.ui.variantChoiceComboBox.currentIndex = 1
        self.assertIs(self.panel.parameter.versions.value, "all")
        self.ui.applyButton.click()
        self.assertIn("3 variants", self.ui.applyLabel.text)
        self.assertIn("Phantom variants", self.ui.applyLabel.text)
        volumes = slicer.util.getNodesByClass("vtkMRMLScalarVolumeNode")
        names = [node.GetName() for node in volumes if node is not volume]
        self.assertEqual(names, [f"Phantom deformed {n}" for n in (1, 2, 3)])
        copies = [node for node in slicer.util.getNodesByClass("vtkMRMLSegmentationNode") if node is not segmentation]
        self.assertEqual(len(copies), 3)
        role = slicer.vtkMRMLSegmentationNode.GetReferenceImageGeometryReferenceRole()
        self.assertEqual([copy.GetNodeReferenceID(role) for copy in copies], [node.GetID() for node in volumes[1:]])
        self.assertEqual(len({arrayOf(node).tobytes() for node in volumes}), 4)
        # The original is shown; one click shows the deformation again.
        self.assertIsNone(volume.GetParentTransformNode())
        self.assertFalse(self.ui.previewCheckBox.checked)
        self.ui.previewCheckBox.checked = True
        self.assertIsNotNone(segmentation.GetParentTransformNode())
        # The nodes themselves can only become one variant.
        self.ui.copiesCheckBox.checked = False
        self.assertFalse(self.ui.variantChoiceComboBox.enabled)
        self.ui.applyButton.click()
        self.assertIn("Changed permanently: Phantom, Phantom segmentation", self.ui.applyLabel.text)
        self.assertEqual(len(slicer.util.getNodesByClass("vtkMRMLScalarVolumeNode")), 4)

    def testEveryVariantCanceled(self):
        volume, _segmentation = self.choosePhantom(steps=1)
        self.ui.variantsSpinBox.value = 2
        self.deform()
        transform = volume.GetParentTransformNode()
        self.ui.variantChoiceComboBox.currentIndex = 1
        before = sceneContent()
        make = slicer.util.createProgressDialog

        def pressed(*arguments, **settings):
            dialog = make(*arguments, **settings)
            dialog.cancel()
            return dialog

        with mock.patch.object(slicer.util, "createProgressDialog", pressed):
            self.ui.applyButton.click()
        self.assertIn("Canceled", self.ui.applyLabel.text)
        self.assertEqual(sceneContent(), before)
        self.assertIs(volume.GetParentTransformNode(), transform)
        self.assertTrue(self.ui.previewCheckBox.checked)

    def testNodeThatCannotBeApplied(self):
        _volume, segmentation = self.choosePhantom()
        self.deform()
        elsewhere = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLinearTransformNode", "Elsewhere")
        segmentation.SetAndObserveTransformNodeID(elsewhere.GetID())
        before = sceneContent()
        for index in (0, 1):
            self.ui.variantChoiceComboBox.currentIndex = index
            with mock.patch.object(slicer.util, "errorDisplay") as window:
                self.ui.applyButton.click()
            window.assert_not_called()
            self.assertIn("Elsewhere", self.ui.applyLabel.text)
            self.assertEqual(len(self.ui.applyLabel.text.splitlines()), 1)
            self.assertEqual(sceneContent(), before)
