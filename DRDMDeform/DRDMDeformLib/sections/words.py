"""The panel's own words for what sentences of ``drdm`` say in words of the command line."""

from __future__ import annotations

import re
from functools import cache

from slicer.i18n import tr as _


@cache
def _words() -> tuple[tuple[re.Pattern[str], str], ...]:
    """Phrases of the command line as regular expressions, and what they are called in the panel; longer ones first."""
    train, own = _("in 'Train a model of your own'"), _("'Train a model of your own'")
    model = _("in 'Model'")
    pairs = (
        # Models
        (r"with --adapt or 'drdm train --from'", _("with 'Adapt first' in Batch, or {train}").format(train=train)),
        (r"with 'drdm train --from'", train),
        (r"'drdm train --from'", own),
        (r"run 'drdm models fetch [\w.-]+'", _("press 'Download' beside 'Model'")),
        (r"run 'drdm models' to list the (names|models)", _("choose one of the list 'Model'")),
        (r"leave out --model", _("choose 'Best for the volume' {model}").format(model=model)),
        (r"with --model", model),
        (r"add --from", _("choose the model in 'Start from'")),
        (r"resume it without --from", _("choose a new model in 'Start from'")),
        # Runs
        (r"with --resume and more --minutes", _("with more 'Minutes'")),
        (r"add --resume to continue it", _("press 'Resume' to continue it")),
        (r"with --resume", _("with 'Resume'")),
        (r"--ndim 2", _("the 'Dimension' 2D")),
        (r"--size (?=\d)", _("The size ")),
        (r"a smaller --batch", _("a smaller 'Size', or 'CPU' in 'Compute on'")),
        (r"use --device auto or cpu", _("choose 'Fastest available' or 'CPU' in 'Compute on'")),
        # Labels
        (r"use '--label-geometry file', or (?=choose)", ""),
        (
            r"take the image's geometry with '--label-geometry image' \(in Python: [^)]*\), or (?=choose)",
            "",
        ),
        # Other scans
        (
            r"name a folder with scans of the same kind with --toward, or leave it out with --toward none",
            _("use scans of the same kind, or choose 'Not used' in 'Other scans'"),
        ),
        (r"name a folder with other scans with --toward", _("choose a folder with more scans")),
        (r"with --toward none", _("with 'Not used' in 'Other scans'")),
        (r"or --toward(?=\.)", _("or choose 'Not used' in 'Other scans', or none in 'Toward'")),
        (
            r"name such scans with --toward, or leave out --gray-values",
            _("choose them in 'Other scans', or clear 'Gray values, too'"),
        ),
        (r"with --gray-values own", _("by clearing 'Gray values, too'")),
        (r"--pose auto adds it", _("'From these scans' in 'Poses' adds it")),
        # Regions
        (
            r"give a label map, or a region instead of --around",
            _("choose a segmentation, or an ROI in 'Region', or clear 'Only around the segmentation'"),
        ),
        (r"with --region or --around", _("in 'Region', or choose a segmentation")),
        (r"give a label map, or a mask file with --keep", _("choose a segmentation")),
        (r"which --keep is to hold still", _("which are to be kept still")),
        (r"leave out --(around|keep)", _("clear 'Keep still' and 'Only around the segmentation'")),
        (r", or --bones auto(?=\.)", ""),
    )
    return tuple((re.compile(phrase), words) for phrase, words in pairs)


def inPanelWords(text: str) -> str:
    """Say what a sentence of ``drdm`` says, with the names of the panel's fields in the place of options.

    Usage example:
    >>> inPanelWords("None fits well; name another model with --model.")
    "None fits well; name another model in 'Model'."
    """
    if "--" not in text and "'drdm " not in text:
        return text
    for phrase, words in _words():
        text = phrase.sub(words.replace("\\", r"\\"), text)
    return text
