"""Packages that are imported at their first use, since importing them takes a while and Slicer loads all modules."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any


class DeferredPackage:
    """Stands for a package, and imports it when something in it is used."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, name: str) -> Any:
        # Python's own inspection asks for such names.
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(importlib.import_module(self._name), name)


if TYPE_CHECKING:
    import SimpleITK as sitk
else:
    sitk = DeferredPackage("SimpleITK")

__all__ = ["DeferredPackage", "sitk"]
