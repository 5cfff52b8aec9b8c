r"""Gibbs sampling of the Gaussian mixture: labels and missing entries, then weights, means and precisions.

With labels z, counts n_k, sums f_k and scatters S_k of the rows of component k, in the blocks and with the
prior of :mod:`ppl_models.mixture_bayes`,

    p(z_n = k | ·)         ∝ weights_k N(x_n | m_k, Λ_k⁻¹)
    p(weights | z)          = Dirichlet(a + n)
    p(m_kb | Λ, z, x)       = N(P⁻¹ (P0 m0 + Λ f_kb), P⁻¹),    P = P0 + n_k Λ
    p(Λ | m, z, x)          = Wishart(ν0 + Σ n_k, (R0 + Σ S_kb)⁻¹),
    S_kb = sum_{n: z_n = k} (x_nb - m_kb) (x_nb - m_kb)ᵀ.

With ``mean_count`` the last two are one draw from a Normal-Wishart (:mod:`ppl_models.mixture_coupled`).

Missing entries are drawn with the labels, z_n from what is observed of its row and then the rest of the
row from the component's Gaussian given that. ``self`` is the mixture; these functions are its methods.

References
----------
Diebolt and Robert, "Estimation of finite mixture distributions through Bayesian sampling", 1994.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool, Float, Int

from ppl_models.covariances import STRUCTURES, Structure
from ppl_models.mixture_bayes import SITES, Values, in_blocks, layout_of, prior_of
from ppl_models.mixture_factors import Layout, float32_draw, inverse, outer
from ppl_models.mixture_rows import Moments, _add_up, _chunk_rows, sum_over_rows


def complete(
    self: Any,
    key: Array,
    params: Mapping[str, ArrayLike],
    x: Float[Array, "N D"],
    x_observed: Bool[Array, "N D"] | None = None,
) -> Moments:
    """Draw the label and the missing entries of every row given the globals, and sum up the rows of each component.

    Rows are read in chunks, so that memory stays bounded; sums over them are float64.

    Parameters
    ----------
    key
        Random key.
    params
        ``weights``, ``means`` and ``precisions``.
    x
        Data, shape (N, D).
    x_observed
        Which entries are observed, all by default. Labels are drawn given those, then the others given
        those and the label.

    Returns
    -------
    Moments
        Counts, sums and second moments of the completed rows.
    """
    self.validate(x, min_rows=1)
    structure = STRUCTURES[self.covariance]
    with jax.enable_x64(True):
        weights, means, precisions = (jnp.asarray(params[name], jnp.float64) for name in SITES)
        components = (jnp.log(weights), means, structure.inverse(precisions))
        if x_observed is not None:
            return _fill_in(key, structure, layout_of(self, x.shape[1]), components, x, x_observed)

        def assign(log_joint: Float[Array, "K C"], start: Array) -> tuple[Array, Array]:
            z = _draw_labels(jax.random.fold_in(key, start), log_joint)
            return _one_hot(z, len(log_joint)), jnp.zeros(len(z))

        return sum_over_rows(structure, *components, x, assign=assign)[1]


def _fill_in(
    key: Array, structure: Structure, layout: Layout, components: tuple[Array, ...], x: Array, x_observed: Array
) -> Moments:
    """Moments of rows whose labels and missing entries are drawn."""
    log_weights, means, covariances = components
    x = jnp.asarray(x)
    x = x.astype(jnp.result_type(x, jnp.float32))  # whole numbers would truncate the draws
    size = _chunk_rows(means.size * layout.block)
    centre = jnp.where(x_observed, x, 0.0).sum(0) / jnp.maximum(x_observed.sum(0), 1).astype(x.dtype)
    origin = centre.astype(jnp.float64)
    means = means - origin
    kernel, holes = structure.kernel(means, covariances), structure.kernel_with_holes(means, covariances)
    blocks = (layout.blocks, layout.block)
    spread = covariances.reshape(*layout.precisions, layout.block, layout.block)
    spread = jnp.broadcast_to(spread, (len(means), *blocks, layout.block))

    def terms(chunk: dict[str, Array], counts: Array, start: Array) -> Any:
        key_labels, key_missing = jax.random.split(jax.random.fold_in(key, start))
        observed, rows = chunk["observed"], jnp.where(chunk["observed"], chunk["x"] - centre, 0.0)
        log_prob, _ = holes.log_prob((rows, observed))
        z = _draw_labels(key_labels, log_prob + log_weights[:, None])
        seen, mask, loc = (v.reshape(-1, *blocks) for v in (rows, observed, means[z]))
        rows = _draw_missing(key_missing, seen, mask, loc, spread[z]).reshape(rows.shape).astype(x.dtype)
        return kernel.sums(_one_hot(z, len(means)) * counts, rows, kernel.log_prob(rows)[1])

    sums = _add_up(terms, {"x": x, "observed": x_observed}, size)
    return Moments(origin, *kernel.moments(sums))


def _draw_labels(key: Array, log_joint: Float[Array, "K C"]) -> Int[Array, " C"]:
    """z with probabilities proportional to exp(log_joint), by inversion."""
    uniform = float32_draw(jax.random.uniform, key, log_joint.shape[1:])
    below = jnp.cumsum(jnp.exp((log_joint - log_joint.max(0)).astype(jnp.float32)), axis=0)
    return jnp.sum(below <= uniform * below[-1], axis=0)


def _one_hot(z: Int[Array, " C"], num_components: int) -> Float[Array, "K C"]:
    return (z == jnp.arange(num_components)[:, None]).astype(jnp.float32)


def _draw_missing(
    key: Array,
    x: Float[Array, "C B b"],
    observed: Bool[Array, "C B b"],
    means: Float[Array, "C B b"],
    covariances: Float[Array, "C B b b"],
) -> Float[Array, "C B b"]:
    """Rows with their missing entries drawn given the others.

    With a whole row w ~ N(m, Σ) and G the inverse of Σ's observed block, padded by zeros, the missing
    entries of w + Σ G (x - w) have the conditional mean and covariance of x's.
    """
    noise = float32_draw(jax.random.normal, key, x.shape).astype(jnp.float64)[..., None]
    m = observed.astype(jnp.float64)
    both = outer(m)
    eye = jnp.eye(m.shape[-1], dtype=jnp.float64)
    g = both * inverse(both * covariances + (1 - m)[..., None] * eye)
    w = means + (jnp.linalg.cholesky(covariances) @ noise)[..., 0]
    filled = w + (covariances @ g @ (x - w)[..., None])[..., 0]
    return jnp.where(observed, x, filled)


def draw(self: Any, key: Array, params: Mapping[str, ArrayLike], statistics: Moments) -> Values:
    """Draw weights, then means given precisions, then precisions given means; with ``mean_count`` all as one block.

    Parameters
    ----------
    key
        Random key.
    params
        The present ``precisions``; the other globals play no part.
    statistics
        From :func:`complete`.

    Returns
    -------
    dict
        ``weights`` (K,), ``means`` (K, D) and ``precisions``, float64.
    """
    with jax.enable_x64(True):
        layout, prior = layout_of(self, len(statistics.origin)), prior_of(self, len(statistics.origin))
        precisions = jnp.asarray(params["precisions"], jnp.float64).reshape(prior.rate.shape)
        weights, means, precisions = prior.draw_given(key, precisions, in_blocks(statistics, prior), layout)
        return {
            "weights": weights,
            "means": means.reshape(self.num_components, -1),
            "precisions": precisions.reshape(layout.site),
        }


__all__ = ["complete", "draw"]
