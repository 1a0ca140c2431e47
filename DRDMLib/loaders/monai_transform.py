"""A dictionary transform for MONAI that applies deformations of DRDM."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import get_worker_info

from ..errors import SettingError
from .bank import case_name, drawn
from .world import FieldSource, displacement_on, warped

try:
    from monai.config import KeysCollection
    from monai.data import MetaTensor
    from monai.transforms import MapTransform, RandomizableTransform
    from monai.utils import ensure_tuple_rep
except ImportError as missing:
    raise ImportError("RandDRDMDeformationd needs MONAI; install it: pip install monai") from missing


class RandDRDMDeformationd(MapTransform, RandomizableTransform):
    """Deform the images of several keys by the same field.

    Images are channel first. Fields are in world coordinates, and the affine of MONAI's ``MetaTensor`` maps voxels to
    them. Transforms that update the affine may therefore reorient, crop, flip or resample the images before.

    Example:
        >>> bank = FieldBank("bank")
        >>> deform = RandDRDMDeformationd(["image", "label"], bank, mode=("bilinear", "nearest"), prob=0.8)

    Args:
        keys: keys of the images; fields are made for the first one.
        source: :class:`FieldBank` or :class:`FieldGenerator`.
        mode: ``"bilinear"`` or ``"nearest"``, for all keys or for each key.
        prob: probability of a deformation.
        name: key of the case's name; data without it use the name of the first image's file.
        allow_missing_keys: ignore keys that the data do not have.

    Raises:
        SettingError: a mode is not supported.
    """

    def __init__(
        self,
        keys: KeysCollection,
        source: FieldSource,
        *,
        mode: str | Sequence[str] = "bilinear",
        prob: float = 1.0,
        name: str = "name",
        allow_missing_keys: bool = False,
    ) -> None:
        MapTransform.__init__(self, keys, allow_missing_keys)
        RandomizableTransform.__init__(self, prob)
        self.source, self.entry = source, name
        self._seeded_worker: int | None = None
        self.mode = ensure_tuple_rep(mode, len(self.keys))
        if not set(self.mode) <= {"bilinear", "nearest"}:
            raise SettingError(f"There is no mode '{mode}'; use 'bilinear' for images and 'nearest' for labels.")

    def set_random_state(
        self, seed: int | None = None, state: np.random.RandomState | None = None
    ) -> RandDRDMDeformationd:
        """Set the random numbers, as MONAI's own DataLoader does in each worker."""
        super().set_random_state(seed, state)
        worker = get_worker_info()
        self._seeded_worker = None if worker is None else worker.seed
        return self

    def _seed_worker(self) -> None:
        """Give each worker and each epoch other random numbers.

        A plain DataLoader gives every worker the same copy of this transform, and a new copy for each epoch.
        """
        worker = get_worker_info()
        if worker is not None and self._seeded_worker != worker.seed:
            self.set_random_state(seed=(worker.seed + int(self.R.randint(2**31 - 1))) % 2**32)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Deform the images; called by MONAI.

        Raises:
            SettingError: the name of the case is not known.
        """
        done = dict(data)
        self._seed_worker()
        self.randomize(None)
        if not self._do_transform:
            return done
        seed = int(self.R.randint(2**31 - 1))
        field = None
        grids: dict[Any, Any] = {}
        for key, mode in self.key_iterator(done, self.mode):
            image = done[key]
            affine = _affine(image)
            volume = torch.as_tensor(image)
            flat = volume.ndim == 3
            # A 2D image is treated as a volume of one slice.
            volume = (volume[..., None] if flat else volume).as_subclass(torch.Tensor)
            if field is None:
                field = drawn(self.source, self._case(done, image), volume, affine, seed, *_as_read(image))
            grid = (tuple(volume.shape[1:]), affine.tobytes())
            if grid not in grids:
                grids[grid] = displacement_on(field, affine, grid[0])
            new = warped(volume, grids[grid], label=mode == "nearest")
            new = new[..., 0] if flat else new
            done[key] = MetaTensor(new).copy_meta_from(image) if isinstance(image, MetaTensor) else new
        return done

    def _case(self, data: Mapping[Hashable, Any], image: Any) -> str:
        if self.entry in data:
            return str(data[self.entry])
        file = image.meta.get("filename_or_obj") if isinstance(image, MetaTensor) else None
        if not file:
            raise SettingError(
                f"Which case is this? Add an entry '{self.entry}' with the name of the case to the data."
            )
        return case_name(file, getattr(self.source, "names", ()))


def _affine(image: Any) -> np.ndarray:
    """Return the affine (4, 4); voxels of 1 mm for plain tensors."""
    return _four_by_four(image.affine) if isinstance(image, MetaTensor) else np.eye(4)


def _as_read(image: Any) -> tuple[np.ndarray | None, tuple[int, ...] | None]:
    """Return the affine (4, 4) and the size that MONAI's reader gave an image, if they are known."""
    original = image.meta.get("original_affine") if isinstance(image, MetaTensor) else None
    if original is None:
        return None, None
    size = image.meta.get("spatial_shape")
    shape = None if size is None else tuple(int(n) for n in [*np.asarray(size).ravel(), 1, 1][:3])
    return _four_by_four(original), shape


def _four_by_four(known: Any) -> np.ndarray:
    matrix = np.asarray(known, np.float64)
    affine, d = np.eye(4), min(3, len(matrix) - 1)
    affine[:d, :d], affine[:d, 3] = matrix[:d, :d], matrix[:d, -1]
    return affine
