"""What the speed benchmark times: one deformation of a phantom, by DRDM and by its peers.

A contender is described by plain values, so that a process of its own can be told by a line of JSON what to be.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

# The processes inherit the driver's peak memory as the least they report (Linux), so nothing large is imported here.
if TYPE_CHECKING:
    import SimpleITK as sitk
    import torch

SIDES = {2: 256, 3: 128}
LEVEL = 48
RANDOM_LEVEL = 64
SEED = 0
# Standard deviation; the body is 500.
NOISE = 25.0


@dataclass(frozen=True)
class Contender:
    """One row of the table.

    Attributes:
        kind: one of ``KINDS``.
        label: names it to the reader.
        ndim, side: the image is (side,) * ndim.
        model: of DRDM: catalogue name or path.
        level, steps: of DRDM.
        source: of the authors: path of a checkout of their repository.
        threads: of its process; 0 is what the libraries choose.
        device: where DRDM computes.
    """

    kind: str
    label: str
    ndim: int
    side: int
    model: str = ""
    level: int = LEVEL
    steps: int | None = None
    source: str = ""
    threads: int = 0
    device: str = "cpu"


@dataclass(frozen=True)
class Task:
    """What a contender does.

    Attributes:
        call: one deformation of the phantom.
        field: from what ``call`` returned to the displacement field, millimetres; neither timed nor counted as memory.
        seconds: from what ``call`` returned to the time of a whole deformation, where only a part of one was done.
    """

    call: Callable[[], Any]
    field: Callable[[Any], sitk.Image]
    seconds: Callable[[Any], float] | None = None


def phantom(ndim: int, side: int | None = None) -> np.ndarray:
    """A body with a rim, four organs, shading and a scanner's noise: (side,) * ndim, 32-bit, always the same.

    The noise matters: networks trained on scans find nothing to hold on to in areas that are perfectly smooth.
    """
    generator = np.random.default_rng(SEED)
    line = np.linspace(-1, 1, side or SIDES[ndim], dtype=np.float32)
    axes = np.meshgrid(*[line] * ndim, indexing="ij", sparse=True)

    def ellipsoid(centre: np.ndarray, radii: np.ndarray) -> np.ndarray:
        squares = [((x - c) / r) ** 2 for x, c, r in zip(axes, centre.tolist(), radii.tolist(), strict=True)]
        return 1 / (1 + np.exp(np.clip((np.sqrt(sum(squares)) - 1) / 0.03, -60, 60)))

    image = 900 * ellipsoid(np.zeros(ndim), np.full(ndim, 0.8)) - 400 * ellipsoid(np.zeros(ndim), np.full(ndim, 0.72))
    for strength in (300, -200, 250, -300):
        image += strength * ellipsoid(generator.uniform(-0.4, 0.4, ndim), generator.uniform(0.1, 0.3, ndim))
    for _ in range(6):
        waves = [k * x for k, x in zip(generator.uniform(-12, 12, ndim).tolist(), axes, strict=True)]
        image += 15 * np.cos(sum(waves) + float(generator.uniform(0, 6)))
    image += generator.normal(0, NOISE, image.shape)
    return image.astype(np.float32)


def voxel_field(displacement: torch.Tensor) -> sitk.Image:
    """A field (d, *S) in voxels, channel k along axis k, as a displacement field on a grid of 1 mm."""
    import SimpleITK as sitk

    vectors = np.moveaxis(displacement.cpu().numpy().astype(np.float64)[::-1], 0, -1)
    return sitk.GetImageFromArray(np.ascontiguousarray(vectors), isVector=True)


def drdm(who: Contender) -> Task:
    """``DRDMLib.deform``, the warped image and the field."""
    import SimpleITK as sitk

    import DRDMLib
    from DRDMLib.models import Model

    image = sitk.GetImageFromArray(phantom(who.ndim, who.side))
    if who.model == "published-layout-3d":
        # The authors' 3D weights cannot be had everywhere; what they weigh does not change what they cost.
        network = published_layout(who.device)
    else:
        network = DRDMLib.load_model(who.model, who.device)
    assert isinstance(network, Model)

    def call() -> tuple[sitk.Image, sitk.Image]:
        result = DRDMLib.deform(image, network, level=who.level, seed=SEED, steps=who.steps)
        return result.warp(image), result.ddf

    return Task(call, lambda output: output[1])


def published_layout(device: str) -> Any:
    """The published 3D network with random weights that predict small steps."""
    import torch

    from DRDMLib.metadata import ModelMetadata
    from DRDMLib.models import Model
    from DRDMLib.networks import build_network

    torch.manual_seed(SEED)
    network = build_network("recresacnet", 3, 80)
    with torch.no_grad():
        network.conv_out.weight.mul_(1e-3)  # type: ignore[union-attr, operator]
        network.conv_out.bias.zero_()  # type: ignore[union-attr, operator]
    policies = {"intensity": "minmax", "geometry": "stretch", "orientation": "native", "axes": "ijk"}
    metadata = ModelMetadata("published-layout-3d", "recresacnet", 3, 128, **policies)  # type: ignore[arg-type]
    return Model(network, metadata, torch.device(device))


def drdm_random(who: Contender) -> Task:
    """The random field alone, without recovery and without an image."""
    import torch

    import DRDMLib

    def call() -> torch.Tensor:
        return DRDMLib.random_ddf(who.side, who.ndim, who.level, torch.Generator().manual_seed(SEED))

    return Task(call, lambda ddf: voxel_field(ddf[0] * who.side))


def torchio_elastic(who: Contender) -> Task:
    """TorchIO's ``RandomElasticDeformation`` with its defaults; a 2D image is a volume of one slice to it."""
    import SimpleITK as sitk
    import torch
    import torchio

    tensor = torch.from_numpy(phantom(who.ndim, who.side)).reshape(1, *[who.side] * who.ndim, *[1] * (3 - who.ndim))
    subject = torchio.Subject(image=torchio.ScalarImage(tensor=tensor))
    transform = torchio.RandomElasticDeformation()

    def call() -> torchio.Subject:
        torch.manual_seed(SEED)
        return transform(subject)

    def spline_field(warped: torchio.Subject) -> sitk.Image:
        grid = torchio.data.io.nib_to_sitk(warped.image.data, warped.image.affine, force_3d=True)
        spline = warped.history[-1].get_bspline_transform(grid)
        filled = sitk.TransformToDisplacementFieldFilter()
        filled.SetReferenceImage(grid)
        return filled.Execute(spline)

    return Task(call, spline_field)


def monai_elastic(who: Contender) -> Task:
    """MONAI's ``Rand2DElastic`` or ``Rand3DElastic``, elastic part only: MONAI has no defaults for its strength."""
    import torch
    from monai.transforms import Rand2DElastic, Rand3DElastic

    image = torch.from_numpy(phantom(who.ndim, who.side))[None]
    common: dict[str, Any] = {"prob": 1.0, "mode": "bilinear", "padding_mode": "border"}
    transform: Any
    if who.ndim == 2:
        transform = Rand2DElastic(spacing=(30, 30), magnitude_range=(5, 6), **common)
    else:
        transform = Rand3DElastic(sigma_range=(5, 7), magnitude_range=(50, 150), **common)

    def call() -> torch.Tensor:
        return transform.set_random_state(SEED)(image)

    return Task(call, lambda _: monai_field(transform, call, image))


def monai_field(transform: Any, call: Callable[[], Any], image: torch.Tensor) -> sitk.Image:
    """The field of one more call: MONAI does not hand it out, so its resampler is watched."""
    from monai.transforms.utils import create_grid

    resampler = transform.resampler
    seen = []

    def watch(img: torch.Tensor, grid: torch.Tensor, **options: Any) -> torch.Tensor:
        seen.append(grid.clone())
        return resampler(img, grid, **options)

    transform.resampler = watch
    call()
    ndim = image.ndim - 1
    still: Any = create_grid(image.shape[1:], backend="torch")
    return voxel_field((seen[0] - still)[:ndim])


def authors(who: Contender) -> Task:
    """The authors' deformation, from a checkout of their repository."""
    from authors import deformation

    return deformation(who)


def authors_random(who: Contender) -> Task:
    """The authors' random field alone."""
    from authors import random_field

    return random_field(who)


# Kind -> what it does, and the module that is imported before the baseline memory is read.
KINDS: dict[str, tuple[Callable[[Contender], Task], str]] = {
    "drdm": (drdm, "DRDMLib.deformation"),
    "random": (drdm_random, "DRDMLib.deformation"),
    "torchio": (torchio_elastic, "torchio"),
    "monai": (monai_elastic, "monai.transforms"),
    "authors": (authors, "torch"),
    "authors-random": (authors_random, "torch"),
}
