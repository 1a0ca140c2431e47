"""Deform images in physical space: Algorithm 2 of the paper, with fields in millimeters."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import time
import warnings
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any

import SimpleITK as sitk
import torch

from .deformation import Deformation
from .errors import FallbackWarning, SettingError
from .generation import AT_ONCE, Progress
from .invertibility.device_bounds import bounding_device
from .invertibility.repair import repair
from .io.images import require_scalar_image
from .levels import DEFAULT_LEVEL, Level
from .models.catalogue import load_model
from .models.choice import Choice, choose_model, named_choice
from .models.model import Model
from .models.population import with_pose
from .models.strength import with_level
from .regions import Target, faces_held, fields_in_regions, find_target, skeleton_held
from .runtime.batches import in_batches, proven_at_once, versions_together
from .runtime.threads import one_thread, share_of_cores
from .settings import DeformationSettings, Pose, RegionSettings
from .spatial.model_grid import field_image, mean_displacement, physical_field
from .toward import WHOLE_SCANS, Way
from .versions import Drawn, PreparedScan, RegionBatch, step_count


def deform(
    image: sitk.Image,
    model: Model | str | os.PathLike[str] | None = None,
    level: Level = DEFAULT_LEVEL,
    seed: int = 0,
    steps: int | None = None,
    device: str | torch.device = "auto",
    *,
    pose: Pose = 0.0,
    plane: str = "auto",
    start: str = "level",
    border: str = "auto",
    region: RegionSettings | None = None,
    bones: str = "auto",
    label: sitk.Image | None = None,
    toward: Way | None = None,
    on_step: Progress | None = None,
) -> Deformation:
    """Make a new, anatomically plausible version of an image, with a field that is proven to be invertible.

    Args:
        image: single-channel image, 2D or 3D, with any spacing and direction.
        model: a loaded model, a catalog name, a path, or ``None`` for the one that fits the image best,
            see :func:`DRDMLib.models.choice.choose_model`.
        level, steps, pose, plane, start, border, region, bones: see :class:`DRDMLib.DeformationSettings`.
        label: label map of the image, for a region around labels or with structures to keep.
        toward: the way to another scan of the same kind, from :func:`DRDMLib.find_way`; the version first goes a part
            of it, which is drawn with the seed.
        seed: the same seed gives the same result; on the same device it is identical to the bit.
        device: where to compute, if ``model`` is not loaded yet.
        on_step: called with (done, total); may raise to cancel.

    Raises:
        ImageError: the image cannot be used.
        ModelError: the model cannot be used, or has the wrong dimension for the image.
        SettingError: level, steps, pose, plane, start, border, region, bones or device is not valid.
        DRDMError: the deformation cannot be made invertible.
    """
    settings = DeformationSettings(level, steps, pose, plane, start, border, region, bones)
    return next(
        make_deformations(image, model, settings, (seed,), label=label, toward=toward, device=device, on_step=on_step)
    )


def deform_all(
    image: sitk.Image,
    model: Model | str | os.PathLike[str] | None = None,
    level: Level = DEFAULT_LEVEL,
    seeds: Sequence[int] = (0,),
    steps: int | None = None,
    device: str | torch.device = "auto",
    *,
    pose: Pose = 0.0,
    plane: str = "auto",
    start: str = "level",
    border: str = "auto",
    region: RegionSettings | None = None,
    bones: str = "auto",
    label: sitk.Image | None = None,
    toward: Way | None = None,
    on_step: Progress | None = None,
) -> Iterator[Deformation]:
    """Make one new version of an image for each seed; a GPU computes several of them together.

    On a GPU the results can differ from those of :func:`deform` by rounding, because a batch may add numbers in another
    order; and several are proven at the same time while the GPU computes the next ones. On a CPU a batch would not be
    faster, so the versions are made one after the other and are identical to the bit. So are those of volumes that a 2D
    model deforms, whose slices are a batch already.

    Args:
        seeds: one for each version.
        on_step: called with (done, total) over all versions; may raise to cancel.

    Yields:
        One deformation for each seed, in their order.

    The other arguments and the exceptions are those of :func:`deform`.
    """
    settings = DeformationSettings(level, steps, pose, plane, start, border, region, bones)
    return make_deformations(image, model, settings, seeds, label=label, toward=toward, device=device, on_step=on_step)


def make_deformations(
    image: sitk.Image,
    model: Model | str | os.PathLike[str] | None,
    settings: DeformationSettings,
    seeds: Sequence[int],
    *,
    label: sitk.Image | None = None,
    target: Target | None = None,
    toward: Way | None = None,
    device: str | torch.device = "auto",
    on_step: Progress | None = None,
) -> Iterator[Deformation]:
    """Do the work of :func:`deform` and :func:`deform_all` with the settings as one object.

    Args:
        target: the regions of ``settings``, if they were found in this image before.
        toward: the way to another scan; each version first goes a part of it, which is drawn with its seed.
        on_step: called with (done, total) over all versions; may raise to cancel.

    Raises:
        SettingError: there are both regions and a way; and as :func:`deform`.
    """
    if toward is not None and (target is not None or settings.region is not None):
        raise SettingError(WHOLE_SCANS)
    started = time.perf_counter()
    image = require_scalar_image(image)
    if target is None and settings.region is not None:
        target = find_target(image, settings.region, label)
    if not isinstance(model, Model):
        model = model_for(image if target is None else target.largest, model, device, plane=settings.plane)
    if target is not None:
        yield from _in_regions(target, model, settings, seeds, on_step)
        return
    scan = PreparedScan(image, model, settings, toward)
    size = scan.together
    if size > 1 and len(seeds) > 1:
        yield from _in_batches(scan, list(in_batches(seeds, size)), time.perf_counter() - started, on_step)
        return
    for number, seed in enumerate(seeds):
        (drawn,) = scan.draw((seed,), on_step=_of_all(on_step, number, len(seeds)))
        made = finish(drawn)
        yield dataclasses.replace(made, seconds=time.perf_counter() - started)
        started = time.perf_counter()


def _of_all(on_step: Progress | None, number: int, count: int) -> Progress | None:
    """Return the progress of version ``number`` as that of all versions."""
    return None if on_step is None else lambda done, total: on_step(number * total + done, count * total)


def _in_batches(
    scan: PreparedScan, batches: Sequence[Sequence[int]], seconds: float, on_step: Progress | None
) -> Iterator[Deformation]:
    """Make versions in batches: threads prove those of one while the next one is drawn.

    Args:
        batches: seeds.
        seconds: that preparing the scan took.
        on_step: drawing and proving a version are half of its steps each.
    """
    count = sum(map(len, batches))
    drawn_before, proven, at_once = 0, 0, AT_ONCE
    waiting: deque[Future[Deformation]] = deque()
    failure: Exception | None = None
    stopped = False

    def report(done: int, total: int) -> None:
        nonlocal stopped
        if on_step is not None:
            now = drawn_before + len(batch) * done / total + proven
            stopped = True
            on_step(round(scan.steps * now), 2 * scan.steps * count)
            stopped = False

    threads = proven_at_once(len(batches[0]))

    def prove(drawn: Drawn) -> Deformation:
        with share_of_cores(threads):
            return finish(drawn)

    with _pool(threads) as pool:
        for number in range(len(batches) + 1):
            before = len(waiting)
            if number < len(batches) and failure is None:
                batch = batches[number]
                try:
                    drawn = scan.draw(batch, at_once=at_once, on_step=report)
                except Exception as error:
                    if stopped:
                        raise
                    # The versions before it are not lost.
                    failure = error
                else:
                    drawn_before += len(batch)
                    if drawn[0].device == scan.model.device.type:
                        # Where memory was low, it probably is for the next batch.
                        at_once = drawn[0].at_once
                    waiting.extend(pool.submit(prove, one) for one in drawn)
            for _ in range(before):
                made = waiting.popleft().result()
                yield dataclasses.replace(made, seconds=made.seconds + seconds)
                proven, seconds = proven + 1, 0.0
                report(0, 1)
        if failure is not None:
            raise failure


@contextlib.contextmanager
def _pool(threads: int) -> Iterator[ThreadPoolExecutor]:
    """Let threads work; at an error, or when nobody wants the rest, what has not been begun is left out."""
    pool = ThreadPoolExecutor(threads, "prove")
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def finish(drawn: Drawn, image: sitk.Image | None = None) -> Deformation:
    """Bring a drawn field to its scan, and prove that it is invertible.

    Several threads may do so for versions of one scan.

    Args:
        image: the scan, if its user has a copy of it.

    Raises:
        DRDMError: the deformation cannot be made invertible.
    """
    begin = time.perf_counter()
    scan = drawn.scan
    image = scan.image if image is None else image
    how: Any = {"refine": scan.refined, "posed": scan.moves_faces}
    with one_thread():
        field = physical_field(drawn.recovered, scan.grid, **how)
        repaired = repair(field, image, scan.held, bounding_device(scan.model.device, drawn.device))
    return Deformation(
        reference=image,
        field=field.image(),
        repaired=repaired,
        certified=True,
        skeleton=scan.skeleton,
        toward=drawn.share,
        own_percent=100 * mean_displacement(drawn.own, scan.grid, image) if scan.moves_faces else None,
        _random=partial(field_image, drawn.random, scan.grid, **how),
        seed=drawn.seed,
        level=scan.settings.number(scan.model.timesteps),
        strength=scan.strength,
        steps=scan.steps,
        pose=scan.pose if scan.settings.pose else 0.0,
        seconds=drawn.seconds + time.perf_counter() - begin,
        model=scan.model.metadata.name,
        device=drawn.device,
    )


def _in_regions(
    target: Target,
    model: Model,
    settings: DeformationSettings,
    seeds: Sequence[int],
    on_step: Progress | None,
) -> Iterator[Deformation]:
    """Deform the regions of an image, once for each seed.

    A GPU draws the fields of several versions together; they are proven one after the other.
    """
    strength = settings.level if isinstance(settings.level, str) else ""
    settings = with_pose(with_level(settings, model.metadata), model.metadata)
    steps = step_count(settings, model)
    skeleton = skeleton_held(target.image, settings, model.ndim)
    faces = faces_held(target.image, settings, model.ndim)
    size = versions_together(model)
    for number, seed in enumerate(seeds):
        started = time.perf_counter()
        if number % size == 0:
            batch = RegionBatch(seeds[number : number + size])
        draw, own = batch.version(number % size), _of_all(on_step, number, len(seeds))
        made, random = fields_in_regions(
            target, model, settings, seed, draw, faces=faces, skeleton=skeleton, on_step=own
        )
        with one_thread():
            held = () if settings.pose else faces
            repaired = repair(made.field, target.image, held, bounding_device(model.device, made.device))
        yield Deformation(
            reference=target.image,
            field=made.field.image(),
            repaired=repaired,
            certified=True,
            target=target,
            margin_mm=made.margin_mm,
            scale=made.scale,
            before_pose=None if made.before_pose is None else made.before_pose.image(),
            skeleton=skeleton,
            _random=lambda random=random: random().field.image(),  # type: ignore[misc]
            seed=seed,
            level=settings.number(model.timesteps),
            strength=strength,
            steps=steps,
            pose=settings.pose,
            seconds=time.perf_counter() - started,
            model=model.metadata.name,
            device=made.device,
        )


def model_for(
    image: sitk.Image,
    name_or_path: str | os.PathLike[str] | None,
    device: str | torch.device = "auto",
    *,
    plane: str = "auto",
) -> Model:
    """Load a model by name or path, or the one that fits an image best.

    Warns:
        FallbackWarning: no model was named, and none fits the image well.

    Raises:
        ImageError, ModelError, SettingError: as :func:`DRDMLib.load_model` and
            :func:`DRDMLib.models.choice.choose_model`.
    """
    if name_or_path is not None:
        return load_model(name_or_path, device)
    choice = choose_model(image, plane=plane)
    if choice.warning():
        warnings.warn(choice.warning(), FallbackWarning, stacklevel=2)
    return load_model(choice.name, device)


def model_and_choice(
    image: sitk.Image,
    name_or_path: str | os.PathLike[str] | None,
    device: str | torch.device = "auto",
    *,
    plane: str = "auto",
) -> tuple[Model, Choice]:
    """Do the same as :func:`model_for`, and also say how well the model fits the image."""
    if name_or_path is None:
        choice = choose_model(image, plane=plane)
        return load_model(choice.name, device), choice
    model = load_model(name_or_path, device)
    return model, named_choice(image, name_or_path, model, plane=plane)
