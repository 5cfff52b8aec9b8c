r"""Mixtures of Gaussians: every row belongs to one of K components.

    z_n ~ Categorical(weights),    x_n | z_n = k ~ N(means_k, covariances_k),

for rows x_n in D dimensions, with one of four structures of covariance
(:mod:`ppl_models.covariances`). The local posterior is exact, with responsibilities

    r_nk = p(z_n = k | x_n) = weights_k N(x_n | m_k, Σ_k) / p(x_n),
    log p(x_n) = logsumexp_k [log weights_k + log N(x_n | m_k, Σ_k)],

so EM applies: the statistics n_k = sum_n r_nk, sum_n r_nk x_n and a second moment are sums over rows,
and the M-step weighs, centres and spreads the components by them.

Prior: independent parts, conjugate one at a time (semi-conjugate),

    weights ~ Dirichlet(concentration),    means_kd ~ N(mean_loc, mean_scale²),
    precisions ~ Wishart or Gamma, worth ``degrees_of_freedom`` observations of variance ``scale``².

References
----------
Dempster, Laird and Rubin, "Maximum likelihood from incomplete data via the EM algorithm", 1977.
Arthur and Vassilvitskii, "k-means++: the advantages of careful seeding", 2007.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from numbers import Integral
from types import ModuleType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpyro
from array_api_compat import array_namespace, device
from jaxtyping import Array, ArrayLike, Float

from ppl_models.covariances import STRUCTURES, Structure

_CHUNK = {"cpu": 2**20}  # whitened numbers (K D a row) held at once: what fits a processor's cache
_ACCELERATOR_CHUNK = 2**26  # and what keeps an accelerator busy
_SEEDING_ROWS = 2**14  # k-means sees at most this many rows, drawn at random (or 100 a component)
_LLOYD_STEPS = 10
_HIGHEST = jax.lax.Precision.HIGHEST

Params = dict[str, Float[Array, "..."]]


class Moments(NamedTuple):
    """Expected sufficient statistics, float64 sums over rows; about the same origin they add up."""

    origin: Float[Array, " D"]
    count: Float[Array, " K"]  # n_k = sum r
    first: Float[Array, "K D"]  # sum r (x - origin)
    second: Float[Array, "..."]  # of x - origin, by the structure of the covariances


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
    degrees_of_freedom, scale
        Prior of the precisions: each variance counts as this many observations of variance scale².
    reg_covar
        Added to the variances in the M-step (scikit-learn's default), so that no component collapses
        onto a point. A component that loses all rows keeps weight zero.
    ppl
        The engine, ``numpyro`` or ``pyro``.

    Raises
    ------
    ValueError
        If a field is out of range; when run, if ``x`` is not a matrix.
    """

    num_components: int
    covariance: str = "full"
    concentration: float = 5.0
    mean_loc: float = 0.0
    mean_scale: float = 10.0
    degrees_of_freedom: float = 3.0
    scale: float = 0.2
    reg_covar: float = 1e-6
    ppl: ModuleType = field(default=numpyro, repr=False)

    def __post_init__(self) -> None:
        if not isinstance(self.num_components, Integral) or self.num_components < 1:
            raise ValueError(
                f"GaussianMixture: num_components is {self.num_components!r}; give a whole number of at least 1."
            )
        if self.covariance not in STRUCTURES:
            raise ValueError(
                f"GaussianMixture: covariance is {self.covariance!r}; give one of {', '.join(map(repr, STRUCTURES))}."
            )
        for name in ("concentration", "mean_scale", "degrees_of_freedom", "scale"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ValueError(f"GaussianMixture: {name} is {getattr(self, name)!r}; give a positive number.")
        if not 0 <= self.reg_covar < float("inf"):
            raise ValueError(f"GaussianMixture: reg_covar is {self.reg_covar!r}; give zero or a positive number.")

    def __call__(self, x: Float[Array, "batch D"], num_data: int | None = None) -> Any:
        """Sample the globals, z and x; ``x`` is observed and returned."""
        ppl = self.ppl
        weights, normal = self._globals(x)
        with ppl.plate("data", num_data or len(x), subsample_size=len(x)):
            z = ppl.sample("z", ppl.distributions.Categorical(weights), infer={"enumerate": "parallel"})
            return ppl.sample("x", normal(z), obs=x)

    @property
    def posterior(self) -> _Posterior:
        """The exact p(z | x, globals), a guide; its globals come from the prior. A value like the model."""
        return _Posterior(self)

    def validate(self, x: Float[Array, "N D"], min_rows: int | None = None) -> None:
        """Raise ValueError unless ``x`` is a matrix of at least ``min_rows`` (K by default) rows."""
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

    def initial(self, key: Array, x: Float[Array, "N D"]) -> Params:
        """Parameters to start EM from: k-means, and its pooled covariance for every component.

        k-means++ seeds, ten Lloyd steps, on at most 16,384 rows (or 100 a component) drawn at random.
        Components are in order of the first column of their means, so that independent chains
        mostly agree on the labels.

        Parameters
        ----------
        key
            Random key.
        x
            Data, shape (N, D).

        Returns
        -------
        dict
            ``weights``, ``means``, ``covariances``, float64.

        Raises
        ------
        ValueError
            If ``x`` is not a matrix or has fewer rows than components.
        """
        self.validate(x)
        key_rows, key_seeds = jax.random.split(key)
        rows, size = jnp.asarray(x), max(_SEEDING_ROWS, 100 * self.num_components)
        if len(rows) > size:
            rows = rows[jax.random.randint(key_rows, (size,), 0, len(rows))]
        origin = rows.mean(0)
        rows = rows - origin
        centres = _k_means(key_seeds, rows, self.num_components)
        centres = centres[jnp.argsort(centres[:, 0])]
        labels = _nearest(rows, centres)
        with jax.enable_x64(True):
            rows, origin, centres = (v.astype(jnp.float64) for v in (rows, origin, centres))
            count = jnp.zeros(self.num_components).at[labels].add(1.0) + 1.0  # no weight starts at zero
            residual = rows - centres[labels]
            within = residual.T @ residual / len(rows) + self.reg_covar * jnp.eye(rows.shape[1])
            return {
                "weights": count / count.sum(),
                "means": centres + origin,
                "covariances": self._structure.pooled(within, self.num_components),
            }

    def e_step(self, params: Mapping[str, ArrayLike], x: Float[Array, "N D"]) -> tuple[Float[Array, ""], Moments]:
        """Log likelihood of all rows and expected sufficient statistics.

        Rows are read in chunks, so that memory stays bounded. Products of rows have the precision of
        ``x``; sums over rows are float64.

        Parameters
        ----------
        params
            ``weights``, ``means``, ``covariances``, of any float dtype.
        x
            Data, shape (N, D).

        Returns
        -------
        tuple
            The sum over rows of log p(x) in nats, and :class:`Moments`; all float64.
        """
        self.validate(x, min_rows=1)
        structure = self._structure
        x = jnp.asarray(x)
        x = x.astype(jnp.result_type(x, jnp.float32))  # whole numbers would truncate the whitened rows
        with jax.enable_x64(True):
            weights, means, covariances = (
                jnp.asarray(params[name], jnp.float64) for name in ("weights", "means", "covariances")
            )
            # Rows and means are taken about a point amid the components: offsets cost no digits.
            centre = (weights @ means).astype(x.dtype)
            origin = centre.astype(jnp.float64)
            means = means - origin
            p, log_det = structure.whitener(covariances, means.shape[1])
            constant = jnp.log(weights) + log_det - 0.5 * means.shape[1] * jnp.log(2 * jnp.pi)

            def terms(rows: Array, counts: Array) -> tuple[Array, Array, Array]:
                rows = rows - centre  # (C, D)
                y = structure.whiten(p, means, rows)  # (K, D, C)
                # log p(x, z = k) = log weights_k + log|P_k| - D/2 log 2π - |y_k|²/2
                joint = constant.astype(x.dtype)[:, None] - 0.5 * jnp.sum(y * y, axis=1)
                top = joint.max(0)
                odds = jnp.exp(joint - top)
                total = odds.sum(0)
                r = odds * (counts / total)  # (K, C)
                one = jnp.ones((len(rows), 1))
                first = r.astype(jnp.float64) @ jnp.concatenate([one, rows.astype(jnp.float64)], 1)
                log_likelihood = (counts * (top + jnp.log(total))).astype(jnp.float64).sum()
                return log_likelihood, first, structure.moment(r, y, rows)

            size = _chunk_rows(self.num_components * means.shape[1])
            log_likelihood, first, moment = _sum_over_rows(terms, x, size)
            n, first = first[:, 0], first[:, 1:]
            second = structure.about_origin(moment, covariances, n, first)
            return log_likelihood, Moments(origin, n, first, second)

    def m_step(self, statistics: Moments) -> Params:
        """The parameters (float64) that maximise the expected complete log likelihood.

        ``reg_covar`` is added to the variances, as in scikit-learn.
        """
        with jax.enable_x64(True):
            origin, count, first, second = statistics
            n = count + 10 * jnp.finfo(jnp.float64).eps  # a component without rows stays finite
            means = first / n[:, None]
            return {
                "weights": n / n.sum(),
                "means": origin + means,
                "covariances": self._structure.estimate(n, means, second, self.reg_covar),
            }

    def site_values(self, params: Mapping[str, ArrayLike]) -> Params:
        """Values of the sample sites ``weights``, ``means`` and ``precisions`` at these parameters, float32."""
        with jax.enable_x64(True):
            values = {name: jnp.asarray(params[name], jnp.float64) for name in ("weights", "means")}
            values["precisions"] = self._structure.inverse(jnp.asarray(params["covariances"], jnp.float64))
            return {name: value.astype(jnp.float32) for name, value in values.items()}

    @property
    def _structure(self) -> Structure:
        return STRUCTURES[self.covariance]

    def _globals(self, x: Any) -> tuple[Any, Any]:
        """Sample weights, means and precisions; return the weights and z -> N(means_z, covariances_z)."""
        self.validate(x, min_rows=0)
        ppl, dist, xp = self.ppl, self.ppl.distributions, array_namespace(x)
        one = xp.ones((self.num_components, x.shape[1]), dtype=x.dtype, device=device(x))
        weights = ppl.sample("weights", dist.Dirichlet(self.concentration * one[:, 0]))
        means = ppl.sample("means", dist.Normal(self.mean_loc * one, self.mean_scale * one).to_event(2))
        prior = self._structure.prior(dist, one, self.degrees_of_freedom, self.scale)
        precisions = ppl.sample("precisions", prior)
        covariances = ppl.deterministic("covariances", self._structure.inverse(precisions))
        return weights, self._structure.normal(dist, means, covariances)


@dataclass(frozen=True)
class _Posterior:
    """The guide p(z | x, globals) = Categorical(r), its globals drawn from the prior."""

    model: GaussianMixture

    def __call__(self, x: Float[Array, "batch D"], num_data: int | None = None) -> Any:
        ppl, xp = self.model.ppl, array_namespace(x)
        weights, normal = self.model._globals(x)
        k = xp.arange(self.model.num_components, device=device(x))
        with ppl.plate("data", num_data or len(x), subsample_size=len(x)):
            logits = xp.log(weights) + normal(k).log_prob(x[:, None])  # log p(x, z), (batch, K)
            return ppl.sample("z", ppl.distributions.Categorical(logits=logits))


def _chunk_rows(numbers: int) -> int:
    """Rows of a chunk, for K D numbers a row: enough of them for vectors, and few enough for the cache."""
    return max(256, _CHUNK.get(jax.default_backend(), _ACCELERATOR_CHUNK) // max(numbers, 512))


def _sum_over_rows(terms: Any, x: Float[Array, "N D"], size: int) -> Any:
    """Sum ``terms(rows, counts)``, a pytree, over chunks of ``size`` rows.

    The last chunk ends at the last row and counts 0 for those of the chunk before it.
    """
    n = len(x)
    if n <= size:
        return terms(x, jnp.ones(n, x.dtype))

    def add(total: Any, begin: Array) -> tuple[Any, None]:
        start = jnp.minimum(begin, n - size)
        counts = (start + jnp.arange(size) >= begin).astype(x.dtype)
        return jax.tree.map(jnp.add, total, terms(jax.lax.dynamic_slice_in_dim(x, start, size), counts)), None

    shapes = jax.eval_shape(terms, x[:size], jnp.ones(size, x.dtype))
    zero = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    return jax.lax.scan(add, zero, jnp.arange(0, n, size))[0]


def _k_means(key: Array, x: Float[Array, "N D"], num_components: int) -> Float[Array, "K D"]:
    """Centres by k-means++ and a few Lloyd steps. A centre that loses its rows stays where it is."""
    key_first, key_others = jax.random.split(key)
    first = x[jax.random.randint(key_first, (), 0, len(x))]

    def seed(k: Array, state: tuple[Array, Array]) -> tuple[Array, Array]:
        centres, distance = state
        row = jax.random.categorical(jax.random.fold_in(key_others, k), jnp.log(distance))
        return centres.at[k].set(x[row]), jnp.minimum(distance, jnp.sum((x - x[row]) ** 2, -1))

    start = (jnp.broadcast_to(first, (num_components, x.shape[1])), jnp.sum((x - first) ** 2, -1))
    centres, _ = jax.lax.fori_loop(1, num_components, seed, start)

    def lloyd(_: Array, centres: Array) -> Array:
        member = jax.nn.one_hot(_nearest(x, centres), num_components, dtype=x.dtype)  # (N, K)
        count = member.sum(0)[:, None]
        total = jnp.matmul(member.T, x, precision=_HIGHEST)
        return jnp.where(count > 0, total / jnp.maximum(count, 1), centres)

    return jax.lax.fori_loop(0, _LLOYD_STEPS, lloyd, centres)


def _nearest(x: Float[Array, "N D"], centres: Float[Array, "K D"]) -> Array:
    """argmin_k |x - c_k|² = argmin_k |c_k|² - 2 xᵀ c_k."""
    cross = jnp.matmul(x, centres.T, precision=_HIGHEST)
    return jnp.argmin(jnp.sum(centres**2, -1) - 2 * cross, axis=-1)
