"""What the extension installs: a new file of the module must be named in its CMake list."""

import re
from pathlib import Path

MODULE = Path(__file__).resolve().parents[2] / "DRDMDeform"


def listed(name):
    text = (MODULE / "CMakeLists.txt").read_text(encoding="utf-8").replace("${MODULE_NAME}", "DRDMDeform")
    return set(re.search(rf"set\({name}\n(.*?)\)", text, re.DOTALL).group(1).split())


def test_every_script_is_listed():
    there = {path.relative_to(MODULE).as_posix() for path in (MODULE / "DRDMDeformLib").rglob("*.py")}
    assert listed("MODULE_PYTHON_SCRIPTS") == there | {"DRDMDeform.py"}


def test_every_resource_is_listed():
    there = {path.relative_to(MODULE).as_posix() for path in (MODULE / "Resources").rglob("*") if path.is_file()}
    assert listed("MODULE_PYTHON_RESOURCES") == there
