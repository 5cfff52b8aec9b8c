"""The table of all families: one scale for their likelihoods, and a tiny run. All seeds are fixed."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import norm

from ppl.recipe import load
from ppl.values import kind, parts
from ppl_models.datasets import Dataset

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(scope="module")
def zoo():
    """The recipe's own module."""
    return sys.modules[load(EXAMPLES / "generative_zoo.py").main.__module__]


def setting(zoo, x, levels, **options):
    data = Dataset("made", {"x": x.astype(np.float32)}, image_shape=(1, x.shape[1]))
    sizes = {"hidden": 4, "latent_dim": 2, "steps": 2, "batch_size": 8, "seed": 0} | options
    return zoo.Setting(data, data, levels, **sizes)


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (-1.0, 1.0)])
def test_a_density_bounds_the_mass_of_levels_from_below_and_nearly_meets_it(zoo, low, high):
    """p = N(m, s²) in each of two pixels of 4 levels: P(k) is a difference of distribution functions."""
    levels, width, rng = 4, high - low, np.random.default_rng(0)
    k = rng.integers(0, levels, (4000, 2))
    at = setting(zoo, k / (levels - 1), levels)
    v = at.filled(at.train, low, high)
    np.testing.assert_allclose(at.rounded(v, low, high), k / (levels - 1))
    law = norm(low + 0.5 * width, 0.4 * width)
    bound = at.log_mass(law.logpdf(v).sum(-1), width)
    edges = low + width * np.arange(levels + 1) / levels
    mass = np.log(np.diff(law.cdf(edges)))[k].sum(-1)
    # Jensen: log of a mean over a cell, where the density changes by a third, against the mean of its log
    loss = float((mass - bound).mean())
    error = (mass - bound).std() / np.sqrt(len(k))
    assert 0 < loss - 3 * error and loss < 0.05


def test_draws_outside_of_the_levels_are_the_nearest_of_them(zoo):
    at = setting(zoo, np.zeros((3, 4)), 17)
    np.testing.assert_array_equal(at.rounded([[-0.3, 0.0, 0.999, 1.7]]), [[0, 0, 1, 1]])
    np.testing.assert_array_equal(at.rounded([[-1.3, -1.0, 0.0, 1.7]], -1.0, 1.0), [[0, 0, 0.5, 1]])


@pytest.mark.slow
def test_every_family_at_a_tiny_size(zoo):
    results = zoo.main(num_train=200, num_held_out=60, hidden=8, latent_dim=3, steps=30, batch_size=50, size=40)
    assert [kind(part) for _, part in parts(results)] == ["table", "figure", "text"]
    control, *rows = next(iter(results.values()))
    assert all(list(row) == list(control) for row in rows)  # one table
    assert [row["model"] for row in rows] == list(zoo.FAMILIES)
    assert control["memorised, p"] < 1e-6  # they are the training images
    kinds = {row["model"]: row["it is"] for row in rows}
    assert kinds["PixelCNN"] == "exact" and kinds["Wasserstein GAN"] == "none"
    # Eight hidden units: log Z is enumerated, and the density exact.
    assert kinds["Gaussian RBM"] == kinds["PPCA"] == "density"
    for row in rows:
        if row["it is"] != "none":
            # No model of 17 levels says more than 0 nats; uniform ones say -181, and few steps make none far worse.
            assert -400 < float(row["log P, nats"]) < 0, row["model"]
            assert row["bits a pixel"] == pytest.approx(-float(row["log P, nats"]) / (64 * np.log(2)), abs=1e-3)
        assert row["fit, s"] > 0 and row["draw 100, s"] > 0
