"""Run Algorithm 3 or 4 over a dataset, from an empty folder to a finished dataset."""

from __future__ import annotations

import contextlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from .. import __version__, output
from ..diffusion.seeds import SAMPLES
from ..errors import DRDMError, ImageError, ModelError, SettingError
from ..generation import prepare
from ..io import datasets
from ..io.datasets import Case
from ..io.files import counted
from ..io.images import read_image, read_label
from ..io.nnunet import IGNORE, declared_labels
from ..levels import OTHERS_GRAY
from ..models.model import Model
from ..models.strength import with_level
from ..runtime.device import choose_device
from ..runtime.distributed import ProcessInfo
from ..runtime.reporter import FIT, TOWARD, Reporter
from ..spatial.model_grid import effective_dimension
from . import records, run_folder, toward
from .adapted import adapt_to_cases
from .case_models import CaseModel, CaseModels, fit_sentences
from .layouts import consecutive, ignore_value, split_subjects, undeclared
from .limits import label_values
from .plan import AUGMENT, PHASES, Plan, RunSettings, make_plan
from .poses import poses_sentence, with_begun_pose, with_earlier_poses, with_poses
from .report import finalize_run, interrupted
from .run_state import LOGS, Run
from .sampling import QUALITY, part_folder
from .sources import Source, read_case, source_digests
from .work import Work

_READERS = 2


@dataclass(frozen=True)
class RunRequest:
    """Dataset, output folder, model and device of a run.

    Attributes:
        dataset: as :func:`DRDMLib.io.datasets.find_cases` accepts it.
        folder: new or empty folder, or that of an interrupted run with the same settings.
        model: name or path; by default the one that fits each image best.
        device: see :func:`DRDMLib.runtime.device.choose_device`.
        process: this process among several.
        resume: continue the run in the folder. Several processes that share one run do not need it.
        subject_pattern: see :func:`DRDMLib.io.datasets.find_cases`.
        toward: dataset of the scans that samples go toward, if it is another one than ``dataset``.
        any_pose: nobody has chosen the pose of the settings; a run that is continued keeps its own.
    """

    dataset: Path
    folder: Path
    model: str | None = None
    device: str = "auto"
    process: ProcessInfo = field(default_factory=ProcessInfo)
    resume: bool = False
    subject_pattern: str | None = None
    toward: Path | None = None
    any_pose: bool = False

    @property
    def joins(self) -> bool:
        """Whether to continue a run that is already in the folder."""
        return self.resume or self.process.world > 1


def produce(request: RunRequest, settings: RunSettings, reporter: Reporter) -> Run:
    """Make all samples of every case of a dataset, or continue an interrupted run.

    Raises:
        DRDMError: the input, the settings or the folder cannot be used; complete samples are kept.
    """
    found = datasets.read_dataset(request.dataset, request.subject_pattern)
    choose_device(request.process.device(request.device))
    # Checked before any file is created or changed.
    earlier = run_folder.earlier_run(request.folder, resume=request.joins)
    asked, wanted_gray = settings.toward, settings.gray_values
    if request.any_pose and earlier is not None:
        settings = with_begun_pose(settings, earlier)
    settings, cases, others = toward.settled(settings, found.cases, earlier)
    changes_gray = settings.gray_values == OTHERS_GRAY
    plan = make_plan(settings, cases)
    if others is not None:
        plan = replace(plan, others=others)
    if settings.toward == PHASES:
        toward.require_phases(found.cases)
    if request.toward is not None:
        plan = replace(plan, others=datasets.read_dataset(request.toward, request.subject_pattern).cases)
    notes = [*found.notes, *plan.notes]
    if others is not None:
        # Nothing is amiss with them.
        notes = [note for note in notes if note != found.missing_labels]
    for text in filter(None, [*notes, found.unused_sentence()]):
        if request.process.first:
            reporter.warning(text)
    if others is not None:
        gray = ", and so do their gray values, except in CT" if changes_gray else ""
        notes.append(
            f"Versions of {counted(len(cases), 'labeled image')} go part of the way toward "
            f"{counted(len(others), 'scan')} without a label{gray} (a label needs the same name as its image)."
        )
        if asked != settings.toward and request.process.first:
            reporter.message(f"{notes[-1]} Leave that out with --toward none.")
    elif changes_gray:
        notes.append("The gray values of versions go toward those of the other scans, too, except in CT.")
        if wanted_gray != settings.gray_values and request.process.first:
            reporter.message(f"{notes[-1]} Leave that out with --gray-values own.")

    if settings.mirroring is not None and settings.mirroring.sides is None:
        notes.append("Labels keep their values in mirror images; if some are of one side of the body, add --sides.")
        if request.process.first:
            reporter.message(notes[-1])

    with run_folder.share_of_folder(
        request.folder, request.process, lambda: prepare_run(request, plan, reporter)
    ) as run:
        run.unused, run.notes = found.unused, [*notes, *poses_sentence(run.plan)]
        try:
            Work(run).do()
        except BaseException:
            interrupted(run)
            raise
    with run_folder.run_lock(request.folder):
        complete = finalize_run(run)
    for text in run.failures() if complete else []:
        reporter.message(f"Left out: {text}")
    if run.clock.samples:
        reporter.message(run.clock.sentence(run.gpu_busy))
    if complete:
        _report_fits(run)
    return run


def _report_fits(run: Run) -> None:
    written = [run.done[number] for number in sorted(run.done)]
    models, warning = fit_sentences(written)
    if models:
        run.reporter.message(models)
    for about, text in ((FIT, warning), (TOWARD, toward.sentence(written))):
        if text:
            run.reporter.warning(text, about)


def prepare_run(request: RunRequest, plan: Plan, reporter: Reporter) -> Run:
    """Make the folder ready for a new run, or check that it holds the same run.

    Raises:
        DRDMError: as :func:`produce`.
    """
    device = request.process.device(request.device)
    earlier = run_folder.earlier_run(request.folder, resume=request.joins)
    sources: dict[int, Source] = {}
    if earlier is not None:
        plan = with_earlier_poses(_with_seed_scheme(plan, earlier, request.folder), earlier)
        run_folder.require_same(earlier, plan, choose_device(device).type, __version__, request.folder)
        plane = plan.settings.deformation.plane
        models = CaseModels.of_earlier_run(earlier, request.model, device, plane, request.folder)
        model = models.load(models.named or earlier["model"]["name"])
        description = earlier
    else:
        plan = with_poses(plan, reporter, any_pose=request.any_pose)
        description, models, model, sources = _describe(request, plan, device, reporter)
        if run_folder.is_damaged(request.folder):
            run_folder.require_same_configuration(description, request.folder)
            reporter.warning(
                f"'{request.folder / run_folder.RUN}' is damaged, as after a power cut; it is written again, and the "
                "finished samples are kept."
            )
        else:
            output.make_output_folder(request.folder, besides=run_folder.beginnings(request.folder))
        # Written first, so that an interrupted run can be recognized and resumed from here on.
        run_folder.write_run(request.folder, description)
    plan = _without_ignored_label(plan, description, request.dataset)
    context = _context(description, model)
    run = Run(plan, request.folder, request.process, model, models, description, context, reporter)
    run.sources |= sources
    # Also when resuming: the earlier run may have been killed before it made all folders.
    run_folder.make_folders(request.folder, _folders(plan, description))
    return run


def _with_seed_scheme(plan: Plan, run: dict[str, Any], folder: Path) -> Plan:
    """Return the plan with the seeds of an earlier run, which may be of an older version.

    Raises:
        SettingError: the run is of a newer version.
    """
    scheme = run["settings"].get("seed_scheme", "")
    if scheme not in ("", SAMPLES):
        raise SettingError(f"The run in '{folder}' was made by a newer version; update DRDM, or choose a new folder.")
    return replace(plan, settings=replace(plan.settings, seed_scheme=scheme))


def _describe(
    request: RunRequest, plan: Plan, device: str, reporter: Reporter
) -> tuple[dict[str, Any], CaseModels, Model, dict[int, Source]]:
    """Return the content of ``run.json``, the models, that of the first case, and the case as it was read."""
    described = datasets.nnunet_description(request.dataset)
    augments = plan.settings.command == AUGMENT
    values, digests = _looked_through(plan, reporter)
    label_mapping, labels = consecutive(values, described) if augments else ({}, {})
    if plan.settings.mirroring is not None:
        plan.settings.mirroring.require_sides(labels)
    unknown = [str(value) for value in undeclared(values, described)]
    if unknown:
        reporter.warning(
            f"The labels have values that dataset.json does not declare: {', '.join(unknown[:10])}"
            f"{', ...' if len(unknown) > 10 else ''}; in the new dataset they are classes such as 'label_{unknown[0]}'."
        )
    models = CaseModels.for_new_run(request.model, device, plan.settings.deformation.plane)
    number, source, first = _first_usable(plan, models, label_mapping)
    model = first.model
    if plan.settings.mirroring is not None:
        # Some images have no such direction.
        plan.settings.mirroring.image(source.image)
    for level in {level for levels in plan.settings.levels for level in levels}:
        with_level(plan.settings.at_level(level), model.metadata).schedule(model.timesteps)
    entry = first.entries()["model"]
    if plan.settings.adapt is not None:
        name = request.model or model.metadata.name
        model, entry = adapt_to_cases(request.folder, plan, name, device, reporter, resume=request.joins)
        models = CaseModels.of_earlier_run({"model": entry}, request.model, device, models.plane, request.folder)
    subjects = [case.subject for case in plan.cases]
    description = {
        "settings": plan.settings.to_dict(),
        "cases": [
            {"name": case.name, "subject": case.subject, "digests": some}
            for case, some in zip(plan.cases, digests, strict=True)
        ],
        "model": entry,
        # Without a named model, each case has its own, one of these.
        **({"candidates": [asdict(one) for one in models.candidates]} if models.named is None else {}),
        "dimension": effective_dimension(source.image),
        "device": records.device_described(model.device),
        "software": records.software(),
        "label_values": {str(old): new for old, new in label_mapping.items()},
        "labels": labels,
        "source_description": described if augments else {},
        "parts": split_subjects(subjects, plan.settings.split, plan.settings.seed),
    }
    return description, models, model, {number: source}


def _without_ignored_label(plan: Plan, description: dict[str, Any], dataset: Path) -> Plan:
    """Keep the label ``ignore`` of the dataset out of the limits.

    Raises:
        ImageError: the labels in dataset.json are no numbers.
    """
    limits = plan.settings.limits
    if limits.inside is None:
        return plan
    if plan.settings.command == AUGMENT:
        # With its new number.
        ignored = description["labels"].get(IGNORE)
    else:
        ignored = ignore_value(declared_labels(datasets.nnunet_description(dataset)))
    return replace(plan, settings=replace(plan.settings, limits=replace(limits, ignored=ignored)))


def _folders(plan: Plan, description: dict[str, Any]) -> list[str]:
    names = [records.RECORDS, LOGS, *([QUALITY] if plan.settings.quality else [])]
    if plan.settings.command == AUGMENT:
        return [*names, "imagesTr", "labelsTr"]
    kinds = [
        "images",
        "labels",
        "displacements",
        "masks",
        *(["displacementsVoxel"] if plan.settings.voxel_fields else []),
    ]
    parts = sorted(set(description["parts"].values()))
    return [*names, *dict.fromkeys(part_folder(kind, part) for part in parts for kind in kinds)]


def _context(description: dict[str, Any], model: Model) -> dict[str, Any]:
    """Return the values that all records of a run repeat."""
    return {
        "model": description["model"],
        "configuration": run_folder.configuration_digest(description),
        "device": records.device_described(model.device),
        "software": records.software(),
        "label_values": description["label_values"],
    }


def _looked_through(plan: Plan, reporter: Reporter) -> tuple[set[int], list[dict[str, str]]]:
    """Look through the files of all cases before the first file is written.

    Returns:
        The values of all labels, for nnU-Net's numbering, if it is needed; and for each case the digests of its files,
        which are empty if they cannot be read.
    """

    def look(case: Case) -> tuple[set[int], dict[str, str]]:
        values: set[int] = set()
        digests: dict[str, str] = {}
        with contextlib.suppress(DRDMError, OSError):
            # First, so that a file that changes after this is noticed when the case is read.
            digests = source_digests(case)
            if plan.settings.command == AUGMENT and case.label is not None:
                image = read_image(case.image, case.series)
                values = set(label_values(read_label(case.label, image, geometry=plan.settings.label_geometry)))
        return values, digests

    found: set[int] = set()
    every = []
    with ThreadPoolExecutor(_READERS) as pool:
        for number, (values, digests) in enumerate(pool.map(look, plan.cases), start=1):
            found |= values
            every.append(digests)
            if number == len(plan.cases) or number % 10 == 0:
                reporter.progress("read", number, len(plan.cases))
    return found, every


def _first_usable(plan: Plan, models: CaseModels, label_mapping: dict[int, int]) -> tuple[int, Source, CaseModel]:
    """Find the first case that can be read and used with its model."""
    if models.named is not None:
        models.load(models.named)
    first: DRDMError | None = None
    for number in range(len(plan.cases)):
        try:
            source = read_case(plan, number, label_mapping)
            deformation = plan.settings.for_labels(label_mapping).deformation
            place = source.place(deformation.region)
            chosen = models.of(place)
            prepare(place, chosen.model, deformation.plane)
            return number, source, chosen
        except (ImageError, ModelError) as error:
            if len(plan.cases) == 1:
                raise
            first = first or type(error)(f"{plan.cases[number].name}: {error}")
    raise ImageError(f"None of the {len(plan.cases)} cases can be used; the first problem: {first}")
