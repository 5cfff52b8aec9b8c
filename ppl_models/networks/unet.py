"""U-Net for images that travel as flat rows (height, width, channels), told the time and the class.

    first ─ level 0 ──────────────────────────────── level 0 ─ last
               └ half ─ level 1 ─────────── level 1 ─ double ┘
                          └ half ─ middle ─ double ┘

A level is residual blocks, each told time and class, with self-attention where images are small; the way up is given
what the way down put out at the same size. The last layer starts at zero.

References
----------
U-Net: Convolutional Networks for Biomedical Image Segmentation (Ronneberger, Fischer and Brox, 2015).
Denoising Diffusion Probabilistic Models (Ho, Jain and Abbeel, 2020), appendix B.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from math import gcd
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .conv import Shape, _shape_and_maps
from .correlation import correlate
from .layers import Affine, Downsample, Upsample, _glorot, check_sizes
from .time_embedding import Conditioning, SinusoidalTime, TimeEmbedding, check_time, classes_of, told


@dataclass(frozen=True)
class UNet:
    """Residual blocks at several sizes, down and up again.

    Parameters
    ----------
    channels
        At each size: the image is halved between one and the next.
    num_blocks
        Residual blocks of a level, each way.
    attention
        Self-attention where the shorter side is at most this many pixels, and in the middle.
    num_heads
        Heads of attention; they divide the channels there.
    num_groups
        Groups of the normalisation, at most: the largest number that divides the channels is used.
    time
        ``SinusoidalTime()`` or ``FourierTime()``.
    image_shape
        ``(height, width)`` or ``(height, width, channels)``; by default a square grey image.

    Raises
    ------
    ValueError
        Bad sizes here; at ``build``, rows that are no such images, or images that cannot be halved so often.
    """

    channels: tuple[int, ...] = (32, 64, 64)
    num_blocks: int = 1
    attention: int = 8
    num_heads: int = 4
    num_groups: int = 8
    time: TimeEmbedding = SinusoidalTime()
    image_shape: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "channels", tuple(self.channels))
        if not self.channels:
            raise ValueError("channels is empty; expected at least one number of channels.")
        check_sizes("channels", self.channels)
        check_sizes("num_blocks, num_heads, num_groups", (self.num_blocks, self.num_heads, self.num_groups))
        check_time(self.time)
        if self.image_shape is not None:
            object.__setattr__(self, "image_shape", tuple(self.image_shape))
            check_sizes("image_shape", self.image_shape)
        if self.channels[-1] % self.num_heads:
            raise ValueError(
                f"num_heads is {self.num_heads}; the last {self.channels[-1]} channels cannot be shared out."
            )

    def build(self, in_size: int, out_size: int, key: Array) -> eqx.Module:
        """Equinox module that maps one row ``(in_size,)`` to ``(out_size,)``, with fresh weights."""
        num_classes = classes_of(in_size, out_size)
        shape, _ = _shape_and_maps(out_size, self.image_shape, maps=(1,))
        return _UNet(self, shape, self._sizes(shape), num_classes, key)

    def _sizes(self, shape: Shape) -> list[tuple[int, int]]:
        """Of the image at each level."""
        h, w, _ = shape
        times = len(self.channels) - 1
        if h % 2**times or w % 2**times:
            nearest = [-(-side // 2**times) * 2**times for side in (h, w)]
            raise ValueError(
                f"UNet: a {h}x{w} image cannot be halved {times} times, as {len(self.channels)} levels of channels ask "
                f"for: each side must be a multiple of {2**times}. Give fewer channels, or pad images to "
                f"{nearest[0]}x{nearest[1]}."
            )
        return [(h // 2**i, w // 2**i) for i in range(times + 1)]


class _UNet(eqx.Module):
    condition: Conditioning
    first: Convolution
    down: tuple[tuple[_Block, ...], ...]
    halve: tuple[Downsample, ...]
    middle: tuple[_Block, _Block]
    double: tuple[Upsample, ...]
    up: tuple[tuple[_Block, ...], ...]
    norm: eqx.nn.GroupNorm
    last: Convolution
    shape: Shape = eqx.field(static=True)

    def __init__(self, net: UNet, shape: Shape, sizes: list[tuple[int, int]], num_classes: int, key: Array):
        keys = _keys(key)
        width = 4 * net.channels[0]
        self.shape = shape
        self.condition = Conditioning(net.time, num_classes, width, next(keys))
        self.first = Convolution(shape[2], net.channels[0], next(keys))

        def block(in_channels: int, channels: int, attends: bool) -> _Block:
            return _Block(net, in_channels, channels, width, attends, next(keys))

        attends = [min(size) <= net.attention for size in sizes]
        entering = (net.channels[0], *net.channels[:-1])
        self.down = tuple(
            tuple(block(c if i else before, c, there) for i in range(net.num_blocks))
            for before, c, there in zip(entering, net.channels, attends, strict=True)
        )
        self.halve = tuple(Downsample(c, c, next(keys)) for c in net.channels[:-1])
        deepest = net.channels[-1]
        self.middle = block(deepest, deepest, True), block(deepest, deepest, False)
        pairs = list(pairwise(net.channels))
        self.double = tuple(Upsample(b, a, size, next(keys)) for (a, b), size in zip(pairs, sizes, strict=False))
        self.up = tuple(
            tuple(block(2 * c if i == 0 else c, c, there) for i in range(net.num_blocks))
            for c, there in zip(net.channels, attends, strict=True)
        )
        self.norm = _group_norm(net, net.channels[0])
        self.last = Convolution(net.channels[0], shape[2], next(keys), zero=True)

    def __call__(self, row: Float[Array, " in_size"], *, key: Array | None = None) -> Float[Array, " out_size"]:
        h, w, channels = self.shape
        image, c = told(self.condition, row, h * w * channels)
        image = self.first(image.reshape(self.shape))  # (h, w, channels[0])
        kept = []
        for level, blocks in enumerate(self.down):
            for block in blocks:
                image = block(image, c)
            kept.append(image)
            if level < len(self.halve):
                image = self.halve[level](image)
        for block in self.middle:
            image = block(image, c)
        for level in reversed(range(len(self.up))):
            image = jnp.concatenate([image, kept[level]], axis=-1)
            for block in self.up[level]:
                image = block(image, c)
            if level:
                image = self.double[level - 1](image)
        return self.last(jax.nn.silu(_normalised(self.norm, image))).ravel()


class _Block(eqx.Module):
    """Two convolutions, the second of which starts at zero, around which the image goes; then attention, if any."""

    norms: tuple[eqx.nn.GroupNorm, eqx.nn.GroupNorm]
    convolutions: tuple[Convolution, Convolution]
    shift: Affine
    skip: Affine | None
    attention: _Attention | None

    def __init__(self, net: UNet, in_channels: int, channels: int, width: int, attends: bool, key: Array):
        keys = _keys(key)
        self.norms = _group_norm(net, in_channels), _group_norm(net, channels)
        self.convolutions = (
            Convolution(in_channels, channels, next(keys)),
            Convolution(channels, channels, next(keys), zero=True),
        )
        self.shift = Affine(width, channels, next(keys))
        self.skip = None if in_channels == channels else Affine(in_channels, channels, next(keys))
        self.attention = _Attention(net, channels, next(keys)) if attends else None

    def __call__(self, image: Float[Array, "h w in"], c: Float[Array, " width"]) -> Float[Array, "h w out"]:
        inside = self.convolutions[0](jax.nn.silu(_normalised(self.norms[0], image))) + self.shift(c)
        inside = self.convolutions[1](jax.nn.silu(_normalised(self.norms[1], inside)))
        if self.skip is not None:
            image = self.skip(image)
        image = image + inside
        return image if self.attention is None else self.attention(image)


class _Attention(eqx.Module):
    """Self-attention between the pixels of an image, which is added to it."""

    norm: eqx.nn.GroupNorm
    attend: eqx.nn.MultiheadAttention

    def __init__(self, net: UNet, channels: int, key: Array):
        self.norm = _group_norm(net, channels)
        heads = net.num_heads if channels % net.num_heads == 0 else 1
        self.attend = eqx.nn.MultiheadAttention(heads, channels, key=key)

    def __call__(self, image: Float[Array, "h w c"]) -> Float[Array, "h w c"]:
        pixels = _normalised(self.norm, image).reshape(-1, image.shape[-1])  # (h w, c)
        return image + self.attend(pixels, pixels, pixels).reshape(image.shape)


class Convolution(eqx.Module):
    """3x3 convolution that keeps the size."""

    weight: Float[Array, "out in 3 3"]
    bias: Float[Array, " out"]

    def __init__(self, in_channels: int, out_channels: int, key: Array, zero: bool = False):
        shape = (out_channels, in_channels, 3, 3)
        self.weight = jnp.zeros(shape) if zero else _glorot(key, shape)
        self.bias = jnp.zeros(out_channels, self.weight.dtype)

    def __call__(self, image: Float[Array, "h w in"]) -> Float[Array, "h w out"]:
        # y[m, n] = sum_kl W[k, l] x[m + k - 1, n + l - 1]
        padded = jnp.pad(image, ((1, 1), (1, 1), (0, 0)))
        return correlate(padded, self.weight.transpose(2, 3, 1, 0)) + self.bias


def _group_norm(net: UNet, channels: int) -> eqx.nn.GroupNorm:
    return eqx.nn.GroupNorm(gcd(net.num_groups, channels), channels)


def _normalised(norm: Any, image: Float[Array, "h w c"]) -> Float[Array, "h w c"]:
    # Channels come last here and first in Equinox, whose call would move them there and back: a quarter of a step.
    def of_group(sums: Float[Array, " c"]) -> Float[Array, " c"]:
        each = len(sums) // norm.groups
        return jnp.repeat(sums.reshape(norm.groups, each).sum(1), each) / (each * image[..., 0].size)

    centred = image - of_group(image.sum((0, 1)))
    scale = jax.lax.rsqrt(of_group((centred**2).sum((0, 1))) + norm.eps)
    return centred * (scale * norm.weight) + norm.bias


def _keys(key: Array) -> Iterator[Array]:
    while True:
        key, one = jax.random.split(key)
        yield one


__all__ = ["Convolution", "UNet"]
