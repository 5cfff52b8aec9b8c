"""The mutual information gap: 1 where codes are factors, 0 where they are noise, and scikit-learn's numbers."""

import numpy as np
import pytest
from scipy import integrate, stats
from sklearn.metrics import mutual_info_score

from inference import BadData, mutual_information_gap

GRID = np.indices((4, 5, 3)).reshape(3, -1).T  # every combination of three factors once


def test_a_unit_for_each_factor_has_a_gap_of_one():
    codes = np.column_stack([np.exp(GRID[:, 2]), np.zeros(len(GRID)), -3.0 * GRID[:, 0], GRID[:, 1] ** 3])
    found = mutual_information_gap(codes, GRID)
    np.testing.assert_allclose(found.gaps, 1, atol=1e-12)
    assert found.mean == pytest.approx(1)
    np.testing.assert_allclose(found.entropies, np.log([4, 5, 3]))
    assert found.information.argmax(axis=1).tolist() == [2, 3, 0]
    # Factors are names, not numbers.
    named = np.array([["a", "b", "c", "d", "e"][i] for i in GRID[:, 1]])[:, None]
    assert mutual_information_gap(codes, named).mean == pytest.approx(1)


@pytest.mark.parametrize(("num_bins", "told"), [(20, np.log(20)), (40, np.log(40)), (80, np.log(40))])
def test_a_unit_tells_no_more_than_its_bins_or_its_factor_hold(num_bins, told):
    """40 values, 100 rows each, with noise that keeps them apart: bins hold two, one, or half of a value."""
    values = np.repeat(np.arange(40), 100)
    z = values + np.random.default_rng(0).uniform(-0.4, 0.4, len(values))
    found = mutual_information_gap(np.column_stack([z, np.zeros(len(z))]), values[:, None], num_bins=num_bins)
    np.testing.assert_allclose(found.information, [[told, 0]], atol=1e-12)
    assert found.mean == pytest.approx(told / np.log(40))


def test_codes_that_know_nothing():
    """2 n I of independent ones is chi-squared with (bins - 1)(values - 1) degrees of freedom."""
    rng, n = np.random.default_rng(0), 20_000
    found = mutual_information_gap(rng.normal(size=(n, 6)), rng.integers(10, size=(n, 4)))
    freedom = 19 * 9
    levels = stats.chi2(freedom).sf(2 * n * found.information)
    assert levels.min() > 1e-5 and levels.max() < 1 - 1e-5  # 24 of them: false alarm 5e-4
    assert 0 <= found.mean < 2 * np.sqrt(2 * freedom) / (2 * n) * 4 / np.log(10)  # a gap of a few such deviations


def test_two_units_that_say_the_same_have_no_gap():
    both = GRID[:, 0] + 10 * GRID[:, 1]
    found = mutual_information_gap(np.column_stack([both, -both, np.zeros(len(GRID))]), GRID[:, :2])
    np.testing.assert_allclose(found.information[:, :2], np.log([[4, 4], [5, 5]]))
    np.testing.assert_allclose(found.gaps, 0, atol=1e-12)


def test_information_is_that_of_scikit_learn():
    rng = np.random.default_rng(1)
    factors = rng.integers(5, size=(300, 3))
    codes = (factors @ rng.integers(3, size=(3, 4)) + rng.integers(4, size=(300, 4))).astype(float)
    found = mutual_information_gap(codes, factors, num_bins=100)
    expected = [[mutual_info_score(v, z) for z in codes.T] for v in factors.T]
    np.testing.assert_allclose(found.information, expected, atol=1e-12)
    most = np.sort(expected, axis=1)
    gaps = (most[:, -1] - most[:, -2]) / [mutual_info_score(v, v) for v in factors.T]
    np.testing.assert_allclose(found.gaps, gaps)


def test_many_bins_of_a_noisy_unit_give_its_information_by_quadrature():
    rng, n = np.random.default_rng(2), 100_000
    v = rng.integers(2, size=n)
    z = 2.0 * v - 1 + rng.normal(size=n)

    def term(x):  # E[log p(z | v) - log p(z)], the same for both values
        p, q = stats.norm.pdf(x - 1), stats.norm.pdf(x + 1)
        return p * np.log(2 * p / (p + q))

    exact = integrate.quad(term, -8, 10)[0]
    found = mutual_information_gap(np.column_stack([z, rng.normal(size=n)]), v[:, None], num_bins=50)
    # Four standard errors of a mean of n log ratios, whose deviation is below 0.5; bins lose and bias less than 0.002.
    assert abs(found.information[0, 0] - exact) < 4 * 0.5 / np.sqrt(n) + 0.002


def test_what_has_no_gap_is_refused():
    codes, factors = np.random.default_rng(0).normal(size=(6, 2)), np.arange(6)[:, None]
    for bad, message in (
        ((codes[:, :1], factors), r"codes have shape \(6, 1\).*at least two units"),
        ((codes, factors[:5]), r"factors \(5, 1\); expected .* of the same rows"),
        ((codes, factors[:, 0]), r"factors \(6,\)"),
        ((codes * np.nan, factors), "codes are not finite"),
        ((codes, np.column_stack([factors, 0 * factors])), r"factors \[1\] are the same in all rows"),
    ):
        with pytest.raises(BadData, match=message):
            mutual_information_gap(*bad)
    with pytest.raises(ValueError, match="num_bins is 1; expected a whole number of at least 2"):
        mutual_information_gap(codes, factors, num_bins=1)
