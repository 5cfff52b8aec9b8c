r"""Variational Bayes for Bayesian PCA: coordinate ascent in two families of q.

In the notation of :mod:`ppl_models.bayesian_pca_steps`, with tau = 1 / sigma², q(z) q(alpha) times either of

    Factorised   q(W) q(mu) q(tau):    w_d ~ N(w̄_d, S_ww), mu_d ~ N(mū_d, S_mm), S block diagonal;
    Coupled      q(B | tau) q(tau):    b_d | tau ~ N(b̄_d, C / tau).

Both enter the rest through E[tau], E[log tau] and the second moment of B in units of the noise,

    E[tau BᵀB] = E[tau] B̄ᵀB̄ + D C,    C = E[tau Cov(b_d | tau)]    (Factorised: C = E[tau] S).

E-step: q(z_n) = N(z̄_n, P⁻¹) with P = I + E[tau WᵀW], z̄_n = P⁻¹ E[tau Wᵀ(x_n - mu)]; its log
normaliser is ½ D (E[log tau] - log 2 pi) - ½ E[tau ||x_n - mu||²] + ½ z̄_nᵀ P z̄_n - ½ log|P|.

M-step: Coupled is the regression with E[alpha] for alpha. Factorised takes in turn
W̄ = (sum (x - mū) zᵀ) Lambda_ww⁻¹ with S_ww = Lambda_ww⁻¹ / E[tau], likewise mu, and then

    q(tau) = Gamma(noise_shape + ½ D (N + k),  noise_scale + ½ E[sum ||x - B h||² + tr(Lambda_0 BᵀB)]).

q(alpha_j) = Gamma(a + D / 2, b + ½ E[tau ||w_j||²]) follows after a rotation of W and z to the
eigenvectors of M = E[tau WᵀW]. No other rotation R has a higher bound once alpha is maximised out:
what is left is minus (a + D / 2) times the sum of log(b + ½ (RᵀMR)_jj), a Schur-concave sum of a diagonal
that the eigenvalues majorise. Last, the scale of each column goes to the mode of its Gibbs move,
v_j = (N / 2 + a) / (½ E[sum z_j²] + b E[alpha_j]). Both keep q in its family and raise the bound, which
would creep without them where the noise is small.

References
----------
Bishop, "Variational principal components", 1999.
Luttinen and Ilin, "Transformations in variational Bayesian factor analysis to speed up learning", 2010.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax.scipy.linalg import cho_solve
from jaxtyping import Array, ArrayLike, Float

from ppl_models.bayesian_pca_steps import (
    Gamma,
    Moments,
    Params,
    draw_gamma,
    draw_normal,
    initial,
    moments_of,
    prior_precision,
    regression,
    rotated,
    scale_move,
    sum_over_rows,
)

if TYPE_CHECKING:
    from ppl_models.bayesian_pca import BayesianPCA


class Factorised(NamedTuple):
    """q(W) q(mu) q(tau) q(alpha): rows of B are N(b̄_d, S), W apart from mu."""

    coefficients: Float[Array, "D k"]  # B̄
    covariance: Float[Array, "k k"]  # S, block diagonal
    noise_precision: Gamma  # tau
    loadings_precision: Gamma  # alpha, (q,)

    @property
    def spread(self) -> Float[Array, "k k"]:
        """C = E[tau] S."""
        return self.noise_precision.mean * self.covariance

    @property
    def log_det(self) -> Float[Array, ""]:
        """E[log|tau Cov(b_d | tau)|]."""
        return jnp.linalg.slogdet(self.covariance)[1] + len(self.covariance) * self.noise_precision.mean_log

    def row_scale(self, noise_variance: Array) -> Array | float:
        """Rows given the noise vary by this times a square root of ``covariance``."""
        return 1.0


class Coupled(NamedTuple):
    """q(W, mu | tau) q(tau) q(alpha): rows of B are N(b̄_d, C / tau)."""

    coefficients: Float[Array, "D k"]  # B̄
    covariance: Float[Array, "k k"]  # C
    noise_precision: Gamma  # tau
    loadings_precision: Gamma  # alpha, (q,)

    @property
    def spread(self) -> Float[Array, "k k"]:
        """C."""
        return self.covariance

    @property
    def log_det(self) -> Float[Array, ""]:
        """E[log|tau Cov(b_d | tau)|]."""
        return jnp.linalg.slogdet(self.covariance)[1]

    def row_scale(self, noise_variance: Array) -> Array | float:
        """Rows given the noise vary by this times a square root of ``covariance``."""
        return jnp.sqrt(noise_variance)


Factors = TypeVar("Factors", Factorised, Coupled)


def factorised_initial(model: BayesianPCA, key: Array, x: Float[Array, "N D"]) -> Factorised:
    """A q around :func:`initial`."""
    start = coupled_initial(model, key, x)
    with jax.enable_x64(True):
        return Factorised(*start)._replace(covariance=start.covariance / start.noise_precision.mean)


def coupled_initial(model: BayesianPCA, key: Array, x: Float[Array, "N D"]) -> Coupled:
    """A q around :func:`initial`."""
    params = initial(model, key, x)
    with jax.enable_x64(True):
        noise, alpha = params["noise_variance"], params["loadings_precision"]
        coefficients = jnp.column_stack([params["loadings"], params["mean"]])
        shape = jnp.asarray(model.noise_shape + x.size / 2, jnp.float64)
        relevance = jnp.full_like(alpha, model.precision_shape + x.shape[1] / 2)
        covariance = jnp.eye(len(alpha) + 1) / len(x)
        return Coupled(coefficients, covariance, Gamma(shape, shape * noise), Gamma(relevance, relevance / alpha))


def variational_e_step(q: Factorised | Coupled, x: Float[Array, "N D"]) -> tuple[Float[Array, ""], Moments]:
    """Sum over rows of the log normaliser of the optimal q(z_n) in nats, and expected statistics."""
    with jax.enable_x64(True):
        tau = q.noise_precision.mean
        loadings, mean = q.coefficients[:, :-1], q.coefficients[:, -1]
        second = _second(q)
        precision = jnp.eye(loadings.shape[1]) + second[:-1, :-1]  # P = I + E[tau WᵀW]
        factor = jnp.linalg.cholesky(precision)
        covariance = cho_solve((factor, True), jnp.eye(len(precision)))
        spread = len(mean) * q.spread[-1]  # of mu: E[tau (mu - mū)ᵀ(B - B̄)]

        def terms(rows: Array, _: Array) -> tuple[Moments, Array]:
            centred = rows - mean
            projected = tau * centred @ loadings - spread[:-1]  # E[tau Wᵀ(x - mu)]
            z = projected @ covariance
            moments = moments_of(rows, z)
            moments = moments._replace(zz=moments.zz + len(rows) * covariance)
            # z̄ᵀ P z̄ - E[tau ||x - mu||²]
            return moments, (projected * z).sum() - tau * (centred**2).sum()

        moments, quadratic = sum_over_rows(terms, x)
        log_det = 2 * jnp.log(jnp.diagonal(factor)).sum()
        constant = len(mean) * (q.noise_precision.mean_log - jnp.log(2 * jnp.pi)) - spread[-1] - log_det
        return 0.5 * (moments.count * constant + quadratic), moments


def coupled_m_step(model: BayesianPCA, q: Coupled, statistics: Moments) -> Coupled:
    """The optimal q(W, mu, tau), then q(alpha), W turned and scaled."""
    with jax.enable_x64(True):
        coefficients, factor, noise = regression(model, q.loadings_precision.mean, statistics)
        covariance = cho_solve((factor, True), jnp.eye(len(factor)))
        q = q._replace(coefficients=coefficients, covariance=covariance, noise_precision=noise)
        return _relevance(model, q, statistics)


def factorised_m_step(model: BayesianPCA, q: Factorised, statistics: Moments) -> Factorised:
    """The optimal q(W), q(mu), q(tau), q(alpha) in turn, W turned and scaled."""
    with jax.enable_x64(True):
        s, tau, mean = statistics, q.noise_precision.mean, q.coefficients[:, -1]
        precision = jnp.diag(prior_precision(model, q.loadings_precision.mean)) + s.hh  # Lambda
        inverse = jnp.linalg.inv(precision[:-1, :-1])
        loadings = (s.xz - jnp.outer(mean, s.z)) @ inverse
        mean = (s.x - loadings @ s.z) / precision[-1, -1]
        covariance = (
            jnp.zeros_like(precision).at[:-1, :-1].set(inverse / tau).at[-1, -1].set(1 / precision[-1, -1] / tau)
        )
        coefficients = jnp.column_stack([loadings, mean])
        columns, k = coefficients.shape
        second = coefficients.T @ coefficients + columns * covariance  # E[BᵀB]
        residual = s.xx - 2 * (coefficients * s.xh).sum() + (precision * second).sum()
        noise = Gamma(model.noise_shape + 0.5 * columns * (s.count + k), model.noise_scale + 0.5 * residual)
        q = q._replace(coefficients=coefficients, covariance=covariance, noise_precision=noise)
        return _relevance(model, q, s)


def _relevance(model: BayesianPCA, q: Factors, s: Moments) -> Factors:
    """Rotate W and z to the principal axes of E[tau WᵀW], set q(alpha), scale each column; in this order."""
    values, vectors = jnp.linalg.eigh(_second(q)[:-1, :-1])
    values, rotation = jnp.maximum(values[::-1], 0.0), vectors[:, ::-1]  # the most relevant column first
    shape = jnp.full_like(values, model.precision_shape + len(q.coefficients) / 2)
    alpha = Gamma(shape, model.precision_rate + 0.5 * values)
    v = scale_move(model, rotated(s, rotation), alpha.mean, lambda g: g.mean)
    turn = jnp.eye(len(values) + 1).at[:-1, :-1].set(rotation / jnp.sqrt(v))
    return q._replace(
        coefficients=q.coefficients @ turn,
        covariance=turn.T @ q.covariance @ turn,
        loadings_precision=Gamma(shape, alpha.rate / v),
    )


def variational_kl(model: BayesianPCA, q: Factorised | Coupled) -> Float[Array, ""]:
    """KL(q(W, mu, tau, alpha) || p) in nats, exact."""
    with jax.enable_x64(True):
        columns, k = q.coefficients.shape
        prior = prior_precision(model, q.loadings_precision.mean)
        prior_log_det = q.loadings_precision.mean_log.sum() - 2 * jnp.log(model.mean_scale)  # E[log|Lambda_0|]
        rows = (prior * jnp.diagonal(_second(q))).sum() - columns * (k + prior_log_det + q.log_det)
        noise = _kl_gamma(q.noise_precision, model.noise_shape, model.noise_scale)
        alpha = _kl_gamma(q.loadings_precision, model.precision_shape, model.precision_rate)
        return 0.5 * rows + noise + alpha.sum()


def variational_draw(key: Array, q: Factorised | Coupled) -> Params:
    """One draw of the globals from q, by site name."""
    key_rows, key_noise, key_alpha = jax.random.split(key, 3)
    normal = draw_normal(key_rows, q.coefficients.shape)
    with jax.enable_x64(True):
        tau, alpha = q.noise_precision, q.loadings_precision
        noise = tau.rate / draw_gamma(key_noise, tau.shape)
        spread = normal.astype(jnp.float64) @ jnp.linalg.cholesky(q.covariance).T
        coefficients = q.coefficients + q.row_scale(noise) * spread
        return {
            "loadings": coefficients[:, :-1],
            "loadings_precision": draw_gamma(key_alpha, alpha.shape) / alpha.rate,
            "mean": coefficients[:, -1],
            "noise_variance": noise,
        }


def variational_log_prob(q: Factorised | Coupled, params: Mapping[str, ArrayLike]) -> Float[Array, ""]:
    """log q of the globals, as values of the sites (so of sigma², not of tau), in nats."""
    with jax.enable_x64(True):
        loadings, alpha, mean, noise = (
            jnp.asarray(params[name], jnp.float64)
            for name in ("loadings", "loadings_precision", "mean", "noise_variance")
        )
        rows = jnp.column_stack([loadings, mean]) - q.coefficients
        scale = q.row_scale(noise) * jnp.linalg.cholesky(q.covariance)
        log_rows = dist.MultivariateNormal(scale_tril=scale).log_prob(rows).sum()
        log_noise = dist.InverseGamma(*q.noise_precision).log_prob(noise)
        return log_rows + log_noise + dist.Gamma(*q.loadings_precision).log_prob(alpha).sum()


def _second(q: Factorised | Coupled) -> Float[Array, "k k"]:
    """E[tau BᵀB] = E[tau] B̄ᵀB̄ + D C."""
    return q.noise_precision.mean * q.coefficients.T @ q.coefficients + len(q.coefficients) * q.spread


def _kl_gamma(q: Gamma, shape: float, rate: float) -> Array:
    prior = dist.Gamma(jnp.full_like(q.shape, shape), jnp.full_like(q.rate, rate))
    return dist.kl_divergence(dist.Gamma(q.shape, q.rate), prior)
