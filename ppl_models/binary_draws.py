"""Many Bernoulli draws at once, for the inner loop of Gibbs samplers.

A counter-based generator, Threefry, makes two words at each call, and here each is a number: JAX's own draws make
one of the two, and take twice as long. A fair 24-bit number below p is on with probability p to within 2**-24, as with
``jax.random.bernoulli``.
"""

from __future__ import annotations

from math import prod

import jax
import jax.numpy as jnp
from jax.extend.random import threefry_2x32
from jaxtyping import Array, Float


def uniform(key: Array, shape: tuple[int, ...]) -> Float[Array, "*shape"]:
    """Float32 numbers in [0, 1), multiples of 2**-24; a function of the key."""
    words = threefry_2x32(jax.random.key_data(key)[:2], jnp.arange(prod(shape), dtype=jnp.uint32))
    return (words >> 8).astype(jnp.float32).reshape(shape) * 2.0**-24


def bernoulli(key: Array, probs: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Zeros and ones, on with these probabilities, in their dtype; a function of the key."""
    return (uniform(key, probs.shape) < probs).astype(probs.dtype)
