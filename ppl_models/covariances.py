"""Four structures of a mixture's covariances: how each is drawn, factorised and estimated.

===========  ===========  ======================  ============================
structure    covariances  prior of the precision  moment that estimates it
===========  ===========  ======================  ============================
full         (K, D, D)    Wishart                 sum_n r_nk x_n x_nᵀ
tied         (D, D)       Wishart                 sum_n x_n x_nᵀ
diag         (K, D)       Gamma                   sum_n r_nk x_n²
spherical    (K,)         Gamma                   sum_n r_nk |x_n|²
===========  ===========  ======================  ============================

With nu degrees of freedom and scale s every variance has the same prior in all of them, worth nu
observations of variance s²: InverseGamma(nu / 2, nu s² / 2). For matrices that is
Λ ~ Wishart(D - 1 + nu, I / (nu s²)).

EM whitens the rows for every component, y = P (x - m) with PᵀP = Λ, so that

    log N(x | m, Λ⁻¹) = log|P| - D/2 log 2π - |y|²/2.

Whitened rows are laid out (K, D, C): components first and a chunk of C rows last, so that sums over
dimensions and components run down contiguous vectors. They have the data's precision; what comes
before them (P) and after them (moments, about an origin near the data) is float64.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
from array_api_compat import array_namespace, device
from jaxtyping import Array, Float

_HIGHEST = jax.lax.Precision.HIGHEST  # accelerators round the float32 factors of a product by default


@dataclass(frozen=True)
class Structure:
    """What a mixture needs to know of its covariances.

    Attributes
    ----------
    prior
        ``(dist, one, nu, scale)``, with ``one`` of ones (K, D), to the distribution of the precisions.
    inverse
        Precisions to covariances, and back.
    normal
        ``(dist, means, covariances)`` to a function from component z to its Gaussian.
    whitener
        ``(covariances, D)`` to P and log|P|.
    whiten
        ``(P, m, x)`` to y (K, D, C), for rows x (C, D).
    moment
        ``(r, y, x)`` to a chunk's second moment, for responsibilities r (K, C).
    about_origin
        ``(moment, covariances, n, sum r x)`` to the second moment of x itself.
    estimate
        ``(n, m, moment, floor)`` to the maximum-likelihood covariances, ``floor`` added to variances.
    pooled
        One covariance matrix (D, D) for all of K components.
    """

    prior: Callable[[Any, Any, float, float], Any]
    inverse: Callable[[Any], Any]
    normal: Callable[[Any, Any, Any], Callable[[Any], Any]]
    whitener: Callable[[Array, int], tuple[Array, Array]]
    whiten: Callable[[Array, Array, Array], Float[Array, "K D C"]]
    moment: Callable[[Array, Array, Array], Array]
    about_origin: Callable[[Array, Array, Array, Array], Array]
    estimate: Callable[[Array, Array, Array, float], Array]
    pooled: Callable[[Array, int], Array]


def _wishart(dist: Any, one: Any, nu: float, scale: float) -> Any:
    """Λ ~ Wishart(D - 1 + nu, I / (nu s²))."""
    eye = array_namespace(one).eye(one.shape[-1], dtype=one.dtype, device=device(one))
    df, root = (one.shape[-1] - 1 + nu) * one[0, 0], eye / (nu**0.5 * scale)
    if hasattr(dist, "TorchDistribution"):  # Pyro
        # torch takes float32 rounding of large matrices for asymmetry.
        return _pyro_wishart(dist)(df, scale_tril=root, validate_args=False)
    return dist.Wishart(df, scale_tril=root)


@cache
def _pyro_wishart(dist: Any) -> Any:
    """Pyro's Wishart without a check of torch 2.13, which takes regular draws for singular, warns and draws again."""

    class Bartlett(dist.Wishart):
        def rsample(self, sample_shape: Any = (), max_try_correction: Any = None) -> Any:
            return self._bartlett_sampling(sample_shape)

    return Bartlett


def _gamma(dist: Any, one: Any, nu: float, scale: float) -> Any:
    """λ ~ Gamma(nu / 2, nu s² / 2), as many as ``one``."""
    return dist.Gamma(nu / 2 * one, nu * scale**2 / 2 * one).to_event(one.ndim)


def _matrix_inverse(matrices: Any) -> Any:
    return array_namespace(matrices).linalg.inv(matrices)


def _reciprocal(values: Any) -> Any:
    return 1 / values


def _cholesky(matrices: Any) -> Any:
    return array_namespace(matrices).linalg.cholesky(matrices)


def _full_normal(dist: Any, means: Any, covariances: Any) -> Callable[[Any], Any]:
    root = _cholesky(covariances)
    return lambda z: dist.MultivariateNormal(means[z], scale_tril=root[z])


def _tied_normal(dist: Any, means: Any, covariances: Any) -> Callable[[Any], Any]:
    root = _cholesky(covariances)
    return lambda z: dist.MultivariateNormal(means[z], scale_tril=root)


def _diag_normal(dist: Any, means: Any, covariances: Any) -> Callable[[Any], Any]:
    root = covariances**0.5
    return lambda z: dist.Normal(means[z], root[z]).to_event(1)


def _spherical_normal(dist: Any, means: Any, covariances: Any) -> Callable[[Any], Any]:
    return _diag_normal(dist, means, covariances[:, None])


def _inverse_root(covariances: Array, dim: int) -> tuple[Array, Array]:
    """P = L⁻¹ for Σ = L Lᵀ."""
    root = jnp.linalg.cholesky(covariances)
    eye = jnp.broadcast_to(jnp.eye(dim), root.shape)
    p = jax.scipy.linalg.solve_triangular(root, eye, lower=True)
    return p, jnp.log(jnp.diagonal(p, axis1=-2, axis2=-1)).sum(-1)


def _inverse_deviation(covariances: Array, dim: int) -> tuple[Array, Array]:
    """P = diag(1 / σ), for variances (K, D) or (K, 1)."""
    p = jnp.broadcast_to(covariances**-0.5, (len(covariances), dim))
    return p, jnp.log(p).sum(-1)


def _full_whiten(p: Array, means: Array, x: Array) -> Array:
    """P x - P m, one product (K D, D) @ (D, C) for all components."""
    k, d, _ = p.shape
    y = jnp.matmul(p.reshape(k * d, d).astype(x.dtype), x.T, precision=_HIGHEST)
    return y.reshape(k, d, -1) - jnp.einsum("kij,kj->ki", p, means).astype(x.dtype)[:, :, None]


def _tied_whiten(p: Array, means: Array, x: Array) -> Array:
    """P x - P m, the first term shared by all components."""
    y = jnp.matmul(p.astype(x.dtype), x.T, precision=_HIGHEST)
    return y - (means @ p.T).astype(x.dtype)[:, :, None]


def _diag_whiten(p: Array, means: Array, x: Array) -> Array:
    return (x.T - means.astype(x.dtype)[:, :, None]) * p.astype(x.dtype)[:, :, None]


def _full_moment(r: Array, y: Array, x: Array) -> Array:
    """sum r y [x, 1]ᵀ, one product (K D, C) @ (C, D + 1). With y in the component's own units float32 suffices."""
    k, d, _ = y.shape
    augmented = jnp.concatenate([x, jnp.ones((len(x), 1), x.dtype)], axis=1)
    product = jnp.matmul((y * r[:, None]).reshape(k * d, -1), augmented, precision=_HIGHEST)
    return product.reshape(k, d, d + 1).astype(jnp.float64)


def _tied_moment(r: Array, y: Array, x: Array) -> Array:
    """sum x xᵀ, in float64: the scatter of the means will be subtracted."""
    x = x.astype(jnp.float64)
    return (x * r.sum(0)[:, None]).T @ x


def _diag_moment(r: Array, y: Array, x: Array) -> Array:
    """sum r x², in float64: squared means will be subtracted."""
    return r.astype(jnp.float64) @ x.astype(jnp.float64) ** 2


def _spherical_moment(r: Array, y: Array, x: Array) -> Array:
    """sum r |x|², in float64: squared means will be subtracted."""
    return r.astype(jnp.float64) @ (x.astype(jnp.float64) ** 2).sum(1)


def _full_about_origin(moment: Array, covariances: Array, n: Array, first: Array) -> Array:
    """sum r x xᵀ = L (sum r y xᵀ - s fᵀ / n) + f fᵀ / n, because x = L y + m; s = sum r y, f = sum r x.

    The difference in brackets is a covariance, from which what rounding adds to every y cancels.
    """
    y_x, s = moment[..., :-1], moment[..., -1]
    mean = first / jnp.where(n > 0, n, 1)[:, None]
    second = (
        jnp.linalg.cholesky(covariances) @ (y_x - s[:, :, None] * mean[:, None]) + first[:, :, None] * mean[:, None]
    )
    return (second + second.mT) / 2


def _unchanged(moment: Array, covariances: Array, n: Array, first: Array) -> Array:
    return moment


def _outer(means: Float[Array, "K D"]) -> Float[Array, "K D D"]:
    return means[:, :, None] * means[:, None]


def _full_estimate(n: Array, means: Array, moment: Array, floor: float) -> Array:
    """Σ_k = sum r x xᵀ / n_k - m_k m_kᵀ."""
    return moment / n[:, None, None] - _outer(means) + floor * jnp.eye(means.shape[-1])


def _tied_estimate(n: Array, means: Array, moment: Array, floor: float) -> Array:
    """Σ = (sum x xᵀ - sum_k n_k m_k m_kᵀ) / N."""
    return (moment - (means.T * n) @ means) / n.sum() + floor * jnp.eye(means.shape[-1])


def _diag_estimate(n: Array, means: Array, moment: Array, floor: float) -> Array:
    """σ²_k = sum r x² / n_k - m_k²."""
    return moment / n[:, None] - means**2 + floor


def _spherical_estimate(n: Array, means: Array, moment: Array, floor: float) -> Array:
    """σ²_k = (sum r |x|² / n_k - |m_k|²) / D."""
    return (moment / n - (means**2).sum(-1)) / means.shape[-1] + floor


STRUCTURES = {
    "full": Structure(
        prior=lambda dist, one, *scale: _wishart(dist, one, *scale).expand(one.shape[:1]).to_event(1),
        inverse=_matrix_inverse,
        normal=_full_normal,
        whitener=_inverse_root,
        whiten=_full_whiten,
        moment=_full_moment,
        about_origin=_full_about_origin,
        estimate=_full_estimate,
        pooled=lambda within, k: jnp.broadcast_to(within, (k, *within.shape)),
    ),
    "tied": Structure(
        prior=_wishart,
        inverse=_matrix_inverse,
        normal=_tied_normal,
        whitener=_inverse_root,
        whiten=_tied_whiten,
        moment=_tied_moment,
        about_origin=_unchanged,
        estimate=_tied_estimate,
        pooled=lambda within, k: within,
    ),
    "diag": Structure(
        prior=_gamma,
        inverse=_reciprocal,
        normal=_diag_normal,
        whitener=_inverse_deviation,
        whiten=_diag_whiten,
        moment=_diag_moment,
        about_origin=_unchanged,
        estimate=_diag_estimate,
        pooled=lambda within, k: jnp.broadcast_to(jnp.diagonal(within), (k, len(within))),
    ),
    "spherical": Structure(
        prior=lambda dist, one, *scale: _gamma(dist, one[:, 0], *scale),
        inverse=_reciprocal,
        normal=_spherical_normal,
        whitener=lambda covariances, dim: _inverse_deviation(covariances[:, None], dim),
        whiten=_diag_whiten,
        moment=_spherical_moment,
        about_origin=_unchanged,
        estimate=_spherical_estimate,
        pooled=lambda within, k: jnp.broadcast_to(jnp.diagonal(within).mean(), (k,)),
    ),
}
