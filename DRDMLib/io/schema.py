"""Check values that come from files: one table of checks for each kind of file.

A check is a function of a value that returns whether it is valid. It accepts what JSON can hold, and raises no error.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

Check = Callable[[Any], bool]
# Levels of lists and tables in values that are not checked one by one.
_DEEPEST = 12


def text(longest: int = 4096) -> Check:
    """Accept texts of up to ``longest`` characters."""
    return lambda value: isinstance(value, str) and len(value) <= longest


def one_of(*allowed: Any) -> Check:
    """Accept one of the given values, of the same type."""
    return lambda value: any(type(value) is type(one) and value == one for one in allowed)


def truth(value: Any) -> bool:
    """Accept true and false."""
    return isinstance(value, bool)


def whole(low: int = -(2**63), high: int = 2**63 - 1) -> Check:
    """Accept whole numbers from ``low`` to ``high``."""
    return lambda value: isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def number(low: float = -1e300, high: float = 1e300) -> Check:
    """Accept finite numbers from ``low`` to ``high``."""

    def check(value: Any) -> bool:
        if not isinstance(value, (int, float)) or isinstance(value, bool):
            return False
        return math.isfinite(value) and low <= value <= high if isinstance(value, float) else low <= value <= high

    return check


def optional(check: Check) -> Check:
    """Accept null, and what ``check`` accepts."""
    return lambda value: value is None or check(value)


def either(*checks: Check) -> Check:
    """Accept what one of the checks accepts."""
    return lambda value: any(check(value) for check in checks)


def both(*checks: Check) -> Check:
    """Accept what all of the checks accept."""
    return lambda value: all(check(value) for check in checks)


def listing(check: Check, most: int = 10**7, least: int = 0) -> Check:
    """Accept lists of ``least`` to ``most`` entries that ``check`` accepts."""
    return lambda value: isinstance(value, list) and least <= len(value) <= most and all(map(check, value))


def table(check: Check, most: int = 10**7, keys: Check | None = None) -> Check:
    """Accept tables with up to ``most`` texts as keys, whose values ``check`` accepts.

    Args:
        keys: check of the keys.
    """

    def accept(value: Any) -> bool:
        if not isinstance(value, dict) or len(value) > most:
            return False
        return all(isinstance(key, str) and (keys is None or keys(key)) and check(v) for key, v in value.items())

    return accept


def record(needed: Mapping[str, Check], extra: Mapping[str, Check] | None = None) -> Check:
    """Accept tables with the keys in ``needed`` and, if they are there, those in ``extra``; others are ignored."""
    return lambda value: wrong_key(value, needed, extra) is None


def anything(value: Any) -> bool:
    """Accept all finite values of JSON that are not nested too deeply."""
    return _is_nested(value, finite=True)


def remark(value: Any) -> bool:
    """Accept values that are only shown: also NaN and infinite numbers, such as figures of a training."""
    return _is_nested(value, finite=False)


def _is_nested(value: Any, depth: int = 0, *, finite: bool) -> bool:
    if isinstance(value, float):
        return math.isfinite(value) or not finite
    if isinstance(value, (dict, list, tuple)):
        entries = value.values() if isinstance(value, dict) else value
        keys = value if isinstance(value, dict) else ()
        return (
            depth < _DEEPEST
            and all(isinstance(key, str) for key in keys)
            and all(_is_nested(entry, depth + 1, finite=finite) for entry in entries)
        )
    return value is None or isinstance(value, (str, int))


def whole_text(value: str) -> bool:
    """Accept texts with a whole number of up to 18 digits, such as keys that are values of labels."""
    digits = value[1:] if value[:1] == "-" else value
    return digits.isascii() and digits.isdecimal() and len(digits) <= 18


def wrong_key(values: Any, needed: Mapping[str, Check], extra: Mapping[str, Check] | None = None) -> str | None:
    """Return the first key that is missing or has a value that is not valid; ``None`` if there is none.

    Args:
        values: should be a table; if it is not, the first of the needed keys is missing.
        needed: checks of the keys that must be there.
        extra: checks of keys that may be there.
    """
    if not isinstance(values, dict):
        return next(iter(needed), "")
    for key, check in needed.items():
        if key not in values or not check(values[key]):
            return key
    return next((key for key, check in (extra or {}).items() if key in values and not check(values[key])), None)
