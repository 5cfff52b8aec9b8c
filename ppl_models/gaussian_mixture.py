r"""Mixtures of Gaussians: every row belongs to one of K components.

    z_n ~ Categorical(weights),    x_n | z_n = k ~ N(means_k, covariances_k),

for rows x_n in D dimensions, with one of four structures of covariance
(:mod:`ppl_models.covariances`). The local posterior is exact, with responsibilities

    r_nk = p(z_n = k | x_n) = weights_k N(x_n | m_k, Σ_k) / p(x_n),
    log p(x_n) = logsumexp_k [log weights_k + log N(x_n | m_k, Σ_k)],

so EM applies: the statistics n_k = sum_n r_nk, sum_n r_nk x_n and a second moment are sums over rows,
and the M-step weighs, centres and spreads the components by them.

Missing entries are integrated out exactly: what is observed of a row is Gaussian in every component, and
the sums hold the conditional mean and covariance of the rest (:mod:`ppl_models.gaussian_kernels`). Rows
may count more than once, or less (``sample_weight``). scikit-learn has neither (issues #4513, #15647).

Degenerate fits follow one rule. A component whose responsibilities add up to less than 1e-10 rows (of all
the weight, where that is less than a row) is empty: its weight becomes zero and stays so, and its mean and
covariance become those of all rows. A component that collapses, onto one point, onto equal rows or into a
subspace, is held up by ``reg_covar``, the smallest variance in any direction; with ``reg_covar=0`` its
likelihood is unbounded, and EM ends with an error that says so. Far from the middle of the data no variance
is below 1e-13 of the squared distance, where float64 sums stop telling it from zero.

Prior: independent parts, conjugate one at a time (semi-conjugate),

    weights ~ Dirichlet(concentration),    means_kd ~ N(mean_loc, mean_scale²),
    precisions ~ Wishart or Gamma, worth ``degrees_of_freedom`` observations of variance ``scale``²;

or, with ``mean_count``, means_k ~ N(mean_loc, covariances_k / mean_count): Normal-Wishart, conjugate for means and
precisions together. Variational Bayes then keeps what the two have to do with each other.

References
----------
Dempster, Laird and Rubin, "Maximum likelihood from incomplete data via the EM algorithm", 1977.
Ghahramani and Jordan, "Supervised learning from incomplete data via an EM approach", 1994.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from numbers import Integral, Real
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpyro
from array_api_compat import array_namespace, device
from jaxtyping import Array, ArrayLike, Bool, Float

from ppl_models import mixture_bayes as bayes
from ppl_models import mixture_gibbs as gibbs
from ppl_models import mixture_variational as variational
from ppl_models.covariances import STRUCTURES, Structure
from ppl_models.mixture_rows import Moments, move, sum_over_rows
from ppl_models.mixture_starts import k_means, k_means_plus_plus, random_responsibilities, random_rows

_EMPTY = 1e-10  # rows; a component with fewer is empty

Params = dict[str, Float[Array, "..."]]


@dataclass(frozen=True)
class GaussianMixture:
    """A mixture of Gaussians.

    Sites: globals ``weights`` (K,), ``means`` (K, D), ``precisions`` and, deterministic, their inverse
    ``covariances``, both of shape (K, D, D) full, (D, D) tied, (K, D) diag or (K,) spherical; local ``z``
    in 0 … K - 1; observed ``x`` (D,). ``posterior`` is the guide p(z | x, globals).

    Parameters
    ----------
    num_components
        K, at least 1.
    covariance
        ``"full"``, ``"tied"``, ``"diag"`` or ``"spherical"``.
    concentration
        Of the Dirichlet prior. Above 1 it keeps every component in use; at 1 or below, components that
        the data do not need empty out, and chains that find that mode wander over the prior
        (Asymptotic behaviour of the posterior distribution in overfitted mixture models, Rousseau and
        Mengersen, 2011).
    mean_loc, mean_scale
        Normal prior of the means' entries, in the unit of the data.
    mean_count
        If given, the means' prior is worth so many rows of their component at ``mean_loc``, whatever ``mean_scale``.
    degrees_of_freedom, scale
        Prior of the precisions: each variance counts as this many observations of variance scale².
    reg_covar
        Added to the variances in the M-step (scikit-learn's default), so that no component collapses
        onto a point.
    ppl
        The engine, ``numpyro`` or ``pyro``.

    Raises
    ------
    ValueError
        If a field is out of range; when run, if ``x`` is not a matrix, or ``sample_weight`` meets Pyro.
    """

    num_components: int
    covariance: str = "full"
    concentration: float = 5.0
    mean_loc: float = 0.0
    mean_scale: float = 10.0
    degrees_of_freedom: float = 3.0
    scale: float = 0.2
    reg_covar: float = 1e-6
    mean_count: float | None = None
    ppl: ModuleType = field(default=numpyro, repr=False)

    def __post_init__(self) -> None:
        if (
            isinstance(self.num_components, bool)
            or not isinstance(self.num_components, Integral)
            or self.num_components < 1
        ):
            raise ValueError(
                f"GaussianMixture: num_components is {self.num_components!r}; give a whole number of at least 1."
            )
        if self.covariance not in STRUCTURES:
            raise ValueError(
                f"GaussianMixture: covariance is {self.covariance!r}; give one of {', '.join(map(repr, STRUCTURES))}."
            )
        for name in ("concentration", "mean_scale", "degrees_of_freedom", "scale"):
            value = getattr(self, name)
            if not isinstance(value, Real) or not 0 < float(value) < float("inf"):
                raise ValueError(f"GaussianMixture: {name} is {value!r}; give a positive number.")
        if self.mean_count is not None and not 0 < self.mean_count < float("inf"):
            raise ValueError(
                f"GaussianMixture: mean_count is {self.mean_count!r}; give a positive number of rows, or None for "
                "means of prior scale mean_scale."
            )
        if not 0 <= self.reg_covar < float("inf"):
            raise ValueError(f"GaussianMixture: reg_covar is {self.reg_covar!r}; give zero or a positive number.")

    def __call__(
        self,
        x: Float[Array, "batch D"],
        num_data: int | None = None,
        x_observed: Bool[Array, "batch D"] | None = None,
        sample_weight: Float[Array, " batch"] | None = None,
    ) -> Any:
        """Sample the globals, z and x; ``x`` is observed (where the mask says, if there is one) and returned."""
        ppl = self.ppl
        weights, means, covariances = self._globals(x)
        normal = self._structure.normal(ppl.distributions, means, covariances, x_observed)
        with ppl.plate("data", num_data or len(x), subsample_size=len(x)), self._counted(sample_weight):
            z = ppl.sample("z", ppl.distributions.Categorical(weights), infer={"enumerate": "parallel"})
            return ppl.sample("x", normal(z), obs=x)

    @property
    def posterior(self) -> _Posterior:
        """The exact p(z | x, globals), a guide; its globals come from the prior. A value like the model."""
        return _Posterior(self)

    def validate(self, x: Any, min_rows: int | None = None, x_observed: Any = None, sample_weight: Any = None) -> None:
        """Raise ValueError unless ``x`` is a matrix of at least ``min_rows`` (K by default) rows; others must fit."""
        shape, least = tuple(x.shape), self.num_components if min_rows is None else min_rows
        if len(shape) != 2 or shape[1] < 1:
            raise ValueError(
                f"GaussianMixture: x has shape {shape}, not (rows, columns); make a single column with "
                "x.reshape(-1, 1), and flatten images to rows."
            )
        if shape[0] < least:
            raise ValueError(
                f"GaussianMixture: x has {shape[0]} rows for {self.num_components} components; give at least one row "
                "a component, or fewer components."
            )
        for name, value, expected in (("x_observed", x_observed, shape), ("sample_weight", sample_weight, shape[:1])):
            if value is not None and tuple(value.shape) != expected:
                raise ValueError(f"GaussianMixture: {name} has shape {tuple(value.shape)}; x takes {expected}.")

    initial = k_means

    def e_step(
        self,
        params: Mapping[str, ArrayLike],
        x: Float[Array, "N D"],
        x_observed: Bool[Array, "N D"] | None = None,
        sample_weight: Float[Array, " N"] | None = None,
    ) -> tuple[Float[Array, ""], Moments]:
        """Log likelihood of all rows and expected sufficient statistics.

        Rows are read in chunks, so that memory stays bounded. Responsibilities are float32, and of more than
        32,768 rows what the full structure whitens; the rest is float64.

        Parameters
        ----------
        params
            ``weights``, ``means``, ``covariances``, of any float dtype.
        x
            Data, shape (N, D).
        x_observed
            Where ``x`` holds a number; elsewhere it is integrated out. A row without any has log
            likelihood 0, and the weights for responsibilities.
        sample_weight
            How many times each row counts.

        Returns
        -------
        tuple
            The sum over rows of log p(x) in nats, and :class:`Moments`; all float64.
        """
        self.validate(x, 1, x_observed, sample_weight)
        with jax.enable_x64(True):
            log_weights = jnp.log(jnp.asarray(params["weights"], jnp.float64))
        means, covariances = params["means"], params["covariances"]
        return sum_over_rows(self._structure, log_weights, means, covariances, x, x_observed, sample_weight)

    def m_step(self, statistics: Moments) -> Params:
        """The parameters (float64) that maximise the expected complete log likelihood.

        ``reg_covar`` is added to the variances, as in scikit-learn; empty components take the mean and
        covariance of all rows, and weight zero.
        """
        with jax.enable_x64(True):
            origin, count, first, second = statistics
            empty = count < _EMPTY * jnp.minimum(count.sum(), 1)
            n = jnp.where(empty, count.sum(), count)
            means = jnp.where(empty[:, None], first.sum(0), first) / n[:, None]
            if not self._structure.shared:
                lost = empty.reshape(-1, *(1,) * (second.ndim - 1))
                second, count = jnp.where(lost, second.sum(0), second), n
            used = jnp.where(empty, 0.0, statistics.count)
            return {
                "weights": used / used.sum(),
                "means": origin + means,
                "covariances": self._structure.estimate(count, means, second, self.reg_covar),
            }

    def combine(self, old: Moments, new: Moments, keep: ArrayLike, add: ArrayLike) -> Moments:
        """keep · old + add · new, sums about the origin of the new: what stepwise EM averages."""
        with jax.enable_x64(True):
            old = move(self._structure, old, new.origin)
            return jax.tree.map(lambda a, b: keep * a + add * b, old, new)._replace(origin=new.origin)

    def num_parameters(self, columns: int) -> int:
        """Free parameters of a mixture of rows with so many columns, for AIC and BIC."""
        k = self.num_components
        return k - 1 + k * columns + self._structure.num_parameters(k, columns)

    def site_values(self, params: Mapping[str, ArrayLike]) -> Params:
        """Values of the sample sites ``weights``, ``means`` and ``precisions`` at these parameters, float32."""
        with jax.enable_x64(True):
            values = {name: jnp.asarray(params[name], jnp.float64) for name in ("weights", "means")}
            precisions = self._structure.inverse(jnp.asarray(params["covariances"], jnp.float64))
            values["precisions"] = self._structure.regular(precisions)
            return {name: value.astype(jnp.float32) for name, value in values.items()}

    def single_precision(self, params: Mapping[str, ArrayLike]) -> Params:
        """These parameters as float32, the covariances of a condition that float32 holds."""
        with jax.enable_x64(True):
            wide = {name: jnp.asarray(value, jnp.float64) for name, value in params.items()}
            wide["covariances"] = self._structure.regular(wide["covariances"])
            return {name: value.astype(jnp.float32) for name, value in wide.items()}

    log_joint = bayes.log_joint
    complete = gibbs.complete
    draw = gibbs.draw
    variational_initial = variational.variational_initial
    variational_e_step = variational.variational_e_step
    variational_m_step = variational.variational_m_step
    variational_kl = variational.variational_kl
    variational_draw = variational.variational_draw
    variational_log_prob = variational.variational_log_prob
    invariants = bayes.invariants
    exchangeable = property(bayes.exchangeable)

    @property
    def _structure(self) -> Structure:
        return STRUCTURES[self.covariance]

    def _globals(self, x: Any) -> tuple[Any, Any, Any]:
        """Sample weights, means and precisions; return weights, means and covariances."""
        self.validate(x, min_rows=0)
        ppl, dist, xp = self.ppl, self.ppl.distributions, array_namespace(x)
        one = xp.ones((self.num_components, x.shape[1]), dtype=x.dtype, device=device(x))
        weights = ppl.sample("weights", dist.Dirichlet(self.concentration * one[:, 0]))
        prior = self._structure.prior(dist, one, self.degrees_of_freedom, self.scale)
        if self.mean_count is None:
            means = ppl.sample("means", dist.Normal(self.mean_loc * one, self.mean_scale * one).to_event(2))
            precisions = ppl.sample("precisions", prior)
            return weights, means, ppl.deterministic("covariances", self._structure.inverse(precisions))
        precisions = ppl.sample("precisions", prior)
        covariances = ppl.deterministic("covariances", self._structure.inverse(precisions))
        normal = self._structure.normal(dist, self.mean_loc * one, covariances / self.mean_count, None)
        means = ppl.sample("means", normal(xp.arange(self.num_components, device=device(x))).to_event(1))
        return weights, means, covariances

    def _counted(self, sample_weight: Any) -> AbstractContextManager[Any]:
        """Within the data plate, count each row as often as its weight says."""
        if sample_weight is None:
            return nullcontext()
        if self.ppl is not numpyro:
            raise ValueError(
                "GaussianMixture: sample_weight is given with ppl=pyro, whose enumeration would raise each term of the "
                "sum over z to that power. Use ppl=numpyro, or repeat rows."
            )
        # Scales must be positive: a weight of zero is next to none.
        return numpyro.handlers.scale(scale=jnp.maximum(sample_weight, jnp.finfo(jnp.float32).tiny))


@dataclass(frozen=True)
class _Posterior:
    """The guide p(z | x, globals) = Categorical(r), its globals drawn from the prior."""

    model: GaussianMixture

    def __call__(
        self,
        x: Float[Array, "batch D"],
        num_data: int | None = None,
        x_observed: Bool[Array, "batch D"] | None = None,
        sample_weight: Float[Array, " batch"] | None = None,
    ) -> Any:
        ppl, xp = self.model.ppl, array_namespace(x)
        weights, means, covariances = self.model._globals(x)
        observed = None if x_observed is None else x_observed[:, None]
        normal = self.model._structure.normal(ppl.distributions, means, covariances, observed)
        k = xp.arange(self.model.num_components, device=device(x))
        with ppl.plate("data", num_data or len(x), subsample_size=len(x)), self.model._counted(sample_weight):
            logits = xp.log(weights) + normal(k).log_prob(x[:, None])  # log p(x, z), (batch, K)
            return ppl.sample("z", ppl.distributions.Categorical(logits=logits))


__all__ = ["GaussianMixture", "Moments", "k_means", "k_means_plus_plus", "random_responsibilities", "random_rows"]
