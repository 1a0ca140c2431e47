"""The module `ctk`."""

from __future__ import annotations

import types
from typing import Any

from . import ctkwidgets, dialogs, uiloader
from .pythonqt import wrapper_class

_WIDGETS = (ctkwidgets.ctkCollapsibleButton, ctkwidgets.ctkSliderWidget, ctkwidgets.ctkPathLineEdit)
# Named in Slicer's own Python code; the panel must not use them, since nothing stands behind them here.
_NAMES_ONLY = (
    "ctkCheckBox",
    "ctkCheckablePushButton",
    "ctkColorPickerButton",
    "ctkComboBox",
    "ctkDirectoryButton",
    "ctkDoubleRangeSlider",
    "ctkDoubleSlider",
    "ctkDoubleSpinBox",
    "ctkRangeWidget",
)


def name_only(name: str) -> type:
    """Make a class to compare with; making an object of it is refused."""

    def refuse(self: Any, *args: Any) -> None:
        raise NotImplementedError(f"The stand-in has no {name}")

    return type(name, (), {"__init__": refuse})


def make_module() -> types.ModuleType:
    module = types.ModuleType("ctk", __doc__)
    for cls in _WIDGETS:
        setattr(module, cls.__name__, wrapper_class(cls))
        uiloader.custom_classes[cls.__name__] = cls
    module.ctkMessageBox = wrapper_class(dialogs.ctkMessageBox)  # type: ignore[attr-defined]
    for name in _NAMES_ONLY:
        setattr(module, name, name_only(name))
    return module
