"""Random deformations of one image by name, as displacement fields in millimetres: ours and those we compare with.

A method is ``torchio``, ``torchio@VOXELS`` (largest displacement), ``monai``, ``affine``, ``MODEL`` (recovered) or
``MODEL:random`` (the same random field, not recovered), where ``MODEL`` is a catalogue name or a path. ``level`` is
that of the model; the elastic ones have settings of their own. ``torchio`` and the models know 2D images too. With
``+AMOUNT`` at its end a method also changes the pose, in the same way whatever the method.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import SimpleITK as sitk
import torch

from DRDMLib.catalogue import load_model
from DRDMLib.deformation import generate, prepare
from DRDMLib.geometry import field_image
from DRDMLib.pose import random_affine
from DRDMLib.resampling import field_on_grid

STEPS = 12
# TorchIO's own number of control points; largest displacement in voxels: its own in 2D, less in small 3D crops.
TORCHIO_MAX = {2: 7.5, 3: 4.0}
# Of random affine maps: degrees, natural logarithm of the scale along each axis, share of the side.
AFFINE_TURN, AFFINE_SCALE, AFFINE_SHIFT = 8.0, 0.1, 0.05
MONAI_SIGMA, MONAI_MAGNITUDE = (5, 7), (50, 150)

Deformer = Callable[[sitk.Image, int, int], np.ndarray]


def torchio_field(image: sitk.Image, seed: int, level: int = 0, most: float = 0.0) -> np.ndarray:
    """TorchIO's ``RandomElasticDeformation``, its control points moving by ``most`` at most: (*S reversed, d) mm."""
    import torchio

    torch.manual_seed(seed)
    flat = image.GetDimension() == 2
    array = sitk.GetArrayFromImage(image).astype(np.float32).T
    subject = torchio.Subject(image=torchio.ScalarImage(tensor=array[None, ..., None] if flat else array[None]))
    most = most or TORCHIO_MAX[image.GetDimension()]
    warped = torchio.RandomElasticDeformation(max_displacement=most)(subject)
    grid = torchio.data.io.nib_to_sitk(warped.image.data, warped.image.affine, force_3d=True)
    filled = sitk.TransformToDisplacementFieldFilter()
    filled.SetReferenceImage(grid)
    field = sitk.GetArrayFromImage(filled.Execute(warped.history[-1].get_bspline_transform(grid)))
    # Its grid has unit spacing and axes of its own; a random field has no preferred axis.
    return (field[0, ..., :2] if flat else field) * np.asarray(image.GetSpacing())


def monai_field(image: sitk.Image, seed: int, level: int = 0) -> np.ndarray:
    """What MONAI's ``Rand3DElastic`` adds to its grid: smoothed uniform noise times a magnitude, mm."""
    from monai.networks.layers import GaussianFilter
    from monai.transforms import Rand3DElastic

    transform = Rand3DElastic(MONAI_SIGMA, MONAI_MAGNITUDE, prob=1.0).set_random_state(seed)
    transform.randomize(image.GetSize()[::-1])
    smooth = GaussianFilter(3, transform.sigma, 3.0)(torch.as_tensor(transform.rand_offset[None]))
    offset = smooth[0].numpy() * transform.magnitude
    return np.moveaxis(offset, 0, -1) * np.asarray(image.GetSpacing())


def affine_field(image: sitk.Image, seed: int, level: int = 0) -> np.ndarray:
    """A random turn, scale and shift about the image's middle, as a displacement field in mm: what no elasticity is."""
    rng = np.random.default_rng(seed)
    extent = np.asarray(image.GetSize()) * np.asarray(image.GetSpacing())
    transform = sitk.Euler3DTransform()
    transform.SetRotation(*np.radians(rng.normal(0, AFFINE_TURN, 3)).tolist())
    turn = np.asarray(transform.GetMatrix()).reshape(3, 3)
    matrix = turn @ np.diag(np.exp(rng.normal(0, AFFINE_SCALE, 3)))
    axes = [(np.arange(n) - (n - 1) / 2) * s for n, s in zip(image.GetSize(), image.GetSpacing(), strict=True)]
    x, y, z = axes
    places = np.stack(np.meshgrid(z, y, x, indexing="ij")[::-1], axis=-1)
    return places @ (matrix - np.eye(3)).T + rng.normal(0, AFFINE_SHIFT, 3) * extent


def model_deformer(name: str, device: str = "cpu") -> Deformer:
    """Fields of a model, on the image's grid; the bare recovery, without repair."""
    path, _, stage = name.partition(":")
    model = load_model(path, device)

    def field(image: sitk.Image, seed: int, level: int) -> np.ndarray:
        grid, tensor = prepare(image, model)
        if stage == "random":
            made = generate(tensor, model, level, seed, steps=1).random
        else:
            made = generate(tensor, model, level, seed, steps=STEPS).recovered
        return np.asarray(field_on_grid(field_image(made.cpu(), grid), image, 0, image.GetSize()[-1]))

    return field


def posed(image: sitk.Image, field: np.ndarray, seed: int, amount: float) -> np.ndarray:
    """The field, then a pose as a model adds it (:mod:`DRDMLib.pose`), about the image's middle: mm."""
    d = image.GetDimension()
    matrix, shift = (x.double().numpy() for x in random_affine(d, amount, torch.Generator().manual_seed(seed)))
    extent = float(np.max(np.asarray(image.GetSize()) * np.asarray(image.GetSpacing())))
    direction = np.asarray(image.GetDirection()).reshape(d, d)
    pose = sitk.AffineTransform(d)
    pose.SetCenter(image.TransformContinuousIndexToPhysicalPoint([(n - 1) / 2 for n in image.GetSize()]))
    pose.SetMatrix((direction @ matrix @ direction.T).ravel().tolist())
    pose.SetTranslation((direction @ shift * extent).tolist())
    filled = sitk.TransformToDisplacementFieldFilter()
    filled.SetReferenceImage(image)
    return sitk.GetArrayFromImage(filled.Execute(sitk.CompositeTransform([as_transform(field, image), pose])))


def deformer(name: str, device: str = "cpu") -> Deformer:
    """The method of that name; a model works on ``device``."""
    name, _, amount = name.partition("+")
    if amount:
        plain = deformer(name, device)
        return lambda image, seed, level: posed(image, plain(image, seed, level), seed, float(amount))
    name, _, most = name.partition("@") if name.startswith("torchio@") else (name, "", "")
    if most:
        return partial(torchio_field, most=float(most))
    known = {"torchio": torchio_field, "monai": monai_field, "affine": affine_field}
    return known.get(name) or model_deformer(name, device)


def is_elastic(name: str) -> bool:
    """Whether it knows no levels."""
    return name.partition("+")[0].partition("@")[0] in ("torchio", "monai", "affine")


def as_transform(field: np.ndarray, image: sitk.Image) -> sitk.DisplacementFieldTransform:
    """A field on the grid of ``image`` as a transform."""
    vectors = sitk.GetImageFromArray(np.ascontiguousarray(field, dtype=np.float64), isVector=True)
    vectors.CopyInformation(image)
    return sitk.DisplacementFieldTransform(vectors)
