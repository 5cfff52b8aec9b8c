r"""Networks that see the past alone: gated convolutions over images and sequences, and how they are unrolled.

A convolution here is *valid*: it is given what its window reaches, and the caller pads or remembers. So one layer
serves the whole image, padded with zeros before the beginning, and one pixel, given the last rows or columns that a
draw has left; both take the same products.

References
----------
Conditional Image Generation with PixelCNN Decoders (van den Oord et al., 2016).
WaveNet: A Generative Model for Raw Audio (van den Oord et al., 2016).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from .correlation import correlate
from .layers import _glorot, check_sizes

Centred = Callable[[Array], Array]
Choose = Callable[[Array, Array], Array]


def check_kernels(kernel_sizes: tuple[int, ...]) -> None:
    """Refuse kernels of a PixelCNN that have no middle, or of which the first shows a pixel nothing."""
    check_sizes("kernel_sizes", kernel_sizes)
    if not kernel_sizes or any(k % 2 == 0 for k in kernel_sizes) or kernel_sizes[0] < 3:
        raise ValueError(f"kernel_sizes is {kernel_sizes}; expected odd numbers, the first at least 3.")


class ValidConv(eqx.Module):
    """Convolution without padding.

    An image (rows + kernel rows - 1, columns + dilation (kernel columns - 1), in) becomes (rows, columns, out).
    """

    weight: Float[Array, "out in k l"]
    bias: Float[Array, " out"]
    dilation: int = eqx.field(static=True)

    def __init__(self, in_channels: int, out_channels: int, kernel: tuple[int, int], key: Array, dilation: int = 1):
        self.weight = _glorot(key, (out_channels, in_channels, *kernel))
        self.bias, self.dilation = jnp.zeros(out_channels), dilation

    def __call__(self, image: Float[Array, "h w in"]) -> Float[Array, "h2 w2 out"]:
        # y[r, c] = sum_ij W[i, j] x[r + i, c + dj]
        return correlate(image, self.weight.transpose(2, 3, 1, 0), self.dilation) + self.bias


class Pointwise(eqx.Module):
    """``W x + b`` at every position; nothing in, where there is no context, leaves b."""

    weight: Float[Array, "in out"]
    bias: Float[Array, " out"]

    def __init__(self, in_channels: int, out_channels: int, key: Array):
        shape = (in_channels, out_channels)
        self.weight = _glorot(key, shape[::-1]).T if in_channels else jnp.zeros(shape)
        self.bias = jnp.zeros(out_channels)

    def __call__(self, image: Float[Array, "*where in"]) -> Float[Array, "*where out"]:
        return image @ self.weight + self.bias


class Head(eqx.Module):
    """Outputs of a position from its features, and what it is told beside them: relu, affine, relu, affine."""

    first: Pointwise
    second: Pointwise

    def __init__(self, channels: int, outputs: int, key: Array, told: int = 0):
        one, two = jax.random.split(key)
        self.first, self.second = Pointwise(channels + told, channels, one), Pointwise(channels, outputs, two)

    def __call__(self, h: Float[Array, "*where channels"], told: Any = None) -> Float[Array, "*where outputs"]:
        seen = jax.nn.relu(h) if told is None else jnp.concatenate([jax.nn.relu(h), told], axis=-1)
        return self.second(jax.nn.relu(self.first(seen)))


def gate(x: Float[Array, "*where two_channels"]) -> Float[Array, "*where channels"]:
    """tanh(a) sigmoid(b) of the two halves of the channels."""
    a, b = jnp.split(x, 2, axis=-1)
    return jnp.tanh(a) * jax.nn.sigmoid(b)


def _remember(window: Array, new: Array, axis: int) -> Array:
    """The window moved on by one."""
    both = jnp.concatenate([window, new], axis=axis)
    return jax.lax.slice_in_dim(both, 1, None, axis=axis)


class GatedPixelNetwork(eqx.Module):
    """Gated PixelCNN of one image: a stack that sees the rows above, and one that sees the row to the left.

    With half-widths a_l = k_l // 2 of the kernels, the first layers take

        down_1[r, c]:  rows r - a .. r - 1, columns c - a .. c + a;     right_1[r, c]:  columns c - a .. c - 1 of row r

    and later ones rows up to r and columns up to c of the layer before. A pixel sees sum_l a_l to each side and above,
    without a blind spot. The first layer also has a bias for every position, since borders tell a pixel its place only
    within reach. The colours of a pixel are drawn one after the other: each has a head of its own, which is told those
    before it.
    """

    down: list[ValidConv]
    right: list[ValidConv]
    across: list[Pointwise]  # from the stack of rows to that of columns
    residual: list[Pointwise]
    conditions: list[Pointwise]  # of the context, for both stacks
    place: Float[Array, "h w four_channels"]  # biases of the first layer, for both stacks
    heads: list[Head]  # of each colour
    image_shape: tuple[int, int] = eqx.field(static=True)
    entry: int = eqx.field(static=True)  # numbers of which a value consists: 1, or K of a one-hot code
    centre: Centred = eqx.field(static=True)

    def __init__(
        self,
        pixels: int,
        outputs: int,
        features: int,
        centre: Centred,
        key: Array,
        *,
        image_shape: tuple[int, ...],
        channels: int,
        kernel_sizes: tuple[int, ...],
        entry: int = 1,
    ):
        height, width, colours = (*image_shape, 1)[:3]
        self.image_shape, self.entry, self.centre = (height, width), entry, centre
        self.down, self.right, self.across, self.residual, self.conditions = [], [], [], [], []
        for i, k in enumerate(kernel_sizes):
            key, *keys = jax.random.split(key, 6)
            past, now, size = k // 2, int(i > 0), colours * entry if i == 0 else channels
            self.down.append(ValidConv(size, 2 * channels, (past + now, 2 * past + 1), keys[0]))
            self.right.append(ValidConv(size, 2 * channels, (1, past + now), keys[1]))
            self.across.append(Pointwise(2 * channels, 2 * channels, keys[2]))
            self.residual.append(Pointwise(channels, channels, keys[3]))
            self.conditions.append(Pointwise(features, 4 * channels, keys[4]))
        self.place = jnp.zeros((height, width, 4 * channels))
        keys = jax.random.split(key, colours)
        self.heads = [Head(channels, outputs, k, c * entry) for c, k in enumerate(keys)]

    @property
    def position(self) -> Int[np.ndarray, " values"]:
        """The turn at which each value is drawn: row by row, colour by colour."""
        return np.arange(self.image_shape[0] * self.image_shape[1] * len(self.heads))

    def __call__(self, row: Float[Array, "values ..."], context: Float[Array, "positions features"]) -> Array:
        """Outputs of every value given those before it, ``(values, outputs)``."""
        image = self.centre(row).reshape(*self.image_shape, -1)
        v = h = image
        for i, (a, given) in enumerate(zip(self._halves, self._given(context), strict=True)):
            for_down, for_right = jnp.split(given, 2, axis=-1)
            rows, columns = jnp.pad(v, ((a, 0), (a, a), (0, 0))), jnp.pad(h, ((0, 0), (a, 0), (0, 0)))
            if i == 0:  # not the pixel itself, nor its row
                rows, columns = rows[:-1], columns[:, :-1]
            down = self.down[i](rows) + for_down
            right = self.right[i](columns) + self.across[i](down) + for_right
            v, h = gate(down), self._residual(i, h, right)
        outputs = [head(h, image[..., : c * self.entry]) for c, head in enumerate(self.heads)]
        return jnp.stack(outputs, axis=-2).reshape(len(row), -1)

    def unroll(self, choose: Choose, context: Float[Array, "positions features"]) -> Array:
        """Draw an image: the stack of rows once a row, that of columns once a pixel, from windows of each layer."""
        height, width = self.image_shape
        given = [jnp.broadcast_to(g, (height, width, g.shape[-1])) for g in self._given(context)]
        sizes = [len(self.heads) * self.entry] + [len(r.bias) for r in self.residual[:-1]]
        above = [jnp.zeros((a, width, size)) for a, size in zip(self._halves, sizes, strict=True)]
        left = [jnp.zeros((1, a, size)) for a, size in zip(self._halves, sizes, strict=True)]

        def row(above: list[Array], inputs: tuple[Array, list[Array]]) -> tuple[list[Array], Array]:
            r, given = inputs
            v, offsets, windows = None, [], []
            for i, (a, window, g) in enumerate(zip(self._halves, above, given, strict=True)):
                for_down, for_right = jnp.split(g, 2, axis=-1)
                seen = window if v is None else jnp.concatenate([window, v])
                down = self.down[i](jnp.pad(seen, ((0, 0), (a, a), (0, 0)))) + for_down
                offsets.append((self.across[i](down) + for_right)[0])  # (width, 2 channels)
                windows.append(seen[1:])
                v = gate(down)
            pixels = (jnp.arange(width) + r * width, offsets)
            x = jax.lax.scan(self._column(choose), left, pixels)[1]
            new = self.centre(x).reshape(1, width, -1)
            return [_remember(above[0], new, 0), *windows[1:]], x

        image = jax.lax.scan(row, above, (jnp.arange(height), given))[1]  # (height, width, colours, ...)
        return image.reshape(-1, *image.shape[3:])

    def _column(self, choose: Choose) -> Callable[[list[Array], Any], tuple[list[Array], Array]]:
        def column(left: list[Array], inputs: tuple[Array, list[Array]]) -> tuple[list[Array], Array]:
            pixel, offsets = inputs
            h, windows = None, []
            for i, (window, offset) in enumerate(zip(left, offsets, strict=True)):
                seen = window if h is None else jnp.concatenate([window, h], axis=1)
                h = self._residual(i, h, self.right[i](seen) + offset)
                windows.append(seen[:, 1:])
            assert h is not None
            values, told = [], jnp.zeros((1, 1, 0))
            for c, head in enumerate(self.heads):
                values.append(choose(pixel * len(self.heads) + c, head(h, told)[0, 0]))
                told = jnp.concatenate([told, self.centre(values[-1]).reshape(1, 1, -1)], axis=-1)
            return [_remember(left[0], told, 1), *windows[1:]], jnp.stack(values)

        return column

    def _residual(self, i: int, h: Any, right: Array) -> Array:
        new = self.residual[i](gate(right))
        return new if i == 0 else h + new

    @property
    def _halves(self) -> list[int]:
        return [(conv.weight.shape[3] - 1) // 2 for conv in self.down]

    def _given(self, context: Array) -> list[Array]:
        """What context and place add to each layer, ``(height, width, 4 channels)`` or ``(1, 1, 4 channels)``."""
        where = self.image_shape if len(context) > 1 else (1, 1)
        first, *later = (condition(context.reshape(*where, context.shape[-1])) for condition in self.conditions)
        return [first + self.place, *later]


class GatedCausalNetwork(eqx.Module):
    """Dilated causal convolutions over one sequence: gated residual layers, whose skips are summed.

    Layer l sees h[t], h[t - d_l], …, h[t - (k - 1) d_l] of the layer before; the first layer sees the sequence moved
    on by one. A step sees 1 + (k - 1) sum_l d_l steps back.
    """

    first: Pointwise
    convolutions: list[ValidConv]
    residual: list[Pointwise]
    skip: list[Pointwise]
    conditions: list[Pointwise]
    head: Head
    length: int = eqx.field(static=True)
    centre: Centred = eqx.field(static=True)

    def __init__(
        self,
        pixels: int,
        outputs: int,
        features: int,
        centre: Centred,
        key: Array,
        *,
        channels: int,
        kernel_size: int,
        dilations: tuple[int, ...],
    ):
        self.length, self.centre = pixels, centre
        key, key_first, key_head = jax.random.split(key, 3)
        self.first, self.head = Pointwise(1, channels, key_first), Head(channels, outputs, key_head)
        self.convolutions, self.residual, self.skip, self.conditions = [], [], [], []
        for d in dilations:
            key, *keys = jax.random.split(key, 5)
            self.convolutions.append(ValidConv(channels, 2 * channels, (1, kernel_size), keys[0], d))
            self.residual.append(Pointwise(channels, channels, keys[1]))
            self.skip.append(Pointwise(channels, channels, keys[2]))
            self.conditions.append(Pointwise(features, 2 * channels, keys[3]))

    @property
    def position(self) -> Int[np.ndarray, " pixels"]:
        """The turn at which each step is drawn: in time."""
        return np.arange(self.length)

    def __call__(self, row: Float[Array, " pixels"], context: Float[Array, "positions features"]) -> Array:
        """Outputs of every step given those before it, ``(pixels, outputs)``."""
        before = jnp.concatenate([jnp.zeros(1), self.centre(row)[:-1]])
        h, total = self.first(before[None, :, None]), 0.0
        for i, past in enumerate(self._pasts):
            h, total = self._layer(i, jnp.pad(h, ((0, 0), (past, 0), (0, 0))), h, total, self.conditions[i](context))
        return self.head(jnp.asarray(total))[0]

    def unroll(self, choose: Choose, context: Float[Array, "positions features"]) -> Array:
        """Draw a sequence, each layer from a window of the one before."""
        given = [condition(context) for condition in self.conditions]
        given = [jnp.broadcast_to(g, (self.length, g.shape[-1])) for g in given]
        windows = [jnp.zeros((1, past, len(self.first.bias))) for past in self._pasts]

        def step(carry: tuple[Array, list[Array]], inputs: tuple[Array, list[Array]]) -> tuple[Any, Array]:
            (before, windows), (t, given) = carry, inputs
            h, total, moved = self.first(before[None, None, None]), 0.0, []
            for i, (window, g) in enumerate(zip(windows, given, strict=True)):
                seen = jnp.concatenate([window, h], axis=1)
                moved.append(seen[:, 1:])
                h, total = self._layer(i, seen, h, total, g)
            x = choose(t, self.head(jnp.asarray(total))[0, 0])
            return (self.centre(x), moved), x

        return jax.lax.scan(step, (jnp.zeros(()), windows), (jnp.arange(self.length), given))[1]

    def _layer(self, i: int, seen: Array, h: Array, total: Any, given: Array) -> tuple[Array, Any]:
        out = gate(self.convolutions[i](seen) + given)
        return h + self.residual[i](out), total + self.skip[i](out)

    @property
    def _pasts(self) -> list[int]:
        return [(conv.weight.shape[3] - 1) * conv.dilation for conv in self.convolutions]
