"""What the tests of batches share."""

import json

from modulesupport import ModuleTestCase, processEvents, waitFor


class BatchCase(ModuleTestCase):
    """Tests of batches in the panel."""

    def setUp(self):
        super().setUp()
        self.ui.stepsSpinBox.value = 1
        self.ui.batchLevelsLineEdit.text = "8 16"
        self.ui.batchCopiesSpinBox.value = 2

    def chooseFolder(self, scans):
        self.ui.batchSourceComboBox.currentIndex = 1
        self.ui.batchFolderPath.currentPath = str(scans)
        self.ui.batchOutputPath.currentPath = str(self.folder / "out")

    def run_(self, seconds=400.0):
        self.ui.batchStartButton.click()
        job = self.panel.batch.job
        self.assertIsNotNone(job, self.ui.batchLabel.text)
        waitFor(lambda: not job.running, seconds)
        processEvents(0.1)
        return job

    def report(self):
        return json.loads((self.folder / "out" / "report.json").read_text(encoding="utf-8"))
