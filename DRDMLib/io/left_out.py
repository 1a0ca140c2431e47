"""Leave out cases that cannot be used: name them in warnings, and fail only if no case is left."""

from __future__ import annotations

import warnings

from ..errors import DRDMError, FallbackWarning, ImageError
from .datasets import Case
from .files import shown


class LeftOut:
    """The cases of a dataset that cannot be used.

    Warnings are held back until one case could be used, so that a dataset without any gives a single sentence.

    Args:
        total: number of all cases.
    """

    def __init__(self, total: int) -> None:
        self._total = total
        self._errors: list[DRDMError] = []
        self._waiting: list[str] = []
        self._used = False

    def add(self, case: Case, error: DRDMError) -> None:
        """Leave out a case.

        Warns:
            FallbackWarning: names the case and the reason, if another case could be used.
        """
        self._errors.append(error)
        self._waiting.append(f"Left out: '{shown(case.name)}': {error}")
        if self._used:
            self.warn()

    def used(self) -> None:
        """Note that a case could be used, and warn of those that could not."""
        self._used = True
        self.warn()

    def warn(self) -> None:
        """Give the warnings that were held back."""
        for text in self._waiting:
            warnings.warn(text, FallbackWarning, stacklevel=4)
        self._waiting.clear()

    def require_one(self) -> None:
        """Check that a case could be used.

        Raises:
            DRDMError: there is none; the error of the first case.
        """
        if len(self._errors) < self._total or not self._errors:
            return
        if self._total == 1:
            raise self._errors[0]
        raise ImageError(f"None of the {self._total} cases can be used; the first problem: {self._errors[0]}")
