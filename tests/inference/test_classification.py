"""The classification accuracy score of a generator that is the truth, and of labels that mean nothing."""

import numpy as np
import pytest
from scipy import stats
from sklearn.linear_model import LogisticRegression

from inference import BadData, quality

CENTRES = np.array([[0.0, 0.0], [2.0, 0.0], [0.0, 2.0], [2.0, 2.0]])


def rows(seed, size):
    """Four Normals at the corners of a square, equally likely."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(4, size=size)
    return CENTRES[labels] + rng.normal(size=(size, 2)), labels


# Of two independent coordinates, each on the right side of the middle: Phi(1)².
BAYES = stats.norm.cdf(1) ** 2


def test_a_generator_that_is_the_truth_scores_what_the_data_do():
    held_out = rows(0, 4000)
    real, drawn = (quality.classification_accuracy(*rows(s, 4000), *held_out, classifier=_linear()) for s in (1, 2))
    # Binomial intervals that 1 seed in 10,000 leaves; and what a linear classifier of 4,000 rows loses.
    low, high = stats.binom.ppf([5e-5, 1 - 5e-5], 4000, BAYES) / 4000
    for found in (real, drawn):
        assert low - 0.005 <= found.accuracy <= high
        assert found.standard_error == pytest.approx(np.sqrt(found.accuracy * (1 - found.accuracy) / 4000))
    # The same rows are held out: what differs is on the rows that one of them gets right.
    apart = (real.right ^ drawn.right).sum()
    assert abs(real.accuracy - drawn.accuracy) * 4000 <= 4 * np.sqrt(apart) + 0.005 * 4000
    assert np.mean(list(drawn.by_class.values())) == pytest.approx(drawn.accuracy, abs=0.01)


def test_labels_of_no_meaning_score_chance():
    held_out = rows(0, 500)
    scores = []
    for seed in range(60):
        x, labels = rows(seed + 1, 200)
        shuffled = np.random.default_rng(seed).permutation(labels)
        scores.append(quality.classification_accuracy(x, shuffled, *held_out, classifier=_linear()).accuracy)
    # What is right by luck is right for a whole region at once: the spread is that between shuffles, 1 in 10,000.
    assert abs(np.mean(scores) - 0.25) < 4 * np.std(scores, ddof=1) / np.sqrt(60)


def test_a_dropped_class_is_seen():
    x, labels = rows(1, 2000)
    x[labels == 3] -= CENTRES[3]  # drawn as if they were of the first class
    found = quality.classification_accuracy(x, labels, *rows(0, 2000), classifier=_linear())
    assert found.by_class[3] < 0.3 < 0.5 < found.by_class[1]


def test_a_network_is_the_classifier_by_default():
    found = quality.classification_accuracy(*rows(1, 1000), *rows(0, 1000))
    assert abs(found.accuracy - BAYES) < 0.06  # 0.015 is a standard error, and so is about what 1,000 rows cost


def test_labels_that_do_not_fit_are_refused():
    x, labels = rows(0, 20)
    with pytest.raises(BadData, match=r"labels has shape \(19,\); expected \(20,\), a label for each row"):
        quality.classification_accuracy(x, labels[1:], x, labels)
    with pytest.raises(BadData, match="held_out has rows of 1 numbers; expected 2"):
        quality.classification_accuracy(x, labels, x[:, :1], labels)


def _linear():
    return LogisticRegression(C=100)
