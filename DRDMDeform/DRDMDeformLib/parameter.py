"""The parameter node: settings of the panel that are saved with the scene."""

from __future__ import annotations

import enum
from pathlib import Path
from typing import Annotated, Optional, Union

import slicer
from slicer.i18n import tr as _
from slicer.parameterNodeWrapper import Default, WithinRange, parameterNodeWrapper


class Device(enum.Enum):
    """Device to compute on."""

    AUTO = "auto"
    CPU = "cpu"
    CUDA = "cuda"
    MPS = "mps"

    def label(self) -> str:
        """Text in the panel."""
        return {
            "auto": _("Fastest available"),
            "cpu": _("CPU"),
            "cuda": _("NVIDIA GPU"),
            "mps": _("Apple GPU"),
        }[self.value]


class Plane(enum.Enum):
    """Plane of the slices that a 2D model deforms."""

    AUTO = "auto"
    AXIAL = "axial"
    CORONAL = "coronal"
    SAGITTAL = "sagittal"

    def label(self) -> str:
        """Text in the panel."""
        return {
            "auto": _("As acquired"),
            "axial": _("Axial"),
            "coronal": _("Coronal"),
            "sagittal": _("Sagittal"),
        }[self.value]


class Strength(enum.Enum):
    """How far variants are from the scan: a word that means the same for every model, or a level of the model."""

    SUBTLE = "subtle"
    MEDIUM = "medium"
    STRONG = "strong"
    LEVEL = "level"

    def label(self) -> str:
        """Text in the panel."""
        return {
            "subtle": _("Subtle"),
            "medium": _("Medium"),
            "strong": _("Strong"),
            "level": _("By level"),
        }[self.value]


class BatchRegion(enum.Enum):
    """Where a batch deforms its scans."""

    WHOLE = "whole"
    LABELS = "labels"
    ROI = "roi"

    def label(self) -> str:
        """Text in the panel."""
        return {
            "whole": _("The whole scans"),
            "labels": _("Around the labels"),
            "roi": _("In the ROI chosen above"),
        }[self.value]


class BatchPose(enum.Enum):
    """What the poses of a batch are drawn from."""

    AUTO = "auto"
    ABOVE = "above"
    SCANS = "scans"

    def label(self) -> str:
        """Text in the panel."""
        return {
            "auto": _("From these scans, unless chosen above"),
            "above": _("By the amount chosen above"),
            "scans": _("From these scans"),
        }[self.value]


class BatchToward(enum.Enum):
    """What the versions of a batch go part of the way toward."""

    AUTO = "auto"
    NONE = "none"
    OTHERS = "others"

    def label(self) -> str:
        """Text in the panel."""
        return {
            "auto": _("Use those without a label, if at least ten"),
            "none": _("Not used"),
            "others": _("Go part of the way toward them"),
        }[self.value]


class BatchKind(enum.Enum):
    """Kind of a batch: Algorithm 3 or 4."""

    AUGMENT = "augment"
    SYNTHESIZE = "synthesize"

    def label(self) -> str:
        """Text in the panel."""
        return {
            "augment": _("Labeled images for segmentation (nnU-Net)"),
            "synthesize": _("Moving and fixed pairs for registration (Learn2Reg)"),
        }[self.value]


class BatchSource(enum.Enum):
    """Source of the scans of a batch."""

    SCENE = "scene"
    FOLDER = "folder"

    def label(self) -> str:
        """Text in the panel."""
        return {"scene": _("Volumes of the scene"), "folder": _("A folder or dataset")}[self.value]


class Grid(enum.Enum):
    """Voxel grid of a hardened volume."""

    ORIGINAL = "original"
    SLICER = "slicer"

    def label(self) -> str:
        """Text in the panel."""
        return {"original": _("Original voxel grid"), "slicer": _("As Slicer hardens (extent may grow)")}[self.value]


class VariantChoice(enum.Enum):
    """Variants to apply."""

    SHOWN = "shown"
    ALL = "all"

    def label(self) -> str:
        """Text in the panel."""
        return {"shown": _("The variant shown"), "all": _("Every variant in the table")}[self.value]


class Display(enum.Enum):
    """How the deformation is drawn in the views."""

    NONE = "none"
    GRID = "grid"
    GLYPH = "glyph"
    CONTOUR = "contour"

    def label(self) -> str:
        """Text in the panel."""
        return {"none": _("Hidden"), "grid": _("Grid"), "glyph": _("Arrows"), "contour": _("Contours")}[self.value]


class Dimension(enum.Enum):
    """Dimension of the model to train."""

    THREE = 3
    TWO = 2

    def label(self) -> str:
        """Text in the panel."""
        return {3: _("3D, volumes"), 2: _("2D, slices")}[self.value]


class Recipe(enum.Enum):
    """How hard a test case for registration is."""

    MILD = "mild"
    MEDIUM = "medium"
    HARD = "hard"

    def label(self) -> str:
        """Text in the panel."""
        return {"mild": _("Mild"), "medium": _("Medium"), "hard": _("Hard")}[self.value]


@parameterNodeWrapper
class DRDMDeformParameterNode:
    """Settings of the panel, saved with the scene under these names.

    inputVolume, inputSegmentation - the scan and its segmentation.
    model - catalog name, or path of a model file; empty: the best one for the scan.
    device, steps, plane - how to compute; 0 steps: the default of the model.
    strength, level - how far to deform: a word, or "level" for the level 1 to 79.
    pose, seed, variants, asSequence - how to deform: pose 0 to 2, number of variants.
    towardVolume - variants go part of the way toward this scan.
    aroundSegmentation, region - deform only around the segmentation, or in this ROI; the ROI comes first.
    margin, keep - largest distance from the region at which anything moves, mm (0: as needed); names of the segments
    that do not move, separated by commas.
    keepSeed - whether Deform keeps the seed; otherwise it draws a new one once the seed has been used.
    live - whether the views show a preview while the slider of the level is dragged.
    deformations - the shown transform or sequence browser.
    preview - whether the scan and the other nodes are shown deformed, that is under the transform.
    display - how the transform is drawn.
    onCopies, versions, grid - how to apply it: on copies, which variants, and on which voxel grid.
    batchSource, batchFolder, batchOutput - the scans of a batch, and the folder of its results.
    batchKind - labeled images (Algorithm 3 of the paper) or image pairs (Algorithm 4).
    batchLevels, batchCopies - strengths such as "subtle medium 60", or "40:24" for pairs; samples of each for a scan.
    batchRegion, batchPose, batchAdapt - where to deform; what poses are drawn from; minutes in which the model is first
    adapted to the scans (0: none).
    batchToward, batchGray - whether labeled images go part of the way toward the other scans; gray values, too.
    trainFolder, trainOutput - the scans to train on, and the folder of the run.
    trainSource - the model to adapt; empty: train a new one.
    trainName, trainDimension, trainSize, trainMinutes - the model (trainSize: voxels along each side), and the time.
    challengeRecipe, challengeSeed, challengeFolder - a test case for registration, and where its files are made.
    challengeFixed, challengeTransform - the fixed image of a case, and the result to score.
    """

    inputVolume: slicer.vtkMRMLScalarVolumeNode
    inputSegmentation: Optional[Union[slicer.vtkMRMLSegmentationNode, slicer.vtkMRMLLabelMapVolumeNode]]  # noqa: UP007, UP045
    model: str
    device: Annotated[Device, Default(Device.AUTO)]
    steps: Annotated[int, WithinRange(0, 80), Default(0)]
    pose: Annotated[float, WithinRange(0.0, 2.0), Default(0.0)]
    towardVolume: Optional[slicer.vtkMRMLScalarVolumeNode]  # noqa: UP045
    plane: Annotated[Plane, Default(Plane.AUTO)]
    aroundSegmentation: Annotated[bool, Default(True)]
    region: Optional[slicer.vtkMRMLMarkupsROINode]  # noqa: UP045
    margin: Annotated[float, WithinRange(0.0, 1000.0), Default(0.0)]
    keep: str

    strength: Annotated[Strength, Default(Strength.MEDIUM)]
    level: Annotated[int, WithinRange(1, 79), Default(32)]
    seed: Annotated[int, WithinRange(0, 2**31 - 1), Default(0)]
    keepSeed: Annotated[bool, Default(False)]
    live: Annotated[bool, Default(True)]
    variants: Annotated[int, WithinRange(1, 100), Default(1)]
    asSequence: Annotated[bool, Default(True)]
    deformations: Optional[Union[slicer.vtkMRMLTransformNode, slicer.vtkMRMLSequenceBrowserNode]]  # noqa: UP007, UP045
    preview: Annotated[bool, Default(True)]
    display: Annotated[Display, Default(Display.NONE)]

    onCopies: Annotated[bool, Default(True)]
    versions: Annotated[VariantChoice, Default(VariantChoice.SHOWN)]
    grid: Annotated[Grid, Default(Grid.ORIGINAL)]

    batchSource: Annotated[BatchSource, Default(BatchSource.SCENE)]
    batchFolder: Path
    batchKind: Annotated[BatchKind, Default(BatchKind.AUGMENT)]
    batchLevels: Annotated[str, Default("subtle medium strong")]
    batchCopies: Annotated[int, WithinRange(1, 100000), Default(4)]
    batchOutput: Path
    batchRegion: Annotated[BatchRegion, Default(BatchRegion.WHOLE)]
    batchPose: Annotated[BatchPose, Default(BatchPose.AUTO)]
    batchToward: Annotated[BatchToward, Default(BatchToward.AUTO)]
    batchGray: Annotated[bool, Default(True)]
    batchAdapt: Annotated[float, WithinRange(0.0, 1000.0), Default(0.0)]

    trainFolder: Path
    trainName: Annotated[str, Default("my-model")]
    trainSource: str
    trainDimension: Annotated[Dimension, Default(Dimension.THREE)]
    trainSize: Annotated[int, WithinRange(16, 256), Default(48)]
    trainMinutes: Annotated[float, WithinRange(0.1, 100000.0), Default(60.0)]
    trainOutput: Path

    challengeRecipe: Annotated[Recipe, Default(Recipe.MEDIUM)]
    challengeSeed: Annotated[int, WithinRange(0, 2**31 - 1), Default(0)]
    challengeFolder: Path
    challengeFixed: Optional[slicer.vtkMRMLScalarVolumeNode]  # noqa: UP045
    challengeTransform: Optional[slicer.vtkMRMLTransformNode]  # noqa: UP045
