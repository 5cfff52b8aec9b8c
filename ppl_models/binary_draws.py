"""Many Bernoulli draws at once, for the inner loop of Gibbs samplers.

The key seeds XLA's own generator (Philox), whose bits cost half of what a counter-based key's do on a CPU;
a fair 24-bit number below p is on with probability p to within 2**-24, as with ``jax.random.bernoulli``.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def uniform(key: Array, shape: tuple[int, ...]) -> Float[Array, "*shape"]:
    """Float32 numbers in [0, 1), multiples of 2**-24; a function of the key."""
    seed = jnp.concatenate([jax.random.key_data(key)] * 2)[:4]
    bits = jax.random.bits(jax.random.wrap_key_data(seed, impl="unsafe_rbg"), shape, jnp.uint32)
    return (bits >> 8).astype(jnp.float32) * 2.0**-24


def bernoulli(key: Array, probs: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Zeros and ones, on with these probabilities, in their dtype; a function of the key."""
    return (uniform(key, probs.shape) < probs).astype(probs.dtype)
