"""Training data as tensors: pairs for registration, and deformations for TorchIO and MONAI.

TorchIO and MONAI are needed by their own transforms alone, and are imported when these are first used.

Voxel axes are those of NIfTI, nibabel, TorchIO and MONAI: (X, Y, Z), and world coordinates RAS millimetres.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

_WHERE = {
    "PairDataset": "pairs",
    "FieldBank": "bank",
    "BankSettings": "bank",
    "make_bank": "bank",
    "FieldGenerator": "generator",
    "RandomDRDMDeformation": "torchio_transform",
    "RandDRDMDeformationd": "monai_transform",
}

__all__ = sorted(_WHERE)

if TYPE_CHECKING:
    from .bank import BankSettings as BankSettings
    from .bank import FieldBank as FieldBank
    from .bank import make_bank as make_bank
    from .generator import FieldGenerator as FieldGenerator
    from .monai_transform import RandDRDMDeformationd as RandDRDMDeformationd
    from .pairs import PairDataset as PairDataset
    from .torchio_transform import RandomDRDMDeformation as RandomDRDMDeformation


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'DRDMLib.loaders' has no attribute '{name}'")
    return getattr(importlib.import_module(f"{__name__}.{_WHERE[name]}"), name)


def __dir__() -> list[str]:
    return list(__all__)
