r"""How good are a model's draws: rows beside rows, without a likelihood, so that it works for every model.

Two samples, held-out rows of the data and draws of the model, are compared

    mmd_test            MMD² = E k(a, a') + E k(b, b') - 2 E k(a, b), zero only where the laws agree
    classifier_test     can a classifier tell them apart on rows that it has not seen?
    frechet_distance    between Normal fits of the rows' features
    precision_recall    are the draws where the data are, and the data where the draws are?
    mode_coverage       which modes have draws
    nearest_rows        how near draws are to training rows: memorisation

and of draws that have labels ``classification_accuracy`` says how good a training set they make.

References
----------
GANs Trained by a Two Time-Scale Update Rule Converge to a Local Nash Equilibrium (Heusel et al., 2017); Improved
Precision and Recall Metric for Assessing Generative Models (Kynkäänniemi et al., 2019); A Non-Parametric Test to Detect
Data-Copying in Generative Models (Meehan, Chaudhuri and Dasgupta, 2020).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from scipy import linalg, stats
from scipy.spatial.distance import cdist

from inference.classification import ClassificationAccuracy, classification_accuracy, classifier_features
from inference.errors import BadData
from inference.two_sample import Rows, TwoSample, as_rows, classifier_test, mmd_test


def frechet_distance(a: Any, b: Any, features: Callable[[Any], Any] | None = None) -> float:
    """|m_a - m_b|² + tr(S_a + S_b - 2 (S_a S_b)^½) of features' means and covariances, in their squared unit.

    Parameters
    ----------
    a, b
        Rows.
    features
        From rows to features, such as :func:`classifier_features`; the rows themselves by default. Distances are
        comparable under the same features alone, and these are not the FID, whose features are those of one network
        trained on photographs.

    Returns
    -------
    float
        Zero where means and covariances agree. Biased upward by sampling: compare samples of one size.
    """
    a, b = as_rows("a", a), as_rows("b", b, like=a)
    if features is not None:
        a, b = (np.asarray(features(rows), np.float64) for rows in (a, b))
    s_a, s_b = (np.atleast_2d(np.cov(rows, rowvar=False)) for rows in (a, b))
    # tr (S_a S_b)^½ is the sum of singular values of S_a^½ S_b^½, which needs no root of a product.
    cross = float(np.sum(linalg.svdvals(_root(s_a) @ _root(s_b))))
    return float(np.sum((a.mean(0) - b.mean(0)) ** 2) + np.trace(s_a) + np.trace(s_b) - 2 * cross)


@dataclass(frozen=True)
class PrecisionRecall:
    """Share of draws among the data, and share of the data among the draws."""

    precision: float
    recall: float


def precision_recall(data: Any, draws: Any, *, neighbours: int = 3) -> PrecisionRecall:
    """Whether draws lie where the data do, and the other way round.

    A row lies in a sample's region where it is nearer to some row of it than that row's own k-th neighbour is.

    Parameters
    ----------
    data, draws
        Rows.
    neighbours
        k, from 1 to one less than the rows.

    Returns
    -------
    PrecisionRecall
        Of two samples of one law both are near the same number below one, which depends on k, the rows and their
        dimension: compare with that of two halves of the data. A low recall is mode dropping.
    """
    data, draws = as_rows("data", data), as_rows("draws", draws, like=data)
    if not 1 <= neighbours < min(len(data), len(draws)):
        raise BadData(f"neighbours is {neighbours}; expected 1 to {min(len(data), len(draws)) - 1}, below the rows.")

    def inside(rows: Rows, sample: Rows) -> float:
        radius = np.partition(cdist(sample, sample), neighbours, axis=1)[:, neighbours]  # the nearest is itself
        return float(np.mean((cdist(rows, sample) <= radius).any(axis=1)))

    return PrecisionRecall(inside(draws, data), inside(data, draws))


@dataclass(frozen=True)
class Modes:
    """Which modes have draws.

    Attributes
    ----------
    counts
        Draws of each mode.
    outside
        Share of draws at no mode.
    covered
        Modes with at least a fifth of their equal share of the draws.
    """

    counts: Int[np.ndarray, " modes"]
    outside: float

    @property
    def covered(self) -> int:
        share = self.counts.sum() / (1 - self.outside) / len(self.counts) if self.outside < 1 else np.inf
        return int(np.sum(self.counts >= share / 5))


def mode_coverage(draws: Any, centres: Any, radius: float) -> Modes:
    """Count draws at each of some known modes.

    Parameters
    ----------
    draws
        Rows.
    centres
        A row for each mode.
    radius
        How far from its centre a draw may be.
    """
    draws = as_rows("draws", draws)
    centres = as_rows("centres", centres, like=draws)
    distance = cdist(draws, centres)
    near = distance.min(1) <= radius
    return Modes(np.bincount(distance.argmin(1)[near], minlength=len(centres)), float(1 - near.mean()))


def summary(draws: Any, held_out: Any, train: Any = None, *, size: int = 1000, seed: int = 0) -> dict[str, float]:
    """A row for a table: draws of a model, such as ``fit.generate(n)["x"]``, beside held-out rows.

    Parameters
    ----------
    draws, held_out, train
        Rows of the model, of the data, and of those it was fitted to.
    size
        At most so many of each are used, chosen at random.
    seed
        Of that choice, of permutations and of the classifier.

    Returns
    -------
    dict
        ``MMD²`` and ``p``; ``classifier's accuracy`` and ``its p``; ``precision``, ``recall``; with training rows
        ``memorised, p``.
    """
    rng = np.random.default_rng(seed)
    draws, held_out = (rng.permutation(as_rows(n, v))[:size] for n, v in (("draws", draws), ("held_out", held_out)))
    kernel, classifier = mmd_test(held_out, draws, seed=seed), classifier_test(held_out, draws, seed=seed)
    shares = precision_recall(held_out, draws)
    row = {"MMD²": kernel.statistic, "p": kernel.p_value}
    row |= {"classifier's accuracy": classifier.statistic, "its p": classifier.p_value}
    row |= {"precision": shares.precision, "recall": shares.recall}
    return row if train is None else row | {"memorised, p": nearest_rows(draws, train, held_out).p_value}


@dataclass(frozen=True)
class Nearest:
    """Training rows nearest to draws.

    Attributes
    ----------
    rows, distances
        Of each draw, its nearest training row and how far that is.
    p_value
        Chance of draws as near to training rows as these, were they as far as held-out rows: small where rows were
        learned by heart. NaN without held-out rows.
    """

    rows: Int[np.ndarray, " draws"]
    distances: Float[np.ndarray, " draws"]
    p_value: float


def nearest_rows(draws: Any, train: Any, held_out: Any = None) -> Nearest:
    """The memorisation check: whether draws are nearer to training rows than new rows of the data are.

    Parameters
    ----------
    draws, train, held_out
        Rows of the model, of those it was fitted to, and of others.
    """
    draws = as_rows("draws", draws)
    train = as_rows("train", train, like=draws)
    distance = cdist(draws, train)
    p_value = float("nan")
    if held_out is not None:
        new = cdist(as_rows("held_out", held_out, like=draws), train).min(1)
        p_value = float(stats.mannwhitneyu(distance.min(1), new, alternative="less").pvalue)
    return Nearest(distance.argmin(1), distance.min(1), p_value)


def _root(covariance: np.ndarray) -> np.ndarray:
    values, vectors = linalg.eigh(covariance)
    return (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T


__all__ = [
    "ClassificationAccuracy",
    "Modes",
    "Nearest",
    "PrecisionRecall",
    "TwoSample",
    "classification_accuracy",
    "classifier_features",
    "classifier_test",
    "frechet_distance",
    "mmd_test",
    "mode_coverage",
    "nearest_rows",
    "precision_recall",
    "summary",
]
