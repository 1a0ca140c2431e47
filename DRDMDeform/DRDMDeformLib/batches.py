"""Training data from many scans, as jobs that run ``drdm``."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import slicer
from slicer.i18n import tr as _

from DRDMLib.io.files import file_names
from DRDMLib.levels import AUTO_TOWARD, DEFAULT_PAIR, FEWEST_TOWARD, NOBODY, OWN_GRAY, STRENGTHS, Level

from . import mrml
from .batch_results import BatchResultLogic
from .job import Job, runToEnd
from .mrml import SceneError, links
from .regions import commonBox
from .scans import caseName, writeTemporary
from .temporary import temporaryFolder
from .worker import WorkerProcess

# The pose of a batch that is drawn from its scans, see ``drdm augment --pose``.
AUTO_POSE = "auto"
# Versions go part of the way toward the other scans of the batch, those of the person, or those without a label, see
# ``drdm augment --toward``.
OTHERS, PHASES, UNLABELED = "others", "phases", "unlabeled"

Source: TypeAlias = str | Path | Sequence[Any]
# Batches of more results get a process of their own: there its start hardly counts, and the worker stays free.
MOST_FOR_WORKER = 12


@dataclass(frozen=True)
class RunSettings:
    """How a ``drdm`` command deforms.

    Attributes:
        model: name or path; ``None``: the best one for the scan.
        seed: of the first deformation.
        steps: number of recovery steps; ``None``: the default of the model.
        pose: amount of rotation, scaling and translation, 0 to 2; ``"auto"``: as the people of the scans differ.
        device: ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"mps"``.
        plane: plane of the slices that a 2D model deforms: ``"auto"``, ``"axial"``, ``"coronal"`` or ``"sagittal"``.
    """

    model: str | None = None
    seed: int = 0
    steps: int | None = None
    pose: float | str | None = 0.0
    device: str = "auto"
    plane: str = "auto"

    def arguments(self) -> list[object]:
        """The options of the command line."""
        arguments: list[object] = ["--seed", self.seed, "--device", self.device, "--plane", self.plane]
        arguments += ["--model", self.model] if self.model else []
        arguments += ["--steps", self.steps] if self.steps else []
        arguments += ["--pose", self.pose] if self.pose else []
        return arguments


@dataclass(frozen=True)
class BatchSettings(RunSettings):
    """Settings of a batch.

    Attributes:
        pose: as in :class:`RunSettings`; ``None``: as the people of the scans differ, in training sets of whole scans
            but CT; otherwise no pose. A run that is continued keeps its own.
        segmentations: {node ID of a volume: its segmentation or label map}, where the volume's own is not wanted.
        resume: continue an interrupted run.
        around: deform only around the labels.
        region: ROI; deform only the scans of the scene, and only there.
        margin: largest distance from the region at which anything moves, mm; ``None``: as needed.
        adapt: minutes in which the model is first adapted to the scans; ``None``: use it as it is.
        toward: what each version goes part of the way toward, or each fixed image from the moving one: ``"others"`` for
            the other scans of the batch, which need to be of the same kind and of several people, or a folder with such
            scans; ``"phases"`` for the other scans of the same person in a folder, such as those of a heartbeat;
            ``"auto"`` for those that have no label, if there are at least ten, and only for labeled images.
            No labels of them are used. ``None``: nothing.
        grayValues: the gray values of training images also become those of the other scan, by a random share; not in
            CT.
        subject: regular expression for the part of a file's name that says of whom a scan of a folder is; ``None``: as
            DICOM headers or BIDS names say, or each of somebody else.
    """

    pose: float | str | None = None
    segmentations: dict[str, Any] | None = None
    resume: bool = False
    around: bool = False
    region: Any = None
    margin: float | None = None
    adapt: float | None = None
    toward: str | Path | None = AUTO_TOWARD
    grayValues: bool = True
    subject: str | None = None

    def arguments(self) -> list[object]:
        """The options of the command line."""
        # Nothing would mean the poses of people.
        return [*super().arguments(), *(["--pose", 0] if self.pose == 0 else [])]

    def grayArguments(self) -> list[object]:
        """The options of the command line for training sets that say whether gray values change."""
        return [] if self.grayValues else ["--gray-values", OWN_GRAY]

    def towardArguments(self, source: Source) -> list[object]:
        """The options of the command line that say toward which scans versions go.

        Raises:
            SceneError: only a region is to be deformed, or there is no other scan.
        """
        subject: list[object] = ["--subject", self.subject] if self.subject else []
        if self.toward == AUTO_TOWARD:
            # What the commands do unless they are told otherwise.
            return subject
        if not self.toward:
            return ["--toward", NOBODY, *subject]
        if self.around or self.region is not None:
            raise SceneError(
                _("Versions toward other scans are made of whole scans; leave out toward, or around and region.")
            )
        if self.toward == PHASES and not isinstance(source, (str, Path)):
            raise SceneError(_("Volumes of the scene do not say of whom they are; use a folder with toward phases."))
        if self.toward == OTHERS and not isinstance(source, (str, Path)) and len(source) == 1:
            raise SceneError(_("A single volume has no other scans to go toward; use volumes of several people."))
        return ["--toward", self.toward, *subject]

    def usesUnlabeled(self, volumes: int, unlabeled: int) -> bool:
        """Whether labeled images go part of the way toward the volumes of the scene that have no segmentation.

        Args:
            volumes, unlabeled: how many there are, and how many of them have no segmentation.
        """
        whole = not self.around and self.region is None
        return self.toward == AUTO_TOWARD and whole and FEWEST_TOWARD <= unlabeled < volumes

    def regionArguments(self, source: Source) -> list[object]:
        """The options of the command line that say where to deform.

        Raises:
            SceneError: the ROI is not the same box in all volumes, or the scans are not in the scene.
        """
        arguments: list[object] = []
        if self.region is not None:
            if isinstance(source, (str, Path)):
                raise SceneError(_("An ROI lies in the scene; use volumes of the scene, or deform around the labels."))
            arguments += ["--region", *commonBox(self.region, list(source))]
        elif self.around:
            arguments += ["--around", "all"]
        return arguments + (["--margin", self.margin] if self.margin and arguments else [])


class BatchLogic(BatchResultLogic):
    """The part of the logic that works on many scans; see ``DRDMDeformLib.logic.Logic``."""

    # Training data

    def augment(
        self,
        source: Source,
        outputFolder: str | Path,
        levels: Sequence[Level] = STRENGTHS,
        copies: int = 4,
        *,
        wait: bool = True,
        **settings: Any,
    ) -> Job:
        """Make labeled images for training a segmentation network (Algorithm 3), as an nnU-Net raw dataset.

        Args:
            source: a folder or dataset, or a list of volume nodes. The label of a volume is its segmentation: the
                one chosen for it in the panel, drawn on it, named after it, or lying on it alone. Volumes without one
                are used only if versions go toward them, see ``toward``.
            outputFolder: a new or empty folder, or that of an interrupted run with ``resume=True``.
            levels: strengths: ``"subtle"``, ``"medium"``, ``"strong"``, or levels T'.
            copies: number of variants of each scan at each level.
            wait: return when the job has ended; otherwise return a job to start.
            settings: those of :class:`BatchSettings`.

        Raises:
            SceneError: the source cannot be used.
            DRDMError: the job failed.

        Usage example:
        >>> job = logic.augment([volume], out, levels=[20], copies=2)
        >>> logic.summary(out)["made"]
        2
        >>> more = out.parent / "toward others"
        >>> job = logic.augment(people, more, levels=["subtle"], copies=1, toward="others")
        >>> [item["toward"] > 0 for item in logic.summary(more)["items"]]
        [True, True]
        """
        batch = BatchSettings(**settings)
        options = ["--levels", *levels, "--copies", copies, *batch.regionArguments(source)]
        options += [*batch.towardArguments(source), *batch.grayArguments()]
        folder, temporary = self._scansFolder(source, batch, needLabels=True)
        few = isFew(source, len(levels) * copies, batch)
        job = self._batchJob(["augment", folder, "-o", outputFolder, *options], batch, temporary, few=few)
        return runToEnd(job) if wait else job

    def generateRegistrationPairs(
        self,
        source: Source,
        outputFolder: str | Path,
        levels: Sequence[tuple[Level, Level]] = (DEFAULT_PAIR,),
        copies: int = 4,
        *,
        wait: bool = True,
        **settings: Any,
    ) -> Job:
        """Make moving and fixed images with their exact displacement field (Algorithm 4), as a Learn2Reg-style dataset.

        Args:
            source: as in :meth:`augment`; labels are optional.
            outputFolder: as in :meth:`augment`.
            levels: pairs of strengths: from the original to the moving image, and from the moving to the fixed image.
            copies: number of pairs of each scan at each pair of levels.
            wait: as in :meth:`augment`.
            settings: as in :meth:`augment`.

        Raises:
            SceneError: the source cannot be used.
            DRDMError: the job failed.

        Usage example:
        >>> job = logic.generateRegistrationPairs(scans, out, levels=[(40, 24)], copies=1, seed=5)
        >>> logic.summary(out)["made"]
        2
        """
        batch = BatchSettings(**settings)
        options = ["--levels", *(f"{first}:{second}" for first, second in levels), "--copies", copies]
        options += [*batch.regionArguments(source), *batch.towardArguments(source)]
        folder, temporary = self._scansFolder(source, batch, needLabels=False)
        few = isFew(source, len(levels) * copies, batch)
        job = self._batchJob(["synthesize", folder, "-o", outputFolder, *options], batch, temporary, few=few)
        return runToEnd(job) if wait else job

    # Files

    def applyToFiles(
        self,
        transformNode: slicer.vtkMRMLTransformNode,
        files: Sequence[str | Path],
        outputFolder: str | Path,
        inverse: bool = False,
        *,
        wait: bool = True,
    ) -> Job:
        """Apply a deformation to files: other channels, label maps, points and meshes.

        Images keep their own voxel grid. The results have the names of the files.

        Args:
            transformNode: a transform made by this module; the files lie where its volume is in the world.
            files: of the original, or with ``inverse`` of the deformed version.
            outputFolder: a new or empty folder.
            inverse: take files of the deformed version back to the original.
            wait: return when the job has ended; otherwise return a job to start.

        Raises:
            SceneError: the transform cannot be used.
            DRDMError: the job failed.

        Usage example:
        >>> right, front, up = volume.GetOrigin()
        >>> length = (scans / "point.csv").write_text(f"{-right},{-front},{up}")
        >>> job = logic.applyToFiles(transform, [scans / "point.csv"], out)
        >>> [path.name for path in out.iterdir()]
        ['point.csv']
        """
        field = mrml.fieldFromTransform(transformNode)
        folder = temporaryFolder()
        job = Job(["apply", folder / "field.nrrd", *files, "-o", outputFolder, *(["--inverse"] if inverse else [])])
        job.onFinished(lambda _job: shutil.rmtree(folder, ignore_errors=True))
        try:
            writeTemporary(field, folder / "field.nrrd")
        except SceneError:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        return runToEnd(job) if wait else job

    def _batchJob(self, command: list[object], settings: BatchSettings, temporary: Path | None, *, few: bool) -> Job:
        """A job that runs a command; the temporary folder is removed at its end.

        Args:
            few: whether it is short, so that the worker runs it.
        """
        more: list[object] = ["--resume"] if settings.resume else []
        more += ["--adapt", settings.adapt] if settings.adapt else []
        job = Job([*command, *settings.arguments(), *more], WorkerProcess() if few else None)

        def removeTemporary(job: Job) -> None:
            if temporary is not None:
                shutil.rmtree(temporary, ignore_errors=True)

        job.onFinished(removeTemporary)
        return job

    def _scansFolder(self, source: Source, settings: BatchSettings, *, needLabels: bool) -> tuple[Path, Path | None]:
        """The folder with the scans, and the same folder again if it is temporary (volumes of the scene)."""
        if isinstance(source, (str, Path)):
            return Path(source), None
        folder = self._exportVolumes(list(source), settings, needLabels=needLabels)
        return folder, folder

    def withoutSegmentation(self, volumeNodes: Sequence[Any], segmentations: dict[str, Any] | None = None) -> list[Any]:
        """The volumes that have no segmentation, see :meth:`augment`.

        Args:
            volumeNodes: volumes of the scene.
            segmentations: those of :class:`BatchSettings`.

        Usage example:
        >>> logic.withoutSegmentation([volume])
        []
        """
        found = self._segmentationsFor(volumeNodes, segmentations or {})
        return [node for node, segmentation in zip(volumeNodes, found, strict=True) if segmentation is None]

    def _segmentationsFor(self, volumeNodes: Sequence[Any], segmentations: dict[str, Any]) -> list[Any]:
        """The segmentation of each volume, or ``None``; one that is only guessed must not be that of another, too."""
        given = [segmentations.get(node.GetID()) for node in volumeNodes]
        found = [
            one or links.segmentationOf(self.mrmlScene(), node) for one, node in zip(given, volumeNodes, strict=True)
        ]
        shared = [own is not None and found.count(own) > 1 for own in found]
        return [
            None if doubtful and one is None and links.isGuessed(own, node) else own
            for doubtful, one, own, node in zip(shared, given, found, volumeNodes, strict=True)
        ]

    def _noSegmentation(self, volumeNode: Any) -> SceneError:
        found = links.segmentationOf(self.mrmlScene(), volumeNode)
        if found is None:
            text = _("No segmentation lies on '{name}'; choose both in Input, or uncheck the volume.")
            return SceneError(text.format(name=volumeNode.GetName()))
        text = _("'{found}' lies on '{name}' and on other volumes; choose that of '{name}' in Input, or uncheck it.")
        return SceneError(text.format(found=found.GetName(), name=volumeNode.GetName()))

    def _exportVolumes(self, volumeNodes: list[Any], settings: BatchSettings, *, needLabels: bool) -> Path:
        """Write the volumes and their labels into a temporary folder, as a dataset."""
        if not volumeNodes:
            raise SceneError(_("No volume is chosen; check the volumes to use."))
        segmentations = settings.segmentations or {}
        unlabeled = self.withoutSegmentation(volumeNodes, segmentations)
        if needLabels and unlabeled and not settings.usesUnlabeled(len(volumeNodes), len(unlabeled)):
            raise self._noSegmentation(unlabeled[0])
        folder = temporaryFolder()
        try:
            (folder / "images").mkdir()
            (folder / "labels").mkdir()
            names = file_names([caseName(node) for node in volumeNodes])
            labels = self._segmentationsFor(volumeNodes, segmentations)
            for node, name, segmentation in zip(volumeNodes, names, labels, strict=True):
                writeTemporary(mrml.imageFromVolume(node), folder / "images" / f"{name}.nrrd")
                if segmentation is not None:
                    writeTemporary(links.labelOf(segmentation, node), folder / "labels" / f"{name}.nrrd")
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        return folder


def isFew(source: Source, copies: int, settings: BatchSettings) -> bool:
    """Whether a batch of ``copies`` results from each scan is so short that it need not start Python."""
    volumes = None if isinstance(source, (str, Path)) else len(source)
    return volumes is not None and volumes * copies <= MOST_FOR_WORKER and not settings.adapt
