"""`slicer.ScriptedLoadableModule`: the four base classes of a scripted module.

Imitates Base/Python/slicer/ScriptedLoadableModule.py; the developer section ("Reload & Test") is left out, `onReload`
is there.
"""

from __future__ import annotations

import unittest
from pathlib import Path
from typing import Any

import slicer


class ScriptedLoadableModule:
    """Describes the module; `parent` is the qSlicerScriptedLoadableModule."""

    def __init__(self, parent: Any) -> None:
        self.parent, self.moduleName = parent, type(self).__name__


class ScriptedLoadableModuleWidget:
    """The panel; `parent` is the qSlicerScriptedLoadableModuleWidget."""

    def __init__(self, parent: Any) -> None:
        self.moduleName = type(self).__name__.removesuffix("Widget")
        self.parent, self.layout = parent, parent.layout()

    def resourcePath(self, filename: str) -> str:
        return str(Path(slicer.util.modulePath(self.moduleName)).parent / "Resources" / filename)

    def setup(self) -> None:
        """Make the widgets; what Slicer makes here is for developers only."""

    def onReload(self) -> None:
        slicer.util.reloadScriptedModule(self.moduleName)


class ScriptedLoadableModuleLogic:
    """The work; keeps its settings in a node of the scene."""

    def __init__(self, parent: Any = None) -> None:
        self.moduleName = type(self).__name__.removesuffix("Logic")

    def getParameterNode(self) -> Any:
        node = slicer.mrmlScene.GetSingletonNode(self.moduleName, "vtkMRMLScriptedModuleNode")
        if node is None:
            node = slicer.mrmlScene.CreateNodeByClass("vtkMRMLScriptedModuleNode")
            node.UnRegister(None)
            node.SetSingletonTag(self.moduleName)
            node.SetName(slicer.mrmlScene.GenerateUniqueName(self.moduleName))
            node = slicer.mrmlScene.AddNode(node)
        # Closing the scene removes the attribute.
        if node.GetAttribute("ModuleName") != self.moduleName:
            node.SetAttribute("ModuleName", self.moduleName)
        return node


class ScriptedLoadableModuleTest(unittest.TestCase):
    """The module's own tests."""
