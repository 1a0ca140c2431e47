"""The catalog of models: shipped with DRDM, trained by the user, or downloaded on request.

Listing and downloading models need no PyTorch.
"""

from __future__ import annotations

import hashlib
import http.client
import os
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import ModelError, SettingError
from ..io.files import atomic_write, file_name, output_error
from ..io.resources import cache_folder, resource
from .metadata import ModelMetadata, read_header

if TYPE_CHECKING:
    import torch

    from .model import Model

# A download may be this much larger than the catalog says, which rounds, and takes at most this long: seconds for the
# beginning, and for each megabyte, as with 10 kilobytes per second. An answer must come within ``_PATIENCE`` seconds.
_LARGER, _BEGINNING, _PER_MEGABYTE, _PATIENCE = 1.2, 60.0, 100.0, 60.0

# Models in memory, by their file and device; ``None``: none is kept.
_KEPT: dict[tuple[object, ...], Model] | None = None
_MOST_KEPT = 4

_AUTHORS = "https://raw.githubusercontent.com/jianqingzheng/def_diff_rec/main/models"


@dataclass(frozen=True)
class Entry:
    """A model of the catalog.

    Attributes:
        name: the name that ``--model`` takes.
        ndim: dimension of its images, 2 or 3.
        about: anatomy and modality in a few words.
        url: where to download it; empty for a shipped model.
        digest: checksum of the download: ``sha256:...``, or ``git:...`` (that of a git blob).
        megabytes: size of the download.
        own: for a user's own model, its file in the folder of the user's models.
        extent_mm: smallest and largest length of the longest side of the images it is meant for, in millimeters;
            ``None`` if this is not known or not limited.
        automatic: whether the model may be chosen for an image that it fits when the user names none.
        whole: whether it is meant only for images of a whole object, with background around it.
        people_differ, reach: of a shipped model, see :class:`DRDMLib.models.metadata.ModelMetadata`.
    """

    name: str
    ndim: int
    about: str
    url: str = ""
    digest: str = ""
    megabytes: float = 0.0
    own: Path | None = None
    extent_mm: tuple[float, float] | None = None
    automatic: bool = True
    whole: bool = False
    people_differ: float | None = None
    reach: float | None = None

    @property
    def path(self) -> Path:
        """The model's file, or where it will be once it is downloaded."""
        if self.own is not None:
            return self.own
        if self.url:
            return cache_folder() / f"{self.name}.pth"
        return resource("Models", f"{self.name}.safetensors")

    @property
    def available(self) -> bool:
        """Whether the model's file exists."""
        try:
            return self.path.is_file()
        except SettingError:
            # There is no cache folder, so nothing has been downloaded.
            return False

    @property
    def removable(self) -> bool:
        """Whether the model's file exists and was downloaded or trained by the user, not shipped with DRDM."""
        return self.available and (self.own is not None or bool(self.url))


# Shipped models in the order of preference when the user chooses none.
CATALOGUE = (
    Entry(
        "brain-t1-3d", 3, "whole head or bare brain, T1 MR", extent_mm=(150.0, 290.0), whole=True, people_differ=0.024
    ),
    Entry("hippocampus-mr-3d", 3, "hippocampus crop, T1 MR", extent_mm=(25.0, 90.0), people_differ=0.034, reach=0.085),
    Entry("general-3d", 3, "any anatomy, MR and CT", reach=0.15),
    # Stronger deformations of a single slice were recognized as made, so its words mean less than elsewhere.
    Entry("general-2d", 2, "slices and 2D images of any anatomy, MR and CT", people_differ=0.023, reach=0.063),
    # The size of a 2D image does not tell that it shows a heart, and on hearts, too, general-2d recovers more.
    Entry(
        "cardiac-mr-2d",
        2,
        "heart, short-axis cine MR",
        extent_mm=(100.0, 450.0),
        automatic=False,
        people_differ=0.039,
        reach=0.18,
    ),
    Entry(
        "heart-region-2d",
        2,
        "region around a heart, short-axis cine MR",
        extent_mm=(90.0, 190.0),
        automatic=False,
        people_differ=0.059,
    ),
    Entry(
        "published-cardiac-2d",
        2,
        "heart, short-axis cine MR (the authors' weights)",
        f"{_AUTHORS}/cmr_recresacnet/000000_cmr_recresacnet.pth",
        "sha256:c9e93ccbd99ad288bb1c961f980141d2c8c91115e8a5986d7a20a98f64ae8e93",
        1.8,
    ),
    Entry(
        "published-lung-ct-3d",
        3,
        "lung, CT (the authors' weights)",
        f"{_AUTHORS}/lct_recresacnet/000000_lct_recresacnet.pth",
        "git:6309023cefe116cd55fb8307ad37b38d47448990",
        5.3,
    ),
)


def user_models_folder() -> Path:
    """Return the folder of the user's own models."""
    return cache_folder() / "models"


def user_models() -> list[Entry]:
    """List the user's own models, sorted by name; files that are not models are ignored."""
    names = {entry.name for entry in CATALOGUE}
    entries = []
    try:
        paths = sorted(user_models_folder().glob("*.safetensors"))
    except SettingError:
        return []
    for path in paths:
        try:
            metadata = read_header(path)
        except ModelError:
            continue
        about = ", ".join(text for text in (metadata.anatomy, metadata.modality) if text) or "your own"
        if path.stem not in names:
            entries.append(Entry(path.stem, metadata.ndim, about, own=path))
    return entries


def add_user_model(path: str | os.PathLike[str], name: str) -> Entry:
    """Copy a trained model into the folder of the user's models.

    Args:
        path: the model's ``.safetensors`` file.
        name: its name in the catalog; a number is added if the name is already used.

    Raises:
        ModelError: the file is not a model.
        OutputError: the model cannot be stored.
    """
    metadata = read_header(path)
    name = file_name("".join(c if c.isalnum() or c in "-_." else "-" for c in name).strip(".-") or "my-model")
    unused, number = name, 2
    while find(unused) is not None or (user_models_folder() / f"{unused}.safetensors").exists():
        unused, number = f"{name}-{number}", number + 1
    target = user_models_folder() / f"{unused}.safetensors"
    with atomic_write(target) as partial:
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, partial)
    return Entry(unused, metadata.ndim, metadata.anatomy or "your own", own=target)


def available_models() -> list[Entry]:
    """List all models that are available or can be downloaded: the shipped ones, the user's own, then the others."""
    shipped = [entry for entry in CATALOGUE if entry.available and not entry.url]
    return shipped + user_models() + [entry for entry in CATALOGUE if entry.url]


def find(name: str) -> Entry | None:
    """Find a model in the catalog by its name; ``None`` if there is none."""
    return next((entry for entry in (*CATALOGUE, *user_models()) if entry.name == name), None)


def default_entry(ndim: int, extent: float | None = None) -> Entry:
    """Choose the best available model for an image: shipped models first, then downloaded ones.

    Args:
        ndim: dimension of the image, 2 or 3.
        extent: longest side of the image, millimeters. A model that is meant for images of this size is preferred to
            the general one, which is used for all other sizes.

    Raises:
        ModelError: no model of this dimension is available.
    """
    available = [entry for entry in CATALOGUE if entry.ndim == ndim and entry.available]

    def fits(entry: Entry) -> bool:
        if extent is None or entry.extent_mm is None or not entry.automatic:
            return False
        return entry.extent_mm[0] <= extent <= entry.extent_mm[1]

    general = [entry for entry in available if entry.extent_mm is None and not entry.url]
    for entry in (*filter(fits, available), *general, *available):
        return entry
    downloadable = next((e.name for e in CATALOGUE if e.ndim == ndim and e.url), "")
    raise ModelError(
        f"No {ndim}D model is included in this version; "
        f"run 'drdm models fetch {downloadable}' once, or choose a model file with --model."
    )


def resolve(
    name: str | os.PathLike[str] | None, ndim: int | None = None, extent: float | None = None
) -> tuple[Path, str]:
    """Find the file and the name of a model.

    Args:
        name: catalog name or path of a model file; ``None`` for the best available model, see :func:`default_entry`.
        ndim, extent: as for :func:`default_entry`; ``ndim`` is 3 by default.

    Raises:
        ModelError: the model is unknown, or not downloaded yet.
    """
    entry = default_entry(ndim or 3, extent) if name is None else find(str(name))
    if entry is not None:
        if entry.available:
            return entry.path, entry.name
        if entry.url:
            raise ModelError(f"The model '{entry.name}' is not downloaded yet; run 'drdm models fetch {entry.name}'.")
        raise ModelError(
            f"The model '{entry.name}' is not included in this version; run 'drdm models' to list the models."
        )
    assert name is not None
    path = Path(name)
    if not path.is_file():
        raise ModelError(
            f"There is no model '{name}'; run 'drdm models' to list the names, or give the path of a model file."
        )
    return path, path.stem


def load_model(
    name_or_path: str | os.PathLike[str] | None = None,
    device: str | torch.device = "auto",
    *,
    ndim: int | None = None,
    extent: float | None = None,
) -> Model:
    """Load a model by its catalog name or path.

    Args:
        name_or_path: ``None`` for the best available model for an image with the given dimension and extent.
        device: ``"auto"``, ``"cpu"``, ``"cuda"``, ``"cuda:1"`` or ``"mps"``.
        ndim: dimension of the image, 2 or 3.
        extent: longest side of the image, millimeters.

    Raises:
        ModelError: the model is unknown, not downloaded or damaged, or its file would run code when loaded.
        SettingError: the device is not available.
    """
    from .model import load_model_file

    path, name = resolve(name_or_path, ndim, extent)
    key = (str(path.absolute()), str(device), name, *_state_of(path)) if _KEPT is not None else ()
    if _KEPT is not None and key in _KEPT:
        return _KEPT[key]
    model = load_model_file(path, device)
    model.metadata = replace(model.metadata, name=name)
    if _KEPT is not None:
        while len(_KEPT) >= _MOST_KEPT:
            del _KEPT[next(iter(_KEPT))]
        _KEPT[key] = model
    return model


def keep_models() -> None:
    """From now on, :func:`load_model` keeps the last models that it has loaded, unless their files change.

    Their users must not change them.
    """
    global _KEPT
    _KEPT = _KEPT or {}


def _state_of(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_mtime_ns, found.st_size


def model_metadata(name_or_path: str | os.PathLike[str]) -> ModelMetadata:
    """Read the metadata of a model, without loading its weights onto a device.

    Raises:
        ModelError: as :func:`load_model`.
    """
    path, name = resolve(name_or_path)
    if path.suffix.lower() == ".safetensors":
        return replace(read_header(path), name=name)
    from .model import read_metadata

    return replace(read_metadata(path), name=name)


def digest_of(path: Path, kind: str) -> str:
    """Compute the checksum of a file, as ``sha256:...`` or (``kind="git"``) as ``git:...``."""
    data = path.read_bytes()
    if kind == "git":
        # Git's own name for the file in the authors' repository, a SHA-1. It identifies the file; it is no protection.
        return "git:" + hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()
    return "sha256:" + hashlib.sha256(data).hexdigest()


def fetch(name: str, *, on_bytes: Callable[[int, int], None] | None = None) -> Path:
    """Download a model of the catalog and verify its checksum.

    Nothing is done if the model is available already. A download that was damaged since then is repeated.

    Args:
        on_bytes: called with (received, total) in bytes; may raise to cancel.

    Returns:
        The model's file.

    Raises:
        ModelError: the name is unknown; or the download failed, took too long, was too large, or has a wrong checksum.
        OutputError: the model cannot be stored.
    """
    entry = find(name)
    if entry is None:
        raise ModelError(f"There is no model '{name}' in the catalog; run 'drdm models' to list the names.")
    if entry.available and (not entry.url or _is_whole(entry)):
        return entry.path
    if not entry.url:
        raise ModelError(
            f"The model '{name}' is not included in this version and cannot be downloaded; "
            "run 'drdm models' to list the models."
        )
    path = entry.path
    with atomic_write(path) as partial:
        path.parent.mkdir(parents=True, exist_ok=True)
        _download(entry, partial, on_bytes)
        if digest_of(partial, entry.digest.split(":")[0]) != entry.digest:
            raise ModelError(f"The download of '{name}' has a wrong checksum and was deleted; try again.")
    return path


def _is_whole(entry: Entry) -> bool:
    """Whether a downloaded file has its checksum."""
    try:
        small = entry.path.stat().st_size <= _most_bytes(entry)
        return small and digest_of(entry.path, entry.digest.split(":")[0]) == entry.digest
    except OSError:
        return False


def _most_bytes(entry: Entry) -> int:
    return int(1e6 * _LARGER * entry.megabytes) + 2**17


def remove(name: str) -> Path:
    """Remove the file of a model that was downloaded or trained by the user; a download can be repeated.

    Returns:
        The file that was removed.

    Raises:
        ModelError: the name is unknown, or the model is shipped with DRDM or not downloaded.
        OutputError: the file cannot be removed.
    """
    entry = find(name)
    if entry is None:
        raise ModelError(f"There is no model '{name}' in the catalog; run 'drdm models' to list the names.")
    if not entry.own and not entry.url:
        raise ModelError(f"The model '{name}' is shipped with DRDM; only downloaded and own models can be removed.")
    if not entry.available:
        raise ModelError(f"The model '{name}' is not downloaded, so there is nothing to remove.")
    path = entry.path
    try:
        path.unlink()
    except OSError as error:
        raise output_error(path, error) from error
    return path


def _download(entry: Entry, target: Path, on_bytes: Callable[[int, int], None] | None) -> None:
    try:
        deadline = time.monotonic() + _BEGINNING + _PER_MEGABYTE * entry.megabytes
        with urllib.request.urlopen(entry.url, timeout=_PATIENCE) as source, target.open("wb") as stream:
            length = source.headers.get("Content-Length") or ""
            total = int(length) if length.isascii() and length.isdecimal() and len(length) < 16 else 0
            received = 0
            # read1 returns what has come, so that a slow server cannot hold it for long.
            while chunk := source.read1(2**16):
                stream.write(chunk)
                received += len(chunk)
                if max(received, total) > _most_bytes(entry):
                    raise ModelError(
                        f"The download of '{entry.name}' is larger than {entry.megabytes:g} MB, so it is another file; "
                        "try again later, or report it."
                    )
                if time.monotonic() > deadline:
                    raise ModelError(f"The download of '{entry.name}' took too long; check the network and try again.")
                if on_bytes is not None:
                    on_bytes(received, total)
    except urllib.error.URLError as error:
        raise ModelError(
            f"'{entry.name}' could not be downloaded ({error.reason}); check the network and try again."
        ) from error
    except (http.client.HTTPException, ConnectionError, TimeoutError) as error:
        raise ModelError(f"The download of '{entry.name}' was interrupted; check the network and try again.") from error
