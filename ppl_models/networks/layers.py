"""Equinox layers with the shared initial law, and the stride-2 convolutions written as correlations.

A layer maps one row, as is usual in Equinox; ``network`` vectorises it, which leaves one product per
layer for the whole batch. ``torch_layers`` has the same layers with the same parameter shapes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, get_args

import equinox as eqx
import jax
import jax.numpy as jnp
from array_api_compat import array_namespace, is_jax_array
from jaxtyping import Array, Float

from .correlation import correlate

# Only those that jax.nn and torch.nn.functional define alike: their default gelu differ.
Activation = Literal["tanh", "relu", "sigmoid", "softplus", "silu", "elu"]


def check_sizes(what: str, sizes: tuple[int, ...]) -> None:
    """Refuse sizes that are not whole numbers of at least one."""
    if any(isinstance(size, bool) or not isinstance(size, int) or size < 1 for size in sizes):
        raise ValueError(f"{what} is {sizes}; expected whole numbers of at least 1.")


def check_activation(name: str) -> None:
    """Refuse the name of an activation that the engines do not share."""
    if name not in get_args(Activation):
        raise ValueError(f"activation is {name!r}; expected one of {', '.join(get_args(Activation))}.")


def softplus(x: Any) -> Any:
    """log(1 + exp x), for the arrays of either engine.

    In JAX its gradient is the sigmoid, and in float32 log1p is a series, a rational function of exp(-|x|) that is as
    exact (2e-7) and on a CPU eight times as fast.
    """
    if is_jax_array(x):
        return _softplus(x)
    xp = array_namespace(x)
    return xp.logaddexp(x, xp.zeros_like(x))


@jax.custom_jvp
def _softplus(x: Float[Array, "*n"]) -> Float[Array, "*n"]:
    e = jnp.exp(-jnp.abs(x))
    if e.dtype == jnp.float64:
        return jnp.maximum(x, 0) + jnp.log1p(e)
    # log(1 + e) = 2 artanh(s) = 2 (s + s³/3 + s⁵/5 + ...), s = e / (2 + e) <= 1/3: after s¹⁷ less than 1e-9 is left
    s = e / (2 + e)
    series = 1 / 17
    for odd in range(15, 0, -2):
        series = series * s**2 + 1 / odd
    return jnp.maximum(x, 0) + 2 * s * series


_softplus.defjvps(lambda tangent, _, x: jax.nn.sigmoid(x) * tangent)


def nonlinearity(name: Activation) -> Callable[[Array], Array]:
    """An activation as a function."""
    return softplus if name == "softplus" else getattr(jax.nn, name)


def activation(name: Activation) -> eqx.nn.Lambda:
    """An activation as a layer."""
    return eqx.nn.Lambda(nonlinearity(name))


class Affine(eqx.Module):
    """``W x + b`` of one row, or of each of many.

    As xᵀ Wᵀ + bᵀ: under several vmaps (rows, particles, classes) W x would leave the outputs of a row apart in memory.
    """

    weight: Float[Array, "out in"]
    bias: Float[Array, " out"]

    def __init__(self, in_size: int, out_size: int, key: Array):
        self.weight = _glorot(key, (out_size, in_size))
        self.bias = jnp.zeros(out_size, self.weight.dtype)

    def __call__(self, row: Float[Array, "*rows in"], *, key: Array | None = None) -> Float[Array, "*rows out"]:
        return row @ self.weight.T + self.bias


class Downsample(eqx.Module):
    """4x4 convolution of stride 2: an image (h, w, c) becomes (⌈h/2⌉, ⌈w/2⌉, out).

    The same as a 2x2 correlation of the image whose channels are its 2x2 blocks: one of stride 1, which is fast.
    ``weight`` has torch's layout (out, in, 4, 4).
    """

    weight: Float[Array, "out in 4 4"]
    bias: Float[Array, " out"]

    def __init__(self, in_channels: int, out_channels: int, key: Array):
        self.weight = _glorot(key, (out_channels, in_channels, 4, 4))
        self.bias = jnp.zeros(out_channels, self.weight.dtype)

    def __call__(self, image: Float[Array, "h w in"], *, key: Array | None = None) -> Float[Array, "h2 w2 out"]:
        (h, w, c), out = image.shape, len(self.bias)
        h2, w2 = -(-h // 2), -(-w // 2)
        padded = jnp.pad(image, ((1, 2 * h2 - h + 1), (1, 2 * w2 - w + 1), (0, 0)))
        blocks = padded.reshape(h2 + 1, 2, w2 + 1, 2, c).transpose(0, 2, 1, 3, 4).reshape(h2 + 1, w2 + 1, 4 * c)
        # y[m, n] = sum_kl W[k, l] x[2m + k, 2n + l], with k = 2a + i, l = 2b + j
        weight = self.weight.reshape(out, c, 2, 2, 2, 2)  # (out, in, a, i, b, j)
        weight = weight.transpose(2, 4, 3, 5, 1, 0).reshape(2, 2, 4 * c, out)  # (a, b, i j in, out)
        return correlate(blocks, weight) + self.bias


class Upsample(eqx.Module):
    """4x4 transposed convolution of stride 2: an image (⌈h/2⌉, ⌈w/2⌉, c) becomes (h, w, out).

    A 2x2 correlation from the image to the 2x2 blocks of the output. ``weight`` has torch's layout (in, out, 4, 4).
    """

    weight: Float[Array, "in out 4 4"]
    bias: Float[Array, " out"]
    shape: tuple[int, int] = eqx.field(static=True)

    def __init__(self, in_channels: int, out_channels: int, shape: tuple[int, int], key: Array):
        self.weight = _glorot(key, (in_channels, out_channels, 4, 4))
        self.bias = jnp.zeros(out_channels, self.weight.dtype)
        self.shape = shape

    def __call__(self, image: Float[Array, "h2 w2 in"], *, key: Array | None = None) -> Float[Array, "h w out"]:
        (h2, w2, c), out = image.shape, self.bias.shape[0]
        padded = jnp.pad(image, ((1, 1), (1, 1), (0, 0)))
        # Row 2m + i of the output, before a border of one is cut: sum_a W[2a + i] x[m - a], a, i in {0, 1}
        weight = self.weight.reshape(c, out, 2, 2, 2, 2)  # (in, out, a, i, b, j)
        weight = weight.transpose(2, 4, 0, 3, 5, 1).reshape(2, 2, c, 4 * out)  # (a, b, in, i j out)
        blocks = correlate(padded, weight[::-1, ::-1]).reshape(h2 + 1, w2 + 1, 2, 2, out)
        full = blocks.transpose(0, 2, 1, 3, 4).reshape(2 * h2 + 2, 2 * w2 + 2, out)
        return full[1 : 1 + self.shape[0], 1 : 1 + self.shape[1]] + self.bias


def _glorot(key: Array, shape: tuple[int, ...]) -> Array:
    return jax.nn.initializers.glorot_uniform(in_axis=1, out_axis=0)(key, shape)
