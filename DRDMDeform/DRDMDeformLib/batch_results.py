"""The results of batches: what a run has made, and its samples as nodes of the scene."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import slicer
from slicer.i18n import tr as _

from . import mrml
from .deferred import sitk
from .mrml import SceneError, links
from .scans import caseName


class BatchResultLogic:
    """The part of the logic that reads the results of batches; see ``DRDMDeformLib.logic.Logic``."""

    scene: slicer.vtkMRMLScene | None = None

    def mrmlScene(self) -> slicer.vtkMRMLScene:
        """The scene to work on: the application's scene, unless ``scene`` is set."""
        return self.scene if self.scene is not None else slicer.mrmlScene

    def summary(self, outputFolder: str | Path) -> dict[str, Any]:
        """Summarize what a batch has made so far.

        Returns:
            ``made`` (number of results), ``failures`` (sentences), ``redrawn`` (number of deformations that exceeded a
            limit and were replaced), ``complete``, ``qualityPage`` (path or ``None``), ``items`` as in the folder's
            ``report.json``, and ``toward`` (what the run goes toward, empty for nothing).
        """
        folder = Path(outputFolder)
        report: dict[str, Any] = {}
        with contextlib.suppress(OSError, ValueError):
            content = json.loads((folder / "report.json").read_text(encoding="utf-8"))
            report = content if isinstance(content, dict) else {}
        page = folder / "quality.html"
        items = report.get("items", [])
        return {
            "made": len(items),
            "failures": report.get("failures", []),
            "redrawn": report.get("redrawn", {}).get("draws", 0),
            "complete": bool(items) and (folder / "run.json").is_file() and (folder / "dataset.json").is_file(),
            "qualityPage": page if page.is_file() else None,
            "items": items,
            "toward": report.get("settings", {}).get("toward", ""),
        }

    def seedOf(self, outputFolder: str | Path) -> int | None:
        """The seed of the run in a folder, with which it must be resumed; ``None`` without a run.

        Usage example:
        >>> job = logic.augment(scans, out, levels=[20], copies=1, seed=5)
        >>> logic.seedOf(out)
        5
        """
        try:
            run = json.loads((Path(outputFolder) / "run.json").read_text(encoding="utf-8"))
            return int(run["settings"]["seed"])
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def canResume(self, outputFolder: str | Path) -> bool:
        """Whether a folder contains an interrupted or complete run."""
        folder = Path(outputFolder)
        return any((folder / name).is_file() for name in ("report.json", "checkpoint.pt", "adaptation.json"))

    def loadSample(self, outputFolder: str | Path, index: int = 0) -> list[Any]:
        """Load one result of a batch into the scene.

        For a result of ``augment`` that is the image, and its label as a segmentation. For a pair it is also the moving
        image, its label, and the exact displacement field as a transform: a node of the moving image put under the
        transform is moved to the fixed image.

        Returns:
            The nodes; the image (for a pair: the fixed image) comes first.

        Raises:
            SceneError: there is no result, or its files cannot be read.

        Usage example:
        >>> job = logic.generateRegistrationPairs(scans, out, levels=[(16, 8)], copies=1)
        >>> fixed, fixedLabel, moving, movingLabel, transform = logic.loadSample(out)
        >>> logic.preview(transform, [moving])
        """
        items = self.summary(outputFolder)["items"]
        if not items:
            raise SceneError(
                _("There is no result in '{folder}' yet; run the batch first.").format(folder=outputFolder)
            )
        item, folder, scene = items[index % len(items)], Path(outputFolder), self.mrmlScene()
        nodes: list[Any] = []
        try:
            for image, label in (("image", "label"), ("moving", "moving_label")):
                if not item.get(image):
                    continue
                nodes.append(mrml.volumeFromImage(scene, _readImage(folder / item[image]), _stem(item[image])))
                if not item.get(label):
                    continue
                labelImage = _readImage(folder / item[label])
                # A label may have been moved out of the image completely; then there is nothing to show.
                if sitk.GetArrayViewFromImage(labelImage).any():
                    name = f"{_stem(item[label])} label"
                    nodes.append(links.segmentationFromImage(scene, labelImage, name, nodes[-1]))
                    links.nameSegments(nodes[-1], _labelNames(folder), self._sourceOf(item))
            if item.get("moving") and item.get("ddf"):
                field = _readImage(folder / item["ddf"], sitk.sitkVectorFloat64)
                nodes.append(mrml.createTransform(scene, field, f"{_stem(item['ddf'])} moving to fixed"))
        except BaseException:
            for node in nodes:
                mrml.removeNode(node)
            raise
        return nodes

    def _sourceOf(self, item: dict[str, Any]) -> Any:
        """The segmentation of the volume of the scene that a result was made from, or ``None``."""
        scene = self.mrmlScene()
        for n in range(scene.GetNumberOfNodesByClass("vtkMRMLScalarVolumeNode")):
            node = scene.GetNthNodeByClass(n, "vtkMRMLScalarVolumeNode")
            if caseName(node) == item.get("source"):
                return links.segmentationOf(scene, node)
        return None


def _labelNames(folder: Path) -> dict[int, str]:
    """The names of the labels in the ``dataset.json`` of a folder: {value: name}."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        labels = json.loads((folder / "dataset.json").read_text(encoding="utf-8")).get("labels", {})
        return {value: name for name, value in labels.items() if isinstance(value, int)}
    return {}


def _stem(path: str) -> str:
    return Path(path).name.removesuffix(".gz").removesuffix(".nii")


def _readImage(path: Path, pixel: int | None = None) -> sitk.Image:
    try:
        return sitk.ReadImage(str(path)) if pixel is None else sitk.ReadImage(str(path), pixel)
    except RuntimeError as error:
        raise SceneError(
            _("'{file}' cannot be read; check whether it has been moved or changed.").format(file=path)
        ) from error
