"""Deform a labeled image until its structures have the shapes of another real subject.

No generator has this knowledge. A network trained on such copies sees the shapes of all subjects, but the intensities
of only a few; no deformation can give it what it then still lacks to a network trained on all subjects.
"""

from __future__ import annotations

import numpy as np
import SimpleITK as sitk

from benchmarks.displacement import sample_transform
from benchmarks.labeled_views import LabeledImage

# Distances to a border are cut off here, mm.
_REACH = 6.0
_ITERATIONS = 60
_SMOOTHING = 1.0


class Oracle:
    """Give images the shapes of subjects of a pool, drawn at random."""

    def __init__(self, pool: list[list[LabeledImage]]) -> None:
        self.pool = pool

    def field(self, pair: LabeledImage, index: int, seed: int) -> np.ndarray:
        """Return the field to the shapes of another subject's image with the same ``index`` (slice and phase), mm."""
        with_structures = [p for p in (subject[index] for subject in self.pool) if _array(p.label).any()]
        if not _array(pair.label).any():
            return np.zeros((*pair.image.GetSize()[::-1], pair.image.GetDimension()))
        return shape_field(pair, with_structures[np.random.default_rng(seed).integers(len(with_structures))])


def shape_field(one: LabeledImage, other: LabeledImage) -> np.ndarray:
    """Return the field that gives the structures of ``one`` the shapes of ``other``, on the grid of ``one``, mm.

    Registers the distances to the structures' borders, by an affine map and then by demons. The position of the other
    in space does not count.
    """
    label, target = one.label, sitk.Image(other.label)
    center = _center(label)
    target.SetOrigin((np.asarray(target.GetOrigin()) + center - _center(target)).tolist())
    values = sorted({int(v) for image in (label, target) for v in np.unique(_array(image)) if v})
    outside = _REACH * sum(range(1, len(values) + 2))
    moving = _borders(label, values)
    fixed = sitk.Resample(_borders(target, values), label, sitk.Transform(), sitk.sitkLinear, outside)

    affine = sitk.AffineTransform(label.GetDimension())
    affine.SetCenter(center.tolist())
    method = sitk.ImageRegistrationMethod()
    method.SetMetricAsMeanSquares()
    method.SetMetricSamplingStrategy(method.REGULAR)
    # Without a seed SimpleITK takes the clock, and no field could be made twice.
    method.SetMetricSamplingPercentage(0.2, seed=1)
    method.SetInterpolator(sitk.sitkLinear)
    method.SetInitialTransform(affine, inPlace=True)
    method.SetOptimizerAsRegularStepGradientDescent(0.5, 1e-3, 60)
    method.SetOptimizerScalesFromPhysicalShift()
    method.Execute(fixed, moving)

    demons = sitk.FastSymmetricForcesDemonsRegistrationFilter()
    demons.SetNumberOfIterations(_ITERATIONS)
    demons.SetStandardDeviations(_SMOOTHING)
    bent = demons.Execute(fixed, sitk.Resample(moving, label, affine, sitk.sitkLinear, outside))
    both = sitk.CompositeTransform([affine, sitk.DisplacementFieldTransform(bent)])
    return sitk.GetArrayFromImage(sample_transform(both, label))


def _borders(label: sitk.Image, values: list[int]) -> sitk.Image:
    """Add the signed distances to the borders of the whole and of each structure, cut off, in one image."""
    total = sitk.Image(label.GetSize(), sitk.sitkFloat32)
    total.CopyInformation(label)
    # Different weights, so that no structure can stand for another.
    for weight, value in enumerate([0, *values], start=1):
        mask = label == value if value else label > 0
        distance = total * 0 + _REACH
        if _array(mask).any():
            distance = sitk.SignedMaurerDistanceMap(mask, squaredDistance=False, useImageSpacing=True)
        total = total + weight * sitk.Clamp(distance, sitk.sitkFloat32, -_REACH, _REACH)
    return total


def _center(label: sitk.Image) -> np.ndarray:
    """Return the center of mass of all structures, LPS mm."""
    index = np.argwhere(_array(label) > 0).mean(0)[::-1]
    return np.asarray(label.TransformContinuousIndexToPhysicalPoint(index.tolist()))


def _array(image: sitk.Image) -> np.ndarray:
    return sitk.GetArrayFromImage(image)
