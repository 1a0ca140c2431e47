"""New versions of a volume: from the files of ``drdm deform`` into the scene.

A single version comes in two steps, if that is wanted: first its field, which is proven, then its figures. In between,
and if they never come, its record has no figures except ``certified_invertible``. That is also what a scene that is
saved then says.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from slicer.i18n import tr as _

from . import mrml
from .deferred import sitk
from .job import Job, JobState

_KEPT = ("seed", "level", "strength", "doubtful", "steps", "pose", "toward", "seconds", "metrics", "region")
_SHARED = ("model", "fit")


class NewVersions:
    """Adds what a job makes to the scene.

    Args:
        job: ``drdm deform --only-field``.
        folder: its results are in ``out`` in there; removed when the job has ended.
        scene: where the transforms are added.
        volumeNode: the deformed volume.
        asSequence: as of :func:`mrml.addVariants`.
        onVersion: called with the transform of a version as soon as its field is there; its figures follow. ``None``:
            the scene does not change before the end of the job.
        onMade: called at the end with the transforms, or with one sequence browser, in a list.
    """

    def __init__(
        self,
        job: Job,
        folder: Path,
        scene: Any,
        volumeNode: Any,
        asSequence: bool,
        onVersion: Callable[[Any], None] | None,
        onMade: Callable[[list[Any]], None] | None,
    ) -> None:
        self._job = job
        self._folder = folder
        self._scene = scene
        self._volume = volumeNode
        self._volumeID = volumeNode.GetID()
        self._asSequence = asSequence
        self._onVersion = onVersion
        self._onMade = onMade
        # The version that is in the scene already.
        self._node: Any = None
        if onVersion is not None:
            job.onVersion = self._addVersion
        job.onFinished(self._addAll)

    def _hasVolume(self) -> bool:
        return self._scene.GetNodeByID(self._volumeID) is self._volume

    def _addVersion(self, event: dict[str, Any]) -> None:
        """Add a version without its figures."""
        if not self._hasVolume() or self._job.state is not JobState.RUNNING:
            return
        try:
            record = {key: event[key] for key in (*_KEPT, *_SHARED) if key in event}
            record["metrics"] = {"certified_invertible": event["certified_invertible"]}
            field = sitk.ReadImage(str(self._folder / "out" / event["field"]))
            self._node = mrml.addVariants(self._scene, self._volume, [field], [record])[0]
        except (OSError, ValueError, KeyError, RuntimeError):
            # The end of the job says why.
            return
        self._job.process.nearlyDone = True
        assert self._onVersion is not None
        self._onVersion(self._node)

    def _addAll(self, job: Job) -> None:
        try:
            if job.state is not JobState.DONE:
                return
            if self._node is None and not self._hasVolume():
                job.state, job.text = (
                    JobState.FAILED,
                    _("The volume has been removed from the scene; nothing was added."),
                )
                return
            made = self._made()
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            job.state, job.text = JobState.FAILED, str(error)
        else:
            if self._onMade is not None and made:
                self._onMade(made)
        finally:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _made(self) -> list[Any]:
        report = json.loads((self._folder / "out" / "report.json").read_text(encoding="utf-8"))
        shared = {key: report[key] for key in _SHARED if key in report}
        records = [{**{key: item[key] for key in _KEPT if key in item}, **shared} for item in report["items"]]
        if self._node is not None:
            if not self._scene.IsNodePresent(self._node):
                # The user has removed it meanwhile.
                return []
            mrml.setRecord(self._node, records[0])
            return [self._node]
        fields = [sitk.ReadImage(str(self._folder / "out" / item["field"])) for item in report["items"]]
        made = mrml.addVariants(self._scene, self._volume, fields, records, asSequence=self._asSequence)
        return [made[1]] if isinstance(made, tuple) else list(made)
