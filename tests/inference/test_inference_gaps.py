"""Amortization and approximation gap where both are known: a linear model whose best Normal has a closed form."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import linear_vae_exact as exact
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from scipy import stats

from guides import AmortizedBernoulli, AmortizedNormal, Delta, Hamiltonian, MeanField
from inference import SVI, Incompatible, fit, inference_gaps
from inference.objectives import ELBO
from ppl_models import PPCA, SigmoidBeliefNetwork
from ppl_models.networks import Linear

W = np.array([[1.0, 0.8], [0.9, -0.1], [0.2, 0.7]])  # not orthogonal: the posterior's coordinates are correlated
NOISE = 0.6
X = (
    np.random.default_rng(0).normal(size=(30, 2)) @ W.T + NOISE * np.random.default_rng(1).normal(size=(30, 3))
).astype(np.float32)
A, B = np.array([[0.5, 0.1], [0.3, 0.0], [0.0, 0.4]]), np.array([0.7, 0.9])


def linear(x, num_data=None):
    w = numpyro.param("w", jnp.asarray(W))
    with numpyro.plate("data", num_data or len(x), subsample_size=len(x)):
        z = numpyro.sample("z", dist.Normal(jnp.zeros((len(x), 2)), 1).to_event(1))
        numpyro.sample("x", dist.Normal(z @ w.T, NOISE).to_event(1), obs=x)


def encoder(x, num_data=None):
    a = numpyro.param("a", jnp.asarray(A))
    with numpyro.plate("data", num_data or len(x), subsample_size=len(x)):
        numpyro.factor("wish", 3.0 * jnp.tanh(x[:, 0]))  # a term of the objective, and no part of q
        numpyro.sample("z", dist.Normal(x @ a, jnp.asarray(B)).to_event(1))


def at_start(model, guide, x=X, objective=ELBO()):
    return fit(SVI(model, guide, objective, optax.sgd(0.0)), x, key=0, num_steps=1)


def test_gaps_against_their_closed_forms():
    """KL(q || p(z | x)) of Normals; its least over diagonal ones has the posterior's mean and 1 / diag(precision)."""
    precision = np.eye(2) + W.T @ W / NOISE**2
    mean = X @ W @ np.linalg.inv(precision).T / NOISE**2
    evidence = stats.multivariate_normal(np.zeros(3), W @ W.T + NOISE**2 * np.eye(3)).logpdf(X)

    def kl(loc, scale):
        shift = np.einsum("ni,ij,nj->n", loc - mean, precision, loc - mean)
        trace = np.diag(precision) @ scale**2
        return 0.5 * (trace + shift - 2 - np.linalg.slogdet(precision)[1] - 2 * np.log(scale).sum())

    best, ours = kl(mean, 1 / np.sqrt(np.diag(precision))), kl(X @ A, B)
    gaps = inference_gaps(at_start(linear, encoder), X, num_steps=300)
    # 5,000 draws from a wide guide: log p(x) to its stated error, at four of them (6e-5).
    assert abs(gaps.evidence.mean - evidence.mean()) < 4 * gaps.evidence.mc_error < 0.05
    # The optimiser ends within 0.01 nats of the best Normal, and never above it but for Monte-Carlo error.
    error = 4 * gaps.best.mc_error
    assert -0.01 - error < gaps.best.mean - (evidence - best).mean() < error < 0.06
    assert abs(gaps.approximation.mean - best.mean()) < 4 * gaps.approximation.mc_error + 0.01
    assert abs(gaps.amortization.mean - (ours - best).mean()) < 4 * gaps.amortization.mc_error + 0.01
    # By row, which tells rows apart: 30 tests at five standard errors.
    rows = gaps.amortized.rows - (evidence - ours)
    assert (np.abs(rows) < 5 * np.sqrt(gaps.amortized.variance)).all()
    assert "amortization gap" in str(gaps) and f"{gaps.approximation.mean:.3f}" in str(gaps)


@pytest.mark.slow
def test_the_bound_of_a_guide_that_knows_its_own_draws_alone():
    """The Hamiltonian guide: the likelihood by one importance draw is a draw of the same bound."""
    x, guide = exact.rows(300), Hamiltonian(exact.MODEL, AmortizedNormal(2, Linear()), Linear(), num_steps=1)
    params = exact.fresh(guide, x[:3]) | {"decoder": exact.DECODER, "encoder": exact.DIAGONAL}
    params["reverse"] = jax.tree.map(jnp.zeros_like, params["reverse"])  # r(v | x, z) = N(0, I)
    run = replace(at_start(linear, encoder), algorithm=SVI(exact.MODEL, guide, ELBO(), optax.sgd(0.0)), params=params)
    gaps = inference_gaps(run, x, num_steps=1, num_particles=1)
    difference = gaps.evidence.rows - gaps.amortized.rows
    # 300 draws, at four standard errors (6e-5).
    assert abs(difference.mean()) < 4 * difference.std() / np.sqrt(300) < 1


def positive(x, num_data=None):
    with numpyro.plate("data", num_data or len(x), subsample_size=len(x)):
        rate = numpyro.sample("rate", dist.Gamma(2.0, jnp.ones(len(x))))
        numpyro.sample("x", dist.Poisson(rate), obs=x)


def lognormal(x, num_data=None):
    shift = numpyro.param("shift", 0.3)
    with numpyro.plate("data", num_data or len(x), subsample_size=len(x)):
        numpyro.sample("rate", dist.LogNormal(jnp.log(x + 2.0) - 0.7 + shift, 0.9))


@pytest.mark.slow
def test_positive_latents_by_quadrature():
    """The best LogNormal for a Gamma posterior, by brute force over a grid of its two parameters."""
    x = np.array([0, 1, 3, 7], np.int32)
    gaps = inference_gaps(at_start(positive, lognormal, x), x, num_steps=300)
    evidence = stats.nbinom(2, 0.5).logpmf(x)
    assert np.allclose(gaps.evidence.rows, evidence, atol=0.05)
    grid, weights = np.polynomial.hermite_e.hermegauss(60)
    weights = weights / weights.sum()
    for n, row in enumerate(x):
        m, s = np.meshgrid(np.log((row + 2) / 2) + np.linspace(-0.8, 0.4, 61), np.linspace(0.15, 1.2, 80))
        u = m[..., None] + s[..., None] * grid
        log_joint = stats.gamma(2).logpdf(np.exp(u)) + u + stats.poisson(np.exp(u)).logpmf(row)
        best = (weights * log_joint).sum(-1) + np.log(s) + 0.5 * (1 + np.log(2 * np.pi))
        # The grid is off by less than 0.002; the rest is Monte-Carlo error, four tests at four of them.
        assert abs(gaps.best.rows[n] - best.max()) < 4 * np.sqrt(gaps.best.variance[n]) + 0.01


def test_what_has_no_gap_is_refused():
    run = at_start(linear, encoder)

    def of(model, guide):
        return replace(run, algorithm=SVI(model, guide, ELBO(), optax.sgd(0.0)))

    bits, free = SigmoidBeliefNetwork((2,)), PPCA(1).marginal
    with pytest.raises(Incompatible, match=r"\['z1'\] are discrete"):
        inference_gaps(of(bits, AmortizedBernoulli((2,))), X)
    with pytest.raises(Incompatible, match="no continuous latents"):
        inference_gaps(of(free, MeanField(free)), X)
    with pytest.raises(Incompatible, match=r"the guide samples \['z'\].*with a density on just these"):
        inference_gaps(of(linear, Delta(linear)), X)


def test_memory_does_not_grow_with_the_particles():
    """5,000 importance draws take no more memory than 1,000: they are streamed through chunks."""
    from inference.posterior import _importance_rows
    from inference.protocols import Batch

    batch = Batch({"x": jnp.asarray(X)}, jnp.arange(len(X)), len(X))
    values = {"w": jnp.asarray(W), "a": jnp.asarray(A)}

    def temporary(particles):
        rows = jax.jit(_importance_rows(linear, encoder, particles).__wrapped__)
        return rows.lower(values, jax.random.key(0), batch).compile().memory_analysis().temp_size_in_bytes

    # Only the keys, 8 bytes a draw, are made beforehand.
    assert temporary(5000) < temporary(1000) + 20 * 4000
