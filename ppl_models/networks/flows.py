r"""Normalizing flows: densities of rows that an invertible network makes out of a standard Normal.

    z ~ N(0, I),    y = g(z),    log p(y) = log N(g⁻¹(y); 0, I) + log |det d g⁻¹(y) / dy|

The flows are flowjax's. What is here are descriptions without weights, as for the other networks, and
:func:`flow`, which gives one weights inside a NumPyro program. All are built so that the density of a given
row is one pass through the network; drawing a row is one pass too, but for :class:`MAF`, where it takes as
many as there are columns.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from jaxtyping import Array, Float

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

    def build(self, dim: int, condition_dim: int | None, key: Array) -> Any:
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

    def build(self, dim: int, condition_dim: int | None, key: Array) -> Any:
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

    def build(self, dim: int, condition_dim: int | None, key: Array) -> Any:
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

    def build(self, dim: int, condition_dim: int | None, key: Array) -> Any:
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


def flow(
    name: str,
    architecture: Any,
    dim: int,
    condition: Float[Array, "batch condition"] | None = None,
    start: Float[Array, "batch dim"] | None = None,
) -> Any:
    """Give a flow weights inside a NumPyro program: the parameter site ``name``, drawn from the program's key.

    Parameters
    ----------
    name
        Name of the parameter site.
    architecture
        A description with ``build(dim, condition_dim, key)``, or a function like that, which gives a flowjax
        distribution over rows.
    dim
        Columns of a row.
    condition
        What the rows depend on, if anything.
    start
        Rows that say where the flow begins: its last layer shifts and scales columns, at first by the mean and
        standard deviation of these. By default it begins at mean 0 and deviation 1.

    Returns
    -------
    Distribution
        A :class:`FlowDistribution`, event shape ``(dim,)``, batch shape that of the conditions.

    Raises
    ------
    TypeError
        An architecture that does not build a flowjax distribution.
    ValueError
        Of another size than ``dim``; with a layer that has no inverse.
    """
    condition_dim = None if condition is None else condition.shape[-1]
    skeleton = _skeleton(architecture, dim, condition_dim)

    def weights(key: Array) -> Any:
        mean, scale = jnp.zeros(dim), jnp.ones(dim)
        if start is not None:
            mean, scale = jnp.mean(start, axis=0), jnp.std(start, axis=0)
            scale = jnp.where(scale > 0, scale, 1.0)  # a column that is all alike, or a single row
        return {"layers": _split(_located(architecture, dim, condition_dim, key, mean, scale))[0]}

    params: Any = numpyro.param(name, weights)  # a mapping, since a flow itself has a shape as arrays have
    return FlowDistribution(params["layers"], skeleton, dim, condition)


class FlowDistribution(dist.Distribution):
    """A flow with its weights, event shape ``(dim,)``; draws have a pathwise gradient, to the condition too.

    flowjax has such an adapter, but what it wraps is no pytree of arrays, as NumPyro's distributions are.

    Parameters
    ----------
    weights
        What is learned: the flow with everything else left out.
    skeleton
        What is left out.
    dim
        Columns of a row.
    condition
        What the rows depend on, shape ``(..., condition_dim)``, or ``None``.
    """

    arg_constraints = {}
    reparametrized_params = []
    support = dist.constraints.real_vector  # pyright: ignore[reportAssignmentType]
    pytree_data_fields = ("weights", "condition")
    pytree_aux_fields = ("skeleton",)

    def __init__(
        self, weights: Any, skeleton: Skeleton, dim: int, condition: Any = None, *, validate_args: bool | None = None
    ):
        self.weights, self.skeleton, self.condition = weights, skeleton, condition
        super().__init__(() if condition is None else condition.shape[:-1], (dim,), validate_args=validate_args)

    @property
    def flow(self) -> Any:
        """The distribution, flowjax's."""
        return eqx.combine(self.weights, self.skeleton.rest)

    @property
    def bijection(self) -> Any:
        """g, flowjax's, from the standard Normal to rows."""
        return self.flow.bijection

    def sample(self, key: Any, sample_shape: tuple[int, ...] = ()) -> Array:
        return self.flow.sample(key, sample_shape, self.condition)

    def log_prob(self, value: Any, intermediates: Any = None) -> Array:
        return self.flow.log_prob(value, self.condition)


@dataclass(frozen=True, eq=False)
class Skeleton:
    """A flow without its weights, the same object for equal architectures."""

    rest: Any


def check_flow(name: str, architecture: Any) -> None:
    """Refuse, when a program is made, what describes no flow."""
    if isinstance(architecture, (type, eqx.Module)) or not (hasattr(architecture, "build") or callable(architecture)):
        raise TypeError(
            f"{name} is {architecture!r}; expected a description with build(dim, condition_dim, key), such as "
            "RealNVP()."
        )


def _located(
    architecture: Any, dim: int, condition_dim: int | None, key: Array, mean: Float[Array, " dim"], scale: Any
) -> Any:
    """The flow followed by a shift and scale of each column, both learned."""
    from flowjax.bijections import Affine
    from flowjax.distributions import AbstractDistribution, Transformed

    flow = getattr(architecture, "build", architecture)(dim, condition_dim, key)
    if not isinstance(flow, AbstractDistribution):
        raise TypeError(f"{architecture!r} built a {type(flow).__name__}; expected a distribution of flowjax.")
    expected = (dim,), None if condition_dim is None else (condition_dim,)
    if (flow.shape, flow.cond_shape) != expected:
        raise ValueError(
            f"{architecture!r} built a flow over shape {flow.shape} given {flow.cond_shape}; expected {expected[0]} "
            f"given {expected[1]}. Make it of the dim and condition_dim that build is given."
        )
    return Transformed(flow, Affine(mean, scale)).merge_transforms()


def _split(flow: Any) -> tuple[Any, Any]:
    """The weights, and the rest of the flow: permutations, masks, functions, and what is marked as not trainable."""
    from paramax import NonTrainable

    return eqx.partition(flow, eqx.is_inexact_array, is_leaf=lambda leaf: isinstance(leaf, NonTrainable))


@lru_cache(maxsize=64)
def _skeleton(architecture: Any, dim: int, condition_dim: int | None) -> Skeleton:
    """A flow without its weights, the same whatever the run's key: what it permutes and masks is not learned.

    flowjax's layers keep arrays in closures, which a trace must not leak into: JAX's traces are a thread's own.
    """

    def build() -> Any:
        flow = _located(architecture, dim, condition_dim, jax.random.key(0), jnp.zeros(dim), jnp.ones(dim))
        _check_inverse(architecture, flow.bijection, dim, condition_dim)
        return flow

    with ThreadPoolExecutor(1) as outside:
        return Skeleton(_split(outside.submit(build).result())[1])


def _check_inverse(architecture: Any, bijection: Any, dim: int, condition_dim: int | None) -> None:
    """Refuse a layer that goes one way only: a density needs the one way, and a draw the other."""
    condition = None if condition_dim is None else jnp.zeros(condition_dim)
    for way in (bijection.transform_and_log_det, bijection.inverse_and_log_det):
        try:
            eqx.filter_eval_shape(way, jnp.zeros(dim), condition)
        except NotImplementedError as error:
            raise ValueError(
                f"{architecture!r} has a layer that is not invertible in closed form ({error}) Use another layer, or "
                "wrap it in flowjax's NumericalInverse."
            ) from None


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
