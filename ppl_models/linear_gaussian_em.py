r"""EM for PPCA and factor analysis: the start, the exact steps, and what they say of missing entries.

    E-step    q(z_n) = p(z_n | x_n),    summed up in :class:`~ppl_models.linear_gaussian.Moments`
    M-step    every column's least squares on (z, 1): W, mu, and the mean squared residual for its noise variance

The noise variance is kept above a millionth of a variance of the data (noise no smaller than a thousandth of the
signal, which is what a float32 Cholesky factor of G bears): of its own column in factor analysis, of the average column
in PPCA and for a column that never varies. The M-step under this constraint is the clipped one, so EM stays monotone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, ArrayLike, Float

from ppl_models import linear_gaussian as exact
from ppl_models.linear_gaussian import Moments, Rows
from ppl_models.linear_gaussian_programs import Observed, Weight

if TYPE_CHECKING:
    from ppl_models.ppca import _FactorModel

Params = dict[str, Float[Array, "..."]]


def initial(
    self: _FactorModel,
    key: Array,
    x: Float[Array, "N D"],
    x_observed: Observed = None,
    sample_weight: Weight = None,
) -> Params:
    """Random loadings that explain about half the variance, the data's mean, the other half as noise.

    A column without a value in any row, as may be in the first batch of a stream, starts at mean zero with the variance
    of an average column; without rows that count that is one.

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
        ``loadings`` (D, q), ``mean`` (D,) and ``noise_variance``, float64.

    Raises
    ------
    ValueError
        If ``x`` is not such a matrix, or a weight is negative.
    """
    self.validate(x, x_observed)
    check_weights(self, sample_weight)
    # float32: float64 bits cannot be drawn in a jit whose x64 is off
    normal = jax.random.normal(key, (x.shape[1], self.latent_dim), jnp.float32)

    with jax.enable_x64(True):
        count, mean, variance = exact.columns(Rows(x, x_observed, sample_weight))
        variance = jnp.where(count > 0, variance, exact.typical(variance, count))
        return {
            "loadings": normal * jnp.sqrt(variance / 2 / self.latent_dim)[:, None],
            "mean": mean,
            "noise_variance": self._noise(variance / 2, variance, count),
        }


def e_step(
    self: _FactorModel,
    params: Mapping[str, ArrayLike],
    x: Float[Array, "N D"],
    x_observed: Observed = None,
    sample_weight: Weight = None,
) -> tuple[Float[Array, ""], Moments]:
    """Log likelihood of all rows and expected sufficient statistics.

    Parameters
    ----------
    params
        ``loadings`` (D, q), ``mean`` (D,), ``noise_variance`` () or (D,), of any float dtype.
    x
        Data, shape (N, D); read in chunks of rows, so that memory stays bounded.
    x_observed
        Which entries are seen, shape (N, D); the others are integrated out.
    sample_weight
        How often each row counts, shape (N,).

    Returns
    -------
    tuple
        The sum over rows of log p(x) in nats, and :class:`Moments`; all float64.
    """
    self.validate(x, x_observed, min_rows=0)
    with jax.enable_x64(True):
        return exact.expected(exact.known(params), Rows(x, x_observed, sample_weight))


def m_step(self: _FactorModel, statistics: Moments) -> Params:
    """The parameters (float64) that maximise the expected complete log likelihood.

    A column that has not been seen keeps its mean, and gets loadings of zero and the variance of an average column.
    """
    with jax.enable_x64(True):
        loadings, mean, residual = exact.regress(statistics)
        variance, count = exact.variance(statistics), statistics.count
        average = exact.typical(variance, count)
        residual, variance = (jnp.where(count > 0, v, average) for v in (residual, variance))
        noise = self._noise(residual, variance, count)
        return {"loadings": loadings, "mean": mean, "noise_variance": noise}


def combine(self: _FactorModel, old: Moments, new: Moments, keep: ArrayLike, add: ArrayLike) -> Moments:
    """keep · old + add · new, sums about the origin of the new: what stepwise EM averages.

    Those of every column apart, so that batches with and without missing entries add up to one shape.
    """
    with jax.enable_x64(True):
        old, new = exact.apart(exact.moved(old, new.origin)), exact.apart(new)
        return jax.tree.map(lambda a, b: keep * a + add * b, old, new)._replace(origin=new.origin)


def impute(
    self: _FactorModel,
    params: Mapping[str, ArrayLike],
    x: Float[ArrayLike, "N D"],
    x_observed: Observed = None,
) -> tuple[Float[Array, "N D"], Float[Array, "N D"]]:
    """Mean and variance of the missing entries given the others of their row, E[x | x seen] and Var[x | x seen].

    With z̄ and G of the entries that are seen: mu_d + w_dᵀ z̄ and w_dᵀ G⁻¹ w_d + psi_d.

    Parameters
    ----------
    params
        ``loadings``, ``mean``, ``noise_variance``, such as ``fit(EM(model), x, key=0).params``.
    x
        Data, shape (N, D).
    x_observed
        Which entries are seen; by default those that are not NaN.

    Returns
    -------
    tuple
        Mean and variance, both (N, D), of the data's float dtype; an entry that is seen is its own
        mean and has no variance.
    """
    x = jnp.asarray(x)
    x = x.astype(jnp.result_type(x, jnp.float32))
    seen = ~jnp.isnan(x) if x_observed is None else jnp.asarray(x_observed) != 0
    self.validate(x, seen, min_rows=0)
    rows, columns = np.shape(params["loadings"])[0], x.shape[1]
    if rows != columns:
        raise ValueError(f"{type(self).__name__}: x has {columns} columns, and the loadings are of {rows}.")
    with jax.enable_x64(True):
        mean, variance = exact.missing(exact.known(params), Rows(x, seen))
        return mean.astype(x.dtype), variance.astype(x.dtype)


def check_weights(self: Any, sample_weight: Any) -> None:
    """Refuse negative weights, where values are known: before compiling."""
    if sample_weight is None or isinstance(sample_weight, Tracer):
        return
    weight = np.asarray(sample_weight)
    if not (weight >= 0).all():
        row = np.argmin(weight)
        raise ValueError(
            f"{type(self).__name__}: sample_weight is {weight[row]:g} in row {row}; give how many times each row "
            "counts, zero or more."
        )
