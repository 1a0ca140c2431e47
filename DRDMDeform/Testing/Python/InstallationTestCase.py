"""Installation of packages with a fake installer, and the section Setup of the panel."""

import contextlib
import importlib.metadata
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path
from unittest import mock

import qt
import slicer
from DRDMDeformLib.job import Job
from DRDMDeformLib.setup import environment as environments
from DRDMDeformLib.setup import installation
from DRDMDeformLib.setup.diagnosis import (
    Condition,
    Diagnosis,
    Remedy,
)
from DRDMDeformLib.setup.environment import Environment
from DRDMDeformLib.setup.installation import Installation
from modulesupport import ModuleTestCase, waitFor
from sandboxes import writeTorch

from DRDMLib.errors import DRDMError


class OtherPackagesTestCase(unittest.TestCase):
    """Packages other than PyTorch: only missing ones are installed, with the tool of the Slicer version."""

    def setUp(self):
        temporary = tempfile.TemporaryDirectory()
        self.addCleanup(temporary.cleanup)
        self.requirements = Path(temporary.name) / "requirements.txt"
        self.requirements.write_text("# a remark\nnumpy>=1\ndrdm-is-not-there>=3\n", encoding="utf-8")

    def testWithSlicerPackaging(self):
        asked = []
        try:
            # Slicer imports it on demand only.
            packaging = importlib.import_module("slicer.packaging")
        except ImportError:
            self.skipTest("this Slicer has no slicer.packaging")
        with (
            mock.patch.object(packaging, "pip_ensure", lambda wanted, **how: asked.append((wanted, how))),
            mock.patch.object(slicer.util, "pip_install", self.fail),
        ):
            installation._installRequirements(self.requirements)
        ((wanted, how),) = asked
        self.assertEqual([str(one) for one in wanted], ["numpy>=1", "drdm-is-not-there>=3"])
        # The module has already asked the user, and offers a restart itself.
        self.assertEqual((how["prompt_install"], how["prompt_restart"]), (False, False))

    def testInSlicer510(self):
        installed = []
        with (
            mock.patch.dict(sys.modules, {"slicer.packaging": None}),
            mock.patch.object(slicer.util, "pip_install", installed.append),
        ):
            installation._installRequirements(self.requirements)
        self.assertEqual(installed, [["drdm-is-not-there>=3"]])


class FakeUtilities:
    """The interface of the PyTorch extension's logic, without downloads."""

    def __init__(self, then=lambda: None):
        self.calls = []
        self.then = then

    def installTorch(
        self,
        askConfirmation=False,
        forceComputationBackend=None,
        torchVersionRequirement=None,
        torchvisionVersionRequirement=None,
    ):
        self.calls.append((askConfirmation, forceComputationBackend, torchVersionRequirement))
        self.then()


class InstallationTestCase(unittest.TestCase):
    """Nothing is installed without consent; there is one question and one restart."""

    def setUp(self):
        temporary = tempfile.TemporaryDirectory()
        self.addCleanup(temporary.cleanup)
        self.folder = Path(temporary.name)
        requirements = self.folder / "requirements.txt"
        requirements.write_text("numpy>=1\n", encoding="utf-8")
        self.installation = Installation([self.folder], requirements)
        self.utilities = FakeUtilities()
        self.questions, self.answers, self.restarts = [], [], 0
        module = type(sys)("PyTorchUtils")
        module.PyTorchUtilsLogic = lambda: self.utilities
        self.patch(mock.patch.dict(sys.modules, {"PyTorchUtils": module}))
        self.patch(mock.patch.object(slicer.util, "confirmOkCancelDisplay", self.answer))
        self.patch(mock.patch.object(slicer.util, "confirmYesNoDisplay", self.answer))
        self.patch(mock.patch.object(slicer.util, "restart", self.restart))
        self.patch(mock.patch.object(slicer.util, "pip_uninstall", lambda names: None))
        self.patch(mock.patch.object(importlib.util, "find_spec", lambda name: name))
        self.found = Diagnosis(Condition.MISSING, "Missing.", "", Remedy.INSTALL, "", ">=2.4", "cu128", 0.0)

    def patch(self, change):
        change.start()
        self.addCleanup(change.stop)

    def answer(self, text, *args, **kwargs):
        self.questions.append(text)
        return self.answers.pop(0)

    def restart(self):
        self.restarts += 1

    @contextlib.contextmanager
    def torchLoaded(self, loaded):
        kept = {name: module for name, module in sys.modules.items() if name.split(".")[0] == "torch"}
        for name in kept:
            del sys.modules[name]
        if loaded:
            sys.modules["torch"] = type(sys)("torch")
        try:
            yield
        finally:
            sys.modules.pop("torch", None)
            sys.modules.update(kept)

    def testConsent(self):
        self.answers = [True]
        self.installation.run(self.found)
        self.assertEqual(len(self.questions), 1)
        self.assertEqual(self.utilities.calls, [(False, "cu128", ">=2.4")])
        self.assertFalse(self.installation.restartNeeded)

    def testRefusal(self):
        self.answers = [False]
        with self.assertRaisesRegex(DRDMError, "Nothing was installed"):
            self.installation.run(self.found)
        self.assertEqual(self.utilities.calls, [])

    def testLoadedTorchIsNotReplaced(self):
        (self.folder / "torch").mkdir()
        replace = Diagnosis(Condition.BROKEN, "Broken.", "", Remedy.REPLACE, "", ">=2.4")
        self.answers = [True]
        with self.torchLoaded(True), self.assertRaisesRegex(DRDMError, "Restart Slicer"):
            self.installation.run(replace)
        self.assertEqual((self.utilities.calls, self.restarts), ([], 1))
        self.assertTrue((self.folder / "torch").is_dir())
        with self.torchLoaded(True), self.assertRaises(DRDMError):
            self.installation.run(replace)
        self.assertEqual((len(self.questions), self.restarts), (1, 1))

    def testAllFilesOfTorchAreRemovedFirst(self):
        for name in ("torch", "torchgen", "functorch", "~orch", "torch-2.9.0.dist-info", "torchio", "numpy"):
            (self.folder / name).mkdir()
        seen = []
        self.utilities.then = lambda: seen.append(
            (sorted(p.name for p in self.folder.iterdir()), os.environ.get("PIP_NO_CACHE_DIR"))
        )
        self.answers = [True]
        with self.torchLoaded(False):
            self.installation.run(Diagnosis(Condition.BROKEN, "Broken.", "", Remedy.REPLACE, "", ">=2.4"))
        self.assertEqual(seen, [(["numpy", "requirements.txt", "torchio"], "1")])
        self.assertNotIn("PIP_NO_CACHE_DIR", os.environ)

    def testALinkedTorchIsRemovedAsALink(self):
        """A developer's own build, linked into the folder of packages, stays; Repair removes the link."""
        build = self.folder.parent / f"{self.folder.name} build"
        build.mkdir()
        self.addCleanup(shutil.rmtree, build)
        (build / "__init__.py").write_text("", encoding="utf-8")
        try:
            (self.folder / "torch").symlink_to(build, target_is_directory=True)
            (self.folder / "functorch").symlink_to(build / "missing")
        except OSError:
            self.skipTest("links are not allowed here")
        self.answers = [True]
        with self.torchLoaded(False):
            self.installation.run(Diagnosis(Condition.BROKEN, "Broken.", "", Remedy.REPLACE, "", ">=2.4"))
        self.assertFalse(os.path.lexists(self.folder / "torch"))
        self.assertFalse(os.path.lexists(self.folder / "functorch"))
        self.assertTrue((build / "__init__.py").is_file())

    def testReasonOfAFailureIsReported(self):
        def fail():
            print("OSError: [Errno 28] No space left on device")
            raise subprocess.CalledProcessError(1, ["pip"])

        self.utilities.then = fail
        self.answers = [True]
        with self.assertRaisesRegex(DRDMError, "disk is full"):
            self.installation.run(self.found)

    def testFailureWithoutAnErrorIsReported(self):
        """The installer prints the reason but reports no error."""
        output = "Retrying after connection broken by 'NewConnectionError(... Name or service not known)'"
        self.utilities.then = lambda: print(output)
        self.answers = [True]
        with (
            mock.patch.object(importlib.util, "find_spec", lambda name: None),
            self.assertRaisesRegex(DRDMError, "cannot be reached"),
        ):
            self.installation.run(self.found)

    def testDiskSpaceIsCheckedFirst(self):
        large = Diagnosis(Condition.MISSING, "Missing.", "", Remedy.INSTALL, gigabytes=1e9)
        with self.assertRaisesRegex(DRDMError, "free space"):
            self.installation.run(large)
        self.assertEqual(self.questions, [])

    def testRestartIsOfferedIfLoadedPackagesWereReplaced(self):
        after = dict(installation._versions(), numpy="99")
        self.answers = [True, False]
        with mock.patch.object(installation, "_versions", side_effect=[installation._versions(), after]):
            self.installation.run(self.found)
        self.assertIn("numpy", self.questions[-1])
        self.assertTrue(self.installation.restartNeeded)
        environment = Environment(self.installation)
        self.assertEqual(environment.state().remedy, "Restart Slicer")
        with mock.patch.object(environments, "isTesting", lambda: False):
            environment.fix()
        self.assertEqual(self.restarts, 1)

    def testNoRestartForPackagesThatAreNotUsed(self):
        """The PyTorch extension replaces pip, which Slicer has imported."""
        before = dict(installation._versions(), pip="26.1.1")
        self.answers = [True]
        modules = importlib.metadata.packages_distributions() | {"pip": ["pip"]}
        with (
            mock.patch.dict(sys.modules, {"pip": type(sys)("pip")}),
            mock.patch.object(importlib.metadata, "packages_distributions", lambda: modules),
            mock.patch.object(installation, "_versions", side_effect=[before, dict(before, pip="26.0.1")]),
        ):
            self.installation.run(self.found)
        self.assertFalse(self.installation.restartNeeded)
        self.assertEqual(len(self.questions), 1)

    def testPyTorchExtensionMissingOrTooOld(self):
        class Old:
            def installTorch(self, askConfirmation=False):
                raise AssertionError

        class Manager:
            interactive = True

            def installExtensionFromServer(manager, name, restart, update):
                self.assertFalse(manager.interactive)
                asked.append((name, restart, update))
                return True

        for module, update in ((None, False), (type(sys)("PyTorchUtils"), True)):
            asked = []
            if module is not None:
                module.PyTorchUtilsLogic = Old
            fresh = Installation([self.folder], self.installation._requirements)
            self.answers = [True, True]
            with (
                mock.patch.dict(sys.modules, {"PyTorchUtils": module}),
                mock.patch.object(slicer, "app", mock.Mock(wraps=slicer.app, extensionsManagerModel=Manager)),
                self.assertRaisesRegex(DRDMError, "Restart Slicer"),
            ):
                fresh.run(self.found)
            self.assertEqual(asked, [("PyTorch", False, update)])
        self.assertEqual(self.restarts, 2)


class SetupTestCase(ModuleTestCase):
    def install(self, then):
        """Press the button with an installer that calls ``then``; PyTorch appears to be missing before."""
        utilities = FakeUtilities(then)
        module = type(sys)("PyTorchUtils")
        module.PyTorchUtilsLogic = lambda: utilities
        missing = Diagnosis(Condition.MISSING, "PyTorch is not installed yet.", "", Remedy.INSTALL, "Install PyTorch")
        before = installation._versions()
        with (
            mock.patch.dict(sys.modules, {"PyTorchUtils": module}),
            mock.patch.object(environments, "isTesting", lambda: False),
            mock.patch.object(self.panel.environment, "diagnosis", lambda: missing),
            mock.patch.object(slicer.util, "confirmOkCancelDisplay", lambda *texts: True),
            # It has replaced pip.
            mock.patch.object(installation, "_versions", side_effect=[dict(before, pip="26.1.1"), before]),
            mock.patch.object(installation, "_installRequirements", lambda path: None),
        ):
            self.panel.setup.show()
            self.assertFalse(self.ui.setupSection.collapsed)
            self.ui.setupButton.click()
        return utilities

    def testAnInstallationIsShownAndNotEnteredTwice(self):
        self.choosePhantom()
        label, seen = self.ui.setupStatusLabel, []

        def pipPrints():
            for line in ("Collecting torch", "Downloading torch-2.9.0 (900 MB)"):
                print(line)
                slicer.app.processEvents()
                cursor = qt.QApplication.overrideCursor()
                seen.append((label.text, self.ui.setupProgressBar.visible, cursor.shape()))
                # The user presses the buttons again.
                self.assertFalse(self.ui.setupButton.enabled)
                self.panel.setup.onFix()
                self.ui.deformButton.click()
                self.assertIn("being installed", self.ui.statusLabel.text)

        utilities = self.install(pipPrints)
        self.assertEqual(len(utilities.calls), 1)
        self.assertIn("900 MB", seen[1][0])
        self.assertEqual([entry[1:] for entry in seen], [(True, qt.Qt.WaitCursor)] * 2)
        self.assertIsNone(qt.QApplication.overrideCursor())
        self.assertTrue(self.ui.setupButton.enabled)
        self.assertFalse(self.ui.setupProgressBar.visible)
        waitFor(lambda: "Ready" in label.text)

    def testAFailedInstallationCanBeRepeated(self):
        def fail():
            raise subprocess.CalledProcessError(1, ["pip"])

        self.install(fail)
        self.assertIn("installation failed", self.ui.setupStatusLabel.text)
        self.assertTrue(self.ui.setupButton.enabled)
        self.assertFalse(self.ui.setupProgressBar.visible)
        self.assertIsNone(qt.QApplication.overrideCursor())
        self.assertEqual(len(self.install(lambda: None).calls), 1)

    def testWarningsOfJobsAreShown(self):
        class Process:
            errors = ""

            def start(self, arguments):
                pass

            def poll(self):
                text = "The memory of the GPU (cuda) is full; the CPU is used instead."
                return [json.dumps({"event": "warning", "text": text})], 0

        self.panel.jobRunner.run(Job([], Process()))
        waitFor(lambda: "CPU is used" in self.ui.setupStatusLabel.text)
        self.assertFalse(self.ui.setupSection.collapsed)

    def testNothingIsInstalledInTestingMode(self):
        with (
            mock.patch.object(slicer, "app", mock.Mock(wraps=slicer.app, testingEnabled=lambda: True)),
            self.assertRaisesRegex(DRDMError, "testing mode"),
        ):
            Environment().fix()

    def testAdviceIsShownWithItsButton(self):
        environment = self.panel.environment
        self.panel.setup.check()
        waitFor(lambda: "Ready" in self.ui.setupStatusLabel.text)
        facts = dict(
            environment._facts, cards=[{"name": "RTX 4000", "driver": "570.0", "capability": "8.9"}], cuda_build=""
        )
        with mock.patch.object(environment, "_facts", facts):
            self.panel.setup.show()
            self.assertIn("RTX 4000", self.ui.setupStatusLabel.text)
            self.assertEqual(self.ui.setupButton.text, "Install PyTorch for the GPU")
            self.assertFalse(self.ui.setupSection.collapsed)
            # This is only advice; PyTorch can still be used.
            self.panel.setup.requireTorch()
        self.panel.setup.show()
        self.assertTrue(self.ui.setupSection.collapsed)

    def testBrokenTorchIsShownInThePanel(self):
        with tempfile.TemporaryDirectory() as folder:
            writeTorch(Path(folder), parts=["torch"])
            # The packages of this Python, such as torchgen, are available as well.
            (Path(folder) / "torch" / "__init__.py").write_text("import torch._C_missing", encoding="utf-8")
            with mock.patch.dict(os.environ, {"PYTHONPATH": folder}):
                self.panel.setup.check()
                waitFor(lambda: "cannot be imported" in self.ui.setupStatusLabel.text)
        self.assertIn("_C_missing", self.ui.setupStatusLabel.text)
        self.assertEqual(self.ui.setupButton.text, "Repair PyTorch")
        self.panel.setup.check()
        waitFor(lambda: "Ready" in self.ui.setupStatusLabel.text)
