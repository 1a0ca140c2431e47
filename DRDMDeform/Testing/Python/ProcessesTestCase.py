"""No process is left behind, and how a run ended is known, although PythonSlicer is only a launcher of the real one."""

import os
import signal
import subprocess
import sys
import textwrap
import unittest
from pathlib import Path
from unittest import mock

import slicer
from DRDMDeformLib import job as jobs
from DRDMDeformLib.job import DrdmProcess, Job
from modulesupport import ModuleTestCase, cleanEnvironment, processesOf, processEvents, realPython, waitFor

import DRDMLib

MODULE = Path(jobs.__file__).resolve().parents[1]


def startAnew(test):
    """Have the processes of a test start as in Slicer: they are tested, so none comes from conftest's server."""
    cold = mock.patch.dict(os.environ)
    cold.start()
    test.addCleanup(cold.stop)
    os.environ.pop("DRDM_WARM_PROCESSES", None)


@unittest.skipUnless(Path("/proc/self/cmdline").is_file(), "the processes of the system cannot be listed here")
class ProcessesTestCase(ModuleTestCase):
    def setUp(self):
        super().setUp()
        startAnew(self)
        # On a busy computer the cleanup may take long; it must not be cut short here.
        longer = mock.patch.object(jobs, "STOP_TIMEOUT_SECONDS", 600.0)
        longer.start()
        self.addCleanup(longer.stop)

    def startBatch(self):
        """Start a batch that takes long, and wait for its first result."""
        self.ui.stepsSpinBox.value = 1
        self.ui.batchSourceComboBox.currentIndex = 1
        self.ui.batchFolderPath.currentPath = str(self.writeScans(count=1))
        self.ui.batchOutputPath.currentPath = str(self.folder / "out")
        self.ui.batchLevelsLineEdit.text = "8"
        self.ui.batchCopiesSpinBox.value = 5000
        self.ui.batchStartButton.click()
        job = self.panel.batch.job
        waitFor(lambda: job.items or not job.running)
        self.assertTrue(job.running, job.text)
        self.assertTrue(processesOf(self.folder))
        return job

    def assertNothingRuns(self, seconds=10):
        waitFor(lambda: not processesOf(self.folder), seconds)

    def testCancel(self):
        job = self.startBatch()
        job.cancel()
        # The launcher is not left in the system's list of processes either.
        self.assertIsNotNone(job.process._group.process.returncode)
        self.assertNothingRuns()
        made = len(list((self.folder / "out").rglob("*.nii.gz")))
        processEvents(0.5)
        self.assertEqual(len(list((self.folder / "out").rglob("*.nii.gz"))), made)

    def testTheLauncherAloneIsNotTheRun(self):
        """The tests above would notice if only the launcher ended."""
        if jobs.pythonExecutable() == sys.executable:
            self.skipTest("there is no launcher on the PATH")
        job = self.startBatch()
        launcher = job.process._group.process
        self.assertGreater(len(processesOf(self.folder)), 1)
        os.kill(launcher.pid, signal.SIGKILL)
        launcher.wait()
        count = len(job.items)
        waitFor(lambda: len(job.items) > count + 1 or not job.running)
        self.assertTrue(job.running)
        self.assertTrue(processesOf(self.folder))
        # Nor does it protect the run from Cancel.
        job.cancel()
        self.assertNothingRuns()

    def testStop(self):
        job = self.startBatch()
        self.ui.batchStopButton.click()
        waitFor(lambda: not job.running)
        # It has not been killed: it cleaned up and reported its end.
        self.assertEqual((job.state.value, job._endStatus), ("canceled", jobs.INTERRUPTED))
        self.assertIn("Stopped", self.ui.batchLabel.text)
        self.assertNothingRuns()
        # The folder's lock is free.
        self.assertEqual(self.ui.batchStartButton.text, "Resume")
        count = len(job.items)
        self.ui.batchStartButton.click()
        job = self.panel.batch.job
        waitFor(lambda: job.items or not job.running)
        self.assertTrue(job.running, job.text)
        self.assertGreater(count, 0)

    def testStopATraining(self):
        self.ui.trainFolderPath.currentPath = str(self.writeScans(labels=False))
        self.ui.trainOutputPath.currentPath = str(self.folder / "run")
        self.ui.trainSizeSpinBox.value = 16
        self.ui.trainMinutesSpinBox.value = 60
        self.ui.trainStartButton.click()
        job = self.panel.train.job
        waitFor(lambda: "Step" in self.ui.trainLabel.text or not job.running)
        self.ui.trainStopButton.click()
        waitFor(lambda: not job.running)
        self.assertEqual((job.state.value, job._endStatus), ("canceled", jobs.INTERRUPTED), job.text)
        self.assertTrue((self.folder / "run" / "checkpoint.pt").is_file())
        self.assertNothingRuns()

    def testThePanelIsClosed(self):
        self.startBatch()
        self.panel.jobRunner.cleanup()
        self.assertNothingRuns()
        self.panel.jobRunner._timer.connect("timeout()", self.panel.jobRunner.poll)

    def testTheApplicationDies(self):
        code = """
            import sys, time, types
            slicer, i18n = types.ModuleType("slicer"), types.ModuleType("slicer.i18n")
            i18n.tr, slicer.i18n = str, i18n
            sys.modules.update({"slicer": slicer, "slicer.i18n": i18n})
            sys.path.insert(0, sys.argv.pop(1))
            from DRDMDeformLib.job import DrdmProcess
            process = DrdmProcess()
            process.start(sys.argv[1:] + ["--progress", "json"])
            while not any("item" in line for line in process.poll()[0]):
                time.sleep(0.02)
            print("started", flush=True)
            time.sleep(1000)
        """
        scans = self.writeScans(count=1)
        arguments = ["augment", str(scans), "-o", str(self.folder / "out"), "--copies", "5000", "--levels", "8"]
        python = realPython()
        if not python:
            self.skipTest("this Python cannot run as a program of its own, which stands for the application")
        command = [python, "-c", textwrap.dedent(code), str(MODULE), *arguments, "--steps", "1"]
        environment = cleanEnvironment() | {"PYTHONPATH": str(Path(DRDMLib.__file__).parents[1])}
        application = subprocess.Popen(command, stdout=subprocess.PIPE, env=environment)
        self.assertIn(b"started", application.stdout.readline())
        self.assertGreater(len(processesOf(self.folder)), 1)
        application.kill()
        application.communicate()
        self.assertNothingRuns(25)

    def testTheSystemKillsTheRun(self):
        job = self.startBatch()
        # The newest process is the real one, not its launcher.
        os.kill(processesOf(self.folder)[-1], signal.SIGKILL)
        waitFor(lambda: not job.running)
        self.assertEqual(job.state.value, "failed")
        self.assertIn("memory", self.ui.batchLabel.text)
        self.assertIn(str(job.log), self.ui.batchLabel.text)
        self.assertIn("augment", job.log.read_text(encoding="utf-8"))
        job.log.unlink()


class EndTestCase(ModuleTestCase):
    def setUp(self):
        super().setUp()
        startAnew(self)

    def run_(self, action):
        """Run a command that does ``action``."""
        code = f"""
            import argparse, DRDMLib.cli
            def act(options, reporter):
                {action}
            class Parser:
                def parse_args(self, arguments):
                    return argparse.Namespace(progress="json", func=act)
            DRDMLib.cli.build_parser = Parser
            raise SystemExit(DRDMLib.cli.main())
        """
        (self.folder / "faulty.py").write_text(textwrap.dedent(code), encoding="utf-8")
        path = os.pathsep.join([str(self.folder), os.environ.get("PYTHONPATH", "")])
        with mock.patch.dict(os.environ, {"PYTHONPATH": path}):
            job = Job(["act"], DrdmProcess("faulty"))
            job.start()
        job.wait(slicer.app.processEvents)
        if job.log is not None:
            self.addCleanup(job.log.unlink)
        return job

    def testAnInternalError(self):
        job = self.run_("1 / 0")
        self.assertEqual(job.state.value, "failed")
        self.assertIn("ZeroDivisionError: division by zero", job.text)
        log = job.log.read_text(encoding="utf-8")
        self.assertIn("Traceback", log)
        self.panel.setup.showFailure(self.ui.statusLabel, job)
        self.assertIn("Open the log file", self.ui.statusLabel.text)
        self.assertTrue(self.ui.statusLabel.openExternalLinks)

    def testMemoryIsFull(self):
        job = self.run_("raise MemoryError")
        self.assertEqual((job.state.value, job.log), ("failed", None))
        self.assertIn("not enough memory", job.text)

    def testALibraryCrashes(self):
        job = self.run_("import faulthandler; faulthandler._sigsegv()")
        self.assertEqual(job.state.value, "failed")
        self.assertIn("crashed", job.text)
        # The lines that led to the crash.
        self.assertIn("in act", job.log.read_text(encoding="utf-8"))

    def testTheEndIsWhatTheRunSays(self):
        class Process:
            errors = ""
            lines = ('{"event": "message", "text": "Good."}', '{"event": "end", "status": 0}')

            def start(self, arguments):
                pass

            def poll(self):
                # The launcher of a run that has succeeded was killed.
                return list(self.lines), -15

        job = Job([], Process())
        job.start()
        self.assertEqual((job.wait().value, job.text), ("done", "Good."))
