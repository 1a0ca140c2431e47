"""The panel and the scene: save, load, close, reload, several patients, parent transforms."""

import sys

import numpy as np
import SimpleITK as sitk
import slicer
import vtk
from DRDMDeformLib import mrml
from modulesupport import BY_LEVEL, MODEL, ModuleTestCase, arrayOf, displacements, processEvents, sceneContent, waitFor

from DRDMLib.io.resources import resource


class SceneTestCase(ModuleTestCase):
    def testSaveAndRestore(self):
        volume, _segmentation = self.choosePhantom()
        self.addMarkups()
        self.ui.otherNodesSelector.setCheckState(slicer.util.getNode("Landmarks"), 2)
        self.ui.strengthComboBox.currentIndex = BY_LEVEL
        self.ui.levelSlider.value = 33
        self.ui.variantsSpinBox.value = 2
        self.deform()
        self.ui.variantsTable.selectRow(1)
        field = displacements(volume.GetParentTransformNode())
        path = self.folder / "scene.mrb"
        self.assertTrue(slicer.util.saveScene(str(path)))
        slicer.mrmlScene.Clear(0)
        self.assertEqual(self.ui.variantsTable.rowCount, 0)
        slicer.util.loadScene(str(path))
        processEvents(0.1)
        volume = slicer.util.getNode("Phantom")
        self.assertIs(self.panel.parameter.inputVolume, volume)
        self.assertEqual(self.ui.levelSlider.value, 33)
        markups = slicer.util.getNode("Landmarks")
        self.assertEqual([node.GetID() for node in self.ui.otherNodesSelector.checkedNodes()], [markups.GetID()])
        self.assertEqual(self.ui.variantsTable.rowCount, 2)
        self.assertEqual(self.ui.variantsTable.item(1, 2).text(), "1")
        transform = volume.GetParentTransformNode()
        np.testing.assert_allclose(displacements(transform), field, atol=1e-3)
        self.assertIs(markups.GetParentTransformNode(), transform)
        self.ui.previewCheckBox.checked = False
        self.assertIsNone(volume.GetParentTransformNode())
        self.assertIsNone(markups.GetParentTransformNode())

    def testReload(self):
        self.choosePhantom(steps=0)
        self.ui.deformButton.click()
        job = self.panel.deform.job
        before = sys.modules["DRDMDeformLib.panel"]
        self.widget.onReload()
        self.assertFalse(job.running)
        self.assertIsNot(sys.modules["DRDMDeformLib.panel"], before)
        self.widget = slicer.util.getModuleWidget("DRDMDeform")
        self.panel, self.ui, self.logic = self.widget.panel, self.widget.panel.ui, self.widget.logic
        self.assertEqual(self.ui.inputVolumeSelector.currentNode().GetName(), "Phantom")
        self.ui.stepsSpinBox.value = 2
        self.deform()

    def testClosingRepeatedly(self):
        scene = slicer.mrmlScene
        self.choosePhantom()
        slicer.mrmlScene.Clear(0)
        observers = [scene.HasObserver(event) for event in (scene.StartCloseEvent, scene.EndCloseEvent)]
        for _ in range(20):
            self.choosePhantom()
            scene.Clear(0)
        self.assertEqual(
            [scene.HasObserver(event) for event in (scene.StartCloseEvent, scene.EndCloseEvent)], observers
        )
        # Other modules of Slicer have such nodes, too.
        tags = [node.GetSingletonTag() for node in slicer.util.getNodesByClass("vtkMRMLScriptedModuleNode")]
        self.assertEqual(tags.count("DRDMDeform"), 1)


class SeveralTestCase(ModuleTestCase):
    def testTwoPatients(self):
        first, firstSegmentation = self.choosePhantom(steps=1)
        self.deform()
        second, secondSegmentation = self.addPhantom("Second")
        self.ui.inputVolumeSelector.setCurrentNode(second)
        # No node of one patient is under the deformation of the other.
        self.assertIs(self.ui.segmentationSelector.currentNode(), secondSegmentation)
        for node in (first, firstSegmentation, second, secondSegmentation):
            self.assertIsNone(node.GetParentTransformNode())
        self.assertEqual(self.ui.variantsTable.rowCount, 0)
        self.assertFalse(self.ui.applyButton.enabled)
        self.deform()
        self.ui.inputVolumeSelector.setCurrentNode(first)
        self.assertIs(self.ui.segmentationSelector.currentNode(), firstSegmentation)
        self.assertIsNone(second.GetParentTransformNode())
        # One click shows the variant of the first patient again.
        self.ui.variantsTable.selectRow(0)
        self.assertIs(self.logic.volumeOf(firstSegmentation.GetParentTransformNode()), first)

    def testSegmentationWithoutAVolumeStaysChosen(self):
        self.choosePhantom()
        loose = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", "Loose")
        self.ui.segmentationSelector.setCurrentNode(loose)
        second, _segmentation = self.addPhantom("Second")
        self.ui.inputVolumeSelector.setCurrentNode(second)
        self.assertIs(self.ui.segmentationSelector.currentNode(), loose)

    def testAnotherVolumeChosenDuringAJob(self):
        first, _segmentation = self.choosePhantom(steps=1)
        second, _segmentation = self.addPhantom("Second")
        self.ui.deformButton.click()
        self.ui.inputVolumeSelector.setCurrentNode(second)
        waitFor(lambda: not self.panel.deform.job.running)
        self.assertIn("'Phantom' are ready", self.ui.statusLabel.text)
        self.assertIsNone(second.GetParentTransformNode())
        self.assertIsNone(first.GetParentTransformNode())
        self.ui.inputVolumeSelector.setCurrentNode(first)
        self.assertEqual(self.ui.variantsTable.rowCount, 1)

    def testOnlyTheShownDeformationIsDrawn(self):
        first, _segmentation = self.choosePhantom(steps=1)
        self.ui.variantsSpinBox.value = 2
        self.ui.sequenceCheckBox.checked = False
        self.ui.displayComboBox.currentIndex = 1
        self.deform()
        one, other = self.logic.deformations(first)

        def drawn():
            nodes = [node.GetDisplayNode() for node in (one, other)]
            return [node is not None and bool(node.GetVisibility()) for node in nodes]

        self.assertEqual(drawn(), [True, False])
        self.ui.variantsTable.selectRow(1)
        self.assertEqual(drawn(), [False, True])
        second, _segmentation = self.addPhantom("Second")
        self.ui.inputVolumeSelector.setCurrentNode(second)
        self.assertEqual(drawn(), [False, False])

    def testSequenceToolBar(self):
        volume, _segmentation = self.choosePhantom(steps=1)
        self.ui.variantsSpinBox.value = 3
        self.deform()
        self.assertTrue(slicer.modules.sequences.toolBarVisible)
        processEvents(0.1)
        browser = slicer.util.getNodesByClass("vtkMRMLSequenceBrowserNode")[-1]
        browser.SetSelectedItemNumber(2)
        self.assertEqual(self.ui.variantsTable.currentRow(), 2)
        processEvents(0.1)
        self.assertEqual(self.logic.figures(volume.GetParentTransformNode())[0]["seed"], 2)


class PlacesTestCase(ModuleTestCase):
    def parent(self, kind):
        if kind == "linear":
            node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLinearTransformNode", "Turned")
            matrix = vtk.vtkTransform()
            matrix.RotateZ(30)
            matrix.Translate(10, -20, 5)
            node.SetMatrixTransformToParent(matrix.GetMatrix())
            return node
        vectors = np.random.default_rng(1).normal(scale=1.5, size=(5, 5, 5, 3))
        field = sitk.GetImageFromArray(vectors, isVector=True)
        field.SetSpacing([40.0] * 3)
        field.SetOrigin([-80.0] * 3)
        return mrml.createTransform(slicer.mrmlScene, field, "Bent")

    def testUnderATransform(self):
        for kind in ("linear", "grid"):
            with self.subTest(kind):
                slicer.mrmlScene.Clear(0)
                volume, segmentation = self.choosePhantom(steps=1)
                self.panel.parameter.aroundSegmentation = False
                parent = self.parent(kind)
                for node in (volume, segmentation):
                    node.SetAndObserveTransformNodeID(parent.GetID())
                world = mrml.imageFromVolume(volume)
                self.deform()
                transform = volume.GetParentTransformNode()
                self.assertIs(transform.GetParentTransformNode(), parent)
                self.assertIs(segmentation.GetParentTransformNode(), transform)
                # The result agrees with a deformation by DRDMLib of the volume in world space.
                record = self.logic.figures(transform)[0]
                result = self.deformed(world, record["model"])
                fields = (mrml.fieldFromTransform(transform), sitk.Cast(result.field, sitk.sitkVectorFloat64))
                got, want = (sitk.DisplacementFieldTransform(field) for field in fields)
                points = self.pointsIn(world)
                moved = np.array([want.TransformPoint(point) for point in points]) - points
                miss = np.array([got.TransformPoint(point) for point in points]) - points - moved
                self.assertGreater(np.abs(moved).max(), 1.0)
                self.assertLess(np.abs(miss).max(), 0.1)
                self.ui.applyButton.click()
                copy = slicer.util.getNode("Phantom deformed")
                self.assertIs(copy.GetParentTransformNode(), parent)
                if kind == "linear":
                    made = sitk.GetArrayFromImage(mrml.imageFromVolume(copy)).astype(float)
                    wanted = sitk.GetArrayFromImage(result.warp(world)).astype(float)
                    self.assertLess(np.abs(made - wanted)[3:-3, 3:-3, 3:-3].max(), 0.01 * np.ptp(wanted))
                # Without the transform the volume has its previous parent.
                self.ui.previewCheckBox.checked = True
                slicer.mrmlScene.RemoveNode(transform)
                processEvents(0.1)
                self.assertIs(volume.GetParentTransformNode(), parent)
                self.assertIs(segmentation.GetParentTransformNode(), parent)

    def deformed(self, image, model):
        from DRDMLib import deform, load_model

        return deform(image, load_model(model, "cpu"), self.panel.parameter.strength.value, 0, 1)

    def pointsIn(self, image):
        """Points in the inner half of an image, LPS."""
        places = np.stack(np.meshgrid(*[np.linspace(0.25, 0.75, 5)] * 3), -1).reshape(-1, 3)
        index = places * (np.array(image.GetSize()) - 1)
        return np.array([image.TransformContinuousIndexToPhysicalPoint(i) for i in index.tolist()])

    def testModelIsDeformedToo(self):
        volume, _segmentation = self.choosePhantom(steps=1, model="")
        self.panel.parameter.aroundSegmentation = False
        self.ui.strengthComboBox.currentIndex = BY_LEVEL
        self.panel.parameter.level = 72
        sphere = vtk.vtkSphereSource()
        sphere.SetRadius(8)
        sphere.Update()
        surface = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLModelNode", "Surface")
        surface.SetAndObservePolyData(sphere.GetOutput())
        self.ui.otherNodesSelector.setCheckState(surface, 2)
        self.deform()
        self.assertIs(surface.GetParentTransformNode(), volume.GetParentTransformNode())
        self.ui.applyButton.click()
        made = slicer.util.getNode("Surface deformed")
        moved = slicer.util.arrayFromModelPoints(made) - slicer.util.arrayFromModelPoints(surface)
        self.assertGreater(np.abs(moved).max(), 0.5)
        self.assertIsNone(surface.GetParentTransformNode())

    def testSingleSlice(self):
        image = sitk.ReadImage(str(resource("Sample", "sample.nii.gz")))
        slice_ = sitk.Expand(image[:, :, image.GetSize()[2] // 2], [4, 4])
        slice_.SetSpacing((1.5, 1.5))
        volume = mrml.volumeFromImage(slicer.mrmlScene, slice_, "Slice")
        self.ui.inputVolumeSelector.setCurrentNode(volume)
        self.ui.stepsSpinBox.value = 1
        self.assertIn("general-2d", self.ui.modelInfoLabel.text)
        before = arrayOf(volume)
        self.deform()
        self.ui.applyButton.click()
        made = arrayOf(slicer.util.getNode("Slice deformed"))
        self.assertEqual(made.shape, before.shape)
        self.assertGreater(np.abs(made.astype(float) - before).max(), 0.05 * np.ptp(before))

    def testVolumeLoadedLater(self):
        self.assertIsNone(self.panel.parameter.inputVolume)
        colors = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLVectorVolumeNode", "Photo")
        slicer.util.updateVolumeFromArray(colors, np.zeros((4, 5, 6, 3), np.uint8))
        self.show(colors)
        self.assertIsNone(self.panel.parameter.inputVolume)
        self.assertIn("Choose a volume", self.ui.statusLabel.text)
        volume, segmentation = self.addPhantom()
        self.show(volume)
        self.assertIs(self.ui.inputVolumeSelector.currentNode(), volume)
        self.assertIs(self.ui.segmentationSelector.currentNode(), segmentation)
        self.assertTrue(self.ui.deformButton.enabled)
        # The choice of the user is kept.
        other, _segmentation = self.addPhantom("Other")
        self.show(other)
        self.assertIs(self.ui.inputVolumeSelector.currentNode(), volume)

    def show(self, volume):
        """Show a volume in another module and return."""
        slicer.util.selectModule("Data")
        slicer.util.setSliceViewerLayers(background=volume)
        slicer.app.applicationLogic().GetSelectionNode().SetActiveVolumeID(volume.GetID())
        slicer.util.selectModule("DRDMDeform")

    def testNoDiskSpaceForATemporaryCopy(self):
        try:
            import resource as limits
        except ImportError:
            self.skipTest("file sizes cannot be limited here")
        self.choosePhantom()
        before, was = sceneContent(), limits.getrlimit(limits.RLIMIT_FSIZE)
        limits.setrlimit(limits.RLIMIT_FSIZE, (2000, was[1]))
        try:
            self.ui.deformButton.click()
        finally:
            limits.setrlimit(limits.RLIMIT_FSIZE, was)
        self.assertIn("not enough disk space", self.ui.statusLabel.text)
        self.assertIsNone(self.panel.deform.job)
        self.assertEqual(sceneContent(), before)


class ModelFileTestCase(ModuleTestCase):
    def pick(self, path):
        """Choose the last entry of the list, and this file in the dialog."""
        standin = sys.modules.get("standin")
        if standin is None:
            self.skipTest("a dialog would wait for an answer")
        standin.file_answers.append(str(path))
        self.ui.modelComboBox.currentIndex = self.ui.modelComboBox.count - 1

    def testModelFromAFile(self):
        volume, _segmentation = self.choosePhantom(steps=1, model="")
        path = self.folder / "Modell für Köpfe.safetensors"
        path.write_bytes(resource("Models", f"{MODEL}.safetensors").read_bytes())
        self.pick(path)
        self.assertEqual(self.panel.parameter.model, str(path))
        self.assertEqual(self.ui.modelComboBox.currentText, "Modell für Köpfe")
        self.assertIn("Trained on", self.ui.modelInfoLabel.text)
        self.deform()
        self.assertEqual(self.logic.figures(volume.GetParentTransformNode())[0]["metrics"]["folded_fraction"], 0)

    def testFileThatIsNotAModel(self):
        self.choosePhantom(model="")
        chosen = self.ui.modelComboBox.currentIndex
        bad = self.folder / "bad.safetensors"
        bad.write_bytes(b"no model")
        self.pick(bad)
        self.assertIn("bad.safetensors", self.ui.fitLabel.text)
        self.assertEqual(len(self.ui.fitLabel.text.splitlines()), 1)
        self.assertEqual((self.panel.parameter.model, self.ui.modelComboBox.currentIndex), ("", chosen))
        # The dialog is closed without a choice.
        self.pick("")
        self.assertEqual((self.panel.parameter.model, self.ui.modelComboBox.currentIndex), ("", chosen))

    def testModelFileDeleted(self):
        self.choosePhantom(model="")
        path = self.folder / "gone.safetensors"
        path.write_bytes(resource("Models", f"{MODEL}.safetensors").read_bytes())
        self.pick(path)
        path.unlink()
        before = sceneContent()
        self.ui.deformButton.click()
        self.assertIn("model", self.ui.statusLabel.text)
        self.assertIsNone(self.panel.deform.job)
        self.assertEqual(sceneContent(), before)


class FormTestCase(ModuleTestCase):
    def testEveryWidgetHasAToolTip(self):
        kinds = ("Button", "ComboBox", "SpinBox", "LineEdit", "Slider", "CheckBox", "Selector", "Path", "Table")
        missing = [
            name
            for name, widget in vars(self.ui).items()
            # Names of parts of widgets start with a capital.
            if name[0].islower() and any(name.endswith(kind) for kind in kinds) and not widget.toolTip
        ]
        self.assertEqual(missing, [])

    def testSampleIsRegistered(self):
        import SampleData

        sources = slicer.modules.sampleDataSources["DRDM"]
        self.assertEqual([source.sampleName for source in sources], ["DRDMChest", "DRDMPhantom"])
        chest, organs = SampleData.SampleDataLogic().downloadSamples("DRDMChest")
        self.assertEqual((chest.GetName(), organs.GetName()), ("DRDMChest", "DRDMChestSegmentation"))
        # Slicer reads the names of the segments, too; the stand-in reads their voxels only.
        self.assertEqual(organs.GetSegmentation().GetNumberOfSegments(), 8)
        volume, segmentation = SampleData.SampleDataLogic().downloadSamples("DRDMPhantom")
        self.assertEqual(volume.GetClassName(), "vtkMRMLScalarVolumeNode")
        self.assertEqual(segmentation.GetClassName(), "vtkMRMLSegmentationNode")
