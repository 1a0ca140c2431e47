"""Arguments that say how versions are mirrored."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from ..errors import SettingError
from ..levels import REFLECTIONS

if TYPE_CHECKING:
    from ..production.mirroring import Mirroring


def add_mirror(parser: argparse.ArgumentParser) -> None:
    """Add ``--mirror`` and ``--sides``."""
    parser.add_argument(
        "--mirror",
        nargs="+",
        choices=REFLECTIONS,
        default=[],
        metavar="HOW",
        help="also make mirror images, where these still look like patients: left-right, front-back, head-feet (along "
        "the nearest axis of the scan), rows-columns (of slices); each is drawn for half of the versions (default: "
        "none)",
    )
    parser.add_argument(
        "--sides",
        type=_sides,
        nargs="+",
        metavar="L:R",
        help="labels of the two sides of the body that change places in mirror images, such as 17:53 18:54; or none",
    )


def _sides(text: str) -> tuple[int, int] | None:
    """Convert a pair of label values; ``None`` for the word none."""
    if text == "none":
        return None
    left, colon, right = text.partition(":")
    if not (colon and left.isdecimal() and right.isdecimal()):
        raise argparse.ArgumentTypeError(f"'{text}' is not a pair of labels; give two values such as 17:53, or 'none'")
    return int(left), int(right)


def mirror_settings(options: argparse.Namespace) -> Mirroring | None:
    """Return how versions are mirrored; ``None`` if they are not.

    Raises:
        SettingError: the labels that change places are not valid.
    """
    from ..production.mirroring import Mirroring

    sides: list[tuple[int, int] | None] | None = options.sides
    if not options.mirror:
        if sides is not None:
            raise SettingError("--sides says which labels change places in mirror images; add --mirror left-right.")
        return None
    pairs = tuple(pair for pair in sides or () if pair is not None)
    if sides is not None and pairs and len(pairs) < len(sides):
        raise SettingError("Give pairs of labels with --sides, or 'none' alone.")
    return Mirroring(tuple(dict.fromkeys(options.mirror)), None if sides is None else pairs)
