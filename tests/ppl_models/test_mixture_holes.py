"""A mixture of rows with missing entries against brute-force marginals and conditionals, in both engines."""

from __future__ import annotations

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

import ppl_models.mixture_rows as module
from ppl_models.gaussian_mixture import GaussianMixture

STRUCTURES = ["full", "tied", "diag", "spherical"]
N, K, D = 60, 3, 3


@pytest.fixture(scope="module")
def rows() -> tuple[np.ndarray, np.ndarray]:
    """Rows with zeros where entries are missing, and the mask: a third missing, row 0 whole, row 1 all missing."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(N, D)) * [1.0, 2.0, 0.5] + rng.integers(3, size=(N, 1))
    seen = rng.random((N, D)) > 1 / 3
    seen[0], seen[1] = True, False
    return np.where(seen, x, 0).astype(np.float32), seen


def parameters(covariance: str) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    roots = 0.4 * rng.normal(size=(K, D, D)) + np.eye(D)
    matrices = roots @ roots.transpose(0, 2, 1)
    variances = np.diagonal(matrices, axis1=1, axis2=2)
    covariances = {"full": matrices, "tied": matrices[0], "diag": variances, "spherical": variances[:, 0]}
    return {
        "weights": np.array([0.2, 0.3, 0.5]),
        "means": rng.normal(size=(K, D)),
        "covariances": covariances[covariance],
    }


def matrices(params: dict, covariance: str) -> np.ndarray:
    values = params["covariances"]
    if covariance in ("full", "tied"):
        return np.broadcast_to(values, (K, D, D))
    return np.stack([np.eye(D) * v for v in values])


def log_joint(params: dict, covariance: str, x: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """log p(x_observed, z = k) by scipy, (N, K)."""
    out = np.tile(np.log(params["weights"]), (len(x), 1))
    for n, o in enumerate(seen):
        for k, c in enumerate(matrices(params, covariance)):
            if o.any():
                out[n, k] += stats.multivariate_normal(params["means"][k][o], c[np.ix_(o, o)]).logpdf(x[n, o])
    return out


def expected_moments(params: dict, covariance: str, x: np.ndarray, seen: np.ndarray) -> tuple[np.ndarray, ...]:
    """sum r, sum r E[x] and sum r E[x xᵀ] over the conditionals of what is missing, float64."""
    joint = log_joint(params, covariance, x, seen)
    r = np.exp(joint - logsumexp(joint, -1, keepdims=True))
    first, second = np.zeros((K, D)), np.zeros((K, D, D))
    for n, o in enumerate(seen):
        for k, c in enumerate(matrices(params, covariance)):
            mean, spread = params["means"][k].copy(), np.zeros((D, D))
            gain = c[np.ix_(~o, o)] @ np.linalg.inv(c[np.ix_(o, o)])
            mean[~o] += gain @ (x[n, o] - mean[o])
            mean[o] = x[n, o]
            spread[np.ix_(~o, ~o)] = c[np.ix_(~o, ~o)] - gain @ c[np.ix_(o, ~o)]
            first[k] += r[n, k] * mean
            second[k] += r[n, k] * (np.outer(mean, mean) + spread)
    return r, first, second


@pytest.mark.parametrize("covariance", STRUCTURES)
def test_e_step_equals_brute_force(covariance, rows):
    x, seen = rows
    model, params = GaussianMixture(K, covariance), parameters(covariance)
    log_likelihood, moments = jax.jit(model.e_step)(params, x, seen)
    evidence = logsumexp(log_joint(params, covariance, x, seen), -1)
    assert float(log_likelihood) == pytest.approx(evidence.sum(), rel=1e-6)  # rows are float32 about a float32 point
    assert evidence[1] == pytest.approx(0)  # nothing seen

    r, first, second = expected_moments(params, covariance, x, seen)
    o = np.asarray(moments.origin)
    n = r.sum(0)
    about = second - first[:, :, None] * o - first[:, None] * o[:, None] + n[:, None, None] * np.outer(o, o)
    want = {
        "full": about,
        "tied": about.sum(0),
        "diag": np.diagonal(about, axis1=1, axis2=2),
        "spherical": np.trace(about, axis1=1, axis2=2),
    }[covariance]
    # Responsibilities are float32: 1e-7 for each of 60 rows of size up to 10 squared.
    np.testing.assert_allclose(moments.count, n, atol=1e-5)
    np.testing.assert_allclose(moments.first, first - n[:, None] * o, atol=3e-5)
    np.testing.assert_allclose(moments.second, want, atol=3e-4)
    np.testing.assert_allclose(r[1], params["weights"])


@pytest.mark.parametrize("covariance", STRUCTURES)
def test_program_and_posterior_score_what_is_seen_in_both_engines(covariance, rows):
    x, seen = rows
    params = parameters(covariance)
    joint = log_joint(params, covariance, x, seen)
    responsibilities = np.exp(joint - logsumexp(joint, -1, keepdims=True))
    values = {name: jnp.asarray(v, jnp.float32) for name, v in params.items()}
    model = GaussianMixture(K, covariance)

    @jax.jit
    def numpyro_terms(z):
        with handlers.seed(rng_seed=0), handlers.substitute(data=values | {"z": z}):
            trace = handlers.trace(model).get_trace(jnp.asarray(x), x_observed=jnp.asarray(seen))
            guide = handlers.trace(model.posterior).get_trace(jnp.asarray(x), x_observed=jnp.asarray(seen))
            draw = trace["x"]["fn"].sample(jax.random.key(1), (2000,))
        log_joint = trace["z"]["fn"].log_prob(z) + trace["x"]["fn"].log_prob(x)
        return log_joint, guide["z"]["fn"].probs, draw.mean(0)

    ours = [numpyro_terms(jnp.full(N, k)) for k in range(K)]
    np.testing.assert_allclose(np.stack([o[0] for o in ours], -1), joint, atol=3e-5)  # float32 throughout
    np.testing.assert_allclose(ours[0][1], responsibilities, atol=1e-5)
    # Draws are of whole rows, of which only the seen entries are scored. 5 standard errors of 180 means.
    deviation = np.sqrt(np.diagonal(matrices(params, covariance)[0]) / 2000)
    assert (np.abs(ours[0][2] - params["means"][0]) < 5 * deviation).all()

    other = GaussianMixture(K, covariance, ppl=pyro)
    data = {"x_observed": torch.tensor(seen)}
    substitutes = {n: torch.tensor(np.asarray(v)) for n, v in model.site_values(params).items()}
    conditioned = poutine.condition(other, substitutes | {"z": torch.zeros(N, dtype=torch.long)})
    nodes = poutine.trace(conditioned).get_trace(torch.tensor(x), **data).nodes
    theirs = nodes["z"]["fn"].log_prob(nodes["z"]["value"]) + nodes["x"]["fn"].log_prob(torch.tensor(x))
    np.testing.assert_allclose(theirs, joint[:, 0], atol=1e-4)  # covariances went through float32 precisions
    guide = poutine.trace(poutine.condition(other.posterior, substitutes)).get_trace(torch.tensor(x), **data)
    np.testing.assert_allclose(guide.nodes["z"]["fn"].probs, responsibilities, atol=1e-5)


@pytest.mark.parametrize("covariance", STRUCTURES)
def test_a_mask_of_ones_changes_nothing_and_chunks_add_up(covariance, rows, monkeypatch):
    x = np.random.default_rng(2).normal(size=(600, D)).astype(np.float32)
    seen = np.random.default_rng(3).random((600, D)) > 0.3
    model, params = GaussianMixture(K, covariance), parameters(covariance)
    whole, masked, holed = jax.jit(
        lambda x, ones, seen: (model.e_step(params, x), model.e_step(params, x, ones), model.e_step(params, x, seen))
    )(x, np.ones_like(seen), seen)
    assert abs(float(holed[0]) - float(whole[0])) > 100
    monkeypatch.setattr(module, "_chunk_rows", lambda numbers: 256)  # two whole chunks, and one that overlaps
    parts = jax.jit(lambda x, seen: model.e_step(params, x, seen))(x, seen)
    assert float(masked[0]) == pytest.approx(float(whole[0]), rel=1e-6)
    assert float(parts[0]) == pytest.approx(float(holed[0]), rel=1e-6)
    new, new_masked, new_holed, new_parts = (model.m_step(part[1]) for part in (whole, masked, holed, parts))
    for name in new:  # means about different origins, of float32 rows
        np.testing.assert_allclose(new_masked[name], new[name], atol=1e-6)
        np.testing.assert_allclose(new_parts[name], new_holed[name], atol=1e-6)


@pytest.mark.parametrize("covariance", STRUCTURES)
def test_the_likelihood_of_what_is_seen_never_falls(covariance, rows):
    x, seen = rows
    model = GaussianMixture(2, covariance, reg_covar=0.0)

    def step(params, _):
        log_likelihood, statistics = model.e_step(params, x, seen)
        return model.m_step(statistics), log_likelihood

    start = model.initial(jax.random.key(0), x, seen)
    total = np.asarray(jax.jit(lambda start: jax.lax.scan(step, start, length=30)[1])(start))
    assert np.diff(total).min() > -1e-5 and total[-1] > total[0] + 1  # responsibilities are float32


@pytest.mark.parametrize("covariance", [pytest.param("full", marks=pytest.mark.slow), "diag"])
def test_missing_entries_of_whole_numbers_are_drawn_as_of_real_ones(covariance):
    """Counts with holes: the same key gives the same completed rows, whatever their dtype."""
    rng = np.random.default_rng(0)
    x, seen = rng.poisson(5.0, (50, 2)), rng.random((50, 2)) < 0.7
    model = GaussianMixture(2, covariance)
    params = model.site_values(model.initial(jax.random.key(0), x=x * seen, x_observed=seen))
    whole, real = (
        model.complete(jax.random.key(1), params, rows * seen, x_observed=seen) for rows in (x, x.astype(np.float32))
    )
    for a, b in zip(whole, real, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12)
