"""Test cases for registration programs, made of volumes of the scene, and the score of their results."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import slicer
from slicer.i18n import tr as _

from DRDMLib.io.files import file_name

from . import mrml
from .batches import RunSettings
from .deferred import sitk
from .job import Job, JobState, runToEnd
from .mrml import RegistrationCase, SceneError, links
from .scans import writeTemporary
from .temporary import temporaryFolder

RECIPES = ("mild", "medium", "hard")


@dataclass(frozen=True)
class RegistrationScore:
    """The score of the result of a registration.

    Attributes:
        rows: the figures: name, unit, before registration, result, floor (what interpolation allows); ``None`` where
            there is no such figure.
        worst: places with the largest errors: position in RAS, error and error before registration, millimeters.
        report: content of ``score.json``.
        warning: a sentence where the result seems to follow another convention, otherwise empty.
        page: the page with pictures.
        errors: volume node with the error at each voxel that counts, millimeters.
    """

    rows: list[tuple[str, str, float | None, float | None, float | None]]
    worst: list[tuple[tuple[float, float, float], float, float]]
    report: dict[str, Any]
    warning: str
    page: Path
    errors: Any


class RegistrationTestLogic:
    """Makes test cases for registration programs, and scores results."""

    def makeChallenge(
        self, volumeNode: slicer.vtkMRMLScalarVolumeNode, segmentation: Any = None, **how: Any
    ) -> RegistrationCase:
        """Make a moving and a fixed image whose true transform is known, and wait for it.

        Args:
            volumeNode: as in :meth:`startChallenge`.
            segmentation: as in :meth:`startChallenge`.
            how: recipe, seed, folder, model and settings as in :meth:`startChallenge`.

        Returns:
            The volumes ``fixed`` and ``moving``, and the folder ``truth``, which is not loaded.

        Raises:
            SceneError: a node cannot be used.
            DRDMError: the case could not be made.

        Usage example:
        >>> case = logic.makeChallenge(volume, segmentation, recipe="mild", steps=1)
        >>> case.fixed.GetName(), case.moving.GetName()
        ('Phantom fixed', 'Phantom moving')
        """
        made: list[RegistrationCase] = []
        runToEnd(self.startChallenge(volumeNode, segmentation, onMade=made.append, **how))
        return made[0]

    def startChallenge(
        self,
        volumeNode: slicer.vtkMRMLScalarVolumeNode,
        segmentation: Any = None,
        recipe: str = "medium",
        seed: int = 0,
        folder: str | Path | None = None,
        model: str | None = None,
        onMade: Callable[[RegistrationCase], None] = lambda case: None,
        **settings: Any,
    ) -> Job:
        """Return a job that makes a test case in a separate process; see :meth:`makeChallenge`.

        Args:
            volumeNode: the volume of which the case is made, as it lies in the world.
            segmentation: segmentation or label map of the volume, whose overlap is measured too.
            recipe: ``"mild"``, ``"medium"`` or ``"hard"``.
            seed: the same seed gives the same case.
            folder: where a new folder with the files of the case is made; ``None``: in a temporary folder, which is
                removed at the next start of Slicer.
            model: name or path; ``None``: the one that fits the volume best.
            onMade: called with the case when it is in the scene.
            settings: steps, device and plane as in :meth:`Logic.deform`.

        Raises:
            SceneError: a node cannot be used.

        Usage example:
        >>> job = logic.startChallenge(volume, recipe="mild", steps=1, onMade=lambda case: print(case.truth.name))
        >>> job.start()
        >>> job.wait(slicer.app.processEvents)
        scan_000
        <JobState.DONE: 'done'>
        """
        if recipe not in RECIPES:
            raise SceneError(_("There is no recipe '{name}'; use mild, medium or hard.").format(name=recipe))
        image = mrml.imageFromVolume(volumeNode)
        run = RunSettings(model, seed, **settings)
        temporary = temporaryFolder()
        try:
            cases = _newFolder(folder, f"{recipe}-{seed}")
            label: list[object] = []
            writeTemporary(image, temporary / "scan.nrrd")
            if segmentation is not None:
                writeTemporary(links.labelOf(segmentation, volumeNode), temporary / "label.nrrd")
                label = ["--label", temporary / "label.nrrd"]
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        job = Job(["challenge", temporary / "scan.nrrd", "-o", cases, "--recipe", recipe, *label, *run.arguments()])
        scene = volumeNode.GetScene()

        def addToScene(job: Job) -> None:
            shutil.rmtree(temporary, ignore_errors=True)
            if job.state is not JobState.DONE:
                # The folder is new, and a case that is not complete is of no use.
                shutil.rmtree(cases, ignore_errors=True)
                return
            try:
                if volumeNode.GetScene() is not scene:
                    raise SceneError(_("The volume has been removed from the scene; nothing was added."))
                files = {kind: cases / name for kind, name in job.items[0].items() if kind in ("fixed", "moving")}
                fixed, moving = (sitk.ReadImage(str(files[kind])) for kind in ("fixed", "moving"))
                truth = cases / "truth" / job.items[0]["name"]
                case = mrml.addCase(scene, volumeNode, (fixed, moving), truth.resolve())
            except (OSError, ValueError, KeyError, RuntimeError) as error:
                job.state, job.text = JobState.FAILED, str(error)
            else:
                onMade(case)

        job.onFinished(addToScene)
        return job

    def scoreRegistration(self, transformNode: slicer.vtkMRMLTransformNode, fixedNode: Any) -> RegistrationScore:
        """Measure the result of a registration against the truth of a test case, and wait for it.

        Args:
            transformNode: the result of the registration, the transform that shows the moving on the fixed image when
                the moving image is put under it; linear, B-spline, grid, or several of them.
            fixedNode: the fixed image of the case.

        Raises:
            SceneError: the volume belongs to no test case, or the transform cannot be used.
            DRDMError: the truth is missing or was changed.

        Usage example:
        >>> case = logic.makeChallenge(volume, recipe="mild", steps=1)
        >>> nothing = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLinearTransformNode")
        >>> score = logic.scoreRegistration(nothing, case.fixed)
        >>> name, unit, before, result, floor = score.rows[0]
        >>> name, unit, before == result
        ('error at landmarks, mean', 'mm', True)
        """
        found: list[RegistrationScore] = []
        runToEnd(self.startScore(transformNode, fixedNode, onScored=found.append))
        return found[0]

    def startScore(
        self,
        transformNode: slicer.vtkMRMLTransformNode,
        fixedNode: Any,
        onScored: Callable[[RegistrationScore], None] = lambda score: None,
    ) -> Job:
        """Return a job that scores a result in a separate process; see :meth:`scoreRegistration`.

        Args:
            transformNode: as in :meth:`scoreRegistration`.
            fixedNode: as in :meth:`scoreRegistration`.
            onScored: called with the score.

        Raises:
            SceneError: as :meth:`scoreRegistration`.

        Usage example:
        >>> case = logic.makeChallenge(volume, recipe="mild", steps=1)
        >>> nothing = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLinearTransformNode")
        >>> job = logic.startScore(nothing, case.fixed, onScored=lambda score: print(score.errors.GetName()))
        >>> job.start()
        >>> job.wait(slicer.app.processEvents)
        LinearTransform errors
        <JobState.DONE: 'done'>
        """
        case = mrml.caseOf(fixedNode)
        if not (case.truth / "case.json").is_file():
            raise SceneError(
                _("The truth of '{name}' is no longer in '{folder}'; make the test case again.").format(
                    name=fixedNode.GetName(), folder=case.truth
                )
            )
        pair = case.truth.parents[1] / "pairs" / case.truth.name
        images = _read(pair / "fixed.nii.gz"), _read(pair / "moving.nii.gz")
        result = mrml.resultOf(transformNode, images)
        temporary = temporaryFolder()
        try:
            if isinstance(result, sitk.Transform):
                path = temporary / "result.tfm"
                sitk.WriteTransform(result, str(path))
            else:
                path = temporary / "result.mha"
                writeTemporary(result, path)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        out = _newFolder(case.truth.parents[1] / "scores", transformNode.GetName())
        job = Job(["score", path, "--truth", case.truth, "-o", out])
        scene, name = fixedNode.GetScene(), _("{name} errors").format(name=transformNode.GetName())

        def addToScene(job: Job) -> None:
            shutil.rmtree(temporary, ignore_errors=True)
            if job.state is not JobState.DONE:
                return
            try:
                if fixedNode.GetScene() is not scene:
                    raise SceneError(_("The fixed image has been removed from the scene; nothing was added."))
                score = _readScore(out, case, scene, name)
            except (OSError, ValueError, KeyError, RuntimeError) as error:
                job.state, job.text = JobState.FAILED, str(error)
            else:
                onScored(score)

        job.onFinished(addToScene)
        return job


def _newFolder(parent: str | Path | None, name: str) -> Path:
    """Return the path of a folder that does not exist yet, in ``parent`` or a temporary folder."""
    within = temporaryFolder() if parent is None else Path(parent)
    stem = file_name(name)
    return next(
        path for path in (within / (f"{stem}-{n}" if n > 1 else stem) for n in range(1, 10**6)) if not path.exists()
    )


def _read(path: Path) -> sitk.Image:
    """Read an image of a case, of which only the grid is used.

    Raises:
        SceneError: it cannot be read.
    """
    try:
        return sitk.ReadImage(str(path))
    except RuntimeError as error:
        raise SceneError(
            _("'{file}' of the test case is missing or damaged; make the test case again.").format(file=path)
        ) from error


def _readScore(folder: Path, case: RegistrationCase, scene: Any, name: str) -> RegistrationScore:
    report = json.loads((folder / "score.json").read_text(encoding="utf-8"))
    with (folder / "score.csv").open(encoding="utf-8", newline="") as file:
        rows = [
            (row["figure"], row["unit"], _number(row["before"]), _number(row["result"]), _number(row["floor"]))
            for row in csv.DictReader(file)
        ]
    errors = sitk.ReadImage(str(folder / "errors.nii.gz"))
    counted = sitk.ReadImage(str(case.truth / "counted.nii.gz"))
    largest = max(report["before"]["body"]["p95"], 1e-3)
    worst = [
        ((-place["lps"][0], -place["lps"][1], place["lps"][2]), place["error_mm"], place["before_mm"])
        for place in report["worst"]
    ]
    node = mrml.addErrorMap(scene, case.fixed, (errors, counted), largest, name)
    looksLike = report["looks_like"]
    return RegistrationScore(rows, worst, report, looksLike["text"] if looksLike else "", folder / "score.html", node)


def _number(text: str) -> float | None:
    return float(text) if text else None
