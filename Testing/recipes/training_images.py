"""Load the sets of training images of the recipes: which files, which subjects are held out, on which grid.

``SETS[name](DATA)`` returns the training images and the held-out images of a set, each (M, 1, *S) uint8. Most training
images are kept on a finer grid than the model's, so that parts of them are sharp as well.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import SimpleITK as sitk
import torch
from torch import Tensor

from DRDMLib.io.datasets import Case, find_cases
from DRDMLib.io.images import read_image
from DRDMLib.models.metadata import ModelMetadata
from DRDMLib.spatial.model_grid import image_extent, model_grid, sample_image
from DRDMLib.training.data import load_training_images, split

Images = tuple[Tensor, Tensor]

# Sides of the grids of training images, and of held-out volumes.
FINE_3D, FINE_2D, HELD_OUT_3D = 64, 128, 48
HOLD_OUT, HOLD_OUT_HEADS = 8, 5
# Indices in the sorted list: a chest, both scans of one right lung, an abdomen.
HELD_OUT_CT = (0, 7, 8, 10)
TRAINING_PROSTATES = 12
HELD_OUT_OF_MISC = ("colin27_T1",)
RADIOGRAPHS_PER_CT = 12
# Side of the square around a heart, and of its grid.
HEART_MM, HEART_SIZE = 128.0, 96

# Labels for drawn heads: 1 to 4 in the brain, from dark to bright, 5 to 8 outside it.
BRAIN_CLASSES = 4


def grid_metadata(ndim: int, size: int) -> ModelMetadata:
    """Return metadata that places images on a grid with ``size`` voxels along each side."""
    return ModelMetadata("images", "compact", ndim, size, image_padding="border")


def every_kth(name: str, ndim: int, size: int, every: int, data: Path) -> Images:
    """Load a dataset and hold out every ``every``-th case; for a 2D model, load the slices."""
    kept, held_out = split(find_cases(data / name), every)
    metadata = grid_metadata(ndim, size)
    return load_training_images(kept, metadata), load_training_images(held_out, metadata)


def hippocampi(data: Path) -> Images:
    """Load 80 crops, and two held-out ones."""
    kept, held_out = split(find_cases(data / "hippocampus"), HOLD_OUT)
    return _volumes(kept[:80], FINE_3D), _volumes(held_out[:2], HELD_OUT_3D)


def heads(data: Path) -> Images:
    """Load 80 heads, and four held-out ones."""
    kept, held_out = split(find_cases(data / "brain_ixi"), HOLD_OUT_HEADS)
    return _volumes(kept, FINE_3D), _volumes(held_out[:4], HELD_OUT_3D)


def fewer_heads(data: Path) -> list[int]:
    """Return the indices in :func:`heads` of those that are not an eighth case either."""
    cases = find_cases(data / "brain_ixi")
    kept, _ = split(cases, HOLD_OUT_HEADS)
    eighth = {case.name for case in split(cases, HOLD_OUT)[1]}
    return [index for index, case in enumerate(kept) if case.name not in eighth]


def heads_of_general(data: Path) -> Images:
    """Load 70 heads: neither every fifth nor every eighth."""
    images, held_out = heads(data)
    return images[fewer_heads(data)], held_out


def bare_brains(data: Path) -> Images:
    """Load every second of the 80 heads without anything outside the brain, cropped to it.

    Six of these 40 are also eighth cases of the dataset, so for ``general-3d`` not every eighth head is unseen. Every
    fifth head is.
    """
    made = []
    for case in split(find_cases(data / "brain_ixi"), HOLD_OUT_HEADS)[0][::2]:
        image = read_image(case.image)
        brain = sitk.BinaryDilate(sitk.Cast(_label(case) > 0, sitk.sitkUInt8), [1, 1, 1])
        brain.CopyInformation(image)
        made.append(_on_grid(_cropped(sitk.Mask(image, brain), *_box(brain, 4)), FINE_3D))
    return torch.cat(made), torch.empty(0, 1, *[HELD_OUT_3D] * 3, dtype=torch.uint8)


def head_labels(data: Path) -> Images:
    """Load label maps of the 80 heads: brain tissues by their brightness, and what is outside by its own."""
    made = []
    for case in split(find_cases(data / "brain_ixi"), HOLD_OUT_HEADS)[0]:
        image = read_image(case.image)
        classes = _classes(sitk.GetArrayFromImage(image), sitk.GetArrayFromImage(_label(case)))
        labels = sitk.GetImageFromArray(classes)
        labels.CopyInformation(image)
        grid = model_grid(image, grid_metadata(3, FINE_3D))
        resampler = grid.resampler()
        resampler.SetInterpolator(sitk.sitkNearestNeighbor)
        resampler.SetUseNearestNeighborExtrapolator(True)
        made.append(grid.to_tensor(sitk.GetArrayFromImage(resampler.Execute(labels))).to(torch.uint8))
    return torch.cat(made), torch.empty(0, 1, *[HELD_OUT_3D] * 3, dtype=torch.uint8)


def trunks(data: Path) -> Images:
    """Load CT: each as a whole, and eight boxes of it with random size and place."""
    kept, held_out = _ct(data)
    source = np.random.default_rng(0)
    made = [_volumes(kept, FINE_3D)]
    for case in kept:
        image = read_image(case.image)
        for _ in range(8):
            size = [max(8, round(n * source.uniform(0.4, 0.8))) for n in image.GetSize()]
            start = [int(source.integers(n - s + 1)) for n, s in zip(image.GetSize(), size, strict=True)]
            made.append(_on_grid(_cropped(image, start, size), FINE_3D))
    return torch.cat(made), _volumes(held_out[:2], HELD_OUT_3D)


def hearts(data: Path) -> Images:
    """Load two phases of each of five hearts; the others differ little from them."""
    cases = [c for c in find_cases(data / "cardiac_sunnybrook") if c.name.endswith(("phase00", "phase08"))]
    return _volumes(cases, FINE_3D), _volumes([], HELD_OUT_3D)


def heart_regions(data: Path) -> Images:
    """Load short-axis slices of five hearts in all phases, in a square of 128 mm around the box of their labels."""
    cases = find_cases(data / "cardiac_sunnybrook")
    made = []
    for subject in sorted({case.name.split("_")[0] for case in cases}):
        own = [case for case in cases if case.name.startswith(subject)]
        boxes = [_box(_label(case) > 0, 0) for case in own if case.label is not None]
        low = np.min([start for start, _ in boxes], axis=0)
        high = np.max([np.add(start, size) for start, size in boxes], axis=0)
        for case in own:
            image = read_image(case.image)
            side = [min(round(HEART_MM / s), n) for s, n in zip(image.GetSpacing(), image.GetSize(), strict=True)][:2]
            start = [
                int(np.clip(round((low[axis] + high[axis] - side[axis]) / 2), 0, image.GetSize()[axis] - side[axis]))
                for axis in range(2)
            ]
            slices = _on_grid(_cropped(image, [*start, 0], [*side, image.GetSize()[2]]), HEART_SIZE, ndim=2)
            brightness = slices.float().flatten(1).mean(dim=1)
            # Slices that show something.
            made.append(slices[brightness > 0.1 * brightness.max()])
    return torch.cat(made), torch.empty(0, 1, 64, 64, dtype=torch.uint8)


def prostates(data: Path) -> Images:
    """Load the first twelve, and two of the six held-out ones."""
    cases = find_cases(data / "prostate_mr")
    return _volumes(cases[:TRAINING_PROSTATES], FINE_3D), _volumes(cases[TRAINING_PROSTATES:][:2], HELD_OUT_3D)


def slices(data: Path) -> Images:
    """Load slices of all datasets in three planes, and of thick stacks in their own; small sets are repeated."""
    ixi = find_cases(data / "brain_ixi")
    held_out_heads = {c.name for every in (HOLD_OUT, HOLD_OUT_HEADS) for c in split(ixi, every)[1]}
    hippocampus = split(find_cases(data / "hippocampus"), HOLD_OUT)
    ct = _ct(data)
    sunnybrook = [c for c in find_cases(data / "cardiac_sunnybrook") if c.name.endswith(("00", "04", "08", "12"))]
    prostate = find_cases(data / "prostate_mr")
    misc = [c for c in find_cases(data / "brain_misc") if c.name not in HELD_OUT_OF_MISC]
    parts = [
        _slices([c for c in ixi if c.name not in held_out_heads], 4),
        _slices(hippocampus[0], 1),
        _slices(ct[0], 16).repeat(2, 1, 1, 1),
        _slices(sunnybrook, 16).repeat(2, 1, 1, 1),
        _slices(prostate[:TRAINING_PROSTATES], 6).repeat(2, 1, 1, 1),
        _slices(misc, 12),
    ]
    held_out = [ixi[:1], hippocampus[1][:2], ct[1][:2], prostate[TRAINING_PROSTATES:][:2]]
    return torch.cat(parts), torch.cat([_slices(cases, 1) for cases in held_out])


def radiographs(data: Path) -> Images:
    """Compute radiographs from the CT, from the front and at angles up to 90 degrees."""
    kept, held_out = _ct(data)
    angles = np.linspace(0, 90, RADIOGRAPHS_PER_CT)
    made = [_radiograph(read_image(c.image), float(angle)) for c in kept for angle in angles]
    return torch.cat(made), torch.cat([_radiograph(read_image(c.image), 0.0) for c in held_out[:1]])


SETS: dict[str, Callable[[Path], Images]] = {
    "hippocampus-32": partial(every_kth, "hippocampus", 3, 32, HOLD_OUT),
    "cardiac-128": partial(every_kth, "cardiac_sunnybrook", 2, 128, HOLD_OUT),
    "hippocampi": hippocampi,
    "heads": heads,
    "heads-of-general": heads_of_general,
    "bare-brains": bare_brains,
    "head-labels": head_labels,
    "trunks": trunks,
    "hearts": hearts,
    "heart-regions": heart_regions,
    "prostates": prostates,
    "slices": slices,
    "radiographs": radiographs,
}


def _ct(data: Path) -> tuple[list[Case], list[Case]]:
    cases = find_cases(data / "ct")
    return [c for i, c in enumerate(cases) if i not in HELD_OUT_CT], [cases[i] for i in HELD_OUT_CT]


def _label(case: Case) -> sitk.Image:
    assert case.label is not None
    return sitk.ReadImage(str(case.label))


def _volumes(cases: list[Case], size: int) -> Tensor:
    return load_training_images(cases, grid_metadata(3, size))


def _to_bytes(tensor: Tensor) -> Tensor:
    return (tensor * 255).round().to(torch.uint8)


def _on_grid(image: sitk.Image, size: int, ndim: int | None = None) -> Tensor:
    metadata = grid_metadata(ndim or image.GetDimension(), size)
    return _to_bytes(sample_image(image, model_grid(image, metadata), metadata.intensity, metadata.image_padding))


def _slices(cases: list[Case], count: int) -> Tensor:
    """Load ``count`` evenly spaced slices per plane of each volume; of one with thick slices, only those."""
    metadata = grid_metadata(2, FINE_2D)
    made = []
    for case in cases:
        spacing = read_image(case.image).GetSpacing()
        thick = max(spacing) > 2 * min(spacing)
        for plane in ("auto",) if thick else ("axial", "coronal", "sagittal"):
            stack = load_training_images([case], metadata, plane=plane)
            made.append(stack[np.unique(np.linspace(0, len(stack) - 1, count + 2).round()[1:-1].astype(int))])
    return torch.cat(made)


def _radiograph(image: sitk.Image, degrees: float) -> Tensor:
    """Compute the absorption of X-rays that cross a CT (in HU) at an angle, bright where they are absorbed."""
    rotation = sitk.Euler3DTransform()
    rotation.SetCenter(image.TransformContinuousIndexToPhysicalPoint([(n - 1) / 2 for n in image.GetSize()]))
    rotation.SetRotation(0.0, 0.0, float(np.deg2rad(degrees)))
    spacing = float(image_extent(image).max()) / 160
    upright = sitk.DICOMOrient(image, "LPS")
    size = [round(float(e) / spacing) for e in image_extent(upright)]
    isotropic = sitk.Resample(
        upright, size, rotation, sitk.sitkLinear, upright.GetOrigin(), [spacing] * 3, upright.GetDirection(), -1024.0
    )
    density = (sitk.GetArrayFromImage(isotropic).astype(np.float32) + 1000).clip(0, 3000) / 1000
    absorption = density.sum(axis=1)[::-1] * (spacing * 0.002)
    flat = sitk.GetImageFromArray((1 - np.exp(-absorption)).astype(np.float32))
    flat.SetSpacing([spacing] * 2)
    return _on_grid(flat, FINE_2D)


def _box(mask: sitk.Image, margin: int) -> tuple[list[int], list[int]]:
    """Return start and size of the box around a mask, with a margin in voxels inside the image."""
    found = np.argwhere(sitk.GetArrayViewFromImage(mask))[:, ::-1]
    low = np.maximum(found.min(axis=0) - margin, 0)
    high = np.minimum(found.max(axis=0) + 1 + margin, mask.GetSize())
    return [int(v) for v in low], [int(v) for v in high - low]


def _cropped(image: sitk.Image, start: Sequence[int], size: Sequence[int]) -> sitk.Image:
    return sitk.RegionOfInterest(image, [int(s) for s in size], [int(s) for s in start])


def _classes(image: np.ndarray, regions: np.ndarray) -> np.ndarray:
    """Make labels for drawing: brain regions by their mean intensity, voxels outside by their own; 0 is air."""
    made = np.zeros(image.shape, np.uint8)
    brain = regions > 0
    numbers = np.unique(regions[brain])
    means = np.array([image[regions == number].mean() for number in numbers])
    low, high = np.percentile(image[brain], [5, 95])
    tissues = 1 + ((means - low) / (high - low) * BRAIN_CLASSES).clip(0, BRAIN_CLASSES - 1).astype(np.uint8)
    table = np.zeros(int(regions.max()) + 1, np.uint8)
    table[numbers] = tissues
    made[brain] = table[regions[brain]]
    outside = ~brain & (image > 0.08 * np.percentile(image, 99.5))
    edges = np.percentile(image[outside], [25, 50, 75])
    made[outside] = 1 + BRAIN_CLASSES + np.digitize(image[outside], edges)
    return made
