r"""Probabilistic principal components and factor analysis: a plane in data space, plus noise.

    z ~ N(0, I_q),    x | z ~ N(W z + mu, Psi),    hence    x ~ N(mu, W Wᵀ + Psi),

with ``Psi = sigma² I`` (:class:`PPCA`, one noise variance) or ``Psi = diag(psi)``
(:class:`FactorAnalysis`, one per column). W (D, q) is known only up to a rotation of z;
``communality`` = diag(W Wᵀ), the variance that each column shares with the others, is not.

The local posterior is exact in the q x q matrix G = I + Wᵀ Psi⁻¹ W (for PPCA, sigma² G = M = WᵀW + sigma² I):

    p(z | x) = N(z̄, G⁻¹),    z̄ = G⁻¹ Wᵀ Psi⁻¹ (x - mu),
    -2 log p(x) = D log 2 pi + log|Psi| + log|G| + (x - mu)ᵀ Psi⁻¹ (x - mu) - z̄ᵀ G z̄.

Missing entries (``x_observed`` False) integrate to one: the rows of W, mu and Psi that belong to them are left out
of this row's formulas. The programs are in :mod:`ppl_models.linear_gaussian_programs`, the steps of EM in
:mod:`ppl_models.linear_gaussian_em`, those of Gibbs and of variational Bayes in :mod:`ppl_models.loadings_posterior`.

Prior: conjugate (a Gaussian regression), and free of the data's units given the noise,

    psi ~ InverseGamma(noise_shape, noise_scale),
    W_dj | psi_d ~ N(0, loadings_scale² psi_d),    mu_d | psi_d ~ N(0, mean_scale² psi_d),

that is, loadings within about 10 and means within about 100 noise standard deviations of zero
(centre data that lie farther off). Loadings measured in noise also keep a factor-analysis noise
variance away from zero, where the likelihood piles up (Heywood cases). Only the noise prior has a
unit: it weighs as much as 2 noise_shape = 2 observations with sum of squares 2 noise_scale = 0.02,
and has heavy tails above.

References
----------
Tipping and Bishop, "Probabilistic principal component analysis", 1999.
Rubin and Thayer, "EM algorithms for ML factor analysis", 1982.
Press and Shigemasu, "Bayesian inference in factor analysis", 1989 (the prior).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from numbers import Integral, Real
from types import ModuleType
from typing import TYPE_CHECKING, Any, ClassVar

import jax
import jax.numpy as jnp
import numpyro
from array_api_compat import array_namespace, device
from jaxtyping import Array, ArrayLike, Float

from ppl_models import linear_gaussian as exact
from ppl_models import linear_gaussian_em as em
from ppl_models import loadings_posterior as bayes
from ppl_models.linear_gaussian_programs import _Marginal, _Posterior, joint, validate
from ppl_models.loadings_mean_field import _MeanFieldLoadings

_FLOOR = 1e-6  # smallest noise variance, relative to the data's

Params = dict[str, Float[Array, "..."]]


@dataclass(frozen=True)
class _FactorModel:
    """What the two models share: all but the noise, which ``_noise_event``, ``_pool`` and ``_noise`` describe."""

    latent_dim: int
    loadings_scale: float = 10.0
    mean_scale: float = 100.0
    noise_shape: float = 1.0
    noise_scale: float = 0.01
    ppl: ModuleType = field(default=numpyro, repr=False)

    rotated: ClassVar[tuple[str, ...]] = ("loadings",)  # known up to a rotation of their last axis

    if TYPE_CHECKING:

        def _noise_event(self, columns: int) -> tuple[int, ...]: ...

        def _pool(self, values: Float[Array, " D"]) -> Array: ...

        def _noise(self, residual: Array, variance: Array, count: Array) -> Array: ...

    def __post_init__(self) -> None:
        name = type(self).__name__
        if isinstance(self.latent_dim, bool) or not isinstance(self.latent_dim, Integral) or self.latent_dim < 1:
            raise ValueError(f"{name}: latent_dim is {self.latent_dim!r}; give a whole number of at least 1.")
        for prior in ("loadings_scale", "mean_scale", "noise_shape", "noise_scale"):
            value = getattr(self, prior)
            if not isinstance(value, Real) or not 0 < float(value) < float("inf"):
                raise ValueError(f"{name}: {prior} is {value!r}; give a positive finite number.")

    __call__ = joint
    validate = validate
    initial = em.initial
    e_step = em.e_step
    m_step = em.m_step
    combine = em.combine
    impute = em.impute
    complete = bayes.complete
    draw = bayes.draw
    log_joint = bayes.log_joint
    variational_initial = bayes.variational_initial
    variational_e_step = bayes.variational_e_step
    variational_m_step = bayes.variational_m_step
    variational_kl = bayes.variational_kl
    variational_draw = bayes.variational_draw
    variational_log_prob = bayes.variational_log_prob

    @property
    def marginal(self) -> _Marginal:
        """The same program with z integrated out, a value like the model."""
        return _Marginal(self)

    @property
    def posterior(self) -> _Posterior:
        """The exact p(z | x, globals), a guide; its globals come from the prior. A value like the model."""
        return _Posterior(self)

    @property
    def mean_field(self) -> _MeanFieldLoadings:
        """The same program, its variational Bayes with q(loadings) q(mean) q(noise_variance)."""
        return _MeanFieldLoadings(self)

    def site_values(self, params: Mapping[str, ArrayLike]) -> Params:
        """Values of the sample sites at these parameters: they are the parameters, float32."""
        return {name: jnp.asarray(params[name]).astype(jnp.float32) for name in ("loadings", "mean", "noise_variance")}

    def invariants(
        self,
        loadings: Float[Array, "D q"],
        mean: Float[Array, " D"],
        noise_variance: Float[Array, "..."],
        **others: Any,
    ) -> Params:
        """Functions of one draw of the globals that a rotation of z does not change.

        Returns
        -------
        dict
            ``mean`` (D,), ``noise_variance``, ``communality`` diag(W Wᵀ) (D,), and ``spectrum`` (q,), the
            eigenvalues of W Wᵀ that are not zero, decreasing.
        """
        spectrum = jnp.linalg.svd(loadings, compute_uv=False) ** 2
        communality = (jnp.asarray(loadings) ** 2).sum(-1)
        return {"mean": mean, "noise_variance": noise_variance, "communality": communality, "spectrum": spectrum}

    def _globals(self, x: Any) -> tuple[Any, Any, Any]:
        """Sample loadings W (D, q), mean mu (D,) and the noise variance of every column psi (D,)."""
        ppl, dist, xp = self.ppl, self.ppl.distributions, array_namespace(x)
        one = xp.ones((x.shape[-1], self.latent_dim), dtype=x.dtype, device=device(x))
        event = xp.ones(self._noise_event(x.shape[-1]), dtype=x.dtype, device=device(x))
        noise = dist.InverseGamma(self.noise_shape * event, self.noise_scale * event)
        psi = ppl.sample("noise_variance", noise.to_event(event.ndim)) * one[:, 0]
        scale = (psi**0.5)[:, None] * one
        loadings = ppl.sample("loadings", dist.Normal(0 * one, self.loadings_scale * scale).to_event(2))
        mean = ppl.sample("mean", dist.Normal(0 * one[:, 0], self.mean_scale * scale[:, 0]).to_event(1))
        ppl.deterministic("communality", (loadings**2).sum(-1))
        return loadings, mean, psi


@dataclass(frozen=True)
class PPCA(_FactorModel):
    """Probabilistic PCA: a q-dimensional Gaussian subspace with the same noise in every direction.

    Sites: globals ``noise_variance`` (), ``loadings`` (D, q), ``mean`` (D,), deterministic
    ``communality`` (D,); local ``z`` (q,); observed ``x`` (D,). ``marginal`` is the same program with
    z integrated out, ``posterior`` the guide p(z | x, globals); both are equal for equal models.

    Data may have missing entries, NaN in what ``fit`` is given: they are integrated out exactly
    (``x_observed`` tells the programs and steps which entries are seen). ``sample_weight`` counts rows
    as often as it says; Gibbs, whose rows are drawn, does not take it.

    Parameters
    ----------
    latent_dim
        q, at least 1 and below the number of columns D.
    loadings_scale, mean_scale
        Prior standard deviation of loadings and mean, in noise standard deviations.
    noise_shape, noise_scale
        Inverse-gamma prior of the noise variance; the scale has the unit of the data squared.
    ppl
        The engine, ``numpyro`` or ``pyro``.

    Raises
    ------
    ValueError
        If ``latent_dim`` or a prior hyperparameter is out of range; when run, if ``x`` is not a
        matrix with more than ``latent_dim`` columns, ``x_observed`` has another shape, a variance is
        wanted of fewer than 2 rows, or EM is given a negative ``sample_weight``.

    References
    ----------
    Tipping and Bishop, "Probabilistic principal component analysis", 1999.
    """

    def num_parameters(self, columns: int) -> int:
        """Free parameters for ``columns`` columns of data: loadings up to rotation, mean, one noise variance."""
        return _free_loadings(columns, self.latent_dim) + columns + 1

    def closed_form(self, x: Float[Array, "N D"]) -> Params:
        """Maximum likelihood by eigendecomposition, in float64.

        With S = U diag(l) Uᵀ the covariance of the data (divided by N), l decreasing:
        sigma² = mean(l[q:]), W = U[:, :q] (diag(l[:q]) - sigma² I)^½, mu = <x>. Columns of W come
        by decreasing variance, each with its largest entry positive.

        Parameters
        ----------
        x
            Finite data, shape (N, D). Takes N D² operations and D² memory.

        Returns
        -------
        dict
            ``loadings`` (D, q), ``mean`` (D,), ``noise_variance`` (), of the data's dtype, float32 where
            that is a whole number's.

        Raises
        ------
        ValueError
            If ``x`` is not a finite matrix of 2 rows and more than ``latent_dim`` columns.
        """
        self.validate(x)
        if not jnp.isfinite(jnp.asarray(x)).all():
            raise ValueError(
                "PPCA: x has NaN or infinite entries, and the closed form takes none; EM integrates NaN out: "
                "fit(EM(model), x, key=0)."
            )
        dtype, q = jnp.result_type(jnp.asarray(x[:1]), jnp.float32), self.latent_dim
        with jax.enable_x64(True):
            mean = exact.sum_over_rows(lambda rows: rows.sum(0), x, x.shape[1]) / len(x)
            covariance = exact.sum_over_rows(lambda rows: (rows - mean).T @ (rows - mean), x, x.shape[1]) / len(x)
            values, vectors = jnp.linalg.eigh(covariance)
            values, vectors = values[::-1], vectors[:, ::-1][:, :q]
            noise = self._noise(values[q:], jnp.diagonal(covariance), jnp.ones(1))
            largest = vectors[jnp.argmax(jnp.abs(vectors), axis=0), jnp.arange(q)]
            loadings = vectors * jnp.sign(largest) * jnp.sqrt(jnp.maximum(values[:q] - noise, 0.0))
            params = {"loadings": loadings, "mean": mean, "noise_variance": noise}
            return {name: value.astype(dtype) for name, value in params.items()}

    def _noise_event(self, columns: int) -> tuple[int, ...]:
        return ()

    def _pool(self, values: Float[Array, " D"]) -> Float[Array, ""]:
        return values.sum()

    def _noise(self, residual: Array, variance: Array, count: Array) -> Float[Array, ""]:
        count = jnp.broadcast_to(jnp.where(count.sum() > 0, count, 1.0), residual.shape)
        average = (count * residual).sum() / count.sum()  # sigma² = mean(psi), over the entries that are seen
        return jnp.maximum(average, _FLOOR * exact.typical(variance))


@dataclass(frozen=True)
class FactorAnalysis(_FactorModel):
    """Factor analysis: a q-dimensional Gaussian subspace with its own noise in every column.

    Everything as in :class:`PPCA`, but ``noise_variance`` is (D,); the fit does not depend on the
    units of the columns, and there is no closed form.

    References
    ----------
    Rubin and Thayer, "EM algorithms for ML factor analysis", 1982.
    """

    def num_parameters(self, columns: int) -> int:
        """Free parameters for ``columns`` columns of data: loadings up to rotation, mean, noise variances."""
        return _free_loadings(columns, self.latent_dim) + 2 * columns

    def _noise_event(self, columns: int) -> tuple[int, ...]:
        return (columns,)

    def _pool(self, values: Float[Array, " D"]) -> Float[Array, " D"]:
        return values

    def _noise(self, residual: Array, variance: Array, count: Array) -> Float[Array, " D"]:
        return jnp.maximum(residual, _FLOOR * jnp.where(variance > 0, variance, exact.typical(variance)))


def _free_loadings(columns: int, q: int) -> int:
    return columns * q - q * (q - 1) // 2
