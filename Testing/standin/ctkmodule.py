"""The module `ctk`."""

from __future__ import annotations

import types
from typing import Any

from . import ctkwidgets, uiloader
from .pythonqt import wrapper_class

_CLASSES = ("ctkCollapsibleButton", "ctkSliderWidget", "ctkPathLineEdit", "ctkComboBox", "ctkMessageBox")
# Named in Slicer's own Python code; the panel must not use them, since nothing stands behind them here.
_NAMES_ONLY = (
    "ctkCheckBox",
    "ctkCheckablePushButton",
    "ctkDoubleSlider",
    "ctkDoubleSpinBox",
    "ctkRangeWidget",
    "ctkDoubleRangeSlider",
    "ctkDirectoryButton",
    "ctkColorPickerButton",
)


def name_only(name: str) -> type:
    """A class to compare with; making one is refused."""

    def refuse(self: Any, *args: Any) -> None:
        raise NotImplementedError(f"The stand-in has no {name}")

    return type(name, (), {"__init__": refuse})


def make_module() -> types.ModuleType:
    module = types.ModuleType("ctk", __doc__)
    for name in _CLASSES:
        native = getattr(ctkwidgets, name)
        setattr(module, name, wrapper_class(native))
        uiloader.custom_classes[name] = native
    for name in _NAMES_ONLY:
        setattr(module, name, name_only(name))
    return module
