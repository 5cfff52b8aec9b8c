"""Unconstrained space: the map from it onto a support, and where parameters start in it. Either engine."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpyro


def biject_to(ppl: ModuleType, support: Any) -> Any:
    """T : R^d -> support."""
    if ppl is numpyro:
        return numpyro.distributions.biject_to(support)
    from torch.distributions import biject_to

    return biject_to(support)


def is_real(support: Any) -> bool:
    """Whether the support is all of R^d, so that a plain Normal (and its closed-form KL) will do."""
    while hasattr(support, "base_constraint"):
        support = support.base_constraint
    return type(support).__name__.strip("_").lower() in ("real", "realvector")


def uniform(ppl: ModuleType, key: Any, shape: tuple[int, ...], radius: float = 2.0) -> Any:
    """Uniform in (-radius, radius): from the key in NumPyro, from torch's generator in Pyro."""
    if ppl is numpyro:
        return jax.random.uniform(key, shape, minval=-radius, maxval=radius)
    import torch

    return (2 * torch.rand(shape) - 1) * radius


def full(ppl: ModuleType, shape: tuple[int, ...], value: float) -> Any:
    """An array with one value."""
    if ppl is numpyro:
        return jnp.full(shape, value, jnp.result_type(float))  # weakly typed, a step would compile twice
    import torch

    return torch.full(shape, value)


__all__ = ["biject_to", "full", "is_real", "uniform"]
