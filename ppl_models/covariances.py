"""Four structures of a mixture's covariances: how each is drawn, evaluated and estimated.

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
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import jax.numpy as jnp
from array_api_compat import array_namespace, device
from jaxtyping import Array, Float

from ppl_models import gaussian_kernels as kernels
from ppl_models.gaussian_kernels import Kernel
from ppl_models.partly_observed import partly_observed_normal

_RESOLUTION = 1e-13  # of the mean square about the origin: rounding hides a smaller variance


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
        ``(dist, means, covariances, observed)`` to a function from component z to its Gaussian, of the
        entries that the mask ``observed`` says where it is not None.
    kernel, kernel_with_holes
        ``(means, covariances)`` to the :class:`~ppl_models.gaussian_kernels.Kernel` of EM, for whole rows
        and for rows with missing entries.
    moved
        ``(delta, n, sum r x, moment)`` to the moment of x + delta.
    estimate
        ``(n, m, moment, floor)`` to the maximum-likelihood covariances, ``floor`` added to variances.
    pooled
        One covariance matrix (D, D) for all of K components.
    regular
        Covariances, or precisions, to the nearest that stay positive definite in float32.
    num_parameters
        ``(K, D)`` to the free parameters of the covariances.
    shared
        Whether all components have one covariance.
    """

    prior: Callable[[Any, Any, float, float], Any]
    inverse: Callable[[Any], Any]
    normal: Callable[[Any, Any, Any, Any], Callable[[Any], Any]]
    kernel: Callable[[Array, Array], Kernel]
    kernel_with_holes: Callable[[Array, Array], Kernel]
    moved: Callable[[Array, Array, Array, Array], Array]
    estimate: Callable[[Array, Array, Array, float], Array]
    pooled: Callable[[Array, int], Array]
    regular: Callable[[Array], Array]
    num_parameters: Callable[[int, int], int]
    shared: bool = False


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


def _full_normal(dist: Any, means: Any, covariances: Any, observed: Any = None) -> Callable[[Any], Any]:
    root = _cholesky(covariances)
    if observed is not None:
        return lambda z: partly_observed_normal(dist, means[z], covariances[z], root[z], observed)
    return lambda z: dist.MultivariateNormal(means[z], scale_tril=root[z])


def _tied_normal(dist: Any, means: Any, covariances: Any, observed: Any = None) -> Callable[[Any], Any]:
    root = _cholesky(covariances)
    if observed is not None:
        return lambda z: partly_observed_normal(dist, means[z], covariances, root, observed)
    return lambda z: dist.MultivariateNormal(means[z], scale_tril=root)


def _diag_normal(dist: Any, means: Any, covariances: Any, observed: Any = None) -> Callable[[Any], Any]:
    root = covariances**0.5
    if observed is not None:
        return lambda z: dist.Normal(means[z], root[z]).mask(observed).to_event(1)
    return lambda z: dist.Normal(means[z], root[z]).to_event(1)


def _spherical_normal(dist: Any, means: Any, covariances: Any, observed: Any = None) -> Callable[[Any], Any]:
    return _diag_normal(dist, means, covariances[:, None], observed)


def _full_moved(delta: Array, n: Array, first: Array, moment: Array) -> Array:
    """sum r (x + δ)(x + δ)ᵀ = sum r x xᵀ + f δᵀ + δ fᵀ + n δ δᵀ, f = sum r x."""
    cross = first[:, :, None] * delta
    return moment + cross + cross.mT + n[:, None, None] * jnp.outer(delta, delta)


def _tied_moved(delta: Array, n: Array, first: Array, moment: Array) -> Array:
    return _full_moved(delta, n.sum(keepdims=True), first.sum(0, keepdims=True), moment[None])[0]


def _diag_moved(delta: Array, n: Array, first: Array, moment: Array) -> Array:
    return moment + 2 * first * delta + n[:, None] * delta**2


def _spherical_moved(delta: Array, n: Array, first: Array, moment: Array) -> Array:
    return moment + 2 * first @ delta + n * (delta**2).sum()


def _outer(means: Float[Array, "K D"]) -> Float[Array, "K D D"]:
    return means[:, :, None] * means[:, None]


def _full_estimate(n: Array, means: Array, moment: Array, floor: float) -> Array:
    """Σ_k = sum r x xᵀ / n_k - m_k m_kᵀ."""
    return _matrix_difference(moment / n[:, None, None], _outer(means), floor)


def _tied_estimate(n: Array, means: Array, moment: Array, floor: float) -> Array:
    """Σ = (sum x xᵀ - sum_k n_k m_k m_kᵀ) / N."""
    return _matrix_difference(moment / n.sum(), (means.T * (n / n.sum())) @ means, floor)


def _diag_estimate(n: Array, means: Array, moment: Array, floor: float) -> Array:
    """σ²_k = sum r x² / n_k - m_k²."""
    return _difference(moment / n[:, None], means**2, floor)


def _spherical_estimate(n: Array, means: Array, moment: Array, floor: float) -> Array:
    """σ²_k = (sum r |x|² / n_k - |m_k|²) / D."""
    return _difference(moment / n / means.shape[-1], (means**2).mean(-1), floor)


def _difference(square: Array, of_mean: Array, floor: float) -> Array:
    """E x² - (E x)² + floor, at least what float64 tells from zero."""
    return jnp.maximum(square - of_mean + floor, _RESOLUTION * square)


def _matrix_difference(square: Float[Array, "*K D D"], of_mean: Float[Array, "*K D D"], floor: float) -> Array:
    """E x xᵀ - E x E xᵀ + floor I, every variance at least what float64 tells from zero."""
    scatter = square - of_mean
    variance, least = (jnp.diagonal(v, axis1=-2, axis2=-1) for v in (scatter, _RESOLUTION * square))
    raised = jnp.maximum(least - variance, floor)
    return scatter + raised[..., None] * jnp.eye(scatter.shape[-1])


def _regular_matrices(matrices: Float[Array, "*K D D"]) -> Float[Array, "*K D D"]:
    """U max(λ, 4 D ε λ_max) Uᵀ: rounding moves eigenvalues by up to D ε λ_max, a Cholesky factor by some more."""
    values, vectors = jnp.linalg.eigh(matrices)
    least = 4 * values.shape[-1] * jnp.finfo(jnp.float32).eps * values[..., -1:]
    return jnp.where(
        (values[..., 0] < least[..., 0])[..., None, None],
        (vectors * jnp.maximum(values, least)[..., None, :]) @ vectors.mT,
        matrices,
    )


def _regular_variances(variances: Array) -> Array:
    return variances


STRUCTURES = {
    "full": Structure(
        prior=lambda dist, one, *scale: _wishart(dist, one, *scale).expand(one.shape[:1]).to_event(1),
        inverse=_matrix_inverse,
        normal=_full_normal,
        kernel=kernels.full,
        kernel_with_holes=kernels.full_with_holes,
        moved=_full_moved,
        estimate=_full_estimate,
        pooled=lambda within, k: jnp.broadcast_to(within, (k, *within.shape)),
        regular=_regular_matrices,
        num_parameters=lambda k, d: k * d * (d + 1) // 2,
    ),
    "tied": Structure(
        prior=_wishart,
        inverse=_matrix_inverse,
        normal=_tied_normal,
        kernel=kernels.tied,
        kernel_with_holes=kernels.tied_with_holes,
        moved=_tied_moved,
        estimate=_tied_estimate,
        pooled=lambda within, k: within,
        regular=_regular_matrices,
        num_parameters=lambda k, d: d * (d + 1) // 2,
        shared=True,
    ),
    "diag": Structure(
        prior=_gamma,
        inverse=_reciprocal,
        normal=_diag_normal,
        kernel=kernels.diag,
        kernel_with_holes=kernels.diag_with_holes,
        moved=_diag_moved,
        estimate=_diag_estimate,
        pooled=lambda within, k: jnp.broadcast_to(jnp.diagonal(within), (k, len(within))),
        regular=_regular_variances,
        num_parameters=lambda k, d: k * d,
    ),
    "spherical": Structure(
        prior=lambda dist, one, *scale: _gamma(dist, one[:, 0], *scale),
        inverse=_reciprocal,
        normal=_spherical_normal,
        kernel=kernels.spherical,
        kernel_with_holes=kernels.spherical_with_holes,
        moved=_spherical_moved,
        estimate=_spherical_estimate,
        pooled=lambda within, k: jnp.broadcast_to(jnp.diagonal(within).mean(), (k,)),
        regular=_regular_variances,
        num_parameters=lambda k, d: k,
    ),
}
