"""Dense networks."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import equinox as eqx
import jax
from jaxtyping import Array

from .layers import Activation, Affine, activation, check_activation, check_sizes

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class MLP:
    """Multilayer perceptron: affine maps with an activation between them.

    Parameters
    ----------
    hidden
        Widths of the hidden layers, at least one.
    activation
        Nonlinearity after each hidden layer.

    Raises
    ------
    ValueError
        No hidden layer, a width below 1, or an activation that the engines do not share.
    """

    hidden: tuple[int, ...]
    activation: Activation = "tanh"

    def __post_init__(self) -> None:
        object.__setattr__(self, "hidden", _as_sizes(self.hidden))
        if not self.hidden:
            raise ValueError("hidden is empty; expected at least one width, or Linear() for an affine map.")
        check_sizes("hidden", self.hidden)
        check_activation(self.activation)

    def build(self, in_size: int, out_size: int, key: Array) -> eqx.Module:
        """Equinox module that maps one row ``(in_size,)`` to ``(out_size,)``, with fresh weights."""
        sizes = (in_size, *self.hidden, out_size)
        keys = jax.random.split(key, len(sizes) - 1)
        layers = []
        for (a, b), k in zip(pairwise(sizes), keys, strict=True):
            layers += [Affine(a, b, k), activation(self.activation)]
        return eqx.nn.Sequential(layers[:-1])

    def build_torch(self, in_size: int, out_size: int) -> torch.nn.Module:
        """Torch module with the same parameters, in the same order."""
        from torch.nn import Sequential

        from . import torch_layers as layers

        modules = []
        for a, b in pairwise((in_size, *self.hidden, out_size)):
            modules += [layers.linear(a, b), layers.Elementwise(self.activation)]
        return Sequential(*modules[:-1])


@dataclass(frozen=True)
class Linear:
    """One affine map, no hidden layer: the encoder that a linear Gaussian model needs."""

    def build(self, in_size: int, out_size: int, key: Array) -> eqx.Module:
        """Equinox module that maps one row ``(in_size,)`` to ``(out_size,)``, with fresh weights."""
        return Affine(in_size, out_size, key)

    def build_torch(self, in_size: int, out_size: int) -> torch.nn.Module:
        """Torch module with the same parameters, in the same order."""
        from . import torch_layers as layers

        return layers.linear(in_size, out_size)


def _as_sizes(value: int | tuple[int, ...] | list[int]) -> tuple[int, ...]:
    return (value,) if isinstance(value, int) else tuple(value)
