"""How far draws are from the posterior: chains by their own diagnostics, any draws against a reference.

Draws that are not finite are infinitely far: no effective draws, an infinite R-hat, an infinite error of the mean.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpyro.diagnostics import effective_sample_size, split_gelman_rubin

NAN = float("nan")
CHUNK = 2**22  # numbers that a diagnostic looks at in one piece

Quantities = Mapping[str, np.ndarray]


class Error(NamedTuple):
    """How far draws of one quantity are from a reference's, root mean square over its elements.

    ``mean`` is |mean - mean_ref| / sd_ref; ``sd`` is |log(sd / sd_ref)|, negative where the standard
    deviations are too small on the whole, NaN for a point estimate. Draws that are not finite have an infinite
    ``mean`` and no ``sd``.
    """

    mean: float
    sd: float


def errors(quantities: Quantities, reference: Quantities) -> dict[str, Error]:
    """Errors of the quantities that both have, over the elements that the reference's draws move."""
    out = {}
    for name in reference:
        if name not in quantities or quantities[name].shape[2:] != reference[name].shape[2:]:
            continue
        ours, theirs = (_flat(arrays[name]) for arrays in (quantities, reference))
        moving = np.isfinite(theirs).all(0) & _moving(theirs)
        if not moving.any():
            continue
        ours, theirs = ours[:, moving], theirs[:, moving]
        if not np.isfinite(ours).all():
            out[name] = Error(np.inf, NAN)
            continue
        scale = theirs.std(0)
        mean = np.sqrt(np.mean(((ours.mean(0) - theirs.mean(0)) / scale) ** 2))
        with np.errstate(divide="ignore"):  # a quantity that does not move is infinitely too narrow
            ratio = np.array([NAN]) if still(ours) else np.log(ours.std(0) / scale)
        sd = np.copysign(np.sqrt(np.mean(ratio**2)), np.mean(ratio))
        out[name] = Error(float(mean), float(sd))
    return out


def still(draws: Any) -> bool:
    """Whether all draws are one point."""
    return not _moving(np.asarray(draws)).any()


def _moving(draws: np.ndarray) -> np.ndarray:
    """Elements that are not the same in all draws; NaN is not the same as itself."""
    return (draws != draws[0]).any(0)


def _flat(draws: Any) -> np.ndarray:
    draws = np.asarray(draws, np.float64)
    return draws.reshape(draws.shape[0] * draws.shape[1], -1)


def monte_carlo_error(draws: Any) -> float:
    """Standard error of a site's posterior means in standard deviations, root mean square over its elements."""
    sizes, _ = _diagnose(draws)
    with np.errstate(divide="ignore"):
        return float(np.sqrt(np.mean(1 / sizes)))


def diagnose_site(draws: Any) -> tuple[float, float]:
    """The smallest effective sample size and largest R-hat of a site; constant elements are skipped."""
    sizes, r_hats = _diagnose(draws)
    return float(np.min(sizes)), float(np.max(r_hats))


def _diagnose(draws: Any) -> tuple[np.ndarray, np.ndarray]:
    """Effective sample size and R-hat of the elements that move; NaN where none does or draws are few."""
    draws = np.asarray(draws)
    draws = draws.reshape(*draws.shape[:2], -1)
    flat = draws.reshape(-1, draws.shape[2])
    moving = _moving(flat)
    if (moving & ~np.isfinite(flat).all(0)).any():
        return np.array([0.0]), np.array([np.inf])
    moving = np.flatnonzero(moving)
    if draws.shape[1] < 4 or not len(moving):
        return np.array([NAN]), np.array([NAN])
    pieces = np.array_split(moving, -(-len(moving) * draws[..., 0].size // CHUNK))
    sizes, r_hats = [], []
    for piece in pieces:  # float64 copies and their transforms are many times the draws
        values = draws[..., piece].astype(np.float64)
        sizes.append(effective_sample_size(values))
        r_hats.append(split_gelman_rubin(values))
    return np.concatenate(sizes), np.concatenate(r_hats)


def worst(arrays: Quantities) -> tuple[float, float]:
    """The smallest effective sample size and the largest R-hat over sites; NaN where none moves."""
    found = [pair for pair in map(diagnose_site, arrays.values()) if not np.isnan(pair).any()]
    if not found:
        return NAN, NAN
    sizes, r_hats = zip(*found, strict=True)
    return min(sizes), max(r_hats)


__all__ = ["Error", "diagnose_site", "errors", "monte_carlo_error", "still", "worst"]
