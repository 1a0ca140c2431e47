"""Choose the model for a scan: by cheap evidence first, then by the fit that is measured."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import SimpleITK as sitk

from ..errors import DRDMError, ModelError
from ..spatial.model_grid import effective_dimension, image_extent
from .catalogue import CATALOGUE, Entry, default_entry, digest_of, find, user_models
from .metadata import read_header

if TYPE_CHECKING:
    from .fit import Fit
    from .model import Model

# A shipped model that is made for an anatomy is preferred to the general one if its fit is lower by at most this much;
# its limits of size and modality leave out most other scans. A model of the user has no such limits.
PREFERENCE, PREFERENCE_OWN = 0.1, 0.03
# Slices are thick if they are this many times as far apart as the pixels, and farther apart than the voxels of a 3D
# model on the scan, of which there are this many along its longest side.
THICK, MODEL_VOXELS = 3.0, 48
# Hounsfield units: fat and air lie below the first, and most tissue lies between the two others.
_FAT, _LEAST_TISSUE, _MOST = -30.0, -20.0, 4096.0
# An image shows a part of something if more than this fraction of at least so many of its faces is brighter than this
# fraction of the brightest voxels. A whole head has at most one such face, at the neck.
_COVERED, _CUT_FACES, _DARK = 0.25, 2, 0.15
# Every so many voxels are looked at to tell CT from MR.
_SAMPLED = 2**16

_LOCK = threading.Lock()
_LOADED: dict[tuple[str, int, int], Model] = {}


@dataclass(frozen=True)
class Choice:
    """The model for a scan.

    Attributes:
        name: catalog name or path, as ``load_model`` takes it.
        fit: how well it suits the scan.
        others: the fits of the other candidates, best first.
        named: whether the user named the model.
    """

    name: str
    fit: Fit
    others: tuple[Fit, ...] = ()
    named: bool = False

    def message(self) -> str:
        """Return a sentence for the user."""
        how = "" if self.named else " (chosen by its fit)" if self.others else " (the only one for such images)"
        return f"Model: {self.fit}{how}."

    def warning(self) -> str:
        """Return a sentence for the user if the fit is poor, otherwise an empty string."""
        if not self.fit.poor:
            return ""
        return (
            f"The model '{self.fit.model}' does not fit this scan well (it undoes {self._share()} of a "
            "random deformation), so the results may not look like real anatomy; look at them, "
            f"{'choose another model, ' if self.named else ''}or train one on such scans with 'drdm train --from'."
        )

    def doubt(self) -> str:
        """Return a sentence on versions that are too strong for the fit, see :class:`DRDMLib.models.fit.Fit`."""
        return (
            f"For this strength the model '{self.fit.model}' does not fit the scan well enough, so the results may not "
            "look like real anatomy; look at them, or choose a lower level."
        )

    def _share(self) -> str:
        undone = self.fit.undone or 0.0
        return f"{100 * undone:.0f} %" if undone > 0 else "nothing"


@dataclass(frozen=True)
class Candidate:
    """A model that may be chosen.

    Attributes:
        name: catalog name.
        digest: ``sha256:...`` of its file.
    """

    name: str
    digest: str

    def entry(self) -> Entry:
        """Return the entry of the catalog.

        Raises:
            ModelError: the model is gone, or is another one now.
        """
        entry = find(self.name)
        if entry is None or not entry.available or digest_of(entry.path, "sha256") != self.digest:
            raise ModelError(
                f"The model '{self.name}' ({self.digest[:19]}...) is no longer in the list of models; "
                "put it back, or choose a new folder."
            )
        return entry


def candidates() -> list[Entry]:
    """List the models that may be chosen where none is named: shipped ones and the user's own."""
    shipped = [entry for entry in CATALOGUE if entry.available and not entry.url and entry.automatic]
    return shipped + user_models()


def frozen_candidates() -> list[Candidate]:
    """List :func:`candidates` with their digests, so that a run can use the same ones later."""
    return [Candidate(entry.name, digest_of(entry.path, "sha256")) for entry in candidates()]


def looks_like_ct(image: sitk.Image) -> bool:
    """Whether voxel values look like Hounsfield units: fat or air below zero, nothing beyond the range of scanners."""
    values = sitk.GetArrayViewFromImage(image).reshape(-1)
    values = values[:: max(1, len(values) // _SAMPLED)]
    low, high = np.percentile(values, [1, 99.5])
    return bool(low < _FAT and _LEAST_TISSUE < high < _MOST and high - low > 100)


def has_thick_slices(image: sitk.Image) -> bool:
    """Whether a volume is a stack of slices so thick that a 3D model cannot tell what lies between them."""
    if effective_dimension(image) == 2:
        return False
    spacing = sorted(image.GetSpacing())
    return bool(spacing[2] > max(THICK * spacing[1], float(image_extent(image).max()) / MODEL_VOXELS))


def is_part(image: sitk.Image) -> bool:
    """Whether an image of something bright, such as MR, seems to show a part of it: it fills several faces."""
    values = sitk.GetArrayViewFromImage(image)
    dark = _DARK * np.percentile(values.reshape(-1)[:: max(1, values.size // _SAMPLED)], 99)
    faces = [values.take(end, axis=axis) for axis in range(values.ndim) for end in (0, -1)]
    return sum(float((face > dark).mean()) > _COVERED for face in faces) >= _CUT_FACES


def reasons_against(image: sitk.Image, entries: Sequence[Entry]) -> list[str]:
    """Say why models are left out by dimension, size, modality or slices of a scan.

    Returns:
        One reason for each model, or an empty text if its fit is worth measuring.
    """
    dimension, thick = effective_dimension(image), has_thick_slices(image)
    ct, part, extent = looks_like_ct(image), is_part(image), float(image_extent(image).max())

    def reason(entry: Entry) -> str:
        if entry.ndim > dimension:
            return "for volumes, but this is a single slice"
        if entry.ndim < dimension and not thick:
            return "for slices, but this volume has thin ones"
        if ct and _only_for_mr(entry):
            return "for MR, but this looks like CT"
        if entry.whole and part:
            return "for whole objects, but this shows a part"
        low, high = entry.extent_mm or (0.0, float("inf"))
        if not low <= extent <= high:
            return f"for images {low:.0f} to {high:.0f} mm long, but this has {extent:.0f} mm"
        return ""

    return [reason(entry) for entry in entries]


def _only_for_mr(entry: Entry) -> bool:
    try:
        words = f"{read_header(entry.path).modality} {entry.about}".upper().replace(",", " ").split()
    except ModelError:
        return False
    return ("MR" in words or "MRI" in words) and "CT" not in words


def choose_model(image: sitk.Image, *, plane: str = "auto", among: Sequence[Entry] | None = None) -> Choice:
    """Choose the model that fits a scan best.

    Models of the wrong dimension, size or modality are left out. The fit of the others is measured on the CPU, so that
    the choice does not depend on the device. A model that was made for some anatomy is preferred to a general one if
    its fit is about as good, and of two such models the user's own one. Fits are remembered while the process runs.

    Args:
        image: single-channel image, 2D or 3D.
        plane: slice plane for 2D models on a volume, see :class:`DRDMLib.settings.DeformationSettings`.
        among: models to choose from; by default :func:`candidates`.

    Raises:
        ImageError: the image cannot be used.
        ModelError: there is no model of its dimension.
    """
    from .fit import Probe, measure_fit

    # Several threads may share the image, and access to its voxels can move them in memory.
    image = sitk.Image(image)
    known = candidates() if among is None else among
    entries = [entry for entry, reason in zip(known, reasons_against(image, known), strict=True) if not reason]
    if not entries:
        entries = [default_entry(effective_dimension(image))]
    probe, measured = Probe(image, plane), []
    problem: DRDMError | None = None
    for entry in entries:
        # A damaged model of the user must not keep the others from being used.
        try:
            measured.append((entry, measure_fit(probe, loaded(entry))))
        except DRDMError as error:
            problem = problem or error
    if problem is not None and not measured:
        raise problem
    measured.sort(key=lambda pair: _by_preference(*pair), reverse=True)
    suitable = _keep_slices_together(measured, effective_dimension(image))
    best = suitable[0][1].undone
    close = [pair for pair in suitable if best is None or _undone(pair[1]) >= best - _preference(pair[0])]
    chosen = max(close, key=lambda pair: _rank(pair[0]))
    others = tuple(fit for entry, fit in measured if entry is not chosen[0])
    return Choice(chosen[0].name, chosen[1], others)


def named_choice(image: sitk.Image, name: str | os.PathLike[str], model: Model, *, plane: str = "auto") -> Choice:
    """Measure the fit of a model that the user has named.

    Args:
        name: catalog name or path.
        model: the model, loaded on any device.
        image, plane: as for :func:`choose_model`.

    Raises:
        ImageError, ModelError: the image cannot be used with the model.
    """
    from .fit import measure_fit

    stays = model.device.type == "cpu" or not model.supports_target_level
    on_cpu = model if stays else model.on("cpu")
    return Choice(os.fspath(name), measure_fit(sitk.Image(image), on_cpu, plane=plane), named=True)


def loaded(entry: Entry) -> Model:
    """Load a model of the catalog onto the CPU; it is kept while the process runs, unless its file changes.

    Raises:
        ModelError: it is damaged.
    """
    from .model import load_model_file

    written = entry.path.stat()
    key = (str(entry.path), written.st_mtime_ns, written.st_size)
    with _LOCK:
        if key not in _LOADED:
            model = load_model_file(entry.path, "cpu")
            model.metadata = replace(model.metadata, name=entry.name)
            _LOADED[key] = model
        return _LOADED[key]


def _keep_slices_together(measured: list[tuple[Entry, Fit]], dimension: int) -> list[tuple[Entry, Fit]]:
    """Leave out the shipped models for slices where one for volumes suits: it keeps the slices of a stack together."""
    suits = any(entry.ndim == dimension and not fit.poor for entry, fit in measured)
    return [pair for pair in measured if not suits or pair[0].ndim == dimension or pair[0].own is not None]


def _by_preference(entry: Entry, fit: Fit) -> tuple[float, int]:
    return _undone(fit), _rank(entry)


def _undone(fit: Fit) -> float:
    return float("-inf") if fit.undone is None else fit.undone


def _preference(entry: Entry) -> float:
    return PREFERENCE_OWN if entry.own is not None else PREFERENCE


def _rank(entry: Entry) -> int:
    """Rank models of equal fit: the user's own, then those for one anatomy, then general ones."""
    return 2 if entry.own is not None else 1 if entry.extent_mm is not None else 0
