"""Build the reference of the Python interface: ``python docs/build_reference.py [FOLDER]``.

pdoc imports the modules and writes an HTML page for each of them from its docstrings. The logic of the Slicer module is
included: the modules of Slicer that it imports are replaced by placeholders, so that no Slicer is needed. nnU-Net is
replaced as well.
"""

from __future__ import annotations

import importlib
import importlib.abc
import pkgutil
import sys
import warnings
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
OUTPUT = ROOT / "docs" / "reference"
# Slicer's, and nnU-Net, which is large.
REPLACED_PACKAGES = ("slicer", "vtk", "vtkmodules", "qt", "ctk", "nnunetv2")


class Placeholder(ModuleType):
    """A module whose every name is an empty class."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {"__module__": self.__name__, "__init__": lambda self, *args, **options: None})


class PlaceholderFinder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Import placeholders instead of packages that are not needed here."""

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        """Return a specification for these packages, None for all others."""
        return ModuleSpec(fullname, self, is_package=True) if fullname.split(".")[0] in REPLACED_PACKAGES else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """Make the placeholder."""
        return Placeholder(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """Do nothing: a placeholder has no code."""


def documented() -> list[str]:
    """Return the names of the modules that get a page; pdoc adds the modules inside of packages."""
    import DRDMLib

    library = [module.name for module in pkgutil.iter_modules(DRDMLib.__path__) if not module.name.startswith("_")]
    return ["DRDMLib", *(f"DRDMLib.{name}" for name in library), "DRDMDeformLib.logic", "DRDMDeformLib.batches"]


def load_lazy_names(package: ModuleType) -> None:
    """Put the names that a package loads at first use into its namespace, where pdoc looks for them."""
    for name in getattr(package, "__all__", []):
        setattr(package, name, getattr(package, name))


def build(output: Path) -> None:
    """Write the pages into ``output``; what pdoc cannot resolve is an error."""
    sys.path[:0] = [str(ROOT), str(ROOT / "DRDMDeform")]
    import pdoc

    sys.meta_path.insert(0, PlaceholderFinder())
    names = documented()
    for name in names:
        load_lazy_names(importlib.import_module(name))
    warnings.filterwarnings("error", module="pdoc")
    # The parameters of a dataclass that another module defines; the page of the class itself is complete.
    warnings.filterwarnings("ignore", r"Error parsing type annotation .*\.__init__\.", module="pdoc")
    pdoc.render.configure(docformat="google", include_undocumented=False, show_source=False)
    pdoc.pdoc(*names, output_directory=output)


if __name__ == "__main__":
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else OUTPUT
    build(folder)
    print(f"The reference is in '{folder / 'index.html'}'.")
