r"""Label switching: components that every draw numbers as it likes, put under common labels.

A mixture's posterior is the same under all K! numberings of its components, so that draws of one
component's parameters mean nothing until the numberings agree. Both functions here alternate, as k-means
does, between a reference and the best numbering of every draw,

    order_t = argmax over permutations of  sum_k gain_t[k, order_t(k)],

an assignment problem, solved exactly. Neither step lowers the sum of the gains, so they end; the best of
several starts is kept.

- :func:`by_labels` (ECR, iterative version 1) compares the rows' labels with a reference partition, in
  which every row has the label that most draws give it: gain_t[k, j] counts the rows of component k there
  and j here.
- :func:`by_parameters`, for want of labels, compares the components' parameters with their means over the
  draws: gain_t[k, j] = -|x_tj - mean_k|², every coordinate in units of its standard deviation.

Which labels the draws end up with is arbitrary; they keep those of the most draws.

References
----------
An artificial allocations based solution to the label switching problem in Bayesian analysis of mixtures of
distributions (Papastamoulis and Iliopoulos, 2010); label.switching: An R package for dealing with the label
switching problem in MCMC outputs (Papastamoulis, 2016); Dealing with label switching in mixture models
(Stephens, 2000).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from inference.errors import BadData

STARTS = 5  # draws whose numbering is tried as the first reference, evenly spaced
MAX_ROUNDS = 100

Orders = Int[np.ndarray, "draw K"]


def by_labels(labels: Int[np.ndarray, "draw row"], num_components: int) -> Orders:
    """Orders under which the rows' labels agree best.

    Parameters
    ----------
    labels
        Component of each row in each draw, 0 … K - 1, shape (draw, row).
    num_components
        K.

    Returns
    -------
    array
        Shape (draw, K): component ``order[k]`` of a draw gets the label k.
    """
    labels = np.asarray(labels, np.int64)
    (draws, rows), k = labels.shape, num_components
    draw, row = np.arange(draws)[:, None], np.arange(rows)

    def gain(partition: np.ndarray) -> np.ndarray:
        cells = (draw * k + partition) * k + labels
        return np.bincount(cells.ravel(), minlength=draws * k * k).reshape(draws, k, k)

    def vote(orders: Orders) -> np.ndarray:
        cells = row * k + relabelled(labels, orders)
        return np.bincount(cells.ravel(), minlength=rows * k).reshape(rows, k).argmax(1)

    return _alternate(gain, vote, labels[_evenly(draws)])


def by_parameters(values: Float[np.ndarray, "draw K feature"]) -> Orders:
    """Orders under which the components' parameters agree best, as :func:`by_labels` returns them.

    Parameters
    ----------
    values
        Numbers of each component in each draw, shape (draw, K, feature).

    Raises
    ------
    BadData
        When some of them are not finite.
    """
    values = np.asarray(values, np.float64)
    bad = np.argwhere(~np.isfinite(values))
    if len(bad):
        raise BadData(
            f"the components' parameters are not finite in {len(np.unique(bad[:, 0]))} of {len(values)} draws, first "
            f"in component {bad[0, 1]} of draw {bad[0, 0]}, so that components cannot be told apart by them. Leave "
            "those draws out, or scale the data to about unit size and sample anew."
        )
    scale = values.std((0, 1))
    x = (values - values.mean((0, 1))) / np.where(scale > 0, scale, 1)

    def gain(means: np.ndarray) -> np.ndarray:
        # -|x_j - m_k|² = 2 m_k·x_j - |m_k|² - |x_j|²
        return 2 * np.einsum("kf,tjf->tkj", means, x) - (means**2).sum(-1)[:, None] - (x**2).sum(-1)[:, None]

    def mean(orders: Orders) -> np.ndarray:
        return ordered(x, orders).mean(0)

    return _alternate(gain, mean, x[_evenly(len(x))])


def ordered(values: np.ndarray, orders: Orders) -> np.ndarray:
    """Components (draw, K, …) put in these orders."""
    return values[np.arange(len(values))[:, None], orders]


def relabelled(labels: np.ndarray, orders: Orders) -> np.ndarray:
    """Labels (draw, …) of components that were put in these orders."""
    new = np.argsort(orders, axis=1)  # the inverse: component order[k] is called k
    flat = np.take_along_axis(new, labels.reshape(len(labels), -1), axis=1)
    return flat.reshape(labels.shape).astype(labels.dtype)


def assign(gain: Float[np.ndarray, "draw K K"]) -> Orders:
    """The order of each draw that maximises sum_k gain[k, order(k)]."""
    from scipy.optimize import linear_sum_assignment

    orders = gain.argmax(2)  # the best of every row alone: where that is a permutation, it is the answer
    contested = np.sort(orders, axis=1) != np.arange(orders.shape[1])
    for draw in np.flatnonzero(contested.any(1)):
        orders[draw] = linear_sum_assignment(gain[draw], maximize=True)[1]
    return orders


def _alternate(gain: Callable[[Any], np.ndarray], summary: Callable[[Orders], Any], starts: np.ndarray) -> Orders:
    """The orders with the largest sum of gains that alternating from these references finds."""
    best, best_sum = None, -np.inf
    for reference in starts:
        orders, total = None, -np.inf
        for _ in range(MAX_ROUNDS):
            table = gain(reference)
            new = assign(table)
            new_total = np.take_along_axis(table, new[..., None], 2).sum()
            if not new_total > total:
                break
            orders, total, reference = new, new_total, summary(new)
        if total > best_sum:
            best, best_sum = orders, total
    assert best is not None
    found, counts = np.unique(best, axis=0, return_counts=True)
    return best[:, np.argsort(found[counts.argmax()])]  # the most frequent order becomes 0, 1, …


def _evenly(count: int) -> np.ndarray:
    return np.unique(np.linspace(0, count - 1, min(STARTS, count)).astype(int))


__all__ = ["assign", "by_labels", "by_parameters", "ordered", "relabelled"]
