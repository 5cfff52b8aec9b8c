"""Whether float32, in which data are kept, still tells the numbers of a column apart.

Rounding moves x by up to |x| / 2²⁴. Of a column whose mean is 10⁸ standard deviations away from zero it leaves
nothing but steps, and a fit describes those.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from inference.errors import BadData

LIMIT = 1e-3  # of the standard deviation, that rounding may take; centred columns stay far below
FEWEST = 4  # rows: of fewer, some are all alike by chance
CHUNK = 2**20  # numbers looked at in one piece


def check_rounding(name: str, value: np.ndarray, observed: Any = None) -> None:
    """Raise BadData where rounding to float32 takes more than a thousandth of a column's standard deviation.

    One pass, a piece at a time, so that memory-mapped data stay where they are.

    Parameters
    ----------
    name
        Of the array.
    value
        As it came, shape (row, *column). What float32 holds exactly, and integers, are let pass.
    observed
        Where ``value`` counts, of the same shape; everywhere by default.
    """
    if value.dtype.kind != "f" or value.dtype.itemsize <= 4 or len(value) < FEWEST:
        return
    size = max(1, CHUNK // value[0].size)
    count = mean = squares = error = np.zeros(value.shape[1:])
    low, high = error + np.inf, error - np.inf
    for start in range(0, len(value), size):
        x = np.asarray(value[start : start + size], np.float64)
        seen = np.ones(x.shape, bool) if observed is None else np.asarray(observed[start : start + size])
        with np.errstate(over="ignore", under="ignore"):
            error = np.maximum(error, np.abs(x - x.astype(np.float32)).max(axis=0, where=seen, initial=0))
        low = np.minimum(low, x.min(axis=0, where=seen, initial=np.inf))
        high = np.maximum(high, x.max(axis=0, where=seen, initial=-np.inf))
        # With n more numbers of mean m: squares = squares + sum (x - m)² + (m - mean)² count n / (count + n)
        n = seen.sum(axis=0)
        total = np.maximum(count + n, 1)
        centre = x.sum(axis=0, where=seen) / np.maximum(n, 1)
        shift = centre - mean
        squares = squares + ((x - centre) ** 2).sum(axis=0, where=seen) + shift**2 * count * n / total
        mean, count = mean + shift * n / total, count + n
    sd = np.sqrt(squares / np.maximum(count, 1))
    # What varies by some ulps of float64 is a constant that was computed.
    varies = high - low > 1e-14 * np.maximum(np.abs(low), np.abs(high))
    bad = np.argwhere(varies & (error > LIMIT * sd))
    if len(bad):
        column = tuple(bad[0])
        where = f" in column {', '.join(map(str, column))}" if column else ""
        raise BadData(
            f"{name!r} is {value.dtype} and is rounded to float32, which moves numbers{where} by up to "
            f"{error[column]:.2g}; expected less than a thousandth of the standard deviation, {sd[column]:.2g}. "
            "Subtract the column's mean, and scale what is left to about unit size."
        )


__all__ = ["check_rounding"]
