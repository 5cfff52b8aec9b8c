r"""The mixture as a Bayesian model: its prior in blocks, and what the prior becomes given means or precisions.

Columns come in blocks, and a precision Λ belongs to the components and blocks that share it, as the
structure of covariance has it (:mod:`ppl_models.mixture_factors`). Then one prior covers all four structures,

    weights ~ Dirichlet(a),    m_kb ~ N(m0, P0⁻¹), P0 = I / mean_scale²,    Λ ~ Wishart(ν0, R0⁻¹),
    ν0 = b - 1 + degrees_of_freedom,    R0 = degrees_of_freedom scale² I.

It is conjugate one block of globals at a time. A sum over everything that shares a precision is written Σ.
:mod:`ppl_models.mixture_gibbs` draws from the conditionals, :mod:`ppl_models.mixture_variational` takes their
expectations. ``self`` is the mixture.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.scipy.linalg import cho_solve
from jaxtyping import Array, ArrayLike, Float

from ppl_models.covariances import STRUCTURES
from ppl_models.mixture_factors import LAYOUTS, Factors, Layout, log_prob
from ppl_models.mixture_rows import Moments, sum_over_rows

SITES = ("weights", "means", "precisions")

Values = dict[str, Float[Array, "..."]]


def log_joint(self: Any, params: Mapping[str, ArrayLike], x: Float[Array, "N D"], **data: Any) -> Float[Array, ""]:
    """log p(x, globals) in nats, labels summed out, at ``weights``, ``means`` and ``precisions``; float64."""
    with jax.enable_x64(True):
        weights, means, precisions = (jnp.asarray(params[name], jnp.float64) for name in SITES)
        structure = STRUCTURES[self.covariance]
        components = (jnp.log(weights), means, structure.inverse(precisions))
        log_likelihood, _ = sum_over_rows(structure, *components, x, **data)
        return log_likelihood + log_prob(prior_of(self, x.shape[1]), weights, means, precisions)


def invariants(self: Any, weights: Array, means: Array, precisions: Array, **_: Any) -> Values:
    """Functions of one draw of the globals that do not depend on the labels of the components.

    Returns
    -------
    dict
        ``sorted_weights`` (K,), largest first; ``mean`` (D,) and ``covariance`` (D, D) of x;
        ``log_determinant``, the expected log|Σ_z| of a row's component.
    """
    dim = means.shape[1]
    layout = layout_of(self, dim)
    blocks = jnp.asarray(precisions).reshape(*layout.precisions, layout.block, layout.block)
    blocks = jnp.broadcast_to(blocks, (self.num_components, layout.blocks, *blocks.shape[2:]))
    log_determinant = -jnp.linalg.slogdet(blocks)[1].sum(1)  # (K,)
    within = jnp.einsum("k,kbij->bij", weights, jnp.linalg.inv(blocks))
    mean = weights @ means
    between = (means - mean).T * weights @ (means - mean)
    return {
        "sorted_weights": -jnp.sort(-weights),
        "mean": mean,
        "covariance": between + jax.scipy.linalg.block_diag(*within),
        "log_determinant": weights @ log_determinant,
    }


def exchangeable(self: Any) -> tuple[str, ...]:
    """Sites whose leading axis is the component's label."""
    shared = self.covariance == "tied"
    return ("weights", "means") if shared else ("weights", "means", "precisions", "covariances")


def layout_of(self: Any, dim: int) -> Layout:
    """Blocks of the mixture's structure in ``dim`` columns."""
    return LAYOUTS[self.covariance](self.num_components, dim)


def prior_of(self: Any, dim: int) -> Factors:
    """The prior of the globals in ``dim`` columns."""
    layout, one = layout_of(self, dim), jnp.ones((), jnp.float64)
    k, b, means = self.num_components, layout.block, (self.num_components, layout.blocks, layout.block)
    eye = jnp.eye(b, dtype=jnp.float64)
    return Factors(
        concentration=jnp.broadcast_to(self.concentration * one, (k,)),
        loc=jnp.broadcast_to(self.mean_loc * one, means),
        precision=jnp.broadcast_to(eye / self.mean_scale**2, (*means, b)),
        degrees_of_freedom=jnp.broadcast_to((b - 1 + self.degrees_of_freedom) * one, layout.precisions),
        rate=jnp.broadcast_to(self.degrees_of_freedom * self.scale**2 * eye, (*layout.precisions, b, b)),
    )


def in_blocks(moments: Moments, prior: Factors) -> Moments:
    """Origin (B, b), first (K, B, b) and second moments (C, A, b, b)."""
    shape = prior.loc.shape
    return Moments(
        moments.origin.reshape(shape[1:]),
        moments.count,
        moments.first.reshape(shape),
        moments.second.reshape(prior.rate.shape),
    )


def means_given(prior: Factors, precisions: Array, sums: Moments) -> tuple[Array, Array]:
    """Location and precision of the means given the precisions, or q's given their expectation."""
    precision = prior.precision + sums.count[:, None, None, None] * precisions
    # h = P0 (m0 - origin) + Λ f
    h = prior.precision @ (prior.loc - sums.origin)[..., None] + precisions @ sums.first[..., None]
    loc = cho_solve((jnp.linalg.cholesky(precision), True), h)[..., 0]
    return sums.origin + loc, precision


def rate_given(prior: Factors, means: Array, outer: Array, sums: Moments, layout: Layout) -> Array:
    """Rate of the precisions; ``outer`` is m mᵀ about the origin, or its expectation."""
    cross = sums.first[..., :, None] * (means - sums.origin)[..., None, :]
    # S = sum x xᵀ - f mᵀ - m fᵀ + n m mᵀ
    shift = sums.count[:, None, None, None] * outer - cross - cross.mT
    rate = prior.rate + sums.second + _pool(shift, layout)
    return (rate + rate.mT) / 2


def _pool(values: Float[Array, "K B ..."], layout: Layout) -> Float[Array, "C A ..."]:
    """Σ: sum over the components and blocks that share a precision."""
    for axis, size in enumerate(layout.precisions):
        if size == 1:
            values = values.sum(axis, keepdims=True)
    return values


def pool_counts(count: Float[Array, " K"], layout: Layout) -> Float[Array, "C A"]:
    """Σ n_k."""
    return _pool(jnp.broadcast_to(count[:, None], (len(count), layout.blocks)), layout)
