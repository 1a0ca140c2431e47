"""What docs/developers.md says of the code: imports point one way, names in docstrings exist, pdoc builds the pages."""

import ast
import importlib
import os
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest

import DRDMLib

ROOT = Path(__file__).resolve().parents[2]
ROLE = re.compile(r":(?:func|class|mod|meth|attr|data|exc):`~?([\w.]+)`")
DOTTED = re.compile(r"``(DRDMLib(?:\.\w+)+)``")


def modules():
    found = pkgutil.walk_packages(DRDMLib.__path__, "DRDMLib.")
    return ["DRDMLib", *(module.name for module in found if not module.name.endswith("__main__"))]


def docstrings(module):
    """Pairs of the class that a docstring stands in, if any, and its text."""
    tree = ast.parse(Path(module.__file__).read_text(encoding="utf-8"))
    documented = (ast.ClassDef, ast.FunctionDef)
    yield None, ast.get_docstring(tree) or ""
    for node in (node for node in tree.body if isinstance(node, documented)):
        inside = node.name if isinstance(node, ast.ClassDef) else None
        parts = [node, *(part for part in node.body if inside and isinstance(part, documented))]
        yield from ((inside, ast.get_docstring(part) or "") for part in parts)


def attribute(owner, path):
    """Whether ``owner.path`` exists; fields of dataclasses and attributes with an annotation count."""
    for name in path.split("."):
        if not hasattr(owner, name):
            return name in getattr(owner, "__annotations__", {})
        owner = getattr(owner, name)
    return True


def exists(name, module, inside):
    """Whether the name can be found from a docstring of ``module``, or of a class in it, or in a package around it."""
    if attribute(module, name) or (inside and attribute(getattr(module, inside), name)):
        return True
    packages = module.__name__.split(".")[:-1]
    if any(attribute(sys.modules[".".join(packages[: n + 1])], name) for n in range(len(packages))):
        return True
    package, *rest = name.split(".")
    for length in range(len(rest), -1, -1):
        try:
            owner = importlib.import_module(".".join([package, *rest[:length]]))
        except ImportError:
            continue
        return attribute(owner, ".".join(rest[length:])) if length < len(rest) else True
    return False


def imported(path):
    """Packages and modules right below DRDMLib that a file imports, but for type checkers."""
    parts = list(path.relative_to(ROOT / "DRDMLib").parts)
    waiting = [ast.parse(path.read_text(encoding="utf-8"))]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        waiting += ast.iter_child_nodes(node)
        if isinstance(node, ast.ImportFrom) and node.level:
            names = [node.module] if node.module else [alias.name for alias in node.names]
            package = parts[: len(parts) - node.level]
            yield from ([*package, *name.split(".")][0] for name in names)


def test_imports_point_one_way():
    page = (ROOT / "docs" / "developers.md").read_text(encoding="utf-8")
    lines = re.search(r"```text\n(cli.*?)```", page, re.DOTALL).group(1).splitlines()
    order = {name: number for number, line in enumerate(lines) for name in line.split(", ")}
    for path in (ROOT / "DRDMLib").rglob("*.py"):
        own = path.relative_to(ROOT / "DRDMLib").parts[0].removesuffix(".py")
        if own in ("__init__", "__main__", "probe"):
            continue
        for name in set(imported(path)) - {own, "__version__"}:
            assert order[own] < order[name], f"{path.name} imports {name}"


@pytest.mark.parametrize("name", modules())
def test_names_in_docstrings_exist(name):
    try:
        module = importlib.import_module(name)
    except ImportError as error:
        pytest.skip(str(error))
    for inside, text in docstrings(module):
        for found in [*ROLE.findall(text), *DOTTED.findall(text)]:
            # TorchIO and MONAI may be missing here; Slicer's module is not part of the library.
            if found.split(".")[0] not in ("torchio", "monai", "DRDMDeformLib"):
                assert exists(found, module, inside), f"{found}, in a docstring of {inside or name}"


# Builds a few of the pages.
FEW = """
import sys
from pathlib import Path
import build_reference
build_reference.documented = lambda: ["DRDMLib.loaders", "DRDMDeformLib.logic"]
build_reference.build(Path(sys.argv[1]))
"""


@pytest.mark.parametrize("pages", ["few", pytest.param("all", marks=pytest.mark.long)])
def test_the_pages_are_built(tmp_path, pages):
    """What pdoc cannot resolve makes the command fail."""
    for package in ("pdoc", "torchio", "monai"):
        pytest.importorskip(package)
    program = ["-c", FEW] if pages == "few" else [str(ROOT / "docs" / "build_reference.py")]
    done = subprocess.run(
        [sys.executable, *program, str(tmp_path)],
        env=dict(os.environ, PYTHONPATH=os.pathsep.join([str(ROOT), str(ROOT / "docs")])),
        capture_output=True,
        encoding="utf-8",
        timeout=900,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    if pages == "all":
        public = (tmp_path / "DRDMLib.html").read_text(encoding="utf-8")
        for name in set(DRDMLib.__all__) - {"__version__"}:
            assert f'id="{name}"' in public, name
    for page in ("DRDMLib/loaders.html", "DRDMDeformLib/logic.html"):
        assert (tmp_path / page).is_file()
    assert 'id="FieldBank"' in (tmp_path / "DRDMLib" / "loaders.html").read_text(encoding="utf-8")
    assert 'id="Logic.deform"' in (tmp_path / "DRDMDeformLib" / "logic.html").read_text(encoding="utf-8")
