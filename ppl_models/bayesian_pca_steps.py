r"""Exact steps of Bayesian PCA: blocked Gibbs sampling, by the regression of :mod:`ppl_models.loadings_posterior`.

Given z and alpha the model is PPCA with a prior precision Λ0 = diag(alpha_1, ..., alpha_q, 1 / mean_scale²) of its own,
and (sigma², W, mu) one conjugate block. A sweep goes through z | rest; (sigma², W, mu) | z, alpha; alpha | W, sigma²,

    alpha_j ~ Gamma(a + D / 2,  b + ||w_j||² / 2 sigma²),    a, b = precision_shape, precision_rate,

and then along the model's near-symmetries (:mod:`ppl_models.loadings_moves`), since given z the loadings hardly move
where the noise is small. Missing entries are integrated out, not drawn.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from ppl_models import linear_gaussian as exact
from ppl_models.linear_gaussian import Moments, Rows
from ppl_models.loadings_moves import relevance_scale, shift, turn
from ppl_models.loadings_posterior import draw_from, posterior

if TYPE_CHECKING:
    from ppl_models.bayesian_pca import BayesianPCA

_FLOOR = 1e-6  # smallest noise variance to start from, relative to the data's

Params = dict[str, Float[Array, "..."]]


def initial(
    model: BayesianPCA, key: Array, x: Float[Array, "N D"], x_observed: Any = None, sample_weight: Any = None
) -> Params:
    """Random loadings that explain about half the variance, the data's mean, the other half as noise."""
    normal = jax.random.normal(key, (x.shape[1], model.latent_dim), jnp.float32)
    with jax.enable_x64(True):
        count, mean, each = exact.columns(Rows(x, x_observed, sample_weight))
        count = jnp.broadcast_to(count, mean.shape)
        variance = (count * each).sum() / jnp.maximum(count.sum(), 1e-300)
        noise = jnp.maximum(variance / 2, _FLOOR * jnp.where(variance > 0, variance, 1.0))
        loadings = normal.astype(jnp.float64) * jnp.sqrt(noise / model.latent_dim)
        return {
            "loadings": loadings,
            "loadings_precision": x.shape[1] * noise / (loadings**2).sum(0),
            "mean": mean,
            "noise_variance": noise,
        }


def draw(model: BayesianPCA, key: Array, params: Mapping[str, ArrayLike], statistics: Moments) -> Params:
    """Draw sigma², W, mu and alpha given z, then move along translations, rotations and scales of z; float64."""
    key_block, key_alpha, key_shift, key_turn, key_scale = jax.random.split(key, 5)
    with jax.enable_x64(True):
        alpha = jnp.asarray(params["loadings_precision"], jnp.float64)
        block = draw_from(key_block, posterior(model, prior_precision(model, alpha), statistics))
        loadings, variance = block["loadings"], block["noise_variance"]
        shape = jnp.full_like(alpha, model.precision_shape + len(loadings) / 2)
        alpha = draw_gamma(key_alpha, shape) / (model.precision_rate + 0.5 * (loadings**2).sum(0) / variance)
        block, latent = shift(key_shift, block, statistics.latent, model.mean_scale)
        rotation = turn(key_turn, loadings, alpha, variance)
        shape, rate = relevance_scale(model, latent, rotation, alpha)
        v = draw_gamma(key_scale, shape) / rate
        return block | {"loadings": loadings @ rotation / jnp.sqrt(v), "loadings_precision": alpha * v}


def prior_precision(model: BayesianPCA, alpha: Float[Array, " q"]) -> Float[Array, " q+1"]:
    """The diagonal of Λ0."""
    return jnp.append(alpha, 1 / model.mean_scale**2)


def draw_gamma(key: Array, shape: Array) -> Array:
    """Gamma variates of rate one, float64 of the precision of float32, whose bits alone a jit without x64 draws."""
    return jax.random.gamma(key, shape.astype(jnp.float32), dtype=jnp.float32).astype(jnp.float64)
