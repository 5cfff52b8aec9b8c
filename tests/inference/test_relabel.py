"""Label switching simulated and undone."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest

from inference import BadData
from inference.relabel import assign, by_labels, by_parameters, ordered, relabelled

K, DRAWS, ROWS = 4, 60, 80


@pytest.fixture(scope="module")
def switched():
    """Draws of four components with noisy parameters and labels, and the same under a random numbering each."""
    rng = np.random.default_rng(0)
    truth = rng.integers(K, size=ROWS)
    labels = np.where(rng.random((DRAWS, ROWS)) < 0.3, rng.integers(K, size=(DRAWS, ROWS)), truth)
    centres = np.array([[0, 0, 0], [1, 0, 1], [0, 1, -1], [-1, 0, 1]])  # ten standard deviations apart
    values = (centres + 0.1 * rng.normal(size=(DRAWS, K, 3))) * [1, 10, 100]
    orders = rng.permuted(np.tile(np.arange(K), (DRAWS, 1)), axis=1)
    return values, labels, ordered(values, orders), relabelled(labels, orders), orders


def same_up_to_one_numbering(found, truth):
    """Whether one permutation of the components turns all draws of one into the other."""
    return any(np.array_equal(found[:, list(p)], truth) for p in permutations(range(K)))


def test_labels_follow_their_components(switched):
    values, labels, moved, moved_labels, _ = switched
    draw = np.arange(DRAWS)[:, None]
    # A row's own parameters stay its own.
    np.testing.assert_array_equal(moved[draw, moved_labels], values[draw, labels])


def test_switching_is_undone_by_labels(switched):
    values, labels, moved, moved_labels, _ = switched
    orders = by_labels(moved_labels, K)
    back = ordered(moved, orders)
    assert same_up_to_one_numbering(back, values)
    draw = np.arange(DRAWS)[:, None]
    np.testing.assert_array_equal(back[draw, relabelled(moved_labels, orders)], values[draw, labels])


def test_switching_is_undone_by_parameters(switched):
    values, _, moved, _, _ = switched
    assert same_up_to_one_numbering(ordered(moved, by_parameters(moved)), values)


def test_most_draws_keep_their_labels(switched):
    values, labels, *_ = switched
    orders = np.tile(np.arange(K), (DRAWS, 1))
    orders[: DRAWS // 3] = [2, 0, 1, 3]  # one chain of three has a numbering of its own
    found = by_labels(relabelled(labels, orders), K)
    np.testing.assert_array_equal(found[DRAWS // 3 :], orders[DRAWS // 3 :])
    np.testing.assert_array_equal(ordered(ordered(values, orders), found), values)
    np.testing.assert_array_equal(by_parameters(ordered(values, orders)), found)


def test_an_empty_component_is_numbered_all_the_same():
    labels = np.array([[0, 0, 1, 1, 2], [1, 1, 0, 0, 0], [0, 0, 2, 2, 2]])  # of K = 3, one is empty in two draws
    orders = by_labels(labels, 3)
    assert (np.sort(orders, axis=1) == np.arange(3)).all()
    aligned = relabelled(labels, orders)
    assert (aligned[:, :4] == aligned[0, :4]).all()


def test_parameters_that_are_not_finite_are_refused(switched):
    values = switched[0].copy()
    values[7:9, 2, 1] = np.nan
    with pytest.raises(BadData, match="not finite in 2 of 60 draws, first in component 2 of draw 7"):
        by_parameters(values)


def test_one_draw_and_one_component():
    np.testing.assert_array_equal(by_labels(np.array([[1, 0, 2]]), 3), [[0, 1, 2]])
    np.testing.assert_array_equal(by_parameters(np.ones((5, 1, 2))), np.zeros((5, 1)))


def test_assignment_is_the_best_of_all_permutations():
    gain = np.random.default_rng(1).normal(size=(40, K, K))
    sums = np.stack([gain[:, range(K), p].sum(1) for p in permutations(range(K))])
    orders = assign(gain)
    assert (np.sort(gain.argmax(2), axis=1) != np.arange(K)).any(1).sum() > 10  # rows compete in many of them
    np.testing.assert_allclose(np.take_along_axis(gain, orders[..., None], 2).sum((1, 2)), sums.max(0))
