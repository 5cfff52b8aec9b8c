"""AR(1) prior: density by conditionals in both engines, KL by quadrature, and the rate below which none falls."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pyro
import pytest
import torch
from numpyro.distributions.kl import kl_divergence
from scipy import optimize, stats

from guides import AmortizedBoundedNormal
from inference import Incompatible, check
from inference.objectives import ELBO
from ppl_models import MADE, VAE, PixelVAE
from ppl_models.ar1_prior import AR1Prior
from ppl_models.likelihoods import Gaussian
from ppl_models.networks import MLP
from ppl_models.priors import Prior

RNG = np.random.default_rng(0)
CASES = [(AR1Prior(0.9), 2), (AR1Prior(-0.6), 5), (AR1Prior((0.5, 0.95)), 8), (AR1Prior(0.0), 3), (AR1Prior(0.7), 1)]
cases = pytest.mark.parametrize(("prior", "length"), CASES, ids=str)


def by_conditionals(prior, z):
    """sum_k [log N(z_1; 0, 1) + sum_t log N(z_t; a z_{t-1}, 1 - a²)] of each row, nats."""
    steps = z.reshape(len(z), -1, len(prior.correlations))
    out = stats.norm.logpdf(steps[:, 0]).sum(-1)
    for k, a in enumerate(prior.correlations):
        out = out + stats.norm(a * steps[:, :-1, k], np.sqrt(1 - a**2)).logpdf(steps[:, 1:, k]).sum(-1)
    return out


@cases
def test_density_by_conditionals_in_both_engines(prior, length):
    z = RNG.normal(size=(20, length)).astype(np.float32)
    p = prior(numpyro, length, z)
    assert isinstance(prior, Prior) and p.event_shape == (length,) and p.batch_shape == ()
    expected = by_conditionals(prior, np.float64(z))
    np.testing.assert_allclose(p.log_prob(z), expected, rtol=2e-5)  # float32 triangular solves
    theirs = prior(pyro, length, torch.tensor(z)).log_prob(torch.tensor(z))
    np.testing.assert_allclose(theirs, expected, rtol=2e-5)


@cases
def test_kl_of_independent_normals_by_quadrature(prior, length):
    """E_q[log q - log p] is that of a polynomial of degree two: two nodes a coordinate are exact."""
    loc, scale = RNG.normal(size=length), np.exp(RNG.normal(-1, 0.5, length))
    signs = np.array(list(itertools.product((-1.0, 1.0), repeat=length)))
    z = loc + scale * signs
    exact = (stats.norm(loc, scale).logpdf(z).sum(-1) - by_conditionals(prior, z)).mean()
    q = dist.Normal(jnp.float32(loc), jnp.float32(scale)).to_event(1)
    found = kl_divergence(q, prior(numpyro, length, np.zeros((1, 4), np.float32)))
    assert float(found) == pytest.approx(exact, rel=1e-4, abs=1e-5)  # float32, of a precision of up to 20


@pytest.mark.parametrize("bounds", [(0.0, np.inf), (0.0, 0.3), (0.6, 0.9)], ids=str)
@cases
def test_the_rate_is_the_least_kl_that_an_optimizer_finds(prior, length, bounds):
    """Over locations and log scales, from several starts, of a KL written by covariances, in float64."""
    low, high = bounds
    chains = len(prior.correlations)
    i, j = np.indices((length, length))
    covariance = np.where((i - j) % chains, 0.0, np.asarray(prior.correlations)[i % chains] ** (abs(i - j) // chains))
    precision, log_det = np.linalg.inv(covariance), np.linalg.slogdet(covariance)[1]

    def kl(v):
        m, log_s = np.split(v, 2)
        return 0.5 * (m @ precision @ m + (np.diag(precision) * np.exp(2 * log_s) - 1 - 2 * log_s).sum() + log_det)

    delta = prior.minimal_kl(length, bounds)
    scales = (np.log(low) if low else -np.inf), np.log(high)
    limits = [(-np.inf, np.inf)] * length + [scales] * length
    for _ in range(3):
        start = np.concatenate([RNG.normal(size=length), np.clip(RNG.normal(-1, 1, length), *scales)])
        found = optimize.minimize(kl, start, bounds=limits)
        assert found.fun == pytest.approx(delta, abs=1e-5)  # of which the optimizer's tolerance is a tenth
    # Adversarial values: far and near, narrow and wide, none falls below.
    for spread in (1e-3, 0.1, 1.0, 5.0):
        v = RNG.normal(0, spread, (500, 2 * length))
        v[:, length:] = np.clip(v[:, length:] + 0.5 * np.log(1 / np.diag(precision)), *scales)
        assert min(map(kl, v)) >= delta - 1e-9


def test_the_rate_is_that_of_the_paper():
    for a, n in ((0.5, 2), (0.9, 7), (0.99, 30)):
        paper = 0.5 * ((n - 2) * np.log(1 + a**2) - np.log(1 - a**2))
        assert AR1Prior(a).minimal_kl(n) == pytest.approx(paper, rel=1e-9)
    chains = AR1Prior((0.5, 0.9)).minimal_kl(8)
    assert chains == pytest.approx(AR1Prior(0.5).minimal_kl(4) + AR1Prior(0.9).minimal_kl(4), rel=1e-9)
    assert AR1Prior(0.0).minimal_kl(5) == pytest.approx(0, abs=1e-12)
    assert AR1Prior(0.0).minimal_kl(5, (0.0, 0.5)) == pytest.approx(2.5 * (0.25 - 1 - 2 * np.log(0.5)), rel=1e-9)


@pytest.mark.parametrize("model", [VAE, PixelVAE], ids=lambda kind: kind.__name__)
def test_whatever_an_encoder_says_of_a_row_costs_the_rate(model):
    """An encoder with weights drawn wide, on rows of noise: q of every row, by the KL that the ELBO takes."""
    x = (RNG.random((200, 4)) < 0.5).astype(np.float32)
    prior, bounds = AR1Prior((0.5, 0.95)), (0.05, 0.4)
    likely = {"likelihood": Gaussian()} if model is VAE else {"pixels": MADE((3,)), "features": 2}
    p = model(4, MLP((5,)), prior=prior, **likely)
    guide = AmortizedBoundedNormal(4, MLP((5,)), bounds)
    check(p, guide, ELBO(), x)
    outputs = jnp.asarray(RNG.normal(0, [[0.01], [1.0], [10.0]] * 40, (120, 8)), jnp.float32)
    kl = jax.jit(lambda outputs: kl_divergence(guide.at(outputs), prior(numpyro, 4, x)))(outputs)
    delta = prior.minimal_kl(4, bounds)
    assert delta > prior.minimal_kl(4) > 0 and float(kl.min()) >= delta - 1e-4  # float32
    assert float(kl.min()) < delta + 3  # what says little is not far from it


def test_what_does_not_fit_is_refused():
    for wrong in (1.0, (0.5, -1.2), (), ((0.1,), (0.2,))):
        with pytest.raises(ValueError, match="expected numbers between -1 and 1"):
            AR1Prior(wrong)
    x = np.zeros((3, 4), np.float32)
    guide = AmortizedBoundedNormal(3, MLP((5,)))
    with pytest.raises(Incompatible, match="a latent of length 3 is no whole number of steps of 2 chains"):
        check(VAE(3, MLP((5,)), prior=AR1Prior((0.5, 0.9))), guide, ELBO(), x)
