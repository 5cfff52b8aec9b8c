"""The exact steps of Bayesian PCA: no drift, quadrature, bounds that rise to what they should, pruning."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpyro import distributions as dist
from numpyro import handlers
from numpyro.diagnostics import effective_sample_size
from numpyro.infer.util import log_density
from scipy.special import digamma, gammaln, logsumexp

from ppl_models import linear_gaussian
from ppl_models.bayesian_pca import BayesianPCA, effective_dimension

pytestmark = pytest.mark.slow  # statistical, thousands of chains

FAMILIES = {"coupled": lambda model: model, "mean-field": lambda model: model.mean_field}
TINY = BayesianPCA(1, precision_shape=1.5, precision_rate=0.5, mean_scale=3.0, noise_shape=2.0, noise_scale=0.5)


@pytest.fixture(scope="module")
def plane() -> np.ndarray:
    """300 rows in 10 columns: three directions of signal, standard deviations 5, 3 and 2 of the noise, off centre."""
    rng = np.random.default_rng(0)
    axes, _ = np.linalg.qr(rng.normal(size=(10, 3)))
    signal = rng.normal(size=(300, 3)) * [5.0, 3.0, 2.0] @ axes.T
    return (0.4 * (signal + rng.normal(size=(300, 10))) + np.linspace(-2, 2, 10)).astype(np.float32)


def loud(plane: np.ndarray) -> np.ndarray:
    """The same signals under a twentieth of the noise: up to 100 standard deviations of it."""
    noise = 0.4 * np.random.default_rng(1).normal(size=plane.shape)
    return (20 * (plane - plane.mean(0)) + noise).astype(np.float32)


@pytest.fixture(scope="module")
def few() -> np.ndarray:
    return np.random.default_rng(3).normal(size=(5, 2)).astype(np.float32) @ np.float32([[1.5, 1.0], [0.0, 0.6]]) + 0.5


class Exact(NamedTuple):
    evidence: float  # nats
    means: dict[str, float]  # of the posterior


@pytest.fixture(scope="module")
def exact(few) -> Exact:
    """Evidence and posterior means of the tiny model on ``few``, by quadrature.

    In u = w / sigma alpha integrates out, p(u) = Gamma(a + 1) / Gamma(a) b^a / 2 pi / (b + |u|² / 2)^(a + 1), and so
    does mu; what is left is the grid over log sigma² and u in polar coordinates.
    """
    x, (n, d), model = few.astype(np.float64), few.shape, TINY
    a, b, s2 = model.precision_shape, model.precision_rate, model.mean_scale**2
    log_v, log_r, angle = np.linspace(-5, 4, 120), np.linspace(-7, 5, 160), np.arange(60) * np.pi / 60
    v, r, angle = np.exp(log_v)[:, None, None], np.exp(log_r)[None, :, None], angle[None, None]
    axis = np.stack(np.broadcast_arrays(np.cos(angle), np.sin(angle)), -1)
    mean = x.mean(0)
    scatter = (x - mean).T @ (x - mean)
    # C = v (I + r² e eᵀ): determinant v² (1 + r²), inverse (I - r² / (1 + r²) e eᵀ) / v, e a unit vector
    along = np.einsum("...i,ij,...j->...", axis, scatter, axis)
    log_p = -0.5 * (n - 1) * d * np.log(2 * np.pi) - 0.5 * d * np.log(n)
    log_p = log_p - 0.5 * (n - 1) * (2 * np.log(v) + np.log1p(r**2))
    log_p = log_p - 0.5 * (np.trace(scatter) - r**2 / (1 + r**2) * along) / v
    # the mean of x ~ N(0, v (s² I + (I + r² e eᵀ) / n))
    across, whole = s2 + 1 / n, s2 + (1 + r**2) / n
    shadow = (axis @ mean) ** 2
    log_p = log_p - np.log(2 * np.pi) - np.log(v) - 0.5 * np.log(across * whole)
    log_p = log_p - 0.5 * (shadow / whole + (mean @ mean - shadow) / across) / v
    log_p = log_p + gammaln(a + 1) - gammaln(a) + a * np.log(b) - np.log(2 * np.pi) - (a + 1) * np.log(b + r**2 / 2)
    prior = dist.InverseGamma(model.noise_shape, model.noise_scale)
    log_p = log_p + np.asarray(prior.log_prob(v)) + np.log(v)  # d sigma² = sigma² d log sigma²
    log_p = log_p + 2 * np.log(r) + np.log(2)  # du = r² d log r d angle, over half of the circle
    log_p = log_p + np.log((log_v[1] - log_v[0]) * (log_r[1] - log_r[0]) * np.pi / 60)
    evidence = logsumexp(log_p)
    weight = np.exp(log_p - evidence)
    # E[mu | u, sigma²] = s² (s² I + (I + r² e eᵀ) / n)⁻¹ x̄
    centre = s2 * (mean / across + axis * ((axis @ mean) * (1 / whole - 1 / across))[..., None])
    return Exact(
        float(evidence),
        {
            "log noise": float((weight * np.log(v)).sum()),
            "log signal": float((weight * np.log1p(r**2)).sum()),
            "log alpha": float((weight * (digamma(a + 1) - np.log(b + r**2 / 2))).sum()),
            "mean": float((weight[..., None] * centre).sum((0, 1, 2))[0]),
        },
    )


def summaries(draws):
    """The functions of draws whose posterior means the quadrature knows."""
    signal = (draws["loadings"] ** 2).sum((-1, -2)) / draws["noise_variance"]
    return {
        "log noise": np.log(draws["noise_variance"]),
        "log signal": np.log1p(signal),
        "log alpha": np.log(draws["loadings_precision"][..., 0]),
        "mean": draws["mean"][..., 0],
    }


@partial(jax.jit, static_argnums=(0, 3))
def gibbs(model, key, x, sweeps):
    """Draws of four chains, float32, (4, sweeps, ...); a step of all chains at once, as the loop of ``fit`` does."""

    def sweep(params, key):
        key_z, key_g = jax.random.split(key)
        return model.draw(key_g, params, model.complete(key_z, params, x))

    def step(params, key):
        params = jax.vmap(sweep)(params, jax.random.split(key, 4))
        return params, jax.tree.map(lambda v: v.astype(jnp.float32), params)

    start = jax.vmap(lambda key: model.initial(key, x))(jax.random.split(key, 4))
    draws = jax.lax.scan(step, start, jax.random.split(key, sweeps))[1]
    return jax.tree.map(lambda v: jnp.swapaxes(v, 0, 1), draws)


@partial(jax.jit, static_argnums=0)
def ascend(model, key, x, observed=None):
    """Three starts, 200 steps: q before each step, and its bound in nats; leaves (200, 3, ...)."""

    def step(q):
        term, statistics = model.variational_e_step(q, x, observed)
        with jax.enable_x64(True):
            bound = term - model.variational_kl(q)
        return model.variational_m_step(q, statistics), (q, bound)

    start = jax.vmap(lambda key: model.variational_initial(key, x, observed))(jax.random.split(key, 3))
    return jax.lax.scan(lambda q, _: jax.vmap(step)(q), start, length=200)[1]


def last(found, start=0):
    """q and its bound at the end of one start."""
    return jax.tree.map(lambda v: v[-1, start], found)


def bound(model, q, x, observed=None):
    with jax.enable_x64(True):
        return float(model.variational_e_step(q, x, observed)[0]) - float(model.variational_kl(q))


# ---- Gibbs


@pytest.mark.parametrize("holes", [False, True])
def test_gibbs_does_not_drift(holes):
    """A parameter drawn from the prior and rows drawn from it: sweeps leave their joint distribution as it is.

    With and without a quarter of the entries missing. Changes of 9 functions after 1, 4 and 16 sweeps, 4,000
    independent pairs: 27 two-sided tests at 4 standard errors, a false alarm in 1 of 580 seeds.
    """
    model = BayesianPCA(3, precision_shape=3.0, precision_rate=2.0, mean_scale=1.0, noise_shape=3.0, noise_scale=1.0)
    pairs = 4000

    def simulate(key):
        trace = handlers.trace(handlers.seed(handlers.uncondition(model), key)).get_trace(jnp.zeros((6, 4)))
        names = ("loadings", "loadings_precision", "mean", "noise_variance")
        return {name: trace[name]["value"] for name in names}, trace["x"]["value"]

    def functions(params, x):
        w, alpha, mean, noise = (params[n] for n in ("loadings", "loadings_precision", "mean", "noise_variance"))
        size = (w**2).sum(-2) / noise[..., None]
        gap = jnp.log(alpha[..., 0]) - jnp.log(alpha[..., 1])
        second = w[..., 0, :] * w[..., 1, :] / noise[..., None]
        return {
            "log noise": jnp.log(noise),
            "log alpha": jnp.log(alpha).sum(-1),
            "log size": jnp.log(size).sum(-1),
            "alpha and size": gap * (jnp.log(size[..., 0]) - jnp.log(size[..., 1])),
            "angle": gap * jnp.tanh((w[..., 0] * w[..., 1]).sum(-1) / noise),
            "mean": (mean**2).sum(-1) / noise,
            "mean and loadings": jnp.tanh(((w * mean[..., None]).sum(-2) ** 2).sum(-1) / noise**2),
            "mean and x": (mean * x.mean(-2)).sum(-1) / noise,
            "loadings and x": jnp.tanh(second.sum(-1)) * jnp.tanh(x[..., 0] * x[..., 1] / noise[..., None]).mean(-1),
        }

    params, x = jax.jit(jax.vmap(simulate))(jax.random.split(jax.random.key(5), pairs))
    observed = jax.random.uniform(jax.random.key(7), x.shape) > 0.25 if holes else jnp.ones(x.shape, bool)
    x = jnp.where(observed, x, 0.0)
    before = functions(params, x)

    @jax.jit
    def run(key, params):
        def sweep(key, params, x, observed):
            key_z, key_g = jax.random.split(key)
            return model.draw(key_g, params, model.complete(key_z, params, x, observed if holes else None))

        def step(params, key):
            params = jax.vmap(sweep)(jax.random.split(key, pairs), params, x, observed)
            params = jax.tree.map(lambda v: v.astype(jnp.float32), params)
            return params, params

        return jax.lax.scan(step, params, jax.random.split(key, 16))[1]

    history = run(jax.random.key(6), params)
    for sweeps in (1, 4, 16):
        after = functions(jax.tree.map(lambda v, i=sweeps: v[i - 1], history), x)
        for name, value in after.items():
            change = np.asarray(value - before[name], np.float64)
            z = change.mean() / change.std() * np.sqrt(pairs)
            assert abs(z) < 4, (sweeps, name, z)


def test_gibbs_has_the_posterior_means_of_quadrature(few, exact):
    """Four tests at 4 Monte-Carlo standard errors: a false alarm in 1 of 4,000 seeds."""
    draws = jax.tree.map(lambda v: np.asarray(v[:, 200:], np.float64), gibbs(TINY, jax.random.key(0), few, 5200))
    for name, values in summaries(draws).items():
        error = values.std() / np.sqrt(effective_sample_size(values))
        assert abs(values.mean() - exact.means[name]) < 4 * error, (name, values.mean(), exact.means[name], error)
        assert error < 0.05


def test_gibbs_mixes_at_high_signal_to_noise(plane):
    """Signals of up to 100 noise standard deviations, where z given W and W given z hardly move."""
    x = loud(plane)
    draws = gibbs(BayesianPCA(6), jax.random.key(0), x, 600)
    size = np.log((np.asarray(draws["loadings"][:, 200:], np.float64) ** 2).sum((-1, -2)))
    assert effective_sample_size(size) > 200


def test_gibbs_draws_the_same_moments_in_chunks(plane, monkeypatch):
    model = BayesianPCA(6)
    params = model.initial(jax.random.key(0), plane)
    whole = jax.tree.map(np.asarray, model.complete(jax.random.key(1), params, plane))
    monkeypatch.setattr(linear_gaussian, "CHUNK", 10 * 64)
    parts = jax.tree.map(np.asarray, model.complete(jax.random.key(1), params, plane))
    # the same float64 sums in another order
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-10, atol=1e-10), parts, whole)


# ---- variational Bayes


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("signal", ["moderate", "loud", "holes"])
def test_bound_rises_from_any_start(family, signal, plane):
    model, x = FAMILIES[family](BayesianPCA(6)), loud(plane) if signal == "loud" else plane
    observed = np.random.default_rng(2).random(x.shape) > 0.25 if signal == "holes" else None
    history = np.asarray(ascend(model, jax.random.key(0), x, observed)[1])
    # float64 sums of order 1e4 nats carry rounding of order 1e-10
    assert np.diff(history, axis=0).min() > -1e-7
    assert (history[-1] > history[0] + 100).all()
    # rotation and scales leave nothing that creeps: all starts are at one optimum within 60 steps
    if signal != "holes":  # which slow coordinate ascent down, as EM
        np.testing.assert_allclose(history[60], history[-1].max(), atol=0.1)


def test_bounds_lie_below_the_evidence_and_coupling_helps(few, exact):
    reached = {name: float(last(ascend(f(TINY), jax.random.key(0), few))[1]) for name, f in FAMILIES.items()}
    assert reached["mean-field"] < reached["coupled"] < exact.evidence
    assert exact.evidence - reached["mean-field"] < 3.0  # nats, of five rows


def test_a_row_without_a_number_adds_nothing(few):
    """The bound of five rows and of a sixth that is all missing; not so for the count of rows of a scale's move."""
    observed = np.arange(6)[:, None] * np.ones(2) < 5
    x = np.concatenate([few, few[:1]])
    q = TINY.variational_initial(jax.random.key(0), x, observed)
    assert bound(TINY, q, x, observed) == pytest.approx(bound(TINY, q, few, observed[:5]), rel=1e-12)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("holes", [False, True])
def test_a_mask_or_weights_of_one_change_nothing(family, holes, few):
    model = FAMILIES[family](TINY)
    rest = (np.ones(few.shape, bool) if holes else None, None if holes else np.ones(5, np.float32))
    q, masked = (model.variational_initial(jax.random.key(0), few, *more) for more in ((), rest))
    for _ in range(3):
        assert bound(model, q, few) == pytest.approx(bound(model, masked, few, rest[0]), rel=1e-12)
        q = model.variational_m_step(q, model.variational_e_step(q, few)[1])
        masked = model.variational_m_step(masked, model.variational_e_step(masked, few, *rest)[1])


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("holes", [False, True])
def test_bound_is_the_expectation_that_it_claims_to_be(family, holes, few):
    """Its two parts against draws of q(globals), at a q that is no optimum.

    For any z the log normaliser of q(z_n) is E_q(g)[log p(x_n, z_n | g)] - log q(z_n), and the divergence is
    E_q(g)[log q(g) - log p(g)]. Two tests at 4 standard errors, a false alarm in 1 of 8,000 seeds.
    """
    model = FAMILIES[family](TINY)
    observed = np.array([[1, 1], [1, 0], [0, 1], [1, 1], [0, 0]], bool) if holes else None
    q = jax.tree.map(lambda v: v[2, 0], ascend(model, jax.random.key(0), few, observed)[0])
    with jax.enable_x64(True):
        m = np.ones(few.shape) if observed is None else observed * 1.0
        tau = q.noise_precision.mean
        w, mean = q.coefficients[:, 0], q.coefficients[:, -1]
        spread = jnp.broadcast_to(q.spread, (2, 2, 2))  # of each column
        precision = np.asarray(1 + m @ (tau * w**2 + spread[:, 0, 0]))
        centre = np.asarray(m * (few - mean) @ (tau * w) - m @ spread[:, 0, 1]) / precision
    z = centre + np.random.default_rng(0).normal(size=5) / np.sqrt(precision)
    log_q_z = np.asarray(dist.Normal(centre, precision**-0.5).log_prob(z)).sum()

    def one(key):
        g = model.variational_draw(key, q)
        log_q = model.variational_log_prob(q, g).astype(jnp.float32)
        g = jax.tree.map(lambda v: v.astype(jnp.float32), g)
        joint, trace = log_density(
            model, (few,), {"x_observed": observed}, g | {"z": jnp.asarray(z, jnp.float32)[:, None]}
        )
        rows = sum(trace[n]["fn"].log_prob(trace[n]["value"]).sum() for n in ("x", "z"))
        return rows, log_q - (joint - rows)

    keys = jax.random.split(jax.random.key(1), 20_000)
    rows, divergence = (np.asarray(v, np.float64) for v in jax.jit(jax.vmap(one))(keys))
    term, _ = model.variational_e_step(q, few, observed)
    for draws, expected in ((rows - log_q_z, float(term)), (divergence, float(model.variational_kl(q)))):
        error = draws.std() / np.sqrt(len(draws))
        assert abs(draws.mean() - expected) < 4 * error
        assert error < 0.05


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("holes", [False, True])
def test_converged_q_is_stationary(family, holes, few):
    """No small change of any hyperparameter of q raises the bound: it is the family's optimum."""
    model = FAMILIES[family](TINY)
    observed = np.array([[1, 1], [1, 0], [1, 1], [1, 1], [0, 1]], bool) if holes else None
    q, _ = last(ascend(model, jax.random.key(0), few, observed))
    best = bound(model, q, few, observed)
    leaves, tree = jax.tree.flatten(jax.tree.map(np.asarray, q))
    rng = np.random.default_rng(0)
    for i, leaf in enumerate(leaves):
        for _ in range(3):
            change = 1e-3 * rng.normal(size=leaf.shape) * np.abs(leaf)
            change = (change + change.mT) / 2 if leaf.ndim == 3 else change  # covariances
            for sign in (1, -1):
                moved = [*leaves[:i], leaf + sign * change, *leaves[i + 1 :]]
                with jax.enable_x64(True):
                    moved = jax.tree.unflatten(tree, [jnp.asarray(v) for v in moved])
                # a loss of order 1e-6 nats; the steps have converged to 1e-9
                assert bound(model, moved, few, observed) < best + 1e-9, i


def test_e_step_sums_do_not_depend_on_chunks(plane, monkeypatch):
    model = BayesianPCA(6)
    q = model.variational_initial(jax.random.key(0), plane)
    whole = model.variational_e_step(q, plane)
    monkeypatch.setattr(linear_gaussian, "CHUNK", 10 * 64)
    # the same float64 sums in another order; those of z are near zero
    same = partial(np.testing.assert_allclose, rtol=1e-11, atol=1e-11)
    jax.tree.map(same, model.variational_e_step(q, plane), whole)


# ---- relevance


def test_superfluous_columns_are_pruned(plane):
    """Three directions of signal: of six columns three keep small precisions, by all inferences."""
    model = BayesianPCA(6)
    for family in FAMILIES.values():
        q = jax.tree.map(np.asarray, last(ascend(family(model), jax.random.key(0), plane))[0])
        alpha = q.loadings_precision.mean
        assert alpha[3:].min() > 100 * alpha[:3].max()
        assert int(effective_dimension(q.coefficients[:, :-1], 1 / q.noise_precision.mean)) == 3
    draws = gibbs(model, jax.random.key(0), plane, 600)
    dimension = np.asarray(effective_dimension(draws["loadings"], draws["noise_variance"]))[:, 200:]
    assert (dimension == 3).mean() > 0.95
    # a superfluous column may hold what noise seems to, r = 2 √(D / N) = 0.37 of its variance; then alpha is D / r = 27
    alpha = np.sort(np.asarray(draws["loadings_precision"])[:, 200:], axis=-1)
    assert np.median(alpha[..., 3]) > 10 * np.median(alpha[..., 2])


@pytest.mark.parametrize("case", ["a constant column", "all columns constant", "more columns than rows"])
def test_odd_data_stay_finite(case, plane):
    x = plane.copy()
    if case == "a constant column":
        x[:, 2] = 5.1
    elif case == "all columns constant":
        x[:] = 5.1
    else:
        x = np.random.default_rng(0).normal(size=(8, 30)).astype(np.float32)
    q, history = ascend(BayesianPCA(6), jax.random.key(0), x)
    assert all(np.isfinite(v).all() for v in jax.tree.leaves((q, history)))
    # near the smallest noise that its prior allows, bounds are of order 1e5 nats: rounding of order 1e-10 of it
    assert np.diff(np.asarray(history), axis=0).min() > -1e-9 * np.abs(history).max() - 1e-7
    draws = gibbs(BayesianPCA(6), jax.random.key(0), x, 600)
    assert all(np.isfinite(v).all() for v in jax.tree.leaves(draws))
