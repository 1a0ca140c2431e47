"""Diagnosis and installation of PyTorch: each faulty state in its own Python environment."""

import importlib.metadata
import importlib.util
import os
import shutil
import subprocess
import sys
import unittest
import zipfile
from pathlib import Path
from unittest import mock

import slicer
from DRDMDeformLib.setup.diagnosis import (
    Condition,
    Diagnosis,
    Remedy,
    bestBackend,
    diagnose,
    explainFailure,
    torchRequirement,
)
from DRDMDeformLib.setup.installation import Installation
from modulesupport import HAS_TORCH, ModuleTestCase, cleanEnvironment, realPython, waitFor
from sandboxes import LIBRARY, SandboxTestCase, writeTorch

from DRDMLib.runtime.probe import site_folders

HAS_PIP = bool(realPython(withPip=True))


class StatesTestCase(SandboxTestCase):
    def diagnosis(self):
        return diagnose(self.sandbox.probe())

    def testNoTorch(self):
        found = self.diagnosis()
        self.assertIs(found.condition, Condition.MISSING)
        self.assertIs(found.remedy, Remedy.INSTALL)

    def testFilesOfAnInterruptedInstallation(self):
        writeTorch(self.sandbox.site, parts=["torchgen"])
        (self.sandbox.site / "~orch").mkdir()
        found = self.diagnosis()
        self.assertIs(found.condition, Condition.MISSING)
        self.assertIs(found.remedy, Remedy.REPLACE)

    def testBrokenTorch(self):
        writeTorch(self.sandbox.site, parts=["torch", "torch-2.9.0.dist-info"])
        found = self.diagnosis()
        self.assertIs(found.condition, Condition.BROKEN)
        self.assertIn("torchgen", found.problem)
        self.assertIs(found.remedy, Remedy.REPLACE)

    def testMetadataWithoutFiles(self):
        writeTorch(self.sandbox.site, parts=["torch-2.9.0.dist-info"])
        self.assertIs(self.diagnosis().condition, Condition.BROKEN)

    def testOldTorch(self):
        writeTorch(self.sandbox.site, version="1.13.1")
        self.addPackage("oldnet", "torch<2.1")
        found = self.diagnosis()
        self.assertIs(found.condition, Condition.TOO_OLD)
        self.assertIn("1.13.1", found.problem)
        self.assertIn("oldnet (torch<2.1)", found.problem)

    def testRequirementOfAnotherPackageIsRespected(self):
        self.addPackage("otherextension", "torch>=2.0,<2.9 ; python_version > '3'")
        found = self.diagnosis()
        self.assertEqual(found.requirement, "<2.9,>=2.0,>=2.4")

    def testCpuBuildWithAnNvidiaGpu(self):
        writeTorch(self.sandbox.site)
        self.assertIs(self.diagnosis().condition, Condition.READY)
        self.sandbox.addCard()
        found = self.diagnosis()
        self.assertIs(found.condition, Condition.CPU_BUILD)
        self.assertIn("RTX 5090", found.advice)
        self.assertEqual((found.problem, found.backend, found.remedy), ("", "cu128", Remedy.REPLACE))

    def testGpuNewerThanTheBuild(self):
        fault = "CUDA error: no kernel image is available for execution on the device"
        writeTorch(self.sandbox.site, cuda="12.4", available="return True", kernel=fault)
        self.sandbox.addCard(driver="581.10")
        found = self.diagnosis()
        self.assertIs(found.condition, Condition.WRONG_BUILD)
        self.assertIn("no kernel image", found.advice)
        self.assertEqual(found.backend, "cu130")

    def testBuildNewerThanTheDriver(self):
        available = "import warnings; warnings.warn('The NVIDIA driver on your system is too old'); return False"
        writeTorch(self.sandbox.site, cuda="13.0", available=available)
        self.sandbox.addCard("NVIDIA RTX A2000", "550.54", "8.6")
        found = self.diagnosis()
        self.assertIs(found.condition, Condition.WRONG_BUILD)
        self.assertEqual(found.backend, "cu126")

    def testDriverTooOldForEveryBuild(self):
        writeTorch(self.sandbox.site)
        self.sandbox.addCard("Quadro K620", "470.82", "5.0")
        found = self.diagnosis()
        self.assertIs(found.condition, Condition.OLD_DRIVER)
        self.assertIs(found.remedy, Remedy.DRIVER)
        self.assertIn("470.82", found.advice)

    def testDriverWithoutComputeCapability(self):
        script = self.sandbox.tools / "nvidia-smi"
        self.sandbox.addCard()
        answer = "case \"$1\" in *compute_cap*) exit 2;; esac\necho 'Tesla K80, 470.57'\n"
        script.write_text("#!/bin/sh\n" + answer, encoding="utf-8")
        self.assertEqual(self.sandbox.probe()["cards"], [{"name": "Tesla K80", "driver": "470.57", "capability": ""}])

    def testSafetensorsIsMissing(self):
        writeTorch(self.sandbox.site)
        (self.sandbox.site / "safetensors" / "__init__.py").unlink()
        (self.sandbox.site / "safetensors").rmdir()
        found = self.diagnosis()
        self.assertIs(found.condition, Condition.PACKAGES)
        self.assertIn("safetensors", found.problem)

    @unittest.skipUnless(HAS_TORCH, "PyTorch is not installed")
    def testInstalledTorch(self):
        (self.sandbox.site / "all.pth").write_text(
            str(Path(importlib.util.find_spec("torch").origin).parents[1]), encoding="utf-8"
        )
        facts = self.sandbox.probe()
        self.assertTrue(facts["examined"])
        self.assertEqual((facts.get("fault", ""), facts["kernel_fault"]), ("", ""))
        self.assertTrue(facts["numpy_bridge"])
        if not facts["cuda_build"]:
            self.sandbox.addCard()
            found = self.diagnosis()
            self.assertIs(found.condition, Condition.CPU_BUILD)
            self.assertIn("RTX 5090", found.advice)

    @unittest.skipIf(os.name == "nt", "needs symbolic links")
    @unittest.skipUnless(HAS_TORCH, "PyTorch is not installed")
    def testInstalledTorchWithALibraryMissing(self):
        """The state after an interrupted installation."""
        real = Path(importlib.util.find_spec("torch").origin).parent
        packages = real.parent
        for path in packages.iterdir():
            if path.name != "torch" and path.suffix != ".pth" and not (self.sandbox.site / path.name).exists():
                (self.sandbox.site / path.name).symlink_to(path)
        broken = self.sandbox.site / "torch"
        (broken / "lib").mkdir(parents=True)
        for path in real.iterdir():
            if path.name not in ("lib", "__pycache__"):
                (broken / path.name).symlink_to(path)
        for path in (real / "lib").iterdir():
            if not path.name.startswith(("libtorch_cpu", "libtorch_python")):
                (broken / "lib" / path.name).symlink_to(path)
        # Copy the extension module; a link would find the libraries beside the real one.
        for path in broken.glob("_C*.so"):
            target = path.resolve()
            path.unlink()
            shutil.copyfile(target, path)
        found = self.diagnosis()
        self.assertIs(found.condition, Condition.BROKEN)
        self.assertIn("libtorch", found.problem)
        self.assertEqual(found.label, "Repair PyTorch")

    def addPackage(self, name, requirement):
        folder = self.sandbox.site / f"{name}-1.0.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\nRequires-Dist: {requirement}\n", encoding="utf-8"
        )


@unittest.skipUnless(HAS_PIP, "there is no pip here")
class PipTestCase(SandboxTestCase):
    """Behavior and messages of the real pip."""

    plain = Diagnosis(Condition.MISSING, requirement=">=2.4", gigabytes=2.5)

    def wheel(self, version="2.9.0"):
        """A folder with an imitation of PyTorch that can be installed without a network."""
        source, folder = self.sandbox.folder.parent / "source", self.sandbox.folder.parent / "wheels"
        writeTorch(source, version)
        folder.mkdir(exist_ok=True)
        with zipfile.ZipFile(folder / f"torch-{version}-py3-none-any.whl", "w") as archive:
            for path in sorted(source.rglob("*")):
                if path.is_file():
                    archive.write(path, path.relative_to(source).as_posix())
        return folder

    def testRepairWherePlainPipInstallFails(self):
        wheels = self.wheel()
        writeTorch(self.sandbox.site, parts=["torch", "torch-2.9.0.dist-info"])
        offline = ("install", "--no-index", "--find-links", str(wheels), "torch>=2.4")
        status, output = self.sandbox.pip(*offline)
        self.assertEqual(status, 0, output)
        self.assertIs(diagnose(self.sandbox.probe()).condition, Condition.BROKEN)

        mended = Installation(folders=[self.sandbox.site])
        with mock.patch.object(
            slicer.util, "pip_uninstall", lambda names: self.sandbox.pip("uninstall", "-y", *names.split())
        ):
            mended._removeTorch()
        self.assertIs(diagnose(self.sandbox.probe()).condition, Condition.MISSING)
        status, output = self.sandbox.pip(*offline)
        self.assertEqual(status, 0, output)
        self.assertIs(diagnose(self.sandbox.probe()).condition, Condition.READY)
        self.assertTrue((self.sandbox.site / "safetensors").is_dir())

    def testMessagesOfPipAreExplained(self):
        # Without a retry pip does not print the reason; by default it tries five times.
        nowhere = ("--index-url", "http://127.0.0.1:9/simple", "--timeout", "2", "--retries", "1")
        damaged = self.sandbox.folder.parent / "damaged"
        damaged.mkdir()
        (damaged / "torch-2.9.0-py3-none-any.whl").write_bytes(b"PK\x03\x04 and no more")
        empty = self.sandbox.folder.parent / "empty"
        empty.mkdir()
        cases = [
            (("install", *nowhere, "torch"), "cannot be reached"),
            (("install", *nowhere, "--proxy", "http://127.0.0.1:9", "torch"), "proxy"),
            (("install", "--no-index", "--find-links", str(damaged), "torch"), "damaged"),
            (
                ("install", "--no-index", "--find-links", str(empty), "torch>=2.4"),
                "No PyTorch for this computer was found",
            ),
            (("install", "--no-index", "--find-links", str(self.wheel()), "torch>2", "torch<2"), "another version"),
        ]
        for arguments, expected in cases:
            with self.subTest(expected):
                status, output = self.sandbox.pip(*arguments)
                self.assertNotEqual(status, 0)
                sentence = explainFailure(output, self.plain)
                self.assertIn(expected, sentence, output)
                self.assertEqual(len(sentence.splitlines()), 1)

    def testMessagesOfOtherSystemsAreExplained(self):
        cases = [
            ("ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device", "disk is full"),
            ("OSError: [WinError 112] There is not enough space on the disk", "disk is full"),
            ("PermissionError: [WinError 5] Access is denied: 'torch_python.dll'", "cannot be written"),
            ("SSLError(SSLCertVerificationError(1, '[SSL: CERTIFICATE_VERIFY_FAILED]'))", "PIP_CERT"),
            ("ProxyError('Tunnel connection failed: 407 Proxy Authentication Required')", "HTTPS_PROXY"),
            ("", "reason unknown"),
        ]
        for output, expected in cases:
            self.assertIn(expected, explainFailure(output, self.plain))


class BuildTestCase(unittest.TestCase):
    def testBuildForAGpu(self):
        cases = [
            ("Linux", "580.65.06", "12.0", "cu130"),
            ("Linux", "570.00", "12.0", "cu128"),
            ("Windows", "581.08", "8.6", "cu130"),
            ("Windows", "581.08", "6.1", "cu126"),
            ("Windows", "530.00", "8.6", "cu126"),
            ("Windows", "472.12", "8.6", ""),
            ("Darwin", "", "", ""),
        ]
        for system, driver, capability, wanted in cases:
            card = {"name": "", "driver": driver, "capability": capability}
            self.assertEqual(bestBackend({"system": system, "cards": [card]}), wanted, (system, driver, capability))

    def testIntelMacsAcceptAnOlderVersion(self):
        facts = {"system": "Darwin", "machine": "x86_64"}
        self.assertEqual(torchRequirement(facts)[0], ">=2.2")
        facts |= {"torch": "2.2.2", "found": True, "examined": True, "device": "cpu"}
        self.assertIs(diagnose(facts).condition, Condition.READY)

    def testBuiltForAnotherNumpy(self):
        facts = {"torch": "2.4.0", "numpy": "2.4.1", "found": True, "examined": True, "device": "cpu"}
        self.assertIs(diagnose(facts).condition, Condition.READY)
        found = diagnose(facts | {"numpy_bridge": False, "system": "Linux"})
        self.assertIs(found.condition, Condition.OTHER_NUMPY)
        self.assertIs(found.remedy, Remedy.REPLACE)
        self.assertIn("2.4.1", found.problem)
        # There is no newer PyTorch for Intel Macs.
        found = diagnose(facts | {"numpy_bridge": False, "system": "Darwin", "machine": "x86_64"})
        self.assertEqual((found.remedy, found.label), (Remedy.NOTHING, ""))

    def testAppleGpu(self):
        facts = {"system": "Darwin", "machine": "arm64", "torch": "2.9", "found": True, "examined": True}
        self.assertIs(diagnose(facts | {"device": "mps"}).condition, Condition.READY)
        fallen = diagnose(facts | {"device": "cpu", "kernel_fault": "not implemented"})
        self.assertIn("not implemented", fallen.advice)
        self.assertEqual(fallen.problem, "")


@unittest.skipIf(HAS_TORCH, "PyTorch is installed")
class BeforeTorchTestCase(ModuleTestCase):
    needsTorch = False

    def testThePanelWorksUpToTheButton(self):
        ui, parameter = self.ui, self.panel.parameter
        waitFor(lambda: "not installed" in ui.setupStatusLabel.text)
        self.assertEqual(ui.setupButton.text, "Install PyTorch")
        self.assertFalse(ui.setupSection.collapsed)
        volume, segmentation = self.addPhantom()
        ui.inputVolumeSelector.setCurrentNode(volume)
        ui.segmentationSelector.setCurrentNode(segmentation)
        ui.levelSlider.value = 30
        self.assertEqual(parameter.level, 30)
        self.assertTrue(self.panel.input.requireModel().here)
        self.assertGreaterEqual(len(self.logic.availableModels()), 4)
        ui.deformButton.click()
        self.assertIn("not installed", ui.statusLabel.text)
        self.assertIn("Install PyTorch", ui.statusLabel.text)
        self.assertEqual(self.logic.variants(volume), [])
        self.assertNotIn("torch", sys.modules)


WITHOUT_TORCH = """
import sys, unittest
sys.path[:0] = [{testing!r}, {module!r} + "/Testing/Python"]
import standin
standin.install()
standin.load_module({module!r} + "/DRDMDeform.py")
result = unittest.TextTestRunner().run(
    unittest.defaultTestLoader.loadTestsFromName("EnvironmentTestCase.BeforeTorchTestCase")
)
assert not standin.unexpected_errors()
print("RUN", result.testsRun, len(result.skipped), result.wasSuccessful())
"""


@unittest.skipUnless(HAS_TORCH, "it runs without PyTorch anyway")
@unittest.skipIf(os.name == "nt" or "standin" not in sys.modules, "needs symbolic links and the stand-in")
class WithoutTorchTestCase(SandboxTestCase):
    def testThePanelWorksUpToTheButton(self):
        """The panel in an environment with all packages of this one except PyTorch."""
        packages = self.sandbox.folder / "packages"
        packages.mkdir()
        for place in site_folders():
            for path in place.iterdir():
                known = path.name.startswith(("torch", "functorch", "__")) or path.suffix == ".pth"
                if not known and not (packages / path.name).exists():
                    (packages / path.name).symlink_to(path)
        (self.sandbox.site / "all.pth").write_text(f"{packages}\n{LIBRARY}\n", encoding="utf-8")
        code = WITHOUT_TORCH.format(testing=str(Path(LIBRARY) / "Testing"), module=str(Path(LIBRARY) / "DRDMDeform"))
        done = subprocess.run(
            [str(self.sandbox.python), "-c", code],
            env=dict(cleanEnvironment(), PYTHONPATH=""),
            capture_output=True,
            encoding="utf-8",
            timeout=600,
        )
        self.assertIn("RUN 1 0 True", done.stdout, done.stdout + done.stderr)
