"""Networks that are told the time and the class: their rows are D numbers, then t in (0, 1], then a one-hot class."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol, runtime_checkable

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.lax import stop_gradient
from jaxtyping import Array, Float

from .layers import Activation, Affine, activation, check_activation, check_sizes
from .mlp import _as_sizes


@runtime_checkable
class TimeEmbedding(Protocol):
    """A frozen description: ``build_time(key)`` gives a module from a number t to ``size`` features."""

    @property
    def size(self) -> int: ...

    def build_time(self, key: Array) -> Any: ...


def check_time(time: Any) -> None:
    """Refuse what is no embedding of time."""
    if isinstance(time, type) or not isinstance(time, TimeEmbedding):
        raise TypeError(f"time is {time!r}; expected SinusoidalTime() or FourierTime().")


def _check_even(size: int) -> None:
    if isinstance(size, bool) or not isinstance(size, int) or size < 2 or size % 2:
        raise ValueError(f"size is {size!r}; expected an even whole number: half are sines, half cosines.")


@dataclass(frozen=True)
class SinusoidalTime:
    """sin and cos of 1000 t w, for frequencies w from 1 down to 1 / ``max_period``, evenly in their logarithm.

    Parameters
    ----------
    size
        Features, an even number.
    max_period
        Longest period over 2 pi, in steps of 1/1000.

    References
    ----------
    Attention Is All You Need (Vaswani et al., 2017).
    """

    size: int = 64
    max_period: float = 10_000.0

    def __post_init__(self) -> None:
        _check_even(self.size)
        if not 1 < self.max_period < float("inf"):
            raise ValueError(f"max_period is {self.max_period!r}; expected a number above 1.")

    def build_time(self, key: Array) -> eqx.Module:
        """Module from t to features ``(size,)``; it has no weights."""
        half = self.size // 2
        return _Waves(1000.0 * jnp.exp(-math.log(self.max_period) * jnp.arange(half) / half))


@dataclass(frozen=True)
class FourierTime:
    """sin and cos of 2 pi t w, for frequencies w that are drawn from N(0, ``scale``²) and stay as they are.

    Parameters
    ----------
    size
        Features, an even number.
    scale
        Standard deviation of the frequencies.

    References
    ----------
    Fourier Features Let Networks Learn High Frequency Functions in Low Dimensional Domains (Tancik et al., 2020).
    """

    size: int = 64
    scale: float = 16.0

    def __post_init__(self) -> None:
        _check_even(self.size)
        if not 0 < self.scale < float("inf"):
            raise ValueError(f"scale is {self.scale!r}; expected a positive number.")

    def build_time(self, key: Array) -> eqx.Module:
        """Module from t to features ``(size,)``."""
        return _Waves(2 * math.pi * self.scale * jax.random.normal(key, (self.size // 2,)))


class _Waves(eqx.Module):
    frequencies: Float[Array, " half"]

    def __call__(self, t: Float[Array, ""]) -> Float[Array, " size"]:
        phase = t * stop_gradient(self.frequencies)
        return jnp.concatenate([jnp.sin(phase), jnp.cos(phase)])


class Conditioning(eqx.Module):
    """Time and class as one vector: two affine maps of the time's features, plus the class's own vector."""

    time: Any
    first: Affine
    last: Affine
    label: Affine | None

    def __init__(self, time: TimeEmbedding, num_classes: int, width: int, key: Array):
        keys = jax.random.split(key, 4)
        self.time = time.build_time(keys[0])
        self.first, self.last = Affine(time.size, width, keys[1]), Affine(width, width, keys[2])
        self.label = Affine(num_classes, width, keys[3]) if num_classes else None

    def __call__(self, t: Float[Array, ""], label: Float[Array, " classes"]) -> Float[Array, " width"]:
        c = self.last(jax.nn.silu(self.first(self.time(t))))
        return jax.nn.silu(c if self.label is None else c + self.label(label))


@dataclass(frozen=True)
class TimeMLP:
    """Multilayer perceptron of rows of numbers that is told time and class at every hidden layer.

    h = act(W h + b + V c), with c an embedding of time and class.

    Parameters
    ----------
    hidden
        Widths of the hidden layers, at least one.
    activation
        Nonlinearity after each.
    time
        ``SinusoidalTime()`` or ``FourierTime()``.

    Raises
    ------
    ValueError
        No hidden layer, a width below 1, or an unknown activation; at ``build``, rows without a time.
    """

    hidden: tuple[int, ...] = (128, 128)
    activation: Activation = "silu"
    time: TimeEmbedding = SinusoidalTime()

    def __post_init__(self) -> None:
        object.__setattr__(self, "hidden", _as_sizes(self.hidden))
        if not self.hidden:
            raise ValueError("hidden is empty; expected at least one width.")
        check_sizes("hidden", self.hidden)
        check_activation(self.activation)
        check_time(self.time)

    def build(self, in_size: int, out_size: int, key: Array) -> eqx.Module:
        """Equinox module that maps one row ``(in_size,)`` to ``(out_size,)``, with fresh weights."""
        num_classes = classes_of(in_size, out_size)
        sizes = (out_size, *self.hidden, out_size)
        key_condition, *keys = jax.random.split(key, 2 * len(sizes))
        widths = list(pairwise(sizes))
        layers = tuple(Affine(a, b, k) for (a, b), k in zip(widths, keys[::2], strict=False))
        shifts = tuple(Affine(self.hidden[0], b, k) for (_, b), k in zip(widths[:-1], keys[1::2], strict=False))
        condition = Conditioning(self.time, num_classes, self.hidden[0], key_condition)
        return _TimeMLP(condition, layers, shifts, activation(self.activation))


class _TimeMLP(eqx.Module):
    condition: Conditioning
    layers: tuple[Affine, ...]
    shifts: tuple[Affine, ...]
    activation: eqx.nn.Lambda

    def __call__(self, row: Float[Array, " in_size"], *, key: Array | None = None) -> Float[Array, " out_size"]:
        h, c = told(self.condition, row, self.layers[-1].bias.size)
        for layer, shift in zip(self.layers[:-1], self.shifts, strict=True):
            h = self.activation(layer(h) + shift(c))
        return self.layers[-1](h)


def classes_of(in_size: int, out_size: int) -> int:
    """How many classes rows tell of, beside ``out_size`` numbers and a time."""
    if in_size <= out_size:
        raise ValueError(
            f"a network that is told the time maps rows of D numbers, a time and a one-hot class to D numbers; it was "
            f"asked to map {in_size} to {out_size}. For other rows use MLP."
        )
    return in_size - out_size - 1


def told(condition: Conditioning, row: Float[Array, " in_size"], size: int) -> tuple[Array, Array]:
    """The numbers of a row, and the embedding of its time and class."""
    return row[:size], condition(row[size], row[size + 1 :])


__all__ = ["Conditioning", "FourierTime", "SinusoidalTime", "TimeEmbedding", "TimeMLP"]
