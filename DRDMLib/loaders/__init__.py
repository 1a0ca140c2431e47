"""Provide training data as tensors: pairs for registration, and deformations for TorchIO and MONAI.

TorchIO and MONAI are needed only for their own transforms, and are imported when these are first used.

Voxel axes are (X, Y, Z), and world coordinates are RAS millimeters, as in NIfTI, nibabel, TorchIO and MONAI.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

_MODULES = {
    "PairDataset": "pairs",
    "FieldBank": "bank",
    "make_bank": "bank_making",
    "FieldGenerator": "generator",
    "DRDMDeformation": "torchio_transform",
    "RandomDRDMDeformation": "torchio_transform",
    "RandDRDMDeformationd": "monai_transform",
}

__all__ = sorted(_MODULES)

if TYPE_CHECKING:
    from .bank import FieldBank as FieldBank
    from .bank_making import make_bank as make_bank
    from .generator import FieldGenerator as FieldGenerator
    from .monai_transform import RandDRDMDeformationd as RandDRDMDeformationd
    from .pairs import PairDataset as PairDataset
    from .torchio_transform import DRDMDeformation as DRDMDeformation
    from .torchio_transform import RandomDRDMDeformation as RandomDRDMDeformation


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'DRDMLib.loaders' has no attribute '{name}'")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return list(__all__)
