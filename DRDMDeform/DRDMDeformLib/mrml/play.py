"""A version played as a sequence: from the original to the version and back, by Slicer's own browser.

Between the two the field is multiplied by a share from 0 to 1. These frames are not proven, so their transform has the
attribute ``PREVIEW_ATTRIBUTE``, as a preview that follows the slider, and nothing of it is saved.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import slicer

from ..deferred import sitk
from .errors import nameOf
from .errors import tr as _
from .grids import FLIP, Grid
from .hierarchy import PREVIEW_ATTRIBUTE, removeNode, setParent
from .sequences import browse
from .transforms import fieldFromTransform, gridTransform

# Frames from the original to the version, and frames a second.
FRAMES = 12
RATE = 10.0
# Finer grids are thinned out: each frame has one.
_MOST_NODES = 150_000


class Playback:
    """A sequence of a version with its browser, and the nodes that were put under its transform.

    Args:
        transformNode: the version.
        nodes: nodes that are under the transform or under its parent; each is put back by :meth:`end`.

    Attributes:
        browser: plays the frames; Slicer's modules can export them as a movie.

    Raises:
        SceneError: the transform is none of this module.
    """

    def __init__(self, transformNode: Any, nodes: list[Any]) -> None:
        scene, parent = transformNode.GetScene(), transformNode.GetParentTransformNode()
        self._scene, self._parent = scene, parent
        grid, vectors = _thinned(fieldFromTransform(transformNode, world=False))
        name = scene.GenerateUniqueName(_("{name} played, not proven").format(name=nameOf(transformNode)))
        self._sequence = slicer.vtkMRMLSequenceNode()
        self._sequence.SetName(f"{name} frames")
        self._sequence.SetIndexType(slicer.vtkMRMLSequenceNode.NumericIndex)
        self._sequence.SetIndexName("frame")
        self._sequence.SetIndexUnit("")
        self._proxy = slicer.vtkMRMLGridTransformNode()
        self._proxy.SetSingletonTag("DRDMPlayed")
        self.browser = slicer.vtkMRMLSequenceBrowserNode()
        self.browser.SetName(name)
        for node in (self._sequence, self._proxy, self.browser):
            node.SetAttribute(PREVIEW_ATTRIBUTE, "not proven")
            node.SaveWithSceneOff()
        self._proxy.HideFromEditorsOn()
        scene.AddNode(self._sequence)
        shares = np.sin(np.linspace(0.0, np.pi, 2 * FRAMES + 1)) ** 2
        for number, share in enumerate(shares.tolist()):
            frame = slicer.vtkMRMLGridTransformNode()
            frame.SetName(f"{name} {number}")
            frame.SetAttribute(PREVIEW_ATTRIBUTE, "not proven")
            frame.SetAndObserveTransformFromParent(gridTransform(grid, vectors * np.float32(share)))
            self._sequence.SetDataNodeAtValue(frame, str(number))
        self._proxy.SetName(name)
        scene.AddNode(self._proxy)
        scene.AddNode(self.browser)
        browse(self.browser, self._sequence, self._proxy)
        setParent(self._proxy, parent)
        self._before = [(node, node.GetParentTransformNode()) for node in nodes]
        for node in nodes:
            setParent(node, self._proxy)
        self.browser.SetPlaybackRateFps(RATE)
        self.browser.SetPlaybackLooped(True)
        self.browser.SetPlaybackActive(True)

    def end(self) -> None:
        """Stop, put the nodes back under the transforms that they had, and remove the sequence."""
        if self._scene.IsNodePresent(self.browser):
            self.browser.SetPlaybackActive(False)
        present = self._parent is not None and self._scene.IsNodePresent(self._parent)
        for node, parent in self._before:
            if self._scene.IsNodePresent(node) and node.GetParentTransformNode() is self._proxy:
                there = parent is not None and self._scene.IsNodePresent(parent)
                setParent(node, parent if there else self._parent if present else None)
        for node in (self.browser, self._proxy, self._sequence):
            removeNode(node)


def _thinned(field: sitk.Image) -> tuple[Grid, np.ndarray]:
    """A field on a grid of at most ``_MOST_NODES`` nodes over the same box: the grid, and the vectors, RAS."""
    from DRDMLib.spatial.coordinates import thinned_grid

    grid = thinned_grid(field, _MOST_NODES)
    sampled = sitk.Resample(field, grid, sitk.Transform(), sitk.sitkLinear, 0.0, sitk.sitkVectorFloat32)
    return Grid.fromImage(sampled), (sitk.GetArrayViewFromImage(sampled) * FLIP).astype(np.float32)
