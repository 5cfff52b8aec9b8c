"""The mixture whose means' prior scales with the precisions: closed forms by scipy, both engines, and what uses it.

Statistical tests have fixed seeds and reject at |z| > 4.4, p < 1e-5, each.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pyro
import pytest
import torch
from numpyro import handlers
from pyro import poutine
from scipy import stats
from scipy.special import logsumexp

from inference import NUTS, Gibbs, VariationalBayes, fit
from ppl_models import GaussianMixture
from ppl_models.mixture_bayes import prior_of
from ppl_models.mixture_coupled import Coupled

STRUCTURES = ["full", "tied", "diag", "spherical"]
SLOW = pytest.mark.slow
D = 2
PRIOR = {"concentration": 2.0, "mean_loc": 0.5, "mean_count": 0.3, "degrees_of_freedom": 5.0, "scale": 0.7}
ROWS = (np.random.default_rng(0).normal(size=(15, D)) @ [[1.0, 0.4], [0.0, 0.6]] + [2.0, -1.0]).astype(np.float32)


def blocks_of(covariance: str) -> tuple[list[list[int]], bool]:
    """Columns of each block, and whether all blocks have one precision; of one component."""
    blocks = [[0, 1]] if covariance in ("full", "tied") else [[0], [1]]
    return blocks, covariance == "spherical"


def posterior(covariance: str, x: np.ndarray) -> tuple[float, np.ndarray, list[np.ndarray], list[float]]:
    """κ, the location, and rates and degrees of freedom of the precisions of one component; Bishop's formulas."""
    blocks, shared = blocks_of(covariance)
    n, nu, s, k0 = len(x), PRIOR["degrees_of_freedom"], PRIOR["scale"], PRIOR["mean_count"]
    mean, m0 = x.mean(0), np.full(D, PRIOR["mean_loc"])
    rates, freedoms = [], []
    for block in blocks:
        centred, pull = (x - mean)[:, block], (mean - m0)[block]
        scatter = centred.T @ centred + k0 * n / (k0 + n) * np.outer(pull, pull)
        rates.append(nu * s**2 * np.eye(len(block)) + scatter)
        freedoms.append(len(block) - 1 + nu + n)
    if shared:
        prior = nu * s**2
        rates, freedoms = [sum(rate - prior for rate in rates) + prior], [nu + D * n]
    return k0 + n, (k0 * m0 + n * mean) / (k0 + n), rates, freedoms


def evidence(covariance: str, x: np.ndarray) -> float:
    """log p(x) of one component, row after row: a Student t given the rows before."""
    blocks, shared = blocks_of(covariance)
    total = 0.0
    for i, row in enumerate(x):
        if i:
            kappa, loc, rates, freedoms = posterior(covariance, x[:i])
        else:
            kappa, loc = PRIOR["mean_count"], np.full(D, PRIOR["mean_loc"])
            nu = PRIOR["degrees_of_freedom"]
            rates = [nu * PRIOR["scale"] ** 2 * np.eye(len(b)) for b in blocks][: 1 if shared else None]
            freedoms = [len(b) - 1 + nu for b in blocks][: 1 if shared else None]
        if shared:
            scale = (kappa + 1) / kappa * rates[0][0, 0] / freedoms[0]
            total += stats.multivariate_t(loc, scale * np.eye(D), df=freedoms[0]).logpdf(row)
            continue
        for block, rate, freedom in zip(blocks, rates, freedoms, strict=True):
            df = freedom - len(block) + 1
            total += stats.multivariate_t(loc[block], (kappa + 1) / kappa * rate / df, df=df).logpdf(row[block])
    return total


def climbed(model: GaussianMixture, x: np.ndarray, steps: int) -> tuple[Any, np.ndarray]:
    """q and the bound in nats along so many steps from the start."""

    @jax.jit
    def climb() -> Any:
        def step(q: Any, _: Any) -> Any:
            term, statistics = model.variational_e_step(q, x)
            return model.variational_m_step(q, statistics), term - model.variational_kl(q)

        start = model.variational_initial(jax.random.key(0), x)
        with jax.enable_x64(True):
            return jax.lax.scan(step, start, None, steps)

    return jax.tree.map(np.asarray, climb())


@pytest.mark.parametrize(
    "covariance", ["full", pytest.param("tied", marks=SLOW), pytest.param("diag", marks=SLOW), "spherical"]
)
def test_of_one_component_the_bound_is_the_evidence_and_q_the_posterior(covariance):
    """Nothing is left that the factors would have to do with each other. Log densities of rows are float64 here."""
    model = GaussianMixture(1, covariance, **PRIOR)
    q, bound = climbed(model, ROWS, 3)
    x = ROWS.astype(np.float64)
    np.testing.assert_allclose(bound[1:], evidence(covariance, x), rtol=1e-6)
    assert bound[0] < bound[1] - 1e-3  # or nothing was shown
    kappa, loc, rates, freedoms = posterior(covariance, x)
    assert isinstance(q, Coupled)
    np.testing.assert_allclose(q.count, kappa, rtol=1e-6)
    np.testing.assert_allclose(q.loc.ravel(), loc, rtol=1e-6)
    np.testing.assert_allclose(q.rate.reshape(np.shape(rates)), rates, rtol=1e-5)
    np.testing.assert_allclose(q.degrees_of_freedom.ravel(), freedoms, rtol=1e-6)


@pytest.mark.parametrize("covariance", [pytest.param(c, marks=SLOW) for c in STRUCTURES[:2]] + ["diag"])
def test_no_step_lowers_the_bound_of_two_components(covariance):
    """Two clusters and five rows between; beyond the rounding of float32 responsibilities, 1e-7 of log densities."""
    rng = np.random.default_rng(1)
    x = np.concatenate([ROWS, rng.normal(0.0, 0.5, (20, D)), rng.normal([1.0, -0.5], 0.4, (5, D))]).astype(np.float32)
    _, bound = climbed(GaussianMixture(2, covariance, **PRIOR), x, 25)
    assert np.diff(bound).min() > -1e-4 and bound[-1] > bound[0] + 1


@SLOW
@pytest.mark.parametrize("covariance", ["full", "spherical"])
def test_draws_density_and_divergence_of_q_agree(covariance):
    """The mean over 2,000 draws of log q - log p is the KL, by the draws, the density and the formula."""
    model = GaussianMixture(2, covariance, **PRIOR)
    with jax.enable_x64(True):
        prior = jax.tree.map(np.asarray, prior_of(model, D))
    q = Coupled(
        1.5 * prior.concentration, prior.loc + 0.3, 2.5 * prior.count, 1.5 * prior.degrees_of_freedom, prior.rate + 0.2
    )

    @jax.jit
    @jax.vmap
    def densities(key: jax.Array) -> Any:
        draw = model.variational_draw(key, q)
        return model.variational_log_prob(q, draw), model.variational_log_prob(prior, draw)

    log_q, log_p = (np.asarray(v) for v in densities(jax.random.split(jax.random.key(8), 2000)))
    with jax.enable_x64(True):
        divergence = float(jax.jit(model.variational_kl)(q))
    difference = log_q - log_p - divergence
    assert divergence > 0.2
    assert abs(difference.mean()) < 4.4 * difference.std(ddof=1) / len(difference) ** 0.5


@pytest.mark.parametrize("covariance", [pytest.param(c, marks=SLOW) for c in STRUCTURES[:2]] + STRUCTURES[2:])
def test_the_program_is_the_prior_of_the_steps_in_both_engines(covariance):
    """log p(x, globals) of a draw, by the program's sites, by the steps, and by Pyro."""
    model = GaussianMixture(2, covariance, **PRIOR)

    @jax.jit
    def drawn() -> Any:
        with handlers.seed(rng_seed=0):
            tr = handlers.trace(handlers.block(model, hide=["z", "x"])).get_trace(jnp.asarray(ROWS))
        sites = {n: tr[n] for n in ("weights", "means", "precisions")}
        return {n: s["value"] for n, s in sites.items()}, sum(s["fn"].log_prob(s["value"]) for s in sites.values())

    values, log_prior = jax.tree.map(np.asarray, drawn())
    covariances = np.linalg.inv(values["precisions"]) if covariance in ("full", "tied") else 1 / values["precisions"]
    if covariance == "tied":
        covariances = np.broadcast_to(covariances, (2, D, D))
    elif covariance != "full":
        covariances = covariances.reshape(2, -1)[..., None] * np.eye(D)
    parts = zip(values["means"], covariances, strict=True)
    log_x = logsumexp(
        np.log(values["weights"])[:, None] + [stats.multivariate_normal.logpdf(ROWS, m, c) for m, c in parts], axis=0
    )
    expected = float(log_prior) + log_x.sum()
    np.testing.assert_allclose(jax.jit(model.log_joint)(values, ROWS), expected, rtol=1e-4)
    scaled = [c / PRIOR["mean_count"] for c in covariances]
    means = sum(
        stats.multivariate_normal.logpdf(m, np.full(D, 0.5), c) for m, c in zip(values["means"], scaled, strict=True)
    )
    other = GaussianMixture(2, covariance, **PRIOR, ppl=pyro)
    tensors = {n: torch.as_tensor(np.array(v)) for n, v in values.items()}
    nodes = poutine.trace(poutine.condition(other, data=tensors)).get_trace(torch.as_tensor(ROWS)).nodes
    found = {n: float(nodes[n]["fn"].log_prob(nodes[n]["value"]).sum()) for n in ("weights", "means", "precisions")}
    assert found["means"] == pytest.approx(means, rel=1e-4, abs=1e-4)
    assert sum(found.values()) == pytest.approx(float(log_prior), rel=1e-4, abs=1e-4)


@SLOW
@pytest.mark.parametrize("covariance", STRUCTURES)
def test_gibbs_draws_the_posterior_of_one_component(covariance):
    """Independent draws: a mean entry is Student t, by Kolmogorov-Smirnov; and E Λ = ν R⁻¹."""
    model, x = GaussianMixture(1, covariance, **PRIOR), ROWS.astype(np.float64)
    draws = fit(Gibbs(model, num_warmup=1), ROWS, key=0, num_steps=2000).draws.posterior
    kappa, loc, rates, freedoms = posterior(covariance, x)
    df = freedoms[0] - len(rates[0]) + 1
    t = stats.t(df, loc[0], (rates[0][0, 0] / kappa / df) ** 0.5)
    assert stats.kstest(draws["means"][0, :, 0, 0], t.cdf).pvalue > 1e-5
    precisions = draws["precisions"][0].reshape(2000, *np.shape(rates))
    difference = precisions - np.array(freedoms)[:, None, None] * np.linalg.inv(rates)
    assert np.abs(difference.mean(0) / difference.std(0, ddof=1) * 2000**0.5).max() < 4.4


@SLOW
def test_gibbs_nuts_and_structured_variational_bayes_agree():
    """Two clusters apart, so that labels hold globals together but little: means within a fifth of a deviation."""
    rng = np.random.default_rng(2)
    x = np.concatenate([rng.normal(-2, 0.5, (30, D)), rng.normal(2, 0.7, (40, D))]).astype(np.float32)
    model = GaussianMixture(2, "diag", **PRIOR)
    gibbs = fit(Gibbs(model, num_warmup=100), x, key=0, num_steps=1000, num_chains=2).draws.posterior["means"]
    nuts = fit(NUTS(model, num_warmup=300), x, key=0, num_steps=1000, num_chains=2).draws.posterior["means"]
    bayes = fit(VariationalBayes(model), x, key=0)
    assert np.diff(bayes.history["bound"][0]).min() > -1e-6
    for found in (nuts, bayes.draws.posterior["means"]):
        found, sd = np.sort(found, axis=2), gibbs.std((0, 1))
        assert (np.abs(found.mean((0, 1)) - np.sort(gibbs, axis=2).mean((0, 1))) < sd / 5).all()
        np.testing.assert_allclose(found.std((0, 1)), sd, rtol=0.15)
    assert bayes.generate(3)["x"].shape == (3, D)


def test_bad_counts_are_refused():
    for value in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="mean_count is .*; give a positive number of rows, or None"):
            GaussianMixture(2, mean_count=value)
