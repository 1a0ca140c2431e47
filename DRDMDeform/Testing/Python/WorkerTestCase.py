"""The process that stays: it answers many jobs, and none of them can end it for the others."""

import json
import os
import signal
import unittest
from pathlib import Path
from typing import ClassVar
from unittest import mock

import slicer
from DRDMDeformLib import worker as workers
from DRDMDeformLib.job import DrdmProcess, Job
from DRDMDeformLib.mrml import fieldFromTransform
from DRDMDeformLib.worker import Worker, WorkerProcess, sharedWorker
from modulesupport import MODEL, ModuleTestCase, arrayOf, processEvents, waitFor
from ProcessesTestCase import startAnew

HAS_PROC = Path("/proc/self/task").is_dir()


def childrenOf(pid):
    """The numbers of a process and of all that it has started."""
    found = [pid]
    for one in found:
        for path in Path(f"/proc/{one}/task").glob("*/children"):
            found += map(int, path.read_text(encoding="utf-8").split())
    return found


class WorkerTestCase(ModuleTestCase):
    def setUp(self):
        super().setUp()
        # It may come from another test, with other environment variables.
        sharedWorker.end()
        self.addCleanup(sharedWorker.end)
        # On a busy computer the cleanup may take long.
        patient = mock.patch.object(workers, "CANCEL_SECONDS", 600.0)
        patient.start()
        self.addCleanup(patient.stop)

    def pid(self):
        return sharedWorker.process._group.process.pid

    def chooseModel(self, steps=2):
        volume, segmentation = self.choosePhantom(steps)
        self.panel.parameter.model = MODEL
        return volume, segmentation

    def testTheSecondVersionComesFromTheSameProcess(self):
        volume, _segmentation = self.chooseModel()
        self.panel.parameter.keepSeed = True
        self.deform()
        first, pid = self.panel.parameter.deformations, self.pid()
        self.deform()
        second = self.panel.parameter.deformations
        self.assertIsNot(second, first)
        self.assertEqual(self.pid(), pid)
        self.assertFalse(sharedWorker.busy)
        # A process of its own makes the same.
        with mock.patch("DRDMDeformLib.logic.WorkerProcess", DrdmProcess):
            self.deform()
        third = self.panel.parameter.deformations
        fields = [slicer.util.arrayFromGridTransform(node).tobytes() for node in (first, second, third)]
        self.assertEqual(len(set(fields)), 1)
        figures = [self.logic.figures(node)[0]["metrics"] for node in (first, second, third)]
        self.assertEqual(figures[0], figures[1])
        self.assertEqual(figures[0], figures[2])
        self.assertEqual(volume.GetParentTransformNode(), third)

    def testCancelEndsOneJob(self):
        self.chooseModel(steps=1)
        self.deform()
        pid = self.pid()
        self.ui.variantsSpinBox.value = 50
        self.ui.deformButton.click()
        job = self.panel.deform.job
        waitFor(lambda: self.ui.progressBar.value > 0)
        self.assertTrue(sharedWorker.busy)
        # Another job does not wait for it.
        other = Job(["fit", self.writeScans(count=1) / "images" / "scan0.nii.gz", "--model", MODEL], WorkerProcess())
        other.start()
        self.assertIsNone(other.process._number)
        self.ui.cancelButton.click()
        self.assertEqual(job.state.value, "canceled")
        self.assertFalse(sharedWorker.busy)
        self.assertEqual(other.wait().value, "done")
        self.ui.variantsSpinBox.value = 1
        self.deform()
        self.assertEqual(self.pid(), pid)

    def testStopABatch(self):
        volume, _segmentation = self.chooseModel(steps=1)
        out = self.folder / "out"
        job = self.logic.augment([volume], out, levels=[8], copies=12, model=MODEL, steps=1, wait=False)
        job.start()
        waitFor(lambda: job.poll() and (job.items or not job.running))
        job.stop()
        self.assertEqual(job.wait(slicer.app.processEvents).value, "canceled", job.text)
        pid, made = self.pid(), len(job.items)
        job = self.logic.augment([volume], out, levels=[8], copies=12, model=MODEL, steps=1, resume=True)
        self.assertEqual((job.state.value, self.pid()), ("done", pid))
        self.assertGreater(made, 0)
        self.assertEqual(self.logic.summary(out)["made"], 12)
        # A longer one has a process of its own.
        many = self.logic.augment([volume], out, levels=[8], copies=13, model=MODEL, steps=1, wait=False)
        self.assertIsInstance(many.process, DrdmProcess)

    def testAMistakeEndsOneJob(self):
        self.chooseModel()
        self.deform()
        pid = self.pid()
        wrong = self.logic.startDeform(self.panel.parameter.inputVolume, model="nobody's", steps=2)
        wrong.start()
        self.assertEqual(wrong.wait().value, "failed")
        self.assertIn("There is no model 'nobody's'", wrong.text)
        self.assertIsNone(wrong.log)
        self.deform()
        self.assertEqual(self.pid(), pid)

    @unittest.skipUnless(HAS_PROC, "the children of a process cannot be listed here")
    def testTheSystemKillsIt(self):
        startAnew(self)
        self.chooseModel(steps=1)
        self.deform()
        pid = self.pid()
        self.ui.variantsSpinBox.value = 50
        self.ui.deformButton.click()
        waitFor(lambda: self.ui.progressBar.value > 0)
        # The real Python, not its launcher.
        os.kill(childrenOf(pid)[-1], signal.SIGKILL)
        waitFor(lambda: not self.panel.deform.job.running)
        job = self.panel.deform.job
        self.assertEqual(job.state.value, "failed")
        self.assertIn("ended by the system or crashed", self.ui.statusLabel.text)
        self.assertIn("deform", job.log.read_text(encoding="utf-8"))
        job.log.unlink()
        self.ui.variantsSpinBox.value = 1
        self.deform()
        self.assertNotEqual(self.pid(), pid)

    def testItEndsWithThePanelAndIsStartedAgain(self):
        volume, _segmentation = self.chooseModel()
        self.deform()
        process = sharedWorker.process
        before = arrayOf(volume).tobytes()
        sharedWorker.end()
        waitFor(lambda: process.ended)
        self.deform()
        self.assertIsNot(sharedWorker.process, process)
        self.assertEqual(arrayOf(volume).tobytes(), before)
        self.assertEqual(fieldFromTransform(self.panel.parameter.deformations).GetDimension(), 3)

    def testAnotherPyTorch(self):
        self.chooseModel()
        self.deform()
        process = sharedWorker.process
        with mock.patch.object(workers, "_state", lambda: "another"):
            self.deform()
            self.assertIsNot(sharedWorker.process, process)
            waitFor(lambda: process.ended)
            process = sharedWorker.process
            self.deform()
            self.assertIs(sharedWorker.process, process)

    def testItEndsWhenItIsIdle(self):
        self.chooseModel()
        with mock.patch.object(workers, "IDLE_MINUTES", 0.01):
            self.deform()
            process = sharedWorker.process
            waitFor(lambda: process.ended)
            self.deform()
        self.assertIsNot(sharedWorker.process, process)


class FakeProcess:
    """A process that ends because it is idle, just when it gets a request; the next one answers it."""

    started: ClassVar[list] = []

    def __init__(self):
        self.started.append(self)
        self.sent = []
        self.ended = False
        self.errorLines = []

    def start(self, arguments):
        self.arguments = arguments

    def send(self, line):
        self.sent.append(json.loads(line))

    def poll(self):
        if len(self.started) == 1:
            self.ended = True
            return [], 0
        number = self.sent[-1]["id"]
        self.errorLines.append(b"drdm serve: end of request %d\n" % number)
        return [json.dumps({"event": "end", "id": number, "status": 0})], None

    def terminate(self):
        pass

    def kill(self):
        self.ended = True


class IdleTestCase(unittest.TestCase):
    def testARequestThatCameTooLateIsSentAgain(self):
        FakeProcess.started = []
        with mock.patch.object(workers, "DrdmProcess", FakeProcess):
            job = Job(["fit", "scan.nii.gz"], WorkerProcess(Worker()))
            job.start()
            self.assertEqual(job.wait().value, "done")
        first, second = FakeProcess.started
        self.assertEqual(first.sent[0]["arguments"], second.sent[0]["arguments"])
        self.assertEqual(second.sent[0]["folder"], str(Path.cwd()))
        processEvents(0)
