"""Results by kind, and values as text and as JSON."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np


def kind(result: Any) -> str | None:
    """Which kind of result this is: fit, figure, comparison, table, text; None when none of them."""
    from matplotlib.figure import Figure

    from inference import Fit
    from inference.compare import Comparison

    if isinstance(result, list):
        return "table" if result and all(isinstance(row, dict) for row in result) else None
    kinds = {Fit: "fit", Figure: "figure", Comparison: "comparison", str: "text"}
    return next((name for cls, name in kinds.items() if isinstance(result, cls)), None)


def parts(results: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Titles and results, tuples taken apart; the parts of one result share its title."""
    for title, result in results.items():
        for part in result if isinstance(result, tuple) else (result,):
            yield title, part


def cell(value: Any) -> str:
    """A value in a table: four digits of a number, a dash for what does not apply."""
    if value is None or (isinstance(value, float | np.floating) and math.isnan(value)):
        return "–"
    if isinstance(value, float | np.floating):
        return f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int | np.integer) and not isinstance(value, bool) else str(value)


def plain(value: Any) -> Any:
    """A value as JSON has them: dataclasses by name and fields, numbers that are not finite as null."""
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float | np.floating | np.integer | np.bool_):
        number = value.item() if isinstance(value, np.generic) else value
        return number if math.isfinite(number) else None
    if isinstance(value, Path):
        return value.as_posix()
    if isinstance(value, dict):
        return {str(n): plain(v) for n, v in value.items()}
    if isinstance(value, list | tuple | np.ndarray):
        return [plain(v) for v in value]
    if is_dataclass(value) and not isinstance(value, type):
        inside = {f.name: plain(getattr(value, f.name)) for f in fields(value) if not _engine(value, f.name)}
        return {"class": type(value).__name__} | inside
    return getattr(value, "__qualname__", None) or getattr(value, "__name__", None) or type(value).__qualname__


def _engine(value: Any, name: str) -> bool:
    return isinstance(getattr(value, name), ModuleType)


def setting(value: Any) -> str:
    """A value as one would write it in code, engines left out."""
    if is_dataclass(value) and not isinstance(value, type):
        inside = [f"{f.name}={setting(getattr(value, f.name))}" for f in fields(value) if not _engine(value, f.name)]
        return f"{type(value).__name__}({', '.join(inside)})"
    if isinstance(value, tuple) and not hasattr(value, "_fields"):
        return "(" + ", ".join(map(setting, value)) + ("," if len(value) == 1 else "") + ")"
    if isinstance(value, str | bool | int | float | type(None)):
        return repr(value)
    owner: Any = getattr(value, "__self__", None)
    if callable(owner) and hasattr(value, "__name__"):  # a method such as posterior
        return f"{type(owner).__name__}.{getattr(value, '__name__', '')}"
    return getattr(value, "__qualname__", None) or getattr(value, "__name__", None) or type(value).__qualname__


def slug(title: str) -> str:
    """A title as a file name."""
    words = "".join(c.lower() if c.isalnum() else " " for c in title).split()
    return "-".join(words) or "untitled"


__all__ = ["cell", "kind", "parts", "plain", "setting", "slug"]
