"""Trainings in the panel: start, stop, resume, adapt."""

import os
from unittest import mock

import slicer
from modulesupport import ModuleTestCase, waitFor

from DRDMLib.models.catalogue import add_user_model
from DRDMLib.models.model import read_metadata


class TrainTestCase(ModuleTestCase):
    def setUp(self):
        super().setUp()
        # Do not change the user's own models on this computer.
        change = mock.patch.dict(os.environ, {"DRDM_HOME": str(self.folder / "home")})
        change.start()
        self.addCleanup(change.stop)
        self.ui.trainFolderPath.currentPath = str(self.writeScans(labels=False))
        self.ui.trainOutputPath.currentPath = str(self.folder / "run")
        self.ui.trainSizeSpinBox.value = 16
        self.ui.trainNameLineEdit.text = "tiny"

    def testStopAndResume(self):
        layout = slicer.mrmlScene.GetFirstNodeByClass("vtkMRMLLayoutNode")
        conventional = slicer.vtkMRMLLayoutNode.SlicerLayoutConventionalView
        layout.SetViewArrangement(conventional)
        self.ui.trainMinutesSpinBox.value = 60
        self.ui.trainStartButton.click()
        job = self.panel.train.job
        waitFor(lambda: "Step" in self.ui.trainLabel.text)
        # The curve is shown until the end of the training.
        self.assertNotEqual(layout.GetViewArrangement(), conventional)
        chart = slicer.util.getNodesByClass("vtkMRMLPlotChartNode")[-1]
        table = slicer.util.getNode("Training of tiny loss table")
        self.assertIn("tiny", chart.GetName())
        self.assertGreater(table.GetNumberOfRows(), 0)
        self.ui.trainStopButton.click()
        waitFor(lambda: not job.running)
        self.assertIn("Stopped", self.ui.trainLabel.text)
        self.assertEqual(layout.GetViewArrangement(), conventional)
        self.assertTrue((self.folder / "run" / "checkpoint.pt").is_file())
        self.assertEqual(self.ui.trainStartButton.text, "Resume")
        self.assertEqual(self.panel.parameter.model, "")
        self.ui.trainMinutesSpinBox.value = 0.1
        self.ui.trainStartButton.click()
        job = self.panel.train.job
        waitFor(lambda: not job.running)
        self.assertEqual(job.state.value, "done", job.text)
        self.assertEqual(self.panel.parameter.model, "tiny")
        # Border padding, so that the model learns the anatomy and not the edges of the scans.
        metadata = read_metadata(self.folder / "run" / "model.safetensors")
        self.assertEqual(metadata.image_padding, "border")
        self.assertEqual(metadata.noise_grids, [16, 8, 4])
        texts = [self.ui.modelComboBox.itemText(i) for i in range(self.ui.modelComboBox.count)]
        self.assertIn("tiny", texts)
        self.choosePhantom(steps=1, model="tiny")
        self.deform()

    def addSmallModel(self, name):
        """Add a model of the user that is quick to adapt; its predictions are wrong."""
        import torch

        from DRDMLib.models.model import ModelMetadata, save_model
        from DRDMLib.networks import build_network

        options = {"width": 8, "depth": 1, "whole": True, "coarse": True, "places": True}
        network = build_network("compact", 3, 80, options)
        torch.nn.init.normal_(network.out.weight, std=0.01)
        metadata = ModelMetadata(
            name, "compact", 3, 16, options=options, amplitude=2.0, noise_grids=[16, 8], control_size=32
        )
        save_model(self.folder / "small.safetensors", network, metadata)
        add_user_model(self.folder / "small.safetensors", name)

    def testAdaptAModel(self):
        box = self.ui.trainSourceComboBox
        self.addSmallModel("small")
        self.panel.enter()
        names = [box.itemText(i) for i in range(box.count)]
        self.assertEqual(names[0], "A new model")
        self.assertIn("hippocampus-mr-3d", names)
        box.currentIndex = names.index("small")
        self.assertEqual(self.panel.parameter.trainSource, "small")
        self.assertEqual(self.ui.trainMinutesSpinBox.value, 5)
        self.assertFalse(self.ui.trainSizeSpinBox.enabled)
        self.ui.trainMinutesSpinBox.value = 0.1
        self.ui.trainStartButton.click()
        job = self.panel.train.job
        waitFor(lambda: not job.running)
        self.assertEqual(job.state.value, "done", job.text)
        self.assertIn("scans left out", self.ui.trainLabel.text)
        self.assertEqual(self.panel.parameter.model, "tiny")
        metadata = read_metadata(self.folder / "run" / "model.safetensors")
        self.assertEqual(metadata.training["adaptation"]["source"], "small")

    def testInvalidSize(self):
        self.ui.trainSizeSpinBox.value = 20
        self.ui.trainStartButton.click()
        self.assertIn("multiple of 8", self.ui.trainLabel.text)
        self.assertIsNone(self.panel.train.job)
