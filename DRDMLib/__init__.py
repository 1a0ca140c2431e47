"""The Deformation-Recovery Diffusion Model: new, plausible versions of a medical image, with their displacement fields.

Names are loaded when they are first used, so that importing the package costs nothing and needs no PyTorch.
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# Apple's GPU lacks a few operators (3D grid_sample in some versions); PyTorch then does those on the CPU, if it is told
# so before it is loaded.
os.environ.setdefault("PYTORCH_ENABLE_MPS_FALLBACK", "1")

_WHERE = {
    "Deformation": "deformation",
    "deform": "deformation",
    "deform_all": "deformation",
    "load_model": "catalogue",
    "available_models": "catalogue",
    "Model": "models",
    "ModelMetadata": "metadata",
    "save_model": "models",
    "random_ddf": "forward",
    "recover": "recovery",
    "augment": "algorithms",
    "synthesize": "algorithms",
    "read_image": "images",
    "read_label": "images",
    "DRDMError": "errors",
}

__all__ = ["__version__", *sorted(_WHERE)]

if TYPE_CHECKING:
    from .algorithms import augment as augment
    from .algorithms import synthesize as synthesize
    from .catalogue import available_models as available_models
    from .catalogue import load_model as load_model
    from .deformation import Deformation as Deformation
    from .deformation import deform as deform
    from .deformation import deform_all as deform_all
    from .errors import DRDMError as DRDMError
    from .forward import random_ddf as random_ddf
    from .images import read_image as read_image
    from .images import read_label as read_label
    from .metadata import ModelMetadata as ModelMetadata
    from .models import Model as Model
    from .models import save_model as save_model
    from .recovery import recover as recover


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'DRDMLib' has no attribute '{name}'")
    value = getattr(importlib.import_module(f"{__name__}.{_WHERE[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return list(__all__)
