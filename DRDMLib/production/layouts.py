"""Describe a dataset and split it by subject, in the formats of nnU-Net v2 and Learn2Reg."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

from ..errors import ImageError
from ..io.nnunet import IGNORE, declared_labels
from ..models.model import Model
from .plan import Plan

PARTS = ("train", "validation", "test")
# Keys of a pair in dataset.json, and of the files of a record.
_PAIR = {
    "fixed": "image",
    "moving": "moving",
    "displacement": "ddf",
    "displacement_voxels": "voxel_ddf",
    "fixed_label": "label",
    "moving_label": "moving_label",
    "mask": "mask",
}
_MILLIMETERS = "ITK: LPS millimetres on the fixed image's grid, fixed(x) = moving(x + u(x))"
_VOXELS = (
    "array (X, Y[, Z], d) on the fixed image's grid, component k in voxels along axis k, fixed[i] = moving[i + u[i]]"
)


def consecutive(values: set[int], described: dict[str, Any]) -> tuple[dict[int, int], dict[str, Any]]:
    """Map label values to consecutive numbers from 0, which nnU-Net needs, and name them.

    Names and regions of the source are kept. Its ignore label stays the highest value, as nnU-Net needs it.

    Args:
        values: all values of the source's labels.
        described: the source's own dataset.json.

    Returns:
        The new number of each value, and ``labels`` of dataset.json.

    Raises:
        ImageError: the labels in dataset.json are no numbers.
    """
    named = declared_labels(described)
    taken = _declared_values(named)
    ignored = ignore_value(named)
    is_last = ignored in (None, len(taken) - 1)
    if named == described.get("labels") and taken == set(range(len(taken))) and values <= taken and is_last:
        return {v: v for v in sorted(values)}, described["labels"]
    last = [] if ignored is None else [ignored]
    order = [0, *sorted((values | taken) - {0, ignored}), *last]
    numbers = {old: new for new, old in enumerate(order)}
    if "background" not in named:
        background: dict[str, int | list[int]] = {"background": 0}
        named = background | {name: entry for name, entry in named.items() if entry != 0}
    labels: dict[str, Any] = {
        name: [numbers[v] for v in entry] if isinstance(entry, list) else numbers[entry]
        for name, entry in named.items()
        if name != IGNORE
    }
    labels |= {f"label_{old}": numbers[old] for old in order if old and old not in taken}
    labels |= {} if ignored is None else {IGNORE: numbers[ignored]}
    return {old: numbers[old] for old in order if old == 0 or old in values}, labels


def undeclared(values: set[int], described: dict[str, Any]) -> list[int]:
    """Return the label values that dataset.json does not declare; none if it declares no labels."""
    taken = _declared_values(declared_labels(described))
    return sorted(values - taken - {0}) if taken else []


def ignore_value(named: dict[str, int | list[int]]) -> int | None:
    """Return the value of voxels that nnU-Net does not train on; ``None`` if no such label is declared.

    Raises:
        ImageError: it is the background or a region.
    """
    value = named.get(IGNORE)
    if isinstance(value, list) or value == 0:
        raise ImageError(f"The label '{IGNORE}' in dataset.json must have one value other than 0; correct it.")
    return value


def _declared_values(named: dict[str, int | list[int]]) -> set[int]:
    return {value for entry in named.values() for value in _values(entry)}


def nnunet_dataset(
    plan: Plan,
    done: list[dict[str, Any]],
    labels: dict[str, Any],
    label_mapping: dict[int, int],
    described: dict[str, Any],
) -> dict[str, Any]:
    """Return the content of ``dataset.json`` of an nnU-Net v2 raw dataset.

    Args:
        done: records of the finished samples and originals.
        labels, label_mapping: as :func:`consecutive` returns them.
        described: the source's own dataset.json.
    """
    channels = max((1 + len(case.channels) for case in plan.cases), default=1)
    # Before nnU-Net 2, the channels were called modality.
    names = described.get("channel_names", described.get("modality"))
    if not (isinstance(names, dict) and len(names) == channels):
        names = {str(k): "image" if channels == 1 else f"image_{k}" for k in range(channels)}
    changed = {str(new): old for old, new in label_mapping.items() if old != new}
    order = _regions_order(labels, described)
    return {
        "channel_names": names,
        "labels": labels,
        **({} if order is None else {"regions_class_order": order}),
        "numTraining": len(done),
        "file_ending": f".{plan.settings.file_format}",
        **({"original_label_values": changed} if changed else {}),
    }


def _regions_order(labels: dict[str, Any], described: dict[str, Any]) -> list[int] | None:
    """Return the order of the regions in dataset.json with the new numbers; ``None`` if there is none."""
    order = described.get("regions_class_order")
    if not isinstance(order, list) or labels == described.get("labels"):
        return order if isinstance(order, list) else None
    old = declared_labels(described)
    pairs = [(_values(entry), _values(labels[name])) for name, entry in old.items() if name in labels]
    numbers = {before: after for olds, news in pairs for before, after in zip(olds, news, strict=True)}
    added = [value for name, value in labels.items() if name not in old and value != 0]
    return [numbers.get(value, value) for value in order] + added


def _values(entry: int | list[int]) -> list[int]:
    return entry if isinstance(entry, list) else [entry]


def nnunet_splits(plan: Plan, done: list[dict[str, Any]]) -> list[dict[str, list[str]]]:
    """Return the content of ``splits_final.json``: a cross-validation by subject.

    Only original images are used for validation. A fold trains on no image of its validation subjects, and on no
    version of one.
    """
    result = []
    for held in folds([record["subject"] for record in done], plan.settings.seed):
        train = [record["name"] for record in done if record["subject"] not in held]
        result.append({"train": train, "val": [r["name"] for r in done if r["subject"] in held and not r["levels"]]})
    return result


def learn2reg_dataset(
    plan: Plan, done: list[dict[str, Any]], parts: dict[str, str], name: str, model: Model | None
) -> dict[str, Any]:
    """Return the content of ``dataset.json`` of a Learn2Reg-style dataset.

    Args:
        done: records of the finished pairs.
        parts: subject -> train, validation or test.
        name: name of the dataset.
        model: the model that made the pairs.
    """
    pairs: dict[str, list[dict[str, str]]] = {part: [] for part in PARTS}
    training = []
    for record in done:
        files = record["files"]
        part = parts[record["subject"]]
        pairs[part].append({key: f"./{files[kind]}" for key, kind in _PAIR.items() if kind in files})
        if part == "train":
            for image, label in (("image", "label"), ("moving", "moving_label")):
                entry = {"image": f"./{files[image]}"}
                training.append(entry | ({"label": f"./{files[label]}"} if label in files else {}))
    voxels = {"displacement_voxels_convention": _VOXELS} if plan.settings.voxel_fields else {}
    return {
        "name": name,
        "description": "Pairs synthesised by the Deformation-Recovery Diffusion Model, with their exact displacement",
        "tensorImageSize": f"{model.ndim}D" if model is not None else "",
        "modality": {"0": (model.metadata.modality if model is not None else "") or "unknown"},
        "pairings": "paired",
        "provided_data": {"0": ["image", "label"] if any("label" in r["files"] for r in done) else ["image"]},
        "registration_direction": {"fixed": 0, "moving": 1},
        "displacement_convention": _MILLIMETERS,
        **voxels,
        "numTraining": len(training),
        "training": training,
        "numTest": 0,
        "test": [],
        "numPairs": len(done),
        "numPairedTraining": len(pairs["train"]),
        "training_paired_images": pairs["train"],
        "numRegistration_val": len(pairs["validation"]),
        "registration_val": pairs["validation"],
        "numRegistration_test": len(pairs["test"]),
        "registration_test": pairs["test"],
    }


def subject_splits(plan: Plan, done: list[dict[str, Any]], parts: dict[str, str]) -> dict[str, Any]:
    """Return the content of ``splits.json``: subjects and samples of each part."""
    return {
        part: {
            "subjects": sorted(name for name, where in parts.items() if where == part),
            "samples": [record["name"] for record in done if parts[record["subject"]] == part],
        }
        for part in PARTS
    }


def in_random_order(subjects: Sequence[str], seed: int) -> list[str]:
    """Return each subject once, in a random order that depends only on the names and the seed."""
    return sorted(set(subjects), key=lambda name: hashlib.sha256(f"{seed}/{name}".encode()).digest())


def split_subjects(subjects: Sequence[str], shares: Sequence[float], seed: int) -> dict[str, str]:
    """Assign each subject to a part: ``train``, ``validation`` or ``test``.

    Each part with a share above 0 gets at least one subject if there are enough subjects. Training keeps at least half
    of them.
    """
    order = in_random_order(subjects, seed)
    total = sum(shares)
    counts = [max(1, round(len(order) * share / total)) if share > 0 else 0 for share in shares]
    for part in (2, 1):
        while counts[part] > 0 and sum(counts[1:]) > len(order) // 2:
            counts[part] -= 1
    held: dict[str, str] = {}
    for part in (1, 2):
        held |= {order.pop(): PARTS[part] for _ in range(counts[part])}
    return dict.fromkeys(order, "train") | held


def folds(subjects: Sequence[str], seed: int, most: int = 5) -> list[set[str]]:
    """Return the subjects of each fold of a cross-validation; no folds for a single subject."""
    order = in_random_order(subjects, seed)
    number = min(most, len(order))
    return [set(order[k::number]) for k in range(number)] if number > 1 else []
