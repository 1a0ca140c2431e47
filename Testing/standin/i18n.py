"""`slicer.i18n`: nothing is translated, but a text that could not be translated is found.

Imitates Base/Python/slicer/i18n.py.
"""

from __future__ import annotations


def translate(context: str, text: str) -> str:
    if not isinstance(context, str) or not isinstance(text, str):
        raise TypeError(f"translate(str, str) expected, got {context!r}, {text!r}")
    return text


def tr(text: str) -> str:
    """The text itself. Anything but a str would fail in Slicer, where the text is searched for placeholders."""
    if not isinstance(text, str):
        raise TypeError(f"tr() needs a str, got {text!r}")
    return text
