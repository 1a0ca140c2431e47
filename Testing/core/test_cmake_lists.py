"""The files that the extension installs: those of the module are named in its CMake list, those of the library match
the patterns there, and the installed folder works by itself."""

import fnmatch
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from command_helpers import run_process

ROOT = Path(__file__).resolve().parents[2]
MODULE = ROOT / "DRDMDeform"


def listed(name):
    text = (MODULE / "CMakeLists.txt").read_text(encoding="utf-8").replace("${MODULE_NAME}", "DRDMDeform")
    return set(re.search(rf"set\({name}\n(.*?)\)", text, re.DOTALL).group(1).split())


def patterns():
    """What CMakeLists.txt of the extension gathers for the library; ``*`` reaches into folders, as there."""
    text = (ROOT / "CMakeLists.txt").read_text(encoding="utf-8")
    found = re.findall(
        r"file\(GLOB_RECURSE \w+ RELATIVE \$\{DRDM_SOURCE_DIR\} CONFIGURE_DEPENDS\n(.*?)\)", text, re.DOTALL
    )
    assert len(found) == 2
    return " ".join(found).split()


def files(*folders):
    found = (path for folder in folders for path in (ROOT / folder).rglob("*") if path.is_file())
    return {path.relative_to(ROOT).as_posix() for path in found if "__pycache__" not in path.parts}


def gathered():
    everything = files("DRDMLib", "Resources")
    return {path for path in everything if any(fnmatch.fnmatchcase(path, pattern) for pattern in patterns())}


def test_every_script_is_listed():
    there = {path.relative_to(MODULE).as_posix() for path in (MODULE / "DRDMDeformLib").rglob("*.py")}
    assert listed("MODULE_PYTHON_SCRIPTS") == there | {"DRDMDeform.py"}


def test_every_resource_is_listed():
    there = {path.relative_to(MODULE).as_posix() for path in (MODULE / "Resources").rglob("*") if path.is_file()}
    assert listed("MODULE_PYTHON_RESOURCES") == there


def test_every_file_of_the_library_is_gathered():
    # For type checkers, which do not look into Slicer; the package that pip installs has it.
    unneeded = {"DRDMLib/py.typed"} | {path for path in files("Resources") if path.endswith(".py")}
    assert files("DRDMLib", "Resources/Models", "Resources/Sample") - unneeded - gathered() == set()


def test_every_pattern_gathers_something():
    for pattern in patterns():
        assert any(fnmatch.fnmatchcase(path, pattern) for path in gathered()), pattern


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The folder of the extension's modules as CMake fills it, by the lists alone."""
    folder = tmp_path_factory.mktemp("qt scripted ä") / "qt-scripted-modules"
    for source, names in (
        (MODULE, listed("MODULE_PYTHON_SCRIPTS") | listed("MODULE_PYTHON_RESOURCES")),
        (ROOT, gathered()),
    ):
        for name in names:
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source / name, target)
    return folder


def run(code, folder, *more):
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join(map(str, (folder, *more))))
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder.parent,
        env=environment,
        capture_output=True,
        encoding="utf-8",
        timeout=900,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


IMPORT_ALL = """
import importlib, pkgutil
for package in PACKAGES:
    package = importlib.import_module(package)
    assert package.__file__.startswith(FOLDER), package.__file__
    for found in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        # nnU-Net is too large for the tests.
        if not found.name.endswith(("__main__", "nnunet_trainer")):
            importlib.import_module(found.name)
"""


# In a process that has imported other packages, and the library from elsewhere.
FORGET = """
import sys
for name in [name for name in sys.modules if name.partition(".")[0] == "DRDMLib"]:
    del sys.modules[name]
sys.path[:] = [FOLDER] + [path for path in sys.path if path not in ("", ROOT)]
"""


def test_a_separate_process_imports_all_of_the_library(installed):
    """As a PythonSlicer process does; deforms the sample with a shipped model as well."""
    code = f"PACKAGES, FOLDER, ROOT = ['DRDMLib'], {str(installed)!r}, {str(ROOT)!r}" + FORGET + IMPORT_ALL
    code += """
import DRDMLib
from DRDMLib.io.resources import resource
scan = DRDMLib.read_image(resource("Sample", "sample.nii.gz"))
print(DRDMLib.deform(scan, level=8, steps=1, device="cpu").model)
"""
    done = run_process(code=code)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.strip() == "general-3d"


def test_the_module_loads_from_the_installed_folder(installed):
    """As in the application's own Python: the folder is on the path, the module is loaded from it.

    All of the library is imported from the same folder in the test above.
    """
    pytest.importorskip("slicer")
    code = f"PACKAGES, FOLDER = ['DRDMDeformLib'], {str(installed)!r}\n"
    code += "import standin; standin.install(); standin.load_module(FOLDER + '/DRDMDeform.py')\n" + IMPORT_ALL
    code += "import DRDMLib.cli; assert DRDMLib.cli.__file__.startswith(FOLDER), DRDMLib.cli.__file__\n"
    code += "import slicer; print(len(slicer.util.getModuleLogic('DRDMDeform').availableModels()))"
    assert int(run(code, installed, ROOT / "Testing").strip()) >= 4


def test_the_source_tree_works_as_an_additional_module_path():
    """The folder DRDMDeform alone is on the path then; the library is found beside it."""
    pytest.importorskip("slicer")
    code = f"ROOT = {str(ROOT)!r}\nimport sys\n"
    code += "sys.path = [p for p in sys.path if p not in ('', ROOT)]\n"
    code += "import standin; standin.install(); standin.load_module(ROOT + '/DRDMDeform/DRDMDeform.py')\n"
    code += "import DRDMLib; print(DRDMLib.__file__)"
    assert Path(run(code, MODULE, ROOT / "Testing").strip()) == ROOT / "DRDMLib" / "__init__.py"
