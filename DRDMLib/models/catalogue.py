"""The models there are: shipped with DRDM, the user's own, or downloaded on request.

Listing and downloading need no PyTorch.
"""

from __future__ import annotations

import hashlib
import http.client
import os
import shutil
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import ModelError, SettingError
from ..io.files import atomic_write
from ..io.resources import cache_folder, resource
from .metadata import ModelMetadata, read_header

if TYPE_CHECKING:
    import torch

    from .model import Model

_AUTHORS = "https://raw.githubusercontent.com/jianqingzheng/def_diff_rec/main/models"


@dataclass(frozen=True)
class Entry:
    """A model of the catalogue.

    Attributes:
        name: what ``--model`` takes.
        ndim: dimension of its images.
        about: anatomy and modality in a few words.
        url: where to download it; empty for a shipped one.
        digest: ``sha256:...`` or ``git:...`` (the digest of a git blob) of the download.
        megabytes: size of the download.
        own: the user's own model: its file, in the folder of the user's models.
        extent_mm: least and greatest longest side of the images it is meant for, where that is known.
    """

    name: str
    ndim: int
    about: str
    url: str = ""
    digest: str = ""
    megabytes: float = 0.0
    own: Path | None = None
    extent_mm: tuple[float, float] | None = None

    @property
    def path(self) -> Path:
        """Where its file is, or will be once downloaded."""
        if self.own is not None:
            return self.own
        if self.url:
            return cache_folder() / f"{self.name}.pth"
        return resource("Models", f"{self.name}.safetensors")

    @property
    def available(self) -> bool:
        """Whether it can be used right now."""
        try:
            return self.path.is_file()
        except SettingError:
            # No cache folder, so nothing has been downloaded.
            return False


# Shipped ones in the order in which they are taken when no model is named.
CATALOGUE = (
    Entry("brain-t1-3d", 3, "whole head, T1 MR", extent_mm=(150.0, 290.0)),
    Entry("hippocampus-mr-3d", 3, "hippocampus crop, T1 MR", extent_mm=(25.0, 90.0)),
    Entry("general-3d", 3, "any anatomy, MR and CT"),
    Entry("cardiac-mr-2d", 2, "heart, short-axis cine MR", extent_mm=(100.0, 450.0)),
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
    """Where the user's own models are kept."""
    return cache_folder() / "models"


def user_models() -> list[Entry]:
    """The user's own models, by name; files that are no models are passed over."""
    taken = {entry.name for entry in CATALOGUE}
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
        if path.stem not in taken:
            entries.append(Entry(path.stem, metadata.ndim, about, own=path))
    return entries


def add_user_model(path: str | os.PathLike[str], name: str) -> Entry:
    """Copy a trained model into the folder of the user's models; a name that is taken gets a number.

    Raises:
        ModelError: it is not a model.
        OutputError: it cannot be stored.
    """
    metadata = read_header(path)
    name = "".join(c if c.isalnum() or c in "-_." else "-" for c in name).strip(".-") or "my-model"
    free, number = name, 2
    while find(free) is not None or (user_models_folder() / f"{free}.safetensors").exists():
        free, number = f"{name}-{number}", number + 1
    target = user_models_folder() / f"{free}.safetensors"
    with atomic_write(target) as partial:
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, partial)
    return Entry(free, metadata.ndim, metadata.anatomy or "your own", own=target)


def available_models() -> list[Entry]:
    """Every model that is here or can be downloaded: shipped ones, the user's own, then the others."""
    shipped = [entry for entry in CATALOGUE if entry.available and not entry.url]
    return shipped + user_models() + [entry for entry in CATALOGUE if entry.url]


def find(name: str) -> Entry | None:
    """The entry of that name."""
    return next((entry for entry in (*CATALOGUE, *user_models()) if entry.name == name), None)


def default_entry(ndim: int, extent: float | None = None) -> Entry:
    """The best model of a dimension that is here: shipped ones first, then what was downloaded.

    Args:
        extent: longest side of the image, millimeters; a model that is meant for such images goes before the general
            one, which takes everything else.

    Raises:
        ModelError: there is none.
    """
    here = [entry for entry in CATALOGUE if entry.ndim == ndim and entry.available]

    def meant(entry: Entry) -> bool:
        return extent is not None and entry.extent_mm is not None and entry.extent_mm[0] <= extent <= entry.extent_mm[1]

    general = [entry for entry in here if entry.extent_mm is None and not entry.url]
    for entry in (*filter(meant, here), *general, *here):
        return entry
    loadable = next((e.name for e in CATALOGUE if e.ndim == ndim and e.url), "")
    raise ModelError(
        f"No {ndim}D model comes with this version; "
        f"run 'drdm models fetch {loadable}' once, or name a file with --model."
    )


def resolve(
    name: str | os.PathLike[str] | None, ndim: int | None = None, extent: float | None = None
) -> tuple[Path, str]:
    """Path and name of a model given by catalogue name, by path, or not at all.

    Raises:
        ModelError: unknown, or not downloaded yet.
    """
    entry = default_entry(ndim or 3, extent) if name is None else find(str(name))
    if entry is not None:
        if entry.available:
            return entry.path, entry.name
        if entry.url:
            raise ModelError(f"The model '{entry.name}' is not downloaded yet; run 'drdm models fetch {entry.name}'.")
        raise ModelError(
            f"The model '{entry.name}' does not come with this version; 'drdm models' lists those that do."
        )
    assert name is not None
    path = Path(name)
    if not path.is_file():
        raise ModelError(
            f"There is no model '{name}'; 'drdm models' lists the names, or give the path of a model file."
        )
    return path, path.stem


def load_model(
    name_or_path: str | os.PathLike[str] | None = None,
    device: str | torch.device = "auto",
    *,
    ndim: int | None = None,
    extent: float | None = None,
) -> Model:
    """A model by catalogue name or path, ready to use.

    Args:
        name_or_path: ``None`` takes the best one that is here for the other two arguments.
        ndim: dimension of the image.
        extent: its longest side, millimeters.

    Raises:
        ModelError: unknown, not downloaded, corrupt, or a file that would run code when loaded.
        SettingError: the device is not there.
    """
    from .model import load_model_file

    path, name = resolve(name_or_path, ndim, extent)
    model = load_model_file(path, device)
    model.metadata = replace(model.metadata, name=name)
    return model


def model_metadata(name_or_path: str | os.PathLike[str]) -> ModelMetadata:
    """What a model says of itself, without loading its weights onto a device."""
    path, name = resolve(name_or_path)
    if path.suffix.lower() == ".safetensors":
        return replace(read_header(path), name=name)
    from .model import read_metadata

    return replace(read_metadata(path), name=name)


def digest_of(path: Path, kind: str) -> str:
    """Digest of a file as ``sha256:...`` or ``git:...``."""
    data = path.read_bytes()
    if kind == "git":
        # Not a safeguard of ours: the name git gives to the file in the authors' repository.
        return "git:" + hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()
    return "sha256:" + hashlib.sha256(data).hexdigest()


def fetch(name: str, *, on_bytes: Callable[[int, int], None] | None = None) -> Path:
    """Download a model of the catalogue and check its digest; a model that is here already is left alone.

    Args:
        on_bytes: called with (received, total); may raise to cancel.

    Raises:
        ModelError: unknown name, no network, or a file that is not what it should be.
        OutputError: it cannot be stored.
    """
    entry = find(name)
    if entry is None:
        raise ModelError(f"There is no model '{name}' in the catalogue; 'drdm models' lists the names.")
    if entry.available:
        return entry.path
    if not entry.url:
        raise ModelError(f"The model '{name}' does not come with this version and cannot be downloaded.")
    path = entry.path
    with atomic_write(path) as partial:
        path.parent.mkdir(parents=True, exist_ok=True)
        _download(entry, partial, on_bytes)
        if digest_of(partial, entry.digest.split(":")[0]) != entry.digest:
            raise ModelError(f"The download of '{name}' is not the file it should be; it was thrown away, try again.")
    return path


def _download(entry: Entry, target: Path, on_bytes: Callable[[int, int], None] | None) -> None:
    try:
        with urllib.request.urlopen(entry.url, timeout=60) as source, target.open("wb") as stream:
            total = int(source.headers.get("Content-Length") or 0)
            received = 0
            while chunk := source.read(2**16):
                stream.write(chunk)
                received += len(chunk)
                if on_bytes is not None:
                    on_bytes(received, total)
    except urllib.error.URLError as error:
        raise ModelError(
            f"'{entry.name}' could not be downloaded ({error.reason}); check the network and try again."
        ) from error
    except (http.client.HTTPException, ConnectionError, TimeoutError) as error:
        raise ModelError(f"The download of '{entry.name}' broke off; check the network and try again.") from error
