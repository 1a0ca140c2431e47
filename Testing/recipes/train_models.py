"""Train the shipped models: one command per model, which can be resumed.

``python Testing/recipes/train_models.py NAME DATA -o RUN [--device cuda] [--resume] [--minutes M | --iterations N]``

Models with a second stage are trained on with another random field, from the weights of the first stage: the same
command with ``--from FILE.safetensors`` and another folder.

``DATA`` is a folder with the datasets ``hippocampus``, ``brain_ixi``, ``brain_misc``, ``cardiac_sunnybrook``, ``ct``
and ``prostate_mr``, each with ``images/``, and ``brain_ixi`` with ``labels/``; or a file that ``pack NAME... DATA -o
FILE.npz`` has made of them, for a machine without the data. ``RUN/NAME.safetensors`` is the file to ship.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from synthetic_shapes import draw_labels, draw_shapes
from torch import Tensor

from DRDMLib import __version__
from DRDMLib.models.metadata import ModelMetadata
from DRDMLib.models.model import Model, load_model_file, save_model
from DRDMLib.training import TrainingConfig, train
from DRDMLib.training.config import AMPLITUDE, CITATION, COARSE_FIELD, COARSE_NETWORK, FIELD_POOL

# The label maps of heads begin with the tissues of the brain, see training_images.py.
_BRAIN_CLASSES = 4
_WITHOUT_SKULL = 0.25


@dataclass(frozen=True)
class Recipe:
    """A model's metadata, its settings of training, and its training images.

    Attributes:
        sets: names of sets, see training_images.py, each with the number of its repetitions.
        drawn: number of synthetic images.
        from_labels: number of heads that are drawn from label maps.
        drawing: random field of the second stage, and of the file to ship.
        second: settings of the second stage.
    """

    metadata: ModelMetadata
    config: TrainingConfig
    sets: dict[str, int]
    drawn: int = 0
    from_labels: int = 0
    drawing: dict[str, Any] = field(default_factory=dict)
    second: dict[str, Any] = field(default_factory=dict)

    @property
    def needed(self) -> list[str]:
        """Names of all sets to load."""
        return [*self.sets, *(["head-labels"] if self.from_labels else [])]


def _metadata(name: str, ndim: int, size: int, **described: str) -> ModelMetadata:
    """Return metadata for training with coarse fields.

    Outside an image its border voxels are repeated; otherwise a model learns to straighten the edges of the image.
    """
    options = {"width": 16, "depth": 2, "whole": True, **COARSE_NETWORK}
    model = ModelMetadata(name, "compact", ndim, size, options=options, amplitude=AMPLITUDE, image_padding="border")
    return replace(model, **COARSE_FIELD, citation=CITATION, version=__version__, **described)


# Images of many types do not show how the whole image was moved or stretched, so there is no noise grid with 4 nodes.
_FINER_FIELD: dict[str, Any] = {"noise_grids": [16, 8], "velocity_scale": 1e-4}
# New versions are drawn without the finest noise of the training: what recovery leaves of it are corners in skulls and
# steps in skin. At each level the random deformations are as large as in training.
_SMOOTHER_FIELD: dict[str, Any] = {"noise_grids": [8, 4]}
_SECOND: dict[str, Any] = {"batch": 32, "learning_rate": 5e-4, "warmup": 200}

# Large batches for images with many structures or of many types; on a GPU they take little more time than small ones.
_LARGE: dict[str, Any] = {"batch": 32, "learning_rate": 8e-4}

# Rotation, zoom and shift vary more than between subjects, so that a model does not undo such normal differences.
_CONFIG = TrainingConfig(
    batch=4, learning_rate=6e-4, ema=0.998, rotation=15.0, zoom=(0.85, 1.15), shift=0.06, field_pool=FIELD_POOL
)

_STRICTEST = "CC-BY-SA 4.0, the strictest of the images' licences"

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
        {"hippocampus-32": 1},
        drawing={**_SMOOTHER_FIELD, "velocity_scale": 6.23e-5},
    ),
    "brain-t1-3d": Recipe(
        _metadata(
            "brain-t1-3d",
            3,
            48,
            anatomy="whole head, or a brain without skull",
            modality="T1 MR",
            training_data=(
                "80 heads of IXI (brain-development.org), half of them without skull too, and heads drawn in random "
                "contrasts from the automatic MUSE labels of these"
            ),
            licence="CC-BY-SA 3.0, as the images",
        ),
        replace(_CONFIG, **_LARGE, steps=10150, mirror_axes=(2,), partial_views=0.35, scanner_effects=0.25),
        {"heads": 5, "bare-brains": 1},
        from_labels=60,
        drawing={**_SMOOTHER_FIELD, "velocity_scale": 6.23e-5},
        second=_SECOND,
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
        {"cardiac-128": 1},
    ),
    "heart-region-2d": Recipe(
        replace(
            _metadata(
                "heart-region-2d",
                2,
                64,
                anatomy="heart, short-axis slices, 128 mm around it",
                modality="cine MR",
                training_data="Sunnybrook Cardiac Data, cine short axis of five patients, 128 mm around the heart",
                licence="CC0-1.0, as the images",
            ),
            options={"width": 32, "depth": 2, "whole": True, **COARSE_NETWORK},
        ),
        replace(_CONFIG, **_LARGE, steps=6870, rotation=30.0, shift=0.15, scanner_effects=0.3),
        {"heart-regions": 1},
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
                    "hippocampus crops (Medical Segmentation Decathlon), heads (IXI) with and without skull and drawn "
                    "from their automatic MUSE labels, hearts (Sunnybrook), CT of chest, abdomen and trunk and parts "
                    "of them, prostate crops (DeepReg's), and drawn bodies"
                ),
                licence=_STRICTEST,
            ),
            **_FINER_FIELD,
        ),
        replace(
            _CONFIG,
            **_LARGE,
            steps=10740,
            zoom=(0.8, 1.1),
            mirror_axes=(2,),
            partial_views=0.25,
            scanner_effects=0.7,
        ),
        {"hippocampi": 1, "heads-of-general": 1, "bare-brains": 1, "trunks": 2, "hearts": 6, "prostates": 6},
        drawn=240,
        from_labels=60,
        drawing={**_SMOOTHER_FIELD, "velocity_scale": 5.35e-5},
        second=_SECOND,
    ),
    "general-2d": Recipe(
        replace(
            _metadata(
                "general-2d",
                2,
                128,
                anatomy="any",
                modality="MR, CT, radiographs computed from CT",
                training_data=(
                    "slices in three planes of heads (IXI and two others), hippocampus crops (Medical Segmentation "
                    "Decathlon), CT of chest, abdomen and trunk and radiographs computed from them, short-axis slices "
                    "of hearts (Sunnybrook), prostate crops (DeepReg's), and drawn images; images only"
                ),
                licence=_STRICTEST,
            ),
            **_FINER_FIELD,
            options={"width": 32, "depth": 3, "whole": True, **COARSE_NETWORK},
        ),
        replace(
            _CONFIG,
            **_LARGE | {"batch": 48},
            steps=12000,
            field_pool=1024,
            rotation=30.0,
            zoom=(0.7, 1.1),
            mirror_axes=(0, 1),
            partial_views=0.4,
            scanner_effects=0.7,
        ),
        {"slices": 1, "radiographs": 3},
        drawn=1500,
        drawing={**_SMOOTHER_FIELD, "velocity_scale": 4.89e-5},
        second=_SECOND,
    ),
}


def load_sets(recipe: Recipe, data: Path) -> tuple[dict[str, Tensor], Tensor]:
    """Load the recipe's sets by name, and the held-out images of all of them on the model's grid."""
    if data.is_dir():
        from training_images import SETS

        made = {name: SETS[name](data) for name in recipe.needed}
    else:
        with np.load(data) as packed:
            made = {name: _unpacked(packed, name) for name in recipe.needed}
    kept = {name: images for name, (images, _) in made.items()}
    shape = [recipe.metadata.size] * recipe.metadata.ndim
    held_out = [_resized(others, shape) for _, others in made.values() if len(others)]
    return kept, torch.cat(held_out) if held_out else torch.empty(0, 1, *shape, dtype=torch.uint8)


def _unpacked(packed: Any, name: str) -> tuple[Tensor, Tensor]:
    chosen = packed["heads/kept"][packed[f"{name}/indices"]] if f"{name}/indices" in packed else packed[f"{name}/kept"]
    return torch.from_numpy(chosen), torch.from_numpy(packed[f"{name}/held out"])


def _resized(images: Tensor, shape: list[int]) -> Tensor:
    if list(images.shape[2:]) == shape:
        return images
    return F.interpolate(images.float(), size=shape, mode="area").round().to(torch.uint8)


def pack(names: list[str], data: Path, output: Path) -> None:
    """Write the sets of some recipes to one file, without the lowest bit, which is mostly noise."""
    from training_images import SETS, fewer_heads

    needed = {name for recipe in names for name in RECIPES[recipe].needed}
    # The heads of general-3d are stored as their indices among all heads.
    needed |= {"heads"} if "heads-of-general" in needed else set()
    packed: dict[str, np.ndarray] = {}
    for name in sorted(needed):
        kept, held_out = SETS[name](data)
        packed[f"{name}/held out"] = held_out.numpy()
        if name == "heads-of-general":
            packed[f"{name}/indices"] = np.array(fewer_heads(data))
        else:
            packed[f"{name}/kept"] = kept.numpy() if name.endswith("labels") else kept.numpy() & 254
    np.savez_compressed(output, **packed)  # type: ignore[arg-type]


def training_images(recipe: Recipe, kept: dict[str, Tensor], device: torch.device) -> Tensor:
    """Return all training images of a recipe: its sets with their repetitions, and synthetic images."""
    images = [kept[name] for name, repeats in recipe.sets.items() for _ in range(repeats)]
    generator = torch.Generator(device).manual_seed(0)
    if recipe.from_labels:
        labels = kept["head-labels"]
        made = draw_labels(labels, recipe.from_labels, generator, inner_only=_WITHOUT_SKULL, inner=_BRAIN_CLASSES)
        images.append(made.cpu())
    if recipe.drawn:
        images.append(draw_shapes(recipe.drawn, recipe.metadata.ndim, images[0].shape[-1], generator).cpu())
    return torch.cat(images)


def main() -> None:
    """Run as a script."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("name", nargs="+", help=f"one of {', '.join(sorted(RECIPES))}, or 'pack' and several of them")
    parser.add_argument("data", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--from", dest="start", type=Path, metavar="FILE", help="weights for the second stage")
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--iterations", type=int, help="number of training steps instead of the recipe's")
    parser.add_argument("--minutes", type=float, help="time budget instead of a number of steps")
    parser.add_argument("--device", default="auto")
    options = parser.parse_args()
    packing = options.name[0] == "pack"
    names = options.name[1:] if packing else options.name
    if set(names) - set(RECIPES) or not names or (len(names) > 1 and not packing):
        parser.error(f"choose one of {', '.join(sorted(RECIPES))}, or 'pack' and several of them")
    if packing:
        pack(names, options.data, options.output)
        return
    name, recipe = names[0], RECIPES[names[0]]
    metadata, config, weights = recipe.metadata, recipe.config, None
    if options.start is not None:
        weights = load_model_file(options.start, "cpu").network.state_dict()
        metadata, config = replace(metadata, **recipe.drawing), replace(config, **recipe.second)
    config = replace(config, half_precision=True, checkpoint_minutes=3.0)
    if options.iterations:
        config = replace(config, steps=options.iterations)
    if options.minutes:
        config = replace(config, steps=None, minutes=options.minutes)
    kept, held_out = load_sets(recipe, options.data)
    on_gpu = options.device != "cpu" and torch.cuda.is_available()
    images = training_images(recipe, kept, torch.device("cuda" if on_gpu else "cpu"))
    print(f"{len(images)} training images, {len(held_out)} held out", flush=True)

    def ship(run: Path, model: Model) -> None:
        shipped = replace(model.metadata, **recipe.drawing)
        save_model(run / f"{name}.safetensors", model.network, shipped, half=True)

    train(
        images,
        held_out,
        metadata,
        config,
        options.output,
        device=options.device,
        resume=options.resume,
        weights=weights,
        on_step=lambda step, share, loss: (
            print(f"{step} {share:.3f} {loss['loss']:.4f}", flush=True) if step % 100 == 0 else None
        ),
        on_checkpoint=ship,
    )


if __name__ == "__main__":
    main()
