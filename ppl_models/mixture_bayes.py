r"""The mixture as a Bayesian model: its prior in blocks, and what the prior becomes given means or precisions.

Columns come in blocks, and a precision Λ belongs to the components and blocks that share it, as the
structure of covariance has it (:mod:`ppl_models.mixture_factors`). Then one prior covers all four structures,

    weights ~ Dirichlet(a),    m_kb ~ N(m0, P0⁻¹), P0 = I / mean_scale²,    Λ ~ Wishart(ν0, R0⁻¹),
    ν0 = b - 1 + degrees_of_freedom,    R0 = degrees_of_freedom scale² I.

It is conjugate one block of globals at a time. With ``mean_count`` κ0 in place of ``mean_scale`` the means are
N(m0, (κ0 Λ)⁻¹), and means and precisions one conjugate block (:mod:`ppl_models.mixture_coupled`). A sum over everything
that shares a precision is written Σ. :mod:`ppl_models.mixture_gibbs` draws from the conditionals,
:mod:`ppl_models.mixture_variational` takes their expectations. ``self`` is the mixture.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from ppl_models.covariances import STRUCTURES
from ppl_models.mixture_coupled import Coupled
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


def prior_of(self: Any, dim: int) -> Factors | Coupled:
    """The prior of the globals in ``dim`` columns."""
    layout, one = layout_of(self, dim), jnp.ones((), jnp.float64)
    k, b, means = self.num_components, layout.block, (self.num_components, layout.blocks, layout.block)
    eye = jnp.eye(b, dtype=jnp.float64)
    concentration = jnp.broadcast_to(self.concentration * one, (k,))
    loc = jnp.broadcast_to(self.mean_loc * one, means)
    degrees_of_freedom = jnp.broadcast_to((b - 1 + self.degrees_of_freedom) * one, layout.precisions)
    rate = jnp.broadcast_to(self.degrees_of_freedom * self.scale**2 * eye, (*layout.precisions, b, b))
    if self.mean_count is not None:
        count = jnp.broadcast_to(self.mean_count * one, (k,))
        return Coupled(concentration, loc, count, degrees_of_freedom, rate)
    precision = jnp.broadcast_to(eye / self.mean_scale**2, (*means, b))
    return Factors(concentration, loc, precision, degrees_of_freedom, rate)


def in_blocks(moments: Moments, prior: Factors | Coupled) -> Moments:
    """Origin (B, b), first (K, B, b) and second moments (C, A, b, b)."""
    shape = prior.loc.shape
    return Moments(
        moments.origin.reshape(shape[1:]),
        moments.count,
        moments.first.reshape(shape),
        moments.second.reshape(prior.rate.shape),
    )
