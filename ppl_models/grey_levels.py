r"""Distributions over the grey levels 0, 1/(L-1), ..., 1 of a pixel: any, or a mixture of rounded logistics.

A logistic with location m and scale s, rounded to the nearest level and cut off at 0 and 1, has the masses

    P(v) = F(v + d/2) - F(v - d/2),    F(u) = sigma((u - m) / s),    d = 1 / (L - 1),

with F = 0 below the lowest level and F = 1 above the highest, so that they sum to one over the levels. With
a = (v + d/2 - m) / s and b = (v - d/2 - m) / s, what is computed is

    log P(v) = log sigma(a) + log sigma(-b) + log(1 - exp(-d / s)),

which loses no digits in the tails, where both F are alike.

References
----------
PixelCNN++: Improving the PixelCNN with Discretized Logistic Mixture Likelihood and Other Modifications (Salimans,
Karpathy, Chen & Kingma, 2017).
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from array_api_compat import array_namespace
from jaxtyping import Array, Float
from numpyro.distributions.util import validate_sample

from ppl_models.networks import levels_of, softplus

TOLERANCE = 1e-2  # of a level: levels in float32 are right to 1e-5


def log_mass(value: Any, logits: Any, loc: Any, scale: Any, levels: int) -> Any:
    """log sum_k w_k P_k(v), nats; ``value`` has shape ``(...)``, the parameters ``(..., mixtures)``."""
    xp, width = array_namespace(value, loc), 1 / (levels - 1)
    value = value[..., None]
    a, b = ((value + side * width / 2 - loc) / scale for side in (1, -1))
    lower, upper = -softplus(-a), -softplus(b)  # log sigma(a), log sigma(-b)
    level = levels_of(value, levels)
    inside = lower + upper + xp.log(-xp.expm1(-width / scale))
    each = xp.where(level <= 0, lower, xp.where(level >= levels - 1, upper, inside))
    return _log_sum_exp(logits + each) - _log_sum_exp(logits)


def _log_sum_exp(x: Any) -> Any:
    """Over the last axis; of finite numbers."""
    xp = array_namespace(x)
    top = xp.max(x, axis=-1, keepdims=True)
    return xp.log(xp.sum(xp.exp(x - top), axis=-1)) + top[..., 0]


def above(edge: Any, logits: Any, loc: Any, scale: Any) -> Any:
    """P(v > edge) of the mixture, between two levels: 1 - sum_k w_k F_k(edge)."""
    xp = array_namespace(loc)
    weights = xp.exp(logits - _log_sum_exp(logits)[..., None])
    return xp.sum(weights * xp.exp(-softplus((edge - loc) / scale)), axis=-1)


class _Grid(dist.constraints.Constraint):
    """The levels 0, 1/(L-1), ..., 1."""

    is_discrete = True

    def __init__(self, levels: int):
        self.levels = levels

    def __call__(self, x: Any) -> Any:
        level = x * (self.levels - 1)
        return (abs(level - level.round()) < TOLERANCE) & (x >= 0) & (x <= 1)

    def feasible_like(self, prototype: Any) -> Any:
        return jnp.zeros_like(prototype)

    def tree_flatten(self) -> Any:
        return (), ((), {"levels": self.levels})

    def eq(self, other: object, static: bool = False) -> bool:
        return isinstance(other, _Grid) and self.levels == other.levels

    def __hash__(self) -> int:
        return hash((_Grid, self.levels))


grid = _Grid  # named as NumPyro names its constraints


class GreyLevels(dist.Distribution):
    """Any distribution over the levels: ``logits`` of shape ``(..., levels)``."""

    arg_constraints = {"logits": dist.constraints.real_vector}

    def __init__(self, logits: Array, *, validate_args: bool | None = None):
        self.logits = jax.nn.log_softmax(logits)
        super().__init__(batch_shape=jnp.shape(logits)[:-1], validate_args=validate_args)

    @property
    def support(self) -> Any:
        return grid(self.logits.shape[-1])

    def sample(self, key: Array | None, sample_shape: tuple[int, ...] = ()) -> Array:
        assert key is not None
        level = jax.random.categorical(key, self.logits, shape=sample_shape + self.batch_shape)
        return level.astype(self.logits.dtype) / (self.logits.shape[-1] - 1)

    @validate_sample
    def log_prob(self, value: Any, intermediates: Any = None) -> Float[Array, "..."]:
        level = levels_of(jnp.asarray(value), self.logits.shape[-1]).astype(jnp.int32)
        shape = jnp.broadcast_shapes(level.shape, self.batch_shape)
        logits = jnp.broadcast_to(self.logits, (*shape, self.logits.shape[-1]))
        return jnp.take_along_axis(logits, jnp.broadcast_to(level, shape)[..., None], axis=-1)[..., 0]

    @property
    def mean(self) -> Array:
        return jax.nn.softmax(self.logits) @ jnp.linspace(0.0, 1.0, self.logits.shape[-1])


class LogisticLevels(dist.Distribution):
    """A mixture of rounded logistics: ``logits``, ``loc`` and ``scale`` of shape ``(..., mixtures)``."""

    arg_constraints = {
        "logits": dist.constraints.real_vector,
        "loc": dist.constraints.real_vector,
        "scale": dist.constraints.independent(dist.constraints.positive, 1),
    }
    pytree_aux_fields = ("levels",)

    def __init__(self, logits: Array, loc: Array, scale: Array, levels: int, *, validate_args: bool | None = None):
        self.logits, self.loc, self.scale, self.levels = logits, loc, scale, levels
        super().__init__(batch_shape=jnp.shape(loc)[:-1], validate_args=validate_args)

    @property
    def support(self) -> Any:
        return grid(self.levels)

    def sample(self, key: Array | None, sample_shape: tuple[int, ...] = ()) -> Array:
        assert key is not None
        key_mixture, key_logistic = jax.random.split(key)
        shape = sample_shape + self.batch_shape
        k = jax.random.categorical(key_mixture, self.logits, shape=shape)
        on = jax.nn.one_hot(k, self.logits.shape[-1], dtype=self.loc.dtype)
        loc, scale = jnp.sum(on * self.loc, -1), jnp.sum(on * self.scale, -1)
        value = loc + scale * jax.random.logistic(key_logistic, shape, self.loc.dtype)
        return levels_of(jnp.clip(value, 0.0, 1.0), self.levels) / (self.levels - 1)

    @validate_sample
    def log_prob(self, value: Any, intermediates: Any = None) -> Float[Array, "..."]:
        return log_mass(jnp.asarray(value), self.logits, self.loc, self.scale, self.levels)

    @property
    def mean(self) -> Array:
        # E[v] = d sum over the edges between levels of P(v > edge); one edge at a time, to bound memory
        width = 1 / (self.levels - 1)
        edges = (jnp.arange(self.levels - 1) + 0.5) * width

        def add(total: Array, edge: Array) -> tuple[Array, None]:
            return total + above(edge, self.logits, self.loc, self.scale), None

        start = jnp.zeros(self.batch_shape, self.loc.dtype)
        return width * jax.lax.scan(add, start, edges)[0]
