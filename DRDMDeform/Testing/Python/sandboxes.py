"""Separate Python environments with a faulty PyTorch, for the tests of Setup."""

import json
import os
import stat
import subprocess
import tempfile
import textwrap
import unittest
from pathlib import Path

from modulesupport import cleanEnvironment, realPython

import DRDMLib

LIBRARY = str(Path(DRDMLib.__file__).resolve().parents[1])

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
        run = [realPython(), "-m", "venv", "--without-pip", str(self.folder)]
        subprocess.run(run, env=cleanEnvironment(), check=True, timeout=600)
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
        environment = dict(
            cleanEnvironment(), PYTHONPATH=LIBRARY, PATH=os.pathsep.join([str(self.tools), os.environ["PATH"]])
        )
        run = [str(self.python), "-m", "DRDMLib.probe"]
        done = subprocess.run(run, env=environment, capture_output=True, encoding="utf-8", timeout=600)
        return json.loads(done.stdout.splitlines()[-1])

    def pip(self, *arguments):
        """Run pip of the tests' Python on this environment; return its exit status and output."""
        run = [realPython(withPip=True), "-m", "pip", "--python", str(self.python), *arguments]
        clean = {k: v for k, v in cleanEnvironment().items() if not k.upper().startswith("PIP_")} | {
            "PIP_CONFIG_FILE": os.devnull
        }
        done = subprocess.run(run, env=clean, capture_output=True, encoding="utf-8", timeout=600)
        return done.returncode, done.stdout + done.stderr


@unittest.skipUnless(realPython(), "this Python cannot run as a program of its own, which makes other environments")
class SandboxTestCase(unittest.TestCase):
    """A test with a separate Python environment."""

    def setUp(self):
        temporary = tempfile.TemporaryDirectory()
        self.addCleanup(temporary.cleanup)
        self.sandbox = Sandbox(Path(temporary.name))
