"""A transform for TorchIO that applies deformations of DRDM."""

from __future__ import annotations

from typing import Any

from ..errors import SettingError
from ..io.geometry import itk_geometry
from .bank import case_name, drawn, random_seed
from .world import FieldSource, displacement_on, warped

try:
    import torchio as tio
    from torchio.data.io import read_image
    from torchio.transforms import SpatialTransform
    from torchio.transforms.augmentation import RandomTransform
except ImportError as missing:
    raise ImportError("RandomDRDMDeformation needs TorchIO; install it: pip install torchio") from missing


class DRDMDeformation(SpatialTransform):
    """Deform all images of a subject by the field of one seed.

    Intensities are interpolated linearly, label maps by the nearest neighbor. It is in the ``history`` of subjects that
    :class:`RandomDRDMDeformation` has deformed, so that the same can be done again.

    Args:
        source: :class:`FieldBank` or :class:`FieldGenerator`.
        seed: of the field, 0 to 2^31 - 1.
        name: entry of the subject with the name of its case; without it, the name of the first image's file is used.
        more: arguments of TorchIO's transforms.
    """

    def __init__(self, source: FieldSource, seed: int, name: str = "name", **more: Any) -> None:
        super().__init__(**more)
        # In TorchIO these names are those of the arguments and of the attributes; ``name`` is that of the transform.
        self.source, self.seed, self.entry = source, seed, name
        self.args_names = ["source", "seed"]

    def _get_reproducing_arguments(self) -> dict[str, Any]:
        arguments: dict[str, Any] = super()._get_reproducing_arguments()  # type: ignore[no-untyped-call]
        return arguments | {"name": self.entry}

    def apply_transform(self, subject: tio.Subject) -> tio.Subject:
        """Deform the images of a subject; called by TorchIO.

        Raises:
            SettingError: the name of the case is not known.
        """
        first = next(iter(subject.get_images(intensity_only=True)), None) or subject.get_first_image()
        name, as_read = self._case(subject, first), _as_read(first)
        field = drawn(self.source, name, first.data, first.affine, self.seed, *as_read)
        grids: dict[Any, Any] = {}
        for image in self.get_images(subject):
            grid = (image.spatial_shape, image.affine.tobytes())
            if grid not in grids:
                grids[grid] = displacement_on(field, image.affine, image.spatial_shape)
            image.set_data(warped(image.data, grids[grid], label=isinstance(image, tio.LabelMap)))
        return subject

    def _case(self, subject: tio.Subject, image: tio.Image) -> str:
        if self.entry in subject:
            return str(subject[self.entry])
        if image.path is None:
            raise SettingError(
                f"Which case is this? Add an entry '{self.entry}' with the name of the case to the subject."
            )
        return case_name(str(image.path), getattr(self.source, "names", ()))


class RandomDRDMDeformation(RandomTransform, SpatialTransform):
    """Deform all images of a subject by the same field, another one each time.

    Fields are in world coordinates, so the subject may be cropped, flipped or resampled before. Transforms that move
    the anatomy without a change of the affine, such as ``RandomAffine``, must come after this one. The seed of the
    field is in the subject's ``history``, as that of a :class:`DRDMDeformation`.

    Example:
        >>> bank = FieldBank("bank")
        >>> transform = tio.Compose([RandomDRDMDeformation(bank, p=0.8), tio.RandomNoise()])

    Args:
        source: :class:`FieldBank` or :class:`FieldGenerator`.
        name: entry of the subject with the name of its case; without it, the name of the first image's file is used.
        more: arguments of TorchIO's transforms, such as ``p``.
    """

    def __init__(self, source: FieldSource, *, name: str = "name", **more: Any) -> None:
        super().__init__(**more)  # type: ignore[no-untyped-call]
        self.source, self.entry = source, name

    def apply_transform(self, subject: tio.Subject) -> tio.Subject:
        """Deform the images of a subject; called by TorchIO.

        Raises:
            SettingError: the name of the case is not known.
        """
        transform = DRDMDeformation(self.source, random_seed(), self.entry, **self._get_base_args())
        deformed: tio.Subject = transform(subject)
        return deformed


def _as_read(image: tio.Image) -> tuple[Any, Any]:
    """Return the affine (4, 4) and the size that TorchIO's reader, which is ITK, sees in an image's file, if any."""
    if image.path is None or getattr(image, "reader", None) not in (None, read_image):
        return None, None
    return itk_geometry(str(image.path))
