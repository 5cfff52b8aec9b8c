"""A critic in place of the guide's density: bounds and posteriors against conjugacy and quadrature. Seeds are fixed."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest

from guides import AmortizedImplicit, AmortizedNormal
from inference import AdversarialVariationalBayes, Incompatible, fit
from ppl_models import VAE, GaussianMixture, Generator
from ppl_models.likelihoods import Gaussian
from ppl_models.networks import MLP, Critic, Linear

NOISE = 0.7
X = np.linspace(-2, 2, 5, dtype=np.float32)[:, None]


class Rows:
    """x ~ N(0, 1 + 0.7²), fresh at every step."""

    arrays = {"x": np.zeros((512, 1), np.float32)}
    name = "rows"

    @staticmethod
    def transform(key, data):
        return {"x": np.sqrt(1 + NOISE**2) * jax.random.normal(key, data["x"].shape)}


def linear(x, num_data=None):
    w = numpyro.param("w", 0.5)
    with numpyro.plate("data", num_data or len(x), subsample_size=len(x)):
        z = numpyro.sample("z", dist.Normal(0, 1).expand([1]).to_event(1))
        numpyro.sample("x", dist.Normal(w * z, NOISE).to_event(1), obs=x)


def quadratic(x, z):
    """The family of log q(z | x) - log p(z) for Normal laws."""
    weights, x, z = numpyro.param("weights", jnp.zeros(6)), x[:, 0], z[:, 0]
    return jnp.stack([jnp.ones_like(x), x, z, x * x, x * z, z * z], -1) @ weights


def test_the_linear_gaussian_model_its_posterior_and_its_evidence_are_found():
    steps = 2500
    slow = optax.adam(optax.cosine_decay_schedule(5e-3, steps))
    algorithm = AdversarialVariationalBayes(
        linear, AmortizedImplicit(1, Linear(), noise_dim=1), quadratic, slow, optax.adam(3e-2, b1=0.5)
    )
    run = fit(algorithm, Rows(), key=0, num_steps=steps)
    variance = 1 + NOISE**2
    assert abs(abs(float(run.params["w"])) - 1) < 0.05
    z = run.sample_posterior(X, 4000)["z"][..., 0] * np.sign(float(run.params["w"]))
    # 4,000 draws of deviation 0.57 have a mean with an error of 0.009; the players circle by a little more
    np.testing.assert_allclose(z.mean(0), X[:, 0] / variance, atol=0.05)
    np.testing.assert_allclose(z.std(0), NOISE / np.sqrt(variance), atol=0.05)
    # Where q is the posterior the bound is E log p(x), and the KL ½ log(1 + 1 / 0.49) on average: 400 batches of 512
    # rows have errors of 0.002, and the critic's own wandering 0.01.
    last = {n: v[0, -400:].mean() for n, v in run.history.items()}
    assert abs(last["bound"] - (-0.5 * np.log(2 * np.pi * variance) - 0.5)) < 0.03
    assert abs(last["kl"] - 0.5 * np.log(variance / NOISE**2)) < 0.03


@pytest.mark.slow
def test_an_implicit_guide_has_both_modes_of_a_posterior():
    """z ~ N(0, 1), x | z ~ N(z², ½²): of x = 1.5, two modes at about ±1.2, which no Normal guide has."""
    steps, noise = 6000, 0.5

    def square(x, num_data=None):
        a = numpyro.param("a", 1.0)
        with numpyro.plate("data", num_data or len(x), subsample_size=len(x)):
            z = numpyro.sample("z", dist.Normal(0, 1).expand([1]).to_event(1))
            numpyro.sample("x", dist.Normal(1.0 * z**2 + 0.0 * a, noise).to_event(1), obs=x)

    x = np.full((256, 1), 1.5, np.float32)
    rates = [optax.adam(optax.cosine_decay_schedule(r, steps), b1=0.5) for r in (1e-3, 5e-3)]
    guide, critic = AmortizedImplicit(1, MLP((32, 32)), noise_dim=2), Critic(MLP((32, 32), "silu"))
    run = fit(AdversarialVariationalBayes(square, guide, critic, *rates), x, key=0, num_steps=steps)
    z = run.sample_posterior(x, 40)["z"].ravel()
    grid = np.linspace(-6, 6, 4001)
    joint = np.exp(-0.5 * grid**2 - 0.5 * ((1.5 - grid**2) / noise) ** 2) / (2 * np.pi * noise)
    evidence = np.log(np.sum(joint) * (grid[1] - grid[0]))
    exact = joint / joint.sum()
    assert 0.35 < np.mean(z > 0) < 0.65 and np.mean(np.abs(z) < 0.4) < 0.05 + exact[np.abs(grid) < 0.4].sum()
    assert abs(np.mean(np.abs(z)) - exact @ np.abs(grid)) < 0.1
    # A guide of one mode has a bound log 2 lower.
    assert abs(run.history["bound"][0, -500:].mean() - evidence) < 0.2


@pytest.mark.slow
def test_a_vae_with_an_implicit_encoder_answers_what_a_fit_is_asked():
    x = np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32)
    algorithm = AdversarialVariationalBayes(
        VAE(2, MLP((4,)), Gaussian()), AmortizedImplicit(2, MLP((4,))), Critic(MLP((4,))), critic_steps=2
    )
    run = fit(algorithm, x, key=0, num_steps=4, batch_size=16)
    assert set(run.history) == {"bound", "kl", "critic_loss", "critic_accuracy"}
    assert run.sample_posterior(x, 4)["z"].shape == (4, 40, 2) and run.generate(5)["x"].shape == (5, 3)
    assert run.reconstruct(x)["x"].shape == x.shape
    with pytest.raises(Incompatible, match="or makes them without a density"):
        run.log_likelihood(x)
    data = run.to_arviz()
    assert data.posterior["z"].shape[2:] == (40, 2) and data.observed_data["x"].shape == x.shape
    assert "log_weight" not in data.get("sample_stats", {})


@pytest.mark.parametrize(
    ("model", "guide", "critic", "message"),
    [
        (Generator(2, MLP((4,))), AmortizedImplicit(2, MLP((4,))), quadratic, "needs a model with a likelihood"),
        (GaussianMixture(2), AmortizedImplicit(2, MLP((4,))), quadratic, "others .*weights"),
        (linear, AmortizedImplicit(2, MLP((4,))), quadratic, "makes .*z.*2.*the model has latents"),
        (linear, AmortizedNormal(1, MLP((4,))), quadratic, "makes {}, and the model has latents"),
        (linear, AmortizedImplicit(1, MLP((4,))), lambda x, z: x[:, 0], "no parameters of its own"),
        (linear, AmortizedImplicit(1, MLP((4,))), lambda x, z: numpyro.param("a", 1.0) * z, "expected one score a row"),
        (linear, AmortizedImplicit(1, MLP((4,))), lambda x: numpyro.param("a", 1.0) * x[:, 0], "unexpected keyword"),
    ],
)
def test_programs_that_do_not_go_together_are_refused(model, guide, critic, message):
    with pytest.raises(Incompatible, match=message):
        fit(AdversarialVariationalBayes(model, guide, critic), X, key=0, num_steps=1)


def test_the_guide_says_what_is_wrong_with_its_fields():
    for options, message in (
        ({"latent_dim": 0}, "latent_dim is 0"),
        ({"noise_dim": 0}, "noise_dim is 0"),
        ({"site": ""}, "site is ''"),
    ):
        with pytest.raises(ValueError, match=message):
            AmortizedImplicit(**({"latent_dim": 2, "network": MLP((4,))} | options))
    with pytest.raises(ValueError, match="critic_steps is 0"):
        AdversarialVariationalBayes(linear, AmortizedImplicit(1, MLP((4,))), quadratic, critic_steps=0)
