"""Banks: folders with precomputed displacement fields, one file for each case."""

from __future__ import annotations

import contextlib
import json
import warnings
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
from ..deformation import make_deformations
from ..diffusion.poses import PoseSpread
from ..errors import DRDMError, FallbackWarning, ImageError, ModelError, OutputError, SettingError
from ..io import datasets, schema
from ..io.datasets import Case
from ..io.files import file_name, image_stem, write_bytes
from ..io.geometry import other_affines
from ..io.left_out import LeftOut
from ..levels import AUTO_POSE, STRENGTHS, Level
from ..models.catalogue import digest_of, find, load_model, resolve
from ..models.choice import choose_model, named_choice
from ..models.model import Model
from ..production.plan import seed_of
from ..production.poses import poses_of_cases
from ..production.run_folder import clean_up, run_lock, share_of_folder
from ..production.sources import Source, read_source
from ..runtime.distributed import ProcessInfo
from ..runtime.threads import one_thread_each
from ..settings import DeformationSettings, Pose, RegionSettings, pose_entry, pose_of
from .packing import pack, unpack
from .placement import FileGeometry
from .world import FieldSource, WorldField, ras_affine, world_field

SUFFIX, METADATA_KEY = ".safetensors", "drdm"


_AFFINE = schema.listing(schema.listing(schema.number(-1e9, 1e9), 4, 4), 4, 4)
_SIDES = schema.whole(1, 10_000)
_FACTORS = schema.listing(schema.number(), 16)
_SPLINE = schema.record({"nodes": _SIDES, "first": schema.whole(0, 1), "head": _FACTORS, "tail": _FACTORS})
# What the header of a file with packed fields must have.
_FIELDS: dict[str, schema.Check] = {
    "fields": schema.listing(
        schema.record(
            {
                "start": schema.whole(0),
                "bytes": schema.whole(1),
                "affine": _AFFINE,
                "how": schema.record(
                    {
                        "type": schema.one_of("int16", "float32"),
                        "shape": schema.listing(_SIDES, 4, 4),
                        "axes": schema.listing(schema.optional(_SPLINE), 3, 3),
                    },
                    {"scale": schema.number()},
                ),
            }
        ),
        least=1,
    ),
    "geometry": schema.record(
        {"size": schema.listing(_SIDES, 3, 3), "affine": _AFFINE, "others": schema.listing(_AFFINE, 20)}
    ),
}
# And what it says about how they were made.
_WRITTEN: dict[str, schema.Check] = {
    **dict.fromkeys(("model", "model_digest", "image_digest", "plane", "border", "drdm"), schema.text()),
    **dict.fromkeys(("copies", "seed"), schema.whole()),
    **dict.fromkeys(("levels", "steps", "pose", "region", "bones", "fit"), schema.anything),
}


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
        path = self.folder / f"{name}{SUFFIX}"
        try:
            with safe_open(path, "pt") as stream:
                stored = stream.get_slice("fields")
                if header.packed is None:
                    return WorldField(stored[number], header.affine)
                one = header.packed[number]
                data: Tensor = stored[one["start"] : one["start"] + one["bytes"]]
            return WorldField(unpack(one["how"], data.numpy().tobytes()), np.asarray(one["affine"], np.float64))
        except (OSError, SafetensorError, ValueError, RuntimeError, LookupError, TypeError) as error:
            raise _damaged(path) from error

    def geometry(self, name: str) -> FileGeometry:
        """Return where the voxels of the image lie that a case's fields were made for.

        Raises:
            SettingError, OutputError: as :meth:`count`; and the bank is of an old version that does not say it.
        """
        geometry = self._header(name).geometry
        if geometry is None:
            raise SettingError(f"The bank '{self.folder}' was made by an old version; make it again in a new folder.")
        return geometry

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
            except (OSError, SafetensorError, ValueError, LookupError, TypeError, RecursionError) as error:
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
        """Read the values of a file.

        Raises:
            ValueError: one of them is not valid.
        """
        needed = _FIELDS if isinstance(written, dict) and "fields" in written else {"affine": _AFFINE}
        wrong = schema.wrong_key(written, needed)
        if wrong is not None:
            raise ValueError(f"'{wrong}' is not valid")
        if "fields" not in written:
            return _Header(shape[0], np.asarray(written["affine"], np.float64))
        return _Header(len(written["fields"]), np.eye(4), written["fields"], FileGeometry.of(written["geometry"]))


@dataclass(frozen=True)
class BankSettings:
    """Settings of the fields in a bank.

    Attributes:
        levels: strengths of the fields: T', or words, see :class:`DRDMLib.DeformationSettings`.
        copies: number of fields per level and case.
        seed: seed of the bank; the seed of every field is computed from it.
        deformation: settings of every field, except for the level.
    """

    levels: Sequence[Level] = STRENGTHS
    copies: int = 4
    seed: int = 0
    deformation: DeformationSettings = field(default_factory=DeformationSettings)


def make_bank(
    dataset: str | Path,
    folder: str | Path,
    *,
    model: str | None = None,
    levels: Sequence[Level] = STRENGTHS,
    copies: int = 4,
    seed: int = 0,
    steps: int | None = None,
    pose: Pose = 0.0,
    device: str = "auto",
    plane: str = "auto",
    border: str = "auto",
    region: RegionSettings | None = None,
    bones: str = "auto",
    process: ProcessInfo | None = None,
    on_case: Callable[[int, int], None] | None = None,
) -> FieldBank:
    """Make ``copies`` fields of each level for every image of a dataset. Complete files of an earlier call are kept.

    An image that cannot be used is left out.

    Args:
        dataset: as :func:`DRDMLib.io.datasets.find_cases` accepts it.
        folder: new folder, empty folder, or a bank with the same settings.
        model: name or path; by default the one that fits each image best.
        levels, copies, seed: see :class:`BankSettings`.
        steps, pose, plane, border, region, bones: see :class:`DRDMLib.DeformationSettings`. A pose ``"auto"`` is that
            of the dataset's scans, as in a batch; an earlier call's is kept.
        process: this process among several that share the cases.
        on_case: called with (done, total) after each case.

    Warns:
        FallbackWarning: a model does not fit an image well.

    Raises:
        DRDMError: no image, or not the model, can be used.
        SettingError: the bank was made with other settings, or another process makes it now.
        OutputError: the folder cannot be written to.

    Warns:
        FallbackWarning: an image cannot be used and is left out.
    """
    folder, process = Path(folder), process or ProcessInfo()
    cases = datasets.find_cases(dataset)
    if pose == AUTO_POSE:
        pose = _pose_in(folder, cases) or poses_of_cases(cases) or AUTO_POSE
    deformation = DeformationSettings(steps=steps, pose=pose, plane=plane, border=border, region=region, bones=bones)
    settings = BankSettings(tuple(levels), copies, seed, deformation)
    loaded = {} if model is None else {model: load_model(model, process.device(device))}
    own = cases[process.rank :: process.world]
    bad = LeftOut(len(cases))
    with contextlib.ExitStack() as kept:
        lock = _BankLock(folder, process, kept)
        for number, case in enumerate(own, start=1):
            try:
                source = read_source(case, need_label=False)
                path = folder / f"{case.name}{SUFFIX}"
                name = model or _model_in(path) or choose_model(source.place(region), plane=plane).name
                if name not in loaded:
                    loaded[name] = load_model(name, process.device(device))
                _make_file(path, source, name, loaded[name], settings, lock)
                bad.used()
            except (ImageError, ModelError) as error:
                bad.add(case, error)
            if on_case is not None:
                on_case(number, len(own))
    bad.require_one()
    bad.warn()
    return FieldBank(folder)


class _BankLock:
    """Keep other processes from writing into a bank, from the first field that has to be made.

    Several processes can therefore use a complete bank at once.
    """

    def __init__(self, folder: Path, process: ProcessInfo, kept: contextlib.ExitStack) -> None:
        self._folder, self._process, self._kept = folder, process, kept
        self._held = False

    def acquire(self) -> None:
        """Lock the bank until the stack of contexts is left.

        Raises:
            SettingError: another process writes into the bank.
            OutputError: the folder cannot be written to.
        """
        if not self._held:
            self._kept.callback(_remove_locks, self._folder)
            self._kept.enter_context(share_of_folder(self._folder, self._process, lambda: None))
            self._held = True


def _remove_locks(folder: Path) -> None:
    if folder.is_dir():
        with contextlib.suppress(DRDMError), run_lock(folder):
            clean_up(folder)


def _make_file(path: Path, source: Source, name: str, used: Model, settings: BankSettings, lock: _BankLock) -> None:
    """Make and write the fields of a case, unless they are there.

    Args:
        name, used: name or path of the model, and the model.
    """
    metadata: dict[str, Any] = {
        "levels": list(settings.levels),
        "copies": settings.copies,
        "seed": settings.seed,
        "steps": settings.deformation.steps,
        "pose": pose_entry(settings.deformation.pose),
        "plane": settings.deformation.plane,
        "border": settings.deformation.border,
        **settings.deformation.region_entry(),
        **settings.deformation.bones_entry(),
        "model": used.metadata.name,
        "model_digest": digest_of(resolve(name)[0], "sha256"),
        "image_digest": source.digests["image"],
        "drdm": __version__,
    }
    if _exists(path, metadata):
        return
    lock.acquire()
    # Another process may have made it before this one got the lock.
    if _exists(path, metadata):
        return
    choice = named_choice(source.place(settings.deformation.region), name, used, plane=settings.deformation.plane)
    if choice.warning():
        warnings.warn(f"{source.case.name}: {choice.warning()}", FallbackWarning, stacklevel=2)
    metadata["fit"] = choice.fit.to_dict()
    with one_thread_each(used.device):
        fields = _make_fields(source, used, settings)
        entries, data = _packed(fields, source)
    metadata |= {"geometry": _geometry(source).to_dict(), "fields": entries}
    # A single entry: safetensors does not keep the order of several, and equal fields must give equal bytes.
    write_bytes(path, save({"fields": data}, {METADATA_KEY: json.dumps(metadata)}))


def _model_in(path: Path) -> str | None:
    """Return the model of an earlier call's file, so that models added since then do not change the choice."""
    written = _written(path)
    name = "" if written is None else written.get("model", "")
    return name if name and find(name) is not None else None


def _pose_in(folder: Path, cases: Sequence[Case]) -> Pose | None:
    """Return the pose of an earlier call's file, which other scans do not change; ``None`` if it is an amount."""
    found = next(filter(None, (_written(folder / f"{case.name}{SUFFIX}") for case in cases)), {})
    pose = pose_of(found.get("pose", 0.0))
    return pose if isinstance(pose, str | PoseSpread) else None


def _written(path: Path) -> dict[str, Any] | None:
    """Return what a file says about its fields; ``None`` if there is no file.

    Raises:
        OutputError: it is damaged.
    """
    if not path.exists():
        return None
    try:
        with safe_open(path, "pt") as stream:
            written: dict[str, Any] = json.loads(stream.metadata()[METADATA_KEY])
        if schema.wrong_key(written, {}, _WRITTEN) is not None:
            raise ValueError
    except (OSError, SafetensorError, ValueError, LookupError, TypeError, RecursionError) as error:
        raise _damaged(path) from error
    return written


def _exists(path: Path, metadata: dict[str, Any]) -> bool:
    """Return whether the file exists.

    Raises:
        SettingError: it was made with other settings.
        OutputError: it is damaged.
    """
    written = _written(path)
    if written is None:
        return False
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
