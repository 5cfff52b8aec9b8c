r"""Variational Bayes for Bayesian PCA: coordinate ascent in two families of q.

With B = [W mu], its D rows b_d of k = q + 1 coefficients, Λ0 = diag(alpha_1, ..., alpha_q, 1 / mean_scale²) and
tau = 1 / sigma², q(z) q(alpha) times either of

    Factorised   q(W) q(mu) q(tau):    w_d ~ N(w̄_d, S_ww), mu_d ~ N(mū_d, S_mm), S block diagonal;
    Coupled      q(B | tau) q(tau):    b_d | tau ~ N(b̄_d, C / tau).

S and C are one for all columns, or with missing entries one for each. Both families enter the rest through E[tau],
E[log tau] and C = E[tau Cov(b_d | tau)] (Factorised: C = E[tau] S), as in

    E[tau BᵀB] = E[tau] B̄ᵀB̄ + sum_d C_d.

E-step: :mod:`ppl_models.linear_gaussian`. M-step: Coupled is the regression of :mod:`ppl_models.loadings_posterior`
with E[alpha] for alpha, Factorised the steps of :mod:`ppl_models.loadings_mean_field`.

q(alpha_j) = Gamma(a + D / 2, b + ½ E[tau ||w_j||²]) follows after a rotation of W and z to the
eigenvectors of M = E[tau WᵀW]. No other rotation R has a higher bound once alpha is maximised out:
what is left is minus (a + D / 2) times the sum of log(b + ½ (RᵀMR)_jj), a Schur-concave sum of a diagonal
that the eigenvalues majorise. Last, the scale of each column goes to the mode of its Gibbs move in log v
(:func:`~ppl_models.loadings_moves.relevance_scale`), v_j = (N / 2 + a) / (½ E[sum z_j²] + b E[alpha_j]). Both keep q
in its family and raise the bound, which would creep without them where the noise is small.

References
----------
Bishop, "Variational principal components", 1999.
Luttinen and Ilin, "Transformations in variational Bayesian factor analysis to speed up learning", 2010.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax.scipy.special import digamma
from jaxtyping import Array, ArrayLike, Float

from ppl_models import linear_gaussian as exact
from ppl_models.bayesian_pca_steps import Params, draw_gamma, initial, prior_precision
from ppl_models.linear_gaussian import Emission, Moments, Rows
from ppl_models.loadings_mean_field import update
from ppl_models.loadings_moves import relevance_scale
from ppl_models.loadings_posterior import by_group, normal_log_prob, posterior

if TYPE_CHECKING:
    from ppl_models.bayesian_pca import BayesianPCA


class Gamma(NamedTuple):
    """Gamma distributions by shape and rate."""

    shape: Float[Array, "..."]
    rate: Float[Array, "..."]

    @property
    def mean(self) -> Float[Array, "..."]:
        return self.shape / self.rate

    @property
    def mean_log(self) -> Float[Array, "..."]:
        """E[log]."""
        return digamma(self.shape) - jnp.log(self.rate)


class Factorised(NamedTuple):
    """q(W) q(mu) q(tau) q(alpha): rows of B are N(b̄_d, S), W apart from mu."""

    coefficients: Float[Array, "D k"]  # B̄
    covariance: Float[Array, "groups k k"]  # S, block diagonal
    noise_precision: Gamma  # tau
    loadings_precision: Gamma  # alpha, (q,)

    @property
    def spread(self) -> Float[Array, "groups k k"]:
        """C = E[tau] S."""
        return self.noise_precision.mean * self.covariance

    @property
    def log_det(self) -> Float[Array, " groups"]:
        """E[log|tau Cov(b_d | tau)|]."""
        return jnp.linalg.slogdet(self.covariance)[1] + self.covariance.shape[-1] * self.noise_precision.mean_log

    def row_scale(self, noise_variance: Array) -> Array:
        """Rows given the noise vary by this times a square root of ``covariance``."""
        return jnp.ones_like(noise_variance)


class Coupled(NamedTuple):
    """q(W, mu | tau) q(tau) q(alpha): rows of B are N(b̄_d, C / tau)."""

    coefficients: Float[Array, "D k"]  # B̄
    covariance: Float[Array, "groups k k"]  # C
    noise_precision: Gamma  # tau
    loadings_precision: Gamma  # alpha, (q,)

    @property
    def spread(self) -> Float[Array, "groups k k"]:
        """C."""
        return self.covariance

    @property
    def log_det(self) -> Float[Array, " groups"]:
        """E[log|tau Cov(b_d | tau)|]."""
        return jnp.linalg.slogdet(self.covariance)[1]

    def row_scale(self, noise_variance: Array) -> Array:
        """Rows given the noise vary by this times a square root of ``covariance``."""
        return jnp.sqrt(noise_variance)


Factors = TypeVar("Factors", Factorised, Coupled)


def factorised_initial(
    model: BayesianPCA, key: Array, x: Float[Array, "N D"], x_observed: Any = None, sample_weight: Any = None
) -> Factorised:
    """A q around :func:`initial`."""
    start = coupled_initial(model, key, x, x_observed, sample_weight)
    with jax.enable_x64(True):
        return Factorised(*start)._replace(covariance=start.covariance / start.noise_precision.mean)


def coupled_initial(
    model: BayesianPCA, key: Array, x: Float[Array, "N D"], x_observed: Any = None, sample_weight: Any = None
) -> Coupled:
    """A q around :func:`initial`."""
    params = initial(model, key, x, x_observed, sample_weight)
    with jax.enable_x64(True):
        noise, alpha = params["noise_variance"], params["loadings_precision"]
        coefficients = jnp.column_stack([params["loadings"], params["mean"]])
        shape = jnp.asarray(model.noise_shape + x.size / 2, jnp.float64)
        relevance = jnp.full_like(alpha, model.precision_shape + x.shape[1] / 2)
        groups, k = 1 if x_observed is None else x.shape[1], len(alpha) + 1
        covariance = jnp.broadcast_to(jnp.eye(k) / len(x), (groups, k, k))
        return Coupled(coefficients, covariance, Gamma(shape, shape * noise), Gamma(relevance, relevance / alpha))


def variational_e_step(
    q: Factorised | Coupled, x: Float[Array, "N D"], x_observed: Any = None, sample_weight: Any = None
) -> tuple[Float[Array, ""], Moments]:
    """Sum over rows of the log normaliser of the optimal q(z_n) in nats, and expected statistics."""
    with jax.enable_x64(True):
        tau, mean = q.noise_precision, q.coefficients[:, -1]
        precision, log_noise = (jnp.broadcast_to(v, mean.shape) for v in (tau.mean, -tau.mean_log))
        emission = Emission(precision, log_noise, q.coefficients[:, :-1], mean, q.spread)
        return exact.expected(emission, Rows(x, x_observed, sample_weight))


def coupled_m_step(model: BayesianPCA, q: Coupled, statistics: Moments) -> Coupled:
    """The optimal q(W, mu, tau), then q(alpha), W turned and scaled."""
    with jax.enable_x64(True):
        loc, covariance, shape, scale = posterior(model, prior_precision(model, q.loadings_precision.mean), statistics)
        q = q._replace(coefficients=loc, covariance=covariance, noise_precision=Gamma(shape, scale))
        return _relevance(model, q, statistics)


def factorised_m_step(model: BayesianPCA, q: Factorised, statistics: Moments) -> Factorised:
    """The optimal q(W), q(mu), q(tau), q(alpha) in turn, W turned and scaled."""
    with jax.enable_x64(True):
        prior = prior_precision(model, q.loadings_precision.mean)
        loc, covariance, shape, scale = update(model, prior, q.coefficients, q.noise_precision.mean, statistics)
        q = q._replace(coefficients=loc, covariance=covariance, noise_precision=Gamma(shape, scale))
        return _relevance(model, q, statistics)


def _relevance(model: BayesianPCA, q: Factors, s: Moments) -> Factors:
    """Rotate W and z to the principal axes of E[tau WᵀW], set q(alpha), scale each column; in this order."""
    values, vectors = jnp.linalg.eigh(_second(q)[:-1, :-1])
    values, rotation = jnp.maximum(values[::-1], 0.0), vectors[:, ::-1]  # the most relevant column first
    shape = jnp.full_like(values, model.precision_shape + len(q.coefficients) / 2)
    alpha = Gamma(shape, model.precision_rate + 0.5 * values)
    v = Gamma(*relevance_scale(model, s.latent, rotation, alpha.mean)).mean
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
        log_det = columns * q.log_det.mean()  # sum over columns
        rows = (prior * jnp.diagonal(_second(q))).sum() - columns * (k + prior_log_det) - log_det
        noise = _kl_gamma(q.noise_precision, model.noise_shape, model.noise_scale)
        alpha = _kl_gamma(q.loadings_precision, model.precision_shape, model.precision_rate)
        return 0.5 * rows + noise + alpha.sum()


def variational_draw(key: Array, q: Factorised | Coupled) -> Params:
    """One draw of the globals from q, by site name."""
    key_rows, key_noise, key_alpha = jax.random.split(key, 3)
    normal = jax.random.normal(key_rows, q.coefficients.shape, jnp.float32)
    with jax.enable_x64(True):
        tau, alpha = q.noise_precision, q.loadings_precision
        noise = tau.rate / draw_gamma(key_noise, tau.shape)
        spread = by_group(normal.astype(jnp.float64), jnp.linalg.cholesky(q.covariance).mT)
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
        scale = q.row_scale(noise)
        scaled = (jnp.column_stack([loadings, mean]) - q.coefficients) / scale
        log_rows = normal_log_prob(scaled, q.covariance, 2 * jnp.log(scale))
        log_noise = dist.InverseGamma(*q.noise_precision).log_prob(noise)
        return log_rows + log_noise + dist.Gamma(*q.loadings_precision).log_prob(alpha).sum()


def _second(q: Factorised | Coupled) -> Float[Array, "k k"]:
    """E[tau BᵀB] = E[tau] B̄ᵀB̄ + sum_d C_d."""
    return q.noise_precision.mean * q.coefficients.T @ q.coefficients + len(q.coefficients) * q.spread.mean(0)


def _kl_gamma(q: Gamma, shape: float, rate: float) -> Array:
    prior = dist.Gamma(jnp.full_like(q.shape, shape), jnp.full_like(q.rate, rate))
    return dist.kl_divergence(dist.Gamma(q.shape, q.rate), prior)
