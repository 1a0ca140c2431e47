"""Train the shipped models: one command per model, which can be resumed.

``python Testing/recipes/train_models.py NAME DATA -o RUN [--device cuda] [--resume] [--minutes M | --iterations N]``

``DATA`` is a folder with the datasets ``hippocampus``, ``brain_ixi``, ``brain_misc``, ``cardiac_sunnybrook`` and
``ct``, each with ``images/``. ``RUN/NAME.safetensors`` is the file to ship.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from synthetic_shapes import draw_shapes
from torch import Tensor

from DRDMLib import __version__
from DRDMLib.io.datasets import find_cases
from DRDMLib.models.metadata import ModelMetadata
from DRDMLib.models.model import load_model_file, save_model
from DRDMLib.training import TrainingConfig, train
from DRDMLib.training.config import AMPLITUDE, CITATION, COARSE_FIELD, COARSE_NETWORK, FIELD_POOL
from DRDMLib.training.data import load_training_images, split

HOLD_OUT = 8

Loader = Callable[[Path, ModelMetadata], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Recipe:
    """A model's metadata, its settings of training, and the function that loads training and held-out images."""

    metadata: ModelMetadata
    config: TrainingConfig
    load: Loader


def one_set(name: str, every: int = HOLD_OUT) -> Loader:
    """Return a function that loads one dataset and holds out every ``every``-th case."""

    def load(data: Path, metadata: ModelMetadata) -> tuple[Tensor, Tensor]:
        kept, held_out = split(find_cases(data / name), every)
        return load_training_images(kept, metadata), load_training_images(held_out, metadata)

    return load


def everything(data: Path, metadata: ModelMetadata) -> tuple[Tensor, Tensor]:
    """Load all datasets and synthetic shapes; small datasets are repeated to balance the types of images."""
    kept: list[Tensor] = []
    held_out: list[Tensor] = []
    for name, repeats in (("hippocampus", 1), ("brain_ixi", 1), ("brain_misc", 8), ("ct", 12)):
        images, others = one_set(name)(data, metadata)
        kept += [images[:80]] * repeats
        held_out.append(others[:2])
    # Two phases of each heart; the others differ little from them.
    hearts = [c for c in find_cases(data / "cardiac_sunnybrook") if c.name.endswith(("phase00", "phase08"))]
    kept += [load_training_images(hearts, metadata)] * 6
    kept.append(draw_shapes(160, metadata.ndim, metadata.size, torch.Generator().manual_seed(0)))
    return torch.cat(kept), torch.cat(held_out)


def _metadata(name: str, ndim: int, size: int, **described: str) -> ModelMetadata:
    """Return metadata for training with coarse fields.

    Outside an image its border voxels are repeated; otherwise a model learns to straighten the edges of the image.
    """
    options = {"width": 16, "depth": 2, "whole": True, **COARSE_NETWORK}
    model = ModelMetadata(name, "compact", ndim, size, options=options, amplitude=AMPLITUDE, image_padding="border")
    return replace(model, **COARSE_FIELD, citation=CITATION, version=__version__, **described)


# Large batches for images with many structures or of many types; on a GPU they take no more time than small ones.
_LARGE: dict[str, Any] = {"batch": 32, "learning_rate": 8e-4, "steps": 7100}

# Rotation, zoom and shift vary more than between subjects, so that a model does not undo such normal differences.
_CONFIG = TrainingConfig(
    batch=4, learning_rate=6e-4, ema=0.998, rotation=15.0, zoom=(0.85, 1.15), shift=0.06, field_pool=FIELD_POOL
)

RECIPES = {
    "hippocampus-mr-3d": Recipe(
        _metadata(
            "hippocampus-mr-3d",
            3,
            32,
            anatomy="hippocampus",
            modality="T1 MR",
            training_data="160 crops of Medical Segmentation Decathlon Task04, images only",
            licence="CC-BY-SA 4.0, as the images",
        ),
        replace(_CONFIG, steps=24000, batch=6),
        one_set("hippocampus"),
    ),
    "brain-t1-3d": Recipe(
        _metadata(
            "brain-t1-3d",
            3,
            48,
            anatomy="whole head",
            modality="T1 MR",
            training_data="80 heads of IXI (brain-development.org), images only",
            licence="CC-BY-SA 3.0, as the images",
        ),
        replace(_CONFIG, **_LARGE),
        one_set("brain_ixi", 5),
    ),
    "cardiac-mr-2d": Recipe(
        _metadata(
            "cardiac-mr-2d",
            2,
            128,
            anatomy="heart, short-axis slices",
            modality="cine MR",
            training_data="Sunnybrook Cardiac Data, cine short axis of five patients",
            licence="CC0-1.0, as the images",
        ),
        replace(_CONFIG, steps=20000, batch=8, rotation=30.0, zoom=(0.45, 1.05), shift=0.1),
        one_set("cardiac_sunnybrook"),
    ),
    "general-3d": Recipe(
        replace(
            _metadata(
                "general-3d",
                3,
                48,
                anatomy="any",
                modality="MR, CT",
                training_data=(
                    "hippocampus crops (Medical Segmentation Decathlon), heads (IXI and three others), "
                    "hearts (Sunnybrook), CT of chest, abdomen and trunk, and drawn shapes; images only"
                ),
                licence="CC-BY-SA 4.0, the strictest of the images' licences",
            ),
            # Images of many types do not show how the whole image was moved or stretched, so there is no noise grid
            # with 4 nodes.
            noise_grids=[16, 8],
            velocity_scale=1e-4,
        ),
        replace(_CONFIG, zoom=(0.8, 1.1), random_contrast=True, **_LARGE),
        everything,
    ),
}


def main() -> None:
    """Run as a script."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("name", choices=sorted(RECIPES))
    parser.add_argument("data", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--iterations", type=int, help="number of training steps instead of the recipe's")
    parser.add_argument("--minutes", type=float, help="time budget instead of a number of steps")
    parser.add_argument("--device", default="auto")
    options = parser.parse_args()
    recipe = RECIPES[options.name]
    config = replace(recipe.config, half_precision=True, checkpoint_minutes=3.0)
    if options.iterations:
        config = replace(config, steps=options.iterations)
    if options.minutes:
        config = replace(config, steps=None, minutes=options.minutes)
    images, held_out = recipe.load(options.data, recipe.metadata)
    print(f"{len(images)} training images, {len(held_out)} held out", flush=True)
    path = train(
        images,
        held_out,
        recipe.metadata,
        config,
        options.output,
        device=options.device,
        resume=options.resume,
        on_step=lambda step, share, loss: (
            print(f"{step} {share:.3f} {loss['loss']:.4f}", flush=True) if step % 100 == 0 else None
        ),
    )
    model = load_model_file(path, "cpu")
    save_model(options.output / f"{options.name}.safetensors", model.network, model.metadata, half=True)


if __name__ == "__main__":
    main()
