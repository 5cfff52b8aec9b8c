"""Correlation against SciPy's, and its gradients against those of XLA's convolution."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import signal

from inference.execution import SLOW_CONVOLUTION
from ppl_models.networks.correlation import _convolve, correlate

# Sums of at most 100 products of numbers of size 1 in float32, in another order.
TOLERANCE = {"rtol": 1e-4, "atol": 1e-4}


def arrays(*shapes):
    rng = np.random.default_rng(0)
    return [jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes]


def test_equals_scipy():
    x, weight = arrays((6, 7, 3), (2, 3, 3, 4))
    for d in range(4):
        expected = sum(signal.correlate2d(x[..., c], weight[..., c, d], "valid") for c in range(3))
        np.testing.assert_allclose(correlate(x, weight)[..., d], expected, **TOLERANCE)


@pytest.mark.parametrize("dilation", [1, 2])
@pytest.mark.parametrize("kernel", [(3, 3), (2, 1), (1, 2)])
def test_gradients_are_those_of_the_convolution(kernel, dilation):
    """Of both arguments, for a batch of images under one kernel; and the gradients of a norm of these gradients."""
    x, weight, direction = arrays((5, 6, 7, 3), (*kernel, 3, 4), (5, 6, 7, 3))

    def at(function):
        def loss(x, weight):
            return jnp.sum(jnp.sin(jax.vmap(lambda image: function(image, weight, dilation))(x)))

        def penalty(x, weight):
            of_x, of_weight = jax.grad(loss, (0, 1))(x, weight)
            return jnp.sum(direction * of_x) + jnp.sum(jnp.sin(of_weight))

        return jax.grad(loss, (0, 1))(x, weight) + jax.grad(penalty, (0, 1))(x, weight)

    for ours, expected in zip(at(correlate), at(_convolve), strict=True):
        np.testing.assert_allclose(ours, expected, **TOLERANCE)


def test_a_kernel_for_each_image_and_images_in_two_axes():
    x, weight = arrays((2, 5, 4, 4, 2), (5, 2, 2, 2, 3))

    def gradients(function):
        def one(x, weight):
            return jax.grad(lambda x, w: jnp.sum(function(x, w, 1) ** 2), (0, 1))(x, weight)

        return jax.vmap(jax.vmap(one), in_axes=(0, None))(x, weight)

    for ours, expected in zip(gradients(correlate), gradients(_convolve), strict=True):
        np.testing.assert_allclose(ours, expected, **TOLERANCE)


def test_its_gradients_run_in_a_compiled_loop_and_those_of_other_convolutions_do_not():
    """The rule of ``inference.execution.choose``, by what the two look like to it."""
    x, weight = arrays((4, 4, 2), (2, 2, 2, 3))
    slow = [
        bool(re.search(SLOW_CONVOLUTION, str(jax.make_jaxpr(jax.grad(loss, (0, 1)))(x, weight))))
        for loss in (lambda x, w: jnp.sum(correlate(x, w)), lambda x, w: jnp.sum(_convolve(x, w, 1)))
    ]
    assert slow == [False, True]
