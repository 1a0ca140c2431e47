"""Fixtures for all tests: the reference data, if available, and tiny models with non-zero output."""

from __future__ import annotations

from pathlib import Path

import pytest
from support import write_tiny_model

from DRDMLib.models.model import Model, load_model_file

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session")
def shared() -> Path:
    if not SHARED.is_dir():
        pytest.skip("the reference data is not available")
    return SHARED


@pytest.fixture(scope="session")
def tiny_model_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("model") / "tiny.safetensors", ndim=3)


@pytest.fixture(scope="session")
def tiny_model_2d_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("model") / "tiny2d.safetensors", ndim=2)


@pytest.fixture(scope="session")
def tiny_model(tiny_model_path: Path) -> Model:
    return load_model_file(tiny_model_path, "cpu")


@pytest.fixture(scope="session")
def tiny_model_2d(tiny_model_2d_path: Path) -> Model:
    return load_model_file(tiny_model_2d_path, "cpu")
