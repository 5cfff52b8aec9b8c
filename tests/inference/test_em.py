"""EM through ``fit``: scikit-learn's steps, the bound never falls, convergence, and what is refused."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pyro
import pytest
from scipy import stats
from sklearn.datasets import load_digits, load_iris, load_wine
from sklearn.mixture import GaussianMixture as Sklearn

from inference.em import EM
from inference.errors import Incompatible
from inference.execution import make_keys
from inference.fit import fit
from inference.protocols import Conjugate
from ppl_models.gaussian_mixture import (
    GaussianMixture,
    k_means,
    k_means_plus_plus,
    random_responsibilities,
    random_rows,
)

STRUCTURES = ["full", "tied", "diag", "spherical"]


@dataclass(frozen=True)
class Mean:
    """x ~ N(mean, 1): the smallest program with exact steps."""

    def __call__(self, x: Any, num_data: int | None = None) -> None:
        mean = numpyro.sample("mean", dist.Normal(0.0, 10.0))
        with numpyro.plate("data", num_data or len(x), subsample_size=len(x)):
            numpyro.sample("x", dist.Normal(mean, 1.0), obs=x)

    def posterior(self, x: Any, num_data: int | None = None) -> None:
        numpyro.sample("mean", dist.Normal(0.0, 10.0))

    def initial(self, key: jax.Array, x: jax.Array) -> dict[str, jax.Array]:
        return {"mean": jax.random.normal(key, dtype=jnp.float32)}

    def e_step(self, params: dict[str, jax.Array], x: jax.Array) -> tuple[jax.Array, Any]:
        with jax.enable_x64(True):
            x = x.astype(jnp.float64)
            return -0.5 * jnp.sum((x - params["mean"]) ** 2 + jnp.log(2 * jnp.pi)), (x.sum(), len(x))

    def m_step(self, statistics: Any) -> dict[str, jax.Array]:
        with jax.enable_x64(True):
            return {"mean": statistics[0] / statistics[1]}


@pytest.fixture(scope="module")
def iris() -> np.ndarray:
    return load_iris().data.astype(np.float32)


@pytest.fixture(scope="module")
def clusters() -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """3,000 rows from a known mixture of three in the plane, full covariances."""
    rng = np.random.default_rng(0)
    truth = {
        "weights": np.array([0.2, 0.3, 0.5]),
        "means": np.array([[-4.0, 0.0], [0.0, 3.0], [4.0, -1.0]]),
        "covariances": np.array([[[1.0, 0.5], [0.5, 1.0]], [[0.5, 0.0], [0.0, 1.5]], [[1.5, -0.7], [-0.7, 0.8]]]),
    }
    z = rng.choice(3, size=3000, p=truth["weights"])
    roots = np.linalg.cholesky(truth["covariances"])
    x = truth["means"][z] + np.einsum("nij,nj->ni", roots[z], rng.normal(size=(3000, 2)))
    return x.astype(np.float32), truth


DATA = {
    "iris": (lambda: load_iris().data, 3),
    "wine": (lambda: load_wine().data, 3),  # columns from 0.1 to 1700
    "digits": (lambda: load_digits().data, 10),  # constant columns, and components of fewer rows than columns
    "simulated": (lambda: np.random.default_rng(2).standard_t(4, size=(500, 4)) * [1, 10, 100, 1] + [0, 0, 0, 1e3], 5),
}


@pytest.mark.parametrize("covariance", STRUCTURES)
@pytest.mark.parametrize("name", DATA)
def test_equals_scikit_learn_from_the_same_start(name, covariance):
    """Ten steps; scikit-learn's are float64 on the same float32 rows, ours have float32 responsibilities."""
    make, components = DATA[name]
    x = make().astype(np.float32)
    model = GaussianMixture(components, covariance)
    start = {n: np.asarray(v) for n, v in jax.jit(model.initial)(jax.random.key(1), x).items()}
    covariances = start["covariances"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scikit-learn says that 10 steps are no convergence
        theirs = Sklearn(
            components,
            covariance_type=covariance,
            tol=0,
            max_iter=10,
            weights_init=start["weights"],
            means_init=start["means"],
            precisions_init=np.linalg.inv(covariances) if covariance in ("full", "tied") else 1 / covariances,
        ).fit(x.astype(np.float64))
    if name == "iris":  # through fit; the others skip what it compiles besides the steps
        run = fit(EM(model, tolerance=0.0, initial=start), x, key=0, num_steps=10)
        bounds, params = run.history["bound"][0], run.params
        score = theirs.score(x.astype(np.float64))
        assert run.draws.sample_stats["lp"][0, 0] / len(x) == pytest.approx(score, rel=1e-6)
    else:
        bounds, params = steps(model, start, x, 10)
    np.testing.assert_allclose(bounds, theirs.lower_bounds_, rtol=1e-6)
    for n in start:
        want = getattr(theirs, f"{n}_")
        np.testing.assert_allclose(params[n], want, atol=1e-5 * np.abs(want).max())


def steps(model: GaussianMixture, start: dict, x: np.ndarray, count: int) -> tuple[np.ndarray, dict]:
    """Mean log likelihoods before each of some steps, and the parameters after them."""

    def step(params, _):
        log_likelihood, statistics = model.e_step(params, x)
        return model.m_step(statistics), log_likelihood

    @jax.jit
    def run():
        with jax.enable_x64(True):
            first = {name: jnp.asarray(value, jnp.float64) for name, value in start.items()}
        return jax.lax.scan(step, first, length=count)

    params, total = run()
    return np.asarray(total) / len(x), {name: np.asarray(value) for name, value in params.items()}


@pytest.mark.parametrize("covariance", STRUCTURES)
def test_the_bound_never_falls(covariance, iris):
    """Eight starts, from which no component collapses. Rounding: rows and history are float32, 1e-7 of their size."""
    run = fit(EM(GaussianMixture(3, covariance, reg_covar=0.0), tolerance=0.0), iris, key=0, num_steps=60, num_chains=8)
    bound = run.history["bound"]
    assert np.diff(bound, axis=1).min() > -2e-6
    assert (bound[:, -1] > bound[:, 0] + 0.05).all()


def test_recovers_the_truth_within_its_standard_errors(clusters):
    x, truth = clusters
    run = fit(EM(GaussianMixture(3)), x, key=3, num_chains=4)
    # Rows a component: 600, 900, 1500. Clusters hardly overlap, so errors are those of known labels; 5 of them.
    n = 3000 * truth["weights"]
    variances = np.diagonal(truth["covariances"], axis1=1, axis2=2)
    assert (np.abs(run.params["weights"] - truth["weights"]) < 5 * np.sqrt(truth["weights"] / 3000)).all()
    assert (np.abs(run.params["means"] - truth["means"]) < 5 * np.sqrt(variances / n[:, None])).all()
    scale = np.sqrt(variances[:, :, None] * variances[:, None])
    error = np.abs(run.params["covariances"] - truth["covariances"])
    assert (error < 5 * scale * np.sqrt(2 / n)[:, None, None]).all()


def test_stops_when_the_bound_does(iris):
    run = fit(EM(GaussianMixture(3), tolerance=1e-4), iris, key=4)
    gains = np.diff(run.history["bound"][0])
    assert run.info["num_steps"] < 100
    assert gains[-1] < 1.1e-4 and (gains[:-1] > 0.9e-4).all()  # the history is float32, gains were not


def test_stops_at_max_steps(iris):
    with pytest.warns(UserWarning, match="max_steps, 4, before it converged"):
        assert fit(EM(GaussianMixture(3), max_steps=4), iris, key=4).info["num_steps"] == 4


def test_a_chain_does_not_depend_on_the_others(iris):
    """A chain that has converged waits unchanged for those that have not."""
    algorithm = EM(GaussianMixture(4, "tied"), tolerance=1e-3)
    together = fit(algorithm, iris, key=5, num_chains=6)
    alone = fit(algorithm, iris, key=5)
    bounds, bound = together.history["bound"], alone.history["bound"][0]
    assert bounds.shape[1] > len(bound)
    chain = int(np.argmin(np.abs(bounds[:, : len(bound)] - bound).max(axis=1)))  # restarts come sorted
    np.testing.assert_allclose(bounds[chain, : len(bound)], bound, atol=2e-6)
    assert np.ptp(bounds[chain, len(bound) :]) < 2e-6
    for name, value in alone.draws.params.items():
        np.testing.assert_allclose(together.draws.params[name][chain], value[0], atol=1e-5)


def test_restarts_come_best_first_with_the_estimate_as_their_draw(iris):
    run = fit(EM(GaussianMixture(5, "diag"), initial=random_rows), iris, key=6, num_chains=5)
    lp = run.draws.sample_stats["lp"]
    assert lp.shape == (5, 1) and (np.diff(lp[:, 0]) <= 1e-3).all() and np.ptp(lp) > 1
    assert run.draws.posterior["means"].shape == (5, 1, 5, 4)
    np.testing.assert_array_equal(run.draws.posterior["means"][0, 0], run.params["means"])
    np.testing.assert_allclose(run.draws.posterior["precisions"] * run.draws.posterior["covariances"], 1, rtol=1e-6)
    assert {value.dtype for value in run.params.values()} == {np.dtype(np.float32)}
    # The program's own marginal, by enumeration, at the estimate. Float32 covariances cost 1e-7 of their precision.
    assert run.log_likelihood(iris).mean * len(iris) == pytest.approx(lp[0, 0], rel=1e-4)


def test_knows_programs_only_by_their_steps():
    x = np.random.default_rng(7).normal(2.0, size=40).astype(np.float32)
    model = Mean()
    assert isinstance(model, Conjugate) and isinstance(GaussianMixture(2), Conjugate)
    run = fit(EM(model), x, key=8, num_chains=2)
    assert run.info["num_steps"] == 3  # one step there, one that gains nothing measured after it
    np.testing.assert_allclose(run.draws.params["mean"], x.mean(), rtol=1e-6)
    expected = -0.5 * np.sum((x - x.mean()) ** 2 + np.log(2 * np.pi))
    np.testing.assert_allclose(run.draws.sample_stats["lp"][:, 0], expected, rtol=1e-6)


def test_a_start_is_a_value(iris):
    model = GaussianMixture(3)
    start = {name: np.array(value) for name, value in model.initial(jax.random.key(0), iris).items()}
    algorithm = EM(model, initial=start)
    same = EM(model, initial={name: value.copy() for name, value in reversed(start.items())})
    assert algorithm == same and hash(algorithm) == hash(same) and repr(algorithm) == repr(same)
    other = start | {"weights": start["weights"][::-1]}
    assert algorithm != EM(model, initial=other) and repr(algorithm) != repr(EM(model, initial=other))
    assert algorithm != EM(model) and EM(model) == EM(GaussianMixture(3))
    before = algorithm.initial["means"].copy()
    start["means"] += 1
    np.testing.assert_array_equal(algorithm.initial["means"], before)
    with pytest.raises(ValueError, match="read-only"):
        algorithm.initial["means"] += 1
    runs = [fit(a, iris, key=key, num_chains=2) for a, key in ((algorithm, 0), (same, 1))]
    np.testing.assert_array_equal(runs[0].history["bound"], runs[1].history["bound"])  # keys play no part


def test_evaluate_is_the_mean_log_likelihood(iris):
    train, test = iris[::2], iris[1::2]
    run = fit(EM(GaussianMixture(3), tolerance=0.0), train, key=9, validation=test, num_steps=100)
    assert run.history["validation"][0, -1] == pytest.approx(run.log_likelihood(test).mean, abs=1e-4)


def test_a_singular_covariance_gives_the_likelihood_of_the_parameters_handed_out():
    """Two equal columns: float32 cannot hold the fitted covariance, and what stands for it is what is reported."""
    column = np.random.default_rng(0).normal(2000, 10, (200, 1))
    x = np.concatenate([column, column], axis=1).astype(np.float32)
    run = fit(EM(GaussianMixture(1)), x, key=0)
    covariance = np.asarray(run.params["covariances"][0], np.float64)
    want = stats.multivariate_normal(np.asarray(run.params["means"][0], np.float64), covariance).logpdf(x).mean()
    # Float32 Cholesky factors at a condition of 1e6 are good to a few parts in a hundred: 0.05 nats.
    assert run.log_likelihood(x).mean == pytest.approx(want, abs=0.05)
    assert float(run.to_arviz().sample_stats["lp"].mean()) / len(x) == pytest.approx(want, abs=0.01)
    assert np.isfinite(run.generate(3)["x"]).all()


def test_programs_that_do_not_fit_are_refused():
    def plain(x):
        numpyro.sample("x", dist.Normal(0.0, 1.0).expand(x.shape), obs=x)

    with pytest.raises(Incompatible, match="plain has no initial, e_step, m_step, posterior: use SVI"):
        EM(plain)
    with pytest.raises(Incompatible, match="this GaussianMixture has ppl=pyro: leave ppl out, or use PyroSVI"):
        EM(GaussianMixture(3, ppl=pyro))


@pytest.mark.parametrize("start", [k_means, k_means_plus_plus, random_rows, random_responsibilities])
def test_functions_say_where_to_start(start, iris):
    algorithm = EM(GaussianMixture(3, "diag"), tolerance=0.0, initial=start)
    assert algorithm == EM(GaussianMixture(3, "diag"), tolerance=0.0, initial=start) != EM(GaussianMixture(3, "diag"))
    run = fit(algorithm, iris, key=10, num_steps=2, num_chains=3)
    key = make_keys(jax.random.split(jax.random.key(10))[0], 3).chains[1]
    params = jax.jit(lambda key: start(algorithm.model, key, iris))(jax.random.fold_in(key, 0))
    first = float(jax.jit(algorithm.model.e_step)(params, iris)[0]) / len(iris)
    assert np.abs(run.history["bound"][:, 0] - first).min() < 1e-4  # vectorised sums round differently


def test_starts_from_another_fit(iris):
    """A warm start goes on where the other fit ended, whose parameters are float32."""
    model = GaussianMixture(3, "tied")
    first = fit(EM(model, tolerance=0.0), iris, key=11, num_steps=10)
    more = fit(EM(model, tolerance=0.0, initial=first.params), iris, key=0, num_steps=10)
    whole = fit(EM(model, tolerance=0.0), iris, key=11, num_steps=20)
    np.testing.assert_allclose(more.history["bound"][0], whole.history["bound"][0, 10:], atol=3e-6)


def test_minibatches_and_other_data_are_refused(iris):
    algorithm = EM(GaussianMixture(3))
    with pytest.raises(Incompatible, match="the batch has 50 of 150: use batch_size=None, or StepwiseEM"):
        fit(algorithm, iris, key=0, batch_size=50)
    with pytest.raises(Incompatible, match="no argument 'y'"):
        fit(algorithm, {"y": iris}, key=0)
    with pytest.raises(ValueError, match="x has 2 rows for 3 components"):
        fit(algorithm, iris[:2], key=0)
    with pytest.raises(ValueError, match=r"x has shape \(150,\), not \(rows, columns\)"):
        fit(algorithm, iris[:, 0], key=0)


def test_a_start_of_other_shapes_is_refused(iris):
    model = GaussianMixture(3)
    start = {name: np.asarray(value) for name, value in model.initial(jax.random.key(0), iris).items()}
    for wrong in ({"means": start["means"]}, start | {"means": start["means"][:, :2]}):
        with pytest.raises(Incompatible, match=r"EM's initial has shapes .* GaussianMixture on these rows takes"):
            fit(EM(model, initial=wrong), iris, key=0)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"tolerance": -1.0}, "tolerance is -1.0; give zero or a positive number of nats per row"),
        ({"tolerance": float("nan")}, "tolerance is nan"),
        ({"max_steps": 0}, "max_steps is 0; expected a whole number of at least 1"),
    ],
)
def test_bad_fields_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        EM(GaussianMixture(3), **fields)
