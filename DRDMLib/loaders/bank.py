"""Banks: folders with precomputed displacement fields, one file for each case."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from .. import __version__
from ..deformation import make_deformations, model_for
from ..errors import OutputError, SettingError
from ..io import datasets
from ..io.files import file_name, output_error, write_bytes
from ..io.geometry import other_affines
from ..io.images import image_stem
from ..models.catalogue import digest_of, load_model, resolve
from ..models.model import Model
from ..production.plan import seed_of
from ..production.sources import Source, read_source
from ..regions import find_target
from ..runtime.distributed import ProcessInfo
from ..runtime.threads import one_thread_each
from ..settings import DeformationSettings, RegionSettings
from .packing import pack, unpack
from .placement import FileGeometry
from .world import FieldSource, WorldField, ras_affine, world_field

SUFFIX, METADATA_KEY = ".safetensors", "drdm"


class FieldBank:
    """Draw fields from a folder that :func:`DRDMLib.loaders.make_bank` has made.

    A field fits only the anatomy that it was made for, so every case has its own fields. Each draw reads a single field
    from the file. Several processes share the data of the file in memory.

    Example:
        >>> bank = FieldBank("bank")
        >>> field = bank.field("case_001", 3)

    Raises:
        SettingError: the folder has no bank.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.names = sorted(p.name.removesuffix(SUFFIX) for p in self.folder.glob(f"*{SUFFIX}") if p.name[0] != ".")
        if not self.names:
            raise SettingError(f"There are no fields in '{self.folder}'; make them with DRDMLib.loaders.make_bank.")
        self._headers: dict[str, _Header] = {}

    def count(self, name: str) -> int:
        """Return the number of fields of a case.

        Raises:
            SettingError: the bank has no fields for the case.
            OutputError: its file is damaged.
        """
        return self._header(name).count

    def field(self, name: str, number: int) -> WorldField:
        """Return one field of a case, ``number`` from 0. Raises the errors of :meth:`count`."""
        header = self._header(name)
        with safe_open(self.folder / f"{name}{SUFFIX}", "pt") as stream:
            stored = stream.get_slice("fields")
            if header.packed is None:
                return WorldField(stored[number], header.affine)
            one = header.packed[number]
            data: Tensor = stored[one["start"] : one["start"] + one["bytes"]]
        return WorldField(unpack(one["how"], data.numpy().tobytes()), np.asarray(one["affine"], np.float64))

    def draw(
        self,
        name: str,
        image: Tensor,
        affine: np.ndarray,
        seed: int,
        *,
        original: np.ndarray | None = None,
        original_shape: Sequence[int] | None = None,
    ) -> WorldField:
        """Draw a field, see :class:`DRDMLib.loaders.world.FieldSource`.

        The image may be cropped, flipped or resampled. It is compared with the file that the fields were made for; if
        another reader sees that file at another place, the field is moved there.

        Args:
            original, original_shape: affine (4, 4) and size (X, Y, Z) that the image had when it was read, if known.

        Raises:
            SettingError, OutputError: as :meth:`count`.
            ImageError: the image is not where the one lies that the fields were made for.
        """
        header = self._header(name)
        field = self.field(name, seed % header.count)
        if header.geometry is None or image.ndim != 4:
            return field
        shape = tuple(image.shape[1:])
        to_world = header.geometry.to_world(name, np.asarray(affine, np.float64), shape, original, original_shape)
        return field if to_world is None else field.moved(to_world)

    def _header(self, name: str) -> _Header:
        if name not in self._headers:
            path = self.folder / f"{name}{SUFFIX}"
            if name not in self.names:
                raise SettingError(
                    f"The bank '{self.folder}' has no fields for '{name}' (it has {', '.join(self.names[:3])}, ...); "
                    "make them, or give the data the name that the case has in the bank."
                )
            try:
                with safe_open(path, "pt") as stream:
                    written = json.loads(stream.metadata()[METADATA_KEY])
                    self._headers[name] = _Header.of(written, stream.get_slice("fields").get_shape())
            except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
                raise _damaged(path) from error
        return self._headers[name]


@dataclass(frozen=True)
class _Header:
    """What a file of fields says of itself.

    Attributes:
        count: number of fields.
        affine: of all fields, in files from before fields were packed.
        packed: where each field is in the file, and how it is packed.
        geometry: of the image that the fields were made for; old files do not have it.
    """

    count: int
    affine: np.ndarray
    packed: list[dict[str, Any]] | None = None
    geometry: FileGeometry | None = None

    @staticmethod
    def of(written: dict[str, Any], shape: Sequence[int]) -> _Header:
        if "fields" not in written:
            return _Header(shape[0], np.asarray(written["affine"], np.float64))
        return _Header(len(written["fields"]), np.eye(4), written["fields"], FileGeometry.of(written["geometry"]))


@dataclass(frozen=True)
class BankSettings:
    """Settings of the fields in a bank.

    Attributes:
        levels: T' of the fields.
        copies: number of fields per level and case.
        seed: seed of the bank; the seed of every field is computed from it.
        deformation: settings of every field, except for the level.
    """

    levels: Sequence[int] = (20, 40, 60)
    copies: int = 4
    seed: int = 0
    deformation: DeformationSettings = field(default_factory=DeformationSettings)


def make_bank(
    dataset: str | Path,
    folder: str | Path,
    *,
    model: str | None = None,
    levels: Sequence[int] = (20, 40, 60),
    copies: int = 4,
    seed: int = 0,
    steps: int | None = None,
    pose: float = 0.0,
    device: str = "auto",
    plane: str = "auto",
    region: RegionSettings | None = None,
    process: ProcessInfo | None = None,
    on_case: Callable[[int, int], None] | None = None,
) -> FieldBank:
    """Make ``copies`` fields of each level for every image of a dataset. Complete files of an earlier call are kept.

    Args:
        dataset: as :func:`DRDMLib.io.datasets.find_cases` accepts it.
        folder: new folder, empty folder, or a bank with the same settings.
        model: name or path; by default the best one for each image.
        levels, copies, seed: see :class:`BankSettings`.
        steps, pose, plane, region: see :class:`DRDMLib.DeformationSettings`.
        process: this process among several that share the cases.
        on_case: called with (done, total) after each case.

    Raises:
        DRDMError: an image or the model cannot be used.
        SettingError: the bank was made with other settings.
        OutputError: the folder cannot be written to.
    """
    deformation = DeformationSettings(steps=steps, pose=pose, plane=plane, region=region)
    settings = BankSettings(tuple(levels), copies, seed, deformation)
    folder, process = Path(folder), process or ProcessInfo()
    cases = datasets.find_cases(dataset)
    loaded = None if model is None else load_model(model, process.device(device))
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise output_error(folder, error) from error
    own = cases[process.rank :: process.world]
    for number, case in enumerate(own, start=1):
        source = read_source(case, need_label=False)
        place = source.image if region is None else find_target(source.image, region, source.label).largest
        used = loaded or model_for(place, None, process.device(device))
        metadata: dict[str, Any] = {
            "levels": list(settings.levels),
            "copies": settings.copies,
            "seed": settings.seed,
            "steps": settings.deformation.steps,
            "pose": settings.deformation.pose,
            "plane": settings.deformation.plane,
            **settings.deformation.region_entry(),
            "model": used.metadata.name,
            "model_digest": digest_of(resolve(model or used.metadata.name)[0], "sha256"),
            "image_digest": source.digests["image"],
            "drdm": __version__,
        }
        path = folder / f"{case.name}{SUFFIX}"
        if not _exists(path, metadata):
            with one_thread_each(used.device):
                fields = _make_fields(source, used, settings)
                entries, data = _packed(fields, source)
            metadata |= {"geometry": _geometry(source).to_dict(), "fields": entries}
            # A single entry: safetensors does not keep the order of several, and equal fields must give equal bytes.
            write_bytes(path, save({"fields": data}, {METADATA_KEY: json.dumps(metadata)}))
        if on_case is not None:
            on_case(number, len(own))
    return FieldBank(folder)


def _exists(path: Path, metadata: dict[str, Any]) -> bool:
    """Return whether the file exists.

    Raises:
        SettingError: it was made with other settings.
        OutputError: it is damaged.
    """
    if not path.exists():
        return False
    try:
        with safe_open(path, "pt") as stream:
            written = json.loads(stream.metadata()[METADATA_KEY])
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        raise _damaged(path) from error
    for key in (*metadata, "region"):
        if written.get(key) != metadata.get(key):
            raise SettingError(f"The fields in '{path}' were made with other {key}; choose a new folder.")
    return True


def _damaged(path: Path) -> OutputError:
    return OutputError(f"'{path}' is damaged; delete it and make the bank again.")


def _make_fields(source: Source, model: Model, settings: BankSettings) -> list[WorldField]:
    fields = []
    for level in settings.levels:
        deformation = replace(settings.deformation, level=level)
        seeds = [seed_of(settings.seed, source.case.name, (level,), copy, 0) for copy in range(settings.copies)]
        # One at a time, so that all types of devices make the same fields.
        for seed in seeds:
            made = next(make_deformations(source.image, model, deformation, (seed,), label=source.label))
            fields.append(world_field(made.field, source.image))
    return fields


def _packed(fields: list[WorldField], source: Source) -> tuple[list[dict[str, Any]], Tensor]:
    """Pack fields one after the other, and describe each."""
    to_voxels = np.linalg.inv(ras_affine(source.image)[:3, :3])
    entries, data = [], bytearray()
    for one in fields:
        how, stored = pack(one.vectors, to_voxels)
        entries.append({"start": len(data), "bytes": len(stored), "how": how, "affine": one.affine.tolist()})
        data += stored
    return entries, torch.frombuffer(data, dtype=torch.uint8)


def _geometry(source: Source) -> FileGeometry:
    size = (*source.image.GetSize(), 1)[:3]
    return FileGeometry(size, ras_affine(source.image), tuple(other_affines(source.case.image)))


def case_name(path: str | Path, known: Sequence[str] = ()) -> str:
    """Return the name of an image file's case in a bank: without suffix and without nnU-Net's channel number.

    Args:
        known: names of the bank; one of these may end in the number of a case (``word_0001``), which is kept.
    """
    stem = image_stem(path)
    if file_name(stem) in known:
        return file_name(stem)
    head, _, channel = stem.rpartition("_")
    return file_name(head if head and len(channel) == 4 and channel.isdigit() else stem)


def random_seed(generator: torch.Generator | None = None) -> int:
    """Return a seed, 0 to 2^31 - 2, from torch's random numbers."""
    return int(torch.randint(2**31 - 1, (), generator=generator))


def drawn(
    source: FieldSource,
    name: str,
    image: Tensor,
    affine: np.ndarray,
    seed: int,
    original: np.ndarray | None,
    original_shape: Sequence[int] | None,
) -> WorldField:
    """Draw a field from any source; a bank gets the geometry with which the image was read, too."""
    if isinstance(source, FieldBank):
        return source.draw(name, image, affine, seed, original=original, original_shape=original_shape)
    return source.draw(name, image, affine, seed)
