"""Take the screenshots of Batch and Train for the README, outside Slicer, on the imitation in ``Testing/standin``.

The other pictures of the panel are from the application. This trains a small model, which takes minutes.

Usage: PYTHONPATH=.:Testing:DRDMDeform:DRDMDeform/Testing/Python python Resources/Pictures/make_panel_pictures.py
"""

from __future__ import annotations

import os
from pathlib import Path

import standin
from PIL import Image

FOLDER = Path(__file__).resolve().parent
ROOT = FOLDER.parents[1]
WIDTH = 520
SECTIONS = (
    "setupSection",
    "inputSection",
    "deformSection",
    "applySection",
    "batchSection",
    "trainSection",
    "registrationSection",
)


def main() -> None:
    """Use Batch and Train and take their pictures."""
    standin.install()
    standin.load_module(ROOT / "DRDMDeform" / "DRDMDeform.py")
    from modulesupport import ModuleTestCase, processEvents, waitFor

    class Session(ModuleTestCase):
        def runTest(self) -> None:
            """Do nothing: only the helpers of the test case are used."""

        def take(self, name: str, *sections: str) -> None:
            for section in SECTIONS:
                widget = getattr(self.ui, section)
                widget.visible = section in sections
                widget.collapsed = False
            processEvents(0.2)
            path = FOLDER / f"{name}.png"
            standin.screenshot(self.widget.parent, path, width=WIDTH)
            # A panel has few colors.
            Image.open(path).convert("RGB").quantize(64).save(path, optimize=True)
            for section in SECTIONS:
                getattr(self.ui, section).visible = True

    session = Session()
    session.setUp()
    try:
        ui, panel = session.ui, session.panel
        ui.advancedSection.collapsed = True
        ui.stepsSpinBox.value = 4
        # Short paths in the pictures.
        os.chdir(session.folder)
        session.writeScans(count=4)
        ui.batchSourceComboBox.currentIndex = 1
        ui.batchFolderPath.currentPath = "scans"
        ui.batchOutputPath.currentPath = "training set"
        ui.batchCopiesSpinBox.value = 2
        ui.batchStartButton.click()
        waitFor(lambda: not panel.batch.job.running)
        session.take("panel_batch", "batchSection")

        ui.trainFolderPath.currentPath = "scans"
        ui.trainOutputPath.currentPath = "training run"
        ui.trainSizeSpinBox.value = 16
        ui.trainMinutesSpinBox.value = 2.0
        ui.trainStartButton.click()
        waitFor(lambda: "Step" in ui.trainLabel.text and ui.trainProgressBar.value > 300, 1800)
        session.take("panel_train", "trainSection")
        panel.train.cleanup()
    finally:
        os.chdir(ROOT)
        session.doCleanups()


if __name__ == "__main__":
    main()
