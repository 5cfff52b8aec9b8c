"""Weights of norm one: against the singular value decomposition, and what it makes of a network."""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import pytest
from numpyro import handlers

from ppl_models.networks import MLP, ConvEncoder, Critic, SpectralNorm, network
from ppl_models.networks.spectral import spectral_norm


@pytest.mark.parametrize("shape", [(40, 30), (1, 20), (16, 1), (12, 3, 4, 4)])
def test_the_norm_is_the_largest_singular_value_and_its_gradient_the_outer_product(shape):
    weight = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    u, s, vt = np.linalg.svd(weight.reshape(shape[0], -1).astype(np.float64), full_matrices=False)
    value, gradient = jax.value_and_grad(spectral_norm)(jnp.asarray(weight), 300)
    assert float(value) == pytest.approx(s[0], rel=1e-5)
    np.testing.assert_allclose(np.reshape(gradient, (shape[0], -1)), np.outer(u[:, 0], vt[0]), atol=2e-3)
    few = float(spectral_norm(jnp.asarray(weight), 20))
    assert 0.97 * s[0] < few <= s[0] * (1 + 1e-6)  # from below


def test_a_network_does_not_stretch_whatever_its_weights():
    critic = Critic(SpectralNorm(MLP((32, 32), "relu"), 100))
    a, b = (jnp.asarray(np.random.default_rng(i).normal(size=(500, 8)), jnp.float32) for i in range(2))
    tr = handlers.trace(handlers.seed(critic, 0)).get_trace(x=a)
    weights = tr["critic"]["value"]
    large = jax.tree.map(lambda w: 50 * w if w.ndim > 1 else w, weights)
    for params in (weights, large):
        f = handlers.substitute(critic, data={"critic": params})
        stretch = np.abs(f(x=a) - f(x=b)) / np.linalg.norm(a - b, axis=1)
        assert 0 < stretch.max() <= 1.001
        np.testing.assert_allclose(
            f(x=a), handlers.substitute(critic, data={"critic": weights})(x=a), rtol=1e-3, atol=1e-4
        )


def test_convolutions_are_normalised_too_and_programs_see_one_site():
    def program(x):
        return network(numpyro, "f", SpectralNorm(ConvEncoder((4,))), 64, 3)(x)

    x = jnp.ones((2, 64))
    tr = handlers.trace(handlers.seed(program, 0)).get_trace(x)
    assert list(tr) == ["f"]
    out = handlers.substitute(program, data={"f": tr["f"]["value"]})(x)
    scaled = jax.tree.map(lambda w: 7 * w if w.ndim > 1 else w, tr["f"]["value"])
    np.testing.assert_allclose(handlers.substitute(program, data={"f": scaled})(x), out, rtol=1e-4)
    with pytest.raises(ValueError, match="num_iterations"):
        SpectralNorm(num_iterations=0)


def test_biases_and_weights_of_zero_stay_as_they_are():
    """Equinox keeps a convolution's bias as (out, 1, 1): it is no matrix, and its size is the network's to learn."""

    def build(in_size, out_size, key):
        layer = eqx.nn.Conv2d(1, 2, 3, padding=1, key=key)
        bias = jnp.array([3.0, -4.0]).reshape(2, 1, 1)
        layer = eqx.tree_at(lambda at: (at.weight, at.bias), layer, (jnp.zeros_like(layer.weight), bias))
        return eqx.nn.Sequential([eqx.nn.Lambda(lambda row: row.reshape(1, 2, 2)), layer, eqx.nn.Lambda(jnp.ravel)])

    f = SpectralNorm(build, 5).build(4, 8, jax.random.key(0))
    np.testing.assert_array_equal(f(jnp.ones(4)), np.repeat([3.0, -4.0], 4))
    gradient = jax.grad(lambda x: f(x).sum())(jnp.ones(4))
    assert np.isfinite(gradient).all()
