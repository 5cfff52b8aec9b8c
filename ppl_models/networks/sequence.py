"""Convolutional networks between a sequence and a shorter one of vectors, one for each stretch of it.

A sequence of T steps becomes T / 2ⁿ vectors after n stride-2 convolutions, and the vector at a position depends on the
steps around it alone: :mod:`.grid` in one dimension. Vectors travel as flat rows, position after position.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .layers import Activation, Affine, _glorot, activation, check_activation, check_sizes


@dataclass(frozen=True)
class SequenceEncoder:
    """Stride-2 convolutions of width 4, then an affine map of the channels at each position.

    Parameters
    ----------
    channels
        Channels after each convolution.
    activation
        Nonlinearity after each convolution.

    Raises
    ------
    ValueError
        Bad sizes here; at ``build``, a sequence that the convolutions do not divide, or an output that is not one
        vector for each position.
    """

    channels: tuple[int, ...] = (32, 32)
    activation: Activation = "relu"

    def __post_init__(self) -> None:
        _check(self)

    def build(self, in_size: int, out_size: int, key: Array) -> eqx.Module:
        """Equinox module that maps one row ``(in_size,)`` to ``(out_size,)``, with fresh weights."""
        _, vector = _positions(in_size, out_size, len(self.channels), "give out")
        *keys, last = jax.random.split(key, len(self.channels) + 1)
        layers: list[Any] = [eqx.nn.Lambda(partial(jnp.reshape, shape=(in_size, 1)))]
        for (a, b), k in zip(pairwise((1, *self.channels)), keys, strict=True):
            layers += [Halve(a, b, k), activation(self.activation)]
        return eqx.nn.Sequential([*layers, Affine(self.channels[-1], vector, last), eqx.nn.Lambda(jnp.ravel)])


@dataclass(frozen=True)
class SequenceDecoder:
    """An affine map of the vector at each position, then stride-2 transposed convolutions of width 4.

    It gives one number a step: for likelihoods with one output.

    Parameters
    ----------
    channels
        Channels before each transposed convolution; mirrors a :class:`SequenceEncoder`.
    activation
        Nonlinearity before each transposed convolution.

    Raises
    ------
    ValueError
        Bad sizes here; at ``build``, a sequence that the convolutions do not divide, or an input that is not one
        vector for each position.
    """

    channels: tuple[int, ...] = (32, 32)
    activation: Activation = "relu"

    def __post_init__(self) -> None:
        _check(self)

    def build(self, in_size: int, out_size: int, key: Array) -> eqx.Module:
        """Equinox module that maps one row ``(in_size,)`` to ``(out_size,)``, with fresh weights."""
        positions, vector = _positions(out_size, in_size, len(self.channels), "take")
        first, *keys = jax.random.split(key, len(self.channels) + 1)
        layers: list[Any] = [eqx.nn.Lambda(partial(jnp.reshape, shape=(positions, vector)))]
        layers += [Affine(vector, self.channels[0], first)]
        for (a, b), k in zip(pairwise((*self.channels, 1)), keys, strict=True):
            layers += [activation(self.activation), Double(a, b, k)]
        return eqx.nn.Sequential([*layers, eqx.nn.Lambda(jnp.ravel)])


class Halve(eqx.Module):
    """Convolution of width 4 and stride 2: a sequence (2 t, in) becomes (t, out), by one matmul on patches."""

    weight: Float[Array, "out in 4"]
    bias: Float[Array, " out"]

    def __init__(self, in_channels: int, out_channels: int, key: Array):
        self.weight, self.bias = _glorot(key, (out_channels, in_channels, 4)), jnp.zeros(out_channels)

    def __call__(self, sequence: Float[Array, "t2 in"], *, key: Array | None = None) -> Float[Array, "t out"]:
        padded = jnp.pad(sequence, ((1, 1), (0, 0)))
        taps = [padded[k : k + len(sequence) : 2] for k in range(4)]  # y[m] = sum_k W[k] x[2m + k - 1]
        return jnp.concatenate(taps, axis=-1) @ self.weight.transpose(2, 1, 0).reshape(-1, len(self.bias)) + self.bias


class Double(eqx.Module):
    """Transposed convolution of width 4 and stride 2: a sequence (t, in) becomes (2 t, out)."""

    weight: Float[Array, "out in 4"]
    bias: Float[Array, " out"]

    def __init__(self, in_channels: int, out_channels: int, key: Array):
        self.weight, self.bias = _glorot(key, (out_channels, in_channels, 4)), jnp.zeros(out_channels)

    def __call__(self, sequence: Float[Array, "t in"], *, key: Array | None = None) -> Float[Array, "t2 out"]:
        out, size, _ = self.weight.shape
        padded = jnp.pad(sequence, ((1, 1), (0, 0)))
        pairs = jnp.concatenate([padded[1:], padded[:-1]], axis=-1)  # x[m], x[m - 1]
        # y[2m + i - 1] = sum_a W[2a + i] x[m - a], a, i in {0, 1}
        weight = self.weight.reshape(out, size, 2, 2).transpose(2, 1, 3, 0).reshape(2 * size, 2 * out)
        return (pairs @ weight).reshape(-1, out)[1:-1] + self.bias


def _check(architecture: SequenceEncoder | SequenceDecoder) -> None:
    object.__setattr__(architecture, "channels", tuple(architecture.channels))
    if not architecture.channels:
        raise ValueError("channels is empty; expected at least one number of channels.")
    check_sizes("channels", architecture.channels)
    check_activation(architecture.activation)


def _positions(steps: int, vectors: int, times: int, verb: str) -> tuple[int, int]:
    """How many positions there are, and the length of the vector at each."""
    if steps % 2**times:
        raise ValueError(
            f"a sequence of {steps} steps cannot be halved {times} times: it is no multiple of {2**times}. Use fewer "
            "channels, or pad the sequences."
        )
    positions = steps // 2**times
    if vectors % positions:
        raise ValueError(
            f"there are {positions} positions, and {vectors} values to {verb} are not one vector for each. Make the "
            f"latent_shape ({positions},), or change the number of channels."
        )
    return positions, vectors // positions
