"""Bits, and the softplus that they are made of."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

from ppl_models.binary_states import emission
from ppl_models.likelihoods import Bernoulli
from ppl_models.networks import bits, softplus

LOGITS = np.linspace(-60, 60, 20_001, dtype=np.float32)


def test_softplus_is_exact_to_float32():
    truth = np.logaddexp(LOGITS.astype(np.float64), 0)
    np.testing.assert_allclose(softplus(jnp.asarray(LOGITS)), truth, rtol=4e-7)  # XLA's own: 2.3e-7 of these


def test_softplus_in_float64():
    with jax.enable_x64(True):
        x = jnp.asarray(LOGITS, jnp.float64)
        np.testing.assert_allclose(softplus(x), np.logaddexp(np.asarray(x), 0), rtol=1e-14)


def test_slopes_of_softplus():
    x = jnp.asarray([-50.0, -3.0, 0.0, 3.0, 50.0])
    sigmoid = jax.nn.sigmoid(x)
    np.testing.assert_allclose(jax.vmap(jax.grad(softplus))(x), sigmoid, rtol=1e-6)
    np.testing.assert_allclose(
        jax.vmap(jax.grad(jax.grad(softplus)))(x), sigmoid * (1 - sigmoid), rtol=1e-5, atol=1e-12
    )


@pytest.mark.parametrize("z", [0, 1])
def test_log_masses_are_exact(z):
    found = bits(numpyro, jnp.asarray(LOGITS)).log_prob(z)
    truth = -np.logaddexp(0, np.where(z, -1.0, 1.0) * LOGITS.astype(np.float64))
    np.testing.assert_allclose(found, truth, rtol=4e-7)


def test_gradient_of_a_fair_bit():
    """z - 1/2, where NumPyro's is z; also of a likelihood that is made anew outside its program."""
    z, made = jnp.asarray([[0.0], [1.0]]), emission(numpyro, Bernoulli())
    for log_mass in (lambda a, z: bits(numpyro, a).log_prob(z)[0], lambda a, z: made(a).log_prob(z)):
        ours = jax.vmap(jax.grad(log_mass), (None, 0))(jnp.zeros(1), z)
        np.testing.assert_allclose(ours, [[-0.5], [0.5]])


def test_sure_bits():
    logits, z = jnp.asarray([-jnp.inf, jnp.inf, -jnp.inf, jnp.inf]), jnp.asarray([0, 0, 1, 1])
    found = jax.jit(lambda a: bits(numpyro, a).log_prob(z))(logits)
    np.testing.assert_array_equal(found, [0, -np.inf, -np.inf, 0])


def test_fractions_are_weighed():
    """E log p(z) for z that is one with a probability, and its slope."""
    log_mass = lambda z: bits(numpyro, jnp.asarray(1.5)).log_prob(z)  # noqa: E731
    expected = 0.3 * log_mass(1) + 0.7 * log_mass(0)
    with numpyro.validation_enabled(False):
        np.testing.assert_allclose(log_mass(0.3), expected, rtol=1e-6)
        np.testing.assert_allclose(jax.grad(log_mass)(0.3), 1.5, rtol=1e-6)


def test_the_rest_is_numpyros():
    ours, theirs = bits(numpyro, LOGITS), dist.Bernoulli(logits=LOGITS)
    key = jax.random.key(0)
    np.testing.assert_array_equal(ours.sample(key, (3,)), theirs.sample(key, (3,)))
    np.testing.assert_array_equal(ours.mean, theirs.mean)
    np.testing.assert_array_equal(ours.enumerate_support(), theirs.enumerate_support())
    mapped = jax.vmap(lambda d: d.log_prob(1))(ours)  # a pytree, as all distributions are
    np.testing.assert_allclose(mapped, ours.log_prob(1))
