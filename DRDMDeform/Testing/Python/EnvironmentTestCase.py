"""Diagnosis and installation of PyTorch: each faulty state in its own Python environment."""

import contextlib
import importlib.metadata
import importlib.util
import json
import os
import shutil
import stat
import subprocess
import sys
import tempfile
import textwrap
import unittest
import venv
import zipfile
from pathlib import Path
from unittest import mock

import slicer
from DRDMDeformLib.job import Job
from DRDMDeformLib.setup import installation
from DRDMDeformLib.setup.diagnosis import (
    Condition,
    Diagnosis,
    Remedy,
    bestBackend,
    diagnose,
    explainFailure,
    torchRequirement,
)
from DRDMDeformLib.setup.environment import Environment
from DRDMDeformLib.setup.installation import Installation
from modulesupport import HAS_TORCH, ModuleTestCase, waitFor

import DRDMLib
from DRDMLib.errors import DRDMError
from DRDMLib.runtime.probe import site_folders

LIBRARY = str(Path(DRDMLib.__file__).resolve().parents[1])
HAS_PIP = importlib.util.find_spec("pip") is not None

# A minimal imitation of PyTorch; {cuda}, {available} and {kernel} make different builds.
TORCH = """
    import torchgen
    __version__ = "{version}"
    class version: cuda = {cuda!r}
    class cuda:
        @staticmethod
        def is_available():
            {available}
        @staticmethod
        def get_device_name(n): return "NVIDIA RTX 5090"
    class backends:
        class mps:
            @staticmethod
            def is_available(): return {mps}
    class device:
        def __init__(self, type): self.type = type
    class Tensor:
        def numpy(self): return []
    def zeros(*shape): return Tensor()
    def ones(*shape, device=None):
        raise RuntimeError({kernel!r})
"""
FUNCTIONAL = "def conv3d(*a): ...\ndef grid_sample(*a): ...\n"


def writeTorch(folder, version="2.9.0", cuda=None, available="return False", kernel="", mps=False, parts=None):
    """Write a package that imitates a build of PyTorch; a real one has gigabytes."""
    code = textwrap.dedent(TORCH).format(version=version, cuda=cuda, available=available, kernel=kernel, mps=mps)
    files = {
        "torch/__init__.py": code,
        "torch/nn/__init__.py": "",
        "torch/nn/functional.py": FUNCTIONAL,
        "torchgen/__init__.py": "",
        f"torch-{version}.dist-info/METADATA": f"Metadata-Version: 2.1\nName: torch\nVersion: {version}\n",
        f"torch-{version}.dist-info/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    files[f"torch-{version}.dist-info/RECORD"] = "".join(f"{name},,\n" for name in files)
    for name, text in files.items():
        if parts is None or name.split("/")[0] in parts:
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")


class Sandbox:
    """A separate Python environment, in a folder with a space and a non-ASCII letter in its name."""

    def __init__(self, folder):
        self.folder = folder / "umgebung ä"
        venv.EnvBuilder(with_pip=False, symlinks=os.name != "nt").create(self.folder)
        windows = os.name == "nt"
        self.python = self.folder / ("Scripts/python.exe" if windows else "bin/python")
        self.site = next(self.folder.rglob("site-packages"))
        self.tools = folder / "tools"
        self.tools.mkdir()
        for package in ("safetensors", "platformdirs"):
            (self.site / package).mkdir()
            (self.site / package / "__init__.py").touch()

    def addCard(self, name="NVIDIA RTX 5090", driver="570.86", capability="12.0"):
        """Add an imitation of ``nvidia-smi``."""
        script = self.tools / "nvidia-smi"
        script.write_text(f"#!/bin/sh\necho '{name}, {driver}, {capability}'\n", encoding="utf-8")
        script.chmod(script.stat().st_mode | stat.S_IXUSR)

    def probe(self):
        """The facts that ``DRDMLib.probe`` reports in this environment."""
        environment = dict(os.environ, PYTHONPATH=LIBRARY, PATH=os.pathsep.join([str(self.tools), os.environ["PATH"]]))
        run = [str(self.python), "-m", "DRDMLib.probe"]
        done = subprocess.run(run, env=environment, capture_output=True, encoding="utf-8", timeout=600)
        return json.loads(done.stdout.splitlines()[-1])

    def pip(self, *arguments):
        """Run pip of the tests' Python on this environment; return its exit status and output."""
        run = [sys.executable, "-m", "pip", "--python", str(self.python), *arguments]
        clean = {k: v for k, v in os.environ.items() if not k.upper().startswith("PIP_")} | {
            "PIP_CONFIG_FILE": os.devnull
        }
        done = subprocess.run(run, env=clean, capture_output=True, encoding="utf-8", timeout=600)
        return done.returncode, done.stdout + done.stderr


class SandboxTestCase(unittest.TestCase):
    def setUp(self):
        temporary = tempfile.TemporaryDirectory()
        self.addCleanup(temporary.cleanup)
        self.sandbox = Sandbox(Path(temporary.name))


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
            env=dict(os.environ, PYTHONPATH=""),
            capture_output=True,
            encoding="utf-8",
            timeout=600,
        )
        self.assertIn("RUN 1 0 True", done.stdout, done.stdout + done.stderr)


class OtherPackagesTestCase(unittest.TestCase):
    """Packages other than PyTorch: only missing ones are installed, with the tool of the Slicer version."""

    def setUp(self):
        temporary = tempfile.TemporaryDirectory()
        self.addCleanup(temporary.cleanup)
        self.requirements = Path(temporary.name) / "requirements.txt"
        self.requirements.write_text("# a remark\nnumpy>=1\ndrdm-is-not-there>=3\n", encoding="utf-8")

    def testWithSlicerPackaging(self):
        asked = []
        with mock.patch.object(slicer.packaging, "pip_ensure", lambda wanted, **how: asked.append((wanted, how))):
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
