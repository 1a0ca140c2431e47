"""Between the scene and DRDMLib: volumes, segmentations and transforms of MRML as SimpleITK images, and back.

Needs slicer-core (or Slicer), NumPy, SciPy and SimpleITK; neither Qt nor PyTorch. Every mistake that the user can put
right is a :class:`SceneError`.
"""

from .display import jacobianColours, jacobianVolume, showDeformation
from .errors import SceneError
from .hardening import apply, applyVariants
from .hierarchy import folderOf, isDeformation, removeNode, trueParent, volumeOf
from .plots import LossCurve
from .segmentations import SegmentLabel, labelFromSegmentation
from .transforms import createTransform, fieldFromTransform, follow, original
from .variants import addVariants, browserOf, records, removeVariant, selectVariant, variantsOf, variantTransforms
from .volumes import fitWarnings, imageDimension, imageFromVolume, labelMapFromImage, volumeFromImage

__all__ = [
    "LossCurve",
    "SceneError",
    "SegmentLabel",
    "addVariants",
    "apply",
    "applyVariants",
    "browserOf",
    "createTransform",
    "fieldFromTransform",
    "fitWarnings",
    "folderOf",
    "follow",
    "imageDimension",
    "imageFromVolume",
    "isDeformation",
    "jacobianColours",
    "jacobianVolume",
    "labelFromSegmentation",
    "labelMapFromImage",
    "original",
    "records",
    "removeNode",
    "removeVariant",
    "selectVariant",
    "showDeformation",
    "trueParent",
    "variantTransforms",
    "variantsOf",
    "volumeFromImage",
    "volumeOf",
]
