r"""Factors of a distribution over a mixture's globals: Dirichlet weights, Gaussian means, Wishart precisions.

The four structures of covariance differ only in how precisions are shared. Cut the D columns into B
blocks of b, and let one precision matrix Λ (b, b) serve every component and block that shares it:

===========  =======  ==========================  ================
structure    block b  precisions (components,     as a site
                      blocks)
===========  =======  ==========================  ================
full         D        (K, 1)                      (K, D, D)
tied         D        (1, 1)                      (D, D)
diag         1        (K, D)                      (K, D)
spherical    1        (K, 1)                      (K,)
===========  =======  ==========================  ================

With blocks of one column Wishart(ν, 1 / R) is Gamma(ν / 2, R / 2), so that one family covers all four. Rates
are matrices R with E[Λ] = ν R⁻¹.

Standard noise is drawn in float32, everything else is float64: float64 bits cannot be drawn in a jit whose
x64 is off.

References
----------
Smith and Hocking, "Algorithm AS 53: Wishart variate generator", 1972 (Bartlett's decomposition).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax.scipy.linalg import cho_solve, solve_triangular
from jax.scipy.special import digamma, multigammaln
from jaxtyping import Array, Float
from numpyro.distributions import kl_divergence


class Layout(NamedTuple):
    """How a structure shares its precisions; see the table above."""

    block: int  # b
    blocks: int  # B
    precisions: tuple[int, int]
    site: tuple[int, ...]


LAYOUTS: dict[str, Callable[[int, int], Layout]] = {
    "full": lambda k, d: Layout(d, 1, (k, 1), (k, d, d)),
    "tied": lambda k, d: Layout(d, 1, (1, 1), (d, d)),
    "diag": lambda k, d: Layout(1, d, (k, d), (k, d)),
    "spherical": lambda k, d: Layout(1, d, (k, 1), (k,)),
}


class Factors(NamedTuple):
    """Hyperparameters of independent Dirichlet, Gaussian and Wishart factors, float64.

    C of K components and A of B blocks have precisions of their own. As a prior it is conjugate one block of globals at
    a time; :class:`~ppl_models.mixture_coupled.Coupled` has the same methods.
    """

    concentration: Float[Array, " K"]
    loc: Float[Array, "K B b"]
    precision: Float[Array, "K B b b"]  # of the means
    degrees_of_freedom: Float[Array, "C A"]
    rate: Float[Array, "C A b b"]

    @property
    def mean_precisions(self) -> Float[Array, "C A b b"]:
        """E Λ = ν R⁻¹."""
        return self.degrees_of_freedom[..., None, None] * inverse(self.rate)

    @property
    def spread(self) -> Float[Array, "K B"]:
        """E (m - E m)ᵀ Λ (m - E m) = tr(Λ̄ P⁻¹)."""
        return jnp.sum(self.mean_precisions * inverse(self.precision), axis=(-2, -1))

    def precision_given(self, precisions: Float[Array, "C A b b"]) -> Float[Array, "K B b b"]:
        """Of the means, whatever the precisions of rows."""
        return self.precision

    def means_kl(self, prior: Factors) -> Float[Array, ""]:
        """KL(q(means) || p(means)) in nats."""
        means = (dist.MultivariateNormal(f.loc, precision_matrix=f.precision) for f in (self, prior))
        return kl_divergence(*means).sum()

    def near(self, count: Float[Array, " K"], loc: Array, covariances: Array, layout: Layout) -> Factors:
        """A q about these values, each factor as concentrated as its share of rows makes it."""
        degrees_of_freedom = self.degrees_of_freedom + pool_counts(count, layout)
        return Factors(
            concentration=self.concentration + count,
            loc=loc.reshape(self.loc.shape),
            precision=self.precision + count[:, None, None, None] * inverse(covariances.reshape(self.rate.shape)),
            degrees_of_freedom=degrees_of_freedom,
            rate=degrees_of_freedom[..., None, None] * covariances.reshape(self.rate.shape),
        )

    def optimum(self, q: Any, sums: Any, layout: Layout) -> Factors:
        """With this prior, the best q(weights), then q(means) given q(precisions), then q(precisions) given those."""
        loc, precision = self._means_given(q.mean_precisions, sums)
        scattered = scatter(loc, outer(loc - sums.origin) + inverse(precision), sums, layout)
        return Factors(
            concentration=self.concentration + sums.count,
            loc=loc,
            precision=precision,
            degrees_of_freedom=self.degrees_of_freedom + pool_counts(sums.count, layout),
            rate=self.rate + scattered,
        )

    def draw_given(self, key: Array, precisions: Array, sums: Any, layout: Layout) -> tuple[Array, Array, Array]:
        """With this prior, weights, then means given precisions, then precisions given means, of completed rows."""
        key_gamma, key_means, key_precisions = jax.random.split(key, 3)
        degrees_of_freedom = self.degrees_of_freedom + pool_counts(sums.count, layout)
        weights, radii = draw_gammas(key_gamma, self.concentration + sums.count, degrees_of_freedom, layout.block)
        means = draw_normal(key_means, *self._means_given(precisions, sums))
        rate = self.rate + scatter(means, outer(means - sums.origin), sums, layout)
        return weights, means, draw_wishart(key_precisions, radii, rate)

    def _means_given(self, precisions: Array, sums: Any) -> tuple[Array, Array]:
        """Location and precision of the means given the precisions, or q's given their expectation."""
        precision = self.precision + sums.count[:, None, None, None] * precisions
        # h = P0 (m0 - origin) + Λ f
        h = self.precision @ (self.loc - sums.origin)[..., None] + precisions @ sums.first[..., None]
        loc = cho_solve((jnp.linalg.cholesky(precision), True), h)[..., 0]
        return sums.origin + loc, precision


def log_prob(factors: Any, weights: Array, means: Array, precisions: Array) -> Float[Array, ""]:
    """Of values of the three sites, in nats."""
    precisions = precisions.reshape(factors.rate.shape)
    normal = dist.MultivariateNormal(factors.loc, precision_matrix=factors.precision_given(precisions))
    wishart = dist.Wishart(factors.degrees_of_freedom, rate_matrix=factors.rate)
    return (
        dist.Dirichlet(factors.concentration).log_prob(weights)
        + normal.log_prob(means.reshape(factors.loc.shape)).sum()
        + wishart.log_prob(precisions).sum()
    )


def kl(q: Any, p: Any) -> Float[Array, ""]:
    """KL(q || p) in nats, of two of a kind."""
    weights = kl_divergence(dist.Dirichlet(q.concentration), dist.Dirichlet(p.concentration))
    return weights + q.means_kl(p) + _wishart_kl(q, p).sum()


def draw(key: Array, q: Any, layout: Layout) -> tuple[Array, Array, Array]:
    """One draw of weights, means (K, B, b) and precisions (C, A, b, b)."""
    key_gamma, key_means, key_precisions = jax.random.split(key, 3)
    weights, radii = draw_gammas(key_gamma, q.concentration, q.degrees_of_freedom, layout.block)
    precisions = draw_wishart(key_precisions, radii, q.rate)
    return weights, draw_normal(key_means, q.loc, q.precision_given(precisions)), precisions


def scatter(means: Array, outer: Array, sums: Any, layout: Layout) -> Float[Array, "C A b b"]:
    """Σ S, of rows about ``means``; ``outer`` is m mᵀ about the origin, or its expectation."""
    cross = sums.first[..., :, None] * (means - sums.origin)[..., None, :]
    # S = sum x xᵀ - f mᵀ - m fᵀ + n m mᵀ
    total = sums.second + pool(sums.count[:, None, None, None] * outer - cross - cross.mT, layout)
    return (total + total.mT) / 2


def pool(values: Float[Array, "K B ..."], layout: Layout) -> Float[Array, "C A ..."]:
    """Σ: sum over the components and blocks that share a precision."""
    for axis, size in enumerate(layout.precisions):
        if size == 1:
            values = values.sum(axis, keepdims=True)
    return values


def pool_counts(count: Float[Array, " K"], layout: Layout) -> Float[Array, "C A"]:
    """Σ n_k."""
    return pool(jnp.broadcast_to(count[:, None], (len(count), layout.blocks)), layout)


def _wishart_kl(q: Any, p: Any) -> Float[Array, "C A"]:
    """½(ν - ν0) ψ_b(ν/2) + ½ν0 log|R|/|R0| + ½ν (tr(R0 R⁻¹) - b) - log Γ_b(ν/2) + log Γ_b(ν0/2)."""
    b, nu, nu0 = q.rate.shape[-1], q.degrees_of_freedom, p.degrees_of_freedom
    log_ratio = jnp.linalg.slogdet(q.rate)[1] - jnp.linalg.slogdet(p.rate)[1]
    trace = jnp.sum(p.rate * inverse(q.rate), axis=(-2, -1))
    return (
        0.5 * (nu - nu0) * multidigamma(nu / 2, b)
        + 0.5 * nu0 * log_ratio
        + 0.5 * nu * (trace - b)
        - multigammaln(nu / 2, b)
        + multigammaln(nu0 / 2, b)
    )


def draw_gammas(
    key: Array, concentration: Float[Array, " K"], degrees_of_freedom: Float[Array, "C A"], block: int
) -> tuple[Float[Array, " K"], Float[Array, "C A b"]]:
    """Dirichlet weights, and square roots of χ² with ν - i degrees of freedom, i = 0 … b - 1.

    All from one call for Gamma draws, a rejection loop that is slow to compile. None of the weights is
    zero: their logarithms enter densities.
    """
    halves = 0.5 * (degrees_of_freedom[..., None] - jnp.arange(block))
    shapes = jnp.concatenate([concentration, halves.ravel()]).astype(jnp.float32)
    logs = float32_draw(jax.random.loggamma, key, shapes).astype(jnp.float64)
    weights = jax.nn.softmax(logs[: len(concentration)])
    radii = jnp.exp(0.5 * (jnp.log(2.0) + logs[len(concentration) :].reshape(halves.shape)))
    return jnp.maximum(weights, jnp.finfo(jnp.float32).tiny), radii


def draw_normal(key: Array, loc: Float[Array, "*K b"], precision: Float[Array, "*K b b"]) -> Float[Array, "*K b"]:
    """m + L⁻ᵀ ε for P = L Lᵀ."""
    noise = float32_draw(jax.random.normal, key, loc.shape).astype(jnp.float64)[..., None]
    return loc + solve_triangular(jnp.linalg.cholesky(precision), noise, trans=1, lower=True)[..., 0]


def draw_wishart(key: Array, radii: Float[Array, "*C b"], rate: Float[Array, "*C b b"]) -> Float[Array, "*C b b"]:
    """Λ = U Uᵀ, U = L⁻ᵀ A for R = L Lᵀ; A is lower triangular, the radii on its diagonal and N(0, 1) below."""
    normal = float32_draw(jax.random.normal, key, rate.shape).astype(jnp.float64)
    a = jnp.tril(normal, -1) + radii[..., None] * jnp.eye(rate.shape[-1], dtype=jnp.float64)
    u = solve_triangular(jnp.linalg.cholesky(rate), a, trans=1, lower=True)
    return u @ u.mT


def float32_draw(sample: Callable[..., Array], key: Array, *arguments: Any) -> Array:
    """``sample(key, *arguments)``, within code whose x64 is on."""
    with jax.enable_x64(False):
        return sample(key, *arguments)


def multidigamma(half: Array, block: int) -> Array:
    """ψ_b(a) = sum_i ψ(a - i / 2), i = 0 … b - 1."""
    return digamma(half[..., None] - 0.5 * jnp.arange(block)).sum(-1)


def inverse(matrices: Array) -> Array:
    """Of positive definite matrices."""
    eye = jnp.broadcast_to(jnp.eye(matrices.shape[-1], dtype=matrices.dtype), matrices.shape)
    return cho_solve((jnp.linalg.cholesky(matrices), True), eye)


def outer(vectors: Float[Array, "*K b"]) -> Float[Array, "*K b b"]:
    """v vᵀ."""
    return vectors[..., :, None] * vectors[..., None, :]
