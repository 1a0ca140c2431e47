"""Describe a dataset and split it by subject, in the formats of nnU-Net v2 and Learn2Reg."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

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
}
_MILLIMETERS = "ITK: LPS millimetres on the fixed image's grid, fixed(x) = moving(x + u(x))"
_VOXELS = (
    "array (X, Y[, Z], d) on the fixed image's grid, component k in voxels along axis k, fixed[i] = moving[i + u[i]]"
)


def consecutive(values: set[int], described: dict[str, Any]) -> tuple[dict[int, int], dict[str, Any]]:
    """Map label values to consecutive numbers from 0, which nnU-Net needs, and name them.

    Args:
        values: all values of the source's labels.
        described: the source's own dataset.json. Its names (regions, ignore label) are kept if they fit the values.

    Returns:
        The new number of each value, and ``labels`` of dataset.json.
    """
    named = described.get("labels")
    if isinstance(named, dict) and named:
        taken = {v for entry in named.values() for v in (entry if isinstance(entry, list) else [entry])}
        if taken == set(range(len(taken))) and values <= taken:
            return {v: v for v in sorted(values)}, named
    order = [0, *sorted(values - {0})]
    label_mapping = {old: new for new, old in enumerate(order)}
    return label_mapping, {"background": 0} | {f"label_{old}": new for old, new in label_mapping.items() if old}


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
    names = described.get("channel_names")
    if not (isinstance(names, dict) and len(names) == channels):
        names = {str(k): "image" if channels == 1 else f"image_{k}" for k in range(channels)}
    ordered = {"regions_class_order": described["regions_class_order"]} if "regions_class_order" in described else {}
    changed = {str(new): old for old, new in label_mapping.items() if old != new}
    return {
        "channel_names": names,
        "labels": labels,
        **(ordered if labels is described.get("labels") else {}),
        "numTraining": len(done),
        "file_ending": ".nii.gz",
        **({"original_label_values": changed} if changed else {}),
    }


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
