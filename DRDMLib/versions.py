"""Draw the fields of several versions of a scan together, on the grid of a model."""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import SimpleITK as sitk
from torch import Tensor

from .diffusion.poses import PoseSpread
from .diffusion.seeds import Purpose, derived_seed
from .diffusion.slip import SlipPlanes
from .generation import AT_ONCE, Generated, Progress, generate, prepare
from .levels import Level
from .models.model import Model
from .models.population import with_pose
from .models.strength import with_level
from .poses import pose_on_grid
from .regions import faces_held, rigid_parts, skeleton_held
from .runtime.batches import versions_together
from .runtime.threads import one_thread
from .settings import DeformationSettings
from .spatial.borders import planes_on_grid
from .spatial.model_grid import needs_refinement
from .toward import Way


class PreparedScan:
    """A scan on the grid of a model, with what all of its versions share.

    Several threads may use it, except for :meth:`draw`.

    Args:
        image: single-channel image.
        model: a loaded model.
        settings: how to deform, without regions.
        toward: the way to another scan, of which each version goes a part.

    Attributes:
        image, model, toward: as given.
        settings: with the level as a number and the pose in the axes of the model's tensors.
        grid: the grid of the model on the image.
        pose: of the settings, as it is reported.
        strength: the word that the level was chosen by, if it was.
        steps: number of recovery steps.
        skeleton: bone that stays rigid, and the table; ``None`` if nothing does.
        held: faces of the scan that do not move.
        moves_faces: whether a pose or a way toward another scan moves the faces of the scan.
        refined: whether fields are refined, because the image is much finer than the grid.

    Raises:
        ImageError, ModelError, SettingError: as :func:`DRDMLib.deform`.
    """

    def __init__(
        self, image: sitk.Image, model: Model, settings: DeformationSettings, toward: Way | None = None
    ) -> None:
        self.image, self.model, self.toward = image, model, toward
        self.strength = settings.level if isinstance(settings.level, str) else ""
        settings = with_pose(with_level(settings, model.metadata), model.metadata)
        self.steps = step_count(settings, model)
        with one_thread():
            self.grid, self._tensor = prepare(image, model, settings.plane)
        faces = faces_held(image, settings, model.ndim)
        self._planes = SlipPlanes(planes_on_grid(faces, self.grid), model.size)
        self.skeleton = skeleton_held(image, settings, model.ndim)
        with one_thread():
            self._rigid = None if self.skeleton is None else rigid_parts(self.skeleton, self.grid, self._planes)
        self.pose = settings.pose
        self.settings = dataclasses.replace(settings, pose=pose_on_grid(settings.drawn_pose(), self.grid, image))
        # A pose moves the whole scan, so that its faces do not stay where they are; and scans of others end elsewhere.
        self.moves_faces = bool(self.settings.pose) or toward is not None
        self.held = () if self.moves_faces else faces
        self.refined = needs_refinement(image, self.grid)

    @property
    def single(self) -> bool:
        """Whether it is one image for the model. The slices of a stack are a batch of their own."""
        return len(self._tensor) == 1

    @property
    def together(self) -> int:
        """Number of versions that are drawn in a batch."""
        return versions_together(self.model) if self.single else 1

    def draw(
        self,
        seeds: Sequence[int],
        *,
        level: Level | None = None,
        at_once: int = AT_ONCE,
        on_step: Progress | None = None,
    ) -> list[Drawn]:
        """Draw a random deformation for each seed, and recover from all of them in one batch.

        Args:
            seeds: one; or several, if it is a :attr:`single` image.
            level: T', if it is not that of the settings.
            at_once: most images that the network computes at a time.
            on_step: called with (done, total); may raise to cancel.

        Warns:
            FallbackWarning: memory was low, so that fewer images were computed at a time, or the CPU was used.
        """
        begin = time.perf_counter()
        shares = [0.0 if self.toward is None else self.toward.share(seed) for seed in seeds]
        made = generate(
            self._tensor,
            self.model,
            self.settings if level is None else dataclasses.replace(self.settings, level=level),
            seeds,
            planes=self._planes,
            rigid=self._rigid,
            toward=None if self.toward is None else self.toward.on_grid(shares, self.grid),
            turned=self._turned(seeds),
            at_once=at_once,
            on_step=on_step,
        )
        device = made.recovered.device.type
        seconds = (time.perf_counter() - begin) / len(seeds)
        if len(seeds) == 1:
            fields = (made.random, made.recovered, made.own)
            return [Drawn(self, seeds[0], shares[0], *fields, device, made.at_once, seconds)]
        # They wait to be proven, which the CPU does; the memory of the GPU is for the next batch. They are copies, so
        # that one of them does not keep the memory of all.
        random, recovered = ([part.clone() for part in one.cpu().split(1)] for one in (made.random, made.recovered))
        own = recovered if made.own is made.recovered else [part.clone() for part in made.own.cpu().split(1)]
        return [
            Drawn(self, seed, share, random, recovered, own, device, made.at_once, seconds)
            for seed, share, random, recovered, own in zip(seeds, shares, random, recovered, own, strict=True)
        ]

    def _turned(self, seeds: Sequence[int]) -> Tensor | None:
        """Return how versions are turned as the other scan: with poses as people differ, since these do not know it."""
        if self.toward is None or not isinstance(self.settings.pose, PoseSpread):
            return None
        return self.toward.turns_on_grid(seeds, self.grid)


@dataclass
class Drawn:
    """The fields of one version on the grid of a model, before it is proven to be invertible.

    Attributes:
        scan: the scan.
        seed: of the version.
        share: of the way toward another scan.
        random, recovered, own: see :class:`DRDMLib.generation.Generated`; (1, d, *S), or (N, d, *S) for a stack.
        device: type of the device that has computed them.
        at_once: how many images the network has computed at a time.
        seconds: how long they took; its share of those of a batch.
    """

    scan: PreparedScan = field(repr=False)
    seed: int
    share: float
    random: Tensor = field(repr=False)
    recovered: Tensor = field(repr=False)
    own: Tensor = field(repr=False)
    device: str
    at_once: int
    seconds: float


class RegionBatch:
    """Draws the fields of several versions of a scan together, for each region of the scan.

    Args:
        seeds: of the versions.
    """

    def __init__(self, seeds: Sequence[int]) -> None:
        self._seeds = seeds
        # For each region, the fields of all versions.
        self._regions: list[list[Generated]] = []

    def version(self, number: int) -> Callable[..., Generated]:
        """Return a function for one version, which stands for :func:`DRDMLib.generation.generate`.

        That of the first version draws the fields of all, so it must be used first.
        """
        regions = itertools.count()

        def draw(images: Tensor, model: Model, settings: DeformationSettings, seeds: Any, **how: Any) -> Generated:
            if len(images) > 1 or len(self._seeds) == 1:
                return generate(images, model, settings, seeds, **how)
            region = next(regions)
            if number == 0:
                own = [derived_seed(seed, Purpose.REGION, region) for seed in self._seeds]
                made = generate(images, model, settings, own, **how)
                parts = zip(made.random.split(1), made.recovered.split(1), made.own.split(1), strict=True)
                self._regions.append([Generated(*fields, made.at_once) for fields in parts])
            elif how["on_step"] is not None:
                how["on_step"](1, 1)
            return self._regions[region][number]

        return draw


def step_count(settings: DeformationSettings, model: Model) -> int:
    """Return the number of recovery steps of a model with these settings, whose level is a number.

    Raises:
        SettingError: the level or the number of steps is out of range.
    """
    known = dataclasses.replace(settings, steps=settings.steps or model.default_steps)
    return len(known.schedule(model.timesteps))
