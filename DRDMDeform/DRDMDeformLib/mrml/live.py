"""A preview that follows the slider: a transform that is never saved, hardened, exported or chosen.

Fields of one seed at a few levels are blended linearly. The result is neither computed for its level nor proven, so its
node has the attribute ``PREVIEW_ATTRIBUTE`` and a name that says so, and everything else in this package refuses it.
"""

from __future__ import annotations

import bisect
from typing import Any

import numpy as np
import slicer

from ..deferred import sitk
from .errors import SceneError, nameOf
from .errors import tr as _
from .grids import FLIP, Grid
from .hierarchy import PREVIEW_ATTRIBUTE, parentWithoutPreview, removeNode, setParent
from .transforms import gridTransform, thickened
from .volumes import parentMatrix


class Ladder:
    """Fields of one seed at several levels, and blends between them.

    Args:
        parent: the parent transform of the volume; ``None`` if there is none.
    """

    def __init__(self, parent: Any = None) -> None:
        self._parent = parent
        self._fields: dict[int, np.ndarray] = {}
        self._grid: Grid | None = None

    @property
    def levels(self) -> list[int]:
        """The levels whose fields are there, in increasing order."""
        return sorted(self._fields)

    def add(self, level: int, field: sitk.Image) -> None:
        """Add a field: LPS millimeters in world space; all are on the same grid."""
        if field.GetDimension() == 2:
            field = thickened(field)
        world, vectors = Grid.fromImage(field), sitk.GetArrayViewFromImage(field) * FLIP
        self._grid = world
        matrix = parentMatrix(self._parent)
        if self._parent is not None and matrix is not None:
            inverse = np.linalg.inv(matrix)
            self._grid = Grid.fromMatrix(world.size, inverse @ world.matrix)
            vectors = vectors @ inverse[:3, :3].T
        self._fields[level] = vectors.astype(np.float32)

    def blend(self, level: float) -> tuple[Grid, np.ndarray] | None:
        """The blended field at a level: its grid, and the vectors (k, j, i, 3), RAS millimeters.

        At level 0 nothing moves. ``None`` if there is no field yet. Above the highest level that is there, the field of
        that level is continued in proportion.
        """
        if self._grid is None:
            return None
        levels = self.levels
        above = bisect.bisect_left(levels, level)
        if above == len(levels):
            highest = levels[-1]
            return self._grid, self._fields[highest] * np.float32(level / highest)
        upper, lower = levels[above], levels[above - 1] if above else 0
        share = np.float32((level - lower) / (upper - lower))
        vectors = self._fields[upper] * share
        if lower:
            vectors += self._fields[lower] * (1 - share)
        return self._grid, vectors


def _keepsShapes(parent: Any) -> bool:
    """Whether a parent transform only moves, turns, mirrors and scales everything alike."""
    matrix = parentMatrix(parent)
    if matrix is None:
        return False
    product = matrix[:3, :3].T @ matrix[:3, :3]
    return bool(np.allclose(product, product[0, 0] * np.eye(3), atol=1e-4 * abs(product[0, 0])))


class LivePreview:
    """The transform node of a preview, and the nodes that were put under it.

    Args:
        scene: where the node is added.
        volumeNode: the volume.
        nodes: the volume, and what moves with it; each is put back by :meth:`end`.

    Raises:
        SceneError: the volume is under a transform that bends or stretches it.
    """

    def __init__(self, scene: Any, volumeNode: Any, nodes: list[Any]) -> None:
        parent = parentWithoutPreview(volumeNode)
        if not _keepsShapes(parent):
            raise SceneError(
                _("There is no preview under the transform '{name}', which bends or stretches; press Deform.").format(
                    name=nameOf(parent)
                )
            )
        self.ladder = Ladder(parent)
        self._scene = scene
        self._nodes = nodes
        self._before: list[tuple[Any, Any]] = []
        node = slicer.vtkMRMLGridTransformNode()
        text = _("{name} preview, not proven").format(name=nameOf(volumeNode))
        node.SetName(scene.GenerateUniqueName(text))
        node.SetAttribute(PREVIEW_ATTRIBUTE, "not proven")
        node.SaveWithSceneOff()
        node.HideFromEditorsOn()
        node.SetSelectable(False)
        # Its ID is one that no other node can have: a scene that a script saves now refers to nothing.
        node.SetSingletonTag("DRDMPreview")
        scene.AddNode(node)
        setParent(node, parent)
        self.node = node

    def show(self, level: float) -> bool:
        """Show the blended field of a level; return whether there is one yet."""
        blended = self.ladder.blend(level)
        if blended is None or not self._scene.IsNodePresent(self.node):
            return False
        self.node.SetAndObserveTransformFromParent(gridTransform(*blended))
        if not self._before:
            # Only now, so that the views do not show the original in between.
            self._before = [(node, node.GetParentTransformNode()) for node in self._nodes]
            for node in self._nodes:
                setParent(node, self.node)
        return True

    def end(self) -> None:
        """Put the nodes back under the transforms that they had, and remove the node."""
        for node, parent in self._before:
            if self._scene.IsNodePresent(node) and node.GetParentTransformNode() is self.node:
                present = parent is not None and self._scene.IsNodePresent(parent)
                setParent(node, parent if present else self.node.GetParentTransformNode())
        self._before = []
        removeNode(self.node)
