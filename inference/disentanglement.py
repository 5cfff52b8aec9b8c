r"""Does each unit of a code stand for one factor of the data, and each factor in one unit? The mutual information gap.

For factors v_k, known because the data were made from them, and units z_j of codes,

    gap_k = (I(z_(1); v_k) - I(z_(2); v_k)) / H(v_k),    MIG = the mean of gap_k over factors,

with z_(1) and z_(2) the two units that tell most of v_k: 1 where a factor is in one unit and whole, 0 where no unit
tells more of it than another. However the units are scaled, bent or turned over, it stays the same.

I is that of the empirical table of factors and units, these cut into bins of equally many rows. Of independent ones it
is not 0 but about (bins - 1)(values - 1) / (2 rows), alike for all units, so that the gap is spared most of it. Bins
lose what a unit tells within one. The paper takes draws of q(z | x), and its density in place of bins: give draws here,
too, for means make a unit that is not used tell of factors what its noise would hide.

References
----------
Isolating Sources of Disentanglement in Variational Autoencoders (Chen, Li, Grosse and Duvenaud, 2018).
Challenging Common Assumptions in the Unsupervised Learning of Disentangled Representations (Locatello et al., 2019),
for bins.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from scipy.stats import entropy

from inference.errors import BadData, check_whole


@dataclass(frozen=True)
class InformationGap:
    """What units tell of factors, in nats.

    Attributes
    ----------
    information
        I(z_j; v_k), ``(factor, unit)``.
    entropies
        H(v_k), ``(factor,)``: the most that a unit can tell.
    """

    information: Float[np.ndarray, "factor unit"]
    entropies: Float[np.ndarray, " factor"]

    @property
    def gaps(self) -> Float[np.ndarray, " factor"]:
        """Of each factor, as a share of its entropy."""
        most = np.sort(self.information, axis=1)
        return (most[:, -1] - most[:, -2]) / self.entropies

    @property
    def mean(self) -> float:
        """MIG: the mean gap."""
        return float(self.gaps.mean())


def mutual_information_gap(codes: Any, factors: Any, *, num_bins: int = 20) -> InformationGap:
    """The mutual information gap of codes whose data were made from known factors.

    Parameters
    ----------
    codes
        One for each row, ``(row, unit)``, at least two units: draws of q(z | x), or values of a discrete latent.
    factors
        A value of every factor, in whatever numbers, ``(row, factor)``.
    num_bins
        Bins that a unit is cut into; one of no more different values is taken as it is.

    Returns
    -------
    InformationGap
        Its ``mean`` is the MIG.

    Raises
    ------
    BadData
        Other shapes, codes that are not finite, or a factor that is the same in all rows.
    ValueError
        ``num_bins`` is not a whole number of at least 2.
    """
    check_whole("num_bins", num_bins, 2)
    codes, factors = np.asarray(codes), np.asarray(factors)
    if codes.ndim != 2 or factors.ndim != 2 or len(codes) != len(factors) or codes.shape[1] < 2:
        raise BadData(
            f"codes have shape {codes.shape} and factors {factors.shape}; expected (rows, units), at least two units, "
            "and (rows, factors), of the same rows."
        )
    if not np.isfinite(codes).all():
        raise BadData("codes are not finite: a gap of them means nothing.")
    values = [np.unique(v, return_inverse=True)[1] for v in factors.T]
    still = [k for k, v in enumerate(values) if not v.any()]
    if still:
        raise BadData(f"factors {still} are the same in all rows, of which nothing can be told: leave them out.")
    units = [_binned(z, num_bins) for z in codes.T]
    entropies = np.array([entropy(np.bincount(v)) for v in values])
    return InformationGap(np.array([[_information(z, v) for z in units] for v in values]), entropies)


def _binned(z: Float[np.ndarray, " row"], num_bins: int) -> Int[np.ndarray, " row"]:
    """Which bin of equally many rows, as far as equal values allow, a value falls in."""
    different, index = np.unique(z, return_inverse=True)
    if len(different) <= num_bins:
        return index
    return np.searchsorted(np.quantile(z, np.arange(1, num_bins) / num_bins), z, side="right")


def _information(z: Int[np.ndarray, " row"], v: Int[np.ndarray, " row"]) -> float:
    """I(z; v) = H(z) + H(v) - H(z, v), in nats."""
    table = np.bincount(z * (v.max() + 1) + v)
    return float(entropy(np.bincount(z)) + entropy(np.bincount(v)) - entropy(table))


__all__ = ["InformationGap", "mutual_information_gap"]
