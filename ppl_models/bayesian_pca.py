r"""Bayesian PCA: probabilistic PCA that learns how many of its columns the data need.

    sigma² ~ InverseGamma(noise_shape, noise_scale),    alpha_j ~ Gamma(precision_shape, precision_rate),
    w_j | alpha_j, sigma² ~ N(0, sigma² / alpha_j I_D),    mu | sigma² ~ N(0, mean_scale² sigma² I_D),
    z ~ N(0, I_q),    x | z ~ N(W z + mu, sigma² I_D).

Automatic relevance determination: each column w_j of the loadings W (D, q) has its own prior precision
alpha_j. A column that explains nothing is drawn to zero, alpha_j grows, and the pull with it; one that
the data need keeps a small alpha_j and hardly feels the prior. So q is only an upper limit;
:func:`effective_dimension` says how many directions are left.

Loadings and mean are measured in noise standard deviations, as in :class:`~ppl_models.ppca.PPCA`
(Bishop's prior has no sigma² there): the prior then does not depend on the data's unit, and
(sigma², W, mu) given alpha and z are one conjugate block. Integrated over alpha_j a column is
multivariate Student t with 2 precision_shape degrees of freedom and scale sigma √(precision_rate /
precision_shape): by default a Cauchy of scale sigma / 10.

The likelihood does not change when W and z are rotated; the prior prefers the rotation in which columns
differ most in length. What stays unidentified exactly are the signs and the order of columns (with
alpha). ``invariants`` are functions that do not feel any of these.

The exact steps of Gibbs sampling are in :mod:`ppl_models.bayesian_pca_steps`, those of variational Bayes in
:mod:`ppl_models.bayesian_pca_variational`.

References
----------
Bishop, "Bayesian PCA", 1999; "Variational principal components", 1999.
Tipping and Bishop, "Probabilistic principal component analysis", 1999.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from numbers import Integral, Real
from types import ModuleType
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpyro
from array_api_compat import array_namespace, device
from jaxtyping import Array, ArrayLike, Float, Int

from ppl_models import bayesian_pca_steps as steps
from ppl_models import bayesian_pca_variational as variational
from ppl_models.linear_gaussian import Moments
from ppl_models.linear_gaussian_em import check_weights
from ppl_models.linear_gaussian_programs import Observed, Weight, _Marginal, _Posterior, joint, validate
from ppl_models.loadings_posterior import complete

Params = dict[str, Float[Array, "..."]]


@dataclass(frozen=True)
class BayesianPCA:
    """Probabilistic PCA whose columns of loadings have precisions of their own.

    Sites: globals ``noise_variance`` (), ``loadings_precision`` (q,), ``loadings`` (D, q), ``mean`` (D,),
    deterministic ``communality`` = diag(W Wᵀ) (D,); local ``z`` (q,); observed ``x`` (D,). ``marginal`` is
    the same program with z integrated out, ``posterior`` the guide p(z | x, globals), ``mean_field`` the
    same program with a fully factorised family for variational Bayes; all are equal for equal models.

    Data may have missing entries, NaN in what ``fit`` is given: they are integrated out exactly
    (``x_observed`` tells the programs and steps which entries are seen). ``sample_weight`` counts rows
    as often as it says; Gibbs, whose rows are drawn, does not take it.

    Parameters
    ----------
    latent_dim
        q, at least 1 and below the number of columns D: more than are expected to matter.
    precision_shape, precision_rate
        Gamma prior of each alpha_j, which is in units of one over the noise variance. A column without
        use ends near alpha_j = (precision_shape + D / 2) / precision_rate at most.
    mean_scale
        Prior standard deviation of the mean, in noise standard deviations.
    noise_shape, noise_scale
        Inverse-gamma prior of the noise variance; the scale has the unit of the data squared.
    ppl
        The engine, ``numpyro`` or ``pyro``.

    Raises
    ------
    ValueError
        If a field is out of range; when run, if ``x`` is not a matrix with more than ``latent_dim``
        columns, ``x_observed`` has another shape, or a start is wanted of fewer than 2 rows.

    References
    ----------
    Bishop, "Bayesian PCA", 1999.
    """

    latent_dim: int
    precision_shape: float = 0.5
    precision_rate: float = 0.005
    mean_scale: float = 100.0
    noise_shape: float = 1.0
    noise_scale: float = 0.01
    ppl: ModuleType = field(default=numpyro, repr=False)

    exchangeable: ClassVar[tuple[str, ...]] = ("loadings_precision",)
    rotated: ClassVar[tuple[str, ...]] = ("loadings",)

    def __post_init__(self) -> None:
        if isinstance(self.latent_dim, bool) or not isinstance(self.latent_dim, Integral) or self.latent_dim < 1:
            raise ValueError(f"BayesianPCA: latent_dim is {self.latent_dim!r}; give a whole number of at least 1.")
        for prior in ("precision_shape", "precision_rate", "mean_scale", "noise_shape", "noise_scale"):
            value = getattr(self, prior)
            if not isinstance(value, Real) or not 0 < float(value) < float("inf"):
                raise ValueError(f"BayesianPCA: {prior} is {value!r}; give a positive finite number.")

    __call__ = joint
    validate = validate
    complete = complete

    def _globals(self, x: Any) -> tuple[Any, Any, Any]:
        """Sample loadings W (D, q), mean mu (D,) and the noise variance sigma², once for every column (D,)."""
        ppl, dist, xp = self.ppl, self.ppl.distributions, array_namespace(x)
        one = xp.ones((x.shape[-1], self.latent_dim), dtype=x.dtype, device=device(x))
        variance = ppl.sample(
            "noise_variance", dist.InverseGamma(self.noise_shape * one[0, 0], self.noise_scale * one[0, 0])
        )
        gamma = dist.Gamma(self.precision_shape * one[0], self.precision_rate * one[0])
        alpha = ppl.sample("loadings_precision", gamma.to_event(1))
        loadings = ppl.sample("loadings", dist.Normal(0 * one, (variance / alpha) ** 0.5 * one).to_event(2))
        noise = variance * one[:, 0]
        mean = ppl.sample("mean", dist.Normal(0 * noise, self.mean_scale * noise**0.5).to_event(1))
        ppl.deterministic("communality", (loadings**2).sum(-1))
        return loadings, mean, noise

    def _pool(self, values: Float[Array, " D"]) -> Float[Array, ""]:
        return values.sum()

    @property
    def marginal(self) -> _Marginal:
        """The same program with z integrated out, a value like the model."""
        return _Marginal(self)

    @property
    def posterior(self) -> _Posterior:
        """The exact p(z | x, globals), a guide; its globals come from the prior. A value like the model."""
        return _Posterior(self)

    @property
    def mean_field(self) -> _MeanField:
        """The same program, its variational steps with q(W) q(mu) q(sigma²) apart. A value like the model."""
        return _MeanField(self)

    def initial(
        self, key: Array, x: Float[Array, "N D"], x_observed: Observed = None, sample_weight: Weight = None
    ) -> Params:
        """Random loadings that explain about half the variance, the data's mean, the other half as noise.

        Parameters
        ----------
        key
            Random key of the loadings.
        x
            Data, shape (N, D).
        x_observed
            Which entries are seen, shape (N, D); all by default.
        sample_weight
            How often each row counts, shape (N,); once by default.

        Returns
        -------
        dict
            A value for every global site, float64.

        Raises
        ------
        ValueError
            If ``x`` is not a matrix of two rows and more than ``latent_dim`` columns, or a weight is negative.
        """
        self.validate(x, x_observed)
        check_weights(self, sample_weight)
        return steps.initial(self, key, x, x_observed, sample_weight)

    def site_values(self, params: Mapping[str, ArrayLike]) -> Params:
        """Parameters as values of the sample sites, which they are; float32."""
        with jax.enable_x64(True):
            return {name: jnp.asarray(value).astype(jnp.float32) for name, value in params.items()}

    def draw(self, key: Array, params: Mapping[str, ArrayLike], statistics: Moments) -> Params:
        """Draw the globals given x and z: (noise, loadings, mean), precisions, then z's symmetries; float64."""
        return steps.draw(self, key, params, statistics)

    def variational_initial(
        self, key: Array, x: Float[Array, "N D"], x_observed: Observed = None, sample_weight: Weight = None
    ) -> variational.Coupled:
        """A q(W, mu | sigma²) q(sigma²) q(alpha) around :meth:`initial`."""
        self.validate(x, x_observed)
        return variational.coupled_initial(self, key, x, x_observed, sample_weight)

    def variational_e_step(
        self,
        q: variational.Factorised | variational.Coupled,
        x: Float[Array, "N D"],
        x_observed: Observed = None,
        sample_weight: Weight = None,
    ) -> tuple[Float[Array, ""], Moments]:
        """Sum over rows of the log normaliser of q(z_n), in nats, and expected statistics; float64."""
        self.validate(x, x_observed, min_rows=0)
        return variational.variational_e_step(q, x, x_observed, sample_weight)

    def variational_m_step(self, q: variational.Coupled, statistics: Moments) -> variational.Coupled:
        """The optimal q(W, mu, sigma²) given the expected statistics, then q(alpha); raises the bound."""
        return variational.coupled_m_step(self, q, statistics)

    def variational_kl(self, q: variational.Factorised | variational.Coupled) -> Float[Array, ""]:
        """KL(q(globals) || p(globals)) in nats, exact."""
        return variational.variational_kl(self, q)

    def variational_draw(self, key: Array, q: variational.Factorised | variational.Coupled) -> Params:
        """One draw of the globals from q, by site name."""
        return variational.variational_draw(key, q)

    def variational_log_prob(
        self, q: variational.Factorised | variational.Coupled, globals: Mapping[str, ArrayLike]
    ) -> Float[Array, ""]:
        """log q of values of the global sites, in nats."""
        return variational.variational_log_prob(q, globals)

    def invariants(
        self, *, loadings: Array, loadings_precision: Array, mean: Array, noise_variance: Array, **others: Array
    ) -> dict[str, Array]:
        """What one draw of the globals says whatever the signs and the order of its columns.

        Returns
        -------
        dict
            ``mean`` (D,), ``noise_variance`` (), ``communality`` diag(W Wᵀ) (D,), ``spectrum`` (q,), the
            eigenvalues of W Wᵀ that are not zero, decreasing, ``effective_dimension`` (), and
            ``sorted_precision`` (q,), increasing. All but the last do not feel a rotation either.
        """
        loadings = jnp.asarray(loadings)
        return {
            "mean": mean,
            "noise_variance": noise_variance,
            "communality": (loadings**2).sum(-1),
            "spectrum": jnp.linalg.svd(loadings, compute_uv=False) ** 2,
            "effective_dimension": effective_dimension(loadings, noise_variance),
            "sorted_precision": jnp.sort(loadings_precision),
        }


def effective_dimension(
    loadings: Float[ArrayLike, "*draws D q"], noise_variance: Float[ArrayLike, "*draws"], threshold: float = 1.0
) -> Int[Array, "*draws"]:
    """How many directions of the loadings hold more than ``threshold`` times the noise variance.

    These are eigenvalues r of W Wᵀ / sigma², so the count does not depend on the rotation of W. A direction
    is worth ½ (r - log(1 + r)) nats a row. Of N rows of pure noise the best direction seems to hold
    r = 2 √(D / N) + D / N, and below r = √(D / N) signal cannot be told from noise: choose a lower threshold for weak
    signals in many rows, and a higher one for fewer rows than columns.

    Parameters
    ----------
    loadings
        W, of a point or of draws, shape (..., D, q).
    noise_variance
        sigma², shape (...).
    threshold
        Smallest ratio of signal to noise variance that counts.

    Returns
    -------
    Array
        Whole numbers from 0 to q, shape (...).

    References
    ----------
    Johnstone, "On the distribution of the largest eigenvalue in principal components analysis", 2001;
    Baik, Ben Arous and Péché, "Phase transition of the largest eigenvalue", 2005.
    """
    loadings, noise = jnp.asarray(loadings), jnp.asarray(noise_variance)
    signal = jnp.linalg.svd(loadings, compute_uv=False) ** 2
    return (signal > threshold * noise[..., None]).sum(-1)


@dataclass(frozen=True)
class _MeanField:
    """The same program, with q(W) q(mu) q(sigma²) q(alpha): Bishop's family, for comparison."""

    model: BayesianPCA

    def __call__(
        self,
        x: Float[Array, "batch D"],
        num_data: int | None = None,
        x_observed: Observed = None,
        sample_weight: Weight = None,
    ) -> Any:
        return self.model(x, num_data, x_observed, sample_weight)

    @property
    def ppl(self) -> ModuleType:
        return self.model.ppl

    @property
    def exchangeable(self) -> tuple[str, ...]:
        return self.model.exchangeable

    @property
    def rotated(self) -> tuple[str, ...]:
        return self.model.rotated

    @property
    def marginal(self) -> _Marginal:
        return self.model.marginal

    @property
    def posterior(self) -> _Posterior:
        return self.model.posterior

    def invariants(self, **globals: Array) -> dict[str, Array]:
        return self.model.invariants(**globals)

    def variational_initial(
        self, key: Array, x: Float[Array, "N D"], x_observed: Observed = None, sample_weight: Weight = None
    ) -> variational.Factorised:
        self.model.validate(x, x_observed)
        return variational.factorised_initial(self.model, key, x, x_observed, sample_weight)

    def variational_e_step(
        self,
        q: variational.Factorised,
        x: Float[Array, "N D"],
        x_observed: Observed = None,
        sample_weight: Weight = None,
    ) -> tuple[Float[Array, ""], Moments]:
        return self.model.variational_e_step(q, x, x_observed, sample_weight)

    def variational_m_step(self, q: variational.Factorised, statistics: Moments) -> variational.Factorised:
        return variational.factorised_m_step(self.model, q, statistics)

    def variational_kl(self, q: variational.Factorised) -> Float[Array, ""]:
        return self.model.variational_kl(q)

    def variational_draw(self, key: Array, q: variational.Factorised) -> Params:
        return self.model.variational_draw(key, q)

    def variational_log_prob(self, q: variational.Factorised, globals: Mapping[str, ArrayLike]) -> Float[Array, ""]:
        return self.model.variational_log_prob(q, globals)
