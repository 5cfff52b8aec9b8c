"""Whether two samples follow one law: the kernel test, and the classifier's.

References
----------
A Kernel Two-Sample Test (Gretton et al., 2012); Revisiting Classifier Two-Sample Tests (Lopez-Paz and Oquab, 2017).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy import stats
from scipy.spatial.distance import cdist, pdist

from inference.errors import BadData

Rows = Float[np.ndarray, "rows pixels"]


@dataclass(frozen=True)
class TwoSample:
    """A test of whether two samples follow one law.

    Attributes
    ----------
    statistic
        What is compared: squared MMD, or the classifier's accuracy on rows it has not seen.
    p_value
        Chance of a statistic as large where the laws are the same.
    """

    statistic: float
    p_value: float

    __test__ = False  # not a test of pytest's


def mmd_test(
    a: Any, b: Any, *, bandwidth: float | None = None, num_permutations: int = 999, seed: int = 0
) -> TwoSample:
    """The kernel two-sample test, with a Gaussian kernel and labels permuted for its p-value.

    Parameters
    ----------
    a, b
        Rows; of more than a thousand in either, take some, for the cost is quadratic.
    bandwidth
        Of the kernel exp(-|a - b|² / (2 bandwidth²)); by default the median distance of rows.
    num_permutations
        Labellings drawn; the p-value is at least ``1 / (num_permutations + 1)``, and exact.
    seed
        Of the permutations.

    Returns
    -------
    TwoSample
        The unbiased estimate of MMD², which may be negative, and its p-value.
    """
    a, b = as_rows("a", a), as_rows("b", b, like=a)
    both, m, n = np.concatenate([a, b]), len(a), len(b)
    if min(m, n) < 2:
        raise BadData(f"mmd_test needs at least 2 rows of each; got {m} and {n}.")
    distances = pdist(both)
    width = bandwidth or float(np.median(distances))
    if not width > 0:
        raise BadData("mmd_test: most rows are equal, so that there is no median distance: give bandwidth=.")
    kernel = np.exp(-(cdist(both, both) ** 2) / (2 * width**2))
    np.fill_diagonal(kernel, 0)
    rng = np.random.default_rng(seed)
    labels = np.stack([np.arange(m + n) < m, *(rng.permutation(m + n) < m for _ in range(num_permutations))])
    first = labels.astype(float)
    # sum of k over pairs within a, within b, and across, for each labelling
    within_a = np.einsum("sn,sn->s", first @ kernel, first)
    across = np.einsum("sn,sn->s", first @ kernel, 1 - first)
    within_b = kernel.sum() - within_a - 2 * across
    found = within_a / (m * (m - 1)) + within_b / (n * (n - 1)) - 2 * across / (m * n)
    # Of exchangeable labellings the true one is as likely as any to be the largest; equal ones count.
    return TwoSample(float(found[0]), float(np.mean(found >= found[0] - 1e-12)))


def classifier_test(a: Any, b: Any, *, classifier: Any = None, seed: int = 0) -> TwoSample:
    """Whether a classifier, trained on half of the rows, tells the other half apart better than chance.

    Parameters
    ----------
    a, b
        Rows, of each as many as the shorter has.
    classifier
        Of scikit-learn's kind; by default a network of 50 hidden units, on standardised rows.
    seed
        Of the split and the network.

    Returns
    -------
    TwoSample
        The accuracy, and the chance of as many right by guessing, which is binomial.
    """
    from sklearn.model_selection import train_test_split
    from sklearn.neural_network import MLPClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    a, b = as_rows("a", a), as_rows("b", b, like=a)
    size = min(len(a), len(b))
    if size < 10:
        raise BadData(f"classifier_test needs at least 10 rows of each; got {len(a)} and {len(b)}.")
    rng = np.random.default_rng(seed)
    both = np.concatenate([rng.permutation(a)[:size], rng.permutation(b)[:size]])
    labels = np.repeat([0, 1], size)
    if classifier is None:
        network = MLPClassifier((50,), early_stopping=True, learning_rate_init=1e-2, max_iter=300, random_state=seed)
        classifier = make_pipeline(StandardScaler(), network)
    train, test, y, truth = train_test_split(both, labels, test_size=0.5, stratify=labels, random_state=seed)
    right = int(np.sum(classifier.fit(train, y).predict(test) == truth))
    return TwoSample(right / len(truth), float(stats.binom.sf(right - 1, len(truth), 0.5)))


def as_rows(name: str, value: Any, like: np.ndarray | None = None) -> Rows:
    """Rows as float64, images flattened."""
    rows = np.asarray(value, np.float64)
    if rows.ndim < 2 or not len(rows):
        raise BadData(f"{name} has shape {rows.shape}; expected rows, (rows, pixels).")
    rows = rows.reshape(len(rows), -1)
    if not np.isfinite(rows).all():
        raise BadData(f"{name} has values that are not finite, first in row {np.argwhere(~np.isfinite(rows))[0, 0]}.")
    if like is not None and rows.shape[1] != like.shape[1]:
        raise BadData(f"{name} has rows of {rows.shape[1]} numbers; expected {like.shape[1]}, as the others.")
    return rows


__all__ = ["Rows", "TwoSample", "as_rows", "classifier_test", "mmd_test"]
