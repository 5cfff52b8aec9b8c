"""Where a mixture's EM starts: clusters are found, missing entries and weights are heeded."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from ppl_models.gaussian_mixture import (
    GaussianMixture,
    k_means,
    k_means_plus_plus,
    random_responsibilities,
    random_rows,
)

STARTS = [k_means, k_means_plus_plus, random_rows, random_responsibilities]
CENTRES = np.array([[-20.0, 0.0, 0.0], [0.0, 20.0, 5.0], [20.0, 0.0, -5.0]])
MODEL = GaussianMixture(3)


@pytest.fixture(scope="module")
def rows() -> np.ndarray:
    """150 rows about three distant centres, a unit of noise."""
    rng = np.random.default_rng(0)
    return (np.repeat(CENTRES, 50, axis=0) + rng.normal(size=(150, 3))).astype(np.float32)


def many(start, *data) -> dict[str, np.ndarray]:
    """Eight starts."""
    keys = jax.random.split(jax.random.key(0), 8)
    params = jax.jit(jax.vmap(lambda key: start(MODEL, key, *data)))(keys)
    return {name: np.asarray(value) for name, value in params.items()}


@pytest.mark.parametrize("start", STARTS)
def test_starts_are_ready_for_em_and_differ(start, rows):
    params = many(start, rows)
    assert params["means"].dtype == np.float64 and params["covariances"].shape == (8, 3, 3, 3)
    np.testing.assert_allclose(params["weights"].sum(1), 1)
    assert (np.linalg.eigvalsh(params["covariances"]) > 0).all()
    assert (np.diff(params["means"][..., 0], axis=1) >= 0).all()
    if start is not k_means:  # which finds the same clusters from any seeds
        assert len(np.unique(params["means"][:, 0, 0])) >= 5  # of eight; the least mean may be the same row twice


def test_what_they_say_they_are(rows):
    found, seeds, chosen, mixed = (many(start, rows)["means"] for start in STARTS)
    # k-means++ from 3 distant clusters misses one with odds of about 1e-3; standard error 0.14, five of them.
    assert (np.abs(found - CENTRES).max((1, 2)) < 0.7).all()
    for means in (seeds, chosen):  # rows of the data, all different
        distance = np.abs(means[:, :, None] - rows).max(-1)
        assert distance.min(-1).max() < 1e-4
        assert (np.diff(np.sort(distance.argmin(-1), 1), axis=1) > 0).all()
    # Averages over 150 rows with weights of relative variance 1/2: standard error 16 sqrt(1.5 / 150) = 1.6.
    assert np.abs(mixed - rows.mean(0)).max() < 8 and np.abs(mixed - rows.mean(0)).max() > 0.1


def test_k_means_sees_past_holes(rows):
    """30% missing: the clusters are the same, and their spread is not shrunk by what is filled in."""
    seen = np.random.default_rng(1).random(rows.shape) > 0.3
    params = many(k_means, np.where(seen, rows, 0), seen)
    assert (np.abs(params["means"] - CENTRES).max((1, 2)) < 0.9).sum() >= 6  # rows of one entry fall anywhere
    good = np.abs(params["means"] - CENTRES).max((1, 2)) < 0.9
    variances = np.diagonal(params["covariances"][good], axis1=2, axis2=3)
    assert np.abs(variances - 1).max() < 2.5  # a few rows with a single entry are in the wrong cluster


@pytest.mark.parametrize("start", STARTS)
def test_rows_of_no_weight_play_no_part(start, rows):
    outlier = np.concatenate([rows, np.full((5, 3), 1e3, np.float32)])
    weight = np.concatenate([np.ones(150), np.zeros(5)]).astype(np.float32)
    params = many(start, outlier, None, weight)
    assert np.abs(params["means"]).max() < 30 and np.abs(params["covariances"]).max() < 1e3


def test_initial_is_k_means(rows):
    ours = MODEL.initial(jax.random.key(3), rows)
    for name, value in k_means(MODEL, jax.random.key(3), rows).items():
        np.testing.assert_array_equal(ours[name], value)
