"""The developer's buttons "Reload and Test" and "Test", in a copy of the module with few tests or none."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from warm_processes import write_launcher

ROOT = Path(__file__).resolve().parents[2]
TESTS = """
from unittest import mock

from DRDMDeformLib import mrml
from DRDMDeformLib.mrml import SceneError
from modulesupport import ModuleTestCase


class FewTestCase(ModuleTestCase):
    needsTorch = False

    def testClassesAndFunctionsAreThoseOfThePanel(self):
        with self.assertRaises(SceneError):
            self.logic.deform(None)
        with mock.patch.object(mrml, "volumeOf", lambda node: "replaced"):
            self.assertEqual(self.logic.volumeOf(None), "replaced")
"""
PRESS = """
import sys
import standin
standin.install()
standin.load_module(sys.argv[1])
import slicer
slicer.util.selectModule("DRDMDeform")
for name in sys.argv[2:]:
    nodes = slicer.mrmlScene.GetNumberOfNodesByClass("vtkMRMLVolumeNode")
    getattr(slicer.util.getModuleWidget("DRDMDeform"), name)()
    assert slicer.mrmlScene.GetNumberOfNodesByClass("vtkMRMLVolumeNode") == nodes
assert not standin.slot_errors and not standin.messages, standin.messages
slicer.util.getModuleWidget("DRDMDeform").cleanup()
"""


def press(folder, *names):
    """Press buttons of the copy of the module in ``folder``, in a process of its own; return what was printed."""
    (folder / "launcher").mkdir()
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join(map(str, (folder, ROOT / "Testing"))))
    environment |= write_launcher(folder / "launcher", folder / "DRDMLib" / "start.py", cold="nothing")
    run = [sys.executable, "-c", PRESS, str(folder / "DRDMDeform" / "DRDMDeform.py"), *names]
    done = subprocess.run(run, env=environment, capture_output=True, encoding="utf-8", timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture
def copy(tmp_path):
    pytest.importorskip("slicer")
    shutil.copytree(ROOT / "DRDMDeform", tmp_path / "DRDMDeform", ignore=shutil.ignore_patterns("Testing"))
    for name in ("DRDMLib", "Resources"):
        shutil.copytree(ROOT / name, tmp_path / name)
    return tmp_path


def test_reload_and_test_can_be_pressed_again(copy):
    tests = copy / "DRDMDeform" / "Testing" / "Python"
    tests.mkdir(parents=True)
    shutil.copyfile(ROOT / "DRDMDeform" / "Testing" / "Python" / "modulesupport.py", tests / "modulesupport.py")
    (tests / "FewTestCase.py").write_text(TESTS, encoding="utf-8")
    output = press(copy, "onReloadAndTest", "onReloadAndTest", "onTest")
    assert output.count("1 tests passed.") == 3


def test_reloading_ends_the_process_that_stays(copy):
    code = """
from types import SimpleNamespace
from DRDMDeformLib.worker import sharedWorker
sharedWorker.process = SimpleNamespace(terminate=lambda: print("ended once"))
"""
    tests = copy / "DRDMDeform" / "Testing" / "Python"
    tests.mkdir(parents=True)
    (tests / "NoTestCase.py").write_text(code, encoding="utf-8")
    # The tests put it there, after the first reload.
    assert press(copy, "onReloadAndTest", "onReload").count("ended once") == 1


def test_an_installed_extension_runs_a_smoke_test(copy):
    output = press(copy, "onTest", "onReloadAndTest")
    assert output.count("The phantom was deformed by up to") == 2
