"""Make HTML pages that need no other file: pictures as data URIs, and templates that are filled with data."""

from __future__ import annotations

import base64
import html
import tempfile
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

from .errors import OutputError
from .io.files import to_json


def write_png(path: Path, rgb: np.ndarray) -> None:
    """Write (rows, columns, 3) uint8, or 4 with opacity, as PNG, also under a name without that suffix.

    Raises:
        OutputError: it cannot be written.
    """
    writer = sitk.ImageFileWriter()
    writer.SetImageIO("PNGImageIO")
    writer.SetFileName(str(path))
    image: Any = sitk.GetImageFromArray(np.ascontiguousarray(rgb), isVector=True)
    try:
        writer.Execute(image)
    except RuntimeError as error:
        raise OutputError(f"'{path}' cannot be written; is the disk full? Free some space and run again.") from error


def picture_uri(rgb: np.ndarray) -> str:
    """Return a picture, (rows, columns, 3) uint8, as a data URI."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "picture.png"
        write_png(path, rgb)
        return png_uri(path)


def is_png(path: Path) -> bool:
    """Whether a path is a PNG file itself, and not a link."""
    try:
        if path.is_symlink():
            return False
        with path.open("rb") as stream:
            return stream.read(8) == b"\x89PNG\r\n\x1a\n"
    except OSError:
        return False


def png_uri(path: Path) -> str:
    """Return a PNG file as a data URI."""
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode("ascii")


def fill_page(package: str, template: str, title: str, data: dict[str, Any]) -> str:
    """Fill the template of a page.

    Args:
        package: package of the template.
        template: name of its file; it contains ``{{title}}`` and ``{{data}}``.
        title: text for the title of the page.
        data: plain values, which the page reads as JSON.
    """
    # Within a script element only "</" could end it early.
    text = to_json(data).replace("<", "\\u003c")
    page = (resources.files(package) / template).read_text(encoding="utf-8")
    return page.replace("{{title}}", html.escape(title)).replace("{{data}}", text)
