r"""Loadings that every draw turns as it likes, put in one orientation.

A factor model x = W z + noise is the same for W R and Rᵀ z under every rotation or reflection R, signed
permutations of the factors among them, so that draws of a loading mean nothing until the orientations agree.
Here they are made to agree as far as they can: R_t and the mean M over draws minimise

    sum_t |W_t R_t - M|²,

in turns. Given M each R_t is an orthogonal Procrustes problem, solved exactly by a singular value
decomposition (so that rotation, signs and order are found at once), given the R_t the mean is the mean, and
no turn raises the sum. It starts from the factors of the mean of W Wᵀ, which no rotation changes, so the result
does not depend on how the draws were turned. The orientation that all share is then Varimax's for M,

    maximise  sum_k variance over d of M_dk²,

few large loadings a factor, found from several starts; its columns come in order of their sum of squares,
largest first, with signs that make the sums of cubes positive.

Rotation-sign-permutation (Papastamoulis and Ntzoufras, 2022) instead applies Varimax to every draw and aligns
the rest by signed permutations. Where loadings have simple structure that is the same to within Monte-Carlo
error; where they have none, Varimax has many maxima, draws end in different ones, and no signed permutation
brings those together.

References
----------
On the identifiability of Bayesian factor analytic models (Papastamoulis and Ntzoufras, 2022); Bayesian
analysis of static and dynamic factor models: an ex-post approach towards the rotation problem (Aßmann,
Boysen-Hogrefe and Pape, 2016); The varimax criterion for analytic rotation in factor analysis (Kaiser, 1958).
"""

from __future__ import annotations

from itertools import combinations

import numpy as np
from jaxtyping import Float

from inference.errors import BadData

STARTS = 20  # orientations that Varimax starts from
MAX_ROUNDS = 200
TOLERANCE = 1e-8  # of the mean's size that a turn still changes; radians that a sweep still turns

Rotations = Float[np.ndarray, "draw q q"]


def rotations(loadings: Float[np.ndarray, "draw D q"]) -> Rotations:
    """Orthogonal matrices R that give W R one orientation in all draws.

    Parameters
    ----------
    loadings
        Draws of W, shape (draw, D, q).

    Raises
    ------
    BadData
        When some of them are not finite.
    """
    w = np.asarray(loadings, np.float64)
    bad = np.flatnonzero(~np.isfinite(w).all((1, 2)))
    if len(bad):
        raise BadData(
            f"the loadings are not finite in {len(bad)} of {len(w)} draws, first in draw {bad[0]}, so that they cannot "
            "be turned to each other. Leave those draws out, or scale the data to about unit size and sample anew."
        )
    mean = _factors(w)
    for _ in range(MAX_ROUNDS):
        # argmin |W R - M|² = U Vᵀ for Wᵀ M = U S Vᵀ
        u, _, vt = np.linalg.svd(w.mT @ mean)
        rotation, before = u @ vt, mean
        mean = np.tensordot(w, rotation, axes=([0, 2], [0, 1])) / len(w)
        if np.linalg.norm(mean - before) <= TOLERANCE * np.linalg.norm(mean):
            break
    return rotation @ _orientation(mean)


def varimax(loadings: Float[np.ndarray, "start D q"]) -> Rotations:
    """Rotations R to a maximum of sum_k var_d (W R)_dk² by plane rotations, from each of several W.

    Each turns two columns x, y by the angle that is best for them, so that the criterion never falls: with
    u = x² - y² and v = 2 x y, tan 4 angle = 2 cov(u, v) / (var(u) - var(v)) over d.
    """
    starts, dim, q = loadings.shape
    # Columns of W and of R turn together, and lie contiguous.
    turned = np.concatenate([np.asarray(loadings, np.float64).mT, np.tile(np.eye(q), (starts, 1, 1))], axis=2)
    for _ in range(MAX_ROUNDS):
        largest = 0.0
        for j, k in combinations(range(q), 2):
            x, y = turned[:, j, :dim], turned[:, k, :dim]
            u, v = x * x - y * y, 2 * x * y
            u, v = u - u.mean(1, keepdims=True), v - v.mean(1, keepdims=True)
            angle = np.arctan2(2 * (u * v).sum(1), (u * u - v * v).sum(1)) / 4
            cos, sin = np.cos(angle)[:, None], np.sin(angle)[:, None]
            a, b = turned[:, j], turned[:, k]
            turned[:, j], turned[:, k] = cos * a + sin * b, cos * b - sin * a
            largest = max(largest, float(np.abs(angle).max()))
        if largest <= TOLERANCE:
            break
    return turned[:, :, dim:].mT


def _factors(w: Float[np.ndarray, "draw D q"]) -> Float[np.ndarray, "D q"]:
    """A (D, q) with A Aᵀ nearest to the mean of W Wᵀ."""
    _, dim, q = w.shape
    side_by_side = np.swapaxes(w, 0, 1).reshape(dim, -1)
    values, vectors = np.linalg.eigh(side_by_side @ side_by_side.T / len(w))
    return vectors[:, -q:] * np.sqrt(np.maximum(values[-q:], 0))


def _orientation(mean: Float[np.ndarray, "D q"]) -> Float[np.ndarray, "q q"]:
    """Varimax's rotation, best of several, with the columns in order and their signs fixed."""
    q = mean.shape[1]
    starts, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(STARTS, q, q)))
    rotation = starts @ varimax(mean @ starts)
    rotation = rotation[((mean @ rotation) ** 2).var(1).sum(1).argmax()]
    turned = mean @ rotation
    order = np.argsort(-(turned**2).sum(0), kind="stable")
    return (rotation * np.where((turned**3).sum(0) < 0, -1.0, 1.0))[:, order]


__all__ = ["rotations", "varimax"]
