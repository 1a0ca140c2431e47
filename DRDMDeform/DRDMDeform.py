"""DRDM Deform: new, plausible versions of a scan, as transforms. The parts are in DRDMDeformLib."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import slicer
from DRDMDeformLib.logic import Logic
from slicer.i18n import tr as _
from slicer.i18n import translate
from slicer.ScriptedLoadableModule import (
    ScriptedLoadableModule,
    ScriptedLoadableModuleLogic,
    ScriptedLoadableModuleTest,
    ScriptedLoadableModuleWidget,
)


class DRDMDeform(ScriptedLoadableModule):
    """The module, as Slicer lists it."""

    def __init__(self, parent: Any) -> None:
        super().__init__(parent)
        self.parent.title = _("DRDM Deform")
        self.parent.categories = [translate("qSlicerAbstractCoreModule", "Registration.Specialized")]
        self.parent.dependencies = ["Plots", "Segmentations", "Sequences", "SubjectHierarchy", "Transforms"]
        self.parent.contributors = ["The DRDM for 3D Slicer developers"]
        self.parent.helpText = _(
            "Makes new, anatomically plausible versions of a scan as transforms that move its segmentations, models "
            "and markups along, and training data from them. Choose a volume, move the slider, press Deform."
        )
        self.parent.acknowledgementText = _(
            "The method is the Deformation-Recovery Diffusion Model: Zheng et al., Medical Image Analysis 110, 103987 "
            "(2026), arXiv 2407.07295."
        )
        slicer.app.connect("startupCompleted()", registerSampleData)


def registerSampleData() -> None:
    """The shipped sample in the Sample Data module."""
    import hashlib

    import SampleData

    from DRDMLib.io.resources import resource

    paths = [resource("Sample", name) for name in ("sample.nii.gz", "sample_label.nii.gz")]
    SampleData.SampleDataLogic.registerCustomSampleDataSource(
        category="DRDM",
        sampleName="DRDMPhantom",
        thumbnailFileName=str(Path(__file__).parent / "Resources" / "Icons" / "DRDMDeform.png"),
        uris=[path.as_uri() for path in paths],
        fileNames=["DRDMPhantom.nii.gz", "DRDMPhantomSegmentation.nii.gz"],
        nodeNames=["DRDMPhantom", "DRDMPhantomSegmentation"],
        # Slicer keeps a copy of what it has loaded once, and looks here whether it is still the same.
        checksums=[f"SHA256:{hashlib.sha256(path.read_bytes()).hexdigest()}" for path in paths],
        loadFileType=["VolumeFile", "SegmentationFile"],
    )


class DRDMDeformWidget(ScriptedLoadableModuleWidget):
    """The panel's place in the application."""

    def __init__(self, parent: Any = None) -> None:
        self.panel = None
        super().__init__(parent)

    def setup(self) -> None:
        """Load the panel."""
        super().setup()
        from DRDMDeformLib.panel import Panel

        widget = slicer.util.loadUI(self.resourcePath("UI/DRDMDeform.ui"))
        self.layout.addWidget(widget)
        widget.setMRMLScene(slicer.mrmlScene)
        self.logic = DRDMDeformLogic()
        self.panel = Panel(widget, self.logic)

    def enter(self) -> None:
        """The module is shown."""
        if self.panel is not None:
            self.panel.enter()

    def cleanup(self) -> None:
        """The module goes: stop what runs."""
        if self.panel is not None:
            self.panel.cleanup()

    def onReload(self) -> None:
        """Reload the parts too."""
        for name in [name for name in sys.modules if name.split(".")[0] == "DRDMDeformLib"]:
            del sys.modules[name]
        super().onReload()


class DRDMDeformLogic(ScriptedLoadableModuleLogic, Logic):
    """What the module does, for scripts; see ``DRDMDeformLib.logic.Logic``."""

    def __init__(self, parent: Any = None) -> None:
        ScriptedLoadableModuleLogic.__init__(self, parent)


class DRDMDeformTest(ScriptedLoadableModuleTest):
    """Runs the module's tests inside Slicer."""

    def runTest(self) -> None:
        """Every test of the module's Testing folder."""
        import unittest

        folder = Path(__file__).parent / "Testing" / "Python"
        if not folder.is_dir():
            raise AssertionError("The tests are not part of the installed extension; run them from its source tree.")
        suite = unittest.defaultTestLoader.discover(str(folder), pattern="*TestCase.py", top_level_dir=str(folder))
        result = unittest.TextTestRunner(verbosity=2).run(suite)
        if not result.wasSuccessful():
            raise AssertionError(f"{len(result.failures) + len(result.errors)} tests failed.")
        self.delayDisplay(f"{result.testsRun} tests passed.")
