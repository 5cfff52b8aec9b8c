"""The errors a user meets before anything is compiled."""

from __future__ import annotations

from numbers import Integral
from typing import Any


class Incompatible(ValueError):
    """A model, guide, algorithm or objective that do not go together; the message says what does."""


class BadData(ValueError):
    """Data or a number that cannot be used as given: names it, what came, what was expected, what to do."""


class CorruptFile(ValueError):
    """A file whose contents are not what was written: truncated, altered, or not ours."""


class NonFinite(FloatingPointError):
    """The bound or a log density became NaN or infinite; carries where, and the last good state.

    Attributes
    ----------
    step
        The step whose bound was not finite.
    fit
        The result up to the last good step, as if the run had been stopped there.
    """

    step: int
    fit: object


def check_whole(name: str, value: Any, least: int = 1, why: str = "") -> None:
    """Raise BadData for what is not a whole number of at least ``least``; ``why`` says why so many."""
    if isinstance(value, bool) or not isinstance(value, Integral) or int(value) < least:
        raise BadData(f"{name} is {value!r}; expected a whole number of at least {least}{why and ', '}{why}.")
