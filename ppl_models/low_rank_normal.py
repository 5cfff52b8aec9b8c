r"""N(mu, W Wᵀ + Psi), drawn whole and scored by the entries that are seen, without cancellation. Both engines.

With c = x - mu over the entries that are seen, and the rows of W, mu and Psi that belong to them,

    G = I + Wᵀ Psi⁻¹ W,    z̄ = G⁻¹ Wᵀ Psi⁻¹ c,
    -2 log p(x) = sum_d log 2 pi psi_d + log|G| + (c - W z̄)ᵀ Psi⁻¹ (c - W z̄) + z̄ᵀ z̄.

The textbook form of the last two terms, cᵀ Psi⁻¹ c - z̄ᵀ G z̄, is a difference of numbers as large as the ratio of signal
to noise, and keeps few of float32's seven digits. Here they are a sum of squares, the least of it over z: an error in z̄
enters squared.
"""

from __future__ import annotations

from functools import cache
from math import pi
from typing import Any

import jax
import jax.numpy as jnp
from array_api_compat import array_namespace, device
from jaxtyping import Array, Bool, Float
from numpyro.distributions import Distribution, constraints


def low_rank_normal(dist: Any, mean: Any, loadings: Any, noise_variance: Any, observed: Any = None) -> Any:
    """N(mean, loadings loadingsᵀ + diag(noise_variance)), of which only the observed entries are scored.

    Parameters
    ----------
    dist
        ``numpyro.distributions`` or ``pyro.distributions``.
    mean, noise_variance
        Shape (D,).
    loadings
        Shape (D, q).
    observed
        Boolean mask, shape (..., D); all entries by default. The others are drawn, and may be NaN when scored.
    """
    if hasattr(dist, "TorchDistribution"):  # Pyro
        return _pyro_low_rank_normal(dist)(mean, loadings, noise_variance, observed)
    return LowRankNormal(mean, loadings, noise_variance, observed)


def latent(x: Any, mean: Any, loadings: Any, noise_variance: Any, observed: Any = None) -> tuple[Any, Any]:
    """z̄ (..., q) and G (q, q), or with a mask (..., q, q), of p(z | x seen) = N(z̄, G⁻¹)."""
    xp, q = array_namespace(loadings), loadings.shape[-1]
    weighted = loadings / noise_variance[:, None]  # Psi⁻¹ W
    eye = xp.eye(q, dtype=loadings.dtype, device=device(loadings))
    with jax.default_matmul_precision("highest"):  # accelerators round the factors of products by default
        if observed is None:
            precision = eye + loadings.T @ weighted
            return (x - mean) @ xp.linalg.solve(precision, weighted.T).T, precision
        zero = xp.zeros_like(mean)
        outer = (weighted[:, :, None] * loadings[:, None]).reshape(-1, q * q)
        precision = eye + (xp.where(observed, zero + 1, zero) @ outer).reshape(*observed.shape[:-1], q, q)
        information = xp.where(observed, x - mean, zero) @ weighted
        return xp.linalg.solve(precision, information[..., None])[..., 0], precision


def _log_prob(x: Any, mean: Any, loadings: Any, noise_variance: Any, observed: Any) -> Any:
    xp = array_namespace(loadings)
    if observed is not None:
        x = xp.where(observed, x, xp.zeros_like(x))  # a NaN would spoil the gradient, though it does not count
    z, precision = latent(x, mean, loadings, noise_variance, observed)
    with jax.default_matmul_precision("highest"):
        residual = x - mean - z @ loadings.T
    terms = residual**2 / noise_variance + xp.log(2 * pi * noise_variance)
    if observed is not None:
        terms = xp.where(observed, terms, xp.zeros_like(mean))
    log_det = 2 * xp.log(xp.linalg.diagonal(xp.linalg.cholesky(precision))).sum(-1)
    return -0.5 * (terms.sum(-1) + (z**2).sum(-1) + log_det)


class LowRankNormal(Distribution):
    """The distribution for NumPyro."""

    arg_constraints = {}
    pytree_data_fields = ("loc", "loadings", "noise_variance", "observed")

    def __init__(
        self,
        loc: Float[Array, " D"],
        loadings: Float[Array, "D q"],
        noise_variance: Float[Array, " D"],
        observed: Bool[Array, "*batch D"] | None = None,
    ):
        self.loc, self.loadings, self.noise_variance, self.observed = loc, loadings, noise_variance, observed
        super().__init__(() if observed is None else observed.shape[:-1], loc.shape[-1:])

    @property
    def support(self) -> Any:
        return constraints.real_vector

    @property
    def mean(self) -> Array:
        return jnp.broadcast_to(self.loc, self.batch_shape + self.event_shape)

    @property
    def variance(self) -> Array:
        total = (self.loadings**2).sum(-1) + self.noise_variance
        return jnp.broadcast_to(total, self.batch_shape + self.event_shape)

    def sample(self, key: Array | None, sample_shape: tuple[int, ...] = ()) -> Array:
        assert key is not None
        key_z, key_noise = jax.random.split(key)
        shape, dtype = sample_shape + self.batch_shape, self.loc.dtype
        z = jax.random.normal(key_z, (*shape, self.loadings.shape[-1]), dtype)
        noise = jax.random.normal(key_noise, shape + self.event_shape, dtype)
        with jax.default_matmul_precision("highest"):
            return self.loc + z @ self.loadings.T + self.noise_variance**0.5 * noise

    def log_prob(self, value: Any, intermediates: Any = None) -> Array:
        return _log_prob(value, self.loc, self.loadings, self.noise_variance, self.observed)


@cache
def _pyro_low_rank_normal(dist: Any) -> Any:
    class LowRankNormal(dist.TorchDistribution):
        arg_constraints = {}
        has_rsample = True
        support = dist.MultivariateNormal.support

        def __init__(self, loc: Any, loadings: Any, noise_variance: Any, observed: Any, batch_shape: Any = None):
            self.loc, self.loadings, self.noise_variance, self.observed = loc, loadings, noise_variance, observed
            default = () if observed is None else observed.shape[:-1]
            shape = default if batch_shape is None else tuple(batch_shape)  # which Pyro may give as a list
            super().__init__(shape, loc.shape[-1:], validate_args=False)

        @property
        def mean(self) -> Any:
            return self.loc.expand(self.batch_shape + self.event_shape)

        def expand(self, batch_shape: Any, _instance: Any = None) -> Any:
            return type(self)(self.loc, self.loadings, self.noise_variance, self.observed, batch_shape)

        def rsample(self, sample_shape: Any = ()) -> Any:
            whole = dist.LowRankMultivariateNormal(self.loc, self.loadings, self.noise_variance)
            return whole.expand(self.batch_shape).rsample(sample_shape)

        def log_prob(self, value: Any) -> Any:
            return _log_prob(value, self.loc, self.loadings, self.noise_variance, self.observed)

    return LowRankNormal
