"""Understand imagesTr, labelsTr and dataset.json of nnU-Net, the Medical Segmentation Decathlon and Learn2Reg."""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import ImageError
from .files import listed, shown

DESCRIPTION = "dataset.json"
_FIRST = "0000"
# nnU-Net's name of the label of voxels that are not trained on.
IGNORE = "ignore"
# Without any other evidence, more files than this with one name and different numbers are not channels.
_MOST_CHANNELS = 8
# Keys of Learn2Reg's dataset.json; there, files with numbers are images of one person, not channels.
_REGISTRATION = {"pairings", "registration_direction", "training_paired_images"}


@dataclass(frozen=True)
class Group:
    """The files of one case, without suffixes.

    Attributes:
        name: name of the case.
        channels: images in the order of the channels.
        label: name that its label has, if there is one.
        subject: the person, where the names say so.
    """

    name: str
    channels: tuple[str, ...]
    label: str
    subject: str = ""


@dataclass
class Layout:
    """What the files in imagesTr are.

    Attributes:
        groups: the cases.
        notes: sentences for the user.
        unused: images that belong to no case.
    """

    groups: list[Group] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    unused: list[str] = field(default_factory=list)


def group_channels(images: Collection[str], labels: Collection[str], described: dict[str, Any]) -> Layout:
    """Find out which images are channels of one case and which are cases of their own.

    In nnU-Net, ``case_0000`` and ``case_0001`` are channels of a case with the label ``case``. In other datasets the
    number belongs to the name: WORD and AMOS have the label ``word_0001`` for the image ``word_0001``, the Decathlon
    has names without a number, and Learn2Reg has labels with the number of the channel.

    Args:
        images: names of the images, without suffixes.
        labels: names of the labels, without suffixes.
        described: content of dataset.json.
    """
    layout = Layout()
    numbered: dict[str, dict[str, str]] = {}
    plain = []
    for stem in sorted(images):
        match = re.fullmatch(r"(.+)_([0-9]{4})", stem, re.DOTALL)
        if match:
            numbered.setdefault(match[1], {})[match[2]] = stem
        else:
            plain.append(stem)
    count = _channel_count(described)
    known = {name: _are_channels(name, found, labels, count) for name, found in numbered.items()}
    default = _default(known, described, count)
    own: dict[str, dict[str, str]] = {}
    other = []
    for name, found in numbered.items():
        decided = known[name]
        if decided is None:
            decided = _guess(found, default)
        if not decided:
            own[name] = found
        elif list(found) == [f"{k:04d}" for k in range(len(found))]:
            label = name if name in labels else found[_FIRST]
            layout.groups.append(Group(name, tuple(found.values()), label))
            other += [name] if count and len(found) != count else []
        else:
            missing = next(k for k in range(len(found)) if f"{k:04d}" not in found)
            layout.notes.append(
                f"Left out: '{name}' has no channel {missing:04d}; add the file '{name}_{missing:04d}'."
            )
    separate = len(own) > 1 and all(int(number) < 10 for found in own.values() for number in found)
    for name, found in own.items():
        subject = name if separate and name[-1].isdigit() else ""
        layout.groups += [Group(stem, (stem,), stem, subject) for stem in found.values()]
    channels = bool(layout.groups) and not own
    for stem in plain:
        if channels and stem not in labels:
            layout.unused.append(stem)
        else:
            layout.groups.append(Group(stem, (stem,), stem))
    if own:
        first = next(iter(next(iter(own.values())).values()))
        layout.notes.append(
            f"The numbers in names such as '{shown(first)}' are taken as numbers of cases, not of channels; "
            "nnU-Net's names of images end in the number of a channel, '_0000'."
        )
    if other:
        layout.notes.append(
            f"{DESCRIPTION} names {count} channels, but there are others in {listed(other)}; check {DESCRIPTION}."
        )
    layout.groups.sort(key=lambda group: group.name)
    return layout


def _channel_count(described: dict[str, Any]) -> int:
    """Return the number of channels in dataset.json; 0 if it is not there."""
    if _REGISTRATION & described.keys():
        return 0
    names = described.get("channel_names", described.get("modality"))
    return len(names) if isinstance(names, dict) else 0


def _are_channels(name: str, found: dict[str, str], labels: Collection[str], count: int) -> bool | None:
    """Whether the files of one name are its channels, as far as the labels say so."""
    if name in labels:
        return True
    own = [number for number, stem in found.items() if stem in labels]
    if not own:
        return None
    return own == [_FIRST] and (list(found) == [_FIRST] or (count > 1 and len(found) == count))


def _default(known: dict[str, bool | None], described: dict[str, Any], count: int) -> bool | None:
    """Return what files of unlabeled cases are: channels, cases of their own, or unknown."""
    if _REGISTRATION & described.keys():
        return False
    if count > 1 or True in known.values():
        return True
    return False if count == 1 or False in known.values() else None


def _guess(found: dict[str, str], default: bool | None) -> bool:
    if list(found) == [_FIRST]:
        return True
    if default is None:
        return _FIRST in found and len(found) <= _MOST_CHANNELS
    return default


def read_description(folder: Path) -> dict[str, Any]:
    """Read ``dataset.json`` in a folder; empty if there is none.

    Raises:
        ImageError: it cannot be read; the message says where the slip is.
    """
    path = folder / DESCRIPTION
    if not path.is_file():
        return {}
    try:
        # From bytes: UTF-8, UTF-16 or UTF-32, with or without a byte-order mark.
        described = json.loads(path.read_bytes(), object_pairs_hook=_without_repeats)
    except json.JSONDecodeError as error:
        raise ImageError(
            f"'{path}' has a slip at line {error.lineno}, column {error.colno} ({error.msg}); correct it."
        ) from error
    except UnicodeDecodeError as error:
        raise ImageError(f"'{path}' is not in UTF-8 (byte {error.start}); save it as UTF-8.") from error
    except ValueError as error:
        raise ImageError(f"'{path}' has a slip ({error}); correct it.") from error
    except (OSError, RecursionError) as error:
        raise ImageError(f"'{path}' cannot be read ({error}); check the file.") from error
    if not isinstance(described, dict):
        raise ImageError(f"'{path}' is not a JSON object with names and values in braces; correct it.")
    return described


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"'{next(name for name in names if names.count(name) > 1)}' is there twice")
    return result


def declared_labels(described: dict[str, Any]) -> dict[str, int | list[int]]:
    """Return the labels that dataset.json declares: name -> value, or several values for a region.

    nnU-Net 2 writes names and values, older datasets values and names, Learn2Reg one such table for each modality.

    Raises:
        ImageError: an entry is neither.
    """
    labels = described.get("labels")
    if labels is None:
        return {}
    if not isinstance(labels, dict):
        raise ImageError(f"'labels' in {DESCRIPTION} is not a table of names and values in braces; correct it.")
    if labels and all(isinstance(entry, dict) for entry in labels.values()):
        labels = {key: value for entry in labels.values() for key, value in entry.items()}
    by_value = all(_integer(key) is not None and isinstance(value, str) for key, value in labels.items())
    if by_value and any(_integer(value) is None for value in labels.values()):
        return _by_name(labels)
    result: dict[str, int | list[int]] = {}
    for name, entry in labels.items():
        values = [_integer(value) for value in (entry if isinstance(entry, list) else [entry])]
        numbers = [value for value in values if value is not None]
        if len(numbers) < len(values) or not numbers:
            raise ImageError(
                f"The label '{name}' in {DESCRIPTION} is {json.dumps(entry)[:60]}; it must be a whole number, "
                "or a list of them for a region."
            )
        result[name] = numbers if isinstance(entry, list) else numbers[0]
    _require_different(result)
    return result


def _require_different(labels: dict[str, int | list[int]]) -> None:
    """Raise an error if two labels that are no regions have one value, or a region has that of the ignore label."""
    names: dict[int, str] = {}
    for name, entry in labels.items():
        if isinstance(entry, int) and names.setdefault(entry, name) != name:
            raise ImageError(
                f"The labels '{names[entry]}' and '{name}' in {DESCRIPTION} have the same value {entry}; correct it."
            )
    ignored = labels.get(IGNORE)
    for name, entry in labels.items():
        if isinstance(entry, list) and name != IGNORE and ignored in entry:
            raise ImageError(
                f"The region '{name}' in {DESCRIPTION} has the value {ignored} of the label '{IGNORE}'; correct it."
            )


def _by_name(labels: dict[str, str]) -> dict[str, int | list[int]]:
    """Turn value -> name into name -> value; a name that is there twice gets its value."""
    result: dict[str, int | list[int]] = {}
    for key, name in labels.items():
        result[name if name not in result else f"{name}_{key}"] = int(key)
    return result


def _integer(value: Any) -> int | None:
    if isinstance(value, str) and re.fullmatch(r"-?[0-9]{1,18}", value.strip()):
        return int(value)
    if isinstance(value, float) and value.is_integer() and abs(value) < 10**18:
        return int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 10**18 else None
