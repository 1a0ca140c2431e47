"""Deform images in physical space: Algorithm 2 of the paper, with fields in millimeters."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np
import SimpleITK as sitk
import torch

from .errors import FallbackWarning, SettingError
from .generation import AT_ONCE, Generated, Progress, generate, prepare
from .invertibility.certificate import certify_on_grid
from .invertibility.inverse import inverse_field, inverse_layers, inverse_points
from .invertibility.metrics import FieldMetrics, measure_on_grid
from .invertibility.repair import NOT_REPAIRED, Repair, repair
from .io.images import fit_label, require_scalar_image
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
from .spatial.bones import Rigidity, Skeleton, rigidity
from .spatial.borders import closed_faces, inside_mask, invented_fraction, outside_fraction
from .spatial.model_grid import field_image, mean_displacement, physical_field
from .spatial.resampling import field_on_grid, slabs, warp_image, warp_label
from .toward import WHOLE_SCANS, Way
from .versions import Drawn, PreparedScan, RegionBatch, step_count

# Number of places at which reports compare bone with a rigid motion.
_BALLS = 60
DEFAULT_SETTINGS = DeformationSettings()


@dataclass
class Deformation:
    """One deformation of an image: its displacement field, and methods that apply, invert and measure it.

    Attributes:
        reference: the original image; everything that is produced lies on its grid.
        field: displacement field on a coarse grid: vector image, millimeters, LPS. A vector at a point of the new image
            points to the position in the original whose value the new image shows there. The grid extends past the
            image, and the field falls to zero there; that of a region covers only the region and its margin. Outside
            the grid nothing moves.
        seed, level, steps, pose, model: the seed and settings it was made with, and the name of the model; a pose
            that was drawn from a population is the population's spread.
        seconds, device: how long the computation took, and on what kind of device.
        repaired: what was changed to make the field invertible.
        certified: whether the field is proven to be invertible; ``None`` if it has not been tested yet, see
            ``metrics``.
        target: the regions that were deformed, or ``None`` for the whole image.
        margin_mm, scale: distance from the regions at which the field is zero, and the number by which the displacement
            was multiplied to fit into a given margin.
        before_pose: the field of the regions without the pose, if there is one.
        strength: the word that the level was chosen by, if it was.
        skeleton: bone that stays rigid, and the table; ``None`` if nothing does.
        toward: share of the way toward another scan that the version goes, see :mod:`DRDMLib.toward`.
        own_percent: mean displacement without a pose and without what leads toward another scan, as a percentage of the
            longest physical side of the image; ``None`` if there is neither.
    """

    reference: sitk.Image
    field: sitk.Image
    seed: int = 0
    level: int = 0
    steps: int = 0
    pose: Pose = 0.0
    seconds: float = 0.0
    model: str = ""
    device: str = ""
    repaired: Repair = NOT_REPAIRED
    certified: bool | None = None
    target: Target | None = dataclasses.field(default=None, repr=False)
    margin_mm: float = 0.0
    scale: float = 1.0
    before_pose: sitk.Image | None = dataclasses.field(default=None, repr=False)
    strength: str = ""
    skeleton: Skeleton | None = dataclasses.field(default=None, repr=False)
    toward: float = 0.0
    own_percent: float | None = None
    _random: Callable[[], sitk.Image] | None = dataclasses.field(default=None, repr=False)

    @cached_property
    def random_field(self) -> sitk.Image:
        """The random deformation before recovery, in the same form as ``field``; computed on first use."""
        assert self._random is not None
        with one_thread():
            return self._random()

    @cached_property
    def transform(self) -> sitk.Transform:
        """Transform from points of the new image to points of the original (LPS, millimeters)."""
        transform = displacement_transform(self.field)
        # The same voxels, in the memory of the transform, so that they are not kept twice.
        self.field = transform.GetDisplacementField()
        return transform

    @cached_property
    def inverse(self) -> sitk.Image:
        """The inverse field, over the extent of ``field``: maps points of the original to points of the new image.

        Its grid is fine enough to be accurate between its nodes too, so it can be large; see
        :func:`DRDMLib.invertibility.inverse.inverse_field`. For single points, :meth:`inverse_points` is more accurate
        and faster.
        """
        return inverse_field(self.field, self.reference)

    @property
    def inverse_transform(self) -> sitk.Transform:
        """Transform from points of the original to points of the new image (LPS, millimeters)."""
        return displacement_transform(self.inverse)

    @property
    def inverse_ddf(self) -> sitk.Image:
        """The inverse of ``ddf`` on the image's grid: vector image, 32-bit, millimeters, LPS.

        At the center of each voxel it is accurate to a ten-thousandth of a voxel.
        """
        size = self.reference.GetSize()
        image = sitk.GetImageFromArray(
            np.concatenate(list(inverse_layers(self.field, self.reference, slabs(size)))), isVector=True
        )
        image.CopyInformation(self.reference)
        return image

    def inverse_points(self, points: np.ndarray) -> np.ndarray:
        """Map points of the original (markups, surfaces) to points of the new image.

        Args:
            points: (K, d), LPS, millimeters.

        Returns:
            (K, d), LPS, millimeters.
        """
        return inverse_points(self.field, points)

    @cached_property
    def metrics(self) -> FieldMetrics:
        """Metrics of the field on the image's grid.

        ``certified_invertible`` holds for the field itself and for its samples on that grid.
        """
        metrics = measure_on_grid(self.field, self.reference)
        certified = self.certified
        if certified is None:
            certified = certify_on_grid(self.field, self.reference).certified
        return dataclasses.replace(metrics, certified_invertible=certified)

    @property
    def model_fraction(self) -> float:
        """Mean displacement by the model alone, fraction of the longest side: what its fit to the scan is about."""
        return (self.metrics.mean_percent if self.own_percent is None else self.own_percent) / 100

    @cached_property
    def invented_fraction(self) -> float:
        """Fraction of voxels that show what lies beyond a face of the scan that tissue touches: a mirror image.

        Only a pose, a way toward another scan and ``border="open"`` bring such voxels in.
        """
        return invented_fraction(self.field, self.reference, closed_faces(self.reference))

    @cached_property
    def bone_rigidity(self) -> Rigidity | None:
        """How rigid bone stays; ``None`` if nothing was to stay rigid, or with a pose, which scales bone."""
        if self.skeleton is None or (self.pose and self.before_pose is None):
            return None
        points = self.skeleton.bone
        return rigidity(points, inverse_points(self.before_pose or self.field, points), balls=_BALLS)

    @cached_property
    def from_outside(self) -> float:
        """Fraction of voxels that are read from outside the scan, where it shows nothing: air, or a mirror image."""
        return outside_fraction(self.field, self.reference)

    @property
    def inside(self) -> sitk.Image:
        """Mask of the voxels that are read from inside the scan: 8-bit, on the grid of ``reference``."""
        return inside_mask(self.field, self.reference)

    @property
    def ddf(self) -> sitk.Image:
        """The displacement field on the image's grid: vector image, 32-bit, millimeters, LPS."""
        vectors = field_on_grid(self.field, self.reference, 0, self.reference.GetSize()[-1])
        image = sitk.GetImageFromArray(vectors, isVector=True)
        image.CopyInformation(self.reference)
        return image

    def warp(self, image: sitk.Image) -> sitk.Image:
        """Deform an image, with linear interpolation.

        Args:
            image: the original, or another image of the same anatomy in the same physical space.

        Returns:
            The deformed image on the grid of ``reference``.
        """
        return warp_image(image, self.reference, self.transform)

    def warp_label(self, label: sitk.Image) -> sitk.Image:
        """Deform a label map of the original: no new label values appear, and thin structures are kept.

        Returns:
            The deformed label map on the grid of ``reference``.

        Raises:
            ImageError: it is not a label map, has another dimension, or overlaps the image too little.
        """
        return warp_label(fit_label(label, self.reference), self.reference, self.transform)


def displacement_transform(field: sitk.Image) -> sitk.DisplacementFieldTransform:
    """Convert a displacement field to a transform; of a copy, because SimpleITK takes the voxels out of its input."""
    return sitk.DisplacementFieldTransform(sitk.Image(field))


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
        repaired = repair(field, image, scan.held)
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
            repaired = repair(made.field, target.image, () if settings.pose else faces)
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


__all__ = [
    "Deformation",
    "Generated",
    "Progress",
    "deform",
    "deform_all",
    "displacement_transform",
    "generate",
    "make_deformations",
    "model_and_choice",
    "model_for",
    "prepare",
]
