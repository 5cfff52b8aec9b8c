"""Convolutional networks between an image and a grid of vectors, one for each patch: no dense layer in between.

An image of (height, width) becomes a grid of (height / 2ⁿ, width / 2ⁿ) after n stride-2 convolutions, and the vector
at a position depends on the patch around it alone. Both travel as flat rows, (height, width, channels).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array

from .conv import _check, _shape_and_maps, _to_maps
from .layers import Activation, Affine, Downsample, Upsample, activation


@dataclass(frozen=True)
class GridEncoder:
    """Stride-2 convolutions, then an affine map of the channels at each position.

    Parameters
    ----------
    channels
        Channels after each convolution.
    activation
        Nonlinearity after each convolution.
    image_shape
        ``(height, width)`` or ``(height, width, channels)``; by default a square grey image.

    Raises
    ------
    ValueError
        Bad sizes here; at ``build``, an image whose sides the convolutions do not divide, or an output that is not
        one vector for each position of the grid.
    """

    channels: tuple[int, ...] = (32,)
    activation: Activation = "relu"
    image_shape: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        _check(self)  # pyright: ignore[reportArgumentType] (it has the fields of a ConvEncoder)

    def build(self, in_size: int, out_size: int, key: Array) -> eqx.Module:
        """Equinox module that maps one row ``(in_size,)`` to ``(out_size,)``, with fresh weights."""
        shape, _ = _shape_and_maps(in_size, self.image_shape, maps=(1,))
        h, w = grid_shape(shape, len(self.channels))
        vector = _per_position(out_size, (h, w), "give out")
        keys = jax.random.split(key, len(self.channels) + 1)
        layers: list[Any] = [eqx.nn.Lambda(partial(jnp.reshape, shape=shape))]
        for a, b, k in zip((shape[2], *self.channels), self.channels, keys[:-1], strict=False):
            layers += [Downsample(a, b, k), activation(self.activation)]
        return eqx.nn.Sequential([*layers, Affine(self.channels[-1], vector, keys[-1]), eqx.nn.Lambda(jnp.ravel)])


@dataclass(frozen=True)
class GridDecoder:
    """An affine map of the vector at each position, then stride-2 transposed convolutions.

    Where a likelihood asks for more than one output per pixel, the output is that many flat images one after the
    other.

    Parameters
    ----------
    channels
        Channels before each transposed convolution; mirrors a :class:`GridEncoder`.
    activation
        Nonlinearity before each transposed convolution.
    image_shape
        ``(height, width)`` or ``(height, width, channels)``; by default a square grey image.

    Raises
    ------
    ValueError
        Bad sizes here; at ``build``, an image whose sides the convolutions do not divide, or an input that is not
        one vector for each position of the grid.
    """

    channels: tuple[int, ...] = (32,)
    activation: Activation = "relu"
    image_shape: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        _check(self)  # pyright: ignore[reportArgumentType] (it has the fields of a ConvDecoder)

    def build(self, in_size: int, out_size: int, key: Array) -> eqx.Module:
        """Equinox module that maps one row ``(in_size,)`` to ``(out_size,)``, with fresh weights."""
        shape, maps = _shape_and_maps(out_size, self.image_shape)
        h, w = grid_shape(shape, len(self.channels))
        vector = _per_position(in_size, (h, w), "take")
        keys = jax.random.split(key, len(self.channels) + 1)
        layers: list[Any] = [eqx.nn.Lambda(partial(jnp.reshape, shape=(h, w, vector)))]
        layers += [Affine(vector, self.channels[0], keys[0])]
        for i, (a, b) in enumerate(zip(self.channels, (*self.channels[1:], maps * shape[2]), strict=True), 1):
            layers += [activation(self.activation), Upsample(a, b, (h * 2**i, w * 2**i), keys[i])]
        return eqx.nn.Sequential([*layers, eqx.nn.Lambda(partial(_to_maps, maps=maps))])


def grid_shape(shape: tuple[int, ...], times: int) -> tuple[int, int]:
    """The size of an image after it is halved a number of times."""
    h, w = shape[:2]
    if h % 2**times or w % 2**times:
        raise ValueError(
            f"a {h}x{w} image cannot be halved {times} times: its sides are not multiples of {2**times}. Use fewer "
            "levels or channels, or pad the images."
        )
    return h // 2**times, w // 2**times


def _per_position(size: int, grid: tuple[int, int], verb: str) -> int:
    if size % (grid[0] * grid[1]):
        raise ValueError(
            f"the grid is {grid[0]}x{grid[1]}, and {size} values to {verb} are not one vector for each of its "
            f"{grid[0] * grid[1]} positions. Make the latent_shape {grid}, or change the number of channels."
        )
    return size // (grid[0] * grid[1])
