r"""Variational Bayes of the Gaussian mixture, mean field, by exact coordinate ascent.

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

A structured variant: the prior of the means does not scale with the precisions, so the joint optimum
q(m_k, Λ_k) is not Gaussian-Wishart. Its conditional q(m_k | Λ_k) is Gaussian, but

    q(Λ) ∝ Wishart(Λ) |P0 + n Λ|^-½ exp(½ hᵀ (P0 + n Λ)⁻¹ h),    h = P0 m0 + Λ f,

whose moments have no closed form. (Quadrature could supply them for blocks of one column, not for
matrices.) So there is no exact structured variant of this model.

``self`` is the mixture; these functions are its methods.

References
----------
Bishop, "Pattern Recognition and Machine Learning", 2006, section 10.2 (with a conjugate prior).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.scipy.special import digamma
from jaxtyping import Array, ArrayLike, Float

from ppl_models.covariances import STRUCTURES
from ppl_models.mixture_bayes import SITES, Values, in_blocks, layout_of, means_given, pool_counts, prior_of, rate_given
from ppl_models.mixture_factors import (
    Factors,
    draw_gammas,
    draw_normal,
    draw_wishart,
    inverse,
    kl,
    log_prob,
    multidigamma,
    outer,
)
from ppl_models.mixture_rows import Moments, sum_over_rows


def variational_initial(self: Any, key: Array, x: Float[Array, "N D"], **data: Any) -> Factors:
    """q at the parameters that EM would start from, each factor as concentrated as its share of rows makes it."""
    params = self.initial(key, x, **data)
    with jax.enable_x64(True):
        layout, prior = layout_of(self, x.shape[1]), prior_of(self, x.shape[1])
        count = params["weights"] * _num_rows(x, **data)
        degrees_of_freedom = prior.degrees_of_freedom + pool_counts(count, layout)
        precisions = STRUCTURES[self.covariance].inverse(params["covariances"]).reshape(prior.rate.shape)
        covariances = params["covariances"].reshape(prior.rate.shape)
        return Factors(
            concentration=prior.concentration + count,
            loc=params["means"].reshape(prior.loc.shape),
            precision=prior.precision + count[:, None, None, None] * precisions,
            degrees_of_freedom=degrees_of_freedom,
            rate=degrees_of_freedom[..., None, None] * covariances,
        )


def variational_e_step(self: Any, q: Factors, x: Float[Array, "N D"], **data: Any) -> tuple[Float[Array, ""], Moments]:
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
        spread = multidigamma(half, layout.block) - layout.block * jnp.log(half)
        trace = jnp.sum(q.mean_precisions * inverse(q.precision), axis=(-2, -1))  # tr(Λ̄ P⁻¹), (K, B)
        log_weights = digamma(q.concentration) - digamma(q.concentration.sum())
        c = log_weights + 0.5 * jnp.sum(spread - trace, axis=1)
        means = q.loc.reshape(self.num_components, -1)
        covariances = (q.rate / q.degrees_of_freedom[..., None, None]).reshape(layout.site)
        return sum_over_rows(STRUCTURES[self.covariance], c, means, covariances, x, **data)


def variational_m_step(self: Any, q: Factors, statistics: Moments) -> Factors:
    """The optimal q(weights), then q(means) given q(precisions), then q(precisions) given those means."""
    with jax.enable_x64(True):
        layout, prior = layout_of(self, len(statistics.origin)), prior_of(self, len(statistics.origin))
        sums = in_blocks(statistics, prior)
        loc, precision = means_given(prior, q.mean_precisions, sums)
        spread = outer(loc - sums.origin) + inverse(precision)
        return Factors(
            concentration=prior.concentration + sums.count,
            loc=loc,
            precision=precision,
            degrees_of_freedom=prior.degrees_of_freedom + pool_counts(sums.count, layout),
            rate=rate_given(prior, loc, spread, sums, layout),
        )


def variational_kl(self: Any, q: Factors) -> Float[Array, ""]:
    """KL(q(globals) || p(globals)) in nats, float64."""
    with jax.enable_x64(True):
        return kl(q, prior_of(self, q.loc[0].size))


def variational_draw(self: Any, key: Array, q: Factors) -> Values:
    """One draw of ``weights``, ``means`` and ``precisions`` from q, float64."""
    key_gamma, key_means, key_precisions = jax.random.split(key, 3)
    with jax.enable_x64(True):
        layout = layout_of(self, q.loc[0].size)
        weights, radii = draw_gammas(key_gamma, q.concentration, q.degrees_of_freedom, layout.block)
        return {
            "weights": weights,
            "means": draw_normal(key_means, q.loc, q.precision).reshape(self.num_components, -1),
            "precisions": draw_wishart(key_precisions, radii, q.rate).reshape(layout.site),
        }


def variational_log_prob(self: Any, q: Factors, globals: Mapping[str, ArrayLike]) -> Float[Array, ""]:
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
