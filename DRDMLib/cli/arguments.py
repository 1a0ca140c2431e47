"""Types of arguments, and functions that add arguments to a command."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable

from ..levels import (
    AUTO_GRAY,
    AUTO_POSE,
    AUTO_TOWARD,
    FEWEST_TOWARD,
    OTHERS_GRAY,
    OWN_GRAY,
    STRENGTHS,
    Level,
    read_level,
)


def whole_number(low: int, high: int | None = None) -> Callable[[str], int]:
    """Return a type of argument: a whole number from ``low`` to ``high``."""

    def convert(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"'{text}' is not a whole number") from None
        if value < low or (high is not None and value > high):
            limits = f"{low} to {high}" if high is not None else f"{low} or more"
            raise argparse.ArgumentTypeError(f"{value} is out of range; use {limits}")
        return value

    return convert


def number(low: float, high: float, limits: str, *, above: bool = False) -> Callable[[str], float]:
    """Return a type of argument: a number from ``low`` (or ``above`` it) to ``high``.

    Args:
        limits: these limits in words, for the error message.
        above: exclude ``low`` itself.
    """

    def convert(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"'{text}' is not a number") from None
        if not low <= value <= high or (above and value == low):
            raise argparse.ArgumentTypeError(f"{text} is out of range; use {limits}")
        return value

    return convert


positive_number = number(0, sys.float_info.max, "more than 0", above=True)
not_negative = number(0, sys.float_info.max, "0 or more")
fraction = number(0, 1, "0 to 1")
angle = number(0, 180, "0 to 180 degrees")


def strength(text: str) -> Level:
    """Convert an argument that is a level: a whole number, or a word such as ``medium``."""
    try:
        return read_level(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def strength_pair(text: str) -> tuple[Level, Level]:
    """Convert an argument with two levels, such as ``40:24`` or ``strong:medium``."""
    first, separator, second = text.partition(":")
    if not separator:
        raise argparse.ArgumentTypeError(f"'{text}' is not a pair of strengths; write it as strong:medium or 40:24")
    return strength(first), strength(second)


def share_of_work(text: str) -> tuple[int, int]:
    """Convert an argument that names one of several equal shares, such as ``2/8``."""
    first, separator, second = text.partition("/")
    if not separator or not first.isdigit() or not second.isdigit() or not 1 <= int(first) <= int(second):
        raise argparse.ArgumentTypeError(
            f"'{text}' is not a share of the work; write the second of eight shares as 2/8"
        )
    return int(first), int(second)


def pose(text: str) -> float | str:
    """Convert an argument that is a pose: a number, or ``auto``."""
    if text == AUTO_POSE:
        return text
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"'{text}' is not a pose; use auto, or a number from 0 to 2") from None


def add_device_and_progress(parser: argparse.ArgumentParser) -> None:
    """Add ``--device`` and ``--progress``."""
    parser.add_argument(
        "--device", default="auto", help="auto, cpu, cuda, cuda:N or mps (default: auto, the fastest available)"
    )
    parser.add_argument(
        "--progress",
        choices=["auto", "json", "none"],
        default="auto",
        help="show progress as a bar on a terminal (auto), as one JSON object per line, or not at all (default: auto)",
    )


def add_levels(parser: argparse.ArgumentParser) -> None:
    """Add ``--levels``: several strengths, all of them by default."""
    parser.add_argument(
        "--levels",
        type=strength,
        nargs="+",
        default=list(STRENGTHS),
        metavar="T'",
        help="strengths: words or levels, 0 to 79 (default: subtle medium strong)",
    )


def add_share(parser: argparse.ArgumentParser) -> None:
    """Add ``--share``: which share of the work this process does."""
    parser.add_argument(
        "--share",
        type=share_of_work,
        metavar="K/N",
        help="do the K-th of N shares of the work (default: all of it, or the share set by torchrun or srun)",
    )


def add_levels_and_copies(parser: argparse.ArgumentParser, copies: int, counted: str) -> None:
    """Add ``--levels`` and ``--copies``; ``copies`` is the default, ``counted`` says what is counted."""
    add_levels(parser)
    parser.add_argument(
        "--copies",
        type=whole_number(1, 100000),
        default=copies,
        metavar="N",
        help=f"{counted} (default: {copies})",
    )


def add_generation(parser: argparse.ArgumentParser, *, recipe: bool = False, auto_pose: bool = False) -> None:
    """Add the arguments of every command that deforms images.

    Args:
        recipe: there is a recipe with a pose of its own, which is a number.
        auto_pose: ``--pose`` is ``auto`` by default, unless only a region is deformed. It is ``None`` then, and with a
            recipe.
    """
    shown = "that of the recipe" if recipe else "auto; 0 in CT and with a region or --keep" if auto_pose else "0"
    drawn = "" if recipe else "; auto: as people differ"
    parser.add_argument("--model", metavar="M", help="name from the list of 'drdm models', or path of a model file")
    parser.add_argument(
        "--seed",
        type=whole_number(0, 2**31 - 1),
        default=0,
        metavar="S",
        help="seed of the random numbers (default: 0)",
    )
    parser.add_argument(
        "--steps",
        type=whole_number(1),
        metavar="K",
        help="recovery steps (default: as many as the model needs; 80: one per level)",
    )
    parser.add_argument(
        "--pose",
        type=float if recipe else pose,
        default=None if recipe or auto_pose else 0.0,
        metavar="P",
        help="also rotate, scale and shift the whole image, 0 to 2; 1: up to 15 degrees, 15 %% and 6 %%"
        f"{drawn} (default: {shown})",
    )
    parser.add_argument(
        "--plane",
        choices=["auto", "axial", "coronal", "sagittal"],
        default="auto",
        help="plane of the slices in which a 2D model deforms a volume (default: auto, the acquisition plane)",
    )
    parser.add_argument(
        "--border",
        choices=["auto", "closed", "open"],
        default="auto",
        help="where tissue touches a face of the scan: it moves along the face only (closed), or freely, and a mirror "
        "image moves in (open; default: auto, closed unless a 2D model deforms the slices of a volume)",
    )
    parser.add_argument(
        "--bones",
        choices=["auto", "rigid", "free"],
        default="auto",
        help="bone in CT stays rigid, unless a 2D model deforms the slices of a volume (auto), also where values do "
        "not look like Hounsfield units (rigid), or is deformed like everything else (free; default: auto)",
    )


def add_toward(parser: argparse.ArgumentParser, *, batch: bool, unlabeled: bool = False) -> None:
    """Add ``--toward``.

    Args:
        batch: for the scans of a dataset, and not for a single one.
        unlabeled: versions go toward the scans without a label by default.
    """
    if batch:
        parser.add_argument(
            "--toward",
            metavar="SCANS",
            default=AUTO_TOWARD if unlabeled else None,
            help="each version also goes part of the way toward another scan, which needs no label: one of those in "
            "the folder SCANS, of the other subjects of the dataset (others), or of the same subject, as hearts beat "
            "and chests breathe (phases)"
            + (
                f"; or of the scans of the dataset without a label (unlabeled), which auto does if there are at least "
                f"{FEWEST_TOWARD} (default: auto); none: toward nobody"
                if unlabeled
                else "; in a pair, the fixed image goes, from the moving one"
            ),
        )
        return
    parser.add_argument(
        "--toward",
        metavar="SCAN",
        help="each version also goes part of the way toward another scan of the same kind, which needs no label",
    )


def add_gray_values(parser: argparse.ArgumentParser) -> None:
    """Add ``--gray-values``."""
    parser.add_argument(
        "--gray-values",
        choices=[AUTO_GRAY, OWN_GRAY, OTHERS_GRAY],
        default=AUTO_GRAY,
        help="the gray values of versions also become those of the other scan, by a random share (others; not in CT), "
        "or stay (own; default: auto, those of others where versions go toward other people)",
    )


def add_subject(parser: argparse.ArgumentParser) -> None:
    """Add ``--subject``."""
    parser.add_argument(
        "--subject",
        metavar="REGEX",
        help="part of an image's name that identifies the subject (default: from the table, the DICOM header, "
        "'sub-...', or the whole name)",
    )


def add_format(parser: argparse.ArgumentParser) -> None:
    """Add ``--format``."""
    parser.add_argument(
        "--format",
        choices=["nii.gz", "nrrd", "mha"],
        default="nii.gz",
        help="format of the files of images, labels and fields (default: nii.gz)",
    )


def add_changes(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``drdm challenge`` that replace what its recipe says."""
    for name, what in (
        ("noise", "standard deviation of the noise, as a fraction of the range of gray values"),
        ("blur", "largest standard deviation of the blur, voxels"),
        ("bias", "largest deviation of the bias field from 1, as a natural logarithm"),
        ("contrast", "largest change of the exponent of gray values, as a natural logarithm"),
        ("resample", "largest change of the spacing of each axis, as a natural logarithm"),
        ("crop", "largest fraction of the side that is cut off at each face, 0 to 0.3"),
    ):
        parser.add_argument(f"--{name}", type=float, metavar="X", help=f"{what}; 0: none (default: that of the recipe)")


def add_label_geometry(parser: argparse.ArgumentParser) -> None:
    """Add ``--label-geometry``."""
    parser.add_argument(
        "--label-geometry",
        choices=["file", "image"],
        default="file",
        help="position of a label: as its file says, or that of its image, for a lost header (default: file)",
    )


def add_run(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of runs over a dataset, except for their levels."""
    add_label_geometry(parser)
    parser.add_argument(
        "--adapt",
        type=positive_number,
        nargs="?",
        const=5.0,
        metavar="MINUTES",
        help="first adapt the model to these images in about this time (default: 5), and use it if it fits images left "
        "out of the training better",
    )
    parser.add_argument("--resume", action="store_true", help="continue an interrupted run with the same settings")
    add_format(parser)
    parser.add_argument(
        "--jobs",
        type=whole_number(1, 256),
        default=1,
        metavar="N",
        help="processes on this computer that share the work (default: 1, which uses all cores by threads)",
    )
    add_share(parser)
    add_subject(parser)
    parser.add_argument(
        "--max-folded", type=fraction, default=0.0, metavar="F", help="largest fraction of folded voxels (default: 0)"
    )
    parser.add_argument("--min-mm", type=not_negative, metavar="MM", help="smallest mean displacement in mm")
    parser.add_argument("--max-mm", type=not_negative, metavar="MM", help="largest displacement of any voxel in mm")
    parser.add_argument(
        "--labels-inside",
        type=fraction,
        metavar="F",
        help="smallest fraction of each label that must stay in the image",
    )
    parser.add_argument(
        "--max-outside",
        type=fraction,
        metavar="F",
        help="largest fraction of voxels that are read from outside the scan",
    )
    parser.add_argument(
        "--draws",
        type=whole_number(1, 1000),
        default=10,
        metavar="N",
        help="attempts before a sample is given up (default: 10)",
    )
    parser.add_argument(
        "--quality", action=argparse.BooleanOptionalAction, default=True, help="write quality.html (default: yes)"
    )


def add_train(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``drdm train``."""
    parser.add_argument("dataset", metavar="DATASET", help="folder with images/, nnU-Net v2 raw dataset, or a list")
    parser.add_argument(
        "-o", "--output", required=True, metavar="RUN", help="folder of the run, for checkpoints and model.safetensors"
    )
    parser.add_argument(
        "--from",
        dest="source",
        metavar="M",
        help="adapt this model (name from the list of 'drdm models', or path) to the scans, and keep the better of the "
        "two; grid, network and random fields are those of the model",
    )
    parser.add_argument("--ndim", type=int, choices=[2, 3], help="dimension of the model (default: 3)")
    parser.add_argument(
        "--size",
        type=whole_number(16, 512),
        metavar="S",
        help="voxels along each side of the model's grid, a multiple of 8 (default: 48)",
    )
    parser.add_argument(
        "--minutes",
        type=positive_number,
        metavar="M",
        help="time budget over all sessions (default: 60, with --from 5)",
    )
    parser.add_argument(
        "--iterations",
        "--steps",
        type=whole_number(1),
        metavar="N",
        help="number of training steps instead of a time budget; with --from, of each of its trainings",
    )
    parser.add_argument(
        "--batch",
        type=whole_number(1, 1024),
        metavar="N",
        help="images per step, over all processes (default: 4, or 32 on an NVIDIA GPU, or as in the run to resume)",
    )
    parser.add_argument(
        "--learning-rate",
        type=positive_number,
        metavar="R",
        help="peak learning rate (default: 0.0006, or 0.0008 on an NVIDIA GPU, or as in the run to resume)",
    )
    parser.add_argument("--architecture", choices=["compact", "recresacnet"], help="network (default: compact)")
    parser.add_argument(
        "--width",
        type=whole_number(8, 256),
        metavar="C",
        help="channels of the compact network (default: 16)",
    )
    parser.add_argument(
        "--depth",
        type=whole_number(1, 16),
        metavar="N",
        help="blocks of the compact network on its coarsest grid (default: 2)",
    )
    parser.add_argument(
        "--target",
        choices=["whole", "step"],
        help="prediction of the compact network: the whole remaining deformation, or its last step (default: whole)",
    )
    parser.add_argument(
        "--field",
        choices=["published", "coarse"],
        help="random deformations: coarse and strong, like differences between people, or published (default: coarse)",
    )
    parser.add_argument(
        "--outside",
        choices=["zeros", "border"],
        help="values outside the image: its border voxels repeated, or zeros as published (default: border)",
    )
    parser.add_argument(
        "--rotation", type=angle, default=15.0, metavar="DEG", help="largest random rotation in degrees (default: 15)"
    )
    parser.add_argument(
        "--zoom",
        type=positive_number,
        nargs=2,
        default=[0.85, 1.15],
        metavar=("LEAST", "MOST"),
        help="visible fraction of the image's side in training; above 1 the image is shrunk (default: 0.85 1.15)",
    )
    parser.add_argument(
        "--shift",
        type=fraction,
        default=0.06,
        metavar="F",
        help="largest random shift, as a fraction of half the side (default: 0.06)",
    )
    parser.add_argument(
        "--published",
        action="store_true",
        help="train as published: network, loss, rotation by any angle, new fields each time, learning rate 0.0001",
    )
    parser.add_argument(
        "--hold-out",
        type=whole_number(2),
        default=8,
        metavar="K",
        help="hold out every K-th image for validation (default: 8)",
    )
    parser.add_argument(
        "--plane",
        choices=["auto", "axial", "coronal", "sagittal"],
        default="auto",
        help="plane of the slices that a 2D model takes from volumes (default: auto, the acquisition plane)",
    )
    parser.add_argument(
        "--subject",
        metavar="REGEX",
        help="with --from: part of an image's name that identifies the subject, whose images are left out together "
        "(default: from the table, the DICOM header, 'sub-...', or the whole name)",
    )
    parser.add_argument("--resume", action="store_true", help="continue from the last checkpoint of the run")
    parser.add_argument(
        "--checkpoint-minutes",
        type=positive_number,
        default=5.0,
        metavar="M",
        help="interval between checkpoints (default: 5)",
    )
    parser.add_argument(
        "--seed",
        type=whole_number(0, 2**31 - 1),
        default=0,
        metavar="S",
        help="seed of the random numbers (default: 0)",
    )
    parser.add_argument("--name", default="", help="name of the model (default: name of the run's folder)")
    parser.add_argument(
        "--describe",
        action="append",
        default=[],
        metavar="KEY=TEXT",
        help="description in the model's metadata; KEY is anatomy, modality, training_data or licence",
    )
