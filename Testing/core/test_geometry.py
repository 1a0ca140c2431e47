"""Geometry: SimpleITK with the saved field must give the same image as DRDM."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from support import rotation, smooth_image

from DRDMLib.deformation import Deformation
from DRDMLib.deforming import deform
from DRDMLib.diffusion.forward import CONTROL_SIZE, VELOCITY_SCALE
from DRDMLib.errors import ModelError
from DRDMLib.generation import prepare
from DRDMLib.models.model import Model, ModelMetadata
from DRDMLib.output import write_ddf, write_warped
from DRDMLib.pictures import deformation_picture
from DRDMLib.spatial.model_grid import field_image, model_grid, physical_field, sample_image
from DRDMLib.spatial.resampling import field_on_grid

OBLIQUE = rotation(20, -35, 50)
FLIPPED = np.diag([-1.0, 1.0, -1.0])
CORONAL = np.array([[1.0, 0, 0], [0, 0, 1.0], [0, -1.0, 0]])

KINDS_3D = {
    "isotropic": dict(size=(40, 40, 40)),
    "odd size": dict(size=(37, 51, 43), spacing=(1.1, 0.9, 1.3)),
    "anisotropic": dict(size=(48, 40, 20), spacing=(0.7, 0.7, 3.0)),
    "oblique": dict(size=(40, 44, 36), spacing=(1.0, 1.2, 1.5), direction=OBLIQUE),
    "flipped": dict(size=(40, 30, 36), direction=FLIPPED),
    "coronal": dict(size=(40, 44, 30), spacing=(1.0, 1.0, 2.0), direction=CORONAL @ OBLIQUE),
    "slab": dict(size=(64, 60, 4), spacing=(1.0, 1.0, 5.0)),
    "float": dict(size=(40, 36, 32), pixel=sitk.sitkFloat32, spacing=(2.0, 2.0, 2.0)),
    "unsigned byte": dict(size=(40, 36, 32), pixel=sitk.sitkUInt8),
    "much finer than the model": dict(size=(90, 100, 80), spacing=(0.4, 0.4, 0.5)),
}


def relative_difference(image: sitk.Image, written: sitk.Image, field: sitk.Image) -> float:
    """Mean absolute difference in the interior between SimpleITK's and the written image, relative to the range."""
    transform = sitk.DisplacementFieldTransform(sitk.Cast(field, sitk.sitkVectorFloat64))
    expected = sitk.Resample(image, field, transform, sitk.sitkLinear, 0.0, sitk.sitkFloat64)
    a, b = sitk.GetArrayFromImage(expected), sitk.GetArrayFromImage(written).astype(float)
    # The interior: points whose source lies inside the image, at least one voxel from the border.
    inside = sitk.Resample(image * 0 + 1, field, transform, sitk.sitkLinear, 0.0, sitk.sitkFloat64)
    interior = sitk.GetArrayFromImage(inside) > 0.999
    assert interior.mean() > 0.3
    original = sitk.GetArrayFromImage(image).astype(float)
    return float(np.abs(a - b)[interior].mean() / (original.max() - original.min()))


def saved(result: Deformation, image: sitk.Image, folder) -> tuple[sitk.Image, sitk.Image]:
    """Write image and field, and read them again."""
    return (
        sitk.ReadImage(str(write_warped(folder / "image.nii.gz", image, result))),
        sitk.ReadImage(str(write_ddf(folder / "ddf.nii.gz", result))),
    )


@pytest.mark.parametrize("kind", KINDS_3D)
def test_simpleitk_gives_the_saved_image_of_a_volume(kind, tiny_model, tmp_path):
    image = smooth_image(**KINDS_3D[kind])
    result = deform(image, tiny_model, level=40, seed=3, steps=4)
    written, field = saved(result, image, tmp_path)
    for product in (written, field):
        assert product.GetSize() == image.GetSize()
        assert np.allclose(product.GetSpacing(), image.GetSpacing(), rtol=1e-5)
        assert np.allclose(product.GetOrigin(), image.GetOrigin(), atol=1e-3)
        assert np.allclose(product.GetDirection(), image.GetDirection(), atol=1e-5)
    assert written.GetPixelID() == image.GetPixelID()
    assert relative_difference(image, written, field) < 0.005
    still = sitk.GetArrayFromImage(image).astype(float)
    assert np.abs(sitk.GetArrayFromImage(written) - still).mean() > 0.01 * (still.max() - still.min())
    assert np.allclose(sitk.GetArrayFromImage(result.ddf), sitk.GetArrayFromImage(field), atol=1e-4)


@pytest.mark.parametrize(
    "kind",
    [
        dict(size=(60, 60)),
        dict(size=(51, 77), spacing=(0.7, 1.3)),
        dict(size=(60, 50), direction=[[0.8, -0.6], [0.6, 0.8]]),
    ],
)
def test_simpleitk_gives_the_saved_image_in_2d(kind, tiny_model_2d, tmp_path):
    image = smooth_image(**kind)
    result = deform(image, tiny_model_2d, level=40, seed=1, steps=4)
    written, field = saved(result, image, tmp_path)
    assert field.GetNumberOfComponentsPerPixel() == 2
    assert relative_difference(image, written, field) < 0.005


@pytest.mark.parametrize(
    ("kind", "plane", "through"),
    [
        (dict(size=(50, 48, 9), spacing=(1.2, 1.2, 8.0), direction=OBLIQUE), "auto", 2),
        (dict(size=(10, 48, 50), spacing=(8.0, 1.2, 1.2)), "auto", 0),
        (dict(size=(40, 36, 44)), "coronal", 1),
        (dict(size=(40, 36, 44), direction=CORONAL), "axial", 1),
        (dict(size=(40, 36, 44)), "sagittal", 0),
        (dict(size=(64, 60, 1)), "auto", 2),
    ],
)
def test_a_2d_model_deforms_slices(kind, plane, through, tiny_model_2d, tmp_path):
    """All displacements are in the chosen plane, and SimpleITK gives the same image."""
    image = smooth_image(**kind)
    result = deform(image, tiny_model_2d, level=40, seed=1, steps=3, plane=plane)
    written, field = saved(result, image, tmp_path)
    if image.GetSize()[through] > 1:
        assert relative_difference(image, written, field) < 0.005
    direction = np.asarray(image.GetDirection()).reshape(3, 3)
    along = sitk.GetArrayFromImage(field) @ direction
    assert np.abs(along[..., through]).max() < 1e-4
    assert all(np.abs(along[..., a]).max() > 1.0 for a in range(3) if a != through)


@pytest.mark.parametrize("axes", ["kji", "ijk"])
@pytest.mark.parametrize("orientation", ["LPS", "native"])
def test_axis_order_and_signs(axes, orientation):
    """A displacement along one tensor axis has the expected physical direction and length."""
    image = smooth_image((30, 40, 24), (1.0, 1.0, 2.0), CORONAL @ rotation(5, 10, -8))
    model = ModelMetadata("m", "compact", 3, 16, axes=axes, orientation=orientation)
    grid = model_grid(image, model)
    array = sitk.GetArrayFromImage(grid.resampler().Execute(sitk.Cast(image, sitk.sitkFloat32)))
    tensor = grid.to_tensor(array)
    for channel in range(3):
        ddf = torch.zeros(1, 3, 16, 16, 16)
        ddf[:, channel] = 2 / 16
        field = field_image(ddf, grid)
        point = grid.origin + grid.direction @ (np.asarray(grid.spacing) * 6)
        index = field.TransformPhysicalPointToIndex(point)
        component = channel if axes == "ijk" else 2 - channel
        moved = 2 * grid.spacing[component] * grid.direction[:, component]
        assert np.allclose(field[index], moved, atol=1e-9)
        # The tensor, two voxels further along that axis, has the value of the image at the moved point.
        there = [6, 6, 6]
        there[channel] += 2
        value = tensor[(0, 0, *there)]
        probe = sitk.Resample(
            sitk.Cast(image, sitk.sitkFloat32), [1, 1, 1], sitk.Transform(), sitk.sitkLinear, (point + moved).tolist()
        )
        assert float(value) == pytest.approx(probe[0, 0, 0], abs=0.5)


def test_the_order_of_stored_axes_does_not_matter(tiny_model):
    """The same anatomy with permuted and flipped axes gives the same tensor and the same deformation."""
    image = smooth_image((40, 36, 32), direction=rotation(5, -8, 3))
    stored = sitk.Flip(sitk.PermuteAxes(image, [2, 0, 1]), [True, False, True])
    a, b = (prepare(i, tiny_model)[1] for i in (image, stored))
    assert torch.allclose(a, b, atol=1e-4)
    first, second = (deform(i, tiny_model, level=30, seed=2, steps=3) for i in (image, stored))
    point = image.TransformIndexToPhysicalPoint((20, 15, 12))
    assert np.allclose(first.transform.TransformPoint(point), second.transform.TransformPoint(point), atol=1e-2)


def test_pictures_have_the_same_orientation_for_all_stored_axes(tiny_model, tmp_path):
    plt = pytest.importorskip("matplotlib.pyplot")
    image = smooth_image((40, 36, 32), direction=rotation(5, -8, 3))
    stored = sitk.Flip(sitk.PermuteAxes(image, [2, 0, 1]), [True, False, True])
    shown = []
    for k, volume in enumerate((image, stored)):
        result = deform(volume, tiny_model, level=30, seed=2, steps=3)
        path = deformation_picture(result, tmp_path / f"{k}.png", label=volume > 90)
        shown.append(plt.imread(path))
    assert np.abs(shown[0] - shown[1]).mean() < 0.01
    upside_down = shown[0][::-1]
    assert np.abs(shown[0] - upside_down).mean() > 0.05


def test_isotropic_and_stretched_grids():
    image = smooth_image((60, 30, 10), (1.0, 1.0, 2.0))
    isotropic = model_grid(image, ModelMetadata("m", "compact", 3, 24))
    assert np.allclose(isotropic.spacing, 60 / 24)
    stretched = model_grid(image, ModelMetadata("m", "compact", 3, 24, geometry="stretch"))
    assert np.allclose(stretched.spacing, (60 / 24, 30 / 24, 20 / 24))
    middle = image.TransformContinuousIndexToPhysicalPoint([(n - 1) / 2 for n in image.GetSize()])
    for grid in (isotropic, stretched):
        center = np.asarray(grid.origin) + grid.direction @ (np.asarray(grid.spacing) * 11.5)
        assert np.allclose(center, middle)


def test_downsampling_averages_voxels():
    """A checkerboard much finer than the grid becomes gray, without a pattern."""
    board = np.indices((96, 96, 96)).sum(axis=0) % 2 * 100.0
    image = sitk.GetImageFromArray(board.astype(np.float32))
    image[0, 0, 0], image[95, 95, 95] = -1000.0, 1000.0
    tensor = sample_image(image, model_grid(image, ModelMetadata("m", "compact", 3, 16)), "minmax")
    assert float(tensor[0, 0, 2:-2, 2:-2, 2:-2].std()) < 0.01


def test_border_padding_repeats_the_border_of_the_image():
    """Inside, the image is the same as with zeros; outside, it is SimpleITK's nearest-neighbor extrapolation."""
    image = smooth_image((40, 24, 16), direction=OBLIQUE) + 1000.0
    metadata = ModelMetadata("m", "compact", 3, 40, image_padding="border")
    grid = model_grid(image, metadata)
    dark, continued = (sample_image(image, grid, padding=p)[0, 0].numpy() for p in ("zeros", "border"))
    outside = dark == 0
    assert 0.5 < outside.mean() < 0.9
    assert np.array_equal(dark[~outside], continued[~outside])
    assert (continued[outside] > 0).mean() > 0.9
    resampler = grid.resampler()
    resampler.SetUseNearestNeighborExtrapolator(True)
    expected = sitk.GetArrayFromImage(resampler.Execute(image))
    rank = np.corrcoef(expected[outside], continued[outside])[0, 1]
    assert rank > 0.999


@pytest.mark.parametrize("seed", range(3))
def test_the_field_decreases_smoothly_to_zero_outside(seed, tiny_model):
    image = smooth_image((40, 30, 36), direction=OBLIQUE)
    published = replace(tiny_model.metadata, control_size=CONTROL_SIZE, velocity_scale=VELOCITY_SCALE)
    result = deform(image, Model(tiny_model.network, published, tiny_model.device), level=79, seed=seed, steps=2)
    values = sitk.GetArrayFromImage(result.field)
    for axis in range(3):
        edges = np.take(values, [0, -1], axis=axis)
        assert np.abs(edges).max() < 1e-6
    largest = np.linalg.norm(values, axis=-1).max()
    inside = np.linalg.norm(sitk.GetArrayFromImage(result.ddf), axis=-1).max()
    assert largest < 1.6 * inside
    # No jumps: outside the model's grid, neighboring nodes differ no more than inside it.
    grid, _ = prepare(image, tiny_model)
    extent = np.asarray(grid.size) * grid.spacing
    margin = [
        round((n - e / f) / 2)
        for n, e, f in zip(result.field.GetSize(), extent, result.field.GetSpacing(), strict=True)
    ]
    inner = tuple(slice(m, -m) for m in reversed(margin))
    for axis in range(3):
        steps = np.linalg.norm(np.diff(values, axis=axis), axis=-1)
        assert steps.max() < 1.1 * steps[inner].max()


@pytest.mark.parametrize("image", [smooth_image((40, 40)), smooth_image((40, 40, 1))])
def test_a_3d_model_refuses_a_slice(image, tiny_model):
    with pytest.raises(ModelError, match="2D model"):
        deform(image, tiny_model, level=10, seed=0)


def test_a_refined_field_agrees_with_the_coarse_field():
    image = smooth_image((90, 80, 70), (0.5, 0.5, 0.5))
    grid = model_grid(image, ModelMetadata("m", "compact", 3, 16))
    ddf = torch.randn(1, 3, 16, 16, 16, generator=torch.Generator().manual_seed(0)) * 0.02
    coarse, fine = field_image(ddf, grid), field_image(ddf, grid, refine=True)
    index = (9, 10, 11)
    point = coarse.TransformIndexToPhysicalPoint(index)
    assert np.allclose(coarse[index], fine[fine.TransformPhysicalPointToIndex(point)], atol=1e-5)


@pytest.mark.parametrize("refine", [False, True])
@pytest.mark.parametrize("kind", ["anisotropic", "oblique", "flipped", "slab"])
def test_a_field_leaves_out_what_the_model_has_far_outside_the_image(kind, refine):
    image = smooth_image(**KINDS_3D[kind])
    grid = model_grid(image, ModelMetadata("m", "compact", 3, 16))
    ddf = torch.randn(1, 3, 16, 16, 16, generator=torch.Generator().manual_seed(0)) * 0.02
    field, whole = (physical_field(ddf, one, refine=refine) for one in (grid, replace(grid, spare=())))
    assert np.allclose(field.vectors[[0, -1]], 0) and np.allclose(field.vectors[:, :, [0, -1]], 0)
    assert any(grid.spare) and field.vectors.size < whole.vectors.size
    inside = [field_on_grid(one.image(), image, 0, image.GetSize()[2]) for one in (field, whole)]
    assert np.abs(inside[0]).max() > 0.1 and np.allclose(*inside, atol=1e-5)
