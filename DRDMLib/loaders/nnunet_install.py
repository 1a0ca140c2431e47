"""Make the trainer of this package known to nnU-Net v2, and find nnU-Net's datasets.

nnU-Net looks for trainers in its own package and in the folders that the environment variable ``nnUNet_extTrainer``
names (versions after 2.6.2). The file that is written only imports the trainer, so an update of DRDM needs no new
installation.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import re
from pathlib import Path

from ..errors import OutputError, SettingError
from ..io.files import listed, write_text
from ..io.resources import cache_folder

# nnU-Net's environment variables: folders of trainers, of raw and of preprocessed datasets.
VARIABLE, RAW, PREPROCESSED = "nnUNet_extTrainer", "nnUNet_raw", "nnUNet_preprocessed"
# The bank of a dataset, in the folder of its preprocessed cases.
BANK = "drdm_bank"
_FILE = "drdm_nnunet_trainer.py"
_MARK = "Written by 'drdm nnunet install'"
_CONTENT = f'''"""The trainer nnUNetTrainerDRDM for nnU-Net.

{_MARK}; 'drdm nnunet remove' deletes it.
"""

import warnings

try:
    from DRDMLib.loaders.nnunet_trainer import nnUNetTrainerDRDM
except ModuleNotFoundError as missing:
    if (missing.name or "").partition(".")[0] != "DRDMLib":
        raise
    warnings.warn(f"nnUNetTrainerDRDM needs DRDM in this environment; install it, or delete '{{__file__}}'.")
'''
_LEAST_VERSION = (2, 6)


def install(folder: str | Path | None = None) -> Path:
    """Write the file by which nnU-Net finds the trainer, and return its path.

    Args:
        folder: one of those in ``nnUNet_extTrainer``; by default the first one of them, or a folder of this package
            that the variable must name then. Where nnU-Net does not know the variable, its own folder of variants.

    Raises:
        SettingError: nnU-Net v2 is not installed in this environment, or too old.
        OutputError: there is another file of that name, or it cannot be written.
    """
    _require_nnunet()
    path = (_default_folder() if folder is None else Path(folder)) / _FILE
    _require_own(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"The folder '{path.parent}' cannot be made ({error.strerror}); choose another.") from error
    return write_text(path, _CONTENT)


def remove(folder: str | Path | None = None) -> list[Path]:
    """Delete the file of :func:`install` and return the paths of what was deleted.

    Args:
        folder: where it is; by default all places where :func:`install` may have written it.

    Raises:
        SettingError: there is none.
        OutputError: the file is another one, or cannot be deleted.
    """
    folders = _folders() if folder is None else [Path(folder)]
    found = [path for path in dict.fromkeys(one / _FILE for one in folders) if path.exists()]
    if not found:
        raise SettingError(
            f"There is no trainer of DRDM in {listed([str(one) for one in folders])}; nothing to remove."
        )
    for path in found:
        _require_own(path)
        try:
            path.unlink()
        except OSError as error:
            raise OutputError(f"'{path}' cannot be deleted ({error.strerror}); delete it yourself.") from error
    return found


def is_found(path: Path) -> bool:
    """Whether nnU-Net finds an installed file as its variables are now."""
    return path.parent in (*_variable_folders(), _variants())


def raw_dataset(dataset: str) -> Path:
    """Return the folder of a raw dataset of nnU-Net.

    Args:
        dataset: the folder, or its name or number in the folder ``nnUNet_raw``.

    Raises:
        SettingError: there is none, or several.
    """
    if Path(dataset).is_dir():
        return Path(dataset)
    raw = os.environ.get(RAW)
    if not raw:
        raise SettingError(f"'{dataset}' is not a folder; give the folder of the dataset, or set nnUNet_raw.")
    if (Path(raw) / dataset).is_dir():
        return Path(raw) / dataset
    found = []
    if re.fullmatch(r"[0-9]{1,3}", dataset) and Path(raw).is_dir():
        found = sorted(path for path in Path(raw).glob(f"Dataset{int(dataset):03d}_*") if path.is_dir())
    if len(found) != 1:
        several = f"several: {listed([path.name for path in found])}" if found else "none"
        raise SettingError(f"'{dataset}' must be one dataset in '{raw}', but there is {several}; give its folder.")
    return found[0]


def bank_folder(dataset: Path) -> Path:
    """Return where the trainer looks for the bank of a raw dataset.

    Raises:
        SettingError: ``nnUNet_preprocessed`` is not set.
    """
    preprocessed = os.environ.get(PREPROCESSED)
    if not preprocessed:
        raise SettingError("nnUNet_preprocessed is not set; set it as for nnU-Net, or name a folder with --output.")
    return Path(preprocessed) / dataset.resolve().name / BANK


def _require_nnunet() -> None:
    if importlib.util.find_spec("nnunetv2") is None:
        raise SettingError(
            "nnU-Net v2 is not installed in the environment of 'drdm'; install both in one: pip install nnunetv2 drdm"
        )
    try:
        version = importlib.metadata.version("nnunetv2")
    except importlib.metadata.PackageNotFoundError:
        return
    numbers = tuple(int(n) for n in re.findall(r"[0-9]+", version)[:2])
    if numbers < _LEAST_VERSION:
        raise SettingError(f"nnU-Net {version} is too old; update it: pip install --upgrade nnunetv2")


def _package() -> Path | None:
    spec = importlib.util.find_spec("nnunetv2")
    return None if spec is None or spec.origin is None else Path(spec.origin).parent


def _variants() -> Path | None:
    package = _package()
    return None if package is None else package / "training" / "nnUNetTrainer" / "variants"


def _variable_folders() -> list[Path]:
    return [Path(text) for text in os.environ.get(VARIABLE, "").split(os.pathsep) if text.strip()]


def _own_folder() -> Path:
    return cache_folder() / "nnunet"


def _default_folder() -> Path:
    package, variants = _package(), _variants()
    if package is not None and variants is not None:
        # The file is read, not imported: nnU-Net prints a page about variables that are not set.
        paths = package / "paths.py"
        if not paths.is_file() or VARIABLE not in paths.read_text(encoding="utf-8", errors="replace"):
            return variants
    return next(iter(_variable_folders()), _own_folder())


def _folders() -> list[Path]:
    variants = _variants()
    return [*_variable_folders(), _own_folder(), *([variants] if variants is not None else [])]


def _require_own(path: Path) -> None:
    """Require that a file is one of ours, if it exists.

    Raises:
        OutputError: it is another one.
    """
    try:
        if not path.exists() or _MARK in path.read_text(encoding="utf-8", errors="replace"):
            return
    except OSError as error:
        raise OutputError(f"'{path}' cannot be read ({error.strerror}); check the path.") from error
    raise OutputError(f"'{path}' was not written by DRDM and stays as it is; move it, or choose another folder.")
