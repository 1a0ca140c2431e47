"""A version is in the views first, and its figures follow."""

from unittest import mock

import numpy as np
import slicer
from DRDMDeformLib import mrml
from DRDMDeformLib.worker import Worker, sharedWorker
from modulesupport import MODEL, ModuleTestCase, displacements, processEvents, sceneContent, waitFor

MEAN, INVERTIBLE = 3, 6


class VersionsTestCase(ModuleTestCase):
    def setUp(self):
        super().setUp()
        # It may come from another test, with other environment variables.
        sharedWorker.end()
        self.addCleanup(sharedWorker.end)
        self.volume, self.segmentation = self.choosePhantom(steps=1)
        self.panel.parameter.model = MODEL
        self.panel.parameter.keepSeed = True
        self.held = {}
        read = Worker.poll

        def poll(worker, process, number):
            """Hold back what follows a version, as if its figures took long."""
            lines, ended = read(worker, process, number)
            if number not in self.held:
                return lines, ended
            if self.held[number] is None:
                at = [n for n, line in enumerate(lines, start=1) if '"event": "version"' in line]
                if not at:
                    return lines, ended
                self.held[number] = lines[at[0] :]
                return lines[: at[0]], ended
            self.held[number] += lines
            return [], ended

        patched = mock.patch.object(Worker, "poll", poll)
        patched.start()
        self.addCleanup(patched.stop)

    def press(self, hold=True):
        """Press Deform and wait for the version; with ``hold``, its figures do not come."""
        self.ui.deformButton.click()
        job = self.panel.deform.job
        self.assertTrue(job.running, self.ui.statusLabel.text)
        if hold:
            self.held[job.process._number] = None
        waitFor(lambda: not self.panel.deform.making)
        return job

    def finish(self, job):
        """Let the figures come."""
        waiting = self.held.pop(job.process._number)
        sharedWorker._events[job.process._number][:0] = waiting
        waitFor(lambda: not job.running)
        self.assertEqual(job.state.value, "done", job.text)

    def cells(self, row=0):
        table = self.ui.variantsTable
        return [table.item(row, column).text() for column in range(table.columnCount)]

    def record(self, node):
        return self.logic.figures(node)[0]

    def testTheVersionIsSeenBeforeItsFigures(self):
        job = self.press()
        node = self.volume.GetParentTransformNode()
        self.assertTrue(job.running)
        self.assertIs(node, self.panel.parameter.deformations)
        self.assertIs(self.segmentation.GetParentTransformNode(), node)
        self.assertGreater(np.abs(displacements(node)).max(), 0.1)
        # What a scene says that is saved now.
        before = self.record(node)
        self.assertEqual(before["metrics"], {"certified_invertible": True})
        self.assertEqual((before["model"], before["seed"]), (MODEL, self.panel.parameter.seed))
        self.assertEqual(self.ui.variantsTable.rowCount, 1)
        self.assertEqual((self.cells()[MEAN], self.cells()[INVERTIBLE]), ("...", "yes, proven"))
        self.assertIn(MODEL, self.ui.statusLabel.text)
        self.assertTrue(self.ui.deformButton.enabled)
        self.assertTrue(self.ui.cancelButton.enabled)
        self.assertFalse(self.ui.progressBar.visible)
        field, nodes = slicer.util.arrayFromGridTransform(node).tobytes(), sceneContent()
        self.finish(job)
        # Only the record has changed, and it is the one of a job that adds all at the end.
        self.assertEqual(sceneContent(), nodes)
        self.assertFalse(self.ui.cancelButton.enabled)
        self.assertRegex(self.cells()[MEAN], r"^\d+\.\d\d$")
        region = self.panel.deform._region()
        made = []
        other = self.logic.startDeform(
            self.volume, MODEL, "medium", self.panel.parameter.seed, steps=1, region=region, onMade=made.extend
        )
        other.start()
        seen = len(self.logic.variants(self.volume))
        while other.running:
            self.assertEqual(len(self.logic.variants(self.volume)), seen)
            other.poll()
            processEvents(0.01)
        after, whole = self.record(node), self.record(made[0])
        self.assertEqual(slicer.util.arrayFromGridTransform(made[0]).tobytes(), field)
        self.assertEqual({**after, "seconds": 0, "number": 0}, {**whole, "seconds": 0, "number": 0})
        self.assertEqual(list(after), list(whole))
        self.assertEqual(
            {key: after[key] for key in before if key != "metrics"} | {"metrics": 0}, before | {"metrics": 0}
        )

    def testCancelKeepsTheVersion(self):
        job = self.press()
        node = self.volume.GetParentTransformNode()
        self.ui.cancelButton.click()
        self.assertEqual(job.state.value, "canceled")
        self.assertIs(self.volume.GetParentTransformNode(), node)
        self.assertIn("stays", self.ui.statusLabel.text)
        self.assertEqual((self.cells()[MEAN], self.cells()[INVERTIBLE]), ("not computed", "yes, proven"))
        self.assertEqual(self.record(node)["metrics"], {"certified_invertible": True})
        self.assertFalse(self.ui.cancelButton.enabled)
        # It is a version as any other, also after a scene has been saved and loaded.
        copies = self.logic.apply(node, [self.volume])
        self.assertEqual(len(copies), 1)
        process = sharedWorker.process
        another = self.press(hold=False)
        waitFor(lambda: not another.running)
        self.assertEqual(another.state.value, "done", another.text)
        self.assertIs(sharedWorker.process, process)
        self.assertEqual(self.cells(0)[MEAN], "not computed")
        self.assertRegex(self.cells(1)[MEAN], r"^\d+\.\d\d$")

    def testACrashBeforeTheFigures(self):
        job = self.press()
        node = self.volume.GetParentTransformNode()
        sharedWorker.process.kill()
        waitFor(lambda: not job.running)
        self.assertEqual(job.state.value, "failed")
        self.assertIn("crashed", self.ui.statusLabel.text)
        self.assertIn("figures were not computed", self.ui.statusLabel.text)
        self.assertIs(self.volume.GetParentTransformNode(), node)
        self.assertEqual(self.cells()[MEAN], "not computed")
        self.assertTrue(self.ui.deformButton.enabled)
        job.log.unlink()
        self.press(hold=False)
        waitFor(lambda: not self.panel.deform.running)
        self.assertEqual(self.panel.deform.job.state.value, "done", self.panel.deform.job.text)

    def testDeformIsPressedAgainAtOnce(self):
        self.panel.parameter.keepSeed = False
        first = self.press()
        node = self.volume.GetParentTransformNode()
        second = self.press(hold=False)
        shown = self.volume.GetParentTransformNode()
        self.assertIsNot(shown, node)
        # The same process has made both.
        self.assertIsNotNone(second.process._number)
        waitFor(lambda: not second.running)
        self.assertEqual(second.state.value, "done", second.text)
        self.assertTrue(first.running)
        self.assertEqual((self.cells(0)[MEAN], self.cells(1)[INVERTIBLE]), ("...", "yes, proven"))
        self.assertRegex(self.cells(1)[MEAN], r"^\d+\.\d\d$")
        self.finish(first)
        self.assertRegex(self.cells(0)[MEAN], r"^\d+\.\d\d$")
        self.assertIs(self.volume.GetParentTransformNode(), shown)
        self.assertNotEqual(self.record(node)["seed"], self.record(shown)["seed"])
        self.assertFalse(sharedWorker.busy)

    def testAPressThatWaitsSurvivesACrash(self):
        first = self.press()
        # The request is sent, but it is not read any more.
        with mock.patch.object(sharedWorker.process, "send"):
            self.ui.deformButton.click()
        second, process = self.panel.deform.job, sharedWorker.process
        process.kill()
        waitFor(lambda: not second.running)
        self.assertEqual(second.state.value, "done", second.text)
        self.assertEqual(first.state.value, "failed")
        self.assertIsNot(sharedWorker.process, process)
        first.log.unlink()

    def testCancelAPressThatWaits(self):
        first = self.press()
        process = sharedWorker.process
        self.ui.deformButton.click()
        second = self.panel.deform.job
        self.ui.cancelButton.click()
        self.assertEqual((first.state.value, second.state.value), ("running", "canceled"))
        self.finish(first)
        self.assertRegex(self.cells()[MEAN], r"^\d+\.\d\d$")
        self.assertIs(sharedWorker.process, process)
        self.assertFalse(process.ended)

    def testAnotherVersionIsChosenMeanwhile(self):
        first = self.press(hold=False)
        waitFor(lambda: not first.running)
        chosen = self.volume.GetParentTransformNode()
        job = self.press()
        self.ui.variantsTable.selectRow(0)
        self.assertIs(self.volume.GetParentTransformNode(), chosen)
        text = self.ui.statusLabel.text
        self.finish(job)
        self.assertIs(self.volume.GetParentTransformNode(), chosen)
        self.assertEqual(self.ui.statusLabel.text, text)
        self.assertRegex(self.cells(1)[MEAN], r"^\d+\.\d\d$")

    def testItIsRemovedMeanwhile(self):
        job = self.press()
        self.ui.removeButton.click()
        self.assertEqual(self.logic.variants(self.volume), [])
        before = sceneContent()
        self.finish(job)
        self.assertEqual(sceneContent(), before)
        # The volume, and the scene.
        job = self.press()
        node = self.volume.GetParentTransformNode()
        slicer.mrmlScene.RemoveNode(self.volume)
        self.finish(job)
        self.assertIn("mean_mm", mrml.records(node)[0]["metrics"])
        self.volume, self.segmentation = self.choosePhantom(steps=1)
        job = self.press()
        slicer.mrmlScene.Clear(0)
        self.assertEqual(job.state.value, "canceled")
        self.assertEqual(list(slicer.util.getNodesByClass("vtkMRMLGridTransformNode")), [])

    def testSeveralVariantsComeTogether(self):
        self.ui.variantsSpinBox.value = 2
        before = sceneContent()
        self.ui.deformButton.click()
        while self.panel.deform.job.running:
            self.assertTrue(self.panel.deform.making)
            self.assertEqual(sceneContent(), before)
            self.panel.deform.job.poll()
        self.assertEqual(self.panel.deform.job.state.value, "done", self.panel.deform.job.text)
        processEvents(0.05)
        self.assertRegex(self.cells(1)[MEAN], r"^\d+\.\d\d$")
