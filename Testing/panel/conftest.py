"""The tests of the stand-in for Slicer's application layer run on the stand-in itself."""

from __future__ import annotations

import pytest


def pytest_configure() -> None:
    """Before any test is imported: the modules `qt`, `ctk` and `slicer` must be there."""
    pytest.importorskip("PySide6")
    pytest.importorskip("slicer")
    import standin

    standin.install()


@pytest.fixture(autouse=True)
def fresh() -> None:
    """An empty scene and empty records."""
    import slicer
    import standin

    slicer.mrmlScene.Clear(0)
    standin.process_events()
    standin.records.clear()
