"""Tests of ``standin``, which replaces the modules ``qt``, ``ctk`` and ``slicer`` where there is no Slicer."""

from __future__ import annotations

import pytest


def pytest_configure() -> None:
    """Install the stand-in before any test is imported, since tests import ``qt``, ``ctk`` and ``slicer``."""
    pytest.importorskip("PySide6")
    pytest.importorskip("slicer")
    import standin

    standin.install()


@pytest.fixture(autouse=True)
def empty_scene() -> None:
    """Empty the scene, and what the stand-in recorded in the test before."""
    import slicer
    import standin

    slicer.mrmlScene.Clear(0)
    standin.process_events()
    standin.records.clear()
    standin.set_testing_mode(True)
