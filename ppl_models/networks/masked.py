r"""Masked dense network: a multilayer perceptron whose outputs for a pixel see the pixels before it alone.

Every unit has a degree. A pixel's is its place in the order, 1 to D; a hidden unit's is the last place that it
may see. With degrees d, the weight from unit k to unit k' is kept where

    d_k' >= d_k   (hidden k'),      d_k' > d_k   (output k'),

so that every path from an input to an output rises in the order. Beside the hidden layers every output has weights of
its own on the pixels before it: few hidden units end just before any one pixel, and its neighbours tell most.

References
----------
MADE: Masked Autoencoder for Distribution Estimation (Germain, Gregor, Murray & Larochelle, 2015).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from itertools import pairwise
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from .layers import Activation, _glorot, nonlinearity


@lru_cache(maxsize=32)
def degrees(pixels: int, hidden: tuple[int, ...], number: int) -> list[Int[np.ndarray, " units"]]:
    """Degrees of inputs and of each hidden layer, the ``number``-th of a fixed sequence of masks.

    The first takes pixels row by row and spreads the degrees of hidden units evenly; the others take pixels in a
    random order, and draw degrees from what the layer before can offer.
    """
    top = max(1, pixels - 1)
    if number == 0:
        return [np.arange(1, pixels + 1), *(1 + np.arange(width) * top // width for width in hidden)]
    rng = np.random.default_rng(number)
    found = [rng.permutation(pixels) + 1]
    for width in hidden:
        least = min(top, found[-1].min())
        found.append(np.sort(rng.integers(least, top + 1, width)))
    return found


class MaskedNetwork(eqx.Module):
    """Masked perceptron over one row, with a context that every unit sees."""

    weights: list[Float[Array, "out in"]]  # of the hidden layers
    biases: list[Float[Array, " out"]]
    contexts: list[Float[Array, "out features"]]
    output_weight: Float[Array, "pixels outputs hidden"]
    output_bias: Float[Array, "pixels outputs"]
    output_context: Float[Array, "pixels outputs features"]
    direct: Float[Array, "pixels outputs pixels"]  # from pixels to outputs
    activation: Activation = eqx.field(static=True)
    centre: Callable[[Array], Array] = eqx.field(static=True)
    masks: int = eqx.field(static=True)  # how many sets of masks there are
    number: Any  # which of them is in use

    def __init__(
        self,
        pixels: int,
        outputs: int,
        features: int,
        centre: Callable[[Array], Array],
        key: Array,
        *,
        hidden: tuple[int, ...],
        activation: Activation,
        masks: int = 1,
    ):
        key_hidden, key_context, key_out = jax.random.split(key, 3)
        sizes = list(pairwise((pixels, *hidden)))
        self.weights = [_glorot(k, (b, a)) for (a, b), k in zip(sizes, _keys(key_hidden, hidden), strict=True)]
        self.biases = [jnp.zeros(width) for width in hidden]
        self.contexts = [_weights(k, (w, features)) for w, k in zip(hidden, _keys(key_context, hidden), strict=True)]
        key_weight, key_context = jax.random.split(key_out)
        self.output_weight = _glorot(key_weight, (pixels * outputs, hidden[-1])).reshape(pixels, outputs, -1)
        self.output_bias = jnp.zeros((pixels, outputs))
        self.output_context = _weights(key_context, (pixels * outputs, features)).reshape(pixels, outputs, features)
        self.direct = jnp.zeros((pixels, outputs, pixels))
        self.activation, self.centre, self.masks, self.number = activation, centre, masks, 0

    def with_masks(self, number: Any) -> MaskedNetwork:
        """The same weights under another set of masks."""
        return eqx.tree_at(lambda net: net.number, self, number)

    @property
    def position(self) -> Int[np.ndarray, " pixels"]:
        """The turn at which each pixel is drawn."""
        return degrees(*self._sizes, self.number)[0] - 1

    def __call__(self, row: Float[Array, " pixels"], context: Float[Array, "1 features"]) -> Array:
        """Outputs of every pixel given those before it, ``(pixels, outputs)``."""
        ins, *hidden = self._degrees
        activate, x, below = nonlinearity(self.activation), self.centre(row), ins
        h = x
        for degree, w, b in zip(hidden, self.weights, self._biases(context), strict=True):
            h, below = activate(jnp.where(_sees(degree, below), w, 0.0) @ h + b), degree
        weight = jnp.where((ins[:, None] > below)[:, None], self.output_weight, 0.0)
        direct = jnp.where((ins[:, None] > ins)[:, None], self.direct, 0.0)
        return weight @ h + direct @ x + self._output_bias(context)

    def unroll(self, choose: Callable[[Array, Array], Array], context: Float[Array, "1 features"]) -> Array:
        """Draw a row. The first layer's sums grow by one pixel at a time, and outputs are made for one pixel."""
        ins, *hidden = self._degrees
        activate, (first, *biases) = nonlinearity(self.activation), self._biases(context)
        output_bias = self._output_bias(context)

        def draw(carry: tuple[Array, Array], pixel: Array) -> tuple[tuple[Array, Array], Array]:
            sums, drawn = carry  # of the first layer; centred pixels, zero where they are still to come
            # Units that see later pixels are not done yet; no weight leads from them to this pixel.
            h, below = activate(sums), hidden[0]
            for degree, w, b in zip(hidden[1:], self.weights[1:], biases, strict=True):
                h, below = activate(jnp.where(_sees(degree, below), w, 0.0) @ h + b), degree
            outputs = self.output_weight[pixel] @ jnp.where(below < ins[pixel], h, 0.0) + self.direct[pixel] @ drawn
            x = choose(pixel, outputs + output_bias[pixel])
            seen = jnp.where(hidden[0] >= ins[pixel], self.weights[0][:, pixel], 0.0)
            return (sums + seen * self.centre(x), drawn.at[pixel].set(self.centre(x))), x

        order = jnp.argsort(ins)
        return jnp.zeros(len(order)).at[order].set(jax.lax.scan(draw, (first, jnp.zeros(len(order))), order)[1])

    @property
    def _sizes(self) -> tuple[int, tuple[int, ...]]:
        return self.output_bias.shape[0], tuple(len(b) for b in self.biases)

    @property
    def _degrees(self) -> list[Int[Array, " units"]]:
        if self.masks == 1:
            return [jnp.asarray(d) for d in degrees(*self._sizes, 0)]
        tables = zip(*(degrees(*self._sizes, m) for m in range(self.masks)), strict=True)
        return [jnp.asarray(np.stack(table))[self.number] for table in tables]

    def _biases(self, context: Array) -> list[Array]:
        return [b + u @ context[0] for b, u in zip(self.biases, self.contexts, strict=True)]

    def _output_bias(self, context: Array) -> Array:
        return self.output_bias + self.output_context @ context[0]


def _sees(above: Array, below: Array) -> Bool[Array, "above below"]:
    return above[:, None] >= below


def _keys(key: Array, like: tuple[int, ...]) -> Array:
    return jax.random.split(key, len(like))


def _weights(key: Array, shape: tuple[int, int]) -> Array:
    """Glorot's, of a layer that may have no inputs."""
    return _glorot(key, shape) if shape[1] else jnp.zeros(shape)
