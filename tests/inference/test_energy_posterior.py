"""What a machine learned by contrastive divergence answers: draws, completions, and its groups in ArviZ."""

from __future__ import annotations

import arviz as az
import jax
import numpy as np
import optax
import pytest
from boltzmann_exact import MACHINES, D, draws, excess, given_observed, law, log_partition, random_params

from guides import empty
from inference import (
    EM,
    SVI,
    BadData,
    ContrastiveDivergence,
    Fit,
    Incompatible,
    MaximumLikelihood,
    Tempering,
    compare,
    energy_posterior,
    fit,
)
from inference.data import as_data
from inference.objectives import ELBO
from ppl_models import RBM, GaussianMixture


@pytest.fixture(
    scope="module",
    params=["RBM", "Gaussian", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("general", "tempered"))],
)
def run(request):
    tempered = request.param == "tempered"
    machine = MACHINES["RBM" if tempered else request.param]
    x = draws(machine, random_params(machine, 1), 200, 0)[0]
    options = {"persistent": True, "sampler": Tempering(3)} if tempered else {}
    return fit(ContrastiveDivergence(machine, **options), x, key=0, num_steps=200, progress=False)


@pytest.mark.slow
def test_draws_follow_the_machine(run):
    """New rows by chains, and hidden units given rows; total variation as in the samplers' tests."""
    params = {n: np.asarray(v) for n, v in run.params.items()}
    v = run.generate(2000, key=1)["x"]
    h = run.sample_posterior(v)["h"][0]
    assert v.shape == (2000, D) and excess(v, h, law(run.model, params)) < 4
    again = run.predict(run.data.arrays["x"], 10)["x"]
    assert again.shape == (10, 200, D)
    assert excess(again.reshape(-1, D), run.sample_posterior(again.reshape(-1, D))["h"][0], law(run.model, params)) < 4


def test_means_given_hidden_units(run):
    x = run.data.arrays["x"][:20]
    h = run.sample_posterior(x, 400)["h"]
    expected = np.asarray(run.model.visible_mean(run.params, np.broadcast_to(x, (400, *x.shape)), h)).mean(0)
    found = run.reconstruct(x, num_samples=400)["x"]
    np.testing.assert_allclose(found, expected, atol=1e-5)  # the same keys, the mean of float32


def test_rows_given_hidden_units_have_noise_of_their_own():
    """A machine of fair coins: rows drawn given hidden units do not repeat them; 4.5 standard errors."""
    machine = RBM(D)
    params = {"weights": np.zeros((D, D)), "visible_bias": np.zeros(D), "hidden_bias": np.zeros(D)}
    params = {n: np.float32(v) for n, v in params.items()}
    batch, keys = as_data(np.zeros((2000, D))).whole(), jax.random.split(jax.random.key(0), 1)
    h = energy_posterior.local_draws(machine, empty, params, {}, keys, batch)["h"][0]
    v = energy_posterior.predict(machine, empty, params, {}, keys, batch, expected=False)["x"][0]
    assert abs(np.corrcoef(np.ravel(h), np.ravel(v))[0, 1]) < 4.5 / (2000 * D) ** 0.5


def test_rows_outside_the_support_are_refused():
    """Where they are observed; entries that are drawn anew may hold anything."""
    x = draws(MACHINES["RBM"], random_params(MACHINES["RBM"]), 20, 0)[0]
    run = fit(ContrastiveDivergence(RBM(2)), x, key=0, num_steps=2, progress=False)
    seen = np.array([True, False, True])
    with pytest.raises(BadData, match=r"outside its likelihood's support, boolean: row 0 holds [0-9.]+, and"):
        run.log_likelihood(x + 0.5)
    with pytest.raises(BadData, match="outside its likelihood's support"):
        run.complete(x + 0.5, observed=seen)
    grey = np.where(seen, x, 0.5)
    assert set(np.unique(run.complete(grey, observed=seen, num_sweeps=2)["x"])) <= {0.0, 1.0}


@pytest.mark.slow
def test_completions_follow_the_conditional_law(run):
    params, seen = {n: np.asarray(v) for n, v in run.params.items()}, np.array([True, False, True])
    rows = np.tile(np.float32([1.0, 0.0, 0.0]), (4000, 1))
    v = run.complete(rows, seen, num_sweeps=50)["x"]
    assert (v[:, seen] == rows[:, seen]).all()
    h = run.sample_posterior(v, key=1)["h"][0]
    assert excess(v[:, ~seen], h, given_observed(run.model, params, rows[0], seen)) < 4
    each = np.zeros((4000, D), bool)
    each[::2] = True
    v = run.complete(rows, each)["x"]
    assert (v[::2] == rows[::2]).all() and not (v[1::2] == rows[1::2]).all()


def test_inference_data_has_hidden_units_free_energies_and_chains(run):
    data, x = run.to_arviz(), run.data.arrays["x"]
    hidden = np.asarray(jax.jit(run.model.hidden_mean)(run.params, x))
    free = np.asarray(jax.jit(run.model.free_energy)(run.params, x))
    np.testing.assert_allclose(data.posterior["hidden"][0, 0], hidden, atol=1e-6)
    np.testing.assert_allclose(data.posterior["free_energy"][0, 0], free, atol=1e-5)
    params = {n: np.asarray(v) for n, v in run.params.items()}
    np.testing.assert_allclose(data.log_likelihood["x"], -free - log_partition(run.model, params), atol=1e-4)
    assert data.posterior_predictive["x"].shape[2:] == x.shape
    chains = data.machine["free_energy"]
    assert chains.dims == ("chain", "draw") and chains.shape == (20, 200)
    summary = az.summary(data.machine)  # pyright: ignore[reportArgumentType]
    assert float(summary["r_hat"].iloc[0]) < 1.05 and float(summary["ess_bulk"].iloc[0]) > 400


def test_restarts_and_files(tmp_path):
    x = draws(MACHINES["RBM"], random_params(MACHINES["RBM"]), 50, 0)[0]
    algorithm = ContrastiveDivergence(RBM(2))
    run = fit(algorithm, x, key=0, num_steps=20, num_chains=3, progress=False)
    assert run.history["free_energy"].shape == (3, 20) and not np.array_equal(*run.draws.params["weights"][:2])
    run.save(tmp_path / "run")
    loaded = Fit.load(tmp_path / "run", algorithm)
    assert loaded.log_likelihood(x).mean == run.log_likelihood(x).mean
    assert loaded.generate(7)["x"].shape == (7, D)  # from blank rows
    assert set(compare([run], x).rows[0].log_likelihood.rows.shape) == {50}


def test_exact_fits_complete_rows_too():
    x = draws(MACHINES["RBM"], random_params(MACHINES["RBM"]), 50, 0)[0]
    seen = np.array([True, True, False])
    em = fit(EM(RBM(2)), x, key=0, num_steps=3, progress=False)
    svi = SVI(MaximumLikelihood(RBM(2)), empty, ELBO(), optax.sgd(0.1))
    climbed = fit(svi, x, key=0, num_steps=3, progress=False)
    for run in (em, climbed):
        assert (run.complete(x, seen)["x"][:, seen] == x[:, seen]).all()


def test_a_mixture_has_nothing_to_clamp():
    x = np.random.default_rng(0).normal(size=(30, 2)).astype(np.float32)
    run = fit(EM(GaussianMixture(1)), x, key=0, num_steps=2, progress=False)
    with pytest.raises(Incompatible, match="GaussianMixture cannot complete rows: an energy program can .RBM"):
        run.complete(x, np.array([True, False]))
