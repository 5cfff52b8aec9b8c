"""Are numbers uniform on (0, 1)? An exact simultaneous test of the empirical distribution function.

For u_1 … u_S independent and uniform, the number below z is c(z) ~ Binomial(S, z). At points z_i = i / K each
count has a two-sided level

    g_i = min(1, 2 min(P(Bin(S, z_i) <= c_i), P(Bin(S, z_i) >= c_i)),

and the statistic is the smallest of them. Its distribution is exact: counts between the points are independent
Poisson variables given that their sum is S, so the chance that a path c_1 … c_{K-1} stays among allowed counts
is a chain of convolutions.

References
----------
Graphical Test for Discrete Uniformity and Its Applications in Goodness-of-Fit Evaluation and Multiple Sample
Comparison (Säilynoja, Bürkner and Vehtari, 2022).
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from jaxtyping import Bool, Float, Int

POINTS = 100  # K, at most; no more than numbers
_SAME = 1 + 1e-9  # levels that differ by rounding are equal


def points(num: int) -> Float[np.ndarray, " z"]:
    """Where the distribution function of ``num`` numbers is looked at: 1 / K … (K - 1) / K."""
    k = max(2, min(num, POINTS))
    return np.arange(1, k) / k


def p_value(u: Float[np.ndarray, " num"]) -> float:
    """Chance that uniform numbers stray as far, at the point where these stray most.

    Parameters
    ----------
    u
        Numbers in [0, 1].

    Returns
    -------
    float
        Small for numbers that are not uniform. Exact, whatever ``num``.
    """
    levels = _levels(len(u))
    counts = np.searchsorted(np.sort(u), points(len(u)), side="right")
    smallest = levels[np.arange(len(counts)), counts].min()
    return _leaving(levels > smallest * _SAME)


@lru_cache(maxsize=32)
def band(num: int, level: float) -> tuple[Float[np.ndarray, " z"], Float[np.ndarray, " z"]]:
    """The lowest and highest distribution function at each point that are not rejected.

    Uniform numbers leave the band anywhere with a chance of at most ``level``; they leave it exactly when
    :func:`p_value` is at most ``level``.
    """
    levels = _levels(num)
    candidates = np.unique(levels)
    low, high = 0, len(candidates) - 1  # the largest level that may be given up, by bisection
    if _leaving(levels > candidates[0] * _SAME) > level:
        return np.zeros(len(levels)), np.ones(len(levels))
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if _leaving(levels > candidates[middle] * _SAME) <= level else (low, middle)
    allowed = levels > candidates[low] * _SAME
    return allowed.argmax(1) / num, (num - allowed[:, ::-1].argmax(1)) / num


@lru_cache(maxsize=32)
def _levels(num: int) -> Float[np.ndarray, "z count"]:
    """g of every count at every point."""
    from scipy.stats import binom  # takes half a second to load

    count: Int[np.ndarray, " count"] = np.arange(num + 1)
    z = points(num)[:, None]
    return np.minimum(1.0, 2 * np.minimum(binom.cdf(count, num, z), binom.sf(count - 1, num, z)))


def _leaving(allowed: Bool[np.ndarray, "z count"]) -> float:
    """Chance that the counts of uniform numbers are not all allowed."""
    from scipy.stats import poisson

    num = allowed.shape[1] - 1
    step = poisson.pmf(np.arange(num + 1), num / (len(allowed) + 1))
    step = step[: np.flatnonzero(step > 1e-20)[-1] + 1]
    path = np.zeros(num + 1)
    path[0] = 1.0
    for row in allowed:
        path = np.convolve(path, step)[: num + 1] * row
    stay = np.convolve(path, step)[num] / poisson.pmf(num, num)
    return float(np.clip(1 - stay, 0.0, 1.0))


__all__ = ["band", "p_value", "points"]
