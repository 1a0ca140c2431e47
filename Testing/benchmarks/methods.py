"""Every way to deform an image that the benchmarks compare.

:func:`deformer` finds a method by its name; its fields are arrays as in :mod:`benchmarks.displacement`:

    torchio, torchio@VOXELS   TorchIO's elastic deformation, VOXELS being the largest displacement of a control point
    torchio-mm, torchio-mm@MMxPOINTS   the same on the image in space, MM and the number of control points by default
                              those of TorchIO, 7.5 and 7; 3D
    nnunet                    the rotation and scaling of nnU-Net's own augmentation, with its probabilities
    monai                     MONAI's elastic deformation, 3D
    affine                    a random affine map, 3D
    nothing                   no displacement
    MODEL                     DRDM, a random field and its recovery; MODEL is a catalogue name or a path
    MODEL:random              the same random field, not recovered
    NAME+AMOUNT               any of these, followed by a random pose
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import SimpleITK as sitk
import torch

from benchmarks.displacement import as_transform, sample_transform, voxel_field
from DRDMLib.diffusion.affine import random_affine
from DRDMLib.diffusion.poses import PoseSpread
from DRDMLib.generation import generate, prepare
from DRDMLib.models.catalogue import load_model
from DRDMLib.poses import patient_axes
from DRDMLib.settings import DeformationSettings
from DRDMLib.spatial.model_grid import field_image
from DRDMLib.spatial.resampling import field_on_grid

# TorchIO and MONAI are imported where they are used: the speed benchmark measures the memory of each alone.

STEPS = 12
# Largest displacement in voxels: TorchIO's default in 2D, less in small 3D crops.
TORCHIO_VOXELS = {2: 7.5, 3: 4.0}
# MONAI has no defaults for the strength.
MONAI_SETTINGS: dict[int, dict[str, Any]] = {
    2: {"spacing": (30, 30), "magnitude_range": (5, 6)},
    3: {"sigma_range": (5, 7), "magnitude_range": (50, 150)},
}
# Standard deviations: degrees, natural logarithm of the scale along each axis, fraction of the side.
AFFINE_DEGREES, AFFINE_SCALE, AFFINE_SHIFT = 8.0, 0.1, 0.05

# Image, seed and level (of models) -> field, mm.
Deformer = Callable[[sitk.Image, int, int], np.ndarray]


def deformer(name: str, device: str = "cpu") -> Deformer:
    """Find a method by its name; a model computes on ``device``."""
    name, _, amount = name.partition("+")
    if amount:
        plain = deformer(name, device)
        return lambda image, seed, level: add_pose(image, plain(image, seed, level), seed, float(amount))
    if name.startswith("torchio@"):
        return partial(torchio_field, voxels=float(name.removeprefix("torchio@")))
    if name.startswith("torchio-mm"):
        millimeters, _, points = name.removeprefix("torchio-mm").removeprefix("@").partition("x")
        return partial(torchio_space_field, millimeters=float(millimeters or 7.5), points=int(points or 7))
    elastic: dict[str, Deformer] = {
        "torchio": torchio_field,
        "monai": monai_field,
        "affine": affine_field,
        "nnunet": nnunet_field,
        "nothing": lambda image, seed, level: np.zeros((*image.GetSize()[::-1], image.GetDimension())),
    }
    return elastic.get(name) or model_deformer(name, device)


def is_elastic(name: str) -> bool:
    """Return whether a method has no levels."""
    return name.partition("+")[0].partition("@")[0] in ("torchio", "torchio-mm", "nnunet", "monai", "affine", "nothing")


# --------------------------------------------------------------------------------------------------------- TorchIO


def unit_grid(image: sitk.Image) -> sitk.Image:
    """Return an image as TorchIO sees an array without geometry: 3D, voxels of 1 mm, RAS axes."""
    array = sitk.GetArrayFromImage(image).astype(np.float32)
    grid = sitk.GetImageFromArray(array[None] if array.ndim == 2 else array)
    grid.SetDirection((-1, 0, 0, 0, -1, 0, 0, 0, 1))
    return grid


def torchio_displacement(deformed: Any, grid: sitk.Image) -> sitk.Image:
    """Return the field with which ``RandomElasticDeformation`` has deformed a subject that lies on ``grid``, mm."""
    return sample_transform(deformed.history[-1].get_bspline_transform(grid), grid)


def torchio_elastic(image: sitk.Image, seed: int, **settings: Any) -> sitk.Image:
    """Draw a field of TorchIO's ``RandomElasticDeformation``, a random B-spline, on the grid of a 3D image, mm."""
    import torchio

    torch.manual_seed(seed)
    subject = torchio.Subject(image=torchio.ScalarImage.from_sitk(image))
    return torchio_displacement(torchio.RandomElasticDeformation(**settings)(subject), image)


def torchio_field(image: sitk.Image, seed: int, level: int = 0, voxels: float = 0.0) -> np.ndarray:
    """Draw a field of TorchIO in voxels, control points moving by ``voxels`` at most, 2D or 3D; returned in mm."""
    drawn = torchio_elastic(unit_grid(image), seed, max_displacement=voxels or TORCHIO_VOXELS[image.GetDimension()])
    field = sitk.GetArrayFromImage(drawn)
    # The unit grid has axes of its own; a random field has no preferred axis.
    return (field[0, ..., :2] if image.GetDimension() == 2 else field) * np.asarray(image.GetSpacing())


def torchio_space_field(
    image: sitk.Image, seed: int, level: int = 0, millimeters: float = 7.5, points: int = 7
) -> np.ndarray:
    """Draw a field of TorchIO on a 3D image in space, as its users do: millimeters along the patient's axes."""
    drawn = torchio_elastic(image, seed, max_displacement=millimeters, num_control_points=points)
    return sitk.GetArrayFromImage(drawn)


# ---------------------------------------------------------------------------------------------------------- nnU-Net

# nnU-Net rotates and scales within the slices only where they are this many times longer than the stack.
NNUNET_FLAT = 3.0


def nnunet_field(image: sitk.Image, seed: int, level: int = 0) -> np.ndarray:
    """Draw what nnU-Net v2 does to a training image: in most draws nothing, else a rotation, a scaling or both.

    https://github.com/MIC-DKFZ/nnUNet, ``nnUNetTrainer.get_training_transforms``, patch size: that of the image.
    Needs ``batchgeneratorsv2``. Mirroring is left out.
    """
    from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform

    shape = image.GetSize()[::-1]
    flat = len(shape) == 3 and max(shape) / shape[0] > NNUNET_FLAT
    d = 2 if flat or len(shape) == 2 else 3
    most = np.pi / 6 if d == 3 else (np.pi / 12 if max(shape[-2:]) / min(shape[-2:]) > 1.5 else np.pi)
    size = shape[-d:]
    transform = SpatialTransform(
        size,
        patch_center_dist_from_border=0,
        random_crop=False,
        p_rotation=0.2,
        rotation=(-most, most),
        p_scaling=0.2,
        scaling=(0.7, 1.4),
        p_synchronize_scaling_across_axes=1,
    )
    np.random.seed(seed)  # noqa: NPY002 - it draws from NumPy's own generator.
    grid = transform.get_parameters(image=torch.zeros(1, *size))["grid"]
    if grid is None:
        return np.zeros((*shape, len(shape)))
    # PyTorch's grid: x first, -1 and 1 at the outer edges of the first and last voxel.
    sides = np.asarray(size[::-1])
    reads = (grid.double().numpy() + 1) * sides / 2 - 0.5
    voxels = np.stack(np.meshgrid(*[np.arange(n) for n in size], indexing="ij")[::-1], axis=-1)
    moved = np.zeros((*shape, len(shape)))
    moved[..., :d] = reads - voxels
    direction = np.asarray(image.GetDirection()).reshape(len(shape), -1)
    return moved * np.asarray(image.GetSpacing()) @ direction.T


# ----------------------------------------------------------------------------------------------------------- MONAI


def monai_transform(ndim: int) -> Any:
    """Make MONAI's ``Rand2DElastic`` or ``Rand3DElastic``, only the elastic part."""
    from monai.transforms import Rand2DElastic, Rand3DElastic

    kind: Any = Rand2DElastic if ndim == 2 else Rand3DElastic
    return kind(prob=1.0, mode="bilinear", padding_mode="border", **MONAI_SETTINGS[ndim])


def monai_displacement(transform: Any, shape: tuple[int, ...]) -> np.ndarray:
    """Return the next field that an elastic transform draws: (d, *shape) voxels, channel k along array axis k."""
    from monai.networks.layers import GaussianFilter
    from monai.transforms.utils import create_grid

    transform.randomize(shape)
    if len(shape) == 3:
        smooth = GaussianFilter(3, transform.sigma, 3.0)(torch.as_tensor(transform.rand_offset[None]))
        return smooth[0].numpy() * transform.magnitude
    # In 2D the grid is not kept; it is what the resampler is given.
    transform.resampler = lambda image, grid, **_: grid
    identity: Any = create_grid(shape, backend="torch")
    return (transform(torch.zeros(1, *shape), randomize=False) - identity)[:2].numpy()


def monai_elastic(image: sitk.Image, seed: int) -> sitk.Image:
    """Draw a field of MONAI's elastic transform on the grid of an image, mm."""
    d = image.GetDimension()
    transform = monai_transform(d).set_random_state(seed)
    voxels = sitk.GetArrayFromImage(voxel_field(monai_displacement(transform, image.GetSize()[::-1])))
    vectors = voxels * np.asarray(image.GetSpacing()) @ np.asarray(image.GetDirection()).reshape(d, d).T
    field = sitk.GetImageFromArray(vectors, isVector=True)
    field.CopyInformation(image)
    return field


def monai_field(image: sitk.Image, seed: int, level: int = 0) -> np.ndarray:
    """Draw a field of MONAI's ``Rand3DElastic`` in voxels, returned in mm."""
    transform = monai_transform(3).set_random_state(seed)
    # Channels are in array order; a random field has no preferred axis.
    voxels = monai_displacement(transform, image.GetSize()[::-1])
    return np.moveaxis(voxels, 0, -1) * np.asarray(image.GetSpacing())


# --------------------------------------------------------------------------------------------------- affine, pose


def affine_field(image: sitk.Image, seed: int, level: int = 0) -> np.ndarray:
    """Draw a random rotation, scaling and shift about the center of a 3D image."""
    rng = np.random.default_rng(seed)
    extent = np.asarray(image.GetSize()) * np.asarray(image.GetSpacing())
    transform = sitk.Euler3DTransform()
    transform.SetRotation(*np.radians(rng.normal(0, AFFINE_DEGREES, 3)).tolist())
    rotation = np.asarray(transform.GetMatrix()).reshape(3, 3)
    matrix = rotation @ np.diag(np.exp(rng.normal(0, AFFINE_SCALE, 3)))
    x, y, z = ((np.arange(n) - (n - 1) / 2) * s for n, s in zip(image.GetSize(), image.GetSpacing(), strict=True))
    points = np.stack(np.meshgrid(z, y, x, indexing="ij")[::-1], axis=-1)
    return points @ (matrix - np.eye(3)).T + rng.normal(0, AFFINE_SHIFT, 3) * extent


def add_pose(image: sitk.Image, field: np.ndarray, seed: int, amount: float | PoseSpread) -> np.ndarray:
    """Compose a field with a random pose about the center of the image, drawn as for a model's fields."""
    d = image.GetDimension()
    generator = torch.Generator().manual_seed(seed)
    direction = np.asarray(image.GetDirection()).reshape(d, d)
    if isinstance(amount, PoseSpread):
        drawn, direction = amount.draw(generator), patient_axes(image) if d == 3 else direction
    else:
        drawn = random_affine(d, amount, generator)
    matrix, shift = (x.double().numpy() for x in drawn)
    extent = float(np.max(np.asarray(image.GetSize()) * np.asarray(image.GetSpacing())))
    pose = sitk.AffineTransform(d)
    pose.SetCenter(image.TransformContinuousIndexToPhysicalPoint([(n - 1) / 2 for n in image.GetSize()]))
    pose.SetMatrix((direction @ matrix @ direction.T).ravel().tolist())
    pose.SetTranslation((direction @ shift * extent).tolist())
    both = sitk.CompositeTransform([as_transform(field, image), pose])
    return sitk.GetArrayFromImage(sample_transform(both, image))


# ------------------------------------------------------------------------------------------------------------ DRDM


def model_deformer(name: str, device: str = "cpu") -> Deformer:
    """Make the method ``MODEL`` or ``MODEL:random``; fields are not repaired."""
    path, _, stage = name.partition(":")
    model = load_model(path, device)

    def field(image: sitk.Image, seed: int, level: int) -> np.ndarray:
        grid, tensor = prepare(image, model)
        if stage == "random":
            ddf = generate(tensor, model, DeformationSettings(level, 1), (seed,)).random
        else:
            ddf = generate(tensor, model, DeformationSettings(level, STEPS), (seed,)).recovered
        return np.asarray(field_on_grid(field_image(ddf.cpu(), grid), image, 0, image.GetSize()[-1]))

    return field
