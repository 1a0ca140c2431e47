"""Random deformations of one image by name, as displacement fields in millimetres: ours and those we compare with.

A method is ``torchio``, ``monai``, or ``MODEL`` (recovered) and ``MODEL:random`` (the same random field, not
recovered), where ``MODEL`` is a catalogue name or a path. ``level`` is that of the model; the elastic ones have
settings of their own.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import SimpleITK as sitk
import torch

from DRDMLib.catalogue import load_model
from DRDMLib.deformation import generate, prepare
from DRDMLib.geometry import field_image
from DRDMLib.resampling import field_on_grid

STEPS = 12
# TorchIO's own number of control points; its largest displacement, mm.
TORCHIO_MAX_MM = 4.0
MONAI_SIGMA, MONAI_MAGNITUDE = (5, 7), (50, 150)

Deformer = Callable[[sitk.Image, int, int], np.ndarray]


def torchio_field(image: sitk.Image, seed: int, level: int = 0) -> np.ndarray:
    """TorchIO's ``RandomElasticDeformation``, (*S reversed, d) mm."""
    import torchio

    torch.manual_seed(seed)
    array = sitk.GetArrayFromImage(image).astype(np.float32).T
    subject = torchio.Subject(image=torchio.ScalarImage(tensor=array[None]))
    warped = torchio.RandomElasticDeformation(max_displacement=TORCHIO_MAX_MM)(subject)
    grid = torchio.data.io.nib_to_sitk(warped.image.data, warped.image.affine, force_3d=True)
    filled = sitk.TransformToDisplacementFieldFilter()
    filled.SetReferenceImage(grid)
    field = sitk.GetArrayFromImage(filled.Execute(warped.history[-1].get_bspline_transform(grid)))
    # Its grid has unit spacing and axes of its own; a random field has no preferred axis.
    return field * np.asarray(image.GetSpacing())


def monai_field(image: sitk.Image, seed: int, level: int = 0) -> np.ndarray:
    """What MONAI's ``Rand3DElastic`` adds to its grid: smoothed uniform noise times a magnitude, mm."""
    from monai.networks.layers import GaussianFilter
    from monai.transforms import Rand3DElastic

    transform = Rand3DElastic(MONAI_SIGMA, MONAI_MAGNITUDE, prob=1.0).set_random_state(seed)
    transform.randomize(image.GetSize()[::-1])
    smooth = GaussianFilter(3, transform.sigma, 3.0)(torch.as_tensor(transform.rand_offset[None]))
    offset = smooth[0].numpy() * transform.magnitude
    return np.moveaxis(offset, 0, -1) * np.asarray(image.GetSpacing())


def model_deformer(name: str) -> Deformer:
    """Fields of a model, on the image's grid; the bare recovery, without repair."""
    path, _, stage = name.partition(":")
    model = load_model(path, "cpu")

    def field(image: sitk.Image, seed: int, level: int) -> np.ndarray:
        grid, tensor = prepare(image, model)
        if stage == "random":
            made = generate(tensor, model, level, seed, steps=1).random
        else:
            made = generate(tensor, model, level, seed, steps=STEPS).recovered
        return np.asarray(field_on_grid(field_image(made, grid), image, 0, image.GetSize()[-1]))

    return field


def deformer(name: str) -> Deformer:
    """The method of that name."""
    return {"torchio": torchio_field, "monai": monai_field}.get(name) or model_deformer(name)


def is_elastic(name: str) -> bool:
    """Whether it knows no levels."""
    return name in ("torchio", "monai")


def as_transform(field: np.ndarray, image: sitk.Image) -> sitk.DisplacementFieldTransform:
    """A field on the grid of ``image`` as a transform."""
    vectors = sitk.GetImageFromArray(np.ascontiguousarray(field, dtype=np.float64), isVector=True)
    vectors.CopyInformation(image)
    return sitk.DisplacementFieldTransform(vectors)
