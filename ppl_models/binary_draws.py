"""Many Bernoulli draws at once, for the inner loop of Gibbs samplers.

The key seeds XLA's own generator (Philox), whose bits cost half of what a counter-based key's do on a CPU;
a fair 24-bit number below p is on with probability p to within 2**-24, as with ``jax.random.bernoulli``.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

UNROLLED = 32  # seeds of a vmap, such as temperatures, whose draws are written out: a loop would take longer


def uniform(key: Array, shape: tuple[int, ...]) -> Float[Array, "*shape"]:
    """Float32 numbers in [0, 1), multiples of 2**-24; a function of the key."""
    seed = jnp.concatenate([jax.random.key_data(key)] * 2)[:4]
    return (_bits(tuple(shape))(seed) >> 8).astype(jnp.float32) * 2.0**-24


def bernoulli(key: Array, probs: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Zeros and ones, on with these probabilities, in their dtype; a function of the key."""
    return (uniform(key, probs.shape) < probs).astype(probs.dtype)


@lru_cache(maxsize=256)
def _bits(shape: tuple[int, ...]) -> Callable[[Array], Array]:
    """Random bits of a seed. A vmap seeds each element by itself: JAX's own would seed all by the first."""

    @jax.custom_batching.custom_vmap
    def bits(seed: Array) -> Array:
        return jax.random.bits(jax.random.wrap_key_data(seed, impl="unsafe_rbg"), shape, jnp.uint32)

    @bits.def_vmap
    def each(size: int, batched: list[bool], seeds: Array) -> tuple[Array, bool]:
        if size > UNROLLED:
            return jax.lax.map(bits, seeds), True
        return jnp.stack([bits(seed) for seed in seeds]), True

    return bits
