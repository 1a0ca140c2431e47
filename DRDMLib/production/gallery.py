"""Pictures to judge by eye: pages that show each scan beside new versions of it, and a blinded test.

Both pages are single files without links to others. They contain pictures of the scans, so they are as confidential as
the scans are.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
import SimpleITK as sitk

from ..deforming import make_deformations, model_for
from ..drawing import Plane, SlicePicture, Style, contrast_window, fullest_plane
from ..io.datasets import Case
from ..levels import STRENGTHS, Level
from ..models.model import Model
from ..pages import fill_page, picture_uri
from ..settings import DeformationSettings
from .plan import seed_of
from .sources import read_source

# The package of the templates.
_PACKAGE = "DRDMLib.production"
STYLE = Style(side=240, lines=16, contour_width=1, smooth=True)
# Real pictures of the blinded test, for each made one.
_REAL_SHARE = 0.3
# The part of a stack in which slices for the blinded test are chosen.
_INNER = 0.5


@dataclass(frozen=True)
class GallerySettings:
    """What a gallery shows.

    Attributes:
        levels: strengths of the versions.
        versions: number of versions of each level.
        seed: of the versions, and of the order in the blinded test.
        model: a loaded model, its name or path; by default the best one for each scan.
        device: where to compute.
        deformation: the other settings of the deformations.
    """

    levels: tuple[Level, ...] = STRENGTHS
    versions: int = 4
    seed: int = 0
    model: Model | str | None = None
    device: str = "auto"
    deformation: DeformationSettings = field(default_factory=DeformationSettings)


class Shown(NamedTuple):
    """What is shown of one scan.

    Attributes:
        card: entry of the gallery: name, model, and the pictures as data URIs.
        trials: entries of the blinded test: picture, and the answer (``real``, or the level).
    """

    card: dict[str, Any]
    trials: list[dict[str, Any]]


def show_case(case: Case, settings: GallerySettings, on_version: Callable[[], None] = lambda: None) -> Shown:
    """Make versions of a scan, and draw them.

    Args:
        on_version: called after each version.

    Raises:
        ImageError, ModelError, SettingError: as :func:`DRDMLib.deform`.
    """
    source = read_source(case, need_label=False)
    image, label = source.image, source.label
    model = settings.model
    if not isinstance(model, Model):
        model = model_for(image, model, settings.device, plane=settings.deformation.plane)
    window = contrast_window(sitk.GetArrayViewFromImage(image))
    plane = fullest_plane(image, label, _thickest_axis(image))
    random = np.random.default_rng(seed_of(settings.seed, case.name, (), 0, 0))
    rows, trials = [], []
    for level in settings.levels:
        row = []
        how = replace(settings.deformation, level=level)
        seeds = [seed_of(settings.seed, case.name, (level,), number, 0) for number in range(settings.versions)]
        for made in make_deformations(image, model, how, seeds, device=settings.device):
            version = made.warp(image)
            row.append(_picture(version, None if label is None else made.warp_label(label), plane, window))
            trials.append(_trial(version, _random_plane(image, random), window, str(level), case.name))
            on_version()
        rows.append({"level": level, "pictures": row})
    for _ in range(max(1, round(_REAL_SHARE * len(trials)))):
        trials.append(_trial(_resampled(image, random), _random_plane(image, random), window, "real", case.name))
    original = _picture(image, label, plane, window)
    return Shown({"name": case.name, "model": model.metadata.name, "original": original, "rows": rows}, trials)


def gallery_page(title: str, shown: Sequence[Shown]) -> str:
    """Return the page that shows each scan beside its versions."""
    return fill_page(_PACKAGE, "gallery_page.html", title, {"title": title, "cards": [one.card for one in shown]})


def blind_page(title: str, shown: Sequence[Shown], seed: int) -> str:
    """Return the page of the blinded test: real and made pictures in random order, to be told apart.

    Real scans are shown after a random shift by less than a voxel, so that they are as smooth as made ones. The answers
    are in the page, encoded, so that they are not seen by accident.
    """
    trials = [trial for one in shown for trial in one.trials]
    order = np.random.default_rng(seed).permutation(len(trials))
    answers = [[trials[k]["answer"], trials[k]["case"]] for k in order]
    key = base64.b64encode(json.dumps(answers).encode()[::-1]).decode("ascii")
    data = {"title": title, "pictures": [trials[k]["picture"] for k in order], "key": key}
    return fill_page(_PACKAGE, "blind_page.html", title, data)


def _thickest_axis(image: sitk.Image) -> int:
    """Return the axis that counts the slices: the one with the thickest, or the last one where all are alike."""
    spacing = np.asarray(image.GetSpacing())
    return int(spacing.argmax()) if spacing.max() > 1.01 * spacing.min() else len(spacing) - 1


def _random_plane(image: sitk.Image, random: np.random.Generator) -> Plane:
    axis = _thickest_axis(image)
    if image.GetDimension() == 2:
        return Plane()
    count = image.GetSize()[axis]
    return Plane(axis, int(count * (0.5 + _INNER * (random.random() - 0.5))))


def _resampled(image: sitk.Image, random: np.random.Generator) -> sitk.Image:
    """Shift an image by less than a voxel, which smooths it as much as a deformation does."""
    d = image.GetDimension()
    shift = np.asarray(image.GetSpacing()) * (0.2 + 0.3 * random.random(d)) * [n > 1 for n in image.GetSize()]
    direction = np.asarray(image.GetDirection()).reshape(d, d)
    resampler = sitk.ResampleImageFilter()
    resampler.SetReferenceImage(image)
    resampler.SetTransform(sitk.TranslationTransform(d, (direction @ shift).tolist()))
    resampler.SetInterpolator(sitk.sitkLinear)
    resampler.SetUseNearestNeighborExtrapolator(True)
    moved: sitk.Image = resampler.Execute(image)
    return moved


def _picture(image: sitk.Image, label: sitk.Image | None, plane: Plane, window: tuple[float, float]) -> str:
    picture = SlicePicture(image, plane, STYLE, window)
    if label is not None:
        picture.draw_contours(label)
    return picture_uri(picture.upright_square())


def _trial(image: sitk.Image, plane: Plane, window: tuple[float, float], answer: str, case: str) -> dict[str, Any]:
    return {"picture": _picture(image, None, plane, window), "answer": answer, "case": case}
