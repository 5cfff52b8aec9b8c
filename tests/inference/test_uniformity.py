"""The exact test of uniformity against brute force, and its band against its p-value."""

from __future__ import annotations

import numpy as np
import pytest

from inference import uniformity


def statistic(u):
    """The smallest two-sided level, from the definition."""
    levels = uniformity._levels(len(u))
    counts = [(u <= z).sum() for z in uniformity.points(len(u))]
    return min(levels[i, c] for i, c in enumerate(counts))


@pytest.mark.parametrize("num", [7, 40])
def test_p_value_is_the_share_of_uniform_samples_that_stray_as_far(num):
    """Against 4,000 uniform samples at |z| < 4.5: five comparisons, false alarm 7e-6 each."""
    rng = np.random.default_rng(num)
    null = np.array([statistic(rng.uniform(size=num)) for _ in range(4000)])
    for shape in ((1.0, 1.0), (0.7, 1.0), (0.6, 0.6), (2.0, 2.0), (1.0, 1.4)):
        u = rng.beta(*shape, size=num)
        p = uniformity.p_value(u)
        share = (null <= statistic(u) * (1 + 1e-9)).mean()
        assert abs(share - p) < 4.5 * np.sqrt(p * (1 - p) / len(null)) + 1e-12


def test_with_two_numbers_and_one_point_by_hand():
    """K = 2: one count below 1/2, Binomial(2, 1/2); levels 1/2, 1, 1/2."""
    assert uniformity.p_value(np.array([0.1, 0.9])) == pytest.approx(1.0)
    assert uniformity.p_value(np.array([0.1, 0.2])) == pytest.approx(0.5)


def test_far_from_uniform_is_seen_and_uniform_is_not():
    even = (np.arange(200) + 0.5) / 200
    assert uniformity.p_value(even) > 0.999
    assert uniformity.p_value(even**2) < 1e-6
    assert uniformity.p_value(np.full(200, 0.5)) < 1e-6


@pytest.mark.parametrize("level", [0.2, 0.01, 1e-4])
def test_leaving_the_band_is_being_rejected(level):
    num, rng = 60, np.random.default_rng(1)
    low, high = uniformity.band(num, level)
    z = uniformity.points(num)
    assert (low <= z).all() and (z <= high).all()
    seen = set()
    for power in np.repeat(np.linspace(0.3, 3, 40), 3):
        u = rng.uniform(size=num) ** power
        share = (u[:, None] <= z).mean(0)
        outside = bool(((share < low - 1e-12) | (share > high + 1e-12)).any())
        assert outside == (uniformity.p_value(u) <= level)
        seen.add(outside)
    assert seen == {True, False}
