"""The Deformation-Recovery Diffusion Model: new, plausible versions of a medical image, with their displacement fields.

Names are loaded on first use, so that importing the package is fast and needs no PyTorch.
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# Apple's GPU lacks a few operators (3D grid_sample in some versions). With this variable PyTorch computes them on the
# CPU; it must be set before PyTorch is imported.
os.environ.setdefault("PYTORCH_ENABLE_MPS_FALLBACK", "1")

_MODULES = {
    "Deformation": "deformation",
    "DeformationSettings": "settings",
    "Region": "spatial.region",
    "RegionSettings": "settings",
    "deform": "deforming",
    "deform_all": "deforming",
    "find_way": "toward",
    "load_model": "models.catalogue",
    "available_models": "models.catalogue",
    "choose_model": "models.choice",
    "measure_fit": "models.fit",
    "Model": "models.model",
    "ModelMetadata": "models.metadata",
    "save_model": "models.model",
    "random_ddf": "diffusion.forward",
    "recover": "diffusion.recovery",
    "apply_field": "application",
    "augment": "samples",
    "synthesize": "samples",
    "read_image": "io.images",
    "read_label": "io.images",
    "DRDMError": "errors",
}

__all__ = ["__version__", *sorted(_MODULES)]

if TYPE_CHECKING:
    from .application import apply_field as apply_field
    from .deformation import Deformation as Deformation
    from .deforming import deform as deform
    from .deforming import deform_all as deform_all
    from .diffusion.forward import random_ddf as random_ddf
    from .diffusion.recovery import recover as recover
    from .errors import DRDMError as DRDMError
    from .io.images import read_image as read_image
    from .io.images import read_label as read_label
    from .models.catalogue import available_models as available_models
    from .models.catalogue import load_model as load_model
    from .models.choice import choose_model as choose_model
    from .models.fit import measure_fit as measure_fit
    from .models.metadata import ModelMetadata as ModelMetadata
    from .models.model import Model as Model
    from .models.model import save_model as save_model
    from .samples import augment as augment
    from .samples import synthesize as synthesize
    from .settings import DeformationSettings as DeformationSettings
    from .settings import RegionSettings as RegionSettings
    from .spatial.region import Region as Region
    from .toward import find_way as find_way


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'DRDMLib' has no attribute '{name}'")
    value = getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return list(__all__)
