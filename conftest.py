"""Markers by folder, for all tests; ``slow`` stands at the tests themselves. pyproject.toml explains the markers."""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent
MARKERS = {
    "Testing/mrml": "slicer",
    "Testing/panel": "slicer",
    "DRDMDeform/Testing": "slicer",
    "Testing/core/test_gpu.py": "gpu",
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark each test by the folder or file that it is in."""
    for item in items:
        for place, marker in MARKERS.items():
            if item.path.is_relative_to(ROOT / place):
                item.add_marker(marker)
