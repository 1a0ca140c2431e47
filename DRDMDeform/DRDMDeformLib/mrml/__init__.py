"""The bridge between the scene and DRDMLib: volumes, segmentations and transforms as SimpleITK images, and back.

Needs slicer-core (or Slicer), NumPy, SciPy and SimpleITK; neither Qt nor PyTorch. Every mistake that the user can
correct is a :class:`SceneError`.
"""

from .challenges import RegistrationCase, addCase, addErrorMap, caseOf, resultOf, showLegend, showPlace
from .display import jacobianColors, jacobianVolume, showDeformation
from .errors import SceneError
from .hardening import apply, applyVariants
from .hierarchy import folderOf, isDeformation, isLivePreview, parentWithoutPreview, removeNode, volumeOf
from .live import LivePreview
from .play import Playback
from .plots import LossCurve
from .regions import boxFromROI
from .segmentations import SegmentLabel, labelFromSegmentation, segmentationState
from .sequences import restoreSequences
from .transforms import createTransform, disablePreview, enablePreview, fieldFromTransform, followVolume
from .variants import (
    addVariants,
    browserOf,
    isSequence,
    records,
    removeVariant,
    selectVariant,
    setRecord,
    transformOf,
    variantsOf,
    variantTransforms,
)
from .volumes import fitWarnings, imageDimension, imageFromVolume, labelMapFromImage, localMatrix, volumeFromImage

__all__ = [
    "LivePreview",
    "LossCurve",
    "Playback",
    "RegistrationCase",
    "SceneError",
    "SegmentLabel",
    "addCase",
    "addErrorMap",
    "addVariants",
    "apply",
    "applyVariants",
    "boxFromROI",
    "browserOf",
    "caseOf",
    "createTransform",
    "disablePreview",
    "enablePreview",
    "fieldFromTransform",
    "fitWarnings",
    "folderOf",
    "followVolume",
    "imageDimension",
    "imageFromVolume",
    "isDeformation",
    "isLivePreview",
    "isSequence",
    "jacobianColors",
    "jacobianVolume",
    "labelFromSegmentation",
    "labelMapFromImage",
    "localMatrix",
    "parentWithoutPreview",
    "records",
    "removeNode",
    "removeVariant",
    "restoreSequences",
    "resultOf",
    "segmentationState",
    "selectVariant",
    "setRecord",
    "showDeformation",
    "showLegend",
    "showPlace",
    "transformOf",
    "variantTransforms",
    "variantsOf",
    "volumeFromImage",
    "volumeOf",
]
