"""The scripting interface: the functions of the panel in the Python console."""

import os
from unittest import mock

import numpy as np
import slicer
from DRDMDeformLib.mrml import SceneError
from modulesupport import ModuleTestCase, arrayOf

from DRDMLib.errors import DRDMError


class LogicTestCase(ModuleTestCase):
    def setUp(self):
        super().setUp()
        change = mock.patch.dict(os.environ, {"DRDM_HOME": str(self.folder / "home")})
        change.start()
        self.addCleanup(change.stop)

    def testExampleOfTheReadme(self):
        self.addPhantom()
        # The example of the README.
        logic = slicer.util.getModuleLogic("DRDMDeform")
        volume, segmentation = slicer.util.getNode("Phantom"), slicer.util.getNode("Phantom segmentation")
        transform = logic.deform(volume, level=48, seed=1, steps=4)
        newVolume, newSegmentation = logic.apply(transform, [volume, segmentation])
        print(logic.figures(transform)[0]["metrics"]["max_mm"])

        self.assertGreater(logic.figures(transform)[0]["metrics"]["max_mm"], 1.0)
        self.assertGreater(np.abs(arrayOf(newVolume).astype(float) - arrayOf(volume)).max(), 0)
        self.assertEqual(newSegmentation.GetSegmentation().GetNumberOfSegments(), 2)
        self.assertIsNone(volume.GetParentTransformNode())

    def testPreviewOnAndOff(self):
        volume, segmentation = self.addPhantom()
        transform = self.logic.deform(volume, level=20, seed=2, steps=2)
        self.logic.preview(transform, [volume, segmentation])
        self.assertIs(volume.GetParentTransformNode(), transform)
        self.logic.preview(transform, [volume, segmentation], on=False)
        self.assertIsNone(segmentation.GetParentTransformNode())

    def testApplyAllVariants(self):
        volume, segmentation = self.addPhantom()
        for seed in (1, 2):
            self.logic.deform(volume, level=20, seed=seed, steps=1)
        variants = self.logic.applyAll(volume)
        self.assertEqual(
            [[node.GetName() for node in copies] for copies in variants],
            [[f"Phantom deformed {n}", f"Phantom segmentation deformed {n}"] for n in (1, 2)],
        )
        self.logic.removeVariant(self.logic.deformations(volume)[0])
        self.assertEqual([record["seed"] for _node, _index, record in self.logic.variants(volume)], [2])
        self.assertIsNone(segmentation.GetParentTransformNode())

    def testProgressAndCancel(self):
        volume, _segmentation = self.addPhantom()
        seen = []

        def stopAtHalf(share):
            seen.append(share)
            if share >= 0.5:
                raise KeyboardInterrupt

        nodes = slicer.mrmlScene.GetNumberOfNodes()
        with self.assertRaises(KeyboardInterrupt):
            self.logic.deform(volume, level=20, steps=4, onProgress=stopAtHalf)
        self.assertEqual(seen, [0.25, 0.5])
        self.assertEqual(slicer.mrmlScene.GetNumberOfNodes(), nodes)

    def testAvailableModels(self):
        models = {model.name: model for model in self.logic.availableModels()}
        self.assertTrue(models["hippocampus-mr-3d"].here)
        self.assertFalse(models["published-cardiac-2d"].here)
        self.assertEqual(models["published-cardiac-2d"].ndim, 2)

    def testTrainingDataFromVolumes(self):
        volume, _segmentation = self.addPhantom()
        out = self.folder / "set"
        self.logic.augment([volume], out, levels=[16], copies=1, steps=1)
        self.assertTrue((out / "imagesTr" / "Phantom_t16_000_0000.nii.gz").is_file())
        pairs = self.folder / "pairs"
        self.logic.generateRegistrationPairs([volume], pairs, levels=[(16, 8)], copies=1, steps=1)
        self.assertEqual(self.logic.summary(pairs)["made"], 1)
        nodes = self.logic.loadSample(pairs)
        self.assertEqual([node.GetClassName() for node in nodes].count("vtkMRMLScalarVolumeNode"), 2)

    def testSampleHasTheRightPosition(self):
        volume, _segmentation = self.addPhantom()
        self.logic.augment([volume], self.folder / "set", levels=[1], copies=1, steps=1)
        made = self.logic.loadSample(self.folder / "set")[0]
        ours, theirs = [0.0] * 6, [0.0] * 6
        volume.GetRASBounds(ours)
        made.GetRASBounds(theirs)
        np.testing.assert_allclose(theirs, ours, atol=1e-3)

    def testTraining(self):
        scans = self.writeScans(labels=False)
        job = self.logic.train(scans, self.folder / "run", "eigenes", size=16, minutes=0.05)
        self.assertEqual(job.state.value, "done")
        self.assertIn("eigenes", [model.name for model in self.logic.availableModels()])
        volume, _segmentation = self.addPhantom()
        transform = self.logic.deform(volume, "eigenes", level=10, steps=1)
        self.assertEqual(self.logic.figures(transform)[0]["model"], "eigenes")

    def testUserErrorsAreOneSentence(self):
        volume, _segmentation = self.addPhantom()
        vector = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLVectorVolumeNode", "Colors")
        slicer.util.updateVolumeFromArray(vector, np.zeros((4, 5, 6, 3), np.uint8))
        cases = [
            (lambda: self.logic.deform(None), SceneError),
            (lambda: self.logic.deform(vector), SceneError),
            (lambda: self.logic.deform(volume, level=99), DRDMError),
            (lambda: self.logic.deform(volume, "no-such-model"), DRDMError),
            (lambda: self.logic.startDeform(None), SceneError),
            (lambda: self.logic.applyAll(None), SceneError),
            (lambda: self.logic.applyAll(volume), SceneError),
            (lambda: self.logic.removeVariant(None), SceneError),
            (lambda: self.logic.augment([], self.folder / "x"), SceneError),
            (lambda: self.logic.augment(self.folder / "nowhere", self.folder / "x"), DRDMError),
            (lambda: self.logic.augment([volume], self.folder / "x", toward="others"), SceneError),
            (lambda: self.logic.augment([volume] * 2, self.folder / "x", toward="others", around=True), SceneError),
            (lambda: self.logic.augment(self.folder, self.folder / "x", toward=self.folder / "nowhere"), DRDMError),
            (lambda: self.logic.generateRegistrationPairs([volume], self.folder / "x", toward="others"), SceneError),
            (lambda: self.logic.augment([volume] * 2, self.folder / "x", toward="phases"), SceneError),
            (lambda: self.logic.loadSample(self.folder), SceneError),
        ]
        nodes = slicer.mrmlScene.GetNumberOfNodes()
        for call, kind in cases:
            with self.assertRaises(kind) as caught:
                call()
            self.assertEqual(len(str(caught.exception).splitlines()), 1)
        self.assertEqual(slicer.mrmlScene.GetNumberOfNodes(), nodes)
