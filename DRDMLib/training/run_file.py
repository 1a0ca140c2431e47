"""The run file of a training: it marks the folder as that of a training, and says what a resumed one must share.

It is written before anything else, so that a training that is killed at any time is recognized in its folder. A folder
with other files and without a run file is left alone.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .. import __version__
from ..errors import FallbackWarning, OutputError, SettingError
from ..io.files import listed, read_object, write_text
from ..models.metadata import ModelMetadata
from .config import TrainingConfig, stored_name

RUN_FILE = "train.json"
CHECKPOINT, CHECKPOINT_BEFORE = "checkpoint.pt", "checkpoint-before.pt"
MODEL = "model.safetensors"
# Settings that a resumed training may change: how long it takes, and the rate after it has diverged. Micro-batches are
# checked with the checkpoint.
_FREE = ("steps", "minutes", "checkpoint_minutes", "learning_rate", "micro_batches")
# Metadata that only describe the model.
_DESCRIBING = ("name", "anatomy", "modality", "training_data", "licence", "citation", "version", "training")
# Files of other programs that do not count as content of a folder, and those of a run that was killed as it started.
_IGNORED = (".drdm", f".{RUN_FILE}")


def has_checkpoint(run: Path) -> bool:
    """Return whether a folder has a checkpoint, be it only the one before the last."""
    return any((run / name).is_file() for name in (CHECKPOINT, CHECKPOINT_BEFORE))


def is_training(run: Path) -> bool:
    """Return whether a folder belongs to a training: it has a run file or, from older versions, a checkpoint."""
    return (run / RUN_FILE).is_file() or has_checkpoint(run)


def require_own_folder(run: Path) -> None:
    """Require that a folder is that of a training, or empty, or does not exist.

    Raises:
        OutputError: it has files of something else, or the model of a training without its checkpoint.
    """
    if not run.is_dir() or has_checkpoint(run):
        return
    if (run / RUN_FILE).is_file():
        if (run / MODEL).exists():
            raise OutputError(
                f"The training in '{run}' has a model but no checkpoint any more, so it cannot go on; "
                "choose a new folder with -o."
            )
        return
    found = sorted(path.name for path in run.iterdir() if not path.name.startswith(_IGNORED))
    if found:
        raise OutputError(
            f"'{run}' is not the folder of a training and has other files ({listed(found)}); "
            "choose that of a training, or a new one, with -o."
        )


def described(metadata: ModelMetadata, config: TrainingConfig, data: Mapping[str, Any]) -> dict[str, Any]:
    """Return the content of a run file.

    Args:
        data: what the training data are, as plain values; ``scans`` maps the name of each scan to a digest.
    """
    content = {
        "command": "train",
        "model": asdict(metadata),
        "settings": config.to_dict(),
        "data": dict(data),
        "software": {"drdm": __version__, "torch": torch.__version__},
    }
    plain: dict[str, Any] = json.loads(json.dumps(content))
    return plain


def digests_of(images: Tensor, held_out: Tensor) -> dict[str, str]:
    """Return digests of images on the model's grid, for trainings that do not say which scans they are from."""
    tensors = {"training images": images, "held-out images": held_out}
    return {
        name: f"sha256:{hashlib.sha256(some.cpu().numpy().tobytes()).hexdigest()}" for name, some in tensors.items()
    }


def write_run_file(run: Path, content: dict[str, Any]) -> None:
    """Write the run file.

    Raises:
        OutputError: the disk is full or the folder cannot be written to.
    """
    write_text(run / RUN_FILE, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def read_run_file(run: Path) -> dict[str, Any] | None:
    """Read the run file; ``None`` if there is none, as in folders of older versions, or if it is damaged.

    Warns:
        FallbackWarning: it is damaged, as after a power cut, and there is a checkpoint to continue from.
    """
    path, keys = run / RUN_FILE, ("model", "settings", "data")
    try:
        content = read_object(path, keys)
        if all(isinstance(content[key], dict) for key in keys):
            return content
    except FileNotFoundError:
        return None
    except (OSError, ValueError):
        pass
    if has_checkpoint(run):
        warnings.warn(
            f"'{path}' is damaged; the training continues from its checkpoint, without a check of the scans.",
            FallbackWarning,
            stacklevel=2,
        )
    return None


def require_same_training(run: Path, wanted: dict[str, Any], written: Mapping[str, Any]) -> None:
    """Require that a training to resume has the same model, settings and data; its length may differ.

    Args:
        wanted: see :func:`described`.
        written: that of the earlier session, with or without the data.

    Raises:
        SettingError: one of them differs; the message says which.
    """
    earlier = json.loads(json.dumps({key: written.get(key) for key in ("model", "settings", "data")}))
    for field in fields(ModelMetadata):
        then, now = earlier["model"].get(field.name), wanted["model"][field.name]
        if field.name not in _DESCRIBING and field.name in earlier["model"] and then != now:
            raise _other(run, field.name.replace("_", " "), then, now)
    for field in fields(TrainingConfig):
        key = stored_name(field.name)
        then, now = earlier["settings"].get(key), wanted["settings"][key]
        if field.name not in _FREE and key in earlier["settings"] and then != now:
            raise _other(run, field.name.replace("_", " "), then, now)
    _require_same_data(run, wanted["data"], earlier["data"])


def _require_same_data(run: Path, wanted: dict[str, Any], written: dict[str, Any] | None) -> None:
    if written is None:
        return
    for key, now in wanted.items():
        then = written.get(key)
        if then == now:
            continue
        if isinstance(then, dict) and isinstance(now, dict):
            what = {
                "changed": [name for name in now if name in then and then[name] != now[name]],
                "new": [name for name in now if name not in then],
                "missing": [name for name in then if name not in now],
            }
            text = "; ".join(f"{kind}: {listed(names)}" for kind, names in what.items() if names)
            raise SettingError(
                f"The {key} are not those of the training in '{run}' ({text}); restore them, or choose a new folder."
            )
        if str(now).startswith("sha256:"):
            raise SettingError(
                f"The {key} are not those of the training in '{run}'; use the same, or choose a new folder."
            )
        raise _other(run, key.replace("_", " "), then, now)


def _other(run: Path, name: str, then: Any, now: Any) -> SettingError:
    def text(value: Any) -> str:
        return "none" if value is None else json.dumps(value)

    return SettingError(
        f"The training in '{run}' was made with {name} {text(then)}, not {text(now)}; use the same settings, or choose "
        "a new folder."
    )
