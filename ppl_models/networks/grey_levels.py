"""Pixels with L grey levels, as numbers k / (L - 1) from 0 to 1."""

from __future__ import annotations

from typing import Any

from array_api_compat import array_namespace


def levels_of(x: Any, levels: int) -> Any:
    """The whole number k of each pixel k / (L - 1), as floats."""
    return array_namespace(x).round(x * (levels - 1))


def check_levels(levels: Any) -> None:
    """Refuse a number of levels that leaves nothing to tell apart."""
    if not isinstance(levels, int) or isinstance(levels, bool) or levels < 2:
        raise ValueError(f"levels is {levels!r}; expected a whole number of at least 2, such as 256 for bytes.")
