"""N(mu, W Wᵀ + Psi): float64 densities and gradients in float32 where the noise is small, and whole draws."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as numpyro_dist
import pyro.distributions as pyro_dist
import pytest
import torch
from scipy.stats import multivariate_normal

from ppl_models.low_rank_normal import low_rank_normal

D, Q, NOISE = 60, 3, 3e-3


@pytest.fixture(scope="module")
def case():
    """Mean, loadings and noise variance (float32), 50 rows drawn from them with noise of a thousandth, and a mask."""
    rng = np.random.default_rng(0)
    mean, loadings = rng.normal(size=D), rng.normal(size=(D, Q))
    x = rng.normal(size=(50, Q)) @ loadings.T + mean + NOISE * rng.normal(size=(50, D))
    parameters = [np.asarray(v, np.float32) for v in (mean, loadings, np.full(D, NOISE**2))]
    observed = rng.random(x.shape) > 0.3
    observed[7] = False
    return parameters, x.astype(np.float32), observed


def engine(name, parameters, observed):
    """The distribution of one engine, and what makes an array its own."""
    if name == "numpyro":
        dist, array = numpyro_dist, jnp.asarray
    else:
        dist, array = pyro_dist, torch.as_tensor
    mean, loadings, noise = (array(v) for v in parameters)
    return low_rank_normal(dist, mean, loadings, noise, None if observed is None else array(observed)), array


@pytest.mark.parametrize("name", ["numpyro", "pyro"])
@pytest.mark.parametrize("holes", [False, True])
def test_float32_keeps_the_density_of_float64(case, name, holes):
    """Against scipy on the same float32 numbers. About 240 nats a row, of which a difference of squares loses one."""
    parameters, x, observed = case
    mean, loadings, noise = (v.astype(np.float64) for v in parameters)
    covariance = loadings @ loadings.T + np.diag(noise)
    seen = observed if holes else np.ones_like(observed)
    expected = [
        multivariate_normal(mean[o], covariance[np.ix_(o, o)]).logpdf(row[o].astype(float)) if o.any() else 0.0
        for row, o in zip(x, seen, strict=True)
    ]
    normal, array = engine(name, parameters, observed if holes else None)
    found = np.asarray(normal.log_prob(array(np.where(seen, x, np.float32(np.nan)))))
    # x, of order 1, is subtracted with errors of 1e-7, a row's 60 residuals with 4e-5 of their deviation: 1e-2 at most
    np.testing.assert_allclose(found, expected, atol=1e-2)
    assert abs(np.mean(found - expected)) < 2e-3


@pytest.mark.parametrize("holes", [False, True])
def test_gradient_is_that_of_float64(case, holes):
    """What NUTS follows, against the dense formula differentiated in float64."""
    parameters, x, observed = case
    seen = observed if holes else np.ones_like(observed)

    def total(parameters):
        mean, loadings, noise = parameters
        normal = low_rank_normal(numpyro_dist, mean, loadings, noise, observed if holes else None)
        return normal.log_prob(jnp.where(seen, x, jnp.nan)).sum()

    def dense(parameters):
        mean, loadings, noise = parameters
        m = jnp.asarray(seen, jnp.float64)
        covariance = m[:, :, None] * (loadings @ loadings.T + jnp.diag(noise)) * m[:, None] + jax.vmap(jnp.diag)(1 - m)
        residual = m * (x - mean)
        solved = jnp.linalg.solve(covariance, residual[..., None])[..., 0]
        return -0.5 * ((residual * solved).sum() + jnp.linalg.slogdet(covariance)[1].sum())

    found = jax.jit(jax.grad(total))([jnp.asarray(v) for v in parameters])
    with jax.enable_x64(True):
        expected = jax.grad(dense)([jnp.asarray(v, jnp.float64) for v in parameters])
    for here, there in zip(found, expected, strict=True):
        # residuals to 4e-5 of their deviation
        np.testing.assert_allclose(here, there, atol=1e-3 * np.abs(there).max())


@pytest.mark.parametrize("name", ["numpyro", "pyro"])
def test_draws_are_of_whole_rows(case, name):
    """Mean and covariance of 20,000 draws of the first three columns, in a row without a seen entry as in others.

    24 averages at 4.5 standard errors: false alarms 1.6e-4.
    """
    (mean, loadings, noise), _, observed = case
    noise = noise + np.float32(0.5)
    normal, _ = engine(name, (mean, loadings, noise), observed[6:8])
    assert tuple(normal.batch_shape) == (2,) and tuple(normal.event_shape) == (D,)
    if name == "numpyro":
        draws = np.asarray(normal.sample(jax.random.key(0), (20_000,)), np.float64)
        np.testing.assert_allclose(normal.variance[1], (loadings**2).sum(1) + noise, rtol=1e-6)
    else:
        torch.manual_seed(0)
        draws = normal.sample((20_000,)).numpy().astype(np.float64)
    np.testing.assert_array_equal(normal.mean[1], mean)
    for row in range(2):
        centred = draws[:, row, :3] - mean[:3]
        products = centred[:, :, None] * centred[:, None]
        for values, expected in (
            (centred, np.zeros(3)),
            (products, (loadings @ loadings.T + np.diag(noise))[:3, :3]),
        ):
            error = values.std(0) / np.sqrt(len(values))
            assert (np.abs(values.mean(0) - expected) < 4.5 * error).all()
