"""Convolutional encoder and decoder for images that travel as flat rows (height, width, channels).

Every layer is a 4x4 convolution of stride 2, or its transpose, so that a side of n pixels goes
n -> ⌈n/2⌉ -> ⌈n/4⌉ ... and back.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from math import isqrt, prod
from typing import TYPE_CHECKING, Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .layers import Activation, Affine, Downsample, Upsample, activation, check_activation, check_sizes

if TYPE_CHECKING:
    import torch

Shape = tuple[int, int, int]  # height, width, channels


@dataclass(frozen=True)
class ConvEncoder:
    """Stride-2 convolutions, then an affine map.

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
        Bad sizes here; at ``build``, a row that is no such image, or an image halved too often.
    """

    channels: tuple[int, ...] = (32, 64)
    activation: Activation = "relu"
    image_shape: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        _check(self)

    def build(self, in_size: int, out_size: int, key: Array) -> eqx.Module:
        """Equinox module that maps one row ``(in_size,)`` to ``(out_size,)``, with fresh weights."""
        shape, _ = _shape_and_maps(in_size, self.image_shape, maps=(1,))
        *_, (h, w) = _halvings(shape, len(self.channels))
        keys = jax.random.split(key, len(self.channels) + 1)
        layers: list[Any] = [eqx.nn.Lambda(partial(jnp.reshape, shape=shape))]
        for (a, b), k in zip(pairwise((shape[2], *self.channels)), keys[:-1], strict=True):
            layers += [Downsample(a, b, k), activation(self.activation)]
        layers += [eqx.nn.Lambda(jnp.ravel), Affine(h * w * self.channels[-1], out_size, keys[-1])]
        return eqx.nn.Sequential(layers)

    def build_torch(self, in_size: int, out_size: int) -> torch.nn.Module:
        """Torch module with the same parameters, in the same order."""
        from torch.nn import Sequential

        from . import torch_layers as layers

        shape, _ = _shape_and_maps(in_size, self.image_shape, maps=(1,))
        *_, (h, w) = _halvings(shape, len(self.channels))
        modules: list[torch.nn.Module] = [layers.ToImage(shape)]
        for a, b in pairwise((shape[2], *self.channels)):
            modules += [layers.Downsample(a, b), layers.Elementwise(self.activation)]
        modules += [layers.ToMaps(), layers.linear(h * w * self.channels[-1], out_size)]
        return Sequential(*modules)


@dataclass(frozen=True)
class ConvDecoder:
    """An affine map, then stride-2 transposed convolutions.

    Where a likelihood asks for more than one output per pixel, the output is that many flat images
    one after the other.

    Parameters
    ----------
    channels
        Channels before each transposed convolution; mirrors a :class:`ConvEncoder`.
    activation
        Nonlinearity before each transposed convolution.
    image_shape
        ``(height, width)`` or ``(height, width, channels)``; by default a square grey image.

    Raises
    ------
    ValueError
        Bad sizes here; at ``build``, an output that is no such image, or an image halved too often.
    """

    channels: tuple[int, ...] = (64, 32)
    activation: Activation = "relu"
    image_shape: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        _check(self)

    def build(self, in_size: int, out_size: int, key: Array) -> eqx.Module:
        """Equinox module that maps one row ``(in_size,)`` to ``(out_size,)``, with fresh weights."""
        shape, maps = _shape_and_maps(out_size, self.image_shape)
        *sizes, (h, w) = _halvings(shape, len(self.channels))
        first = (h, w, self.channels[0])
        keys = jax.random.split(key, len(self.channels) + 1)
        layers: list[Any] = [Affine(in_size, prod(first), keys[0])]
        layers += [eqx.nn.Lambda(partial(jnp.reshape, shape=first))]
        channels = (*self.channels, maps * shape[2])
        for (a, b), size, k in zip(pairwise(channels), reversed(sizes), keys[1:], strict=True):
            layers += [activation(self.activation), Upsample(a, b, size, k)]
        return eqx.nn.Sequential([*layers, eqx.nn.Lambda(partial(_to_maps, maps=maps))])

    def build_torch(self, in_size: int, out_size: int) -> torch.nn.Module:
        """Torch module with the same parameters, in the same order."""
        from torch.nn import Sequential

        from . import torch_layers as layers

        shape, maps = _shape_and_maps(out_size, self.image_shape)
        *sizes, (h, w) = _halvings(shape, len(self.channels))
        first = (h, w, self.channels[0])
        modules: list[torch.nn.Module] = [layers.linear(in_size, prod(first)), layers.ToImage(first)]
        channels = (*self.channels, maps * shape[2])
        for (a, b), size in zip(pairwise(channels), reversed(sizes), strict=True):
            modules += [layers.Elementwise(self.activation), layers.Upsample(a, b, size)]
        return Sequential(*modules, layers.ToMaps(maps))


def _check(architecture: ConvEncoder | ConvDecoder) -> None:
    object.__setattr__(architecture, "channels", tuple(architecture.channels))
    if not architecture.channels:
        raise ValueError("channels is empty; expected at least one number of channels.")
    check_sizes("channels", architecture.channels)
    check_activation(architecture.activation)
    if architecture.image_shape is not None:
        object.__setattr__(architecture, "image_shape", tuple(architecture.image_shape))
        check_sizes("image_shape", architecture.image_shape)
        if len(architecture.image_shape) not in (2, 3):
            raise ValueError(
                f"image_shape is {architecture.image_shape}; expected (height, width) or (height, width, channels)."
            )


def _shape_and_maps(
    size: int, image_shape: tuple[int, ...] | None, maps: tuple[int, ...] = (1, 2)
) -> tuple[Shape, int]:
    # No size is both a square and twice a square (sqrt 2 is irrational), so the default is unambiguous.
    if image_shape is None:
        for m in maps:
            if m * isqrt(size // m) ** 2 == size:
                return (isqrt(size // m), isqrt(size // m), 1), m
        raise ValueError(f"{size} values are no square grey image; give image_shape=(height, width[, channels]).")
    shape = (image_shape[0], image_shape[1], image_shape[2] if len(image_shape) == 3 else 1)
    if size % prod(shape) or size // prod(shape) not in maps:
        raise ValueError(f"image_shape {image_shape} has {prod(shape)} values, but the network has {size}.")
    return shape, size // prod(shape)


def _halvings(shape: Shape, times: int) -> list[tuple[int, int]]:
    # The size before the first convolution, and after each.
    h, w, _ = shape
    if 2 ** (times - 1) >= min(h, w):
        raise ValueError(f"{times} stride-2 convolutions of a {h}x{w} image leave no pixels to halve; use fewer.")
    return [(-(-h // 2**i), -(-w // 2**i)) for i in range(times + 1)]


def _to_maps(image: Float[Array, "h w maps_c"], maps: int) -> Float[Array, " maps_h_w_c"]:
    h, w, channels = image.shape
    return image.reshape(h, w, maps, channels // maps).transpose(2, 0, 1, 3).ravel()
