"""Measures of draws against closed forms, brute force, and rows whose law is known. All seeds are fixed."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import linalg, stats
from sklearn.linear_model import LogisticRegression

from inference import EM, BadData, fit, quality
from ppl_models import GaussianMixture, datasets


def rows(seed, size, loc=0.0, scale=1.0, dim=2):
    return np.random.default_rng(seed).normal(loc, scale, (size, dim))


def test_mmd_is_the_double_sum_and_estimates_its_closed_form():
    a, b, width = rows(0, 12), rows(1, 9, 1.0), 0.8
    kernel = lambda u, v: np.exp(-np.sum((u - v) ** 2) / (2 * width**2))  # noqa: E731
    within = [np.mean([kernel(s[i], s[j]) for i in range(len(s)) for j in range(len(s)) if i != j]) for s in (a, b)]
    across = np.mean([kernel(u, v) for u in a for v in b])
    found = quality.mmd_test(a, b, bandwidth=width, num_permutations=9).statistic
    assert found == pytest.approx(sum(within) - 2 * across, abs=1e-12)

    # a - b ~ N(d, 2 s²) in each coordinate: E k = (w² / (w² + 2 s²))^(D/2) exp(-|d|² / (2 (w² + 2 s²)))
    expected = lambda d: width**2 / (width**2 + 2) * np.exp(-2 * d**2 / (2 * (width**2 + 2)))  # noqa: E731
    truth = 2 * expected(0.0) - 2 * expected(0.5)
    repeats = [
        quality.mmd_test(rows(2 * i, 100), rows(2 * i + 1, 100, 0.5), bandwidth=width, num_permutations=1).statistic
        for i in range(60)
    ]
    # unbiased: the mean of 60 within four of its standard errors, a false alarm in 10,000 seeds
    assert abs(np.mean(repeats) - truth) < 4 * np.std(repeats, ddof=1) / np.sqrt(60)


def test_p_values_of_the_kernel_test_are_of_their_level():
    p = np.array(
        [quality.mmd_test(rows(2 * i, 15), rows(2 * i + 1, 20), num_permutations=39).p_value for i in range(400)]
    )
    # Exact: P(p <= 0.1) = 0.1. The count of 400 is binomial; its bounds are passed by 1 seed in 10,000.
    low, high = stats.binom.ppf([5e-5, 1 - 5e-5], 400, 0.1)
    assert low <= np.sum(p <= 0.1 + 1e-9) <= high
    assert p.min() >= 1 / 40 - 1e-12
    assert quality.mmd_test(rows(0, 100), rows(1, 100, 0.8)).p_value == 1 / 1000


def test_the_classifier_reaches_the_best_accuracy_and_guesses_where_there_is_nothing():
    linear = LogisticRegression()
    found = quality.classifier_test(rows(0, 4000, dim=1), rows(1, 4000, 2.0, dim=1), classifier=linear)
    # Bayes: Phi(1); 4,000 rows have a standard error of 0.006
    assert abs(found.statistic - stats.norm.cdf(1)) < 0.025 and found.p_value < 1e-100
    p = [quality.classifier_test(rows(2 * i, 60), rows(2 * i + 1, 60), classifier=linear).p_value for i in range(300)]
    # Conservative, for the count of right ones is discrete: at most 0.1, and one seed in 10,000 beyond this
    assert np.sum(np.array(p) <= 0.1) <= stats.binom.ppf(1 - 1e-4, 300, 0.1)
    ring = rows(2, 400)
    outside = 3 * ring / np.linalg.norm(ring, axis=1, keepdims=True)
    assert quality.classifier_test(rows(3, 400), outside).statistic > 0.9  # no linear classifier tells them apart


def test_the_frechet_distance_is_that_of_normal_laws():
    a, b = rows(0, 50, dim=3) @ np.diag([1.0, 2.0, 3.0]), rows(1, 60, 0.5, dim=3) @ rows(2, 3, dim=3)
    s, t = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    brute = np.sum((a.mean(0) - b.mean(0)) ** 2) + np.trace(s + t - 2 * np.real(linalg.sqrtm(s @ t)))
    assert quality.frechet_distance(a, b) == pytest.approx(brute, rel=1e-8)
    assert quality.frechet_distance(a, a) == pytest.approx(0, abs=1e-9)
    assert quality.frechet_distance(a, 3 * a + 1) > 1
    # W_2² of N(m, s²) and N(n, t²) is (m - n)² + (s - t)²
    one = rows(3, 40, dim=1)
    expected = (one.mean() + 1) ** 2 + one.var(ddof=1)
    assert quality.frechet_distance(one, 2 * one + 1) == pytest.approx(expected)
    assert quality.frechet_distance(a, b, features=lambda x: np.zeros((len(x), 2))) == pytest.approx(0)


def test_precision_and_recall_are_the_shares_they_name():
    data = np.concatenate([rows(0, 60, -5, 0.5), rows(1, 60, 5, 0.5)])
    found = quality.precision_recall(data, rows(2, 80, -5, 0.5))  # one of two modes
    assert found.precision > 0.9 and 0.4 < found.recall <= 0.5
    found = quality.precision_recall(data, np.concatenate([data, rows(3, 120, 30)]))  # half of it nowhere
    assert found.precision == 0.5 and found.recall == 1
    a, b, k = rows(4, 30), rows(5, 25, 1.0), 2
    radius = [sorted(np.linalg.norm(row - a, axis=1))[k] for row in a]
    brute = np.mean([any(np.linalg.norm(row - a[i]) <= radius[i] for i in range(30)) for row in b])
    assert quality.precision_recall(a, b, neighbours=k).precision == brute


def test_modes_are_counted_within_their_radius():
    centres = np.array([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]])
    draws = np.array([[0.1, 0.0], [0.0, 0.9], [10.0, 0.5], [5.0, 5.0], [0.0, 11.5]])
    found = quality.mode_coverage(draws, centres, 1.0)
    assert found.counts.tolist() == [2, 1, 0] and found.outside == pytest.approx(0.4)
    assert found.covered == 2
    assert quality.mode_coverage(draws + 100, centres, 1.0).covered == 0
    rare = np.concatenate([np.zeros((99, 2)), centres[1:2]])  # a mode of a hundredth is as good as dropped
    assert quality.mode_coverage(rare, centres, 1.0).covered == 1


def test_rows_learned_by_heart_are_found():
    train, held_out, fresh = (rows(i, 200) for i in range(3))
    copies = train[::2] + 1e-3
    found = quality.nearest_rows(copies, train, held_out)
    assert found.rows.tolist() == list(range(0, 200, 2)) and found.p_value < 1e-20
    np.testing.assert_allclose(found.distances, 1e-3 * np.sqrt(2), rtol=1e-6)
    # Uniform for fresh rows: below this in one seed of a thousand
    assert quality.nearest_rows(fresh, train, held_out).p_value > 1e-3
    assert np.isnan(quality.nearest_rows(fresh, train).p_value)


def test_features_of_a_classifier_trained_here_tell_digits_apart():
    train, test = datasets.load("digits", "none")
    x, held_out = (np.asarray(d.arrays["x"]) for d in (train, test))
    features = quality.classifier_features(x, train.labels, hidden=32)
    assert features(held_out).shape == (len(held_out), 32) and features(held_out).min() == 0
    assert np.mean(features.classify(held_out) == test.labels) > 0.9
    sure = features.confidence(held_out)
    assert ((0.1 <= sure) & (sure <= 1)).all()  # of ten labels the likeliest has at least a tenth
    right = features.classify(held_out) == test.labels
    assert sure[right].mean() > sure[~right].mean()
    with pytest.raises(BadData, match="rows of 3 numbers; expected 64"):
        features.classify(held_out[:, :3])
    zeros = held_out[np.asarray(test.labels) == 0]
    same = quality.frechet_distance(x, held_out, features)
    assert quality.frechet_distance(x, zeros, features) > 5 * same


@pytest.mark.slow
def test_draws_of_a_fitted_mixture_pass_and_those_of_a_poor_one_do_not():
    """Any model of the package: a mixture of three fitted to rows of three clusters, and of one."""
    rng = np.random.default_rng(0)
    x = (rng.normal(size=(1500, 2)) + 6 * np.stack([np.arange(1500) % 3, np.arange(1500) % 3 == 1], 1)).astype(
        np.float32
    )
    found = {}
    for k in (1, 3):
        run = fit(EM(GaussianMixture(k)), x[:750], key=0, num_chains=4)
        found[k] = quality.summary(run.generate(750)["x"], x[750:], x[:750], size=400)
    assert found[3]["p"] > 0.01 and found[3]["its p"] > 0.01 and found[3]["memorised, p"] > 0.01
    assert found[1]["p"] == 0.001 and found[1]["its p"] < 1e-4
    assert found[1]["precision"] < found[3]["precision"]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: quality.mmd_test(rows(0, 9), rows(1, 9, dim=3)), "b has rows of 3 numbers; expected 2"),
        (lambda: quality.mmd_test(np.ones((9, 2)), np.ones((9, 2))), "most rows are equal"),
        (lambda: quality.mmd_test(rows(0, 1), rows(0, 5)), "at least 2 rows"),
        (lambda: quality.mmd_test(np.ones(5), rows(0, 5)), "expected rows"),
        (lambda: quality.frechet_distance(rows(0, 5) * np.nan, rows(0, 5)), "a has values that are not finite"),
        (lambda: quality.classifier_test(rows(0, 5), rows(1, 50)), "at least 10 rows"),
        (lambda: quality.precision_recall(rows(0, 5), rows(1, 3)), "neighbours is 3; expected 1 to 2"),
    ],
)
def test_what_cannot_be_compared_is_refused(call, message):
    with pytest.raises(BadData, match=message):
        call()
