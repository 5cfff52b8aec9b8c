r"""Variational Bayes for PPCA and factor analysis with q(z) q(loadings) q(mean) q(noise_variance) all apart.

With τ_d = E[1/psi_d] and the sums, A and Λ0 of :mod:`ppl_models.loadings_posterior` (ww, w mu, mu mu are blocks)

    q(w_d) = N(ŵ_d, (τ_d Λ_ww)⁻¹),    Λ_ww = Λ0_ww + sum E[z zᵀ],    ŵ_d = Λ_ww⁻¹ (sum x E[z] - μ̂_d sum E[z]),
    q(mu_d) = N(μ̂_d, (τ_d Λ_μμ)⁻¹),   Λ_μμ = Λ0_μμ + N,              μ̂_d = (sum x - ŵ_dᵀ sum E[z]) / Λ_μμ,
    q(psi_d) = InverseGamma(a + (N + q + 1)/2, c + ½ E[sum x² - 2 rᵀ b_d + b_dᵀ (Λ0 + A) b_d]),

each the optimum given the others. The coupled q of the models themselves has the higher bound at the same price; this
one is for comparison, and for what a factorised q does to the spread.

References
----------
Bishop, "Variational principal components", 1999.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ppl_models import linear_gaussian as exact
from ppl_models import loadings_posterior as coupled
from ppl_models.linear_gaussian import Emission, Moments, Rows

if TYPE_CHECKING:
    from ppl_models.bayesian_pca import BayesianPCA
    from ppl_models.ppca import _FactorModel


class Factors(NamedTuple):
    """psi ~ InverseGamma(shape, scale), w ~ N, mu ~ N, independent."""

    loc: Float[Array, "D q+1"]  # of (w, mu)
    covariance: Float[Array, "groups q+1 q+1"]  # of w, and of mu in the corner
    shape: Float[Array, "..."]  # () or (D,)
    scale: Float[Array, "..."]


def update(
    model: _FactorModel | BayesianPCA,
    prior: Float[Array, " q+1"],
    loc: Float[Array, "D q+1"],
    precision: Array,
    s: Moments,
) -> Factors:
    """The optimal q(w), then q(mu), then q(psi), from means ``loc`` and E[1/psi]; ``prior`` the diagonal of Λ0."""
    columns = len(loc)
    outer, cross, squares = coupled.equations(prior, s)
    inner = jnp.linalg.inv(outer[:, :-1, :-1])
    coupling = jnp.broadcast_to(outer[:, :-1, -1], (columns, model.latent_dim))  # sum E[z]
    corner = outer[:, -1, -1]

    w = coupled.by_group(cross[:, :-1] - (loc[:, -1] - s.origin)[:, None] * coupling, inner)
    centred = (cross[:, -1] - (w * coupling).sum(-1)) / corner  # mu - origin
    unit = jnp.zeros_like(outer).at[:, :-1, :-1].set(inner).at[:, -1, -1].set(1 / corner)
    covariance = unit / precision.reshape(-1, 1, 1)

    # E[sum x² - 2 rᵀ b + bᵀ (Λ0 + A) b]
    b = jnp.column_stack([w, centred])
    spread = jnp.trace(outer @ covariance, axis1=1, axis2=2)
    squares = squares - 2 * (cross * b).sum(-1) + (coupled.by_group(b, outer) * b).sum(-1) + spread
    count = jnp.broadcast_to(s.count, columns) + b.shape[1]
    shape, scale = model.noise_shape + model._pool(count) / 2, model.noise_scale + model._pool(squares) / 2
    return Factors(b.at[:, -1].add(s.origin), covariance, shape, scale)


@dataclass(frozen=True)
class _MeanFieldLoadings:
    """The program of ``model``, with variational Bayes under q(loadings) q(mean) q(noise_variance).

    Parameters
    ----------
    model
        ``PPCA`` or ``FactorAnalysis``; ``model.mean_field`` is this.
    """

    model: _FactorModel

    def __call__(
        self,
        x: Float[Array, "batch D"],
        num_data: int | None = None,
        x_observed: Any = None,
        sample_weight: Any = None,
    ) -> Any:
        return self.model(x, num_data, x_observed, sample_weight)

    @property
    def __name__(self) -> str:
        return f"{type(self.model).__name__}.mean_field"

    @property
    def ppl(self) -> ModuleType:
        """The model's engine."""
        return self.model.ppl

    @property
    def rotated(self) -> tuple[str, ...]:
        """The model's loadings, known up to a rotation."""
        return self.model.rotated

    @property
    def marginal(self) -> Any:
        """The model's program with z integrated out."""
        return self.model.marginal

    @property
    def posterior(self) -> Any:
        """The model's exact p(z | x, globals)."""
        return self.model.posterior

    def invariants(self, **globals: Array) -> dict[str, Array]:
        """The model's functions of one draw of the globals that a rotation of z does not change."""
        return self.model.invariants(**globals)

    def log_joint(self, params: Any, x: Float[Array, "N D"], x_observed: Any = None, sample_weight: Any = None) -> Any:
        """log p(x, globals) in nats, float64, z integrated out."""
        return self.model.log_joint(params, x, x_observed, sample_weight)

    def variational_initial(
        self, key: Array, x: Float[Array, "N D"], x_observed: Any = None, sample_weight: Any = None
    ) -> Factors:
        """The factors of the model's own coupled start, with the spread that each of them has alone."""
        _, s = self.model.e_step(self.model.initial(key, x, x_observed, sample_weight), x, x_observed, sample_weight)
        with jax.enable_x64(True):
            q = coupled.posterior(self.model, coupled.prior_precision(self.model), s)
            return update(self.model, coupled.prior_precision(self.model), q.loc, q.shape / q.scale, s)

    def variational_e_step(
        self, q: Factors, x: Float[Array, "N D"], x_observed: Any = None, sample_weight: Any = None
    ) -> tuple[Float[Array, ""], Moments]:
        """Log normaliser of the optimal q(z), summed over rows, in nats, and expected sufficient statistics."""
        self.model.validate(x, x_observed, min_rows=0)
        with jax.enable_x64(True):
            precision, log_noise = (jnp.broadcast_to(v, len(q.loc)) for v in coupled.noise_averages(q.shape, q.scale))
            spread = (q.shape / q.scale).reshape(-1, 1, 1) * q.covariance  # E[1/psi] Cov b
            emission = Emission(precision, log_noise, q.loc[:, :-1], q.loc[:, -1], spread)
            return exact.expected(emission, Rows(x, x_observed, sample_weight))

    def variational_m_step(self, q: Factors, statistics: Moments) -> Factors:
        """The optimal q(w), then q(mu), then q(psi), each given the others as they are then."""
        with jax.enable_x64(True):
            return update(self.model, coupled.prior_precision(self.model), q.loc, q.shape / q.scale, statistics)

    def variational_kl(self, q: Factors) -> Float[Array, ""]:
        """KL(q(w) q(mu) q(psi) || p(w, mu, psi)), nats."""
        with jax.enable_x64(True):
            prior = coupled.prior_precision(self.model)
            columns, size = q.loc.shape
            precision, log_noise = coupled.noise_averages(q.shape, q.scale)
            second = q.loc**2 + jnp.diagonal(q.covariance, axis1=1, axis2=2)  # E[b²]
            log_det = jnp.linalg.slogdet(q.covariance)[1]
            per_column = precision * (second @ prior) - log_det - size - jnp.log(prior).sum() + size * log_noise
            return 0.5 * jnp.broadcast_to(per_column, columns).sum() + coupled.noise_kl(self.model, q.shape, q.scale)

    def variational_draw(self, key: Array, q: Factors) -> dict[str, Array]:
        """One draw of the globals from q, float64."""
        key_noise, key_normal = jax.random.split(key)
        with jax.enable_x64(False):  # float64 bits cannot be drawn in a jit whose x64 is off
            gamma = jax.random.gamma(key_noise, q.shape.astype(jnp.float32))
            normal = jax.random.normal(key_normal, q.loc.shape, jnp.float32)
        with jax.enable_x64(True):
            b = q.loc + coupled.by_group(normal.astype(jnp.float64), jnp.linalg.cholesky(q.covariance).mT)
            return {"loadings": b[:, :-1], "mean": b[:, -1], "noise_variance": q.scale / gamma.astype(jnp.float64)}

    def variational_log_prob(self, q: Factors, globals: dict[str, Array]) -> Float[Array, ""]:
        """log q(w) + log q(mu) + log q(psi) in nats."""
        with jax.enable_x64(True):
            w, mu, psi = (jnp.asarray(globals[name], jnp.float64) for name in ("loadings", "mean", "noise_variance"))
            difference = jnp.column_stack([w, mu]) - q.loc
            normal = coupled.normal_log_prob(difference, q.covariance, jnp.zeros(()))
            return coupled.inverse_gamma(psi, q.shape, q.scale).sum() + normal
