"""How well a model suits a scan, measured without labels.

The scan is deformed at random, the model predicts the correction once, and what counts is the share of the
deformation's energy that the correction undoes. A model that knows the anatomy undoes much of it; one that does not
undoes nothing, or adds to it. How this measure was chosen, and what it says of the shipped models, is on the page
``docs/fit.md``.
"""

from __future__ import annotations

import hashlib
import math
import threading
import weakref
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import SimpleITK as sitk
import torch
from torch import Tensor

from ..diffusion.fields import compose, warp
from ..diffusion.forward import ForwardProcess
from ..runtime.remembered import Remembered
from ..runtime.threads import one_thread
from ..spatial.model_grid import image_extent, model_grid, sample_image

if TYPE_CHECKING:
    from .model import Model

# The random deformations, the same for all models: their size is a share of the scan's longest side. These three stand
# for many: of the triples of 18, their fit is nearest to that of all 18, see docs/fit.md.
LEVEL = 40
SEEDS = (5, 11, 16)
FIELDS = len(SEEDS)
_FIELD: dict[str, Any] = {"noise_grids": (16, 8, 4), "control_size": 32, "velocity_scale": 6e-5, "amplitude": 2.0}
# A scan is reduced to about this many voxels along its longest side before it is placed on the grids of the models.
_ENOUGH_VOXELS = 160

# Smallest share for the words "good" and "fair", by the dimension of the model: in slices a deformation is easier to
# see. Fixed on half of the kinds of scans on the page docs/fit.md, and tested on the others.
_WORDS = {3: (0.45, 0.2), 2: (0.6, 0.4)}

# Largest mean displacement that may be left uncorrected, fraction of the longest side.
_MOST_LEFT = 0.03


@dataclass(frozen=True)
class Fit:
    """How well a model suits a scan.

    Attributes:
        model: name of the model.
        undone: share of the energy of random deformations that one prediction undoes, at most 1; negative if the
            prediction makes them worse. ``None`` if it is not known: the model predicts small steps only.
        still: mean displacement that the model predicts for the scan as it is, as a fraction of the longest side;
            ``None`` if it is not known.
        ndim: dimension of the model, 2 or 3.
    """

    model: str
    undone: float | None = None
    still: float | None = None
    ndim: int = 3

    @property
    def word(self) -> str:
        """``"good"``, ``"fair"``, ``"poor"`` or ``"not known"``."""
        if self.undone is None:
            return "not known"
        good, fair = _WORDS[self.ndim]
        return "good" if self.undone >= good else "fair" if self.undone >= fair else "poor"

    @property
    def poor(self) -> bool:
        """Whether the model is known not to suit the scan."""
        return self.word == "poor"

    def doubtful(self, displacement: float) -> bool:
        """Whether a deformation is too strong for how well the model suits the scan.

        The part of it that the model does not correct grows with the displacement.

        Args:
            displacement: mean displacement, fraction of the longest side.
        """
        if self.undone is None or self.poor:
            return self.poor
        return displacement * math.sqrt(max(0.0, 1 - self.undone)) > _MOST_LEFT

    def __str__(self) -> str:
        """Return the words for the user, such as ``general-3d; undoes 41 % on this scan: fair``."""
        if self.undone is None:
            return f"{self.model}; its fit to this scan is not known"
        return f"{self.model}; undoes {100 * self.undone:.0f} % on this scan: {self.word}"

    def to_dict(self) -> dict[str, Any]:
        """Return the values for records and reports."""
        return asdict(self) | {"word": self.word}

    @staticmethod
    def from_dict(values: dict[str, Any]) -> Fit:
        """Make a fit from the values of a record; unknown keys are ignored."""
        return Fit(values["model"], values.get("undone"), values.get("still"), values.get("ndim", 3))


_FITS = Remembered[Fit](1024)
_DIGESTS: weakref.WeakKeyDictionary[Model, str] = weakref.WeakKeyDictionary()
_LOCK = threading.Lock()
_FIELDS: dict[tuple[int, int], Tensor] = {}


class Probe:
    """A scan that is being measured: its digest, and a smaller copy that is placed on the grids of several models.

    Args:
        image: single-channel image, 2D or 3D.
        plane: slice plane for 2D models on a volume, see :class:`DRDMLib.settings.DeformationSettings`.
    """

    def __init__(self, image: sitk.Image, plane: str = "auto") -> None:
        self.image = image
        self.plane = plane
        self.digest = digest_of_image(image)
        self._small: sitk.Image | None = None
        self._tensors: dict[tuple[Any, ...], Tensor] = {}

    def tensor(self, model: Model) -> Tensor:
        """Return the scan on the grid of a model: (FIELDS, 1, *S), intensities 0..1.

        For a 2D model on a volume these are slices from the middle half, otherwise equal copies.

        Raises:
            ImageError, ModelError: the scan cannot be used with the model.
        """
        how = model.metadata
        kind = (how.ndim, how.size, how.geometry, how.orientation, how.axes, how.intensity, how.image_padding)
        if kind not in self._tensors:
            grid = model_grid(self.image, how, plane=self.plane)
            # The smaller copy has other slices, so stacks are sampled from the scan itself.
            source = self.image if grid.stack else self._reduced()
            sampled = sample_image(source, grid, how.intensity, how.image_padding)
            chosen = np.linspace(0.25, 0.75, FIELDS) * (len(sampled) - 1)
            self._tensors[kind] = sampled[np.round(chosen).astype(int)]
        return self._tensors[kind]

    def _reduced(self) -> sitk.Image:
        if self._small is None:
            finest = float(image_extent(self.image).max()) / _ENOUGH_VOXELS
            sizes = zip(self.image.GetSpacing(), self.image.GetSize(), strict=True)
            factors = [min(max(1, int(finest / spacing)), size) for spacing, size in sizes]
            self._small = sitk.BinShrink(self.image, factors) if max(factors) > 1 else self.image
        return self._small


def measure_fit(image: sitk.Image | Probe, model: Model, *, plane: str = "auto") -> Fit:
    """Measure how well a model suits a scan.

    The random deformations are the same for every model: three of level 40, with noise on grids of 16, 8 and 4 nodes,
    as coarse as the differences between people. The sum of squares of what is left of them after one prediction is
    compared with that of the deformations. The result is remembered while the process runs, and is the same for any
    number of threads.

    Args:
        image: single-channel image, 2D or 3D; or a :class:`Probe` of it, to measure several models.
        model: on any device; the fit depends on it by rounding.
        plane: slice plane for a 2D model on a volume, see :class:`DRDMLib.settings.DeformationSettings`.

    Returns:
        The fit. It is not known for models that predict only the last small step, as published.

    Raises:
        ImageError: the image cannot be used.
        ModelError: the model is 3D, but the image is 2D or a single slice.
    """
    probe = image if isinstance(image, Probe) else Probe(image, plane)
    name = model.metadata.name
    if not model.supports_target_level or model.timesteps <= LEVEL:
        return Fit(name, ndim=model.ndim)
    key = (probe.digest, probe.plane, _digest_of_model(model), model.device.type)

    def compute() -> Fit:
        with one_thread():
            return _measured(probe.tensor(model), model)

    known = _FITS.of(key, compute)
    return Fit(name, known.undone, known.still, model.ndim)


@torch.inference_mode()
def _measured(images: Tensor, model: Model) -> Fit:
    fields = _fields(model.size, model.ndim).to(model.device)
    images = images.to(model.device)
    warped = warp(images, fields, padding=model.metadata.image_padding)
    # The same networks and levels for the scan as it is: one pass for all.
    predicted = model.predict_to(torch.cat([warped, images[:1]]), LEVEL, -1)
    left = compose(fields, predicted[:FIELDS])
    before, after = (float(field.double().square().sum()) for field in (fields, left))
    still = float(predicted[FIELDS:].square().sum(dim=1).sqrt().mean())
    return Fit(model.metadata.name, round(1 - after / before, 4), round(still, 4), model.ndim)


def _fields(size: int, ndim: int) -> Tensor:
    """Return the fixed random deformations: (FIELDS, d, *S), fraction of the side."""
    if (size, ndim) not in _FIELDS:
        process, generator = ForwardProcess(size, ndim, **_FIELD), torch.Generator()
        _FIELDS[size, ndim] = torch.cat([process.ddf(LEVEL, generator.manual_seed(seed)) for seed in SEEDS])
    return _FIELDS[size, ndim]


def digest_of_image(image: sitk.Image) -> str:
    """Return a digest of the voxels and the geometry of an image."""
    geometry = (image.GetSize(), image.GetSpacing(), image.GetDirection(), image.GetOrigin(), image.GetPixelID())
    total = hashlib.blake2b(repr(geometry).encode(), digest_size=16)
    total.update(np.ascontiguousarray(sitk.GetArrayViewFromImage(image)).data)
    return total.hexdigest()


def _digest_of_model(model: Model) -> str:
    with _LOCK:
        known = _DIGESTS.get(model)
    if known is None:
        total = hashlib.blake2b(repr(sorted(asdict(model.metadata).items())).encode(), digest_size=16)
        for name, tensor in sorted(model.network.state_dict().items()):
            total.update(name.encode())
            total.update(tensor.detach().cpu().contiguous().numpy().tobytes())
        known = total.hexdigest()
        with _LOCK:
            _DIGESTS[model] = known
    return known
