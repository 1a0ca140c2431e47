"""Arguments that choose where images are deformed."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..settings import RegionSettings


def label_values(text: str) -> int | str:
    """Convert an argument that is the value of a label, or ``all``."""
    if text == "all":
        return text
    if not text.isdigit() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"'{text}' is not a label; give values of the label map such as 1 2, or 'all'")
    return int(text)


def add_region(parser: argparse.ArgumentParser) -> None:
    """Add ``--region``, ``--around``, ``--margin`` and ``--keep``."""
    where = parser.add_mutually_exclusive_group()
    where.add_argument(
        "--region",
        type=float,
        nargs="+",
        metavar="MM",
        help="deform only this box: two opposite corners, L P S L P S in mm, along the axes of the scan",
    )
    where.add_argument(
        "--around",
        type=label_values,
        nargs="+",
        metavar="LABEL",
        help="deform only around these values of the label map, or 'all'; parts that are apart get a box each",
    )
    parser.add_argument(
        "--margin",
        type=float,
        metavar="MM",
        help="nothing moves farther from the box than this; a large displacement is made smaller (default: as needed)",
    )
    parser.add_argument(
        "--keep",
        nargs="+",
        default=[],
        metavar="LABEL",
        help="structures that do not move, such as bones: values of the label map, or a mask file",
    )


def region_settings(options: argparse.Namespace) -> RegionSettings | None:
    """Return the settings of the region that the user chose; ``None`` for the whole image.

    Raises:
        SettingError: the region has not the right number of values, or a setting is out of range.
    """
    from ..errors import SettingError
    from ..settings import RegionSettings
    from ..spatial.region import Region

    if options.region is None and options.around is None and not options.keep:
        if options.margin is not None:
            raise SettingError("A margin needs a region; give one with --region or --around.")
        return None
    values = all(text.isdigit() for text in options.keep)
    if not values and len(options.keep) > 1:
        raise SettingError("--keep takes values of the label map, such as 1 2, or the path of one mask file.")
    around = options.around
    return RegionSettings(
        () if options.region is None else (Region.of(options.region),),
        None if around is None else () if "all" in around else tuple(dict.fromkeys(around)),
        options.margin,
        tuple(int(text) for text in options.keep) if values else (),
        "" if values else str(Path(options.keep[0]).resolve()),
    )
