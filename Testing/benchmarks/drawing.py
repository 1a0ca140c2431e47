"""What the scripts that draw have in common: reports with titles in, a picture out."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import matplotlib as mpl


def asked_for(doc: str | None) -> tuple[list[tuple[str, Any]], Path]:
    """The command line ``TITLE=RESULT.json [...] -o PICTURE.png``: titles with their reports, and the picture's path.

    Pictures are then drawn without a screen.
    """
    parser = argparse.ArgumentParser(description=(doc or "").splitlines()[0])
    parser.add_argument("results", nargs="+", metavar="TITLE=RESULT.json")
    parser.add_argument("-o", "--output", type=Path, required=True)
    options = parser.parse_args()
    mpl.use("Agg")
    options.output.parent.mkdir(parents=True, exist_ok=True)
    named = [text.partition("=")[::2] for text in options.results]
    return [(title, json.loads(Path(path).read_text(encoding="utf-8"))) for title, path in named], options.output
