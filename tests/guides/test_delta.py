"""The Delta guide: SVI with it is MAP, checked against conjugate modes; both engines; its start and rows."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import numpyro.infer
import optax
import pyro
import pytest
import torch
from numpyro import handlers
from numpyro.infer import Trace_ELBO

from guides import Delta
from inference import SVI, PyroSVI, fit
from inference.objectives import ELBO
from ppl_models import GaussianMixture

COUNTS = np.array([3, 0, 5, 2], np.float32)


def gamma_poisson(ppl):
    """rate ~ Gamma(3, 2), x_n ~ Poisson(rate): the mode of Gamma(3 + sum x, 2 + N) is (2 + sum x) / (2 + N)."""

    def model(x, num_data=None):
        rate = ppl.sample("rate", ppl.distributions.Gamma(x[0] * 0 + 3.0, x[0] * 0 + 2.0))
        with ppl.plate("data", num_data or len(x), subsample_size=len(x)):
            ppl.sample("x", ppl.distributions.Poisson(rate), obs=x)

    return model


MODE = (2 + COUNTS.sum()) / (2 + len(COUNTS))


def dirichlet(x):
    """Probabilities ~ Dirichlet(2, 2, 2), x_n ~ Categorical: the mode is (counts + 1) / (N + 3)."""
    p = numpyro.sample("p", dist.Dirichlet(jnp.full(3, 2.0)))
    with numpyro.plate("data", len(x)):
        numpyro.sample("x", dist.Categorical(p), obs=x)


def local_normal(x, num_data=None):
    """mu ~ N(0, 1), z_n ~ N(mu, I_2), x_n ~ N(z_n, I_2): a joint mode that a linear system gives."""
    mu = numpyro.sample("mu", dist.Normal(0, 1).expand([2]).to_event(1))
    with numpyro.plate("data", num_data or len(x), subsample_size=len(x)):
        z = numpyro.sample("z", dist.Normal(mu, 1).to_event(1))
        numpyro.sample("x", dist.Normal(z, 1).to_event(1), obs=x)


def test_map_of_conjugate_models_in_plain_numpyro():
    """The mode on the latent's own support: a Jacobian would shift Gamma's to (3 + sum x) / (2 + N)."""
    for model, data, site, mode in (
        (gamma_poisson(numpyro), COUNTS, "rate", MODE),
        (dirichlet, np.array([0, 0, 2, 0, 1]), "p", np.array([4, 2, 2]) / 8),
    ):
        svi = numpyro.infer.SVI(model, Delta(model), optax.adam(0.05), Trace_ELBO())
        run = svi.run(jax.random.key(0), 600, data, progress_bar=False)
        np.testing.assert_allclose(run.params[f"{site}_value"], mode, rtol=1e-3)


def test_map_by_fit():
    run = fit(
        SVI(gamma_poisson(numpyro), Delta(gamma_poisson(numpyro)), ELBO(), optax.adam(0.05)),
        COUNTS,
        key=0,
        num_steps=600,
    )
    np.testing.assert_allclose(run.params["rate_value"], MODE, rtol=1e-3)
    np.testing.assert_allclose(run.draws.posterior["rate"], MODE, rtol=1e-3)


def test_map_by_fit_in_pyro():
    model = gamma_poisson(pyro)
    algorithm = PyroSVI(model, Delta(model, ppl=pyro), ELBO(), torch.optim.Adam, {"lr": 0.05})
    run = fit(algorithm, COUNTS, key=0, num_steps=400)
    np.testing.assert_allclose(run.params["rate_value"], MODE, rtol=1e-3)


def test_rows_have_their_own_values_under_minibatches():
    """z_n = (x_n + mu) / 2 and mu (1 + N / 2) = sum x / 2 at the joint mode, which batches of 2 of 6 rows find."""
    x = np.random.default_rng(0).normal(2, 1, (6, 2)).astype(np.float32)
    schedule = optax.adam(optax.exponential_decay(0.1, 300, 0.3))
    run = fit(SVI(local_normal, Delta(local_normal), ELBO(), schedule), x, key=0, num_steps=1500, batch_size=2)
    mu = x.sum(0) / 2 / (1 + len(x) / 2)
    # Steps of 0.1 * 0.3^5 at the end leave the minibatch noise of mu near 1e-3.
    np.testing.assert_allclose(run.params["mu_value"], mu, atol=0.02)
    assert run.params["z_value"].shape == (6, 2)
    np.testing.assert_allclose(run.params["z_value"], (x + mu) / 2, atol=0.02)


def test_discrete_latents_are_left_out_and_starts_are_proposed():
    x = np.random.default_rng(0).normal(size=(30, 2)).astype(np.float32)
    x[:15] += 6
    model = GaussianMixture(2)
    with handlers.seed(rng_seed=0):
        trace = handlers.trace(Delta(model)).get_trace(x)
    assert {n for n, s in trace.items() if s["type"] == "sample"} == {"weights", "means", "precisions"}
    means = np.sort(np.asarray(trace["means"]["value"])[:, 0])
    np.testing.assert_allclose(means, [x[15:, 0].mean(), x[:15, 0].mean()], atol=0.1)  # one k-means
    assert trace["precisions"]["fn"].event_dim == 3 and trace["precisions"]["fn"].batch_shape == ()
    assert float(trace["means"]["fn"].log_prob(trace["means"]["value"])) == 0


def test_values_start_on_the_support():
    for seed in range(5):
        with handlers.seed(rng_seed=seed):
            value = handlers.trace(Delta(dirichlet)).get_trace(np.array([0, 1, 2]))["p_value"]["value"]
        assert (np.asarray(value) > 0).all() and float(value.sum()) == pytest.approx(1)


def test_an_unchanged_guide_is_an_equal_value():
    assert Delta(GaussianMixture(2)) == Delta(GaussianMixture(2), numpyro)
    assert hash(Delta(dirichlet)) == hash(Delta(dirichlet)) and Delta(dirichlet) != Delta(local_normal)
