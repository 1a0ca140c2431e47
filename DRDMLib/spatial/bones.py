"""Bone in CT images, found by its Hounsfield values, and how rigid it stays when it is moved."""

from __future__ import annotations

import hashlib
from typing import NamedTuple

import numpy as np
import SimpleITK as sitk
from scipy import ndimage
from scipy.sparse import coo_matrix, csgraph
from scipy.spatial import cKDTree

from ..runtime.remembered import Remembered
from .coordinates import to_points

# Hounsfield units. Contrast agent can be above the least value of bone, too.
_BONE, _METAL, _BODY = 300, 2500, -300
# Blood with contrast agent is even: over 9 mm its values vary less than those of bone, though not less than the noise
# of any scanner, and they are not higher than this. Hounsfield units; and how far it reaches beyond its core, steps.
_NOISE, _UNEVEN, _CONTRAST, _RIM = 2, 60, 900, 3
# Air around a body: an image without it, or with lower values than any CT has, is not taken for CT.
_AIR, _LOWEST = -900, -5000
_LEAST_AIR = 0.02
# Resolution at which bone is found; half the thickness of bridges to a table that are cut; half the width of gaps in
# bone that are closed. Millimeters.
_STEP, _BRIDGE, _GAP = 3.0, 6.0, 3.0
_LEAST_VOLUME = 1000.0
# A single slice counts as a layer this thick, millimeters, so that a section of a rib is no speck.
_LAYER = 10.0
# Shares of a component between parts of the body, and next to it, from which on it belongs to the body.
_WITHIN, _SKIN = 0.1, 0.5
# Radius of the balls in which bone is compared with a rigid motion, millimeters, and how many are looked at.
_RADIUS, _BALLS = 20.0, 200
_LEAST_POINTS = 20


class Skeleton(NamedTuple):
    """What is rigid in a CT; points lie on a grid of about 3 mm.

    Attributes:
        bone: points of bone (K, d), LPS millimeters.
        table: points of the table and other thin things around the body (M, d), LPS millimeters.
        spacing: largest distance between neighboring points along an axis of the image, millimeters.
    """

    bone: np.ndarray
    table: np.ndarray
    spacing: float


class Rigidity(NamedTuple):
    """How far bone deviates from rigid motions, each fitted to the connected bone in a ball of 40 mm diameter.

    Attributes:
        mean_mm: mean deviation over all points of all balls.
        p95_mm: 95th percentile of it.
        max_mm: the largest deviation in a ball, 95th percentile over the balls.
        degrees: mean angle of the rotations.
    """

    mean_mm: float
    p95_mm: float
    max_mm: float
    degrees: float

    def to_dict(self) -> dict[str, float]:
        """Return rounded values for a report."""
        return {name: round(value, 3) for name, value in self._asdict().items()}


def is_ct(image: sitk.Image) -> bool:
    """Whether the values of an image look like Hounsfield units: air, and something denser than soft tissue."""
    values = sitk.GetArrayViewFromImage(image)[tuple(slice(None, None, max(1, n // 64)) for n in image.GetSize()[::-1])]
    low, high = float(values.min()), float(values.max())
    return _LOWEST < low <= _AIR and high > _BONE and float((values <= _AIR).mean()) > _LEAST_AIR


def bone_points(image: sitk.Image) -> np.ndarray:
    """Find bone in a CT: above 300 HU, closed, without the table, metal, and large vessels with contrast agent.

    Args:
        image: 2D or 3D, Hounsfield units.

    Returns:
        (K, d), LPS millimeters, on a grid of about 3 mm.
    """
    return find_skeleton(image).bone


# The last images: a run makes several samples of each, and so reads each once.
_FOUND = Remembered[Skeleton](4)


def find_skeleton(image: sitk.Image) -> Skeleton:
    """Find bone and the table in a CT; it is remembered for the last few images.

    Args:
        image: 2D or 3D, Hounsfield units.
    """
    factors = [max(1, min(n, round(_STEP / s))) for n, s in zip(image.GetSize(), image.GetSpacing(), strict=True)]
    small = sitk.Shrink(image, factors)
    digest = hashlib.blake2b(sitk.GetArrayViewFromImage(small).tobytes()).digest()
    key = (digest, small.GetSize(), small.GetSpacing(), small.GetOrigin(), small.GetDirection())
    return _FOUND.of(key, lambda: _find_skeleton(small))


def _find_skeleton(small: sitk.Image) -> Skeleton:
    values = sitk.GetArrayFromImage(small)
    flat = values.ndim == 2
    values = values[None] if flat else values
    spacing = np.asarray([_LAYER if n == 1 else s for n, s in zip(small.GetSize(), small.GetSpacing(), strict=True)])
    spacing = np.asarray([_LAYER, *spacing[::-1]] if flat else spacing[::-1])
    solid = values > _BODY
    thick = ~_grown(~solid, _BRIDGE, spacing)
    body = _grown(_largest(thick), _BRIDGE, spacing)
    for layer in body:
        # Lungs and bowel are holes in the body.
        layer[...] = ndimage.binary_fill_holes(layer)
    # Arms beside the body are thick; a table is a thin shell.
    table = _beside(_large(solid & ~body & ~_grown(thick, _BRIDGE, spacing), spacing), body, spacing)
    metal = values > _METAL
    bone = (values > _BONE) & body & ~(_grown(metal, 2 * _STEP, spacing) if metal.any() else metal)
    bone &= ~_contrast_agent(values, bone, spacing)
    bone |= ~_grown(~_grown(bone, _GAP, spacing), _GAP, spacing) & body
    points, around = (
        to_points(np.argwhere(mask[0] if flat else mask)[:, ::-1].astype(float), small)
        for mask in (_large(bone, spacing), table)
    )
    return Skeleton(points, around, max(s for n, s in zip(small.GetSize(), small.GetSpacing(), strict=True) if n > 1))


def _beside(mask: np.ndarray, body: np.ndarray, spacing: np.ndarray) -> np.ndarray:
    """Return the connected components beside the body: neither its skin, nor within it as vessels of a lung are.

    Within means between two parts of the body along a line of an axial slice.
    """
    within = np.zeros_like(mask)
    for axis in (1, 2):
        before = np.logical_or.accumulate(body, axis=axis)
        after = np.flip(np.logical_or.accumulate(np.flip(body, axis), axis=axis), axis)
        within |= before & after
    parts, count = ndimage.label(mask, np.ones((3, 3, 3)))
    numbers = np.arange(count + 1)
    beside = ndimage.mean(within, parts, numbers) < _WITHIN
    beside &= ndimage.mean(_grown(body, _BRIDGE, spacing), parts, numbers) < _SKIN
    beside[0] = False
    result: np.ndarray = beside[parts]
    return result


def _large(mask: np.ndarray, spacing: np.ndarray) -> np.ndarray:
    """Return the connected components that are not specks."""
    parts, _ = ndimage.label(mask)
    large = np.bincount(parts.ravel()) * float(np.prod(spacing)) >= _LEAST_VOLUME
    large[0] = False
    result: np.ndarray = large[parts]
    return result


def _contrast_agent(values: np.ndarray, bone: np.ndarray, spacing: np.ndarray) -> np.ndarray:
    """Find large vessels and chambers of the heart with contrast agent among what is bright enough for bone."""
    core: np.ndarray = ndimage.minimum_filter(bone.view(np.uint8), 3) > 0
    if not core.any():
        return core
    bright = values.astype(np.float32)
    mean = ndimage.uniform_filter(bright, 3)
    variance = ndimage.uniform_filter(bright**2, 3) - mean**2
    core = core & (variance > _NOISE**2) & (variance < _UNEVEN**2) & (mean < _CONTRAST)
    core = _large(core, spacing)
    result: np.ndarray = ndimage.binary_dilation(core, np.ones((3, 3, 3)), _RIM, mask=bone & (values < _CONTRAST))
    return result


def rigidity(points: np.ndarray, moved: np.ndarray, *, balls: int = _BALLS) -> Rigidity | None:
    """Measure how far bone deviates from rigid motions.

    A whole spine may bend, so the bone in each of many balls is compared with a rigid motion of its own. Separate bones
    in one ball are separate: only what is connected to the center of the ball counts.

    Args:
        points: bone, (K, d), millimeters.
        moved: where the points are afterwards, (K, d).
        balls: number of balls, whose centers are spread evenly over the points.

    Returns:
        ``None`` if there is no ball with enough bone.
    """
    if len(points) < _LEAST_POINTS:
        return None
    tree = cKDTree(points)
    centers = np.unique(np.linspace(0, len(points) - 1, min(balls, len(points))).astype(int))
    reach = 2.5 * float(np.median(tree.query(points[centers], k=2)[0][:, 1]))
    deviations, degrees = [], []
    for center, inside in zip(centers, tree.query_ball_point(points[centers], _RADIUS), strict=True):
        own = _connected(points, np.asarray(inside), center, reach)
        if len(own) >= _LEAST_POINTS:
            deviation, angle = rigid_fit(points[own], moved[own])
            deviations.append(deviation)
            degrees.append(angle)
    if not deviations:
        return None
    every = np.concatenate(deviations)
    largest = np.percentile([deviation.max() for deviation in deviations], 95)
    return Rigidity(float(every.mean()), float(np.percentile(every, 95)), float(largest), float(np.mean(degrees)))


def _connected(points: np.ndarray, inside: np.ndarray, center: int, reach: float) -> np.ndarray:
    """Return those of the points ``inside`` that are connected to ``center`` by steps of at most ``reach``."""
    pairs = cKDTree(points[inside]).query_pairs(reach, output_type="ndarray")
    graph = coo_matrix((np.ones(len(pairs)), pairs.T), (len(inside), len(inside)))
    _, part = csgraph.connected_components(graph, directed=False)
    own: np.ndarray = inside[part == part[np.flatnonzero(inside == center)[0]]]
    return own


def rigid_fit(points: np.ndarray, moved: np.ndarray) -> tuple[np.ndarray, float]:
    """Fit the rigid motion that moves points best (Kabsch 1976).

    Args:
        points, moved: (K, d).

    Returns:
        Distances of ``moved`` from the rigid motion, (K,), and the angle of its rotation, degrees.
    """
    before, after = points - points.mean(axis=0), moved - moved.mean(axis=0)
    u, _, v = np.linalg.svd(after.T @ before)
    u[:, -1] *= np.sign(np.linalg.det(u @ v))
    rotation = u @ v
    # The trace of a rotation by an angle a is 2 cos a in the plane, and 1 + 2 cos a in space.
    angle = np.degrees(np.arccos(np.clip((np.trace(rotation) - (len(rotation) - 2)) / 2, -1, 1)))
    return np.linalg.norm(after - before @ rotation.T, axis=1), float(angle)


def _grown(mask: np.ndarray, radius: float, spacing: np.ndarray) -> np.ndarray:
    """Dilate a mask by a box of this half width, millimeters; outside the image it is continued."""
    sizes = [2 * round(radius / s) + 1 for s in spacing]
    result: np.ndarray = ndimage.maximum_filter(mask.view(np.uint8), sizes, mode="nearest") > 0
    return result


def _largest(mask: np.ndarray) -> np.ndarray:
    parts, count = ndimage.label(mask)
    result: np.ndarray = parts == 1 + int(np.bincount(parts.ravel())[1:].argmax()) if count else mask
    return result
