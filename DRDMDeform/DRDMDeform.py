"""The module DRDM Deform: new, plausible versions of a scan, as transforms. The code is in DRDMDeformLib."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import slicer
from DRDMDeformLib.logic import Logic
from DRDMDeformLib.temporary import removeLeftovers
from slicer.i18n import tr as _
from slicer.i18n import translate
from slicer.ScriptedLoadableModule import (
    ScriptedLoadableModule,
    ScriptedLoadableModuleLogic,
    ScriptedLoadableModuleTest,
    ScriptedLoadableModuleWidget,
)

HOMEPAGE = "https://github.com/DRDM/SlicerDRDM"


class DRDMDeform(ScriptedLoadableModule):
    """Name, category and help of the module."""

    def __init__(self, parent: Any) -> None:
        super().__init__(parent)
        # Category, contributors and link are those of CMakeLists.txt; Testing/core/test_extension.py compares them.
        self.parent.title = _("DRDM Deform")
        self.parent.categories = [translate("qSlicerAbstractCoreModule", "Image Synthesis")]
        self.parent.dependencies = ["Plots", "Segmentations", "Sequences", "SubjectHierarchy", "Transforms"]
        self.parent.contributors = ["The DRDM for 3D Slicer developers (SlicerDRDM)"]
        self.parent.helpText = _(
            "Makes new, anatomically plausible versions of a scan. Each version is a transform that also moves "
            "segmentations, models and markups. Many versions of many scans become training data. Choose a volume, "
            "choose a strength, and press Deform. See the "
            '<a href="{link}">tutorial and documentation</a>.'
        ).format(link=HOMEPAGE)
        self.parent.acknowledgementText = _(
            "The method is the Deformation-Recovery Diffusion Model: Zheng et al., Medical Image Analysis 110, 103987 "
            "(2026), arXiv 2407.07295."
        )
        slicer.app.connect("startupCompleted()", registerSampleData)
        # Copies of scans that a crash has left.
        slicer.app.connect("startupCompleted()", removeLeftovers)


# Name of each shipped sample, and the files of its volume and its segmentation.
SAMPLES = {
    "DRDMChest": ("chest.nii.gz", "chest.seg.nrrd"),
    "DRDMPhantom": ("sample.nii.gz", "sample_label.nii.gz"),
}


def registerSampleData() -> None:
    """Add the shipped samples to the Sample Data module."""
    import hashlib

    import SampleData

    from DRDMLib.io.resources import resource

    for name, files in SAMPLES.items():
        paths = [resource("Sample", file) for file in files]
        names = [name, f"{name}Segmentation"]
        SampleData.SampleDataLogic.registerCustomSampleDataSource(
            category="DRDM",
            sampleName=name,
            thumbnailFileName=str(Path(__file__).parent / "Resources" / "Icons" / f"{name}.png"),
            uris=[path.as_uri() for path in paths],
            fileNames=[f"{node}{path.name[path.name.index('.') :]}" for node, path in zip(names, paths, strict=True)],
            nodeNames=names,
            # Slicer caches downloaded samples; the checksum tells it when the sample has changed.
            checksums=[f"SHA256:{hashlib.sha256(path.read_bytes()).hexdigest()}" for path in paths],
            loadFileTypes=["VolumeFile", "SegmentationFile"],
        )


class DRDMDeformWidget(ScriptedLoadableModuleWidget):
    """Holds the panel."""

    def __init__(self, parent: Any = None) -> None:
        self.panel = None
        super().__init__(parent)

    def setup(self) -> None:
        """Create the panel."""
        super().setup()
        from DRDMDeformLib.panel import Panel

        widget = slicer.util.loadUI(self.resourcePath("UI/DRDMDeform.ui"))
        self.layout.addWidget(widget)
        widget.setMRMLScene(slicer.mrmlScene)
        self.logic = DRDMDeformLogic()
        self.panel = Panel(widget, self.logic)

    def enter(self) -> None:
        """Update the panel when the module is shown."""
        if self.panel is not None:
            self.panel.enter()

    def cleanup(self) -> None:
        """Cancel all jobs when the module is closed."""
        if self.panel is not None:
            self.panel.cleanup()

    def onReload(self) -> None:
        """Reload DRDMDeformLib too."""
        for name in [name for name in sys.modules if name.split(".")[0] == "DRDMDeformLib"]:
            del sys.modules[name]
        super().onReload()


class DRDMDeformLogic(ScriptedLoadableModuleLogic, Logic):
    """The scripting interface of the module; see ``DRDMDeformLib.logic.Logic``."""

    def __init__(self, parent: Any = None) -> None:
        ScriptedLoadableModuleLogic.__init__(self, parent)


class DRDMDeformTest(ScriptedLoadableModuleTest):
    """Runs the module's tests inside Slicer."""

    def runTest(self) -> None:
        """Run every test of the module's Testing folder; in an installed extension, which has none, a smoke test."""
        folder = Path(__file__).parent / "Testing" / "Python"
        self.delayDisplay(self._runAll(folder) if folder.is_dir() else self._runSmokeTest())

    def _runAll(self, folder: Path) -> str:
        import unittest

        # They may come from an earlier run, and use what was loaded before the module was reloaded.
        for name, module in list(sys.modules.items()):
            if folder in Path(getattr(module, "__file__", None) or "/").parents:
                del sys.modules[name]
        suite = unittest.TestLoader().discover(str(folder), pattern="*TestCase.py", top_level_dir=str(folder))
        result = unittest.TextTestRunner(verbosity=2).run(suite)
        if not result.wasSuccessful():
            raise AssertionError(f"{len(result.failures) + len(result.errors)} tests failed.")
        return f"{result.testsRun} tests passed."

    def _runSmokeTest(self) -> str:
        from DRDMDeformLib.smoke_test import runSmokeTest

        return runSmokeTest(DRDMDeformLogic())
