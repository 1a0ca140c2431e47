"""Texts of the section *Deform*: strengths, the fit of a model, and the rows of the table of variants."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from slicer.i18n import tr as _

from DRDMLib.levels import MEANING

from ..parameter import Strength


def counted(n: int, one: str, many: str) -> str:
    """The text for one thing, or the one for several with their number in the place of ``{n}``.

    Usage example:
    >>> counted(1, "1 result", "{n} results"), counted(2, "1 result", "{n} results")
    ('1 result', '2 results')
    """
    return one if n == 1 else many.replace("{n}", str(n))


def strengthText(strength: Strength, level: int) -> str:
    """Say what a strength means."""
    if strength is Strength.LEVEL:
        return _("level {level} of 79").format(level=level)
    percent = round(100 * MEANING[strength.value])
    return _("moves tissue about {percent} % as far as two people differ").format(percent=percent)


def levelText(record: Mapping[str, Any]) -> str:
    """The level of a variant, and the word that it was chosen by."""
    words = {"subtle": _("subtle"), "medium": _("medium"), "strong": _("strong")}
    word = words.get(record.get("strength", ""), "")
    return f"{record.get('level', '')} ({word})" if word else str(record.get("level", ""))


def fitText(fit: Mapping[str, Any], doubtful: bool = False) -> str:
    """Say how well a model fits the scan.

    Args:
        fit: the ``fit`` of a variant's record; the text is empty if the record has none.
        doubtful: whether the variants are too strong for it.
    """
    if not fit:
        return ""
    if fit.get("undone") is None:
        return _("{model}: how well it fits this scan is not known.").format(model=fit.get("model", ""))
    words = {"good": _("good"), "fair": _("fair"), "poor": _("poor")}
    percent = round(100 * fit["undone"])
    share = _("{percent} %").format(percent=percent) if percent > 0 else _("nothing")
    text = _("{model}; undoes {share} on this scan: {word}").format(
        model=fit["model"], share=share, word=words.get(fit["word"], fit["word"])
    )
    if fit["word"] != "poor" and doubtful:
        return text + _(". For this strength that is little: look at the variants, or choose a lower strength.")
    if fit["word"] != "poor":
        return text
    return text + _(". The variants may not look like real anatomy; choose another model, or train one on such scans.")


def variantCells(row: int, record: Mapping[str, Any], waiting: bool) -> list[str]:
    """The texts of a row in the table of variants.

    Args:
        row: from 0.
        record: of the variant.
        waiting: whether its figures are being computed.
    """
    metrics = record.get("metrics", {})
    folded = metrics.get("folded_fraction")
    certified = metrics.get("certified_invertible")
    missing = "..." if waiting else _("not computed")
    return [
        str(row + 1),
        levelText(record),
        str(record.get("seed", "")),
        f"{metrics['mean_mm']:.2f}" if "mean_mm" in metrics else missing,
        f"{metrics['max_mm']:.2f}" if "max_mm" in metrics else missing,
        missing if folded is None else _("none") if folded == 0 else f"{100 * folded:.3f} %",
        {True: _("yes, proven"), False: _("not proven")}.get(certified, _("not checked")),
    ]
