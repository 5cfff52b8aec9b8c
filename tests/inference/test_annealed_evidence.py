"""Annealed importance sampling of rows: unbiased at any schedule, and it encloses the exact evidence."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from scipy import stats

from guides import MeanField, empty
from inference import SVI, BadData, Incompatible, annealed_evidence, fit, simulated_evidence
from inference.data import as_data
from inference.objectives import ELBO
from inference.protocols import Batch
from inference.row_target import row_latents, values_of
from ppl_models import PPCA

W, NOISE = np.array([[1.0, 0.8], [0.9, -0.1], [0.2, 0.7]]), 0.6
COVARIANCE = W @ W.T + NOISE**2 * np.eye(3)
X = np.random.default_rng(0).multivariate_normal(np.zeros(3), COVARIANCE, 40).astype(np.float32)
EVIDENCE = stats.multivariate_normal(np.zeros(3), COVARIANCE)


def linear(x, num_data=None):
    w = numpyro.param("w", jnp.asarray(W))
    with numpyro.plate("data", num_data or len(x), subsample_size=len(x)):
        z = numpyro.sample("z", dist.Normal(jnp.zeros((len(x), 2)), 1).to_event(1))
        numpyro.sample("x", dist.Normal(z @ w.T, NOISE).to_event(1), obs=x)


@pytest.fixture(scope="module")
def run():
    return fit(SVI(linear, MeanField(linear), ELBO(), optax.sgd(0.0)), X, key=0, num_steps=1)


@pytest.mark.slow
def test_both_directions_enclose_the_exact_evidence(run):
    coarse = np.linspace(0, 1, 6)
    real = annealed_evidence(run, X, num_chains=64, betas=coarse, num_leapfrog=3)
    truth = EVIDENCE.logpdf(X)
    # E[w] = p(x), with five temperatures as with five hundred: 40 rows, at four standard errors of their mean ratio.
    ratio = np.exp(real.rows - truth)
    error = np.sqrt(np.mean(ratio**2 * real.variance) / len(X))
    assert abs(ratio.mean() - 1) < 4 * error < 0.3
    # One chain's log w is low by its variance / 2: with few temperatures the bracket is open, and the truth inside.
    wide = simulated_evidence(run, 40, num_chains=2, betas=coarse, num_leapfrog=3)
    narrow = simulated_evidence(run, 40, num_chains=16, betas=np.linspace(0, 1, 61), num_leapfrog=3)
    assert wide.gap > narrow.gap > -4 * (narrow.forward.mc_error + narrow.reverse.mc_error)
    assert str(narrow).startswith("[") and "reverse AIS" in str(narrow)


def test_simulated_rows_have_the_evidence_between(run, monkeypatch):
    """The rows are caught on their way, so that the truth is that of the same rows."""
    import sys

    module = sys.modules["inference.annealed_evidence"]
    caught = []
    simulate = module._simulate

    def watched(*args):
        def call(*inputs):
            found = simulate(*args)(*inputs)
            caught.append(np.asarray(found[1].data["x"]))
            return found

        return call

    monkeypatch.setattr(module, "_simulate", watched)
    found = simulated_evidence(run, 60, num_chains=16, betas=np.linspace(0, 1, 61), num_leapfrog=3)
    truth = EVIDENCE.logpdf(caught[0])
    # They follow the model: the mean evidence of 60 rows against its exact expectation, at four standard errors.
    assert abs(truth.mean() - -EVIDENCE.entropy()) < 4 * truth.std() / np.sqrt(60)
    for estimate, sign in ((found.forward, 1), (found.reverse, -1)):
        away = sign * (truth - estimate.rows)  # how far on the side where it should be
        assert away.mean() > -4 * estimate.mc_error  # in expectation not on the other
        assert abs(away.mean()) < 0.1  # 16 chains of 60 temperatures; a wrong weight would be off by nats
    # Row by row both are near: 60 rows, twice, at six stated standard errors and the bias of a log.
    for estimate in (found.forward, found.reverse):
        assert (np.abs(estimate.rows - truth) < 6 * np.sqrt(estimate.variance) + 0.1).all()


def spread(x, log_noise, shift, num_data=None):
    """Place and noise that inputs of the row say."""
    with numpyro.plate("data", num_data or len(x), subsample_size=len(x)):
        z = numpyro.sample("z", dist.Normal(shift, 1))
        numpyro.sample("x", dist.Normal(z, jnp.exp(log_noise)), obs=x)


def test_rows_are_simulated_at_inputs_of_the_fit(run, monkeypatch):
    """The blank rows are caught on their way: inputs of rows of the fit, not zeros."""
    import sys

    class Caught(Exception):
        pass

    def catch(*_):
        def call(values, supports, key, blank):
            raise Caught(blank)

        return call

    monkeypatch.setattr(sys.modules["inference.annealed_evidence"], "_simulate", catch)
    n = np.arange(1, 51, dtype=np.float32)
    rows = as_data({"x": 0 * n, "log_noise": n, "shift": -n})
    algorithm = SVI(spread, empty, ELBO(), optax.sgd(0.0))
    at_start = replace(run, algorithm=algorithm, params={}, data=rows, shapes=rows.whole().data)
    with pytest.raises(Caught) as caught:
        simulated_evidence(at_start, 20)
    found = {name: np.asarray(v) for name, v in caught.value.args[0].data.items()}
    assert set(found["log_noise"]) < set(n) and len(set(found["log_noise"])) > 5 and len(found["x"]) == 20
    np.testing.assert_array_equal(found["shift"], -found["log_noise"])  # of one row
    with pytest.raises(BadData, match=r"\['log_noise', 'shift'\] are inputs of the model.*does not hold its rows"):
        simulated_evidence(replace(at_start, data=None), 10)


def mixed(x, num_data=None):
    """A positive latent, a real one in a nested plate, a label that is summed out."""
    with numpyro.plate("data", num_data or len(x), subsample_size=len(x), dim=-1):
        k = numpyro.sample("k", dist.Categorical(jnp.array([0.3, 0.7])), infer={"enumerate": "parallel"})
        rate = numpyro.sample("rate", dist.Gamma(2.0, jnp.ones(len(x))))
        with numpyro.plate("parts", 2, dim=-2):
            part = numpyro.sample("part", dist.Normal(jnp.where(k == 0, -1.0, 1.0), 1.0))
        numpyro.sample("y", dist.Poisson(rate), obs=x[:, 0])
        numpyro.sample("x", dist.Normal(part.T, 0.5).to_event(1), obs=x[:, 1:])


@pytest.mark.slow
def test_supports_plates_and_labels_against_conjugacy(run):
    rng = np.random.default_rng(1)
    x = np.concatenate([rng.poisson(2, (30, 1)), rng.normal(size=(30, 2))], axis=1).astype(np.float32)
    at_start = replace(run, algorithm=SVI(mixed, empty, ELBO(), optax.sgd(0.0)), params={})
    found = annealed_evidence(at_start, x, num_chains=32, betas=np.linspace(0, 1, 41), num_leapfrog=4)
    parts = [np.log(p) + stats.norm(c, np.sqrt(1.25)).logpdf(x[:, 1:]).sum(1) for p, c in ((0.3, -1), (0.7, 1))]
    truth = np.logaddexp(*parts) + stats.nbinom(2, 0.5).logpmf(x[:, 0])
    assert abs(found.mean - truth.mean()) < 4 * found.mc_error + 0.02  # the bias of the log, variance / 2
    assert (np.abs(found.rows - truth) < 6 * np.sqrt(found.variance) + 0.1).all()


def test_the_moves_leave_the_posterior_alone(run):
    """Exact draws of the linear model's posterior, moved at b = 1, keep its mean and covariance."""
    import sys

    module = sys.modules["inference.annealed_evidence"]
    axes, supports = row_latents(run)
    batch = Batch({"x": jnp.asarray(X[:1])}, jnp.arange(1), 1)
    target = module.row_target(linear, axes, supports, values_of(run), batch)
    covariance = np.linalg.inv(np.eye(2) + W.T @ W / NOISE**2)
    mean = covariance @ W.T @ X[0] / NOISE**2
    u = np.random.default_rng(2).multivariate_normal(mean, covariance, (4000, 1)).astype(np.float32)
    log_density = jax.vmap(target.log_joint)
    step = jnp.array([0.5])
    moved, accepted = jax.jit(lambda key: module._hamiltonian(key, log_density, {"z": jnp.asarray(u)}, step, 3))(
        jax.random.key(0)
    )
    z = np.asarray(moved["z"])[:, 0]
    assert 0.5 < accepted.mean() < 0.999 and np.abs(z - u[:, 0]).mean() > 0.1  # it moves, and rejects
    # Mean and covariance of 4,000 independent draws: five numbers at four standard errors (3e-4).
    error = 4 / np.sqrt(4000)
    assert (np.abs(z.mean(0) - mean) < error * np.sqrt(np.diag(covariance))).all()
    assert np.allclose(np.cov(z.T), covariance, atol=error * np.sqrt(2) * covariance.max())


def test_bad_options_are_refused(run):
    with pytest.raises(ValueError, match="num_chains is 1"):
        annealed_evidence(run, X, num_chains=1)
    with pytest.raises(ValueError, match="rise from 0 to 1"):
        annealed_evidence(run, X, betas=[0.0, 0.5])
    with pytest.raises(ValueError, match="num_rows is 0"):
        simulated_evidence(run, 0)
    free = PPCA(1).marginal
    with pytest.raises(Incompatible, match="no continuous latents"):
        annealed_evidence(replace(run, algorithm=SVI(free, empty, ELBO(), optax.sgd(0.0))))
