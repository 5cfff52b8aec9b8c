"""Bayesian PCA as a program: densities against scipy and PPCA, engines, relevance, bad input."""

from __future__ import annotations

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
from scipy import stats

from ppl_models.bayesian_pca import BayesianPCA, effective_dimension

GLOBALS = ("loadings", "loadings_precision", "mean", "noise_variance")


@pytest.fixture(scope="module")
def x() -> np.ndarray:
    """20 rows in 4 columns near a plane."""
    rng = np.random.default_rng(0)
    return (rng.normal(size=(20, 2)) @ rng.normal(size=(2, 4)) + 0.3 * rng.normal(size=(20, 4)) + 1).astype(np.float32)


def some_values(seed: int = 1) -> dict[str, np.ndarray]:
    """Values of all latents, float32, as a fit would substitute them."""
    rng = np.random.default_rng(seed)
    values = {
        "loadings": rng.normal(size=(4, 2)),
        "loadings_precision": rng.uniform(0.1, 3.0, size=2),
        "mean": rng.normal(size=4),
        "noise_variance": rng.uniform(0.3, 1.0),
        "z": rng.normal(size=(20, 2)),
    }
    return {name: np.asarray(value, np.float32) for name, value in values.items()}


def test_log_joint_is_the_formula(x):
    model, values = BayesianPCA(2, 1.5, 0.7, 3.0, 2.0, 0.5), some_values()
    g = {name: value.astype(np.float64) for name, value in values.items()}
    sd = np.sqrt(g["noise_variance"])
    expected = stats.invgamma(2.0, scale=0.5).logpdf(g["noise_variance"])
    expected += stats.gamma(1.5, scale=1 / 0.7).logpdf(g["loadings_precision"]).sum()
    expected += stats.norm(0, sd / np.sqrt(g["loadings_precision"])).logpdf(g["loadings"]).sum()
    expected += stats.norm(0, 3.0 * sd).logpdf(g["mean"]).sum()
    rows = stats.norm(0, 1).logpdf(g["z"]).sum()
    rows += stats.norm(g["z"] @ g["loadings"].T + g["mean"], sd).logpdf(x).sum()
    for num_data in (20, 100):
        mine, _ = log_density(handlers.seed(model, 0), (x,), {"num_data": num_data}, values)
        # a float32 sum of about 150 terms
        assert float(mine) == pytest.approx(expected + num_data / 20 * rows, rel=1e-5)


def test_marginal_and_posterior_make_up_the_joint(x):
    """p(x, z | g) = p(x | g) p(z | x, g) for every z, and the marginal is the multivariate normal."""
    model, values = BayesianPCA(2), some_values()

    def rows(program, site, given):
        traced = handlers.trace(handlers.substitute(handlers.seed(program, 0), data=given)).get_trace(x)
        return np.asarray(traced[site]["fn"].log_prob(traced[site]["value"]))

    covariance = values["loadings"] @ values["loadings"].T + values["noise_variance"] * np.eye(4)
    evidence = rows(model.marginal, "x", {n: values[n] for n in GLOBALS})
    # float32 sums of order 100
    np.testing.assert_allclose(evidence, stats.multivariate_normal(values["mean"], covariance).logpdf(x), rtol=1e-4)
    for seed in range(3):
        given = values | {"z": some_values(seed)["z"]}
        joint = rows(model, "x", given) + rows(model, "z", given)
        np.testing.assert_allclose(joint - rows(model.posterior, "z", given), evidence, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("part", ["joint", "marginal", "posterior"])
@pytest.mark.parametrize("holes", [False, True])
def test_engines_agree(part, holes, x):
    arguments: dict = {"num_data": 100}
    if holes:
        arguments["x_observed"] = np.random.default_rng(2).random(x.shape) > 0.3
        arguments["sample_weight"] = np.linspace(0, 2, len(x)).astype(np.float32)
    here, there, values = BayesianPCA(2), BayesianPCA(2, ppl=pyro), some_values()
    if part == "marginal":
        del values["z"]
    program, twin = (model if part == "joint" else getattr(model, part) for model in (here, there))
    mine, _ = log_density(handlers.seed(program, 0), (x,), arguments, values)
    tensors = {name: torch.as_tensor(value) for name, value in values.items()}
    arguments = {n: v if n == "num_data" else torch.as_tensor(v) for n, v in arguments.items()}
    with pyro.validation_enabled(False):
        trace = poutine.trace(poutine.condition(twin, data=tensors)).get_trace(torch.as_tensor(x), **arguments)
    assert float(mine) == pytest.approx(float(trace.log_prob_sum()), rel=1e-5)


@pytest.mark.parametrize("ppl", [numpyro, pyro], ids=lambda ppl: ppl.__name__)
def test_unconditioned_program_draws_from_the_prior(ppl, x):
    model = BayesianPCA(2, ppl=ppl)
    if ppl is numpyro:
        trace = handlers.trace(handlers.seed(model, 0)).get_trace(x)
    else:
        pyro.set_rng_seed(0)
        trace = poutine.trace(model).get_trace(torch.as_tensor(x)).nodes
    value = {name: np.asarray(trace[name]["value"]) for name in (*GLOBALS, "z", "communality")}
    assert {name: v.shape for name, v in value.items()} == {
        "loadings": (4, 2), "loadings_precision": (2,), "mean": (4,), "noise_variance": (), "z": (20, 2),
        "communality": (4,),
    }  # fmt: skip
    np.testing.assert_allclose(value["communality"], np.diag(value["loadings"] @ value["loadings"].T), rtol=1e-5)


def test_columns_are_student_t_a_priori():
    """Loadings over the noise, alpha integrated out: Student t with 2 a degrees of freedom and scale √(b / a)."""
    model = BayesianPCA(1, precision_shape=0.5, precision_rate=0.005)

    def draw(key):
        trace = handlers.trace(handlers.seed(model, key)).get_trace(jnp.zeros((1, 2)))
        return trace["loadings"]["value"][0, 0] / jnp.sqrt(trace["noise_variance"]["value"])

    draws = jax.jit(jax.vmap(draw))(jax.random.split(jax.random.key(0), 2000))
    # one test at a level of 1e-3, with a fixed seed
    assert stats.kstest(np.asarray(draws), stats.t(1, scale=0.1).cdf).pvalue > 1e-3


def test_holes_leave_out_what_is_not_seen(x):
    """The marginal of every row's seen part by scipy, and posterior and marginal make up the joint."""
    model, values = BayesianPCA(2), some_values()
    observed = np.random.default_rng(2).random(x.shape) > 0.3
    observed[5] = False
    holes = np.where(observed, x, np.float32(np.nan))

    def rows(program, site, given):
        program = handlers.substitute(handlers.seed(program, 0), data=given)
        traced = handlers.trace(program).get_trace(holes, x_observed=observed)
        return np.asarray(traced[site]["fn"].log_prob(traced[site]["value"]))

    covariance = values["loadings"] @ values["loadings"].T + values["noise_variance"] * np.eye(4)
    expected = [
        stats.multivariate_normal(values["mean"][o], covariance[np.ix_(o, o)]).logpdf(row[o]) if o.any() else 0.0
        for row, o in zip(x, observed, strict=True)
    ]
    evidence = rows(model.marginal, "x", {n: values[n] for n in GLOBALS})
    # float32 sums of order 100
    np.testing.assert_allclose(evidence, expected, rtol=1e-4, atol=1e-4)
    joint = rows(model, "x", values) + rows(model, "z", values)
    np.testing.assert_allclose(joint - rows(model.posterior, "z", values), evidence, rtol=1e-4, atol=1e-3)


def test_initial_takes_half_of_the_variance_for_noise(x):
    model = BayesianPCA(2)
    params = jax.tree.map(np.asarray, model.initial(jax.random.key(0), x))
    assert set(params) == set(GLOBALS) and all(v.dtype == np.float64 for v in params.values())
    wide = x.astype(np.float64)
    assert float(params["noise_variance"]) == pytest.approx(wide.var(0).mean() / 2, rel=1e-10)
    np.testing.assert_allclose(params["mean"], wide.mean(0), rtol=1e-10)
    other = model.initial(jax.random.key(1), x)
    assert not np.allclose(params["loadings"], other["loadings"])


# ---- what is identified


def test_invariants_do_not_feel_signs_order_and_rotation():
    model, g = BayesianPCA(2), {name: jnp.asarray(some_values()[name]) for name in GLOBALS}
    here = model.invariants(**g)
    flipped = g | {
        "loadings": g["loadings"][:, ::-1] * jnp.array([1, -1]),
        "loadings_precision": g["loadings_precision"][::-1],
    }
    there = model.invariants(**flipped)
    for name, value in here.items():
        np.testing.assert_allclose(there[name], value, rtol=1e-6, err_msg=name)
    angle = 0.7
    turn = jnp.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    turned = model.invariants(**g | {"loadings": g["loadings"] @ turn})
    for name in set(here) - {"sorted_precision"}:
        np.testing.assert_allclose(turned[name], here[name], rtol=1e-5, err_msg=name)
    values = np.linalg.eigvalsh(g["loadings"] @ g["loadings"].T)[::-1]
    np.testing.assert_allclose(here["spectrum"], values[:2], rtol=1e-5)


def test_effective_dimension_counts_directions_above_the_noise():
    """Signal variances 4, 0.5 and 0.04 under noise of 1 and of 0.2, in any rotation; draws keep their axes."""
    rng = np.random.default_rng(0)
    axes, _ = np.linalg.qr(rng.normal(size=(6, 3)))
    turn, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    loadings = axes * np.sqrt([4, 0.5, 0.04]) @ turn
    assert int(effective_dimension(loadings, 1.0)) == 1
    assert int(effective_dimension(loadings, 1.0, threshold=0.1)) == 2
    draws = effective_dimension(np.tile(loadings, (2, 5, 1, 1)), np.array([[1.0], [0.2]]) * np.ones((2, 5)))
    np.testing.assert_array_equal(draws, [[1] * 5, [2] * 5])


def test_programs_are_values():
    model = BayesianPCA(2)
    for part in ("marginal", "posterior", "mean_field"):
        assert getattr(model, part) == getattr(BayesianPCA(2), part)
        assert hash(getattr(model, part)) == hash(getattr(BayesianPCA(2), part))
        assert getattr(model, part) != getattr(BayesianPCA(3), part)
    assert model == BayesianPCA(2) and model != BayesianPCA(2, ppl=pyro) and model != model.mean_field


# ---- bad input


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"latent_dim": 0}, "latent_dim is 0; give a whole number of at least 1"),
        ({"latent_dim": 1.5}, "latent_dim is 1.5; give a whole number"),
        ({"latent_dim": 1, "precision_rate": 0.0}, "precision_rate is 0.0; give a positive finite number"),
        ({"latent_dim": 1, "precision_shape": float("inf")}, "precision_shape is inf; give a positive finite"),
    ],
)
def test_refuses_bad_fields(fields, message):
    with pytest.raises(ValueError, match=f"BayesianPCA: {message}"):
        BayesianPCA(**fields)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((5,), r"x has shape \(5,\), not \(rows, columns\); flatten each observation"),
        ((5, 3), "latent_dim is 3 but x has 3 columns; .* below the number of columns"),
        ((1, 4), "x has 1 rows, and a variance takes 2; give more rows"),
    ],
)
def test_refuses_bad_data(shape, message):
    model, x = BayesianPCA(3), np.zeros(shape, np.float32)
    for start in (model.initial, model.variational_initial, model.mean_field.variational_initial):
        with pytest.raises(ValueError, match=message):
            start(jax.random.key(0), x)
    if shape != (1, 4):  # one row has no variance but has a density
        with pytest.raises(ValueError, match=message):
            handlers.seed(model, 0)(x)
