r"""Means and precisions of a mixture that depend on each other: Normal-Wishart, conjugate for both at once.

    weights ~ Dirichlet(a),    Λ ~ Wishart(ν, R⁻¹),    m_kb | Λ ~ N(μ_kb, (κ_k Λ)⁻¹),

in the blocks of :mod:`ppl_models.mixture_factors`: a mean is known as well as κ rows of its component would tell it.
Given the labels, with counts n_k and sums f_kb, the posterior is of this form again,

    κ_k = κ0 + n_k,    μ_kb = (κ0 m0 + f_kb) / κ_k,    ν = ν0 + Σ n_k,
    R = R0 + Σ (S_kb(μ_kb) + κ0 (μ_kb - m0) (μ_kb - m0)ᵀ),    S(μ) = sum_n (x_n - μ) (x_n - μ)ᵀ.

So Gibbs draws all the globals as one block, and the optimal q(means, precisions) of variational Bayes is this with
expected counts and sums: structured, exact, and nothing lost but what labels and globals have to do with each other.

References
----------
Bishop, "Pattern Recognition and Machine Learning", 2006, section 10.2.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from ppl_models.mixture_factors import Layout, draw, inverse, outer, pool, pool_counts, scatter


class Coupled(NamedTuple):
    """Hyperparameters of Dirichlet weights and Normal-Wishart means and precisions, float64."""

    concentration: Float[Array, " K"]
    loc: Float[Array, "K B b"]
    count: Float[Array, " K"]  # κ
    degrees_of_freedom: Float[Array, "C A"]
    rate: Float[Array, "C A b b"]

    @property
    def mean_precisions(self) -> Float[Array, "C A b b"]:
        """E Λ = ν R⁻¹."""
        return self.degrees_of_freedom[..., None, None] * inverse(self.rate)

    @property
    def spread(self) -> Float[Array, "K B"]:
        """E (m - E m)ᵀ Λ (m - E m) = b / κ."""
        return jnp.broadcast_to((self.loc.shape[2] / self.count)[:, None], self.loc.shape[:2])

    def precision_given(self, precisions: Float[Array, "C A b b"]) -> Float[Array, "K B b b"]:
        """κ Λ."""
        shape = (*self.loc.shape, self.loc.shape[2])
        return jnp.broadcast_to(self.count[:, None, None, None] * precisions, shape)

    def means_kl(self, prior: Coupled) -> Float[Array, ""]:
        """E KL(q(means | Λ) || p(means | Λ)) in nats.

        ½ sum_kb (b κ0 / κ - b + b log(κ / κ0) + κ0 (μ - m0)ᵀ Λ̄ (μ - m0))
        """
        b, ratio = self.loc.shape[2], prior.count / self.count
        pull = jnp.sum(self.mean_precisions * outer(self.loc - prior.loc), axis=(-2, -1))  # (K, B)
        return 0.5 * jnp.sum((b * (ratio - 1 - jnp.log(ratio)))[:, None] + prior.count[:, None] * pull)

    def near(self, count: Float[Array, " K"], loc: Array, covariances: Array, layout: Layout) -> Coupled:
        """A q about these values, as concentrated as its share of rows makes it."""
        degrees_of_freedom = self.degrees_of_freedom + pool_counts(count, layout)
        return Coupled(
            concentration=self.concentration + count,
            loc=loc.reshape(self.loc.shape),
            count=self.count + count,
            degrees_of_freedom=degrees_of_freedom,
            rate=degrees_of_freedom[..., None, None] * covariances.reshape(self.rate.shape),
        )

    def optimum(self, q: Any, sums: Any, layout: Layout) -> Coupled:
        """With this prior, the posterior given completed rows, or the best q(globals) given expected ones."""
        count = self.count + sums.count
        prior = self.loc - sums.origin
        loc = (self.count[:, None, None] * prior + sums.first) / count[:, None, None]
        pull = pool(self.count[:, None, None, None] * outer(loc - prior), layout)
        return Coupled(
            concentration=self.concentration + sums.count,
            loc=sums.origin + loc,
            count=count,
            degrees_of_freedom=self.degrees_of_freedom + pool_counts(sums.count, layout),
            rate=self.rate + scatter(sums.origin + loc, outer(loc), sums, layout) + pull,
        )

    def draw_given(self, key: Array, precisions: Any, sums: Any, layout: Layout) -> tuple[Array, Array, Array]:
        """With this prior, all globals given completed rows, whatever they were."""
        return draw(key, self.optimum(None, sums, layout), layout)
