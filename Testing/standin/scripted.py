"""`slicer.ScriptedLoadableModule`: the four base classes of a scripted module.

Imitates Base/Python/slicer/ScriptedLoadableModule.py; the buttons of the developer section ("Reload & Test") are left
out, what they call is there.
"""

from __future__ import annotations

import sys
import unittest
from pathlib import Path
from typing import Any

import slicer


class ScriptedLoadableModule:
    """Describes the module; `parent` is the qSlicerScriptedLoadableModule."""

    def __init__(self, parent: Any) -> None:
        self.parent, self.moduleName = parent, type(self).__name__
        vars(slicer).setdefault("selfTests", {})[self.moduleName] = self.runTest

    def runTest(self, msec: int = 100, **kwargs: Any) -> None:
        test = getattr(sys.modules[type(self).__module__], f"{self.moduleName}Test")()
        test.messageDelay = msec
        test.runTest(**kwargs)


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

    def onTest(self) -> None:
        """What the menu entry "Test" does."""
        with slicer.util.tryWithErrorDisplay("Test failed."):
            slicer.selfTests[self.moduleName](msec=0)

    def onReloadAndTest(self) -> None:
        """What the button "Reload and Test" does."""
        with slicer.util.tryWithErrorDisplay("Reload and Test failed."):
            self.onReload()
            slicer.selfTests[self.moduleName](msec=0)


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

    messageDelay = 1000

    def delayDisplay(self, message: str, msec: int | None = None) -> None:
        """Print the message; Slicer shows it in a window for a while."""
        print(message)
