"""The errors a user meets before anything is compiled."""

from __future__ import annotations

from numbers import Integral
from typing import Any


class Incompatible(ValueError):
    """A model, guide, algorithm or objective that do not go together; the message says what does."""


class BadData(ValueError):
    """Data that cannot be used as given: names the array, what came, what was expected, what to do."""


def check_count(algorithm: str, name: str, value: Any, least: int) -> None:
    """Refuse a field of an algorithm that is no whole number, or too small; ``ValueError`` says which."""
    if isinstance(value, bool) or not isinstance(value, Integral) or value < least:
        raise ValueError(f"{algorithm}: {name} is {value!r}; give at least {least}, a whole number.")


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


def check_whole(name: str, value: Any, least: int = 1) -> None:
    """Raise BadData for what is not a whole number of at least ``least``."""
    if isinstance(value, bool) or not isinstance(value, Integral) or value < least:  # pyright: ignore
        raise BadData(f"{name} is {value!r}; expected at least {least}, a whole number.")
