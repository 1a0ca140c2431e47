"""What the panel remembers in the scene."""

from __future__ import annotations

import enum
from pathlib import Path
from typing import Annotated, Optional, Union

import slicer
from slicer.i18n import tr as _
from slicer.parameterNodeWrapper import Default, WithinRange, parameterNodeWrapper


class Device(enum.Enum):
    """Where to compute."""

    AUTO = "auto"
    CPU = "cpu"
    CUDA = "cuda"
    MPS = "mps"

    def label(self) -> str:
        """Shown to the user."""
        return {
            "auto": _("Fastest there is"),
            "cpu": _("Processor"),
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
        """Shown to the user."""
        return {
            "auto": _("As acquired"),
            "axial": _("Axial"),
            "coronal": _("Coronal"),
            "sagittal": _("Sagittal"),
        }[self.value]


class BatchKind(enum.Enum):
    """What a batch makes: Algorithm 3 or 4."""

    AUGMENT = "augment"
    SYNTHESIZE = "synthesize"

    def label(self) -> str:
        """Shown to the user."""
        return {
            "augment": _("Labeled images for segmentation (nnU-Net)"),
            "synthesize": _("Moving and fixed pairs for registration (Learn2Reg)"),
        }[self.value]


class BatchSource(enum.Enum):
    """Where a batch takes its scans from."""

    SCENE = "scene"
    FOLDER = "folder"

    def label(self) -> str:
        """Shown to the user."""
        return {"scene": _("Volumes of the scene"), "folder": _("A folder or dataset")}[self.value]


class Grid(enum.Enum):
    """On which voxels a hardened volume ends up."""

    ORIGINAL = "original"
    SLICER = "slicer"

    def label(self) -> str:
        """Shown to the user."""
        return {"original": _("Original voxel grid"), "slicer": _("As Slicer hardens (extent may grow)")}[self.value]


class VariantChoice(enum.Enum):
    """Which versions are applied."""

    SHOWN = "shown"
    ALL = "all"

    def label(self) -> str:
        """Shown to the user."""
        return {"shown": _("The version shown"), "all": _("Every version of the table")}[self.value]


class Display(enum.Enum):
    """How the deformation itself is drawn."""

    NONE = "none"
    GRID = "grid"
    GLYPH = "glyph"
    CONTOUR = "contour"

    def label(self) -> str:
        """Shown to the user."""
        return {"none": _("Hidden"), "grid": _("Grid"), "glyph": _("Arrows"), "contour": _("Contours")}[self.value]


class Dimension(enum.Enum):
    """Dimension of a model to be trained."""

    THREE = 3
    TWO = 2

    def label(self) -> str:
        """Shown to the user."""
        return {3: _("3D, volumes"), 2: _("2D, slices")}[self.value]


@parameterNodeWrapper
class DRDMDeformParameterNode:
    """Settings of the panel.

    inputVolume, inputSegmentation - the scan, and what is drawn on it.
    model - catalogue name, or path of a model file; empty takes the best one for the scan.
    device, steps, plane - how to compute; 0 steps means the usual number of the model.
    pose, level, seed, variants, asSequence - how to deform.
    deformations - transform or sequence browser that is shown.
    preview, display - whether the nodes follow it, and how it is drawn itself.
    onCopies, versions, grid - how to apply it.
    batch... - a run over many scans.
    train... - training a model.
    """

    inputVolume: slicer.vtkMRMLScalarVolumeNode
    inputSegmentation: Optional[Union[slicer.vtkMRMLSegmentationNode, slicer.vtkMRMLLabelMapVolumeNode]]  # noqa: UP007, UP045
    model: str
    device: Annotated[Device, Default(Device.AUTO)]
    steps: Annotated[int, WithinRange(0, 80), Default(0)]
    pose: Annotated[float, WithinRange(0.0, 2.0), Default(0.0)]
    plane: Annotated[Plane, Default(Plane.AUTO)]

    level: Annotated[int, WithinRange(1, 79), Default(48)]
    seed: Annotated[int, WithinRange(0, 2**31 - 1), Default(0)]
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
    batchLevels: Annotated[str, Default("20 40 60")]
    batchCopies: Annotated[int, WithinRange(1, 100000), Default(4)]
    batchOutput: Path

    trainFolder: Path
    trainName: Annotated[str, Default("my-model")]
    trainDimension: Annotated[Dimension, Default(Dimension.THREE)]
    trainSize: Annotated[int, WithinRange(16, 256), Default(48)]
    trainMinutes: Annotated[float, WithinRange(0.1, 100000.0), Default(60.0)]
    trainOutput: Path
