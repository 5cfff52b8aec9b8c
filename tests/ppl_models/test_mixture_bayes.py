"""The mixture's Gibbs and variational steps: invariance, closed forms, quadrature, and the other engine's densities.

Statistical tests have fixed seeds and reject at p < 1e-5, or |z| > 4.4, each.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from scipy import stats
from scipy.special import digamma, logsumexp

from inference.protocols import BlockedGibbs, ConjugateVariational
from ppl_models import GaussianMixture
from ppl_models.mixture_bayes import prior_of
from ppl_models.mixture_factors import Factors, draw_gammas, draw_wishart, kl

pytestmark = pytest.mark.slow  # statistical, thousands of chains

STRUCTURES = ["full", "tied", "diag", "spherical"]
K, D, N = 2, 2, 12
PRIOR = {"concentration": 2.0, "mean_loc": 0.5, "mean_scale": 2.0, "degrees_of_freedom": 5.0, "scale": 0.7}
PAIRS = 2000


def mixture(covariance: str) -> GaussianMixture:
    return GaussianMixture(K, covariance, **PRIOR)


@pytest.fixture(scope="module")
def x() -> np.ndarray:
    """40 rows from two overlapping Gaussians in the plane."""
    rng = np.random.default_rng(0)
    centres = np.array([[-1.5, 0.0], [1.0, 1.0]])
    return (centres[rng.integers(2, size=40)] + rng.normal(size=(40, 2)) * [0.8, 0.5]).astype(np.float32)


def z_scores(values: np.ndarray) -> np.ndarray:
    """Of the mean of independent draws (along the first axis) against zero."""
    return values.mean(0) / (values.std(0, ddof=1) / np.sqrt(len(values)))


def matrices(covariance: str, precisions: np.ndarray) -> np.ndarray:
    """Precisions of a draw, or of many, as matrices of every component (..., K, D, D)."""
    lead = precisions.shape[: -{"full": 3, "tied": 2, "diag": 2, "spherical": 1}[covariance]]
    if covariance == "full":
        return precisions
    if covariance == "tied":
        return np.broadcast_to(precisions[..., None, :, :], (*lead, K, D, D))
    return precisions.reshape(*lead, K, -1)[..., None] * np.eye(D)


@lru_cache
def simulated(covariance: str) -> dict[str, np.ndarray]:
    """Globals from the prior, by numpy and scipy, and rows given them; many times over."""
    rng, nu, s = np.random.default_rng(1), PRIOR["degrees_of_freedom"], PRIOR["scale"]
    shape = {"full": (PAIRS, K), "tied": (PAIRS,), "diag": (PAIRS, K, D), "spherical": (PAIRS, K)}[covariance]
    if covariance in ("full", "tied"):
        wishart = stats.wishart(D - 1 + nu, np.eye(D) / (nu * s**2))
        precisions = wishart.rvs(int(np.prod(shape)), random_state=rng).reshape(*shape, D, D)
    else:
        precisions = rng.gamma(nu / 2, 2 / (nu * s**2), shape)
    weights = rng.dirichlet(np.full(K, PRIOR["concentration"]), PAIRS)
    means = rng.normal(PRIOR["mean_loc"], PRIOR["mean_scale"], (PAIRS, K, D))
    z = (rng.random((PAIRS, N)) > weights[:, :1]).astype(int)
    roots = np.linalg.cholesky(np.linalg.inv(matrices(covariance, precisions)))
    pair = np.arange(PAIRS)[:, None]
    x = means[pair, z] + (roots[pair, z] @ rng.normal(size=(PAIRS, N, D, 1)))[..., 0]
    return {"weights": weights, "means": means, "precisions": precisions, "x": x.astype(np.float32)}


def swept(covariance: str, holes: bool) -> list[dict[str, np.ndarray]]:
    """The globals of every pair after 1, 4 and 16 Gibbs sweeps given its rows."""
    model, start = mixture(covariance), {n: v.astype(np.float32) for n, v in simulated(covariance).items()}
    rows = start.pop("x")
    observed = np.random.default_rng(2).random(rows.shape) < 0.6

    def one(key: jax.Array, params: Any, rows: jax.Array, observed: jax.Array) -> Any:
        data = {"x": jnp.where(observed, rows, 0.0), "x_observed": observed} if holes else {"x": rows}

        def sweep(params: Any, key: jax.Array) -> tuple[Any, Any]:
            key_rows, key_globals = jax.random.split(key)
            new = model.draw(key_globals, params, model.complete(key_rows, params, **data))
            new = {n: v.astype(jnp.float32) for n, v in new.items()}
            return new, new

        return jax.lax.scan(sweep, params, jax.random.split(key, 16))[1]

    keys = jax.random.split(jax.random.key(3), PAIRS)
    with jax.enable_x64(True):  # the scan is vectorised, and traced again for that
        draws = jax.jit(jax.vmap(one))(keys, start, rows, observed)
    return [{n: np.asarray(v[:, sweeps - 1], np.float64) for n, v in draws.items()} for sweeps in (1, 4, 16)]


@pytest.mark.parametrize(
    ("covariance", "holes"),
    [(c, False) for c in STRUCTURES]
    + [("full", True)]
    + [pytest.param(c, True, marks=pytest.mark.slow) for c in ("tied", "diag", "spherical")],
)
def test_gibbs_leaves_the_prior_invariant(covariance, holes):
    """Contract 3. Started at globals that x was simulated from, any number of sweeps given x leaves their
    distribution the prior. Known marginals and moments, and the start's joint features."""
    a, m, s, nu = PRIOR["concentration"], PRIOR["mean_loc"], PRIOR["mean_scale"], PRIOR["degrees_of_freedom"]
    inverse_gamma = stats.invgamma(nu / 2, scale=nu / 2 * PRIOR["scale"] ** 2)
    # E log|Λ| of Wishart(D - 1 + nu, I / (nu s²)), and of D precisions Gamma(nu / 2, nu s² / 2)
    halves = (D - 1 + nu - np.arange(D)) / 2 if covariance in ("full", "tied") else np.full(D, nu / 2)
    expected = (digamma(halves) - np.log(nu * PRIOR["scale"] ** 2 / 2)).sum()
    start = simulated(covariance)
    half = {n: v[PAIRS // 2 :] for n, v in start.items()}
    moved = swept(covariance, holes)
    for after in moved:
        assert stats.kstest(after["weights"][:, 0], stats.beta(a, (K - 1) * a).cdf).pvalue > 1e-5
        assert stats.kstest(after["means"][:, 1, 0], stats.norm(m, s).cdf).pvalue > 1e-5
        variances = np.linalg.inv(matrices(covariance, after["precisions"])[:, 0])[:, 0, 0]
        assert stats.kstest(variances, inverse_gamma.cdf).pvalue > 1e-5
        log_det = np.linalg.slogdet(matrices(covariance, after["precisions"]))[1].mean(1)
        spread = ((after["means"] - m) ** 2).mean((1, 2)) - s**2
        assert abs(z_scores(log_det - expected)) < 4.4 and abs(z_scores(spread)) < 4.4
        early = {n: v[: PAIRS // 2] for n, v in after.items()}  # independent of the start's other half
        for feature in (
            lambda g: g["precisions"].reshape(len(g["means"]), -1).sum(1),
            lambda g: np.abs(g["means"][:, 0] - g["means"][:, 1]).sum(1) * g["weights"][:, 0],
        ):
            assert stats.ks_2samp(feature(early), feature(half)).pvalue > 1e-5
    # The sweeps do move: after 16, weights are nearly uncorrelated with where they began, given small data.
    assert np.corrcoef(start["weights"][:, 0], moved[-1]["weights"][:, 0])[0, 1] < 0.9


def test_conditionals_of_one_component_are_conjugate(x):
    """With K = 1: p(m | Λ, x) normal and p(Λ | m, x) Wishart, by numpy; means and second moments of 4,000 draws."""
    model = GaussianMixture(1, **PRIOR)
    precision = np.array([[2.0, 0.7], [0.7, 1.0]], np.float32)
    params = {"weights": np.ones(1), "means": np.zeros((1, D)), "precisions": precision[None]}

    @jax.jit
    @jax.vmap
    def draw(key: jax.Array) -> Any:
        key_rows, key_globals = jax.random.split(key)
        new = model.draw(key_globals, params, model.complete(key_rows, params, x))
        return new["means"][0], new["precisions"][0]

    means, precisions = (np.asarray(v) for v in draw(jax.random.split(jax.random.key(4), 4000)))
    p0 = np.eye(D) / PRIOR["mean_scale"] ** 2
    spread = np.linalg.inv(p0 + len(x) * precision.astype(np.float64))
    centred = means - spread @ (p0 @ np.full(D, PRIOR["mean_loc"]) + precision @ x.sum(0, dtype=np.float64))
    assert np.abs(z_scores(centred)).max() < 4.4
    assert np.abs(z_scores(centred[:, :, None] * centred[:, None] - spread)).max() < 4.4
    residual = x[None] - means[:, None]
    nu = D - 1 + PRIOR["degrees_of_freedom"] + len(x)
    rate = PRIOR["degrees_of_freedom"] * PRIOR["scale"] ** 2 * np.eye(D) + np.einsum("sni,snj->sij", residual, residual)
    assert np.abs(z_scores(precisions - nu * np.linalg.inv(rate))).max() < 4.4


@pytest.mark.parametrize("block", [1, 3])
def test_wishart_and_dirichlet_draws_have_their_moments(block):
    """E Λ = ν V, Var Λ_ij = ν (V_ij² + V_ii V_jj), V = R⁻¹, with degrees of freedom hardly above b - 1."""
    rng = np.random.default_rng(5)
    root = rng.normal(size=(block, block)) + 2 * np.eye(block)
    rate, nu, a = root @ root.T, block - 0.5, np.array([0.3, 1.0, 4.0])

    @jax.jit
    @jax.vmap
    def draw(key: jax.Array) -> Any:
        key_gamma, key_normal = jax.random.split(key)
        with jax.enable_x64(True):
            weights, radii = draw_gammas(key_gamma, jnp.asarray(a), jnp.full((1, 1), nu), block)
            return weights, draw_wishart(key_normal, radii, jnp.asarray(rate)[None, None])[0, 0]

    weights, draws = (np.asarray(v) for v in draw(jax.random.split(jax.random.key(6), 40_000)))
    v = np.linalg.inv(rate)
    diagonal = np.diag(v)
    assert np.abs(z_scores(draws - nu * v)).max() < 4.4
    variance = nu * (v**2 + diagonal[:, None] * diagonal)
    assert np.abs(z_scores((draws - nu * v) ** 2 - variance)).max() < 4.4
    assert np.abs(z_scores(weights - a / a.sum())).max() < 4.4
    total = a.sum()
    expected = a / total * (1 - a / total) / (total + 1)
    assert np.abs(z_scores((weights - a / total) ** 2 - expected)).max() < 4.4


@pytest.mark.parametrize("covariance", STRUCTURES)
def test_coordinate_ascent_never_lowers_the_bound(covariance, x):
    """Forty steps from four rough starts, and the log joint in numpy at each of their ends."""
    model = mixture(covariance)
    assert isinstance(model, BlockedGibbs) and isinstance(model, ConjugateVariational)
    rng = np.random.default_rng(7)
    prior = jax.tree.map(np.asarray, _prior(model))
    start = jax.tree.map(lambda v: np.broadcast_to(v, (4, *v.shape)), prior)
    start = start._replace(loc=x[rng.integers(len(x), size=(4, K))].astype(float).reshape(start.loc.shape))

    @jax.jit
    @jax.vmap
    def climb(q: Factors) -> Any:
        def step(q: Factors, _: Any) -> tuple[Factors, jax.Array]:
            term, statistics = model.variational_e_step(q, x)
            return model.variational_m_step(q, statistics), term - model.variational_kl(q)

        q, bound = jax.lax.scan(step, q, None, 40)
        means = q.loc.reshape(K, D)
        values = {"weights": q.concentration / q.concentration.sum(), "means": means}
        values["precisions"] = q.mean_precisions.reshape(simulated(covariance)["precisions"].shape[1:])
        return bound, values, model.log_joint(values, x)

    with jax.enable_x64(True):
        bound, values, ours = jax.tree.map(np.asarray, climb(start))
    # Rounding: log densities of rows and responsibilities are float32, 1e-7 of their size, on 40 rows.
    assert np.diff(bound, axis=1).min() > -1e-4
    assert (bound[:, -1] > bound[:, 0] + 10).all()
    for i in range(4):
        expected = log_joint(covariance, {n: v[i] for n, v in values.items()}, x)
        np.testing.assert_allclose(ours[i], expected, rtol=1e-5)


def _prior(model: GaussianMixture) -> Factors:
    with jax.enable_x64(True):
        return prior_of(model, D)


def log_joint(covariance: str, values: dict[str, np.ndarray], x: np.ndarray) -> float:
    """log p(x, globals) by scipy."""
    nu, s, precisions = PRIOR["degrees_of_freedom"], PRIOR["scale"], values["precisions"]
    total = stats.dirichlet.logpdf(values["weights"], np.full(K, PRIOR["concentration"]))
    total += stats.norm.logpdf(values["means"], PRIOR["mean_loc"], PRIOR["mean_scale"]).sum()
    if covariance in ("full", "tied"):
        wishart = stats.wishart(D - 1 + nu, np.eye(D) / (nu * s**2))
        total += sum(wishart.logpdf(p) for p in precisions.reshape(-1, D, D))
    else:
        total += stats.gamma.logpdf(precisions, nu / 2, scale=2 / (nu * s**2)).sum()
    covariances = np.linalg.inv(matrices(covariance, precisions))
    parts = [stats.multivariate_normal.logpdf(x, m, c) for m, c in zip(values["means"], covariances, strict=True)]
    return total + logsumexp(np.log(values["weights"])[:, None] + np.array(parts), axis=0).sum()


@pytest.mark.parametrize("covariance", ["full", "diag"])
def test_draws_density_and_divergence_of_q_agree(covariance, x):
    """The mean over 4,000 draws of log q - log p is the KL, by the draws, the density and the formula."""
    model = mixture(covariance)
    prior = _prior(model)
    q = Factors(
        concentration=1.5 * np.asarray(prior.concentration),
        loc=np.asarray(prior.loc) + 0.3,
        precision=2 * np.asarray(prior.precision),
        degrees_of_freedom=1.5 * np.asarray(prior.degrees_of_freedom),
        rate=np.asarray(prior.rate) + 0.2,
    )

    @jax.jit
    @jax.vmap
    def densities(key: jax.Array) -> Any:
        draw = model.variational_draw(key, q)
        return model.variational_log_prob(q, draw), model.variational_log_prob(prior, draw)

    log_q, log_p = (np.asarray(v) for v in densities(jax.random.split(jax.random.key(8), 4000)))
    with jax.enable_x64(True):
        divergence = float(jax.jit(model.variational_kl)(q))
    assert divergence > 0.2
    assert abs(z_scores(log_q - log_p - divergence)) < 4.4


@lru_cache
def quadrature(values: tuple[float, ...]) -> tuple[float, float, float]:
    """Log evidence of K = D = 1, and the posterior mean and standard deviation of the mean, on a fine grid."""
    x = np.array(values)
    m, u = np.meshgrid(np.linspace(-4, 5, 1501), np.linspace(-5, 4, 1501), indexing="ij")  # u = log λ
    nu, s = PRIOR["degrees_of_freedom"], PRIOR["scale"]
    log_p = stats.norm.logpdf(m, PRIOR["mean_loc"], PRIOR["mean_scale"])
    log_p += stats.gamma.logpdf(np.exp(u), nu / 2, scale=2 / (nu * s**2)) + u
    log_p += sum(stats.norm.logpdf(value, m, np.exp(-u / 2)) for value in x)
    log_p += np.log(9 / 1500) + np.log(9 / 1500)
    evidence = logsumexp(log_p)
    p = np.exp(log_p - evidence)
    mean = (p * m).sum()
    return float(evidence), float(mean), float(np.sqrt((p * (m - mean) ** 2).sum()))


@pytest.mark.parametrize("covariance", ["full", "diag"])
def test_bound_lies_below_the_evidence_by_quadrature(covariance):
    """K = D = 1, twelve rows. The gap is the dependence of mean and precision, which is weak: below 0.1 nats."""
    x = np.random.default_rng(9).normal(1.0, 0.8, size=12).astype(np.float32)
    model = GaussianMixture(1, covariance, **PRIOR)

    @jax.jit
    def climb() -> Any:
        def step(_: Any, q: Factors) -> Factors:
            return model.variational_m_step(q, model.variational_e_step(q, x[:, None])[1])

        with jax.enable_x64(True):
            q = jax.lax.fori_loop(0, 30, step, prior_of(model, 1))
            return q, model.variational_e_step(q, x[:, None])[0] - model.variational_kl(q)

    q, bound = climb()
    evidence, mean, sd = quadrature(tuple(x.tolist()))
    assert evidence - 0.1 < float(bound) < evidence
    # Integrating the precision out pulls the mean's density about a little; a fiftieth of its spread is ample.
    assert abs(float(q.loc[0, 0, 0]) - mean) < sd / 50
    assert float(q.precision[0, 0, 0, 0]) ** -0.5 < sd  # under-dispersed


def test_kl_of_equal_factors_is_zero_and_wishart_kl_is_numpyro_gamma_in_one_dimension():
    one = np.ones((1, 1))
    with jax.enable_x64(True):
        p = Factors(jnp.ones(1), jnp.zeros((1, 1, 1)), jnp.ones((1, 1, 1, 1)), 3.0 * one, 2.0 * one[..., None, None])
        q = p._replace(degrees_of_freedom=5.0 * one, rate=0.7 * one[..., None, None])
        assert abs(float(kl(p, p))) < 1e-12
        expected = dist.kl.kl_divergence(dist.Gamma(2.5, 0.35), dist.Gamma(1.5, 1.0))
        np.testing.assert_allclose(float(kl(q, p)), float(expected), rtol=1e-9)


def test_missing_values_and_weights_reach_variational_bayes(x):
    """Rows repeated equal rows weighed; rows without any observed entry still cost what is unknown of the globals."""
    model = mixture("full")
    q = _prior(model)
    weight = np.arange(40, dtype=np.float32) % 3
    repeated = np.repeat(x, weight.astype(int), axis=0)
    term, moments = jax.jit(model.variational_e_step)(q, x, sample_weight=weight)
    expected, theirs = jax.jit(model.variational_e_step)(q, repeated)
    np.testing.assert_allclose(term, expected, rtol=1e-6)
    np.testing.assert_allclose(moments.count, theirs.count, rtol=1e-6)
    observed = np.ones(x.shape, bool)
    observed[:10] = False
    whole, _ = jax.jit(model.variational_e_step)(q, x[10:])
    holes, _ = jax.jit(model.variational_e_step)(q, x, x_observed=observed)
    assert float(holes) < float(whole)  # each adds a log normaliser that expectation made negative


@pytest.mark.parametrize("covariance", STRUCTURES)
def test_invariants_do_not_depend_on_the_labels(covariance):
    draws = {n: v[0].astype(np.float32) for n, v in simulated(covariance).items() if n != "x"}
    model = mixture(covariance)
    swapped = {n: v[::-1] if n in model.exchangeable else v for n, v in draws.items()}
    invariants = jax.jit(lambda draw: model.invariants(**draw))
    ours, theirs = invariants(draws), invariants(swapped)
    for name in ours:
        np.testing.assert_allclose(ours[name], theirs[name], rtol=1e-4, atol=1e-5)
    covariances = np.linalg.inv(matrices(covariance, draws["precisions"].astype(np.float64)))
    w, m = (np.asarray(draws[n], np.float64) for n in ("weights", "means"))
    mean = w @ m
    second = np.einsum("k,kij->ij", w, covariances + m[:, :, None] * m[:, None])
    np.testing.assert_allclose(ours["mean"], mean, rtol=1e-4)
    np.testing.assert_allclose(ours["covariance"], second - np.outer(mean, mean), rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(ours["log_determinant"], w @ np.linalg.slogdet(covariances)[1], rtol=1e-3)
    assert (np.diff(ours["sorted_weights"]) <= 0).all()
