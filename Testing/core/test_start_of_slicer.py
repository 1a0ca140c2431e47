"""What Slicer imports when it starts and when the panel is shown for the first time."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CODE = """
import sys
import standin
standin.install()
before = {name.split(".")[0] for name in sys.modules}
standin.load_module(sys.argv[1])
standin.finish_startup()
import slicer
slicer.util.selectModule("DRDMDeform")
assert not standin.unexpected_errors()
assert slicer.util.getModuleWidget("DRDMDeform").panel.ui.deformButton is not None
new = {name.split(".")[0] for name in sys.modules} - before
print(*sorted(new & {"SimpleITK", "scipy", "torch", "safetensors"}), *sorted(before & {"SimpleITK", "scipy", "torch"}))
from DRDMDeformLib.deferred import sitk
assert sitk.Image(2, 2, sitk.sitkUInt8).GetSize() == (2, 2) and "SimpleITK" in sys.modules
slicer.util.getModuleWidget("DRDMDeform").cleanup()
"""


def test_no_large_package_is_imported_before_it_is_used():
    pytest.importorskip("slicer")
    places = [str(ROOT), str(ROOT / "Testing")]
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join(places))
    module = str(ROOT / "DRDMDeform" / "DRDMDeform.py")
    run = [sys.executable, "-c", CODE, module]
    done = subprocess.run(run, env=environment, capture_output=True, encoding="utf-8", timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.strip() == "", "imported at the start"
