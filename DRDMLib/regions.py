"""Find the regions of an image that are to be deformed, and report what moved in and around them."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import SimpleITK as sitk
from scipy import ndimage
from torch import Tensor

from .diffusion.affine import random_pose
from .diffusion.rigid import RigidParts
from .diffusion.seeds import Purpose, derived_seed, random_generator
from .diffusion.slip import SlipPlanes
from .errors import FallbackWarning, ImageError, SettingError
from .io.images import fit_label, read_label
from .poses import pose_on_grid
from .runtime.threads import one_thread
from .settings import DeformationSettings, RegionSettings
from .spatial.bones import Skeleton, bone_points, find_skeleton, is_ct
from .spatial.borders import Face, closed_faces, hold_faces, planes_on_grid
from .spatial.coordinates import to_index, to_points
from .spatial.field_grid import FieldGrid
from .spatial.model_grid import (
    ModelGrid,
    effective_dimension,
    model_grid,
    needs_refinement,
    physical_field,
    sample_image,
)
from .spatial.region import (
    Box,
    Region,
    box_of,
    crop,
    crop_for_grid,
    faded_field,
    hold_still,
    posed,
    region_of,
    regions_around,
    united,
)

if TYPE_CHECKING:
    from .models.model import Model

# Voxels of a kept structure whose movement is measured.
_TRACKED = 200_000
# Bone up to this distance from a region is held, so that bone in the region is connected to it. Millimeters.
_HELD_AROUND = 20.0


@dataclass(frozen=True)
class Target:
    """The regions of one image, and what must not move there.

    Attributes:
        image: the image.
        boxes: the regions as voxels of the image.
        margin: see :class:`DRDMLib.settings.RegionSettings`.
        mask: not 0 where nothing may move, on the grid of the image.
    """

    image: sitk.Image
    boxes: tuple[Box, ...]
    margin: float | None = None
    mask: sitk.Image | None = None

    @property
    def regions(self) -> tuple[Region, ...]:
        """The regions, measured to the faces of their voxels."""
        return tuple(region_of(box, self.image) for box in self.boxes)

    @cached_property
    def crops(self) -> tuple[sitk.Image, ...]:
        """The image in each region."""
        return tuple(crop(self.image, box) for box in self.boxes)

    @cached_property
    def largest(self) -> sitk.Image:
        """The image in the largest region, for which the model is chosen."""
        return max(self.crops, key=lambda part: part.GetNumberOfPixels())

    @cached_property
    def bone(self) -> np.ndarray | None:
        """Points of bone (K, 3), LPS millimeters; ``None`` if the image is not CT or shows none."""
        if not is_ct(self.image):
            return None
        points = bone_points(self.image)
        return points if len(points) else None

    @cached_property
    def kept(self) -> np.ndarray | None:
        """Centers of kept voxels (K, d), LPS millimeters; ``None`` if nothing is kept."""
        if self.mask is None:
            return None
        voxels = np.argwhere(sitk.GetArrayViewFromImage(self.mask))
        if not len(voxels):
            return None
        voxels = voxels[:: max(1, len(voxels) // _TRACKED)]
        return to_points(voxels[:, ::-1].astype(float), self.mask)

    def described(self, deformation: Any) -> dict[str, Any]:
        """Describe the regions, the margin and what moved, for a report.

        Args:
            deformation: a :class:`DRDMLib.Deformation` of these regions.
        """
        return {
            "boxes": [[round(number, 3) for number in region.numbers] for region in self.regions],
            "margin_mm": round(deformation.margin_mm, 3),
            "scale": round(deformation.scale, 4),
            **self.movement(deformation.before_pose or deformation.field),
        }

    def movement(self, field: sitk.Image) -> dict[str, Any]:
        """Measure how far kept structures and, in CT, bone inside and outside the regions are moved by a field.

        Args:
            field: vector image, LPS millimeters; without a pose, which moves everything.
        """
        grid = FieldGrid.of(field)
        found: dict[str, Any] = {}
        if self.kept is not None:
            found["kept"] = _lengths(grid, self.kept)
        if self.bone is not None:
            inside = np.zeros(len(self.bone), bool)
            index = to_index(self.bone, self.image) + 0.5
            for start, stop in self.boxes:
                inside |= ((index >= start) & (index <= stop)).all(axis=1)
            found["bone"] = {
                "inside": _lengths(grid, self.bone[inside]),
                "outside": _lengths(grid, self.bone[~inside]),
            }
        return found


def _lengths(field: FieldGrid, points: np.ndarray) -> dict[str, float] | None:
    """Compute the mean and largest displacement at points (K, d), LPS millimeters; ``None`` without points."""
    if not len(points):
        return None
    places = ((points - field.origin) @ field.along.T / np.asarray(field.spacing)).T
    d = len(places)
    values = [ndimage.map_coordinates(np.ascontiguousarray(field.vectors[..., k]), places, order=1) for k in range(d)]
    length = np.sqrt(np.sum(np.square(values), axis=0))
    return {"mean_mm": round(float(length.mean()), 4), "max_mm": round(float(length.max()), 4)}


def find_target(
    image: sitk.Image,
    settings: RegionSettings,
    label: sitk.Image | None = None,
    mask: sitk.Image | None = None,
) -> Target:
    """Find the regions of an image.

    Args:
        label: label map of the image, which ``around`` and ``keep`` need.
        mask: not 0 where nothing may move, on the grid of the image; by default as the settings say.

    Raises:
        SettingError: a region has another dimension than the image.
        ImageError: a region lies outside the image, or the label is missing, is empty, or has none of the values.

    Warns:
        FallbackWarning: a label reaches out of the region.
    """
    if label is not None:
        label = fit_label(label, image)
    if settings.around is not None:
        if label is None:
            raise ImageError("There is no label to deform around; give a label map, or a region instead of --around.")
        regions = regions_around(label, _values_around(label, settings))
        boxes = tuple(box_of(region, image) for region in regions)
    elif settings.regions:
        boxes = tuple(box_of(region, image) for region in settings.regions)
    else:
        boxes = ((np.zeros(image.GetDimension(), int), np.asarray(image.GetSize())),)
    if label is not None:
        _warn_of_labels_outside(label, boxes, settings.keep)
    return Target(image, boxes, settings.margin, _kept_mask(image, settings, label) if mask is None else mask)


def _values_around(label: sitk.Image, settings: RegionSettings) -> tuple[int, ...]:
    """Return the labels to deform around: all means all except those that are kept."""
    if settings.around or not settings.keep:
        return settings.around or ()
    present = np.unique(sitk.GetArrayViewFromImage(label))
    values = tuple(int(value) for value in present if value and int(value) not in settings.keep)
    if not values:
        raise ImageError("All labels are to be kept still, so there is nothing to deform around; choose fewer.")
    return values


def _kept_mask(image: sitk.Image, settings: RegionSettings, label: sitk.Image | None) -> sitk.Image | None:
    if settings.keep_mask:
        mask: sitk.Image = read_label(settings.keep_mask, image) != 0
        if not sitk.GetArrayViewFromImage(mask).any():
            raise ImageError(f"The mask '{settings.keep_mask}' is empty; leave out --keep, or choose another mask.")
        return mask
    if not settings.keep:
        return None
    if label is None:
        raise ImageError("There is no label with structures to keep; give a label map, or a mask file with --keep.")
    array = np.isin(sitk.GetArrayViewFromImage(label), settings.keep)
    if not array.any():
        values = ", ".join(map(str, settings.keep))
        raise ImageError(f"The label has no voxel of {values}, which --keep is to hold still; choose other values.")
    mask = sitk.GetImageFromArray(array.astype(np.uint8))
    mask.CopyInformation(image)
    return mask


def _warn_of_labels_outside(label: sitk.Image, boxes: tuple[Box, ...], kept: tuple[int, ...]) -> None:
    array = sitk.GetArrayViewFromImage(label)
    inside = np.zeros(array.shape, bool)
    for start, stop in boxes:
        inside[tuple(slice(a, b) for a, b in zip(start[::-1].tolist(), stop[::-1].tolist(), strict=True))] = True
    cut = sorted((set(np.unique(array[inside])) & set(np.unique(array[~inside]))) - {0, *kept})
    if cut:
        names = ", ".join(str(int(value)) for value in cut[:10]) + (", ..." if len(cut) > 10 else "")
        warnings.warn(
            f"Labels reach out of the region ({names}); their parts outside are deformed less or not at all.",
            FallbackWarning,
            stacklevel=2,
        )


class RegionField(NamedTuple):
    """A field of one or several regions, before it is repaired.

    Attributes:
        field: the field; zero on its border, or the pose if there is one.
        margin_mm: distance from the boxes at which it is zero, without a pose.
        scale: number by which the displacement was multiplied to fit into the margin.
        device: type of the device that computed it.
        before_pose: the field without the pose, if there is one.
    """

    field: FieldGrid
    margin_mm: float
    scale: float
    device: str
    before_pose: FieldGrid | None = None


# Function that makes a random and a recovered field on the model grid, see :func:`DRDMLib.generation.generate`.
Generate = Callable[..., tuple[Tensor, Tensor, Tensor, int]]


def fields_in_regions(
    target: Target,
    model: Model,
    settings: DeformationSettings,
    seed: int,
    generate: Generate,
    *,
    faces: tuple[Face, ...] | None = None,
    skeleton: Skeleton | None = None,
    on_step: Callable[[int, int], None] | None = None,
) -> tuple[RegionField, Callable[[], RegionField]]:
    """Make the recovered field of all regions, and a function that makes the random field before recovery.

    Each region has random numbers of its own. A pose is applied to the whole image, after the field.

    Args:
        faces: of the image, see :func:`faces_held`, if they were found before.
        skeleton: bone that stays rigid. Where it leaves a region, it does not move.

    Warns:
        FallbackWarning: the displacement was made smaller to fit into the margin.
    """
    metadata = model.metadata
    if faces is None:
        faces = faces_held(target.image, settings, model.ndim)
    random: list[Tensor] = []
    recovered: list[Tensor] = []
    grids: list[ModelGrid] = []
    for number, (part, box) in enumerate(zip(target.crops, target.boxes, strict=True)):

        def report(done: int, total: int, number: int = number) -> None:
            if on_step is not None:
                on_step(number * total + done, len(target.crops) * total)

        grid = model_grid(part, metadata, plane=settings.plane)
        tensor = sample_image(crop_for_grid(target.image, grid), grid, metadata.intensity, metadata.image_padding)
        bare = dataclasses.replace(settings, pose=0.0)
        planes = SlipPlanes(planes_on_grid(faces, grid), model.size)
        own = derived_seed(seed, Purpose.REGION, number)
        rigid = None if skeleton is None else rigid_parts(skeleton, grid, planes, (target.image, box))
        drawn, found, *_ = generate(tensor, model, bare, (own,), planes=planes, rigid=rigid, on_step=report)
        random.append(drawn)
        recovered.append(found)
        grids.append(grid)
    pose = _pose_field(target.image, model, settings, seed) if settings.pose else None
    made = _assembled(target, grids, recovered, faces, pose)
    if made.scale < 1:
        warnings.warn(
            f"Within a margin of {target.margin:g} mm the deformation is weaker than its level; the report says how "
            "much ('scale').",
            FallbackWarning,
            stacklevel=2,
        )
    return made, partial(_assembled, target, grids, random, faces, pose)


def faces_held(image: sitk.Image, settings: DeformationSettings, ndim: int) -> tuple[Face, ...]:
    """Return the faces of a scan that nothing crosses, except by a pose; ``ndim`` is the dimension of the model."""
    return closed_faces(image) if settings.closes_faces(slices=_by_slices(image, ndim)) else ()


def _by_slices(image: sitk.Image, ndim: int) -> bool:
    """Whether a model of this dimension deforms the image slice by slice."""
    return ndim == 2 and effective_dimension(image) == 3


def skeleton_held(image: sitk.Image, settings: DeformationSettings, ndim: int) -> Skeleton | None:
    """Return bone that is to stay rigid, and the table; ``None`` for nothing.

    Args:
        ndim: dimension of the model.

    Raises:
        SettingError: bone is to stay rigid, but a 2D model deforms the slices of a volume.
        ImageError: bone is to stay rigid, but there is none.
    """
    if settings.bones == "free":
        return None
    required = settings.bones == "rigid"
    slices = _by_slices(image, ndim)
    if required and slices:
        raise SettingError(
            "Bones of a volume stay rigid with 3D models only; choose a 3D model with --model, or --bones auto."
        )
    if slices or not (required or is_ct(image)):
        return None
    found = find_skeleton(image)
    if len(found.bone):
        return found
    if required:
        raise ImageError("The scan shows no bone, which is above 300 in a CT; use --bones auto.")
    return None


def rigid_parts(
    skeleton: Skeleton, grid: ModelGrid, planes: SlipPlanes, region: tuple[sitk.Image, Box] | None = None
) -> RigidParts | None:
    """Place bone and the table on a model grid; ``None`` if there is no bone.

    Args:
        planes: closed faces on the grid.
        region: the image, and the box of it that is deformed. Bone outside the box is held still.
    """
    bone, held = skeleton.bone, np.zeros(len(skeleton.bone), bool)
    if region is not None:
        image, (start, stop) = region
        index = to_index(bone, image) + 0.5
        far = (np.maximum(np.maximum(start - index, index - stop), 0) * image.GetSpacing()).max(axis=1)
        near = far <= _HELD_AROUND
        bone, held = bone[near], far[near] > 0
    if held.all():
        return None

    # A single slice may be an image of one layer, whose grid counts slices along its last axis.
    axes = slice(2 if grid.stack else grid.ndim)
    order = slice(None, None, 1 if grid.axes == "ijk" else -1)

    def places(points: np.ndarray) -> np.ndarray:
        index: np.ndarray = (points - np.asarray(grid.origin)) @ grid.direction / np.asarray(grid.spacing)
        return index[:, axes][:, order]

    step = grid.spacing[axes][order]
    carried = places(skeleton.table) if region is None else None
    return RigidParts(places(bone), step, planes, carried=carried, held=held, spacing=skeleton.spacing)


def _assembled(
    target: Target,
    grids: Sequence[ModelGrid],
    ddfs: Sequence[Tensor],
    faces: Sequence[Face],
    pose: FieldGrid | None,
) -> RegionField:
    """Put the fields of all regions together, hold still what is kept, and apply the pose."""
    stack = grids[0].stack
    with one_thread():
        faded = [
            faded_field(ddf, grid, part, margin=target.margin, refine=needs_refinement(part, grid))
            for ddf, grid, part in zip(ddfs, grids, target.crops, strict=True)
        ]
        field = united([one.field for one in faded], stack=stack)
        if target.mask is not None:
            hold_still(field, target.mask, stack=stack)
        hold_faces(field, faces)
        whole = field if pose is None else posed(field, pose, stack=stack)
    scale = min(one.scale for one in faded)
    before = None if pose is None else field
    return RegionField(whole, max(one.margin_mm for one in faded), scale, ddfs[0].device.type, before)


def _pose_field(image: sitk.Image, model: Model, settings: DeformationSettings, seed: int) -> FieldGrid:
    """Draw the pose of a whole image; it is the same for all levels."""
    grid = model_grid(image, model.metadata, plane=settings.plane)
    generator = random_generator(derived_seed(seed, Purpose.POSE))
    drawn = random_pose(model.size, model.ndim, pose_on_grid(settings.drawn_pose(), grid, image), generator)
    slices = grid.size[2] if grid.stack else 1
    return physical_field(drawn.expand(slices, *drawn.shape[1:]), grid, posed=True)


__all__ = [
    "RegionField",
    "Target",
    "faces_held",
    "fields_in_regions",
    "find_target",
    "rigid_parts",
    "skeleton_held",
]
