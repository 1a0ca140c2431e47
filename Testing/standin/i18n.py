"""`slicer.i18n`: nothing is translated, but a text that could not be translated is found.

Imitates Base/Python/slicer/i18n.py.
"""

from __future__ import annotations


def tr(text: str) -> str:
    """Return the text itself. Anything but a str would fail in Slicer, where the text is searched for placeholders."""
    if not isinstance(text, str):
        raise TypeError(f"tr() needs a str, got {text!r}")
    return text


def translate(_context: str, text: str) -> str:
    """Return the text itself; in Slicer, the context tells equal texts apart."""
    return tr(text)
