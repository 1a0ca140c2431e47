"""Fields for a preview that follows the slider, made in the background."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from typing import Any

import slicer

from DRDMLib.levels import LADDER

from .batches import RunSettings
from .deferred import sitk
from .job import Job
from .mrml import LivePreview, Playback
from .regions import SceneRegion
from .scans import writeScan
from .worker import WorkerProcess


class PreviewLogic:
    """The part of the logic that makes previews; see ``DRDMDeformLib.logic.Logic``."""

    def mrmlScene(self) -> Any:
        """The scene to work on."""
        raise NotImplementedError

    def livePreview(self, volumeNode: slicer.vtkMRMLScalarVolumeNode, nodes: Sequence[Any]) -> LivePreview:
        """Make a preview of a volume, which shows nothing yet; :meth:`startPreview` computes its fields.

        Args:
            volumeNode: the volume.
            nodes: nodes that move with it, the volume too.

        Raises:
            SceneError: the volume is under a transform that bends or stretches it.

        Usage example:
        >>> preview = logic.livePreview(volume, [volume])
        >>> preview.show(48)
        False
        >>> preview.end()
        """
        return LivePreview(self.mrmlScene(), volumeNode, list(nodes))

    def play(self, transformNode: slicer.vtkMRMLTransformNode, nodes: Sequence[Any]) -> Playback:
        """Play a version with Slicer's sequence browser: from the original to the version and back.

        The frames between them are blended and not proven, and are not saved.

        Args:
            transformNode: a transform made by this module.
            nodes: nodes that are under it, or under its parent.

        Returns:
            An object with the ``browser``; its method ``end`` shows again what was shown before.

        Raises:
            SceneError: the transform is none of this module.

        Usage example:
        >>> playback = logic.play(transform, [volume])
        >>> playback.browser.GetPlaybackActive()
        True
        >>> playback.end()
        """
        return Playback(transformNode, list(nodes))

    def startPreview(
        self,
        volumeNode: slicer.vtkMRMLScalarVolumeNode,
        ladder: Any,
        settings: RunSettings,
        levels: Sequence[int] = LADDER,
        region: SceneRegion | None = None,
        onField: Callable[[], None] = lambda: None,
    ) -> Job:
        """Return a job that computes the fields of one seed at several levels; they are not proven.

        Args:
            volumeNode: the volume.
            ladder: the fields are added to it; ``ladder`` of a :meth:`livePreview`.
            settings: how to deform.
            levels: T', in the order in which the fields are wanted.
            region: as of ``startDeform``.
            onField: called after each field.

        Raises:
            SceneError: the volume cannot be used.

        Usage example:
        >>> from DRDMDeformLib.batches import RunSettings
        >>> preview = logic.livePreview(volume, [volume])
        >>> job = logic.startPreview(volume, preview.ladder, RunSettings(seed=1, steps=1), levels=[60, 30])
        >>> job.start()
        >>> job.wait(slicer.app.processEvents)
        <JobState.DONE: 'done'>
        >>> preview.show(48)
        True
        >>> preview.end()
        """
        folder = writeScan(volumeNode, region)
        arguments: list[object] = ["preview", folder / "scan.nrrd", "-o", folder / "out", "--levels", *levels]
        arguments += settings.arguments()
        arguments += [] if region is None else region.arguments(folder / "label.nrrd")
        job = Job(arguments, WorkerProcess())

        def addField(item: dict[str, Any]) -> None:
            ladder.add(int(item["level"]), sitk.ReadImage(str(folder / "out" / item["field"])))
            onField()

        job.onItem = addField
        job.onFinished(lambda _job: shutil.rmtree(folder, ignore_errors=True))
        return job
