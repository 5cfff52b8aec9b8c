"""Gibbs and variational Bayes for PPCA and factor analysis, against the prior and quadrature."""

from __future__ import annotations

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpyro.infer.util import log_density
from scipy.special import digamma, gammaln, logsumexp
from scipy.stats import invgamma, kstest, norm

from ppl_models.ppca import PPCA, FactorAnalysis

pytestmark = pytest.mark.slow  # statistical, thousands of chains

PRIOR = {"loadings_scale": 1.2, "mean_scale": 0.8, "noise_shape": 2.5, "noise_scale": 1.5}
MODELS = [PPCA, FactorAnalysis]


def prior_draws(model, columns, sets, rng):
    """Globals from the prior, each with a leading axis of ``sets``."""
    event = () if isinstance(model, PPCA) else (columns,)
    psi = invgamma(model.noise_shape, scale=model.noise_scale).rvs((sets, *event), random_state=rng)
    unit = np.sqrt(psi).reshape(sets, -1, 1)
    w = rng.normal(size=(sets, columns, model.latent_dim)) * unit * model.loadings_scale
    mu = rng.normal(size=(sets, columns)) * unit[..., 0] * model.mean_scale
    return {"loadings": w, "mean": mu, "noise_variance": psi}


def rows_given(params, rows, rng):
    """Rows x (sets, rows, D) from the model at these globals, float32."""
    sets, columns, q = params["loadings"].shape
    z = rng.normal(size=(sets, rows, q))
    unit = np.sqrt(params["noise_variance"]).reshape(sets, 1, -1)
    noise = rng.normal(size=(sets, rows, columns)) * unit
    x = np.einsum("snq,sdq->snd", z, params["loadings"]) + params["mean"][:, None] + noise
    return x.astype(np.float32)


@cache
def steps(program):
    """Variational steps, compiled once for all tests: initial, e_step, m_step, kl."""
    names = ("initial", "e_step", "m_step", "kl")
    return tuple(jax.jit(getattr(program, f"variational_{name}")) for name in names)


def as_float64(params):
    with jax.enable_x64(True):
        return {name: jnp.asarray(value, jnp.float64) for name, value in params.items()}


# ---- Gibbs


def run_gibbs(model, x, start, sweeps):
    """Draws (sweep, chain, ...) of the globals, from ``start`` with a leading chain axis."""

    @jax.jit
    def run(start):
        def sweep(key, params):
            first, second = jax.random.split(key)
            return model.draw(second, params, model.complete(first, params, x))

        def body(params, step):
            keys = jax.random.split(jax.random.fold_in(jax.random.key(1), step), len(params["mean"]))
            params = jax.vmap(sweep)(keys, params)
            return params, params

        return jax.lax.scan(body, start, jnp.arange(sweeps))[1]

    return jax.tree.map(np.asarray, run(start))


@pytest.mark.parametrize("family", MODELS)
@pytest.mark.parametrize("sets", [800, pytest.param(5000, marks=pytest.mark.slow)])
def test_gibbs_leaves_the_prior_as_it_is(family, sets):
    """Globals from the prior, rows given them, then sweeps: the globals still have the prior's law.

    After 1, 4 and 16 sweeps over rows with a fifth of the entries missing: Kolmogorov-Smirnov tests of four functions
    with a known prior, and of log p(x, globals), which depends on the rows, against other pairs without a sweep.
    False alarms 1e-4 a test, 3e-3 in all.
    """
    rows, columns = 6, 3
    rng = np.random.default_rng(0)
    model = family(2, **PRIOR)
    params = prior_draws(model, columns, 2 * sets, rng)
    x = rows_given(params, rows, rng)
    observed = rng.random(x.shape) > 0.2

    @jax.jit
    def run(keys, params, x, observed, sweeps):
        def sweep(key, params, x, observed):
            first, second = jax.random.split(key)
            return model.draw(second, params, model.complete(first, params, x, observed))

        def body(step, params):
            each = jax.vmap(lambda key: jax.random.fold_in(key, step))(keys)
            return jax.vmap(sweep)(each, params, x, observed)

        return jax.lax.fori_loop(0, sweeps, body, params)

    log_joint = jax.jit(jax.vmap(model.log_joint))
    first, other = slice(0, sets), slice(sets, None)
    reference = np.asarray(log_joint(as_float64({n: v[other] for n, v in params.items()}), x[other], observed[other]))
    start = as_float64({n: v[first] for n, v in params.items()})
    done, state = 0, start
    for sweeps in (1, 4, 16):
        state = run(jax.random.split(jax.random.key(sweeps), sets), state, x[first], observed[first], sweeps - done)
        done, values = sweeps, np.asarray(log_joint(state, x[first], observed[first]))
        assert kstest(values, reference).pvalue > 1e-4, sweeps
        w, mu, psi = (np.asarray(state[name]) for name in ("loadings", "mean", "noise_variance"))
        psi = psi.reshape(sets, -1)[:, 0]
        unit = np.sqrt(psi)
        laws = {
            "noise": (psi, invgamma(model.noise_shape, scale=model.noise_scale).cdf),
            "mean": (mu[:, 0] / unit, norm(scale=model.mean_scale).cdf),
            "loading": (w[:, 0, 0] / unit, norm(scale=model.loadings_scale).cdf),
            "rotated": (w[:, 0] @ [0.6, 0.8] / unit, norm(scale=model.loadings_scale).cdf),
        }
        for name, (values, cdf) in laws.items():
            assert kstest(values, cdf).pvalue > 1e-4, (name, sweeps)
    assert not np.allclose(mu, start["mean"])


def grid(model, x, nodes=40):
    """log p(x, w, psi) of PPCA on one latent dimension and two columns, mu integrated out, on a quadrature grid.

    Nodes in log psi (trapezoid) and w / sqrt(psi) (Gauss-Hermite); returns log weights with the prior in them,
    psi, and w (nodes, nodes, nodes, 2).
    """
    a, c = model.noise_shape, model.noise_scale
    log_psi = np.linspace(-4.0, 5.0, 4 * nodes)
    psi = np.exp(log_psi)
    u, weight = np.polynomial.hermite_e.hermegauss(nodes)
    w = np.stack(np.meshgrid(u, u, indexing="ij"), -1) * model.loadings_scale * np.sqrt(psi)[:, None, None, None]
    log_weight = a * np.log(c) - gammaln(a) - a * log_psi - c / psi + np.log(log_psi[1] - log_psi[0])
    log_hermite = np.log(weight) - 0.5 * np.log(2 * np.pi)
    log_weight = log_weight[:, None, None] + log_hermite[:, None] + log_hermite

    # rows independent given mu: x̄ ~ N(0, C / N + mean_scale² psi I), and the scatter about x̄ given C
    n, eye = len(x), np.eye(2)
    c_matrix = w[..., :, None] * w[..., None, :] + psi[:, None, None, None, None] * eye
    centre, scatter = x.mean(0), (x - x.mean(0)).T @ (x - x.mean(0))
    inverse, log_det = np.linalg.inv(c_matrix), np.linalg.slogdet(c_matrix)[1]
    log_p = -0.5 * ((n - 1) * log_det + np.einsum("...ij,ij->...", inverse, scatter)) - (n - 1) * np.log(2 * np.pi)
    log_p -= 0.5 * 2 * np.log(n)
    of_mean = c_matrix / n + model.mean_scale**2 * psi[:, None, None, None, None] * eye
    quadratic = np.einsum("i,...ij,j->...", centre, np.linalg.inv(of_mean), centre)
    log_p += -0.5 * (quadratic + np.linalg.slogdet(of_mean)[1]) - np.log(2 * np.pi)
    return log_weight + log_p, psi, w


@cache
def tiny():
    """PPCA(1) on five rows of two columns: model, rows, log evidence, and posterior means by quadrature."""
    model = PPCA(1, **PRIOR)
    rng = np.random.default_rng(3)
    x = (rng.normal(size=(5, 1)) * [1.5, -1.0] + rng.normal(size=(5, 2)) * 0.7 + [0.5, 0.0]).astype(np.float32)
    log_p, psi, w = grid(model, x.astype(np.float64))
    evidence = logsumexp(log_p)
    p = np.exp(log_p - evidence)
    means = {
        "log psi": (p * np.log(psi)[:, None, None]).sum(),
        "communality": (p[..., None] * w**2).sum((0, 1, 2)),
        "product": (p * w[..., 0] * w[..., 1]).sum(),
    }
    return model, x, evidence, means


def test_quadrature_has_converged():
    model, x, evidence, _ = tiny()
    assert logsumexp(grid(model, x.astype(np.float64), 28)[0]) == pytest.approx(evidence, abs=2e-3)


def test_gibbs_means_are_the_posterior_by_quadrature():
    """32 chains of 500 sweeps, 100 of them left out, whose means are independent.

    5 standard errors, Student t of 31 degrees: false alarms 2e-5 a test.
    """
    model, x, _, means = tiny()

    chains = 32
    draws = run_gibbs(
        model, x, jax.vmap(lambda key: model.initial(key, x))(jax.random.split(jax.random.key(0), chains)), 500
    )
    w, psi = draws["loadings"][100:, ..., 0], draws["noise_variance"][100:]
    found = {"log psi": np.log(psi), "communality": w**2, "product": w[..., 0] * w[..., 1]}
    for name, expected in means.items():
        values = found[name].mean(0)
        z = (values.mean(0) - expected) / (values.std(0, ddof=1) / np.sqrt(chains))
        assert (np.abs(z) < 5).all(), (name, z)


def test_gibbs_is_not_slowed_by_a_strong_signal():
    """With noise a thousandth of the signal, z and W in turns alone would move by 1e-3 of the posterior's width."""
    rng = np.random.default_rng(5)
    x = (rng.normal(size=(100, 2)) @ rng.normal(size=(2, 6)) + rng.normal(size=(100, 6)) * 1e-3).astype(np.float32)
    model = PPCA(2, loadings_scale=1e3, mean_scale=1e3, noise_scale=1e-6)

    start = model.closed_form(x)
    draws = run_gibbs(model, x, as_float64({n: np.asarray(v)[None] for n, v in start.items()}), 1000)
    for values in ((draws["loadings"] ** 2).sum(-1), draws["mean"]):
        centred = values[100:, 0] - values[100:, 0].mean(0)
        correlation = (centred[1:] * centred[:-1]).mean(0) / (centred**2).mean(0)
        # about 0.1; without the moves above 0.99
        assert (correlation < 0.5).all(), correlation


# ---- variational Bayes


@pytest.fixture(scope="module", params=[(f, k) for f in MODELS for k in ("coupled", "mean_field")], ids=str)
def vb(request):
    """A program with variational steps, its model, rows with holes, and the bounds and q after 60 steps."""
    family, kind = request.param
    model = family(2, **PRIOR)
    rng = np.random.default_rng(7)
    x = rows_given(prior_draws(model, 4, 1, rng), 25, rng)[0]
    observed = rng.random(x.shape) > 0.2
    program = model if kind == "coupled" else model.mean_field

    @jax.jit
    def run(key):
        def step(q, _):
            term, statistics = program.variational_e_step(q, x, observed)
            with jax.enable_x64(True):
                bound = term - program.variational_kl(q)
            return program.variational_m_step(q, statistics), bound

        return jax.lax.scan(step, program.variational_initial(key, x, observed), length=60)

    q, bounds = run(jax.random.key(0))
    return program, model, x, observed, q, np.asarray(bounds)


def test_bound_rises(vb):
    *_, bounds = vb
    # float64 sums of order 1e2
    assert np.diff(bounds).min() > -1e-10 and bounds[-1] > bounds[0] + 0.1


def test_kl_is_that_of_the_draws(vb):
    """E_q[log q - log p] over 4,000 draws, within 4.5 standard errors (7e-6)."""
    program, model, x, observed, q, _ = vb

    @jax.jit
    @jax.vmap
    def one(key):
        draw = program.variational_draw(key, q)
        log_prior = model.log_joint(draw, x[:0], observed[:0])
        with jax.enable_x64(True):
            return program.variational_log_prob(q, draw) - log_prior

    values = np.asarray(one(jax.random.split(jax.random.key(1), 4000)))
    error = values.std() / np.sqrt(len(values))
    assert abs(values.mean() - float(steps(program)[3](q))) < 4.5 * error and error < 0.1


def test_log_joint_is_that_of_the_marginal_program(vb):
    program, model, x, observed, q, _ = vb
    draw = jax.jit(program.variational_draw)(jax.random.key(2), q)
    draw = {name: np.asarray(value, np.float32) for name, value in draw.items()}
    expected, _ = log_density(model.marginal, (x,), {"x_observed": observed}, draw)
    # float32 evaluation of sums of order 100
    assert float(program.log_joint(draw, x, observed)) == pytest.approx(float(expected), rel=1e-4)


@pytest.mark.parametrize("kind", ["coupled", "mean_field"])
def test_e_step_normaliser_by_quadrature(kind):
    """sum_n log ∫ N(z | 0, 1) exp E_q[log p(x_n | z)] dz for one latent dimension, E_q written out."""
    model, x, _, _ = tiny()
    program = model if kind == "coupled" else model.mean_field
    initial, e_step, *_ = steps(program)
    q = initial(jax.random.key(0), x)
    term, statistics = e_step(q, x)
    loc, shape, scale = (np.asarray(v) for v in (q.loc, q.shape, q.scale))
    z = np.linspace(-12, 12, 4001)
    design = np.stack([z, np.ones_like(z)], -1)
    # E[(x - b·(z, 1))² / psi] = τ (x - b̂·(z, 1))² + (z, 1) E[Cov[b | psi] / psi] (z, 1)ᵀ
    precision = shape / scale
    spread = np.asarray(q.covariance)[0] * (1.0 if kind == "coupled" else precision)
    squares = precision * (x[:, None] - design @ loc.T) ** 2 + np.einsum("zi,ij,zj->z", design, spread, design)[:, None]
    log_p = -0.5 * (np.log(2 * np.pi) + np.log(scale) - digamma(shape) + squares).sum(-1) + norm.logpdf(z)
    each = logsumexp(log_p, axis=1)
    # the trapezoid rule is exact to rounding here
    assert float(term) == pytest.approx((each + np.log(z[1] - z[0])).sum(), rel=1e-9)
    p = np.exp(log_p - each[:, None])
    np.testing.assert_allclose(statistics.z[0, 0], (p * z).sum(), rtol=1e-8)
    np.testing.assert_allclose(statistics.zz[0, 0, 0], (p * z**2).sum(), rtol=1e-8)


def test_bounds_lie_below_the_evidence_in_order():
    """Mean field below coupled below the evidence by quadrature, which the draws of q reweighed give too."""
    model, x, evidence, _ = tiny()
    bounds = []
    for program in (model.mean_field, model):
        initial, e_step, m_step, kl = steps(program)
        q = initial(jax.random.key(0), x)
        for _ in range(100):
            q = m_step(q, e_step(q, x)[1])
        bounds.append(float(e_step(q, x)[0]) - float(kl(q)))
    assert bounds[0] < bounds[1] - 0.01 and bounds[1] < evidence - 0.01 and bounds[1] > evidence - 3

    @jax.jit
    @jax.vmap
    def weight(key):
        draw = model.variational_draw(key, q)
        log_joint = model.log_joint(draw, x)
        with jax.enable_x64(True):  # q is at one of the two modes, w and -w: half of it at each
            both = [model.variational_log_prob(q, draw | {"loadings": sign * draw["loadings"]}) for sign in (1, -1)]
            return log_joint - (jnp.logaddexp(*both) - jnp.log(2.0))

    log_weight = np.asarray(weight(jax.random.split(jax.random.key(3), 20000)))
    w = np.exp(log_weight - log_weight.max())
    error = w.std() / w.mean() / np.sqrt(len(w))
    # 5 standard errors of a mean of weights with a moderate tail
    assert logsumexp(log_weight) - np.log(len(w)) == pytest.approx(evidence, abs=5 * error) and error < 0.05


@pytest.mark.parametrize("kind", ["coupled", "mean_field"])
def test_no_small_change_of_q_raises_the_bound(kind):
    """At convergence, q(z) being the optimum for each q."""
    model, x, _, _ = tiny()
    program = model if kind == "coupled" else model.mean_field
    initial, e_step, m_step, kl = steps(program)

    def total(q):
        return float(e_step(q, x)[0]) - float(kl(q))

    q = initial(jax.random.key(0), x)
    for _ in range(300):
        q = m_step(q, e_step(q, x)[1])
    best, rng = total(q), np.random.default_rng(8)
    for name in q._fields:
        for _ in range(4):
            with jax.enable_x64(True):
                changed = getattr(q, name) * (1 + 1e-3 * rng.normal())
            assert total(q._replace(**{name: changed})) < best + 1e-9, name


def test_whole_weights_are_repeated_rows_in_variational_bayes():
    model, x, _, _ = tiny()
    initial, e_step, *_ = steps(model)
    q = initial(jax.random.key(0), x)
    times = np.array([0, 1, 3, 1, 2])
    weighted = e_step(q, x, None, times.astype(np.float32))
    repeated = e_step(q, np.repeat(x, times, axis=0))
    # float64 sums in another order
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-10), weighted, repeated)


# ---- what is identified


@pytest.mark.parametrize("family", MODELS)
def test_invariants_do_not_change_under_rotation(family):
    model = family(2)
    rng = np.random.default_rng(9)
    values = {n: v[0] for n, v in prior_draws(model, 4, 1, rng).items()}
    turn = np.linalg.qr(rng.normal(size=(2, 2)))[0]
    here = model.invariants(**values)
    there = model.invariants(**values | {"loadings": values["loadings"] @ turn})
    assert model.rotated == ("loadings",) and set(here) == {"mean", "noise_variance", "communality", "spectrum"}
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4), there, here)  # float32
    np.testing.assert_allclose(
        here["spectrum"], np.linalg.eigvalsh(values["loadings"].T @ values["loadings"])[::-1], rtol=1e-4
    )
