r"""Normalizing flows: densities of rows that an invertible network makes out of a standard Normal.

    z ~ N(0, I),    y = g(z),    log p(y) = log N(g⁻¹(y); 0, I) + log |det d g⁻¹(y) / dy|

The flows are flowjax's. :func:`flow` gives an architecture (:mod:`ppl_models.networks.flow_architectures`) weights
inside a NumPyro program.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from jaxtyping import Array, Float


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
        A description with ``build_flow(dim, condition_dim, key)``, or a function like that, which gives a flowjax
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
        return {"layers": skeleton.fresh(key, mean, scale)}

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
        return self.skeleton.sample(self.weights, key, self.condition, sample_shape)

    def log_prob(self, value: Any, intermediates: Any = None) -> Array:
        return self.skeleton.log_prob(self.weights, value, self.condition)


@dataclass(frozen=True, eq=False)
class Skeleton:
    """A flow without its weights, the same object for equal architectures, and what it does once it has them.

    The functions are compiled, so that JAX traces a flow once and not in every run of a program.
    """

    rest: Any
    fresh: Callable[..., Any]  # (key, mean, scale) -> weights
    log_prob: Callable[..., Array]  # (weights, value, condition)
    sample: Callable[..., Array]  # (weights, key, condition, sample_shape)


def check_flow(name: str, architecture: Any) -> None:
    """Refuse, when a program is made, what describes no flow."""
    usable = hasattr(architecture, "build_flow") or callable(architecture)
    if not usable or isinstance(architecture, (type, eqx.Module)):
        raise TypeError(
            f"{name} is {architecture!r}; expected a description with build_flow(dim, condition_dim, key), such "
            "as RealNVP()."
        )


def _located(
    architecture: Any, dim: int, condition_dim: int | None, key: Array, mean: Float[Array, " dim"], scale: Any
) -> Any:
    """The flow followed by a shift and scale of each column, both learned."""
    from flowjax.bijections import Affine
    from flowjax.distributions import AbstractDistribution, Transformed

    flow = getattr(architecture, "build_flow", architecture)(dim, condition_dim, key)
    if not isinstance(flow, AbstractDistribution):
        raise TypeError(f"{architecture!r} built a {type(flow).__name__}; expected a distribution of flowjax.")
    expected = (dim,), None if condition_dim is None else (condition_dim,)
    if (flow.shape, flow.cond_shape) != expected:
        raise ValueError(
            f"{architecture!r} built a flow over shape {flow.shape} given {flow.cond_shape}; expected {expected[0]} "
            f"given {expected[1]}. Make it of the dim and condition_dim that it is given."
        )
    return Transformed(flow, Affine(mean, scale)).merge_transforms()


def split(flow: Any) -> tuple[Any, Any]:
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

    def fresh(key: Array, mean: Array, scale: Array) -> Any:
        # Flows of one architecture hold functions that are alike and not equal: the weights take the place of these.
        weights, _ = split(_located(architecture, dim, condition_dim, key, mean, scale))
        return jax.tree.unflatten(structure, jax.tree.leaves(weights))

    def log_prob(weights: Any, value: Array, condition: Array | None) -> Array:
        return eqx.combine(weights, rest).log_prob(value, condition)

    def sample(weights: Any, key: Array, condition: Array | None, sample_shape: tuple[int, ...]) -> Array:
        return eqx.combine(weights, rest).sample(key, sample_shape, condition)

    with ThreadPoolExecutor(1) as outside:
        weights, rest = split(outside.submit(build).result())
    structure = jax.tree.structure(weights)
    return Skeleton(rest, jax.jit(fresh), jax.jit(log_prob), jax.jit(sample, static_argnums=3))


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
