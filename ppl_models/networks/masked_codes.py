"""Masked dense network over one-hot codes: logits of each code from the codes before it.

The masks are those of :mod:`.masked`, with K inputs and K outputs in the place of a pixel: a hidden unit of order m
sees positions up to m, and the logits at p see hidden units of order below p.

References
----------
MADE: Masked Autoencoder for Distribution Estimation (Germain, Gregor, Murray & Larochelle, 2015).
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from .layers import _glorot


class MaskedCodeNetwork(eqx.Module):
    """Masked perceptron over the codes of one row, with a context that every unit sees."""

    weights: list[Float[Array, "out in"]]
    biases: list[Float[Array, " out"]]
    contexts: list[Float[Array, "out features"]]
    positions: int = eqx.field(static=True)

    def __init__(self, positions: int, codes: int, features: int, hidden: tuple[int, ...], key: Array):
        wide = positions * codes
        sizes = (wide, *hidden, wide)
        self.weights = [
            _glorot(k, (b, a)) for (a, b), k in zip(pairwise(sizes), jax.random.split(key, len(sizes) - 1), strict=True)
        ]
        self.biases = [jnp.zeros(size) for size in sizes[1:]]
        self.contexts = [jnp.zeros((size, features)) for size in sizes[1:]]
        self.positions = positions

    def __call__(self, row: Float[Array, "positions codes"], context: Float[Array, "where features"]) -> Array:
        """Logits of every position given those before it, ``(positions, codes)``."""
        given = context.ravel()
        layers = zip(self.weights, self.biases, self.contexts, self._masks, strict=True)
        h = row.ravel()
        for i, (weight, bias, told, mask) in enumerate(layers):
            h = (weight * mask) @ (jax.nn.relu(h) if i else h) + bias + told @ given
        return h.reshape(row.shape)

    def unroll(self, choose: Callable[[Array, Array], Array], context: Float[Array, "where features"]) -> Array:
        """Draw a row: ``choose(p, logits_p)`` gives the one-hot code at each position in turn."""
        codes = len(self.biases[-1]) // self.positions

        def draw(row: Array, p: Array) -> tuple[Array, None]:
            return row.at[p].set(choose(p, self(row, context)[p])), None

        return jax.lax.scan(draw, jnp.zeros((self.positions, codes)), jnp.arange(self.positions))[0]

    @property
    def _masks(self) -> list[Bool[np.ndarray, "out in"]]:
        wide, positions = len(self.biases[-1]), self.positions
        at = np.repeat(np.arange(positions), wide // positions)
        orders = [at, *(np.arange(len(b)) % max(positions - 1, 1) for b in self.biases[:-1])]
        return [above[:, None] >= below for below, above in pairwise(orders)] + [at[:, None] > orders[-1]]
