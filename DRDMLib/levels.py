"""Words of settings: of the strength, the pose, and where versions go.

Needs no PyTorch, so that commands can be parsed without.

The strength of a deformation is a level of the model, or a word.

What a word means for a model is in :mod:`DRDMLib.models.strength`.
"""

from __future__ import annotations

from typing import TypeAlias

from .errors import SettingError

# A level T' of the paper, 0 (weakest) to T-1 (strongest), or one of the words.
Level: TypeAlias = int | str
# From weak to strong.
STRENGTHS = ("subtle", "medium", "strong")
# Mean displacement of each word as a share of how much two people differ.
MEANING = {"subtle": 0.4, "medium": 0.75, "strong": 1.2}
DEFAULT_LEVEL: Level = "medium"
# From the original to the moving, and from the moving to the fixed image of a pair.
DEFAULT_PAIR: tuple[Level, Level] = ("strong", "medium")
# The pose that is drawn from a population: the scans of a batch, or those that a model was trained on.
AUTO_POSE = "auto"
# Where the versions of a batch go: toward the scans without a label if there are so many of them, or toward nobody.
AUTO_TOWARD, NOBODY = "auto", "none"
FEWEST_TOWARD = 10
# The gray values of the versions of a batch: those of the scans that they go toward, by a share; or their own.
AUTO_GRAY, OWN_GRAY, OTHERS_GRAY = "auto", "own", "others"
# How versions can be mirrored: along the axes of the patient (L, P, S), or rows and columns of slices exchanged.
REFLECTIONS = ("left-right", "front-back", "head-feet", "rows-columns")
# Levels of a preview that follows a slider, the strongest first, since its field reaches farthest.
LADDER = (79, 40, 20, 60, 10, 30, 50, 70)
_KNOWN = f"{', '.join(STRENGTHS)}, or a number from 0 to 79"


def require_strength(level: Level) -> None:
    """Check that a level that is a word is one of :data:`STRENGTHS`; the model checks numbers.

    Raises:
        SettingError: it is not.
    """
    if isinstance(level, str) and level not in STRENGTHS:
        raise SettingError(f"The level '{level}' is not known; use {_KNOWN}.")


def level_text(level: Level) -> str:
    """Return a level as it appears in the names of results: ``48`` or ``medium``."""
    return level if isinstance(level, str) else f"{level:02d}"


def read_level(text: str) -> Level:
    """Read a level that a user has written.

    Raises:
        ValueError: it is neither a word nor a whole number; the message says what to write.
    """
    if text in STRENGTHS:
        return text
    if text.isascii() and text.isdigit():
        return int(text)
    raise ValueError(f"'{text}' is not a strength; use {_KNOWN}")
