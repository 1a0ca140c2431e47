"""The parser of the command ``drdm nnunet``."""

from __future__ import annotations

import argparse
from collections.abc import Callable

from ..runtime.reporter import Reporter
from .arguments import (
    add_device_and_progress,
    add_generation,
    add_levels_and_copies,
    add_share,
    add_subject,
    add_toward,
)
from .region import add_region

Runs = Callable[[str, str], Callable[[argparse.Namespace, Reporter], None]]


def add_actions(parser: argparse.ArgumentParser, runs: Runs) -> None:
    """Add ``install``, ``prepare`` and ``remove``.

    Args:
        runs: returns the function that runs a command, given its module and name.
    """
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)

    def action(name: str, text: str) -> argparse.ArgumentParser:
        return actions.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")

    for name, text in (
        ("install", "let nnU-Net find the trainer nnUNetTrainerDRDM, by a small file"),
        ("remove", "delete the file of 'install'"),
    ):
        one = action(name, text)
        one.add_argument(
            "--to",
            metavar="FOLDER",
            help="folder with trainers that the variable nnUNet_extTrainer names (default: the first one that it names "
            "now, or a folder of DRDM)",
        )
        one.add_argument("--progress", choices=["auto", "json", "none"], default="auto", help=argparse.SUPPRESS)
        one.set_defaults(func=runs("nnunet", name))
    _add_prepare(action("prepare", "make the fields by which the trainer deforms the cases of a dataset"), runs)


def _add_prepare(parser: argparse.ArgumentParser, runs: Runs) -> None:
    parser.add_argument(
        "dataset", metavar="DATASET", help="number or name of a dataset in nnUNet_raw, or the folder of a raw dataset"
    )
    parser.add_argument(
        "-o",
        "--output",
        metavar="BANK",
        help="folder for the fields (default: drdm_bank in the folder of the dataset in nnUNet_preprocessed, where the "
        "trainer looks for it)",
    )
    add_levels_and_copies(parser, 16, "fields of each strength for each case")
    add_subject(parser)
    add_share(parser)
    add_generation(parser)
    add_toward(parser, batch=True)
    add_region(parser)
    add_device_and_progress(parser)
    parser.set_defaults(func=runs("nnunet", "prepare"))
