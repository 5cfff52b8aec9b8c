"""Architectures of normalizing flows: frozen descriptions of what flowjax builds.

Each ``build_flow(dim, condition_dim, key)`` gives a flowjax distribution over rows, whose density takes one pass
through the network. So does a draw, but for :class:`MAF`, where it takes as many as there are columns.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array

from .layers import check_sizes


@dataclass(frozen=True)
class RealNVP:
    """Coupling layers: half of the columns are scaled and shifted by amounts that depend on the other half.

    Parameters
    ----------
    num_layers
        Coupling layers, with a permutation of the columns after each.
    width, depth
        Hidden width, and hidden layers, of each layer's network.

    References
    ----------
    Density Estimation Using Real NVP (Dinh, Sohl-Dickstein & Bengio, 2017).
    """

    num_layers: int = 8
    width: int = 64
    depth: int = 1

    def __post_init__(self) -> None:
        _check_layers(self, "num_layers", "width", "depth")

    def build_flow(self, dim: int, condition_dim: int | None, key: Array) -> Any:
        """Distribution over rows ``(dim,)``, given a row ``(condition_dim,)`` if there is one."""
        from flowjax.flows import coupling_flow

        _check_columns(self, dim, least=2)
        return _build(coupling_flow, self, dim, condition_dim, key)


@dataclass(frozen=True)
class MAF:
    """Masked autoregressive flow: each column is scaled and shifted by amounts that depend on those before it.

    Parameters
    ----------
    num_layers
        Autoregressive layers, with a permutation of the columns after each.
    width, depth
        Hidden width, and hidden layers, of each layer's masked network.

    References
    ----------
    Masked Autoregressive Flow for Density Estimation (Papamakarios, Pavlakou & Murray, 2017).
    """

    num_layers: int = 5
    width: int = 64
    depth: int = 1

    def __post_init__(self) -> None:
        _check_layers(self, "num_layers", "width", "depth")

    def build_flow(self, dim: int, condition_dim: int | None, key: Array) -> Any:
        """Distribution over rows ``(dim,)``, given a row ``(condition_dim,)`` if there is one."""
        from flowjax.flows import masked_autoregressive_flow

        _check_columns(self, dim, least=2)
        return _build(masked_autoregressive_flow, self, dim, condition_dim, key)


@dataclass(frozen=True)
class NeuralSpline:
    """Coupling layers with monotone rational-quadratic splines in the place of scales and shifts.

    Parameters
    ----------
    num_layers
        Coupling layers, with a permutation of the columns after each.
    width, depth
        Hidden width, and hidden layers, of each layer's network.
    num_bins
        Pieces of each spline.
    interval
        The splines are the identity outside [-interval, interval], in standard deviations of the data.

    References
    ----------
    Neural Spline Flows (Durkan, Bekasov, Murray & Papamakarios, 2019).
    """

    num_layers: int = 4
    width: int = 64
    depth: int = 1
    num_bins: int = 8
    interval: float = 4.0

    def __post_init__(self) -> None:
        _check_layers(self, "num_layers", "width", "depth", "num_bins")
        if not 0 < self.interval < float("inf"):
            raise ValueError(f"interval is {self.interval}; expected a positive number.")

    def build_flow(self, dim: int, condition_dim: int | None, key: Array) -> Any:
        """Distribution over rows ``(dim,)``, given a row ``(condition_dim,)`` if there is one."""
        from flowjax.bijections import RationalQuadraticSpline
        from flowjax.flows import coupling_flow

        _check_columns(self, dim, least=2)
        spline = RationalQuadraticSpline(knots=self.num_bins - 1, interval=self.interval)
        return _build(coupling_flow, self, dim, condition_dim, key, transformer=spline)


@dataclass(frozen=True)
class Planar:
    """Planar layers: y + u h(wᵀy + b), with h a leaky rectifier, which has an inverse in closed form.

    Parameters
    ----------
    num_layers
        Planar layers, with a permutation of the columns after each.
    negative_slope
        Slope of h below zero, positive: with 0 a layer would flatten half of the space and not be invertible.
    width, depth
        Hidden width, and hidden layers, of the network that makes u, w and b of a condition, if there is one.

    References
    ----------
    Variational Inference with Normalizing Flows (Rezende & Mohamed, 2015).
    """

    num_layers: int = 16
    negative_slope: float = 0.1
    width: int = 64
    depth: int = 1

    def __post_init__(self) -> None:
        _check_layers(self, "num_layers", "width", "depth")
        if not 0 < self.negative_slope < float("inf"):
            raise ValueError(
                f"negative_slope is {self.negative_slope}; expected a positive number, since a layer of any other "
                "slope is not invertible."
            )

    def build_flow(self, dim: int, condition_dim: int | None, key: Array) -> Any:
        """Distribution over rows ``(dim,)``, given a row ``(condition_dim,)`` if there is one."""
        from flowjax import bijections
        from flowjax.distributions import StandardNormal
        from flowjax.flows import planar_flow

        _check_columns(self, dim, least=1)
        flow = planar_flow(
            key,
            base_dist=StandardNormal((dim,)),
            cond_dim=condition_dim,
            flow_layers=self.num_layers,
            negative_slope=self.negative_slope,
            width_size=self.width,
            depth=self.depth,
        )
        if condition_dim is not None:
            return flow
        is_planar = partial(_is_a, bijections.Planar)
        return jax.tree.map(lambda v: _unfolded(v, key) if is_planar(v) else v, flow, is_leaf=is_planar)


def _is_a(kind: type, value: Any) -> bool:
    return isinstance(value, kind)


def _unfolded(layers: Any, key: Array) -> Any:
    """Planar layers that start as the identity, with w of unit size.

    flowjax starts with w and u near 0, where u made admissible is -0.47 w / |w|²: sharp folds. It adds
    (m(a) - a) w / |w|² to u, with a = wᵀu and m(a) = log(1 + softplus(a)) - 1, so that at u = a w / |w|² and m(a) = 0
    nothing is left of u.
    """
    number, dim = layers.params.shape[0], layers.shape[0]
    w, b = jnp.split(jax.random.normal(key, (number, dim + 1)), [dim], axis=1)
    a = jnp.log(jnp.expm1(jnp.e - 1))  # softplus(a) = e - 1
    u = a * w / jnp.sum(w**2, axis=1, keepdims=True)
    return eqx.tree_at(lambda v: v.params, layers, jnp.concatenate([w, u, b], axis=1))


def _build(make: Any, architecture: Any, dim: int, condition_dim: int | None, key: Array, **options: Any) -> Any:
    from flowjax.distributions import StandardNormal

    return make(
        key,
        base_dist=StandardNormal((dim,)),
        cond_dim=condition_dim,
        flow_layers=architecture.num_layers,
        nn_width=architecture.width,
        nn_depth=architecture.depth,
        **options,
    )


def _check_layers(architecture: Any, *names: str) -> None:
    for name in names:
        check_sizes(name, (getattr(architecture, name),))


def _check_columns(architecture: Any, dim: int, least: int) -> None:
    if dim < least:
        raise ValueError(
            f"{type(architecture).__name__} was given rows of {dim} column; it needs at least {least}, since one half "
            "of the columns says what happens to the other. For one column use Planar()."
        )
