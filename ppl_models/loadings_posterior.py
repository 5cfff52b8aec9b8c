r"""The posterior of loadings, means and noise given z, which is exact: steps of Gibbs and of variational Bayes.

Given z every column d is a Gaussian regression on (z, 1) with coefficients b_d = (w_d, mu_d) and a conjugate prior,

    psi_d ~ InverseGamma(a, c),    b_d | psi_d ~ N(0, psi_d Λ0⁻¹),    Λ0 = diag(1/loadings_scale², ..., 1/mean_scale²),

so with A = sum (z, 1)(z, 1)ᵀ and r = sum x (z, 1) over the N rows in which the column is seen

    b_d | psi_d, x, z ~ N(b̂, psi_d Λ⁻¹),    Λ = Λ0 + A,    b̂ = Λ⁻¹ r,
    psi_d | x, z ~ InverseGamma(a + N/2, c + (sum x² - rᵀ b̂)/2),

and one noise variance for all columns (PPCA) adds up their N/2 and their sums of squares. Gibbs draws psi with b
integrated out, then b: one block. What moves slowly under z and b in turns is then moved along
(:mod:`ppl_models.loadings_moves`).

Variational Bayes takes q(z) q(w, mu, psi), and nothing more: given expected sums in place of sums the optimal second
factor is the same family, in which the coefficients stay coupled to each other and to the noise. Its

    KL = sum_d ½ [tr(Λ0 Λ⁻¹) - (q + 1) + log|Λ| - log|Λ0| + E[1/psi_d] b̂ᵀ Λ0 b̂] + sum KL(q(psi) || p(psi)).

References
----------
Ghahramani and Beal, "Variational inference for Bayesian mixtures of factor analysers", 2000.
Geweke and Zhou, "Measuring the pricing error of the arbitrage pricing theory", 1996 (Gibbs for factor analysis).
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.special import digamma, gammaln
from jax.scipy.stats import norm
from jaxtyping import Array, ArrayLike, Float

from ppl_models import linear_gaussian as exact
from ppl_models.linear_gaussian import Emission, Moments, Rows
from ppl_models.loadings_moves import move

if TYPE_CHECKING:
    from ppl_models.bayesian_pca import BayesianPCA
    from ppl_models.ppca import _FactorModel

Params = dict[str, Float[Array, "..."]]


class Regression(NamedTuple):
    """q(w, mu, psi): psi ~ InverseGamma(shape, scale), b = (w, mu) | psi ~ N(loc, psi * covariance)."""

    loc: Float[Array, "D q+1"]
    covariance: Float[Array, "groups q+1 q+1"]  # Λ⁻¹; one for all columns, or one each
    shape: Float[Array, "..."]  # () or (D,)
    scale: Float[Array, "..."]


class Equations(NamedTuple):
    """The normal equations of every column, about the origin of the sums: mu - origin has the prior mean -origin."""

    precision: Float[Array, "groups q+1 q+1"]  # Λ = Λ0 + A
    cross: Float[Array, "D q+1"]  # r + Λ0 (0, ..., -origin)
    squares: Float[Array, " D"]  # sum (x - origin)² + origin² / mean_scale²


def equations(prior: Float[Array, " q+1"], s: Moments) -> Equations:
    """Prior precision (the diagonal of Λ0) and sums over rows together."""
    top = jnp.concatenate([s.zz, s.z[:, :, None]], axis=2)
    bottom = jnp.concatenate([s.z, s.count[:, None]], axis=1)
    outer = jnp.concatenate([top, bottom[:, None]], axis=1)  # A
    cross = jnp.column_stack([s.xz, s.x - prior[-1] * s.origin])
    return Equations(jnp.diag(prior) + outer, cross, s.xx + prior[-1] * s.origin**2)


def prior_precision(model: _FactorModel) -> Float[Array, " q+1"]:
    """The diagonal of Λ0."""
    return jnp.array([model.loadings_scale**-2.0] * model.latent_dim + [model.mean_scale**-2.0], jnp.float64)


def by_group(values: Float[Array, "D n"], matrices: Float[Array, "groups n n"]) -> Float[Array, "D n"]:
    """Rows of ``values`` times the matrix of their group."""
    return (values.reshape(len(matrices), -1, values.shape[1]) @ matrices).reshape(values.shape)


def posterior(model: _FactorModel | BayesianPCA, prior: Float[Array, " q+1"], s: Moments) -> Regression:
    """p(w, mu, psi | x, z), float64, ``prior`` the diagonal of Λ0."""
    precision, cross, squares = equations(prior, s)
    factor = jnp.linalg.cholesky(precision)
    covariance = jax.scipy.linalg.cho_solve((factor, True), jnp.broadcast_to(jnp.eye(factor.shape[-1]), factor.shape))
    loc = by_group(cross, covariance)
    squares = jnp.maximum(squares - (cross * loc).sum(-1), 0.0)
    count = jnp.broadcast_to(s.count, squares.shape)
    shape, scale = model.noise_shape + model._pool(count) / 2, model.noise_scale + model._pool(squares) / 2
    return Regression(loc.at[:, -1].add(s.origin), covariance, shape, scale)


def draw_from(key: Array, q: Regression) -> Params:
    """One draw of the globals, float64."""
    key_noise, key_normal = jax.random.split(key)
    # float32: float64 bits cannot be drawn in a jit whose x64 is off
    with jax.enable_x64(False):
        gamma = jax.random.gamma(key_noise, q.shape.astype(jnp.float32))
        normal = jax.random.normal(key_normal, q.loc.shape, jnp.float32)
    with jax.enable_x64(True):
        psi = q.scale / gamma.astype(jnp.float64)
        tril = jnp.linalg.cholesky(q.covariance)
        b = q.loc + jnp.sqrt(psi).reshape(-1, 1) * by_group(normal.astype(jnp.float64), tril.mT)
        return {"loadings": b[:, :-1], "mean": b[:, -1], "noise_variance": psi}


# ---- Gibbs


def complete(
    self: _FactorModel | BayesianPCA,
    key: Array,
    params: Mapping[str, ArrayLike],
    x: Float[Array, "N D"],
    x_observed: Any = None,
) -> Moments:
    """Draw z ~ p(z | x, globals) of every row; sufficient statistics of (x, z), float64 sums over rows.

    Missing entries are integrated out, not drawn.
    """
    self.validate(x, x_observed, min_rows=0)
    noise = jax.random.normal(key, (len(x), self.latent_dim), jnp.float32)

    def terms(both: tuple[Rows, Array]) -> tuple[Any, ...]:
        rows, noise = both
        given = exact.latents(emission, rows)
        solve = partial(jax.scipy.linalg.solve_triangular, trans=1, lower=True)
        z = given.mean + jnp.vectorize(solve, signature="(q,q),(q)->(q)")(given.factor, noise)  # z̄ + L⁻ᵀ e, G = L Lᵀ
        return exact.sums(rows, z, jnp.zeros((self.latent_dim, self.latent_dim)), emission.mean)

    with jax.enable_x64(True):
        emission, rows = exact.known(params), Rows(x, x_observed)
        found = exact.sum_over_rows(terms, (rows, noise), exact.width(rows, self.latent_dim))
        return Moments(emission.mean, *found)


def draw(self: _FactorModel, key: Array, params: Mapping[str, ArrayLike], statistics: Moments) -> Params:
    """Draw ``noise_variance``, then ``loadings`` and ``mean``, given the completed data, float64."""
    key_block, key_move = jax.random.split(key)
    with jax.enable_x64(True):
        q = posterior(self, prior_precision(self), statistics)
    return move(self, key_move, draw_from(key_block, q), statistics.latent)


def log_joint(
    self: _FactorModel,
    params: Mapping[str, ArrayLike],
    x: Float[Array, "N D"],
    x_observed: Any = None,
    sample_weight: Any = None,
) -> Float[Array, ""]:
    """log p(x, globals) in nats, float64, z integrated out."""
    log_likelihood, _ = self.e_step(params, x, x_observed, sample_weight)
    with jax.enable_x64(True):
        w, mu, psi = (jnp.asarray(params[name], jnp.float64) for name in ("loadings", "mean", "noise_variance"))
        noise = jnp.sqrt(psi).reshape(-1, 1)
        log_prior = inverse_gamma(psi, self.noise_shape, self.noise_scale).sum()
        log_prior += norm.logpdf(w, scale=self.loadings_scale * noise).sum()
        log_prior += norm.logpdf(mu, scale=self.mean_scale * noise[:, 0]).sum()
        return log_likelihood + log_prior


# ---- variational Bayes, q(z) q(w, mu, psi)


def variational_initial(
    self: _FactorModel, key: Array, x: Float[Array, "N D"], x_observed: Any = None, sample_weight: Any = None
) -> Regression:
    """The best q(w, mu, psi) given z as it is at ``initial`` parameters."""
    _, statistics = self.e_step(self.initial(key, x, x_observed, sample_weight), x, x_observed, sample_weight)
    with jax.enable_x64(True):
        return posterior(self, prior_precision(self), statistics)


def variational_e_step(
    self: _FactorModel,
    q: Regression,
    x: Float[Array, "N D"],
    x_observed: Any = None,
    sample_weight: Any = None,
) -> tuple[Float[Array, ""], Moments]:
    """Log normaliser of the optimal q(z), summed over rows, in nats, and expected sufficient statistics."""
    self.validate(x, x_observed, min_rows=0)
    with jax.enable_x64(True):
        precision, log_noise = (jnp.broadcast_to(v, len(q.loc)) for v in noise_averages(q.shape, q.scale))
        emission = Emission(precision, log_noise, q.loc[:, :-1], q.loc[:, -1], q.covariance)
        return exact.expected(emission, Rows(x, x_observed, sample_weight))


def variational_m_step(self: _FactorModel, q: Regression, statistics: Moments) -> Regression:
    """The optimal q(w, mu, psi) given expected statistics."""
    with jax.enable_x64(True):
        return posterior(self, prior_precision(self), statistics)


def variational_kl(self: _FactorModel, q: Regression) -> Float[Array, ""]:
    """KL(q(w, mu, psi) || p(w, mu, psi)), nats."""
    with jax.enable_x64(True):
        prior = prior_precision(self)
        columns, size = q.loc.shape
        precision, _ = noise_averages(q.shape, q.scale)
        spread = jnp.diagonal(q.covariance, axis1=1, axis2=2) @ prior - jnp.linalg.slogdet(q.covariance)[1]
        per_column = jnp.broadcast_to(spread, columns) + precision * (q.loc**2 @ prior) - size - jnp.log(prior).sum()
        return 0.5 * per_column.sum() + noise_kl(self, q.shape, q.scale)


def variational_draw(self: _FactorModel, key: Array, q: Regression) -> Params:
    """One draw of the globals from q, float64."""
    return draw_from(key, q)


def variational_log_prob(self: _FactorModel, q: Regression, globals: Params) -> Float[Array, ""]:
    """log q(w, mu, psi) in nats."""
    with jax.enable_x64(True):
        w, mu, psi = (jnp.asarray(globals[name], jnp.float64) for name in ("loadings", "mean", "noise_variance"))
        scaled = (jnp.column_stack([w, mu]) - q.loc) / jnp.sqrt(psi).reshape(-1, 1)
        return inverse_gamma(psi, q.shape, q.scale).sum() + normal_log_prob(scaled, q.covariance, jnp.log(psi))


# ---- densities


def normal_log_prob(
    difference: Float[Array, "D n"], covariance: Float[Array, "groups n n"], log_unit: Float[Array, "..."]
) -> Float[Array, ""]:
    """Sum of log N of the columns' ``difference`` in units of variance ``exp(log_unit)``, () or (D,)."""
    columns, size = difference.shape
    quadratic = (by_group(difference, jnp.linalg.inv(covariance)) * difference).sum()
    log_det = jnp.broadcast_to(jnp.linalg.slogdet(covariance)[1], columns) + size * log_unit
    return -0.5 * (quadratic + log_det.sum() + columns * size * jnp.log(2 * jnp.pi))


def noise_averages(shape: Array, scale: Array) -> tuple[Array, Array]:
    """E[1/psi] and E[log psi]."""
    return shape / scale, jnp.log(scale) - digamma(shape)


def noise_kl(model: _FactorModel, shape: Array, scale: Array) -> Float[Array, ""]:
    """KL(InverseGamma(shape, scale) || prior), of all noise variances."""
    a, c = model.noise_shape, model.noise_scale
    return (
        (shape - a) * digamma(shape) - gammaln(shape) + gammaln(a) + a * jnp.log(scale / c) + shape * (c / scale - 1)
    ).sum()


def inverse_gamma(psi: Array, shape: Any, scale: Any) -> Array:
    """Log density of every noise variance."""
    return shape * jnp.log(scale) - gammaln(shape) - (shape + 1) * jnp.log(psi) - scale / psi
