"""Batches in the panel whose versions go toward other scans."""

import json

import SimpleITK as sitk
import slicer
from batchsupport import BatchCase
from DRDMDeformLib import mrml
from DRDMDeformLib.mrml import links
from modulesupport import waitFor


class OtherScansTestCase(BatchCase):
    def runWithOneLabel(self, people):
        """Make a version of the first of some people, who alone has a label."""
        folder = self.writePeople(count=people, step=0.02)
        for number in range(1, people):
            (folder / "labels" / f"person{number}.nii.gz").unlink()
        self.chooseFolder(folder)
        self.ui.batchLevelsLineEdit.text = "subtle"
        self.ui.batchCopiesSpinBox.value = 1
        job = self.run_()
        self.assertEqual(job.state.value, "done", job.text)
        return job

    def testVersionsGoTowardTheOtherScans(self):
        ui = self.ui
        self.chooseFolder(self.writePeople())
        ui.batchLevelsLineEdit.text = "subtle"
        self.assertEqual(ui.batchTowardComboBox.currentText, "Use those without a label, if at least ten")
        self.assertIn("If at least ten scans have no label", ui.batchPlanLabel.text)
        ui.batchTowardComboBox.currentIndex = 1
        self.assertEqual(ui.batchTowardComboBox.currentText, "Not used")
        self.assertNotIn("part of the way", ui.batchPlanLabel.text)
        ui.batchTowardComboBox.currentIndex = 2
        self.assertEqual(self.panel.parameter.batchToward.value, "others")
        self.assertIn("toward another scan", ui.batchPlanLabel.text)
        # Whole scans only.
        ui.batchRegionComboBox.currentIndex = 1
        self.assertIn("Only whole scans", ui.batchPlanLabel.text)
        ui.batchStartButton.click()
        self.assertIn("choose 'The whole scans' in Where, or 'Not used' in Other scans", ui.batchLabel.text)
        self.assertIsNone(self.panel.batch.job)
        ui.batchRegionComboBox.currentIndex = 0
        ui.batchStartButton.click()
        self.assertFalse(ui.batchTowardComboBox.enabled)
        job = self.panel.batch.job
        waitFor(lambda: not job.running)
        self.assertEqual(job.state.value, "done", job.text)
        self.assertTrue(ui.batchTowardComboBox.enabled)
        self.assertNotIn("no other scan", ui.batchLabel.text)
        items = self.report()["items"]
        self.assertEqual(len(items), 6)
        self.assertTrue(all(item["toward"] >= 0.2 for item in items))
        run = json.loads((self.folder / "out" / "run.json").read_text(encoding="utf-8"))
        self.assertEqual(run["settings"]["toward"], "others")

    def testVersionsGoTowardScansWithoutALabel(self):
        job = self.runWithOneLabel(people=11)
        self.assertIn("toward a scan without a label", self.ui.batchLabel.text)
        # It is what they are for.
        self.assertFalse([text for text in job.warnings if "label" in text])
        self.assertNotIn("label", self.ui.batchWarningsLabel.text)
        self.assertEqual([item["toward"] >= 0.2 for item in self.report()["items"]], [True])
        run = json.loads((self.folder / "out" / "run.json").read_text(encoding="utf-8"))
        self.assertEqual(run["settings"]["gray_values"], "others")
        self.assertEqual(run["settings"]["pose"], "auto")
        # Where nothing goes toward others, gray values cannot.
        ui = self.ui
        self.assertTrue(ui.batchGrayCheckBox.checked and ui.batchGrayCheckBox.enabled)
        ui.batchTowardComboBox.currentIndex = 1
        self.assertFalse(ui.batchGrayCheckBox.enabled)
        ui.batchTowardComboBox.currentIndex = 0
        ui.batchKindComboBox.currentIndex = 1
        self.assertFalse(ui.batchGrayCheckBox.enabled)
        ui.batchKindComboBox.currentIndex = 0
        ui.batchGrayCheckBox.checked = False
        ui.batchPoseComboBox.currentIndex = 1
        ui.batchLevelsLineEdit.text = "subtle"
        ui.batchOutputPath.currentPath = str(self.folder / "own")
        self.assertEqual(self.run_().state.value, "done")
        run = json.loads((self.folder / "own" / "run.json").read_text(encoding="utf-8"))
        self.assertEqual(run["settings"]["toward"], "unlabeled")
        self.assertNotIn("gray_values", run["settings"])
        self.assertEqual(run["settings"]["pose"], 0)

    def testVolumesWithoutASegmentationAreGoneToward(self):
        people = self.writePeople(count=11, step=0.02)
        volumes = []
        for number in range(11):
            image = sitk.ReadImage(str(people / "images" / f"person{number}.nii.gz"))
            volumes.append(mrml.volumeFromImage(slicer.mrmlScene, image, f"person{number}"))
        label = sitk.ReadImage(str(people / "labels" / "person0.nii.gz"))
        links.segmentationFromImage(slicer.mrmlScene, label, "organ", volumes[0])
        self.ui.batchOutputPath.currentPath = str(self.folder / "out")
        self.ui.batchLevelsLineEdit.text = "subtle"
        self.ui.batchCopiesSpinBox.value = 1
        for volume in volumes[:4]:
            self.ui.batchVolumesSelector.setCheckState(volume, 2)
        plan = self.ui.batchPlanLabel
        self.assertIn("toward no other scan: this needs at least 10 volumes without a segmentation, and 3 ", plan.text)
        self.ui.batchStartButton.click()
        self.assertIn("No segmentation lies on 'person1'", self.ui.batchLabel.text)
        self.ui.batchLevelsLineEdit.text = "subtle medium strong"
        self.ui.batchKindComboBox.currentIndex = 1
        self.assertIn("Pairs go toward no other scan", plan.text)
        self.ui.batchKindComboBox.currentIndex = 0
        self.ui.batchLevelsLineEdit.text = "subtle"
        for volume in volumes[4:]:
            self.ui.batchVolumesSelector.setCheckState(volume, 2)
        self.assertIn("Makes 1 result (volumes checked: 11)", plan.text)
        self.assertIn("part of the way toward the 10 volumes without a segmentation", plan.text)
        job = self.run_()
        self.assertEqual(job.state.value, "done", job.text)
        self.assertEqual([item["toward"] >= 0.2 for item in self.report()["items"]], [True])
        self.assertIn("1 result in", self.ui.batchLabel.text)
        self.assertIn("It goes part of the way toward a scan without a label.", self.ui.batchLabel.text)
        self.assertEqual(self.ui.batchStartButton.text, "Start")

    def testOfManyScansWithoutALabelAFewAreNamed(self):
        self.runWithOneLabel(people=6)
        text = self.ui.batchLabel.text
        self.assertIn("Left out: person1: ", text)
        self.assertIn("folder. person2: ", text)
        self.assertNotIn("person4", text)
        self.assertTrue(text.endswith("And 2 more, which report.json names."), text)
        # All that can be made is made.
        self.assertEqual(self.ui.batchStartButton.text, "Try again")

    def testFixedImagesGoTowardTheOtherScans(self):
        ui = self.ui
        self.chooseFolder(self.writePeople(count=2))
        ui.batchKindComboBox.currentIndex = 1
        ui.batchTowardComboBox.currentIndex = 2
        ui.batchLevelsLineEdit.text = "subtle:subtle"
        ui.batchCopiesSpinBox.value = 1
        self.assertIn("Each fixed image goes", ui.batchPlanLabel.text)
        job = self.run_()
        self.assertEqual(job.state.value, "done", job.text)
        self.assertEqual([item["toward"] >= 0.2 for item in self.report()["items"]], [True, True])

    def testScansThatGoTowardNoOther(self):
        # Noise is like no other noise.
        self.chooseFolder(self.writeScans(count=2))
        self.ui.batchLevelsLineEdit.text = "8"
        self.ui.batchCopiesSpinBox.value = 1
        self.ui.batchTowardComboBox.currentIndex = 2
        job = self.run_()
        self.assertEqual(job.state.value, "done", job.text)
        self.assertIn("2 go toward no other scan", self.ui.batchLabel.text)

    def testVolumesOfTheSceneGoTowardOneAnother(self):
        people = self.writePeople(count=2)
        volumes = []
        for number in range(2):
            image, label = (sitk.ReadImage(str(people / k / f"person{number}.nii.gz")) for k in ("images", "labels"))
            volumes.append(mrml.volumeFromImage(slicer.mrmlScene, image, f"Person {number}"))
            links.segmentationFromImage(slicer.mrmlScene, label, f"Person {number} segmentation", volumes[-1])
        self.ui.batchTowardComboBox.currentIndex = 2
        self.ui.batchOutputPath.currentPath = str(self.folder / "out")
        self.ui.batchLevelsLineEdit.text = "subtle"
        self.ui.batchCopiesSpinBox.value = 1
        self.ui.batchVolumesSelector.setCheckState(volumes[0], 2)
        self.ui.batchStartButton.click()
        self.assertIn("no other scans to go toward", self.ui.batchLabel.text)
        self.ui.batchVolumesSelector.setCheckState(volumes[1], 2)
        job = self.run_()
        self.assertEqual(job.state.value, "done", job.text)
        self.assertEqual([item["toward"] > 0 for item in self.report()["items"]], [True, True])
