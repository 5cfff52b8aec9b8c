r"""Mixtures of Normals with pathwise gradients, by implicit reparameterisation.

In one dimension, with F(z) = sum_k w_k Φ((z - m_k) / s_k) and p = F', a draw moves with the parameters as

    dz = -(dF) / p(z)    at a fixed value of F.

Components with independent coordinates are drawn coordinate by coordinate: given z_1 … z_{d-1}, z_d comes from a
mixture in one dimension whose weights are

    w_k prod_{e < d} N(z_e; m_ke, s_ke²),  normalised.

References
----------
Implicit Reparameterization Gradients (Figurnov, Mohamed and Mnih, 2018).
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax.lax import stop_gradient
from jax.nn import log_softmax, softmax
from jax.scipy.special import logsumexp, ndtr
from jax.scipy.stats import norm
from jaxtyping import Array, Float
from numpyro.distributions import constraints


class MixtureOfNormals(dist.Distribution):
    """Mixture of K Normals in one dimension.

    Parameters
    ----------
    logits
        Unnormalised log weights, shape ``(*batch, K)``.
    loc, scale
        Means and standard deviations of the components, shape ``(*batch, K)``.
    """

    arg_constraints = {
        "logits": constraints.real_vector,
        "loc": constraints.real_vector,
        "scale": constraints.independent(constraints.positive, 1),
    }
    reparametrized_params = ["logits", "loc", "scale"]

    def __init__(self, logits: Any, loc: Any, scale: Any, *, validate_args: bool | None = None):
        self.logits, self.loc, self.scale = jnp.broadcast_arrays(logits, loc, scale)
        super().__init__(batch_shape=self.loc.shape[:-1], validate_args=validate_args)

    @property
    def support(self) -> Any:
        return constraints.real

    def sample(self, key: Any, sample_shape: tuple[int, ...] = ()) -> Float[Array, "*batch"]:
        shape = sample_shape + self.batch_shape
        return _draw(key, shape, self.logits, self.loc[..., None], self.scale[..., None])[..., 0]

    def log_prob(self, value: Any, intermediates: Any = None) -> Float[Array, "*batch"]:
        return logsumexp(log_softmax(self.logits) + norm.logpdf(value[..., None], self.loc, self.scale), axis=-1)

    @property
    def mean(self) -> Float[Array, "*batch"]:
        return jnp.sum(softmax(self.logits) * self.loc, axis=-1)

    @property
    def variance(self) -> Float[Array, "*batch"]:
        second = jnp.sum(softmax(self.logits) * (self.scale**2 + self.loc**2), axis=-1)
        return second - self.mean**2

    def cdf(self, value: Any) -> Float[Array, "*batch"]:
        """F(value)."""
        return jnp.sum(softmax(self.logits) * norm.cdf(value[..., None], self.loc, self.scale), axis=-1)


class MixtureOfDiagonalNormals(dist.Distribution):
    """Mixture of K Normals over vectors, coordinates independent within a component.

    Parameters
    ----------
    logits
        Unnormalised log weights, shape ``(*batch, K)``.
    loc, scale
        Means and standard deviations of the components, shape ``(*batch, K, D)``.
    """

    arg_constraints = {
        "logits": constraints.real_vector,
        "loc": constraints.independent(constraints.real, 2),
        "scale": constraints.independent(constraints.positive, 2),
    }
    reparametrized_params = ["logits", "loc", "scale"]

    def __init__(self, logits: Any, loc: Any, scale: Any, *, validate_args: bool | None = None):
        self.loc, self.scale, logits = jnp.broadcast_arrays(loc, scale, jnp.asarray(logits)[..., None])
        self.logits = logits[..., 0]
        shape = self.loc.shape
        super().__init__(batch_shape=shape[:-2], event_shape=shape[-1:], validate_args=validate_args)

    @property
    def support(self) -> Any:
        return constraints.real_vector

    def sample(self, key: Any, sample_shape: tuple[int, ...] = ()) -> Float[Array, "*batch D"]:
        return _draw(key, sample_shape + self.batch_shape, self.logits, self.loc, self.scale)

    def log_prob(self, value: Any, intermediates: Any = None) -> Float[Array, "*batch"]:
        normals = norm.logpdf(value[..., None, :], self.loc, self.scale).sum(-1)
        return logsumexp(log_softmax(self.logits) + normals, axis=-1)

    @property
    def mean(self) -> Float[Array, "*batch D"]:
        return jnp.sum(softmax(self.logits)[..., None] * self.loc, axis=-2)

    @property
    def variance(self) -> Float[Array, "*batch D"]:
        second = jnp.sum(softmax(self.logits)[..., None] * (self.scale**2 + self.loc**2), axis=-2)
        return second - self.mean**2


def _draw(key: Any, shape: tuple[int, ...], logits: Array, loc: Array, scale: Array) -> Float[Array, "*shape D"]:
    """Draws whose gradient is that of the coordinates' conditional distribution functions."""
    component_key, noise_key = jax.random.split(key)
    k = jax.random.categorical(component_key, logits, shape=shape)[..., None, None]
    m, s = (jnp.take_along_axis(jnp.broadcast_to(v, shape + v.shape[-2:]), k, -2)[..., 0, :] for v in (loc, scale))
    drawn = stop_gradient(m + s * jax.random.normal(noise_key, m.shape, m.dtype))

    log_w, coordinates = jnp.broadcast_to(logits, (*shape, logits.shape[-1])), []
    # No lax.scan: in JAX 0.10 its partial evaluation forgets the rule of _pathwise, and second derivatives go wrong.
    for d in range(drawn.shape[-1]):
        m, s = loc[..., d], scale[..., d]  # (*batch, K)
        z = _pathwise(drawn[..., d], log_softmax(log_w), m, s)
        log_w = log_w + norm.logpdf(z[..., None], m, s)
        coordinates.append(z)
    return jnp.stack(coordinates, axis=-1)


@jax.custom_jvp
def _pathwise(z: Float[Array, "*shape"], log_w: Array, loc: Array, scale: Array) -> Float[Array, "*shape"]:
    """The draw itself, with the implicit derivative; the components are the last axis of the others."""
    return z


@_pathwise.defjvp
def _(primals: tuple[Array, ...], tangents: tuple[Array, ...]) -> tuple[Array, Array]:
    z = _pathwise(*primals)
    log_w, loc, scale = primals[1:]
    x = (z[..., None] - loc) / scale
    # Above the median 1 - F is differentiated: both lose no digits where they are small.
    upper = jnp.sum(jnp.exp(log_w) * ndtr(x), axis=-1, keepdims=True) > 0.5

    def distribution(log_w: Array, loc: Array, scale: Array) -> Array:
        x = (z[..., None] - loc) / scale
        return jnp.sum(jnp.exp(log_w) * jnp.where(upper, -ndtr(-x), ndtr(x)), axis=-1)

    _, moved = jax.jvp(distribution, (log_w, loc, scale), tangents[1:])
    log_p = logsumexp(log_w + norm.logpdf(z[..., None], loc, scale), axis=-1)
    return z, tangents[0] - moved * jnp.exp(-log_p)


__all__ = ["MixtureOfDiagonalNormals", "MixtureOfNormals"]
