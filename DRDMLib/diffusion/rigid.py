"""Rigid parts of an image in a deformation: bones become a chain that bends gently, and a table shifts as a whole.

A field is changed near the rigid parts only, in three steps. It is read at points of bone. Their displacements are
changed so that neighbors keep their distances and angles, as rigid as possible (Sorkine and Alexa 2007), while all
together still go where the field moves them. Then the nodes around each point get its rigid motion, which fades into
the field farther away. Where bone reaches a plane that is not crossed, it does not cross it either.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage, sparse
from scipy.sparse.linalg import splu
from scipy.spatial import cKDTree
from torch import Tensor

from .slip import SlipPlanes

# Side of the cells in which points are merged, millimeters.
_CELL = 8.0
# Bone follows the field as far as it varies over longer distances than this, millimeters.
_LENGTH = 200.0
# Nodes that are closer to bone than this many steps of the grid move with it; over this distance farther away, in
# millimeters, its motion fades into the field.
_AROUND, _FADE = 1.25, 40.0
# Weight of a place that is held; that of a connection between cells is about 0.03. Per square millimeter.
_HELD = 1.0
# Rounds in which rotations and places are found in turn; rounds in which a point is found in the new image.
_ROUNDS, _SEARCH = 5, 12
# Number of points that a node follows, the nearest ones.
_NEAREST = 12
# Weight of the last rotation found, as a part of a neighborhood's spread: it keeps thin rods from turning about their
# own axis.
_ISOTROPIC = 1e-3


class RigidParts:
    """Rigid parts of an image, on the grid of its fields. A 2D image is one layer of a volume.

    Args:
        bone: points of bone (K, d), K > 0, voxels, in the order of a tensor's spatial axes.
        step: distance between voxels along each axis, millimeters.
        planes: planes that are not crossed.
        carried: points of what only shifts as a whole, such as a table (M, d), voxels.
        held: which points of bone do not move at all (K,).
        spacing: largest distance between neighboring points, millimeters.
    """

    def __init__(
        self,
        bone: np.ndarray,
        step: tuple[float, ...],
        planes: SlipPlanes,
        *,
        carried: np.ndarray | None = None,
        held: np.ndarray | None = None,
        spacing: float = 0.0,
    ) -> None:
        if len(step) == 2:
            step, planes = (max(step), *step), SlipPlanes(((), *planes.at), planes.size)
            bone = np.pad(bone, ((0, 0), (1, 0)))
            carried = None if carried is None else np.pad(carried, ((0, 0), (1, 0)))
        self._step, self._planes = np.asarray(step, float), planes
        self._cell = max(_CELL, 1.01 * spacing)
        self._around = max(_AROUND * float(self._step.max()), self._cell)
        cells, cell = np.unique(self._cells(bone), axis=0, return_inverse=True)
        self._points, self._masses = self._means(bone, cell.ravel(), len(cells))
        still = np.bincount(cell.ravel(), np.zeros(len(bone)) if held is None else held, len(cells)) > 0
        self._connect(cells)
        self._follow = self._masses / _LENGTH**2
        self._fixed = [still | self._near_planes(self._points, axis) for axis in range(3)]
        degrees = sparse.diags(np.asarray(self._edges.sum(axis=1)).ravel())
        self._solvers = []
        for fixed in self._fixed:
            matrix = (degrees - self._edges + sparse.diags(np.where(fixed, _HELD, self._follow))).tocsc()
            # Fast for symmetric matrices, which need no pivoting here.
            self._solvers.append(
                splu(matrix, permc_spec="MMD_AT_PLUS_A", diag_pivot_thresh=0.0, options={"SymmetricMode": True})
            )
        carried = np.zeros((0, 3)) if carried is None else carried
        cells, cell = np.unique(self._cells(carried), axis=0, return_inverse=True)
        self._carried, self._carried_masses = self._means(carried, cell.ravel(), len(cells))

    def hold(self, field: Tensor) -> Tensor:
        """Make the motion of the rigid parts rigid.

        Args:
            field: (N, d, *S), fraction of the side.

        Returns:
            (N, d, *S).
        """
        if field.shape[1] == 2:
            return self.hold(F.pad(field, (0, 0, 0, 0, 1, 0))[:, :, None])[:, 1:, 0]
        sides = np.reshape(self._step * np.asarray(field.shape[2:]), (3, 1, 1, 1))
        fields = field.detach().cpu().numpy().astype(np.float64)
        held = np.stack([self._hold(one * sides) / sides for one in fields])
        return self._planes.hold(torch.from_numpy(held).to(field))

    def _hold(self, field: np.ndarray) -> np.ndarray:
        """Do it for one field: (3, *S), millimeters along the axes of the grid."""
        bone, rotations = self._as_rigid_as_possible(self._placed(field))
        points = np.concatenate([self._points, self._carried])
        places = np.concatenate([bone, self._carried + self._shift(field)])
        rotations = np.concatenate([rotations, np.tile(np.eye(3), (len(self._carried), 1, 1))])
        masses = np.concatenate([self._masses, self._carried_masses])
        return self._spread(field, points, places, rotations, masses)

    def _cells(self, points: np.ndarray) -> np.ndarray:
        cells: np.ndarray = np.floor(points * self._step / self._cell).astype(np.int64)
        return cells

    def _means(self, points: np.ndarray, cell: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the mean of the points in each cell (count, 3), millimeters, and their number over its mean."""
        numbers = np.bincount(cell, minlength=count).astype(float)
        sums = [np.bincount(cell, points[:, axis] * self._step[axis], count) for axis in range(3)]
        return np.stack(sums, axis=1) / numbers[:, None], numbers / numbers.mean() if count else numbers

    def _near_planes(self, points: np.ndarray, axis: int) -> np.ndarray:
        near = np.zeros(len(points), bool)
        for plane in self._planes.at[axis]:
            near |= np.abs(points[:, axis] - plane * self._step[axis]) < max(self._step[axis], self._cell)
        return near

    def _connect(self, cells: np.ndarray) -> None:
        """Connect cells that touch (edges), and those that touch the same one (windows, in which rotations are found).

        Edges are scaled so that the energy of a strain is its square, whatever the number of neighbors.
        """
        pairs = cKDTree(cells).query_pairs(1.8, output_type="ndarray")
        touching = sparse.coo_matrix((np.ones(len(pairs)), pairs.T), (len(cells), len(cells))).tocsr()
        touching = touching + touching.T + sparse.identity(len(cells))
        near, far = touching.tocoo(), (touching @ touching).tocoo()
        weight, square = self._weights(near)
        weight *= 3 * len(cells) / max(float((weight * square).sum()), 1e-9)
        self._edges = sparse.csr_matrix((weight, (near.row, near.col)), near.shape)
        weight, square = self._weights(far)
        weight *= np.exp(-square / (2 * self._cell**2))
        self._windows = sparse.csr_matrix((weight, (far.row, far.col)), far.shape)

    def _weights(self, pairs: sparse.coo_matrix) -> tuple[np.ndarray, np.ndarray]:
        """Return the weight of each pair of cells, 0 for a cell with itself, and the square of its length."""
        square = ((self._points[pairs.row] - self._points[pairs.col]) ** 2).sum(axis=1)
        return np.sqrt(self._masses[pairs.row] * self._masses[pairs.col]) * (pairs.row != pairs.col), square

    def _placed(self, field: np.ndarray) -> np.ndarray:
        """Find the places of the points in the new image: (C, 3), millimeters."""
        places = self._points
        for _ in range(_SEARCH):
            places = self._points - self._sampled(field, places)
        return places

    def _sampled(self, field: np.ndarray, places: np.ndarray) -> np.ndarray:
        at = (places / self._step).T
        return np.stack([ndimage.map_coordinates(one, at, order=1, mode="nearest") for one in field], axis=1)

    def _shift(self, field: np.ndarray) -> np.ndarray:
        """Return the mean motion of what is carried, millimeters; none along an axis with a plane that it touches."""
        if not len(self._carried):
            return np.zeros(3)
        shift = -np.average(self._sampled(field, self._carried), axis=0, weights=self._carried_masses)
        return np.where([self._near_planes(self._carried, axis).any() for axis in range(3)], 0.0, shift)

    def _as_rigid_as_possible(self, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Change the places of the points in the new image: (C, 3), millimeters, and the rotation there (C, 3, 3)."""
        wanted, rotations = places, np.tile(np.eye(3), (len(places), 1, 1))
        for _ in range(_ROUNDS):
            rotations = self._rotations(places, rotations)
            turned = self._turned(rotations)
            places = np.empty_like(wanted)
            for axis, (solver, fixed) in enumerate(zip(self._solvers, self._fixed, strict=True)):
                target = np.where(fixed, _HELD * self._points[:, axis], self._follow * wanted[:, axis])
                places[:, axis] = solver.solve(turned[:, axis] + target)
        return places, self._rotations(places, rotations)

    def _rotations(self, places: np.ndarray, last: np.ndarray) -> np.ndarray:
        """Find the rotation of the window around each point; that of a rod about its own axis is as in ``last``."""
        points, windows = self._points, self._windows
        total = np.asarray(windows.sum(axis=1)).ravel()[:, None, None]

        def outer(a: np.ndarray, b: np.ndarray) -> np.ndarray:
            result: np.ndarray = a[:, :, None] * b[:, None, :]
            return result

        products = (windows @ outer(places, points).reshape(-1, 9)).reshape(-1, 3, 3)
        spread = products - outer(places, windows @ points) - outer(windows @ places, points)
        spread += total * outer(places, points)
        spread += _ISOTROPIC * np.trace(spread, axis1=1, axis2=2)[:, None, None] * last
        u, _, v = np.linalg.svd(spread)
        u[:, :, 2] *= np.sign(np.linalg.det(u @ v))[:, None]
        result: np.ndarray = u @ v
        return result

    def _turned(self, rotations: np.ndarray) -> np.ndarray:
        """Return the sum over the edges of each point, turned by the mean rotation of both ends."""
        points, edges = self._points, self._edges
        total = np.asarray(edges.sum(axis=1)).ravel()[:, None]

        def turned(matrices: np.ndarray, vectors: np.ndarray) -> np.ndarray:
            result: np.ndarray = np.einsum("nij,nj->ni", matrices, vectors)
            return result

        around = (edges @ rotations.reshape(-1, 9)).reshape(-1, 3, 3)
        own = total * turned(rotations, points) - turned(rotations, edges @ points)
        result: np.ndarray = 0.5 * (own + turned(around, points) - edges @ turned(rotations, points))
        return result

    def _spread(
        self, field: np.ndarray, points: np.ndarray, places: np.ndarray, rotations: np.ndarray, masses: np.ndarray
    ) -> np.ndarray:
        """Give the nodes around each point its motion, and fade it into the field."""
        shape = field.shape[1:]
        nodes = (
            np.stack(np.meshgrid(*[np.arange(n) for n in shape], indexing="ij"), axis=-1).reshape(-1, 3) * self._step
        )
        count = min(_NEAREST, len(points))
        tree = cKDTree(places)
        near = np.flatnonzero(np.isfinite(tree.query(nodes, distance_upper_bound=self._around + _FADE)[0]))
        nodes = nodes[near]
        distances, nearest = tree.query(nodes, k=np.arange(1, count + 1))
        weights = np.exp((distances[:, :1] ** 2 - distances**2) / (2 * self._around**2)) * masses[nearest]
        weights /= weights.sum(axis=1, keepdims=True)
        source = np.zeros_like(nodes)
        for k in range(count):
            own = nearest[:, k]
            back = np.einsum("nji,nj->ni", rotations[own], nodes - places[own])
            source += weights[:, k, None] * (points[own] + back)
        fade = np.clip((distances[:, 0] - self._around) / _FADE, 0.0, 1.0)
        share = 1 - fade**2 * (3 - 2 * fade)
        result: np.ndarray = field.reshape(3, -1).copy()
        result[:, near] += share * ((source - nodes).T - result[:, near])
        return result.reshape(field.shape)
