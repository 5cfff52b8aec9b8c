"""PPCA and factor analysis with missing entries and weighted rows, against brute-force marginalisation."""

from __future__ import annotations

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import pyro
import pytest
import torch
from numpyro import handlers
from numpyro.infer.util import log_density
from pyro import poutine
from scipy.stats import chi2, multivariate_normal

from ppl_models import linear_gaussian
from ppl_models.ppca import PPCA, FactorAnalysis

MODELS = [PPCA, FactorAnalysis]
D, Q = 5, 2


@cache
def e_step(model):
    """Compiled once for all tests; a jit would make float64 parameters float32 on the way in."""
    compiled = jax.jit(model.e_step)
    return lambda params, *rows: compiled(as_float64(params), *rows)


def simulate(rng, rows, noise):
    """Parameters, rows (float32) and a mask with 30 % of the entries missing."""
    params = {"loadings": rng.normal(size=(D, Q)) * [1.5, 1.0], "mean": np.arange(D) - 2.0, "noise_variance": noise}
    z, e = rng.normal(size=(rows, Q)), rng.normal(size=(rows, D))
    x = z @ params["loadings"].T + params["mean"] + e * np.sqrt(noise)
    return params, x.astype(np.float32), rng.random((rows, D)) > 0.3


def noise_of(family):
    return 0.4 if family is PPCA else np.linspace(0.2, 0.8, D)


@pytest.fixture(scope="module", params=MODELS)
def case(request):
    """Model, parameters, 60 rows with NaN where missing (one row has nothing), and the mask."""
    family = request.param
    params, x, observed = simulate(np.random.default_rng(1), 60, noise_of(family))
    observed[7] = False
    return family(Q), params, np.where(observed, x, np.float32(np.nan)), observed


def covariance(params):
    """W Wᵀ + Psi."""
    return params["loadings"] @ params["loadings"].T + params["noise_variance"] * np.eye(D)


def brute_force(params, x, observed):
    """log p of the observed part of every row, by the marginal of the full covariance."""
    c, mean = covariance(params), params["mean"]
    return np.array(
        [
            multivariate_normal(mean[o], c[np.ix_(o, o)]).logpdf(row[o].astype(float)) if o.any() else 0.0
            for row, o in zip(x, observed, strict=True)
        ]
    )


def as_float32(params):
    return {name: np.asarray(value, np.float32) for name, value in params.items()}


def as_float64(params):
    with jax.enable_x64(True):
        return {name: jnp.asarray(value, jnp.float64) for name, value in params.items()}


# ---- likelihood and E-step


def test_log_likelihood_is_brute_force_marginalisation(case):
    model, params, x, observed = case
    log_likelihood, _ = e_step(model)(params, x, observed)
    # float64 sums of 60 terms
    assert float(log_likelihood) == pytest.approx(brute_force(params, x, observed).sum(), rel=1e-12)


def test_a_mask_without_holes_changes_nothing(case):
    model, params, x, observed = case
    x = np.where(observed, x, 1.0).astype(np.float32)
    dense, masked = e_step(model)(params, x), e_step(model)(params, x, np.ones_like(observed))
    assert float(dense[0]) == pytest.approx(float(masked[0]), rel=1e-12)
    # the same regression, its Gram matrix once for all columns or once for each
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-9), model.m_step(dense[1]), model.m_step(masked[1]))


def test_statistics_are_sums_over_the_entries_that_are_seen(case):
    """Against Gaussian conditioning of each row by itself."""
    model, params, x, observed = case
    _, statistics = e_step(model)(params, x, observed)
    with jax.enable_x64(True):
        statistics = linear_gaussian.moved(statistics, jnp.zeros(D))
    w, c = params["loadings"], covariance(params)
    count, z_sum, zz = np.zeros(D), np.zeros((D, Q)), np.zeros((D, Q, Q))
    xz = np.zeros((D, Q))
    for row, o in zip(x.astype(float), observed, strict=True):
        gain = w[o].T @ np.linalg.inv(c[np.ix_(o, o)])
        z = gain @ (row - params["mean"])[o]
        count[o] += 1
        z_sum[o] += z
        zz[o] += np.outer(z, z) + np.eye(Q) - gain @ w[o]
        xz[o] += np.outer(row[o], z)
    for name, expected in {"count": count, "z": z_sum, "zz": zz, "xz": xz, "x": np.nansum(x, 0, float)}.items():
        np.testing.assert_allclose(getattr(statistics, name), expected, rtol=1e-9, atol=1e-9)


def test_chunks_and_minibatches_add_up(case, monkeypatch):
    model, params, x, observed = case
    weight = np.linspace(0.5, 2.0, len(x)).astype(np.float32)
    whole = e_step(model)(params, x, observed, weight)
    monkeypatch.setattr(linear_gaussian, "CHUNK", D * 25)
    # the same float64 sums in another order
    close = partial(np.testing.assert_allclose, rtol=1e-11, atol=1e-12)
    jax.tree.map(close, jax.jit(lambda *rows: model.e_step(params, *rows))(x, observed, weight), whole)
    parts = [e_step(model)(params, x[i::3], observed[i::3], weight[i::3]) for i in range(3)]
    added = jax.tree.map(lambda *sums: np.sum(sums, 0), *parts)
    origin = added[1].origin / 3  # of each part: they are about the same
    jax.tree.map(close, (added[0], added[1]._replace(origin=origin)), whole)


@pytest.mark.parametrize("holes", [False, True])
def test_whole_weights_are_repeated_rows(case, holes):
    model, params, x, observed = case
    x = x if holes else np.where(observed, x, 1.0).astype(np.float32)
    mask = observed if holes else None
    times = np.random.default_rng(2).integers(0, 4, len(x))
    weighted = e_step(model)(params, x, mask, times.astype(np.float32))
    index = np.repeat(np.arange(len(x)), times)
    repeated = e_step(model)(params, x[index], mask if mask is None else mask[index])
    # float64 sums in another order
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-11, atol=1e-12), weighted, repeated)
    start = model.initial(jax.random.key(0), x, mask, times.astype(np.float32))
    again = model.initial(jax.random.key(0), x[index], mask if mask is None else mask[index])
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-9), start, again)


# ---- EM


def run_em(model, x, observed, num_steps, key=0):
    """Parameters after ``num_steps``, and log likelihoods before each step."""

    @jax.jit
    def run(params):
        def step(params, _):
            log_likelihood, statistics = model.e_step(params, x, observed)
            return model.m_step(statistics), log_likelihood

        return jax.lax.scan(step, params, length=num_steps)

    params, history = run(model.initial(jax.random.key(key), x, observed))
    return jax.tree.map(np.asarray, params), np.asarray(history)


def test_em_is_monotone_with_holes(case):
    model, _, x, observed = case
    for key in range(2):
        _, history = run_em(model, x, observed, 60, key)
        # float64 sums of 60 terms of order 10 carry rounding of order 1e-12
        assert np.diff(history).min() > -1e-9 and history[-1] > history[0] + 1.0


@pytest.mark.parametrize("family", MODELS)
def test_30_percent_missing_recover_the_parameters_within_their_standard_errors(family):
    """Fifteen data sets of 600 rows from one truth.

    Twice the gain in log likelihood over the truth is chi-squared with ``num_parameters`` degrees of freedom, and the
    estimates scatter about the truth with their own spread: false alarms 1e-3 for the sum of the gains, and 18
    averages at 4.5 standard errors (5e-4 each, Student t of 14 degrees).
    """
    sets, rows, model = 15, 600, family(Q)
    truth, x, observed = simulate(np.random.default_rng(0), sets * rows, noise_of(family))
    x, observed = x.reshape(sets, rows, D), observed.reshape(sets, rows, D)

    @jax.jit
    def run(x, observed):
        step = jax.vmap(lambda params, x, observed: model.m_step(model.e_step(params, x, observed)[1]))
        gain = jax.vmap(lambda p, x, o: model.e_step(p, x, o)[0] - model.e_step(truth, x, o)[0])
        start = jax.tree.map(
            lambda v: jnp.broadcast_to(v, (sets, *v.shape)), as_float64(truth)
        )  # the maximum beside it
        found = jax.lax.fori_loop(0, 100, lambda _, params: step(params, x, observed), start)
        return found, gain(found, x, observed)

    found, gain = jax.tree.map(np.asarray, run(x, observed))
    freedom = model.num_parameters(D)
    assert freedom == (5 * 2 - 1 + 5 + 1 if family is PPCA else 5 * 2 - 1 + 5 + 5)
    # the chi-squared law is off by a relative D / rows or so, the interval's half-width is 30 %
    assert chi2.ppf(5e-4, sets * freedom) < 2 * gain.sum() < chi2.ppf(1 - 5e-4, sets * freedom)

    for name, function in {
        "noise_variance": lambda p: p["noise_variance"].reshape(-1, 1 if family is PPCA else D),
        "mean": lambda p: p["mean"].reshape(-1, D),
        "communality": lambda p: (p["loadings"] ** 2).sum(-1).reshape(-1, D),
    }.items():
        error = function(found) - function(jax.tree.map(np.asarray, truth))
        z = error.mean(0) / (error.std(0, ddof=1) / np.sqrt(sets))
        if name != "mean":
            # maximum likelihood is biased by q or so of 420 observations a column, half a standard error of these means
            z = np.maximum(np.abs(z) - 0.7, 0)
        assert (np.abs(z) < 4.5).all(), name


def test_streaming_reaches_the_maximum(case):
    """Statistics are linear sums, so their running average over minibatches does for those of all rows."""
    family = type(case[0])
    _, x, observed = simulate(np.random.default_rng(3), 600, noise_of(family))
    model = family(Q)
    best, history = run_em(model, x, observed, 300)

    @jax.jit
    def stream(params, average):
        def step(carry, t):
            params, average = carry
            start = (t % 6) * 100
            part, mask = (jax.lax.dynamic_slice_in_dim(jnp.asarray(v), start, 100) for v in (x, observed))
            _, statistics = model.e_step(params, part, mask)
            with jax.enable_x64(True):
                rate = (t + 2.0) ** -0.6
                average = model.combine(average, statistics, 1 - rate, rate)
            return (model.m_step(average), average), None

        return jax.lax.scan(step, (params, average), jnp.arange(1200))[0][0]

    start = model.initial(jax.random.key(0), x, observed)
    streamed = stream(start, e_step(model)(start, x[:100], observed[:100])[1])
    # the last rate, 0.014, forgets half of the rows in 50 batches, 8 times over them: little noise is left
    assert (history[-1] - float(e_step(model)(streamed, x, observed)[0])) / len(x) < 0.02


# ---- imputation


def test_imputation_is_gaussian_conditioning(case):
    model, params, x, observed = case
    mean, variance = model.impute(params, x)
    assert mean.dtype == np.float32
    c = covariance(params)
    for n in (0, 1, 2, 7):
        o, m = observed[n], ~observed[n]
        gain = c[np.ix_(m, o)] @ np.linalg.inv(c[np.ix_(o, o)]) if o.any() else np.zeros((D, 0))
        # float32 results of order 1
        np.testing.assert_allclose(mean[n][m], params["mean"][m] + gain @ (x[n] - params["mean"])[o], rtol=1e-5)
        np.testing.assert_allclose(variance[n][m], np.diag(c[np.ix_(m, m)] - gain @ c[np.ix_(o, m)]), rtol=1e-5)
        np.testing.assert_array_equal(mean[n][o], x[n][o])
        assert (variance[n][o] == 0).all()
    # a mask in place of NaN
    again = model.impute(params, np.where(observed, x, 1e3).astype(np.float32), observed)
    np.testing.assert_array_equal(again[0], mean)


def test_imputed_values_have_the_stated_errors():
    """Standardised errors of 6,000 held-out entries have variance 1 (false-alarm rate 6e-5, 4 standard errors)."""
    truth, x, observed = simulate(np.random.default_rng(4), 4000, noise_of(FactorAnalysis))
    mean, variance = FactorAnalysis(Q).impute(truth, np.where(observed, x, np.nan))
    z = (x - mean)[~observed] / np.sqrt(variance[~observed])
    rows = len(x)  # errors in one row are correlated: rows are the independent units
    assert abs(np.mean(z**2) - 1) < 4 * np.sqrt(2 * 1.5 / rows)


# ---- programs


def site_log_prob(program, values, x, site, **kwargs):
    """Log density of one site per row, the others' values given."""
    trace = handlers.trace(handlers.substitute(handlers.seed(program, 0), data=values)).get_trace(x, **kwargs)
    return np.asarray(trace[site]["fn"].log_prob(trace[site]["value"]))


def test_marginal_program_scores_the_entries_that_are_seen(case):
    model, params, x, observed = case
    found = site_log_prob(model.marginal, as_float32(params), x, "x", x_observed=observed)
    # float32 evaluation of sums of order 10
    np.testing.assert_allclose(found, brute_force(params, x, observed), rtol=1e-5, atol=1e-4)


def test_exact_posterior_turns_the_elbo_into_the_evidence(case):
    """log p(x seen, z) - log q(z | x seen) is the same for every z."""
    model, params, x, observed = case
    values = as_float32(params)
    for z in np.random.default_rng(2).normal(size=(2, len(x), Q)).astype(np.float32):
        both = values | {"z": z}
        joint = sum(site_log_prob(model, both, x, site, x_observed=observed) for site in ("x", "z"))
        weight = joint - site_log_prob(model.posterior, both, x, "z", x_observed=observed)
        # differences of float32 terms of order 100
        np.testing.assert_allclose(weight, brute_force(params, x, observed), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("part", ["joint", "marginal"])
@pytest.mark.parametrize("ppl", [numpyro, pyro], ids=lambda ppl: ppl.__name__)
def test_programs_draw_whole_rows(case, part, ppl):
    model = type(case[0])(Q, ppl=ppl)
    program = model if part == "joint" else model.marginal
    blank, observed = np.zeros_like(case[2]), case[3]
    if ppl is numpyro:
        trace = handlers.trace(handlers.uncondition(handlers.seed(program, 0))).get_trace(blank, x_observed=observed)
    else:
        pyro.set_rng_seed(0)
        arrays = {"x": torch.as_tensor(blank), "x_observed": torch.as_tensor(observed)}
        trace = poutine.trace(poutine.uncondition(program)).get_trace(**arrays).nodes
    drawn = np.asarray(trace["x"]["value"])
    assert drawn.shape == blank.shape and np.isfinite(drawn).all() and (drawn[~observed] != 0).all()


@pytest.mark.parametrize("part", ["joint", "marginal", "posterior"])
def test_weights_in_the_programs_are_repeated_rows(case, part):
    model, params, x, observed = case
    program = model if part == "joint" else getattr(model, part)
    times = np.random.default_rng(5).integers(0, 3, len(x))
    values = as_float32(params)
    z = np.random.default_rng(6).normal(size=(len(x), Q)).astype(np.float32)
    index = np.repeat(np.arange(len(x)), times)

    def total(x, observed, z, **weight):
        latents = {} if part == "marginal" else {"z": z}
        return float(log_density(program, (x,), {"x_observed": observed, **weight}, values | latents)[0])

    weighted = total(x, observed, z, sample_weight=times.astype(np.float32))
    # float32 sums of order 1e3
    assert weighted == pytest.approx(total(x[index], observed[index], z[index]), rel=1e-5)


@pytest.mark.parametrize("part", ["joint", "marginal", "posterior"])
def test_engines_agree_with_holes_and_weights(case, part):
    model, params, x, observed = case
    twin = type(model)(Q, ppl=pyro)
    here, there = (m if part == "joint" else getattr(m, part) for m in (model, twin))
    weight = np.linspace(0, 2, len(x)).astype(np.float32)
    values = as_float32(params)
    if part != "marginal":
        values["z"] = np.random.default_rng(3).normal(size=(len(x), Q)).astype(np.float32)
    x = np.where(observed, x, 0).astype(np.float32)
    arguments = {"x_observed": observed, "sample_weight": weight}
    mine, _ = log_density(handlers.seed(here, 0), (x,), arguments | {"num_data": 100}, values)
    tensors, arrays = ({n: torch.as_tensor(v) for n, v in d.items()} for d in (values, arguments))
    with pyro.validation_enabled(False):
        trace = poutine.trace(poutine.condition(there, data=tensors)).get_trace(torch.as_tensor(x), 100, **arrays)
    assert float(mine) == pytest.approx(float(trace.log_prob_sum()), rel=1e-5)


# ---- bad input


def test_a_column_that_never_varies_is_defined(case):
    model, _, x, observed = case
    x = x.copy()
    x[:, 2] = np.where(observed[:, 2], 5.1, np.nan)
    params, history = run_em(model, x, observed, 60)
    assert np.isfinite(history).all() and np.diff(history).min() > -1e-9 * np.abs(history).max()
    assert np.asarray(params["noise_variance"]).min() > 0
    assert params["mean"][2] == pytest.approx(5.1, abs=1e-3)


def test_a_column_with_one_value_is_defined(case):
    model, _, x, observed = case
    observed = observed.copy()
    observed[:, 2] = False
    observed[3, 2] = True
    x = np.where(observed, x, np.nan).astype(np.float32)
    x[3, 2] = 1.0
    _, history = run_em(model, x, observed, 60)
    assert np.isfinite(history).all() and np.diff(history).min() > -1e-9 * np.abs(history).max()


def test_a_column_that_is_not_seen_yet_waits(case):
    """It starts as an average column, keeps its mean, and takes what it is when rows with it come."""
    model, _, x, observed = case
    unseen = observed.copy()
    unseen[:, 1] = False
    start = jax.tree.map(np.asarray, model.initial(jax.random.key(0), x, unseen))
    average = np.nanvar(np.where(unseen, x, np.nan)[:, [0, 2, 3, 4]], 0, float).mean()
    noise = start["noise_variance"] * np.ones(D)
    assert start["mean"][1] == 0 and noise[1] == pytest.approx(average / 2, rel=0.1 if type(model) is PPCA else 1e-6)
    log_likelihood, statistics = e_step(model)(start, x, unseen)
    one = jax.tree.map(np.asarray, model.m_step(statistics))
    # the other columns learn as if it were not there
    others = [0, 2, 3, 4]
    part = {name: v[others] if v.ndim else v for name, v in start.items()}
    less, _ = e_step(model)(part, x[:, others], unseen[:, others])
    assert float(log_likelihood) == pytest.approx(float(less), rel=1e-12)
    assert one["mean"][1] == 0 and (one["loadings"][1] == 0).all()

    best, m_step = run_em(model, x, observed, 300)[1][-1], jax.jit(model.m_step)
    for _ in range(300):
        reached, statistics = e_step(model)(one, x, observed)
        one = m_step(statistics)
    assert float(reached) == pytest.approx(best, abs=0.01)


def test_rows_that_do_not_count_make_no_start_impossible(case):
    model, _, x, observed = case
    start = model.initial(jax.random.key(0), x, observed, np.zeros(len(x), np.float32))
    start = jax.tree.map(np.asarray, start)
    assert all(np.isfinite(v).all() for v in start.values()) and start["noise_variance"].min() == 0.5


def test_refuses_negative_weights(case):
    model, _, x, observed = case
    with pytest.raises(ValueError, match="sample_weight is -1 in row 0; give how many times each row counts"):
        model.initial(jax.random.key(0), x, observed, np.array([-1.0] + [1.0] * 59, np.float32))


def test_refuses_a_mask_of_another_shape(case):
    model, params, x, observed = case
    with pytest.raises(ValueError, match=r"x_observed has shape \(60, 4\) and x \(60, 5\); give a boolean for each"):
        model.e_step(params, x, observed[:, :4])


def test_refuses_to_impute_other_columns(case):
    model, params, x, _ = case
    with pytest.raises(ValueError, match="x has 4 columns, and the loadings are of 5"):
        model.impute(params, x[:, :4])
