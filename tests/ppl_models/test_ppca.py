"""PPCA and factor analysis against closed forms, scikit-learn, scipy, and brute-force conditioning."""

from __future__ import annotations

from functools import partial

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
from scipy.stats import multivariate_normal
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA
from sklearn.decomposition import FactorAnalysis as SklearnFactorAnalysis

from ppl_models import linear_gaussian, loadings_posterior
from ppl_models.ppca import PPCA, FactorAnalysis

MODELS = [PPCA, FactorAnalysis]


@pytest.fixture(scope="module")
def x() -> np.ndarray:
    """300 rows from a factor model, 6 columns of 2 factors, off centre, unequal noise."""
    rng = np.random.default_rng(0)
    loadings = rng.normal(size=(6, 2)) * [2.0, 1.0]
    noise = rng.normal(size=(300, 6)) * np.linspace(0.3, 0.9, 6)
    return (rng.normal(size=(300, 2)) @ loadings.T + noise + np.arange(6)).astype(np.float32)


def run_em(model, x, key=0, num_steps=300, **changes):
    """Parameters after ``num_steps`` from a start with ``changes``; log likelihoods before each step."""

    @jax.jit
    def run(params):
        def step(params, _):
            log_likelihood, statistics = model.e_step(params, x)
            return model.m_step(statistics), log_likelihood

        return jax.lax.scan(step, params, length=num_steps)

    with jax.enable_x64(True):  # only so that changes keep their float64
        changed = jax.tree.map(jnp.asarray, changes)
    params, history = run(model.initial(jax.random.key(key), x) | changed)
    return jax.tree.map(np.asarray, params), np.asarray(history)


def some_params(model, columns, seed=1):
    """Arbitrary parameters and one latent row each, float32, as a fit would substitute them."""
    rng = np.random.default_rng(seed)
    event = () if isinstance(model, PPCA) else (columns,)
    return {
        "loadings": rng.normal(size=(columns, model.latent_dim)).astype(np.float32),
        "mean": rng.normal(size=columns).astype(np.float32),
        "noise_variance": rng.uniform(0.3, 1.0, size=event).astype(np.float32),
    }


def covariance(params):
    """W Wᵀ + Psi in float64."""
    loadings, noise = (np.asarray(params[k], np.float64) for k in ("loadings", "noise_variance"))
    return loadings @ loadings.T + noise * np.eye(len(loadings))


def log_prob(program, values, x, site, **kwargs):
    """Log density of one site per row, the others' values given."""
    trace = handlers.trace(handlers.substitute(handlers.seed(program, 0), data=values)).get_trace(x, **kwargs)
    return np.asarray(trace[site]["fn"].log_prob(trace[site]["value"]))


# ---- maximum likelihood


def test_em_reaches_the_eigendecomposition(x):
    model = PPCA(2)
    params, history = run_em(model, x)
    exact = {k: np.asarray(v, np.float64) for k, v in model.closed_form(x.astype(np.float32)).items()}
    # 1e-5 relative: the closed form is rounded to float32 (6e-8), EM has converged far below that.
    assert history[-1] == pytest.approx(float(model.e_step(exact, x)[0]), rel=1e-5)
    assert float(params["noise_variance"]) == pytest.approx(float(exact["noise_variance"]), rel=1e-5)
    product = np.asarray(params["loadings"]) @ np.asarray(params["loadings"]).T
    np.testing.assert_allclose(product, exact["loadings"] @ exact["loadings"].T, atol=1e-5 * product.max())
    np.testing.assert_allclose(params["mean"], x.mean(0, dtype=np.float64), rtol=1e-6)


def test_closed_form_is_numpys_eigendecomposition(x):
    params = PPCA(2).closed_form(x)
    values, vectors = np.linalg.eigh(np.cov(x.T.astype(np.float64), bias=True))
    noise = values[:-2].mean()
    top = vectors[:, -2:]
    assert params["loadings"].dtype == jnp.float32
    # float32 results
    np.testing.assert_allclose(params["noise_variance"], noise, rtol=1e-6)
    loadings = np.asarray(params["loadings"])
    np.testing.assert_allclose(loadings @ loadings.T, top * (values[-2:] - noise) @ top.T, atol=1e-5)
    assert (loadings[np.abs(loadings).argmax(0), [0, 1]] > 0).all()


def test_closed_form_of_whole_numbers_is_not_rounded(x):
    whole = np.round(x).astype(np.int32)
    found, expected = PPCA(2).closed_form(whole), PPCA(2).closed_form(whole.astype(np.float32))
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    assert found["mean"].dtype == jnp.float32 and float(found["noise_variance"]) % 1 > 0


@pytest.mark.parametrize("family", MODELS)
def test_em_is_monotone_from_any_start(family, x):
    for key in range(3):
        _, history = run_em(family(2), x, key=key, num_steps=100)
        # float64 sums of 300 terms of order 10 carry rounding of order 1e-12
        assert np.diff(history).min() > -1e-9
        assert history[-1] > history[0] + 1.0


@pytest.mark.parametrize("family", MODELS)
def test_em_is_monotone_with_a_wrong_mean(family, x):
    """The mean is a parameter of the M-step: from a wrong one it must find the data's."""
    model = family(2)
    params, history = run_em(model, x, num_steps=1000, mean=np.zeros(6))
    assert np.diff(history).min() > -1e-9
    # EM for the mean converges linearly; 1000 steps leave less than float32 resolves
    np.testing.assert_allclose(params["mean"], x.mean(0, dtype=np.float64), atol=1e-5)


def test_ppca_likelihood_is_sklearns_pca_score(x):
    """scikit-learn divides the covariance by N - 1: its W Wᵀ and sigma² are ours times N / (N - 1)."""
    wide = x.astype(np.float64)
    bessel = len(x) / (len(x) - 1)
    params = {k: np.asarray(v, np.float64) for k, v in PPCA(2).closed_form(x).items()}
    params["loadings"] *= np.sqrt(bessel)
    params["noise_variance"] *= bessel
    expected = PCA(2, svd_solver="full").fit(wide).score(wide)
    # parameters are float32; the likelihood is flat at its maximum, so it keeps 1e-7
    assert float(PPCA(2).e_step(params, x)[0]) / len(x) == pytest.approx(expected, rel=1e-6)


def test_factor_analysis_reaches_sklearns_optimum(x):
    _, history = run_em(FactorAnalysis(2), x, num_steps=1000)
    wide = x.astype(np.float64)
    peer = SklearnFactorAnalysis(2, tol=1e-8, max_iter=5000, svd_method="lapack").fit(wide)
    # nats per row: both are iterative and stop a little short of the same maximum
    assert history[-1] / len(x) == pytest.approx(peer.score(wide), abs=1e-6)


def test_factor_analysis_does_not_depend_on_units(x):
    """Scaling a column shifts the log likelihood by -N log|scale| and changes nothing else."""
    units = np.array([1e-3, 1, 1, 1e3, 1, 1])
    _, here = run_em(FactorAnalysis(2), x, num_steps=50)
    _, there = run_em(FactorAnalysis(2), x * units.astype(np.float32), num_steps=50)
    # the scaled float32 data are themselves rounded (6e-8 per entry)
    np.testing.assert_allclose(there + len(x) * np.log(units).sum(), here, rtol=1e-5)


@pytest.mark.parametrize("family", MODELS)
@pytest.mark.parametrize("holes", [False, True])
def test_an_offset_changes_nothing_but_the_mean(family, holes, x):
    """At an offset of a million deviations, where float32 still resolves sixteenths."""
    x = np.round(16 * x) / 16
    observed = np.random.default_rng(1).random(x.shape) > 0.2 if holes else None

    @jax.jit
    def run(x):
        model = family(2)

        def step(params, _):
            log_likelihood, statistics = model.e_step(params, x, observed)
            return model.m_step(statistics), log_likelihood

        return jax.lax.scan(step, model.initial(jax.random.key(0), x, observed), length=100)

    (here, history), (there, offset) = run(x), run(x + np.float32(1e6))
    # float64 resolves 1e-10 at a million: a relative 1e-9 of each residual
    np.testing.assert_allclose(offset, history, rtol=1e-7)
    assert float(history[-1]) > float(history[0]) + 100
    np.testing.assert_allclose(np.asarray(there.pop("mean")) - 1e6, here.pop("mean"), atol=1e-6)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), there, here)


@pytest.mark.parametrize("family", MODELS)
def test_sums_about_another_origin_are_those_of_rows_seen_from_there(family, x):
    """The same regression in EM and, whose prior of the mean is about zero, in Gibbs and variational Bayes."""
    model = family(2)
    _, here = model.e_step(some_params(model, 6), x)
    with jax.enable_x64(True):
        there = linear_gaussian.moved(here, jnp.linspace(-3.0, 30.0, 6))
        prior = loadings_posterior.prior_precision(model)
        q, p = (loadings_posterior.posterior(model, prior, s) for s in (here, there))
    # float64 sums of order 1e5
    close = partial(np.testing.assert_allclose, rtol=1e-9, atol=1e-10)
    jax.tree.map(close, (model.m_step(there), p), (model.m_step(here), q))
    factors = model.mean_field.variational_initial(jax.random.key(0), x)
    jax.tree.map(close, *(model.mean_field.variational_m_step(factors, s) for s in (there, here)))


# ---- E-step


@pytest.mark.parametrize("family", MODELS)
def test_e_step_against_scipy_and_brute_force_conditioning(family, x):
    model = family(2)
    params = some_params(model, 6)
    log_likelihood, statistics = model.e_step(params, x)
    joint = covariance(params)
    wide, loadings = x.astype(np.float64), params["loadings"].astype(np.float64)
    assert float(log_likelihood) == pytest.approx(
        multivariate_normal(params["mean"], joint).logpdf(wide).sum(), rel=1e-10
    )
    # Gaussian conditioning of the joint (z, x): E = Wᵀ C⁻¹ (x - mu), Cov = I - Wᵀ C⁻¹ W
    gain = loadings.T @ np.linalg.inv(joint)
    z, wide = (wide - params["mean"]) @ gain.T, wide - params["mean"]  # sums are about the mean
    second = z.T @ z + len(x) * (np.eye(2) - gain @ loadings)
    for name, expected in {"z": z.sum(0), "xz": wide.T @ z, "zz": second, "xx": (wide**2).sum(0)}.items():
        found = np.reshape(getattr(statistics, name), expected.shape)  # one group of columns: all of them
        np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("family", MODELS)
def test_m_step_maximises_the_expected_complete_log_likelihood(family, x):
    """From a wrong mean, where z does not average to zero; every small change of the result is a loss."""
    _, s = family(2).e_step(some_params(family(2), 6), x)
    with jax.enable_x64(True):
        s = jax.tree.map(np.asarray, linear_gaussian.moved(s, jnp.zeros(6)))
    second = np.block([[s.zz[0], s.z.T], [s.z, s.count[None]]])
    cross = np.column_stack([s.xz, s.x])

    def expected(params):
        design = np.column_stack([params["loadings"], params["mean"]])  # x = [W mu] (z, 1) + noise
        residual = s.xx - 2 * (design * cross).sum(1) + (design @ second * design).sum(1)
        noise = params["noise_variance"] * np.ones(6)
        return -0.5 * (s.count * np.log(noise) + residual / noise).sum()

    best = jax.tree.map(np.asarray, family(2).m_step(s))
    rng = np.random.default_rng(4)
    for name in best:
        for _ in range(10):
            # a loss of order N (1e-3)² / 2 = 1e-4, against rounding of order 1e-12
            step = 1e-3 * rng.normal(size=best[name].shape)
            assert expected(best | {name: best[name] + step}) < expected(best)


@pytest.mark.parametrize("rows", [300, 299, 7])
def test_chunks_do_not_change_the_sums(x, rows, monkeypatch):
    model = FactorAnalysis(2)
    params = some_params(model, 6)
    whole = model.e_step(params, x[:rows])
    monkeypatch.setattr(linear_gaussian, "CHUNK", 6 * 50)
    # the same float64 sums in another order
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-11), model.e_step(params, x[:rows]), whole)
    parts = [model.e_step(params, part)[1] for part in (x[: rows // 3], x[rows // 3 : rows])]
    with jax.enable_x64(True):
        whole = linear_gaussian.apart(whole[1])
    added = model.combine(parts[0], parts[1], 1.0, 1.0)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-11, atol=1e-11), added, whole)


def test_restarts_vectorise(x, monkeypatch):
    model = PPCA(2)

    monkeypatch.setattr(linear_gaussian, "CHUNK", 6 * 128)  # two chunks and a rest, scanned under vmap

    @jax.jit
    def run(keys):
        step = jax.vmap(lambda params: model.m_step(model.e_step(params, x)[1]))
        return jax.lax.fori_loop(
            0, 200, lambda _, params: step(params), jax.vmap(lambda key: model.initial(key, x))(keys)
        )

    params = jax.tree.map(np.asarray, run(jax.random.split(jax.random.key(0), 3)))
    assert params["loadings"].dtype == np.float64
    assert not np.allclose(params["loadings"][0], params["loadings"][1])  # another rotation
    noise = float(model.closed_form(x)["noise_variance"])
    np.testing.assert_allclose(params["noise_variance"], noise, rtol=1e-5)


@pytest.mark.parametrize("family", MODELS)
@pytest.mark.parametrize("name", ["digits", "one constant column", "all columns constant"])
def test_constant_columns_stay_finite(family, name, x):
    """Pixels that are never on, a column of 5s, and data that never vary."""
    if name == "digits":
        data, steps = load_digits().data[:400].astype(np.float32), 30
        assert (data.std(0) == 0).any()
    else:
        data, steps = x.copy(), 100
        data[:, 2 if name == "one constant column" else slice(None)] = 5.1
    model = family(2)
    params, history = run_em(model, data, num_steps=steps)
    assert np.isfinite(history).all()
    # near the noise floor likelihoods are of order 1e3 nats a row: rounding of order 1e-10 relative
    assert np.diff(history).min() > -1e-9 * np.abs(history).max()
    assert params["noise_variance"].min() > 0
    values = {k: np.asarray(v, np.float32) for k, v in params.items()}
    rows = log_prob(model.marginal, values, data, "x")
    # float32, with noise down to a thousandth of the signal
    np.testing.assert_allclose(rows.sum(), float(model.e_step(values, data)[0]), rtol=1e-3)
    assert np.isfinite(log_prob(model.posterior, values, data, "z")).all()
    if family is PPCA:
        exact = model.closed_form(data)
        assert all(np.isfinite(value).all() for value in exact.values())


# ---- programs


@pytest.mark.parametrize("family", MODELS)
def test_marginal_is_the_multivariate_normal(family, x):
    model = family(2)
    params = some_params(model, 6)
    expected = multivariate_normal(params["mean"], covariance(params)).logpdf(x.astype(np.float64))
    # float32 evaluation of sums of order 100
    np.testing.assert_allclose(log_prob(model.marginal, params, x, "x"), expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("family", MODELS)
def test_posterior_is_brute_force_conditioning(family, x):
    model = family(2)
    params = some_params(model, 6)
    program = handlers.substitute(handlers.seed(model.posterior, 0), data=params)
    posterior = handlers.trace(program).get_trace(x)["z"]["fn"]
    gain = params["loadings"].T @ np.linalg.inv(covariance(params))
    # float32 solves of a 2 x 2 system of condition number about 10
    np.testing.assert_allclose(posterior.mean, (x - params["mean"]) @ gain.T, atol=1e-4)
    expected = np.eye(2) - gain @ params["loadings"]
    np.testing.assert_allclose(posterior.covariance_matrix, expected[None], atol=1e-5)


@pytest.mark.parametrize("family", MODELS)
def test_exact_posterior_turns_the_elbo_into_the_evidence(family, x):
    """log p(x, z) - log q(z | x) is the same for every z, and is log p(x)."""
    model = family(2)
    params = some_params(model, 6)
    evidence = log_prob(model.marginal, params, x, "x")
    for z in np.random.default_rng(2).normal(size=(3, 300, 2)).astype(np.float32):
        values = params | {"z": z}
        joint = log_prob(model, values, x, "x") + log_prob(model, values, x, "z")
        weight = joint - log_prob(model.posterior, values, x, "z")
        # differences of float32 terms of order 100
        np.testing.assert_allclose(weight, evidence, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("family", MODELS)
@pytest.mark.parametrize("part", ["joint", "marginal", "posterior"])
def test_engines_agree(family, part, x):
    x, here, there = x[:20], family(2), family(2, ppl=pyro)
    values = some_params(here, 6) | {"z": np.random.default_rng(3).normal(size=(20, 2)).astype(np.float32)}
    if part == "marginal":
        del values["z"]
    program, twin = (model if part == "joint" else getattr(model, part) for model in (here, there))
    mine, _ = log_density(handlers.seed(program, 0), (x,), {"num_data": 100}, values)
    tensors = {name: torch.as_tensor(value) for name, value in values.items()}
    with pyro.validation_enabled(False):
        trace = poutine.trace(poutine.condition(twin, data=tensors)).get_trace(torch.as_tensor(x), num_data=100)
    assert float(mine) == pytest.approx(float(trace.log_prob_sum()), rel=1e-5)


@pytest.mark.parametrize("family", MODELS)
@pytest.mark.parametrize("ppl", [numpyro, pyro], ids=lambda ppl: ppl.__name__)
def test_unconditioned_program_draws_from_the_prior(family, ppl, x):
    """Every site is drawn, with the documented shapes; communality is diag(W Wᵀ)."""
    model = family(2, ppl=ppl)
    if ppl is numpyro:
        trace = handlers.trace(handlers.seed(model, 0)).get_trace(x)
    else:
        pyro.set_rng_seed(0)
        trace = poutine.trace(model).get_trace(torch.as_tensor(x)).nodes
    value = {name: np.asarray(trace[name]["value"]) for name in ("z", "loadings", "mean", "communality")}
    assert {name: v.shape for name, v in value.items()} == {
        "z": (300, 2), "loadings": (6, 2), "mean": (6,), "communality": (6,)
    }  # fmt: skip
    assert tuple(trace["noise_variance"]["value"].shape) == (() if family is PPCA else (6,))
    product = value["loadings"] @ value["loadings"].T
    np.testing.assert_allclose(value["communality"], np.diag(product), rtol=1e-5)


def test_log_joint_has_a_finite_gradient_under_vmap(x):
    """NUTS evaluates the marginal so: mapped over chains, in unconstrained space."""
    model = FactorAnalysis(2)
    params = jax.tree.map(lambda v: jnp.stack([v, 2 * v]), some_params(model, 6))
    density = jax.jit(jax.vmap(jax.grad(lambda p: log_density(model.marginal, (x,), {}, p)[0])))
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(density(params)))


def test_programs_are_values():
    assert PPCA(2) == PPCA(2) and hash(PPCA(2)) == hash(PPCA(2))
    assert PPCA(2).marginal == PPCA(2).marginal and hash(PPCA(2).posterior) == hash(PPCA(2).posterior)
    assert PPCA(2).posterior != PPCA(3).posterior and PPCA(2).posterior != PPCA(2).marginal
    assert PPCA(2) != FactorAnalysis(2) and PPCA(2) != PPCA(2, ppl=pyro)


# ---- bad input


@pytest.mark.parametrize("family", MODELS)
@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"latent_dim": 0}, "latent_dim is 0; give a whole number of at least 1"),
        ({"latent_dim": 1.5}, "latent_dim is 1.5; give a whole number"),
        ({"latent_dim": 1, "noise_scale": 0.0}, "noise_scale is 0.0; give a positive finite number"),
        ({"latent_dim": 1, "mean_scale": float("nan")}, "mean_scale is nan; give a positive finite"),
    ],
)
def test_refuses_bad_fields(family, fields, message):
    with pytest.raises(ValueError, match=f"{family.__name__}: {message}"):
        family(**fields)


@pytest.mark.parametrize("family", MODELS)
@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((5,), r"x has shape \(5,\), not \(rows, columns\); flatten each observation"),
        ((5, 2, 2), r"x has shape \(5, 2, 2\), not"),
        ((5, 3), "latent_dim is 3 but x has 3 columns; .* below the number of columns"),
        ((1, 4), "x has 1 rows, and a variance takes 2; give more rows"),
    ],
)
def test_refuses_bad_data(family, shape, message):
    model, x = family(3), np.zeros(shape, np.float32)
    with pytest.raises(ValueError, match=message):
        model.validate(x)
    with pytest.raises(ValueError, match=message):
        model.initial(jax.random.key(0), x)
    if shape != (1, 4):  # one row has no variance but has a density
        with pytest.raises(ValueError, match=message):
            handlers.seed(model, 0)(x)


def test_closed_form_refuses_nan():
    with pytest.raises(ValueError, match="PPCA: x has NaN or infinite entries, .* EM integrates NaN out"):
        PPCA(1).closed_form(np.full((4, 3), np.nan, np.float32))
