"""Batches in the panel: start, stop, resume, results; and the folders of batches and trainings."""

import json
import os
import sys
from pathlib import Path
from urllib.parse import urlparse
from urllib.request import url2pathname

import numpy as np
import SimpleITK as sitk
import slicer
import vtk
from batchsupport import BatchCase
from DRDMDeformLib import mrml
from DRDMDeformLib.mrml import links
from DRDMDeformLib.sections.section import isSet
from modulesupport import ModuleTestCase, arrayOf, processEvents, waitFor

from DRDMLib.io.resources import resource


def segmentsOf(node):
    """Names and colors of the segments of a segmentation."""
    segments = [node.GetSegmentation().GetNthSegment(n) for n in range(node.GetSegmentation().GetNumberOfSegments())]
    return [(segment.GetName(), np.round(segment.GetColor(), 3).tolist()) for segment in segments]


class BatchTestCase(BatchCase):
    def testStopAndResumeAFolder(self):
        self.chooseFolder(self.writeScans())
        self.ui.poseSpinBox.value = 0.5
        self.assertEqual(self.ui.batchPoseComboBox.currentText, "From these scans, unless chosen above")
        self.assertEqual(self.ui.batchStartButton.text, "Start")
        self.ui.batchStartButton.click()
        job = self.panel.batch.job
        waitFor(lambda: len(job.items) >= 2)
        self.assertTrue(self.ui.batchStopButton.enabled)
        waitFor(lambda: self.ui.batchSampleButton.enabled or not job.running)
        self.ui.batchStopButton.click()
        waitFor(lambda: not job.running)
        processEvents(0.1)
        self.assertIn("Stopped", self.ui.batchLabel.text)
        stopped = len(self.report()["items"])
        self.assertLess(stopped, 12)
        self.assertEqual(self.ui.batchStartButton.text, "Resume")
        job = self.run_()
        self.assertEqual(job.state.value, "done", job.text)
        self.assertEqual([item["pose"] for item in self.report()["items"]], 12 * [0.5])
        self.assertLessEqual(len(job.items), 12 - stopped)
        self.assertIn("12 results", self.ui.batchLabel.text)
        self.ui.batchSampleButton.click()
        self.assertEqual(len(slicer.util.getNodesByClass("vtkMRMLScalarVolumeNode")), 1)
        self.assertEqual(len(slicer.util.getNodesByClass("vtkMRMLSegmentationNode")), 1)
        # A complete run is not started again.
        self.assertEqual(self.ui.batchStartButton.text, "Start")
        self.ui.batchStartButton.click()
        self.assertIn("complete run", self.ui.batchLabel.text)
        self.assertIs(self.panel.batch.job, job)

    def testARunCanBeResumedAfterTheSceneWasClosed(self):
        self.chooseFolder(self.writeScans())
        self.ui.poseSpinBox.value = 0.5
        self.ui.batchStartButton.click()
        job = self.panel.batch.job
        waitFor(lambda: len(job.items) >= 1)
        slicer.mrmlScene.Clear(0)
        processEvents(0.05)
        self.ui.batchStopButton.click()
        waitFor(lambda: not job.running)
        processEvents(0.1)
        self.assertEqual(self.ui.batchStartButton.text, "Resume")
        self.assertEqual(self.panel.parameter.batchCopies, 2)
        self.assertEqual(self.panel.parameter.pose, 0.5)
        job = self.run_()
        self.assertEqual(job.state.value, "done", job.text)
        self.assertIn("12 results", self.ui.batchLabel.text)
        # Another scene has its own settings.
        slicer.mrmlScene.Clear(0)
        self.assertEqual(self.panel.parameter.batchCopies, 4)

    def testSettingsAreDisabledDuringARun(self):
        self.chooseFolder(self.writeScans())
        settings = (self.ui.batchOutputPath, self.ui.batchFolderPath, self.ui.batchLevelsLineEdit)
        self.assertTrue(all(widget.enabled for widget in settings))
        self.ui.batchStartButton.click()
        self.assertFalse(any(widget.enabled for widget in settings))
        # The rest of the panel still works.
        self.choosePhantom()
        self.deform()
        self.panel.batch.job.cancel()
        processEvents(0.1)
        self.assertTrue(all(widget.enabled for widget in settings))

    def testPlan(self):
        volume, _segmentation = self.addPhantom()
        self.ui.batchVolumesSelector.setCheckState(volume, 2)
        self.assertIn("4 results (volumes checked: 1)", self.ui.batchPlanLabel.text)
        # By default the poses are those of people, unless there is an amount, and in pairs.
        for index, amount, people in ((1, 0.0, False), (2, 0.5, True), (0, 0.5, False), (0, 0.0, True)):
            self.ui.batchPoseComboBox.currentIndex = index
            self.ui.poseSpinBox.value = amount
            said = "in poses of people; seed, steps and device" if people else "seed, steps, pose and device"
            self.assertIn(said, self.ui.batchPlanLabel.text)
        self.ui.batchSourceComboBox.currentIndex = 1
        self.assertIn("4 results for each scan", self.ui.batchPlanLabel.text)
        self.ui.batchLevelsLineEdit.text = "subtle medium strong"
        self.ui.batchKindComboBox.currentIndex = 1
        self.assertEqual(self.ui.batchLevelsLineEdit.text, "strong:medium")
        self.assertIn("seed, steps, pose and device", self.ui.batchPlanLabel.text)
        self.ui.batchKindComboBox.currentIndex = 0
        self.assertEqual(self.ui.batchLevelsLineEdit.text, "subtle medium strong")
        self.ui.batchLevelsLineEdit.text = "twenty"
        self.assertIn("subtle, medium, strong", self.ui.batchPlanLabel.text)

    def testBatchAroundLabelsAndInAnROI(self):
        volume, _segmentation = self.choosePhantom()
        ui = self.ui
        ui.batchVolumesSelector.setCheckState(volume, 2)
        ui.batchLevelsLineEdit.text = "medium"
        ui.batchCopiesSpinBox.value = 1
        ui.batchPoseComboBox.currentIndex = 2
        self.assertEqual(ui.batchPoseComboBox.currentText, "From these scans")
        for region, entry in ((2, "boxes"), (1, "around")):
            folder = self.folder / entry
            ui.batchOutputPath.currentPath = str(folder)
            ui.batchRegionComboBox.currentIndex = region
            if entry == "boxes":
                ui.batchStartButton.click()
                self.assertIn("Choose an ROI", ui.batchLabel.text)
                roi = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLMarkupsROINode", "R")
                roi.SetXYZ(0, 0, 0)
                roi.SetRadiusXYZ(12, 12, 12)
                self.panel.parameter.region = roi
            ui.batchStartButton.click()
            waitFor(lambda: not self.panel.batch.job.running, 400)
            self.assertEqual(self.panel.batch.job.state.value, "done", self.panel.batch.job.text)
            run = json.loads((folder / "run.json").read_text(encoding="utf-8"))
            self.assertEqual(run["settings"]["pose"], "auto")
            self.assertTrue(run["settings"]["region"][entry])

    def testWarningsAreShownInTheSectionOfTheJob(self):
        self.panel.parameter.model = "hippocampus-mr-3d"
        self.chooseFolder(self.writeScans(count=1))
        self.ui.batchLevelsLineEdit.text = "strong"
        self.ui.batchCopiesSpinBox.value = 1
        self.assertIn("Makes 1 result for each scan", self.ui.batchPlanLabel.text)
        job = self.run_()
        self.assertEqual(job.state.value, "done", job.text)
        # Noise is no hippocampus.
        self.assertIn("--model", job.warnings[-1])
        warning = self.ui.batchWarningsLabel.text
        self.assertIn("does not fit", warning)
        self.assertIn("name another model in 'Model', or adapt one to these images with 'Adapt first'", warning)
        self.assertNotIn("--", warning)
        self.assertNotIn("does not fit", self.ui.setupStatusLabel.text)
        self.assertIn("1 result in", self.ui.batchLabel.text)
        slicer.mrmlScene.Clear(0)
        self.assertEqual(self.ui.batchWarningsLabel.text, "")
        for number in (1, 1, 2, 3, 4):
            self.panel.batch.onWarning(f"Warning {number}.", "")
        self.assertEqual(self.ui.batchWarningsLabel.text, "Warning 1.\nWarning 2.\nWarning 3.\nAnd 1 more warning.")

    def testQualityPageAndFolder(self):
        opened = sys.modules["standin"].opened_urls if "standin" in sys.modules else None
        if opened is None:
            self.skipTest("a browser would open")
        self.chooseFolder(self.writeScans(count=1))
        self.assertFalse(self.ui.batchQualityButton.enabled)
        self.run_()
        self.ui.batchQualityButton.click()
        self.ui.batchFolderButton.click()
        page, folder = (Path(url2pathname(urlparse(url).path)) for url in opened[-2:])
        self.assertEqual(page.resolve(), (self.folder / "out" / "quality.html").resolve())
        self.assertIn("scan0", page.read_text(encoding="utf-8"))
        self.assertEqual(folder.resolve(), (self.folder / "out").resolve())

    def testModelThatIsNotDownloaded(self):
        self.chooseFolder(self.writeScans(count=1))
        self.panel.parameter.model = "published-lung-ct-3d"
        if self.panel.input.model().here:
            self.skipTest("the model has been downloaded on this computer")
        self.ui.batchStartButton.click()
        self.assertIn("press Download", self.ui.batchLabel.text)
        self.assertFalse((self.folder / "out").exists())

    def testPairsFromVolumesOfTheScene(self):
        volume, _segmentation = self.addPhantom("Fälle 1")
        other, _segmentation = self.addPhantom("Fälle 1")
        self.ui.batchKindComboBox.currentIndex = 1
        self.ui.batchLevelsLineEdit.text = "16:8"
        self.ui.batchCopiesSpinBox.value = 1
        self.ui.batchOutputPath.currentPath = str(self.folder / "out")
        for node in (volume, other):
            self.ui.batchVolumesSelector.setCheckState(node, 2)
        job = self.run_()
        self.assertEqual(job.state.value, "done", job.text)
        items = self.report()["items"]
        self.assertEqual(sorted(item["source"] for item in items), ["Fälle 1", "Fälle 1_1"])
        self.assertTrue(all(item["label"] and item["moving"] for item in items))
        moving = sitk.ReadImage(str(self.folder / "out" / items[0]["moving"]))
        fixed = sitk.ReadImage(str(self.folder / "out" / items[0]["image"]), sitk.sitkFloat32)
        ddf = sitk.ReadImage(str(self.folder / "out" / items[0]["ddf"]), sitk.sitkVectorFloat64)
        again = sitk.Resample(sitk.Cast(moving, sitk.sitkFloat32), fixed, sitk.DisplacementFieldTransform(ddf))
        error = np.abs(sitk.GetArrayFromImage(again - fixed))[3:-3, 3:-3, 3:-3]
        self.assertLess(error.mean(), 0.01 * np.ptp(sitk.GetArrayFromImage(fixed)))
        self.ui.batchSampleButton.click()
        fixed, moving = slicer.util.getNodesByClass("vtkMRMLScalarVolumeNode")[-2:]
        self.assertEqual(len(slicer.util.getNodesByClass("vtkMRMLScalarVolumeNode")), 4)
        # In the scene too, the field deforms the moving image into the fixed image.
        transform = slicer.util.getNodesByClass("vtkMRMLGridTransformNode")[-1]
        (copy,) = self.logic.apply(transform, [moving])
        error = np.abs(arrayOf(copy).astype(float) - arrayOf(fixed))[3:-3, 3:-3, 3:-3]
        self.assertLess(error.mean(), 0.01 * np.ptp(arrayOf(fixed)))
        self.assertGreater(np.abs(arrayOf(moving).astype(float) - arrayOf(fixed)).max(), 10 * error.mean())

    def testResultHasThePositionOfItsScan(self):
        # Oblique, anisotropic and not centered.
        rotation = sitk.Euler3DTransform((0, 0, 0), 0.3, -0.2, 0.4).GetMatrix()
        scan = sitk.SmoothingRecursiveGaussian(
            sitk.GetImageFromArray(np.random.default_rng(0).normal(size=(12, 24, 28)).astype(np.float32)), 2.0
        )
        for folder, image in (("images", scan), ("labels", sitk.Cast(scan > 0, sitk.sitkUInt8))):
            image.SetSpacing((0.8, 1.1, 2.5))
            image.SetOrigin((-30.0, 42.0, 17.0))
            image.SetDirection(rotation)
            (self.folder / "one" / folder).mkdir(parents=True)
            sitk.WriteImage(image, str(self.folder / "one" / folder / "a scan.nii.gz"))
        self.chooseFolder(self.folder / "one")
        self.ui.batchLevelsLineEdit.text = "1"
        self.ui.batchCopiesSpinBox.value = 1
        self.ui.batchPoseComboBox.currentIndex = 1
        self.run_()
        self.ui.batchSampleButton.click()
        made = slicer.util.getNodesByClass("vtkMRMLScalarVolumeNode")[-1]
        original = mrml.volumeFromImage(slicer.mrmlScene, scan, "original")
        matrices = [vtk.vtkMatrix4x4(), vtk.vtkMatrix4x4()]
        for node, matrix in zip((made, original), matrices, strict=True):
            node.GetIJKToRASMatrix(matrix)
        theirs, ours = (slicer.util.arrayFromVTKMatrix(matrix) for matrix in matrices)
        np.testing.assert_allclose(theirs, ours, atol=1e-4)
        self.assertLess(np.abs(arrayOf(made) - arrayOf(original)).mean(), 0.1 * np.ptp(arrayOf(original)))
        label = slicer.util.getNodesByClass("vtkMRMLSegmentationNode")[-1]
        found = mrml.labelFromSegmentation(label, original).image
        inside = sitk.GetArrayFromImage(found) > 0
        # A level of 1 moves almost nothing, without a pose.
        self.assertGreater(np.mean(inside == (arrayOf(original) > 0)), 0.95)

    def testUnreadableScanIsSkipped(self):
        scans = self.writeScans()
        (scans / "images" / "scan1.nii.gz").write_bytes(b"no image")
        self.chooseFolder(scans)
        self.ui.batchLevelsLineEdit.text = "8"
        self.ui.batchCopiesSpinBox.value = 1
        job = self.run_()
        self.assertEqual(job.state.value, "done")
        self.assertIn("2 results", self.ui.batchLabel.text)
        self.assertIn("scan1", self.ui.batchLabel.text)

    def testTheShippedSample(self):
        import SampleData

        volume, segmentation = SampleData.SampleDataLogic().downloadSamples("DRDMPhantom")
        # Slicer's reader sets no reference geometry.
        self.assertIsNone(segmentation.GetNodeReference(segmentation.GetReferenceImageGeometryReferenceRole()))
        self.ui.batchVolumesSelector.setCheckState(volume, 2)
        self.ui.batchOutputPath.currentPath = str(self.folder / "out")
        self.ui.batchLevelsLineEdit.text = "8"
        self.ui.batchCopiesSpinBox.value = 1
        job = self.run_()
        self.assertEqual(job.state.value, "done", self.ui.batchLabel.text)
        self.ui.batchSampleButton.click()
        made = slicer.util.getNodesByClass("vtkMRMLSegmentationNode")[-1]
        self.assertEqual(segmentsOf(made), segmentsOf(segmentation))

    def testTheSegmentationChosenInInputIsUsed(self):
        volume, segmentation = self.choosePhantom()
        label = sitk.ReadImage(str(resource("Sample", "sample_label.nii.gz"))) > 0
        other = mrml.labelMapFromImage(slicer.mrmlScene, sitk.Cast(label, sitk.sitkUInt8), "Other")
        self.ui.segmentationSelector.setCurrentNode(other)
        second, _segmentation = self.addPhantom("Second")
        self.ui.inputVolumeSelector.setCurrentNode(second)
        self.assertIs(links.segmentationOf(slicer.mrmlScene, volume), other)
        # Also after the choice of another volume.
        self.ui.inputVolumeSelector.setCurrentNode(volume)
        self.assertIs(self.ui.segmentationSelector.currentNode(), other)
        slicer.mrmlScene.RemoveNode(other)
        self.assertIs(links.segmentationOf(slicer.mrmlScene, volume), segmentation)

    def testASegmentationIsNotTakenForSeveralVolumes(self):
        """Scans that were cropped alike lie in the same place, and Slicer does not say to which a file belongs."""
        role = slicer.vtkMRMLSegmentationNode.GetReferenceImageGeometryReferenceRole()
        volumes, segmentations = [], []
        for name in ("scan1", "scan10", "other"):
            volume, segmentation = self.addPhantom(name)
            segmentation.RemoveNodeReferenceIDs(role)
            segmentation.SetName("scan10.nii.gz" if name == "scan10" else f"label of {name}")
            volumes.append(volume)
            segmentations.append(segmentation)
        first, second, third = volumes
        last = segmentations[-1]
        self.assertEqual([links.segmentationOf(slicer.mrmlScene, v) for v in volumes], [last, segmentations[1], last])
        self.assertEqual(self.logic.withoutSegmentation(volumes), [first, third])
        self.assertEqual(self.logic.withoutSegmentation([first, second]), [])
        for volume in volumes:
            self.ui.batchVolumesSelector.setCheckState(volume, 2)
        self.ui.batchOutputPath.currentPath = str(self.folder / "out")
        self.ui.batchStartButton.click()
        self.assertIn("'label of other' lies on 'scan1' and on other volumes", self.ui.batchLabel.text)
        # What is chosen in Input is kept.
        self.ui.inputVolumeSelector.setCurrentNode(first)
        self.ui.segmentationSelector.setCurrentNode(segmentations[0])
        self.ui.inputVolumeSelector.setCurrentNode(second)
        self.assertIs(self.panel.parameter.inputSegmentation, segmentations[1])
        self.assertEqual(self.logic.withoutSegmentation(volumes), [])
        self.assertIs(links.segmentationOf(slicer.mrmlScene, first), segmentations[0])

    def testMissingSettings(self):
        press = self.ui.batchStartButton.click
        press()
        self.assertIn("output folder", self.ui.batchLabel.text)
        self.ui.batchOutputPath.currentPath = str(self.folder / "out")
        press()
        self.assertIn("check the volumes", self.ui.batchLabel.text)
        volume, segmentation = self.addPhantom()
        slicer.mrmlScene.RemoveNode(segmentation)
        self.ui.batchVolumesSelector.setCheckState(volume, 2)
        press()
        self.assertIn("segmentation", self.ui.batchLabel.text)
        self.ui.batchLevelsLineEdit.text = "eight"
        press()
        self.assertIn("20 40 60", self.ui.batchLabel.text)
        self.assertIsNone(self.panel.batch.job)
        self.assertFalse((self.folder / "out").exists())

    def testFullDisk(self):
        try:
            import resource
        except ImportError:
            self.skipTest("file sizes cannot be limited here")
        self.chooseFolder(self.writeScans(count=1, size=(40, 40, 40)))
        # The process inherits a limit on the file size, which acts like a full disk.
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20000, limits[1]))
        try:
            self.ui.batchStartButton.click()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        job = self.panel.batch.job
        waitFor(lambda: not job.running)
        self.assertEqual(job.state.value, "failed")
        self.assertIn("disk is full", self.ui.batchLabel.text)
        self.assertEqual(len(self.ui.batchLabel.text.splitlines()), 1)
        # Without the limit, the same button resumes the run.
        job = self.run_()
        self.assertEqual(job.state.value, "done", job.text)
        self.assertIn("4 results", self.ui.batchLabel.text)

    def testSceneClosedDuringABatch(self):
        self.chooseFolder(self.writeScans())
        self.ui.batchStartButton.click()
        job = self.panel.batch.job
        waitFor(lambda: len(job.items) >= 1)
        output = str(self.folder / "out")
        slicer.mrmlScene.Clear(0)
        waitFor(lambda: not job.running)
        self.assertEqual(job.state.value, "done", job.text)
        self.assertEqual(self.logic.summary(output)["made"], 12)
        self.assertIn("12 results", self.ui.batchLabel.text)


class FoldersTestCase(ModuleTestCase):
    """The fields for folders."""

    needsTorch = False

    def setUp(self):
        super().setUp()
        self.field, self.box = self.ui.trainFolderPath, self.ui.trainFolderPath.comboBox()
        # Neither use nor change the last folders of the user.
        key = self.field.settingKey
        self.addCleanup(setattr, self.field, "settingKey", key)
        self.field.settingKey = f"{key}/{self.folder.name}"
        self.field.currentPath = ""

    def testEmptyAtFirst(self):
        slicer.mrmlScene.Clear(0)
        self.assertEqual(self.field.currentPath, "")
        self.assertFalse(isSet(self.panel.parameter.trainFolder))

    def testWhatIsEnteredIsUsed(self):
        self.field.currentPath = str(self.folder)
        self.assertEqual(self.panel.parameter.trainFolder, self.folder)
        # What is being typed is not replaced.
        self.field.currentPath = f"{self.folder}{os.sep}"
        self.assertEqual(self.field.currentPath, f"{self.folder}{os.sep}")
        self.field.currentPath = ""
        self.assertFalse(isSet(self.panel.parameter.trainFolder))
        self.panel.parameter.trainFolder = self.folder
        self.assertEqual(self.field.currentPath, str(self.folder))

    def testLastFolders(self):
        gone, last = self.folder / "gone", self.folder / "last"
        last.mkdir()
        for folder in (last, gone):
            self.field.currentPath = str(folder)
            for field in self.panel.train._folders:
                field.remember()
        self.assertEqual([self.box.itemText(n) for n in range(self.box.count)], [str(gone), str(last)])
        slicer.mrmlScene.Clear(0)
        self.assertEqual(self.field.currentPath, str(last))
        self.assertEqual(self.panel.parameter.trainFolder, last)
