r"""Von Mises distribution with pathwise gradients, by implicit reparameterisation.

A draw is z = loc + c, wrapped, with c ~ p(c) = exp(k cos c) / (2π I₀(k)) and distribution function F(c; k). At a
fixed F,

    dc/dk = -(dF/dk) / p = -∫₀ᶜ (cos t - A) exp(k (cos t - cos c)) dt,    A = I₁(k) / I₀(k).

Over the half circle that integral is zero, so it is also ∫ from c to π; of the two the one whose integrand keeps one
sign is taken (cos c above or below A), by Gauss-Legendre quadrature.

References
----------
Implicit Reparameterization Gradients (Figurnov, Mohamed and Mnih, 2018).
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax.lax import stop_gradient
from jax.scipy.special import i0e, i1e
from jaxtyping import Array, Float

NODES, WEIGHTS = (v / 2 for v in np.polynomial.legendre.leggauss(32))
NODES = NODES + 0.5  # on [0, 1]
TAIL = 8.0  # the density beyond c falls by exp(-TAIL²/2) within TAIL / √k
LARGE = 50.0  # concentration from which 1 - A comes from its series: the quotient would cancel


class VonMises(dist.VonMises):
    """NumPyro's ``VonMises`` whose draws are differentiable in the concentration too.

    Gradients of E[f(z)] are right for functions of the angle, those with period 2π. For others the jump at ±π
    adds a term that no pathwise gradient has.

    Parameters
    ----------
    loc
        Mean direction, in radians.
    concentration
        Positive.
    """

    reparametrized_params = ["loc", "concentration"]

    def sample(self, key: Any, sample_shape: tuple[int, ...] = ()) -> Float[Array, "..."]:
        loc, concentration = jnp.broadcast_arrays(jnp.asarray(self.loc), jnp.asarray(self.concentration))
        centred = dist.VonMises(0.0, stop_gradient(concentration)).sample(key, sample_shape)
        z = loc + _pathwise(centred, jnp.broadcast_to(concentration, centred.shape))
        return (z + jnp.pi) % (2 * jnp.pi) - jnp.pi


@jax.custom_jvp
def _pathwise(c: Array, concentration: Array) -> Array:
    """The draw itself, with the implicit derivative."""
    return c


@_pathwise.defjvp
def _(primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple[Array, Array]:
    c = _pathwise(*primals)
    return c, tangents[0] + draw_derivative(c, primals[1]) * tangents[1]


def draw_derivative(c: Float[Array, "..."], concentration: Float[Array, "..."]) -> Float[Array, "..."]:
    """dc/dk of a centred draw at a fixed value of the distribution function."""
    size, k = jnp.abs(c), concentration
    defect = _one_minus_mean_cosine(k)  # 1 - A
    inner = 1 - jnp.cos(size) < defect
    end = jnp.where(inner, 0.0, jnp.minimum(jnp.pi, size + TAIL / jnp.sqrt(k)))
    t = size + (end - size) * jnp.asarray(NODES, size.dtype).reshape(-1, *[1] * size.ndim)
    # cos t - A = (1 - A) - 2 sin²(t/2),   cos t - cos c = 2 sin((c + t)/2) sin((c - t)/2)
    integrand = (defect - 2 * jnp.sin(t / 2) ** 2) * jnp.exp(2 * k * jnp.sin((size + t) / 2) * jnp.sin((size - t) / 2))
    integral = (end - size) * jnp.tensordot(jnp.asarray(WEIGHTS, size.dtype), integrand, 1)
    return jnp.sign(c) * integral


def _one_minus_mean_cosine(k: Array) -> Array:
    """1 - I₁(k) / I₀(k)."""
    u = 1 / jnp.maximum(k, LARGE)
    series = u * (1 / 2 + u * (1 / 8 + u * (1 / 8 + u * (25 / 128 + u * 13 / 32))))
    small = jnp.minimum(k, LARGE)
    return jnp.where(k > LARGE, series, 1 - i1e(small) / i0e(small))


__all__ = ["VonMises"]
