r"""Variational Bayes of the Gaussian mixture, mean field or structured, by exact coordinate ascent.

q = q(z) q(weights) q(means) q(precisions); nothing else is assumed, the factors over components follow. In
the blocks and with the prior of :mod:`ppl_models.mixture_bayes`, the optimal factors are Gibbs'
conditionals (:mod:`ppl_models.mixture_gibbs`) with expectations in them:

    q(z_n = k) ∝ exp(E log weights_k + E log N(x_n | m_k, Λ_k⁻¹))
    q(weights)  = Dirichlet(a + n),                               n_k = sum_n q(z_n = k)
    q(m_kb)     = N(P⁻¹ (P0 m0 + Λ̄ f_kb), P⁻¹),                   P = P0 + n_k Λ̄,  Λ̄ = E Λ
    q(Λ)        = Wishart(ν0 + Σ n_k, (R0 + Σ E S_kb)⁻¹),          E S = S(E m) + n_k P⁻¹.

The first is an E-step of EM: since E (x - m)ᵀ Λ (x - m) = (x - E m)ᵀ Λ̄ (x - E m) + tr(Λ̄ P⁻¹),

    E log weights_k + E log N(x | m_k, Λ_k⁻¹) = c_k + log N(x | E m_k, Λ̄_k⁻¹),
    c_k = E log weights_k + ½ sum_b (E log|Λ| - log|Λ̄| - tr(Λ̄ P⁻¹)),

so responsibilities, expected statistics and the sum of log normalisers come from EM's pass over the rows
with c for the log weights, and with them its treatment of missing values and sample weights: a missing
entry is one more local latent, whose q given z is the Gaussian that the pass integrates over.

Structured: with ``mean_count`` the prior of the means scales with the precisions, the optimal q(m, Λ) is Normal-Wishart
(:mod:`ppl_models.mixture_coupled`), and takes the place of the last two factors; tr(Λ̄ P⁻¹) is then b / κ_k. With
``mean_scale`` it does not scale, and the joint optimum has a Gaussian q(m_k | Λ_k), but

    q(Λ) ∝ Wishart(Λ) |P0 + n Λ|^-½ exp(½ hᵀ (P0 + n Λ)⁻¹ h),    h = P0 m0 + Λ f,

whose moments have no closed form: that prior has the mean field only.

``self`` is the mixture; these functions are its methods.

References
----------
Bishop, "Pattern Recognition and Machine Learning", 2006, section 10.2 (the structured one).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.scipy.special import digamma
from jaxtyping import Array, ArrayLike, Float

from ppl_models.covariances import STRUCTURES
from ppl_models.mixture_bayes import SITES, Values, in_blocks, layout_of, prior_of
from ppl_models.mixture_coupled import Coupled
from ppl_models.mixture_factors import Factors, draw, kl, log_prob, multidigamma
from ppl_models.mixture_rows import Moments, sum_over_rows

Q = Factors | Coupled


def variational_initial(self: Any, key: Array, x: Float[Array, "N D"], **data: Any) -> Q:
    """q at the parameters that EM would start from, each factor as concentrated as its share of rows makes it."""
    params = self.initial(key, x, **data)
    with jax.enable_x64(True):
        layout, prior = layout_of(self, x.shape[1]), prior_of(self, x.shape[1])
        count = params["weights"] * _num_rows(x, **data)
        return prior.near(count, params["means"], params["covariances"], layout)


def variational_e_step(self: Any, q: Q, x: Float[Array, "N D"], **data: Any) -> tuple[Float[Array, ""], Moments]:
    """Sum over rows of the log normaliser of the optimal q(z_n), in nats, and expected statistics.

    Parameters
    ----------
    q
        Hyperparameters.
    x, data
        As for ``e_step``; missing entries and sample weights too.

    Returns
    -------
    tuple
        E_q[log p(x, z | globals)] + H[q(z)], and the moments under q(z); float64.
    """
    with jax.enable_x64(True):
        layout = layout_of(self, x.shape[1])
        half = q.degrees_of_freedom / 2
        # E log|Λ| - log|Λ̄| = ψ_b(ν / 2) - b log(ν / 2)
        log_ratio = multidigamma(half, layout.block) - layout.block * jnp.log(half)
        log_weights = digamma(q.concentration) - digamma(q.concentration.sum())
        c = log_weights + 0.5 * jnp.sum(log_ratio - q.spread, axis=1)
        means = q.loc.reshape(self.num_components, -1)
        covariances = (q.rate / q.degrees_of_freedom[..., None, None]).reshape(layout.site)
        return sum_over_rows(STRUCTURES[self.covariance], c, means, covariances, x, **data)


def variational_m_step(self: Any, q: Q, statistics: Moments) -> Q:
    """The optimal q(weights), q(means) and q(precisions), in turn or, with ``mean_count``, the last two jointly."""
    with jax.enable_x64(True):
        layout, prior = layout_of(self, len(statistics.origin)), prior_of(self, len(statistics.origin))
        return prior.optimum(q, in_blocks(statistics, prior), layout)


def variational_kl(self: Any, q: Q) -> Float[Array, ""]:
    """KL(q(globals) || p(globals)) in nats, float64."""
    with jax.enable_x64(True):
        return kl(q, prior_of(self, q.loc[0].size))


def variational_draw(self: Any, key: Array, q: Q) -> Values:
    """One draw of ``weights``, ``means`` and ``precisions`` from q, float64."""
    with jax.enable_x64(True):
        layout = layout_of(self, q.loc[0].size)
        weights, means, precisions = draw(key, q, layout)
        return {
            "weights": weights,
            "means": means.reshape(self.num_components, -1),
            "precisions": precisions.reshape(layout.site),
        }


def variational_log_prob(self: Any, q: Q, globals: Mapping[str, ArrayLike]) -> Float[Array, ""]:
    """log q at values of ``weights``, ``means`` and ``precisions``, in nats, float64."""
    with jax.enable_x64(True):
        return log_prob(q, *(jnp.asarray(globals[name], jnp.float64) for name in SITES))


def _num_rows(x: Array, sample_weight: Array | None = None, **_: Any) -> Any:
    """Rows, each counted as often as its weight says."""
    return len(x) if sample_weight is None else sample_weight.astype(jnp.float64).sum()


__all__ = [
    "variational_draw",
    "variational_e_step",
    "variational_initial",
    "variational_kl",
    "variational_log_prob",
    "variational_m_step",
]
