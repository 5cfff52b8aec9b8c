"""The mixture against brute-force sums over z, numpy, scipy and the other engine."""

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
from scipy.special import logsumexp
from sklearn.datasets import load_digits

import ppl_models.mixture_rows as module
from ppl_models.covariances import STRUCTURES as STRUCTURES_OF
from ppl_models.gaussian_mixture import GaussianMixture

STRUCTURES = ["full", "tied", "diag", "spherical"]
K, D = 3, 2


@pytest.fixture(scope="module")
def x() -> np.ndarray:
    """60 rows from three overlapping Gaussians in the plane."""
    rng = np.random.default_rng(0)
    centres = np.array([[-2.0, 0.0], [0.5, 2.0], [2.0, -1.0]])
    return (centres[rng.integers(3, size=60)] + rng.normal(size=(60, 2)) * [1.0, 0.5]).astype(np.float32)


def parameters(covariance: str) -> dict[str, np.ndarray]:
    """Values of the mixture's parameters, float64."""
    rng = np.random.default_rng(1)
    roots = 0.4 * rng.normal(size=(K, D, D)) + np.eye(D)
    matrices = roots @ roots.transpose(0, 2, 1)
    variances = np.diagonal(matrices, axis1=1, axis2=2)
    covariances = {"full": matrices, "tied": matrices[0], "diag": variances, "spherical": variances[:, 0]}
    means = rng.normal(size=(K, D))
    return {"weights": np.array([0.2, 0.3, 0.5]), "means": means, "covariances": covariances[covariance]}


def matrices(params: dict, covariance: str) -> np.ndarray:
    """Covariances as matrices (K, D, D)."""
    values = np.asarray(params["covariances"], np.float64)
    if covariance in ("full", "tied"):
        return np.broadcast_to(values, (K, D, D))
    return np.stack([np.eye(D) * v for v in values])


def log_joint(params: dict, covariance: str, x: np.ndarray) -> np.ndarray:
    """log p(x_n, z_n = k) by scipy, (N, K), float64."""
    components = zip(params["weights"], params["means"], matrices(params, covariance), strict=True)
    return np.stack(
        [np.log(w) + stats.multivariate_normal(m, c).logpdf(np.asarray(x, np.float64)) for w, m, c in components], -1
    )


def one_step(model: GaussianMixture, params: dict, x: np.ndarray, **data: np.ndarray) -> tuple[float, dict]:
    """Log likelihood and the next parameters, compiled, on the host."""

    def step(params, x, data):
        log_likelihood, statistics = model.e_step(params, x, **data)
        return log_likelihood, model.m_step(statistics)

    log_likelihood, new = jax.jit(step)(params, x, data)
    return float(log_likelihood), {name: np.asarray(value) for name, value in new.items()}


def run(model: GaussianMixture, x: np.ndarray, num_steps: int) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Mean log likelihoods before each of the steps from ``initial``, and the last parameters."""

    def step(params, _):
        log_likelihood, statistics = model.e_step(params, x)
        return model.m_step(statistics), log_likelihood

    params, total = jax.jit(lambda key: jax.lax.scan(step, model.initial(key, x), length=num_steps))(jax.random.key(0))
    return np.asarray(total) / len(x), {name: np.asarray(value) for name, value in params.items()}


def float32(values: dict) -> dict:
    return {name: jnp.asarray(value, jnp.float32) for name, value in values.items()}


@pytest.mark.parametrize("covariance", STRUCTURES)
def test_e_step_is_the_marginal_of_the_program(covariance, x):
    """log p(x) = log sum_z p(x, z), the sum taken by running the program at every z."""
    model, params = GaussianMixture(K, covariance), parameters(covariance)

    @jax.jit
    def row_log_joint(z: jax.Array) -> jax.Array:
        with handlers.seed(rng_seed=0), handlers.substitute(data=float32(params) | {"z": z}):
            trace = handlers.trace(model).get_trace(jnp.asarray(x))
        return trace["z"]["fn"].log_prob(z) + trace["x"]["fn"].log_prob(x)

    marginal = logsumexp(np.stack([row_log_joint(jnp.full(len(x), k)) for k in range(K)]), axis=0)
    log_likelihood, _ = jax.jit(model.e_step)(params, x)
    # The program is float32 throughout: 1e-7 for each of 60 terms of size 1 to 10.
    assert float(log_likelihood) == pytest.approx(marginal.sum(), rel=2e-6)
    assert float(log_likelihood) == pytest.approx(logsumexp(log_joint(params, covariance, x), -1).sum(), rel=1e-6)


@pytest.mark.parametrize("covariance", STRUCTURES)
def test_one_step_equals_the_formulas_in_float64(covariance, x):
    model, params = GaussianMixture(K, covariance, reg_covar=1e-3), parameters(covariance)
    new = one_step(model, params, x)[1]
    assert {v.dtype for v in new.values()} == {np.dtype(np.float64)}

    joint = log_joint(params, covariance, x)
    r = np.exp(joint - logsumexp(joint, -1, keepdims=True))
    n = r.sum(0)
    means = r.T @ x / n[:, None]
    residual = x[:, None] - means
    scatter = np.einsum("nk,nki,nkj->kij", r, residual, residual)
    full = scatter / n[:, None, None] + 1e-3 * np.eye(D)
    variances = np.diagonal(full, axis1=1, axis2=2)
    expected = {
        "full": full,
        "tied": scatter.sum(0) / len(x) + 1e-3 * np.eye(D),
        "diag": variances,
        "spherical": variances.mean(-1),
    }[covariance]
    # Responsibilities are float32.
    np.testing.assert_allclose(new["weights"], n / len(x), atol=1e-6)
    np.testing.assert_allclose(new["means"], means, atol=3e-6)
    np.testing.assert_allclose(new["covariances"], expected, atol=3e-6)


@pytest.mark.parametrize("covariance", STRUCTURES)
def test_chunks_add_up(covariance, monkeypatch):
    """600 rows in chunks of 256: two whole ones, and a last one that overlaps the second."""
    rows = np.random.default_rng(2).normal(size=(600, D)).astype(np.float32)
    model, params = GaussianMixture(K, covariance), parameters(covariance)
    whole = jax.jit(model.e_step)(params, rows)
    monkeypatch.setattr(module, "_CHUNK", {"cpu": 1})
    monkeypatch.setattr(module, "_ACCELERATOR_CHUNK", 1)
    parts = jax.jit(lambda params, rows: model.e_step(params, rows))(params, rows)
    # The origin is the mean of the first chunk. Float32 products are rounded within a chunk, of which there are three.
    assert not np.allclose(whole[1].origin, parts[1].origin, atol=1e-3)
    moved = parts[0], module.move(STRUCTURES_OF[covariance], parts[1], whole[1].origin)
    for one, other in zip(jax.tree.leaves(whole), jax.tree.leaves(moved), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-4)


@pytest.mark.parametrize("covariance", STRUCTURES)
def test_an_offset_costs_no_digits(covariance, x):
    """Rows and parameters moved by 4096 give the same likelihood and the same, moved, step."""
    grid = (np.round(x * 512) / 512).astype(np.float32)  # float32 holds these plus 4096 exactly
    model, params = GaussianMixture(K, covariance), parameters(covariance)
    params["means"] = np.round(params["means"] * 512) / 512
    moved = params | {"means": params["means"] + 4096}
    (here, new), (there, new_moved) = one_step(model, params, grid), one_step(model, moved, grid + np.float32(4096))
    # Only the float32 rounding of the origin (5e-4 at 4096) makes a difference, of one unit in the last place.
    assert there == pytest.approx(here, rel=1e-6)
    np.testing.assert_allclose(new_moved["means"] - 4096, new["means"], atol=3e-6)
    np.testing.assert_allclose(new_moved["covariances"], new["covariances"], atol=3e-6)


@pytest.mark.parametrize("covariance", STRUCTURES)
def test_engines_agree_on_the_log_joint(covariance, x):
    """Contract 2, on a minibatch that stands for 100 rows."""
    params = parameters(covariance)
    model, other = GaussianMixture(K, covariance), GaussianMixture(K, covariance, ppl=pyro)
    z = np.random.default_rng(3).integers(K, size=len(x))
    values = {**model.site_values(params), "z": z}
    with handlers.substitute(data={"data": jnp.arange(len(x))}):
        ours, _ = log_density(model, (jnp.asarray(x),), {"num_data": 100}, values)
    conditioned = poutine.condition(other, {n: torch.tensor(np.asarray(v)) for n, v in values.items()})
    theirs = poutine.trace(conditioned).get_trace(torch.tensor(x), num_data=100).log_prob_sum()
    assert float(ours) == pytest.approx(float(theirs), rel=1e-6)  # float32, a sum of about 120 terms


@pytest.mark.parametrize("covariance", STRUCTURES)
def test_posterior_is_the_responsibilities_in_both_engines(covariance, x):
    params = parameters(covariance)
    joint = log_joint(params, covariance, x)
    expected = np.exp(joint - logsumexp(joint, -1, keepdims=True))

    @jax.jit
    def responsibilities(params):
        with handlers.seed(rng_seed=0), handlers.substitute(data=params):
            return handlers.trace(GaussianMixture(K, covariance).posterior).get_trace(jnp.asarray(x))["z"]["fn"].probs

    np.testing.assert_allclose(responsibilities(float32(params)), expected, atol=1e-6)

    values = GaussianMixture(K, covariance).site_values(params)
    guide = GaussianMixture(K, covariance, ppl=pyro).posterior
    conditioned = poutine.condition(guide, {n: torch.tensor(np.asarray(v)) for n, v in values.items()})
    probs = poutine.trace(conditioned).get_trace(torch.tensor(x)).nodes["z"]["fn"].probs
    np.testing.assert_allclose(probs, expected, atol=3e-6)  # covariances went through float32 precisions


def test_with_its_posterior_every_draw_gives_the_evidence(x):
    """log p(x, z) - log q(z | x) = log p(x) for any z."""
    model, values = GaussianMixture(K), float32(parameters("full"))

    @jax.jit
    def terms():
        with handlers.seed(rng_seed=4), handlers.substitute(data=values):
            guide = handlers.trace(model.posterior).get_trace(jnp.asarray(x))["z"]
        with handlers.seed(rng_seed=4), handlers.substitute(data=values | {"z": guide["value"]}):
            joint = handlers.trace(model).get_trace(jnp.asarray(x))
        log_joint = sum(joint[n]["fn"].log_prob(joint[n]["value"]) for n in ("z", "x"))
        return log_joint, guide["fn"].log_prob(guide["value"]), guide["value"]

    joint, guide, z = terms()
    assert len(np.unique(z)) == K
    evidence = logsumexp(log_joint(parameters("full"), "full", x), -1)
    np.testing.assert_allclose(joint - guide, evidence, atol=2e-5)  # float32 at |log p| up to 40


@pytest.mark.parametrize("ppl", [numpyro, pyro])
@pytest.mark.parametrize("covariance", STRUCTURES)
def test_prior_of_every_variance_is_the_same(covariance, ppl):
    """InverseGamma(nu / 2, nu s² / 2), by a Kolmogorov-Smirnov test; false alarm 1e-3 each, fixed seeds."""
    components, repeats = (2, 400) if covariance == "tied" else (400, 1)
    model = GaussianMixture(components, covariance, degrees_of_freedom=5.0, scale=0.5, ppl=ppl)

    def numpyro_draw(key):
        with handlers.seed(rng_seed=key):
            return handlers.trace(model).get_trace(jnp.zeros((1, 3)))["covariances"]["value"]

    if ppl is numpyro:
        draws = jax.jit(jax.vmap(numpyro_draw))(jax.random.split(jax.random.key(0), repeats))
    else:
        pyro.set_rng_seed(0)
        draws = [
            poutine.trace(model).get_trace(torch.zeros(1, 3)).nodes["covariances"]["value"] for _ in range(repeats)
        ]
        draws = torch.stack(draws)
    first = {"full": (..., 0, 0), "tied": (..., 0, 0), "diag": (..., 0), "spherical": ...}[covariance]
    sample = np.asarray(draws)[first].ravel()
    assert len(sample) == 400
    assert stats.kstest(sample, stats.invgamma(2.5, scale=2.5 * 0.25).cdf).pvalue > 1e-3


@pytest.mark.parametrize("covariance", STRUCTURES)
def test_initial_is_sorted_vectorised_and_ready(covariance, x):
    model = GaussianMixture(K, covariance)
    keys = jax.random.split(jax.random.key(0), 4)
    params = jax.tree.map(np.asarray, jax.jit(jax.vmap(model.initial, in_axes=(0, None)))(keys, x))
    assert (np.diff(params["means"][..., 0], axis=1) >= 0).all()
    np.testing.assert_allclose(params["weights"].sum(-1), 1)
    log_likelihood, new = one_step(model, {name: value[3] for name, value in params.items()}, x)
    assert np.isfinite(log_likelihood) and np.isfinite(new["covariances"]).all()
    alone = jax.jit(model.initial)(keys[0], x)
    for name in params:  # vectorised reductions round differently
        np.testing.assert_allclose(params[name][0], alone[name], rtol=1e-5, atol=1e-6)


def test_initial_finds_separated_clusters_in_many_rows():
    """20,000 rows, so that k-means works on a random part of them."""
    rng = np.random.default_rng(5)
    centres = np.array([[-20.0, 0.0], [0.0, 20.0], [20.0, 0.0], [40.0, 40.0]])
    rows = (centres[rng.integers(4, size=20_000)] + rng.normal(size=(20_000, 2))).astype(np.float32)
    keys = jax.random.split(jax.random.key(1), 10)
    params = jax.jit(jax.vmap(GaussianMixture(4).initial, in_axes=(0, None)))(keys, rows)
    error = np.abs(np.asarray(params["means"]) - centres).max(axis=(1, 2))
    # About 4,096 rows each: standard error 0.016 an entry, 5 of them. k-means++ misses a cluster now and then.
    assert (error < 0.08).sum() >= 8


@pytest.mark.parametrize("covariance", STRUCTURES)
def test_hard_data_stay_finite(covariance):
    """A constant column, a repeated column and repeated rows: reg_covar keeps the covariances positive."""
    rng = np.random.default_rng(6)
    base = rng.normal(size=(30, 1)).astype(np.float32)
    rows = np.repeat(np.concatenate([base, 3 * base, np.full_like(base, 7.0)], 1), 2, axis=0)
    model = GaussianMixture(K, covariance)
    bounds, params = run(model, rows, 20)
    assert np.isfinite(bounds).all() and all(np.isfinite(value).all() for value in params.values())


def test_all_rows_equal_and_no_more_rows_than_components():
    model = GaussianMixture(3)
    rows = np.ones((3, 2), np.float32)
    bounds, new = run(model, rows, 2)
    assert np.isfinite(bounds).all()
    np.testing.assert_allclose(new["means"], 1)
    np.testing.assert_allclose(new["covariances"], np.broadcast_to(1e-6 * np.eye(2), (3, 2, 2)), atol=1e-12)


@pytest.mark.parametrize("covariance", STRUCTURES)
def test_a_component_for_every_row_of_duplicates(covariance):
    """K = N = 6 with three pairs of equal rows: variances end at reg_covar (tied and spherical at what is left)."""
    rows = np.repeat(np.array([[0.0, 1.0], [5.0, -2.0], [9.0, 4.0]], np.float32), 2, axis=0)
    bounds, new = run(GaussianMixture(6, covariance), rows, 10)
    assert np.isfinite(bounds).all() and bounds[-1] > bounds[0]
    np.testing.assert_allclose(new["weights"].sum(), 1)
    np.testing.assert_allclose(np.unique(new["means"].round(3), axis=0), rows[::2], atol=1e-3)
    diagonal = np.diagonal(matrices_of(new, covariance), axis1=-2, axis2=-1)
    np.testing.assert_allclose(diagonal, 1e-6, rtol=1e-2)


@pytest.mark.parametrize("covariance", STRUCTURES)
def test_an_empty_component_takes_weight_zero_and_the_moments_of_all_rows(covariance, x):
    model, params = GaussianMixture(K, covariance), parameters(covariance)
    params["means"] = np.array([params["means"][0], [1e3, 1e3], params["means"][2]])
    log_likelihood, new = one_step(model, params, x)
    assert new["weights"][1] == 0 and new["weights"].sum() == pytest.approx(1)
    np.testing.assert_allclose(new["means"][1], x.mean(0), atol=1e-5)
    if covariance != "tied":
        spread = matrices_of(new, covariance)[1]
        total = np.cov(x.T, bias=True)
        want = {"full": total, "diag": np.diag(np.diag(total)), "spherical": np.eye(D) * np.trace(total) / D}
        np.testing.assert_allclose(spread, want[covariance] + 1e-6 * np.eye(D), atol=1e-4)
    after, again = one_step(model, new, x)
    assert after > log_likelihood and again["weights"][1] == 0


def matrices_of(params: dict, covariance: str) -> np.ndarray:
    """Covariances as matrices, as many as there are components."""
    values, k = np.asarray(params["covariances"]), len(params["weights"])
    if covariance in ("full", "tied"):
        return np.broadcast_to(values, (k, D, D))
    return np.stack([np.eye(D) * v for v in values])


@pytest.mark.parametrize("covariance", STRUCTURES)
def test_light_rows_make_no_component_empty(covariance, x):
    """Only ratios of weights matter, however small their sum."""
    model, params = GaussianMixture(K, covariance), parameters(covariance)
    weight = np.linspace(1.0, 3.0, len(x)).astype(np.float32)
    _, heavy = one_step(model, params, x, sample_weight=weight)
    _, light = one_step(model, params, x, sample_weight=weight * np.float32(2.0**-60))
    for name, value in heavy.items():
        np.testing.assert_allclose(light[name], value, rtol=1e-12)


@pytest.mark.parametrize("covariance", STRUCTURES)
def test_collapsed_components_far_from_the_middle_stay_finite(covariance):
    """Two components on equal rows at distance 1e6, of which float64 sums resolve variances of 1e-13 * 1e12."""
    rows = np.random.default_rng(0).normal(size=(200, 2))
    x = np.concatenate([rows, np.full((50, 2), 1e6), np.full((50, 2), -1e6)]).astype(np.float32)
    at = {"weights": np.array([2.0, 1.0, 1.0]) / 4, "means": np.array([[0.0, 0.0], [1e6, 1e6], [-1e6, -1e6]])}
    one = {"full": np.eye(2), "tied": np.eye(2), "diag": np.ones(2), "spherical": np.ones(())}[covariance]
    at["covariances"] = one if covariance == "tied" else np.stack([one] * 3)
    model = GaussianMixture(3, covariance)
    _, new = one_step(model, at, x)
    spread = matrices_of(new, covariance)
    np.testing.assert_allclose(new["weights"], [2 / 3, 1 / 6, 1 / 6], rtol=1e-6)
    np.testing.assert_allclose(new["means"], at["means"], atol=0.2)
    if covariance == "tied":  # the collapsed rows, a third of all, add nothing to the others' scatter
        np.testing.assert_allclose(spread[0], np.cov(rows.T, bias=True) * 2 / 3, atol=0.05)
    else:
        np.testing.assert_allclose(np.diagonal(spread[1:], axis1=1, axis2=2), 0.1, rtol=0.01)
    bound, again = one_step(model, new, x)
    assert np.isfinite(bound) and all(np.isfinite(v).all() for v in again.values())


@pytest.mark.parametrize("covariance", ["full", "tied"])
def test_singular_covariances_are_rounded_to_ones_that_float32_factorises(covariance):
    """Two equal columns at 2,000: entry by entry the eigenvalue 1e-6 beside 200 would round to one below zero."""
    column = np.random.default_rng(0).normal(2000, 10, (200, 1))
    model = GaussianMixture(1, covariance)
    x = np.concatenate([column, column], axis=1)
    _, params = one_step(model, model.initial(jax.random.key(0), x), x)
    rounded = model.single_precision(params)
    assert {v.dtype for v in rounded.values()} == {np.dtype(np.float32)}
    root = np.asarray(jnp.linalg.cholesky(rounded["covariances"]))
    assert np.isfinite(root).all()
    wide, narrow = (np.linalg.eigvalsh(np.asarray(p["covariances"], np.float64)).ravel() for p in (params, rounded))
    np.testing.assert_allclose(narrow[1], wide[1], rtol=1e-6)  # the other direction keeps its variance
    assert wide[0] < 1e-4 < narrow[0] < 1e-3  # 4 D eps times 200 is 2e-4
    regular = parameters(covariance)["covariances"]  # and regular ones are rounded as they are
    kept = GaussianMixture(K, covariance).single_precision(parameters(covariance))["covariances"]
    np.testing.assert_array_equal(kept, regular.astype(np.float32))


def test_free_parameters():
    """K = 3, D = 2: two weights, six means, and covariances of 9, 3, 6 and 3."""
    assert [GaussianMixture(3, c).num_parameters(2) for c in STRUCTURES] == [17, 11, 14, 11]


def test_digits_with_singular_covariances_never_fall():
    """64 columns, some constant, about 180 rows a component: covariances are singular but for reg_covar."""
    rows = load_digits().data.astype(np.float32)
    bounds, _ = run(GaussianMixture(10), rows, 15)
    assert bounds[-1] > bounds[0] + 1
    assert np.diff(bounds).min() > -1e-2  # reg_covar takes its part


@pytest.mark.parametrize("covariance", STRUCTURES)
def test_site_values_invert_the_covariances(covariance):
    params = parameters(covariance)
    values = GaussianMixture(K, covariance).site_values(params)
    assert set(values) == {"weights", "means", "precisions"}
    matrix = covariance in ("full", "tied")
    product = params["covariances"] @ values["precisions"] if matrix else params["covariances"] * values["precisions"]
    np.testing.assert_allclose(product, np.broadcast_to(np.eye(D), product.shape) if matrix else 1, atol=1e-6)


def test_models_are_values():
    model = GaussianMixture(3, "diag")
    assert model == GaussianMixture(3, covariance="diag") and hash(model) == hash(GaussianMixture(3, "diag"))
    assert model != GaussianMixture(3, "diag", ppl=pyro) and model.ppl is numpyro
    assert model.posterior == GaussianMixture(3, "diag").posterior


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_components": 0}, "num_components is 0; give a whole number of at least 1"),
        ({"num_components": 2.5}, "num_components is 2.5; give a whole number"),
        ({"covariance": "round"}, "covariance is 'round'; give one of 'full', 'tied', 'diag', 'spherical'"),
        ({"concentration": 0.0}, "concentration is 0.0; give a positive"),
        ({"mean_scale": -1.0}, "mean_scale is -1.0; give a positive"),
        ({"mean_scale": "1"}, "mean_scale is '1'; give a positive"),
        ({"num_components": True}, "num_components is True; give a whole number"),
        ({"degrees_of_freedom": float("nan")}, "degrees_of_freedom is nan; give a positive"),
        ({"scale": float("inf")}, "scale is inf; give a positive"),
        ({"reg_covar": -1e-6}, "reg_covar is -1e-06; give zero or"),
    ],
)
def test_bad_fields_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        GaussianMixture(**({"num_components": 3} | fields))


def test_bad_rows_are_refused(x):
    model, params = GaussianMixture(3), parameters("full")
    with pytest.raises(ValueError, match="x has 2 rows for 3 components; give at least one row a component"):
        model.initial(jax.random.key(0), x[:2])
    for rows in (x[:, 0], x[None], x[:, :0]):
        expected = r"x has shape \(.*\), not \(rows, columns\); make a single column with x.reshape\(-1, 1\)"
        with pytest.raises(ValueError, match=expected):
            model.initial(jax.random.key(0), rows)
        with pytest.raises(ValueError, match=expected):
            model.e_step(params, rows)
        with pytest.raises(ValueError, match=expected), handlers.seed(rng_seed=0):
            model(rows)
        with pytest.raises(ValueError, match=expected), handlers.seed(rng_seed=0):
            model.posterior(rows)
