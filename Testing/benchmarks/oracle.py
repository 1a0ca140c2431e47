"""The most that shapes can do: a labelled image deformed until its structures have the shapes of another real subject.

No generator has this knowledge. A network that is trained on such copies sees the shapes of all subjects, but only the
grey values of the few; what it still lacks to a network trained on all subjects, no deformation can give.
"""

from __future__ import annotations

import numpy as np
import SimpleITK as sitk
from slices import Pair

# Distances beyond this many millimetres from a border say nothing.
_REACH = 6.0
_ROUNDS = 60
_SMOOTHING = 1.0


class Oracle:
    """Gives copies the shapes of subjects of a pool, drawn at random."""

    def __init__(self, pool: list[list[Pair]]) -> None:
        self.pool = pool

    def field(self, pair: Pair, place: int, seed: int) -> np.ndarray:
        """For the pair at ``place`` among its subject's (slice and phase): the shapes of another's at that place."""
        with_structures = [p for p in (subject[place] for subject in self.pool) if _array(p[1]).any()]
        if not _array(pair[1]).any():
            return np.zeros((*pair[0].GetSize()[::-1], pair[0].GetDimension()))
        return shape_field(pair, with_structures[np.random.default_rng(seed).integers(len(with_structures))])


def shape_field(one: Pair, other: Pair) -> np.ndarray:
    """What deforms ``one`` so that its structures look like those of ``other``: (*S reversed, d) mm, on its own grid.

    An affine map, then demons, both on the distances to the structures' borders; where the other lies in space does not
    count.
    """
    label, target = one[1], sitk.Image(other[1])
    ours, theirs = _middle(label), _middle(target)
    target.SetOrigin((np.asarray(target.GetOrigin()) + ours - theirs).tolist())
    values = sorted({int(v) for image in (label, target) for v in np.unique(_array(image)) if v})
    outside = _REACH * sum(range(1, len(values) + 2))
    moving = _borders(label, values)
    fixed = sitk.Resample(_borders(target, values), label, sitk.Transform(), sitk.sitkLinear, outside)

    affine = sitk.AffineTransform(label.GetDimension())
    affine.SetCenter(ours.tolist())
    method = sitk.ImageRegistrationMethod()
    method.SetMetricAsMeanSquares()
    method.SetMetricSamplingStrategy(method.REGULAR)
    method.SetMetricSamplingPercentage(0.2)
    method.SetInterpolator(sitk.sitkLinear)
    method.SetInitialTransform(affine, inPlace=True)
    method.SetOptimizerAsRegularStepGradientDescent(0.5, 1e-3, 60)
    method.SetOptimizerScalesFromPhysicalShift()
    method.Execute(fixed, moving)

    demons = sitk.FastSymmetricForcesDemonsRegistrationFilter()
    demons.SetNumberOfIterations(_ROUNDS)
    demons.SetStandardDeviations(_SMOOTHING)
    bent = demons.Execute(fixed, sitk.Resample(moving, label, affine, sitk.sitkLinear, outside))
    filled = sitk.TransformToDisplacementFieldFilter()
    filled.SetReferenceImage(label)
    return sitk.GetArrayFromImage(
        filled.Execute(sitk.CompositeTransform([affine, sitk.DisplacementFieldTransform(bent)]))
    )


def _borders(label: sitk.Image, values: list[int]) -> sitk.Image:
    """Signed distances to the borders of the whole and of each structure, cut off, in one image."""
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


def _middle(label: sitk.Image) -> np.ndarray:
    """The centre of mass of all structures, LPS mm."""
    places = np.argwhere(_array(label) > 0).mean(0)[::-1]
    return np.asarray(label.TransformContinuousIndexToPhysicalPoint(places.tolist()))


def _array(image: sitk.Image) -> np.ndarray:
    return sitk.GetArrayFromImage(image)
