"""What a deformation of an image is: its field, and what can be done with it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import SimpleITK as sitk

from .invertibility.certificate import certify_on_grid
from .invertibility.inverse import inverse_field, inverse_layers, inverse_points
from .invertibility.metrics import FieldMetrics, measure_on_grid
from .invertibility.repair import NOT_REPAIRED, Repair
from .io.images import fit_label
from .regions import Target
from .runtime.threads import one_thread
from .settings import Pose
from .spatial.bones import Rigidity, Skeleton, rigidity
from .spatial.borders import closed_faces, inside_mask, invented_fraction, outside_fraction
from .spatial.coordinates import corners, to_index, to_points
from .spatial.field_grid import FieldGrid
from .spatial.resampling import field_on_grid, slabs, warp_image, warp_label, warp_together

# Number of places at which reports compare bone with a rigid motion.
_BALLS = 60


@dataclass
class Deformation:
    """One deformation of an image: its displacement field, and methods that apply, invert and measure it.

    Attributes:
        reference: the original image; everything that is produced lies on its grid.
        field: displacement field on a coarse grid: vector image, millimeters, LPS. A vector at a point of the new image
            points to the position in the original whose value the new image shows there. The grid extends past the
            image, and the field falls to zero there; that of a region covers only the region and its margin. Outside
            the grid nothing moves. With a pose, or toward another scan, the field falls to an affine map, which goes on
            outside the grid.
        seed, level, steps, pose, model: the seed and settings it was made with, and the name of the model; a pose
            that was drawn from a population is the population's spread.
        seconds, device: how long the computation took, and on what kind of device.
        repaired: what was changed to make the field invertible.
        certified: whether the field is proven to be invertible; ``None`` if it has not been tested yet, see
            ``metrics``.
        target: the regions that were deformed, or ``None`` for the whole image.
        margin_mm, scale: distance from the regions at which the field is zero, and the number by which the displacement
            was multiplied to fit into a given margin.
        before_pose: the field of the regions without the pose, if there is one.
        strength: the word that the level was chosen by, if it was.
        skeleton: bone that stays rigid, and the table; ``None`` if nothing does.
        toward: share of the way toward another scan that the version goes, see :mod:`DRDMLib.toward`.
        own_percent: mean displacement without a pose and without what leads toward another scan, as a percentage of the
            longest physical side of the image; ``None`` if there is neither.
    """

    reference: sitk.Image
    field: sitk.Image
    seed: int = 0
    level: int = 0
    steps: int = 0
    pose: Pose = 0.0
    seconds: float = 0.0
    model: str = ""
    device: str = ""
    repaired: Repair = NOT_REPAIRED
    certified: bool | None = None
    target: Target | None = dataclasses.field(default=None, repr=False)
    margin_mm: float = 0.0
    scale: float = 1.0
    before_pose: sitk.Image | None = dataclasses.field(default=None, repr=False)
    strength: str = ""
    skeleton: Skeleton | None = dataclasses.field(default=None, repr=False)
    toward: float = 0.0
    own_percent: float | None = None
    _random: Callable[[], sitk.Image] | None = dataclasses.field(default=None, repr=False)

    @cached_property
    def random_field(self) -> sitk.Image:
        """The random deformation before recovery, in the same form as ``field``; computed on first use."""
        assert self._random is not None
        with one_thread():
            return self._random()

    @cached_property
    def transform(self) -> sitk.Transform:
        """Transform from points of the new image to points of the original (LPS, millimeters), also outside of it."""
        return continued_transform(self.field) or self.grid_transform

    @cached_property
    def grid_transform(self) -> sitk.DisplacementFieldTransform:
        """The same for points on the grid of ``field``, which covers the image; images are resampled faster with it."""
        transform = displacement_transform(self.field)
        # The same voxels, in the memory of the transform, so that they are not kept twice.
        self.field = transform.GetDisplacementField()
        return transform

    def transform_on(self, grid: sitk.Image) -> sitk.Transform:
        """Transform for resampling onto the voxels of an image, which may reach past the grid of ``field``."""
        index = to_index(to_points(corners(grid), grid), self.field)
        last = np.asarray(self.field.GetSize()) - 1
        return self.grid_transform if ((index >= 0) & (index <= last)).all() else self.transform

    @cached_property
    def inverse(self) -> sitk.Image:
        """The inverse field, over the extent of ``field``: maps points of the original to points of the new image.

        Its grid is fine enough to be accurate between its nodes too, so it can be large; see
        :func:`DRDMLib.invertibility.inverse.inverse_field`. For single points, :meth:`inverse_points` is more accurate
        and faster.
        """
        return inverse_field(self.field, self.reference)

    @property
    def inverse_transform(self) -> sitk.Transform:
        """Transform from points of the original to points of the new image (LPS, millimeters)."""
        return continued_transform(self.inverse) or displacement_transform(self.inverse)

    @property
    def inverse_ddf(self) -> sitk.Image:
        """The inverse of ``ddf`` on the image's grid: vector image, 32-bit, millimeters, LPS.

        At the center of each voxel it is accurate to a ten-thousandth of a voxel.
        """
        size = self.reference.GetSize()
        image = sitk.GetImageFromArray(
            np.concatenate(list(inverse_layers(self.field, self.reference, slabs(size)))), isVector=True
        )
        image.CopyInformation(self.reference)
        return image

    def inverse_points(self, points: np.ndarray) -> np.ndarray:
        """Map points of the original (markups, surfaces) to points of the new image.

        Args:
            points: (K, d), LPS, millimeters.

        Returns:
            (K, d), LPS, millimeters.
        """
        return inverse_points(self.field, points)

    @cached_property
    def metrics(self) -> FieldMetrics:
        """Metrics of the field on the image's grid.

        ``certified_invertible`` holds for the field itself and for its samples on that grid.
        """
        metrics = measure_on_grid(self.field, self.reference)
        certified = self.certified
        if certified is None:
            certified = certify_on_grid(self.field, self.reference).certified
        return dataclasses.replace(metrics, certified_invertible=certified)

    @property
    def model_fraction(self) -> float:
        """Mean displacement by the model alone, fraction of the longest side: what its fit to the scan is about."""
        return (self.metrics.mean_percent if self.own_percent is None else self.own_percent) / 100

    @cached_property
    def invented_fraction(self) -> float:
        """Fraction of voxels that show what lies beyond a face of the scan that tissue touches: a mirror image.

        Only a pose, a way toward another scan and ``border="open"`` bring such voxels in.
        """
        return invented_fraction(self.field, self.reference, closed_faces(self.reference))

    @cached_property
    def bone_rigidity(self) -> Rigidity | None:
        """How rigid bone stays; ``None`` if nothing was to stay rigid, or with a pose, which scales bone."""
        if self.skeleton is None or (self.pose and self.before_pose is None):
            return None
        points = self.skeleton.bone
        return rigidity(points, inverse_points(self.before_pose or self.field, points), balls=_BALLS)

    @cached_property
    def from_outside(self) -> float:
        """Fraction of voxels that are read from outside the scan, where it shows nothing: air, or a mirror image."""
        return outside_fraction(self.field, self.reference)

    @property
    def inside(self) -> sitk.Image:
        """Mask of the voxels that are read from inside the scan: 8-bit, on the grid of ``reference``."""
        return inside_mask(self.field, self.reference)

    @property
    def ddf(self) -> sitk.Image:
        """The displacement field on the image's grid: vector image, 32-bit, millimeters, LPS."""
        vectors = field_on_grid(self.field, self.reference, 0, self.reference.GetSize()[-1])
        image = sitk.GetImageFromArray(vectors, isVector=True)
        image.CopyInformation(self.reference)
        return image

    def warp(self, image: sitk.Image) -> sitk.Image:
        """Deform an image, with linear interpolation.

        Args:
            image: the original, or another image of the same anatomy in the same physical space.

        Returns:
            The deformed image on the grid of ``reference``.
        """
        return warp_image(image, self.reference, self.grid_transform)

    def warp_label(self, label: sitk.Image) -> sitk.Image:
        """Deform a label map of the original: no new label values appear, and thin structures are kept.

        Returns:
            The deformed label map on the grid of ``reference``.

        Raises:
            ImageError: it is not a label map, has another dimension, or overlaps the image too little.
        """
        return warp_label(fit_label(label, self.reference), self.reference, self.grid_transform)

    def warp_together(
        self, images: Sequence[sitk.Image], label: sitk.Image | None
    ) -> tuple[list[sitk.Image], sitk.Image | None]:
        """Do the same as :meth:`warp` for each image and :meth:`warp_label`, in less time."""
        fitted = None if label is None else fit_label(label, self.reference)
        return warp_together(images, fitted, self.reference, self.grid_transform)


def displacement_transform(field: sitk.Image) -> sitk.DisplacementFieldTransform:
    """Convert a displacement field to a transform; of a copy, because SimpleITK takes the voxels out of its input."""
    return sitk.DisplacementFieldTransform(sitk.Image(field))


def continued_transform(field: sitk.Image) -> sitk.CompositeTransform | None:
    """Convert a field that is affine on its border to a transform that continues it.

    Returns:
        A displacement field that is zero on its border, and then the affine map; ``None`` if the field itself is zero
        there, or not affine.
    """
    grid = FieldGrid.of(field)
    outside = grid.border_map()
    if outside is None or outside.moves_nothing:
        return None
    within = sitk.DisplacementFieldTransform(grid.without(outside).image())
    return sitk.CompositeTransform([outside.transform(), within])
