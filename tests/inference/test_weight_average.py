"""Averages of weights, by their recursion, and where a fit reports them."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest

from guides import empty
from inference import SVI, averaged, fit
from inference.objectives import ELBO
from inference.weight_average import average

X = np.random.default_rng(0).normal(2.0, 1.0, size=(40, 1)).astype(np.float32)


def model(x, num_data=None):
    mean = numpyro.param("mean", jnp.zeros(1))
    with numpyro.plate("data", num_data or len(x), subsample_size=len(x)):
        numpyro.sample("x", dist.Normal(mean, 1.0).to_event(1), obs=x)


def recursion(path, decay):
    found = 0.0
    for n, value in enumerate(path, 1):
        d = min(decay, (1 + n) / (10 + n))
        found = d * found + (1 - d) * value
    return found


@pytest.mark.parametrize("decay", [0.5, 0.99])
def test_a_fit_reports_the_average_and_trains_at_the_weights(decay):
    # sgd on -log p per row: mean_n = x̄ (1 - 0.9^n) from zero, whatever is averaged beside
    run = fit(SVI(model, empty, ELBO(), averaged(optax.sgd(0.1), decay)), X, key=0, num_steps=30, validation=X)
    path = X.mean() * (1 - 0.9 ** np.arange(1, 31))
    expected = recursion(path, decay)
    assert run.params["mean"] == pytest.approx(expected, rel=1e-5)
    log_p = -0.5 * np.square(X - path[-2]).mean() - 0.5 * np.log(2 * np.pi)
    assert run.history["bound"][0, -1] == pytest.approx(log_p, rel=1e-5)  # of the weights, before the last step


def test_validation_is_of_the_average():
    svi = SVI(model, empty, ELBO(), averaged(optax.sgd(0.1), 0.9))
    run = fit(svi, X, key=0, num_steps=200, batch_size=4, validation=X)
    expected = -0.5 * np.square(X - np.asarray(run.params["mean"])).mean() - 0.5 * np.log(2 * np.pi)
    assert run.history["validation"][0, -1] == pytest.approx(expected, rel=1e-5)


@pytest.mark.slow
def test_a_resumed_run_has_the_same_average(tmp_path):
    svi = SVI(model, empty, ELBO(), averaged(optax.adam(0.1), 0.9))
    whole = fit(svi, X, key=0, num_steps=20, batch_size=8)
    fit(svi, X, key=0, num_steps=10, batch_size=8, checkpoint=tmp_path / "a")
    resumed = fit(svi, X, key=0, num_steps=20, batch_size=8, checkpoint=tmp_path / "a")
    assert resumed.params["mean"] == whole.params["mean"]


def test_it_is_found_inside_a_chain_and_absent_otherwise():
    params = {"w": jnp.ones(2)}
    chain = optax.chain(optax.clip(1.0), averaged(optax.adam(0.1), 0.9))
    state = chain.init(params)
    updates, state = jax.jit(chain.update)({"w": jnp.ones(2)}, state, params)
    moved = optax.apply_updates(params, updates)
    d = 2 / 11
    np.testing.assert_allclose(average(state, moved)["w"], d * 1 + (1 - d) * moved["w"], rtol=1e-6)
    assert average(optax.adam(0.1).init(params), moved) is moved
    with pytest.raises(ValueError, match="decay is 1.0"):
        averaged(optax.sgd(0.1), 1.0)
