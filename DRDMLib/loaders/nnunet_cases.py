"""Deform nnU-Net's preprocessed cases by fields of a bank, patch by patch.

nnU-Net transposes a case, crops it to what is not zero, and resamples it, before it cuts patches. A field of a bank is
in world coordinates, so it can be read on that grid. A deformed case is computed only where a patch is cut, from the
part of the stored case that the patch reads.

This module does not need nnU-Net. All objects can be pickled, so that worker processes may be spawned.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F

from ..errors import SettingError
from ..io.files import file_name, listed
from ..spatial.label_vote import count_votes, vote
from .bank import FieldBank
from .world import WorldField, displacement_on

# What nnU-Net puts beyond the border of a patch: the mean intensity, and the label of voxels outside.
_NO_IMAGE, _NO_LABEL = 0.0, -1
# Voxels around a point that the vote about its label reads.
_VOTE_REACH = 3
# Newton's method at a point: number of steps, their length, and the error that is good enough, in voxels.
_INVERSE_STEPS, _LONGEST_STEP, _EXACT = 20, 3.0, 0.1


@dataclass(frozen=True)
class PreprocessedGrid:
    """Where the voxels of a preprocessed case lie.

    Attributes:
        affine: (4, 4), index in the preprocessed array to RAS millimeters.
        shape: of the preprocessed array, without channels.
        removed: for each axis, how many (preprocessed) voxels the crop has removed before and after it.
        original: affine (4, 4) of the image as nnU-Net has read it, with axes in the order (X, Y, Z); ``None`` if it is
            not known.
        original_shape: (X, Y, Z) of that image.
    """

    affine: np.ndarray
    shape: tuple[int, ...]
    removed: tuple[tuple[float, float], ...]
    original: np.ndarray | None
    original_shape: tuple[int, ...]

    @staticmethod
    def of(
        properties: Mapping[str, Any], shape: Sequence[int], transpose: Sequence[int], file_affine: np.ndarray
    ) -> PreprocessedGrid:
        """Compute the grid of a case.

        Args:
            properties: those that nnU-Net stores with the case.
            shape: of the preprocessed array, without channels.
            transpose: ``transpose_forward`` of the plans.
            file_affine: (4, 4), used if the properties have no position (as for PNG files).
        """
        before = [0, 0, 0]
        to_voxel = np.zeros((4, 4))
        to_voxel[3, 3] = 1
        removed = []
        for axis, side in enumerate(shape):
            # nnU-Net's arrays have the axes (Z, Y, X).
            voxel_axis = 2 - transpose[axis]
            low, high = properties["bbox_used_for_cropping"][axis]
            whole = properties["shape_before_cropping"][axis]
            step = (high - low) / side
            # Voxels are resampled by their faces, not by their centers.
            to_voxel[voxel_axis, axis] = step
            to_voxel[voxel_axis, 3] = low + (step - 1) / 2
            before[voxel_axis] = int(whole)
            removed.append((float(low / step), float((whole - high) / step)))
        original = _affine_as_read(properties)
        affine = (file_affine if original is None else original) @ to_voxel
        return PreprocessedGrid(affine, tuple(int(n) for n in shape), tuple(removed), original, tuple(before))


def _affine_as_read(properties: Mapping[str, Any]) -> np.ndarray | None:
    """Return the affine (4, 4), (X, Y, Z) to RAS millimeters, of an image as nnU-Net's reader saw it, if known."""
    stuff = properties.get("sitk_stuff")
    if stuff is not None:
        d = len(stuff["spacing"])
        affine = np.eye(4)
        affine[:d, :d] = np.asarray(stuff["direction"], float).reshape(d, d) * np.asarray(stuff["spacing"], float)
        affine[:d, 3] = stuff["origin"]
        affine[:2] *= -1
        return affine
    stuff = properties.get("nibabel_stuff")
    if stuff is not None:
        return np.asarray(stuff.get("reoriented_affine", stuff["original_affine"]), np.float64)
    return None


class CaseDeformation:
    """One field, read on the grid of a preprocessed case.

    Where the crop to what is not zero has removed something, the grid of the deformed case reaches farther, so that
    tissue that moves out of the crop is not cut off.

    Attributes:
        shape: of the deformed case.
        start: index in the deformed case of the first voxel of the undeformed case, along each axis.
    """

    def __init__(self, field: WorldField, grid: PreprocessedGrid) -> None:
        self.field, self.grid = field, grid
        to_index = torch.as_tensor(np.linalg.inv(grid.affine[:3, :3]), dtype=torch.float32)
        farthest = (to_index @ field.vectors.to(torch.float32).flatten(1)).abs().amax(dim=1).tolist()
        more = [[int(min(n, np.ceil(far))) for n in both] for both, far in zip(grid.removed, farthest, strict=True)]
        self.start = tuple(before for before, _ in more)
        self.shape = tuple(n + sum(both) for n, both in zip(grid.shape, more, strict=True))
        self._last: tuple[Any, tuple[np.ndarray, np.ndarray]] | None = None

    def displacement(self, first: Sequence[int], shape: Sequence[int]) -> np.ndarray:
        """Return the displacement (3, *shape) in voxels of the case; ``first`` is an index of the undeformed case."""
        corner = np.eye(4)
        corner[:3, 3] = first
        displacement: np.ndarray = displacement_on(self.field, self.grid.affine @ corner, tuple(shape)).numpy()
        return displacement

    def positions(self, part: tuple[slice, ...]) -> tuple[np.ndarray, np.ndarray]:
        """Find where the voxels of a part of the deformed case are read in the undeformed case.

        At a face of the image, a mirror image lies outside; at one where the crop has removed something, nothing.

        Args:
            part: slices with a start and a stop, in the deformed case.

        Returns:
            Index along each axis (3, *S), not rounded, inside of the undeformed case; and whether a voxel is read from
            outside of the case, (*S).
        """
        key = tuple((one.start, one.stop) for one in part)
        # Image and label are cut at the same place, one after the other.
        if self._last is None or self._last[0] != key:
            self._last = (key, self._positions(key))
        return self._last[1]

    def _positions(self, part: tuple[tuple[int, int], ...]) -> tuple[np.ndarray, np.ndarray]:
        first = [low - start for (low, _), start in zip(part, self.start, strict=True)]
        shape = tuple(high - low for low, high in part)
        index = self.displacement(first, shape)
        outside = np.zeros(shape, bool)
        for axis, side in enumerate(self.grid.shape):
            one = index[axis]
            one += np.arange(first[axis], first[axis] + shape[axis], dtype=np.float32).reshape(
                [-1 if k == axis else 1 for k in range(3)]
            )
            for removed, beyond, turned in zip(
                self.grid.removed[axis], (one < -0.5, one > side - 0.5), (-1, 2 * side - 1), strict=True
            ):
                if removed > 0:
                    outside |= beyond
                elif beyond.any():
                    one[beyond] = turned - one[beyond]
            np.clip(one, 0, side - 1, out=one)
        return index, outside

    def place_of(self, voxel: Sequence[int]) -> list[int]:
        """Find the voxel of the deformed case that shows a voxel of the undeformed case.

        The field is inverted at this single point by Newton's method; the result is exact to about a voxel.
        """
        target = np.asarray(voxel, np.float64)
        place = best = target
        least = np.inf
        for _ in range(_INVERSE_STEPS):
            # The displacement and its differences along each axis.
            around = self.displacement(place.tolist(), (2, 2, 2)).astype(np.float64)
            here = around[:, 0, 0, 0]
            missing = target - here - place
            if np.abs(missing).max() < least:
                best, least = place, np.abs(missing).max()
            if least < _EXACT:
                break
            slopes = np.stack([around[:, 1, 0, 0], around[:, 0, 1, 0], around[:, 0, 0, 1]], axis=1) - here[:, None]
            step = np.linalg.lstsq(np.eye(3) + slopes, missing, rcond=None)[0]
            place = place + step.clip(-_LONGEST_STEP, _LONGEST_STEP)
        found = np.rint(best).astype(int) + self.start
        return [int(n) for n in np.clip(found, 0, np.asarray(self.shape) - 1)]


class DeformedArray:
    """A stored array of a case that is deformed where it is read.

    It has what nnU-Net uses when it cuts a patch: ``shape`` and slicing.

    Args:
        array: array (C, *S) or (*S) that can be sliced, in memory or on the disk.
        deformation: of the case.
        label: the array holds labels, so that no new values appear.
    """

    def __init__(self, array: Any, deformation: CaseDeformation, *, label: bool) -> None:
        self._array, self._deformation, self._label = array, deformation, label
        self.shape = (*array.shape[:-3], *deformation.shape)
        self.ndim, self.dtype = len(self.shape), array.dtype

    def __getitem__(self, index: Any) -> np.ndarray:
        """Return a part of the deformed array; ``index`` has slices of step 1 for the spatial axes."""
        index = tuple(index) if isinstance(index, tuple | list) else (index,)
        if Ellipsis in index:
            raise SettingError("A deformed case can be cut with plain slices only; use nnU-Net's own data loader.")
        index += (slice(None),) * (self.ndim - len(index))
        lead, part = index[: self.ndim - 3], index[self.ndim - 3 :]
        part = tuple(slice(*one.indices(n)[:2]) for one, n in zip(part, self._deformation.shape, strict=True))
        positions, outside = self._deformation.positions(part)
        read = _read_labels if self._label else _read_image
        result = read(self._array, lead, positions)
        result[..., outside] = _NO_LABEL if self._label else _NO_IMAGE
        return result


def _box(array: Any, lead: tuple[Any, ...], positions: np.ndarray, reach: int) -> tuple[np.ndarray, np.ndarray]:
    """Read the part of an array around positions (3, *S); return it and the positions (3, *S) in it."""
    low = np.floor(positions.reshape(3, -1).min(axis=1)).astype(int) - reach
    high = np.floor(positions.reshape(3, -1).max(axis=1)).astype(int) + 2 + reach
    low, high = np.maximum(low, 0), np.minimum(high, array.shape[-3:])
    within = tuple(slice(int(a), int(b)) for a, b in zip(low, high, strict=True))
    box = np.asarray(array[lead + within])
    return box, positions - low.astype(np.float32).reshape(3, 1, 1, 1)


def _read_image(array: Any, lead: tuple[Any, ...], positions: np.ndarray) -> np.ndarray:
    """Interpolate linearly: (C, *S) or (*S)."""
    if positions[0].size == 0:
        return np.zeros((*array.shape[:-3], *positions.shape[1:]), np.float32)
    box, inside = _box(array, lead, positions, 0)
    sides = np.maximum(np.asarray(box.shape[-3:], np.float32) - 1, 1).reshape(3, 1, 1, 1)
    # grid_sample lists the last axis first.
    grid = torch.from_numpy(np.ascontiguousarray((2 * inside / sides - 1)[::-1].transpose(1, 2, 3, 0)))
    source = torch.from_numpy(np.ascontiguousarray(box, np.float32)).view(1, -1, *box.shape[-3:])
    values = F.grid_sample(source, grid[None], mode="bilinear", padding_mode="border", align_corners=True)
    result: np.ndarray = values.view(*box.shape[:-3], *positions.shape[1:]).numpy()
    return result


def _read_labels(array: Any, lead: tuple[Any, ...], positions: np.ndarray) -> np.ndarray:
    """Let the voxels around each point vote, see :mod:`DRDMLib.spatial.label_vote`: (C, *S) or (*S)."""
    if positions[0].size == 0:
        return np.zeros((*array.shape[:-3], *positions.shape[1:]), array.dtype)
    box, inside = _box(array, lead, positions, _VOTE_REACH)
    points = list(inside.reshape(3, -1))
    channels = np.ascontiguousarray(box).reshape(-1, *box.shape[-3:])
    read = [vote(one.reshape(-1), count_votes(one).reshape(-1), one.shape, points) for one in channels]
    result: np.ndarray = np.stack(read).reshape(*box.shape[:-3], *positions.shape[1:])
    return result


class MovedLocations(Sequence[np.ndarray]):
    """Voxels of a class (N, 4) of a case, moved with its deformation; each is computed when it is asked for.

    nnU-Net centers some patches on one of them.
    """

    def __init__(self, voxels: np.ndarray, deformation: CaseDeformation) -> None:
        self._voxels, self._deformation = voxels, deformation

    def __len__(self) -> int:
        return len(self._voxels)

    def __getitem__(self, number: Any) -> Any:
        """Return one voxel: channel, and index along each axis."""
        voxel = self._voxels[number]
        return np.asarray([voxel[0], *self._deformation.place_of(voxel[1:])])

    def __iter__(self) -> Iterator[np.ndarray]:
        return (self[number] for number in range(len(self)))


class Share(Protocol):
    """The share of cases that are deformed, which the trainer raises while workers read it."""

    value: float


@dataclass(frozen=True)
class CaseFields:
    """The fields of a bank, for the cases of a preprocessed dataset.

    Attributes:
        bank: the fields.
        transpose: ``transpose_forward`` of nnU-Net's plans.
    """

    bank: FieldBank
    transpose: tuple[int, ...]

    @cached_property
    def names(self) -> frozenset[str]:
        """Names of the bank's cases."""
        return frozenset(self.bank.names)

    def has(self, identifier: str) -> bool:
        """Whether the bank has fields for a case of nnU-Net."""
        return file_name(identifier) in self.names

    def grid(self, identifier: str, properties: Mapping[str, Any], shape: Sequence[int]) -> PreprocessedGrid:
        """Return the grid of a preprocessed case; ``shape`` is that of its array, without channels.

        Raises:
            SettingError: the image is of another size than the one that the fields were made for.
        """
        name = file_name(identifier)
        geometry = self.bank.geometry(name)
        grid = PreprocessedGrid.of(properties, shape, self.transpose, geometry.affine)
        if sorted(grid.original_shape) != sorted(geometry.size):
            raise SettingError(
                f"The image of '{identifier}' is not of the size that its fields in '{self.bank.folder}' were made "
                "for; use the bank of this dataset, or make it again with 'drdm nnunet prepare'."
            )
        return grid

    def deformation(self, identifier: str, grid: PreprocessedGrid, seed: int) -> CaseDeformation:
        """Draw a field for a case.

        Raises:
            ImageError: the image is not where the one lies that the fields were made for.
            SettingError, OutputError: see :meth:`DRDMLib.loaders.FieldBank.count`.
        """
        if grid.original is None:
            # Without a position, as in PNG files, the voxels themselves are compared.
            return CaseDeformation(self.bank.field(file_name(identifier), seed), grid)
        image = torch.empty(()).expand(1, *grid.original_shape)
        return CaseDeformation(self.bank.draw(file_name(identifier), image, grid.original, seed), grid)


class DeformedDataset:
    """A dataset of nnU-Net whose cases are deformed with a probability when they are loaded.

    The field is drawn from NumPy's global random numbers, as nnU-Net's patches are.

    Args:
        dataset: of nnU-Net: ``identifiers`` and ``load_case``.
        fields: of the cases.
        share: probability of a deformation; cases without fields stay as they are.
    """

    def __init__(self, dataset: Any, fields: CaseFields, share: Share) -> None:
        self._dataset, self._fields, self._share = dataset, fields, share
        self.identifiers = dataset.identifiers

    def __getattr__(self, name: str) -> Any:
        # Not for private names, which are missing while an object is unpickled.
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._dataset, name)

    def __getitem__(self, identifier: str) -> Any:
        return self.load_case(identifier)

    def check(self) -> list[str]:
        """Check that the fields fit the cases, and return the names of the cases without fields.

        Raises:
            SettingError: the bank has fields for none of them, or for images of another size.
            ImageError: an image is not where the one lies that the fields were made for.
            OutputError: a file of the bank is damaged.
        """
        without = [name for name in self.identifiers if not self._fields.has(name)]
        if len(without) == len(self.identifiers):
            raise SettingError(
                f"The bank '{self._fields.bank.folder}' has no fields for the cases of this dataset "
                f"({listed(without)}); make them with 'drdm nnunet prepare'."
            )
        for name in self.identifiers:
            if self._fields.has(name):
                data, *_, properties = self._dataset.load_case(name)
                self._fields.deformation(name, self._fields.grid(name, properties, data.shape[1:]), 0)
        return without

    def load_case(self, identifier: str) -> tuple[Any, Any, Any, dict[str, Any]]:
        """Load a case as nnU-Net does, deformed or not: image, labels, labels of the previous stage, properties."""
        data, seg, previous, properties = self._dataset.load_case(identifier)
        if not self._fields.has(identifier) or np.random.uniform() >= self._share.value:  # noqa: NPY002
            return data, seg, previous, properties
        grid = self._fields.grid(identifier, properties, data.shape[1:])
        count = self._fields.bank.count(file_name(identifier))
        deformation = self._fields.deformation(identifier, grid, int(np.random.randint(count)))  # noqa: NPY002
        if "class_locations" in properties:
            moved = {key: MovedLocations(voxels, deformation) for key, voxels in properties["class_locations"].items()}
            properties = {**properties, "class_locations": moved}
        return (
            DeformedArray(data, deformation, label=False),
            DeformedArray(seg, deformation, label=True),
            None if previous is None else DeformedArray(previous, deformation, label=True),
            properties,
        )
