r"""Exact steps of a linear Gaussian model, with any entries missing: what EM, Gibbs and VB share.

    z_n ~ N(0, I_q),    x_nd | z_n ~ N(w_dᵀ z_n + mu_d, psi_d),    x_nd seen where m_nd = 1.

An entry that is not seen integrates to one, so only the seen ones enter, and every row has its own

    G_n = I + sum_d m_nd E[w_d w_dᵀ / psi_d],    h_n = sum_d m_nd E[w_d (x_nd - mu_d) / psi_d],
    q(z_n) = N(z̄_n, G_n⁻¹),    z̄_n = G_n⁻¹ h_n,

    -2 log ∫ N(z | 0, I) exp E[log p(x_n | z)] dz
        = sum_d m_nd (log 2 pi + E[log psi_d] + E[(x_nd - mu_d)² / psi_d]) + log|G_n| - z̄_nᵀ h_n.

The expectations are over the loadings w, the means mu and the noise psi: at known values (EM, Gibbs) this is the
posterior p(z_n | x_n) and the log likelihood log p(x_n); under q(w, mu, psi) it is the optimal q(z_n) of variational
Bayes and its part of the bound. Without missing entries all rows share one G.

What is then learned of column d is a Gaussian regression of the x_nd that are seen on (z_n, 1), so its sufficient
statistics are sums over those rows (and rows count as often as their weight says). They are sums of x - mu rather than
x, mu the mean of the E-step: an origin amid the data, about which an offset of the data costs no digits. The missing
entries need not be guessed on the way, which makes for fewer steps of EM than if they were (Meng and van Dyk, 1997: the
less is augmented, the faster).

References
----------
Tipping and Bishop, "Probabilistic principal component analysis", 1999.
Meng and van Dyk, "The EM algorithm: an old folk-song sung to a fast new tune", 1997.
Ilin and Raiko, "Practical approaches to principal component analysis in the presence of missing values", 2010.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

CHUNK = 2**20  # float64 numbers held at once (8 MiB) when summing over rows
# A column is constant where its variance is at most this times its squared mean: where its standard deviation is half a
# unit in float32's last place, no more than rounding makes.
_CONSTANT = 2.0**-48


class Rows(NamedTuple):
    """Rows of data, which entries of them are seen (all, if None), and how often each counts (once)."""

    x: Float[Array, "batch D"]
    observed: Any = None  # (batch, D), True or 1 where x is seen
    weight: Any = None  # (batch,)

    @property
    def counts(self) -> Float[Array, "batch groups"]:
        """How often each entry counts: one column if all columns are alike, else D."""
        weight = jnp.ones(len(self.x)) if self.weight is None else self.weight
        return weight[:, None] if self.observed is None else weight[:, None] * self.observed


class LatentMoments(NamedTuple):
    """Sums over all rows, whatever is seen of them."""

    count: Float[Array, ""]
    z: Float[Array, " q"]
    zz: Float[Array, "q q"]


class Moments(NamedTuple):
    """Sufficient statistics of (x, z), drawn or expected, float64 sums over rows; about the same origin they add up.

    Those of a column are over the rows in which it is seen: ``groups`` is 1 where every column has the same rows, and D
    where entries are missing.
    """

    origin: Float[Array, " D"]
    count: Float[Array, " groups"]
    x: Float[Array, " D"]  # of x - origin
    xx: Float[Array, " D"]  # of (x - origin)²
    z: Float[Array, "groups q"]
    xz: Float[Array, "D q"]  # of (x - origin) zᵀ
    zz: Float[Array, "groups q q"]
    latent: LatentMoments


class Emission(NamedTuple):
    """What the rows need to know of b = (w, mu) and psi; with known parameters ``covariance`` is zero."""

    precision: Float[Array, " D"]  # E[1 / psi]
    log_noise: Float[Array, " D"]  # E[log psi]
    loadings: Float[Array, "D q"]  # E[w / psi] / E[1 / psi]
    mean: Float[Array, " D"]  # E[mu / psi] / E[1 / psi]
    covariance: Float[Array, "groups q+1 q+1"]  # E[b bᵀ / psi] - E[b / psi] E[b / psi]ᵀ / E[1 / psi]


class Latents(NamedTuple):
    """N(z̄, G⁻¹) of every row; ``factor`` and ``covariance`` have a leading row axis where entries are missing."""

    mean: Float[Array, "batch q"]
    factor: Float[Array, "*batch q q"]  # lower Cholesky factor of G
    covariance: Float[Array, "*batch q q"]  # G⁻¹
    information: Float[Array, "batch q"]  # h = G z̄


def known(params: Mapping[str, ArrayLike]) -> Emission:
    """The emission at known ``loadings`` (D, q), ``mean`` (D,) and ``noise_variance`` () or (D,), float64."""
    loadings, mean, psi = (jnp.asarray(params[name], jnp.float64) for name in ("loadings", "mean", "noise_variance"))
    psi = jnp.broadcast_to(psi, mean.shape)
    size = loadings.shape[1] + 1
    return Emission(1 / psi, jnp.log(psi), loadings, mean, jnp.zeros((1, size, size)))


def latents(emission: Emission, rows: Rows) -> Latents:
    """The Gaussian of each row's z."""
    columns, q = emission.loadings.shape
    weighted = emission.loadings * emission.precision[:, None]  # E[w / psi]
    spread, cross = emission.covariance[:, :q, :q], emission.covariance[:, :q, q]
    centred = rows.x - emission.mean
    if rows.observed is None:
        alike = columns / len(spread)  # columns that one group stands for
        precision = jnp.eye(q) + emission.loadings.T @ weighted + alike * spread.sum(0)
        information = centred @ weighted - alike * cross.sum(0)
    else:
        second = weighted[:, :, None] * emission.loadings[:, None] + spread  # E[w wᵀ / psi]
        precision = jnp.eye(q) + (rows.observed @ second.reshape(columns, q * q)).reshape(-1, q, q)
        cross = jnp.broadcast_to(cross, (columns, q))
        information = (rows.observed * centred) @ weighted - rows.observed @ cross
    factor = jnp.linalg.cholesky(precision)
    covariance = jax.scipy.linalg.cho_solve((factor, True), jnp.broadcast_to(jnp.eye(q), factor.shape))
    return Latents(jnp.matvec(covariance, information), factor, covariance, information)


def log_normaliser(emission: Emission, rows: Rows, given: Latents) -> Float[Array, ""]:
    """Sum over rows of log ∫ N(z | 0, I) exp E[log p(x | z)] dz, in nats."""
    counts = rows.counts
    constant = jnp.log(2 * jnp.pi) + emission.log_noise + emission.covariance[:, -1, -1]
    squares = (counts * (rows.x - emission.mean) ** 2).sum(0)
    log_det = 2 * jnp.log(jnp.diagonal(given.factor, axis1=-2, axis2=-1)).sum(-1)  # log|G|
    local = log_det - (given.mean * given.information).sum(-1)
    local = local.sum() if rows.weight is None else rows.weight @ local
    return -0.5 * ((counts.sum(0) * constant).sum() + squares @ emission.precision + local)


def sums(
    rows: Rows, z: Float[Array, "batch q"], covariance: Float[Array, "*batch q q"], origin: Float[Array, " D"]
) -> tuple[Any, ...]:
    """The fields of :class:`Moments` after ``origin``, under z ~ N(z, covariance)."""
    counts, q = rows.counts, z.shape[1]
    weight = jnp.ones(len(z)) if rows.weight is None else rows.weight
    centred = rows.x - origin
    seen = counts * centred
    spread = jnp.tensordot(weight, covariance, 1) if covariance.ndim == 3 else weight.sum() * covariance
    latent = LatentMoments(weight.sum(), weight @ z, (weight[:, None] * z).T @ z + spread)
    if rows.observed is None:
        first, second = latent.z[None], latent.zz[None]
    else:
        outer = z[:, :, None] * z[:, None] + covariance
        first, second = counts.T @ z, (counts.T @ outer.reshape(-1, q * q)).reshape(-1, q, q)
    return counts.sum(0), seen.sum(0), (seen * centred).sum(0), first, seen.T @ z, second, latent


def moved(s: Moments, origin: Float[Array, " D"]) -> Moments:
    """The same statistics about another origin, where they can be added to others."""
    delta = s.origin - origin  # x - new = (x - old) + delta
    return s._replace(
        origin=origin,
        x=s.x + s.count * delta,
        xx=s.xx + 2 * delta * s.x + s.count * delta**2,
        xz=s.xz + delta[:, None] * s.z,
    )


def apart(s: Moments) -> Moments:
    """The same statistics with a group for every column."""
    groups = len(s.x)
    count, z, zz = (jnp.broadcast_to(v, (groups, *v.shape[1:])) for v in (s.count, s.z, s.zz))
    return s._replace(count=count, z=z, zz=zz)


def expected(emission: Emission, rows: Rows) -> tuple[Float[Array, ""], Moments]:
    """Log normaliser of all rows and their expected sufficient statistics, float64, in bounded memory."""

    def terms(rows: Rows) -> tuple[Array, tuple[Any, ...]]:
        given = latents(emission, rows)
        return log_normaliser(emission, rows, given), sums(rows, given.mean, given.covariance, emission.mean)

    total, found = sum_over_rows(terms, rows, width(rows, emission.loadings.shape[1]))
    return total, Moments(emission.mean, *found)


@jax.jit
def missing(emission: Emission, rows: Rows) -> tuple[Float[Array, "N D"], Float[Array, "N D"]]:
    """Mean and variance of every entry given those of its row that are seen (itself and zero, for those)."""

    def one(row: tuple[Array, Array]) -> tuple[Array, Array]:
        x, observed = row
        given = latents(emission, Rows(x[None], observed[None]))
        loadings = emission.loadings
        mean = emission.mean + loadings @ given.mean[0]
        variance = (loadings @ given.covariance[0] * loadings).sum(-1) + 1 / emission.precision
        return jnp.where(observed > 0, x, mean), jnp.where(observed > 0, 0.0, variance)

    wide = _wide(rows)
    size = max(1, CHUNK // width(rows, emission.loadings.shape[1]))
    return jax.lax.map(one, (wide.x, wide.observed), batch_size=size)


def width(rows: Rows, latent_dim: int) -> int:
    """Float64 numbers that a row takes."""
    return rows.x.shape[1] if rows.observed is None else max(rows.x.shape[1], latent_dim**2)


def regress(s: Moments) -> tuple[Float[Array, "D q"], Float[Array, " D"], Float[Array, " D"]]:
    """Least squares of every column on (z, 1): loadings, mean, and mean squared residual.

    With covariances S_xz = <x z̄ᵀ> - <x><z̄>ᵀ and S_zz = <E[z zᵀ]> - <z̄><z̄>ᵀ over the rows where the column is seen,
    w = S_xz S_zz⁻¹, mu = <x> - w <z̄>, psi = S_xx - w S_xzᵀ. A column that is never seen gets loadings and residual of
    zero, and the origin for its mean.
    """
    columns, groups, q = len(s.x), len(s.count), s.z.shape[1]
    count = jnp.where(s.count > 0, s.count, 1.0)
    z = s.z / count[:, None]
    s_zz = s.zz / count[:, None, None] - z[:, :, None] * z[:, None]
    s_zz = jnp.where((s.count > 0)[:, None, None], s_zz, jnp.eye(q))
    s_xz = s.xz / count[:, None] - (s.x / count)[:, None] * z
    loadings = jnp.linalg.solve(s_zz, s_xz.reshape(groups, -1, q).mT).mT.reshape(columns, q)
    mean = s.origin + s.x / count - (loadings * z).sum(-1)
    return loadings, mean, variance(s) - (loadings * s_xz).sum(-1)


def variance(s: Moments) -> Float[Array, " D"]:
    """Variance of each column, exactly zero where it differs from zero by rounding."""
    count = jnp.where(s.count > 0, s.count, 1.0)
    return _beyond_rounding(s.xx / count - (s.x / count) ** 2, s.origin + s.x / count)


def typical(variance: Float[Array, " D"], count: Float[Array, " groups"] | None = None) -> Float[Array, ""]:
    """Average variance of the columns that are seen, or 1 when none of them varies."""
    seen = jnp.ones_like(variance) if count is None else jnp.broadcast_to(count > 0, variance.shape)
    average = (seen * variance).sum() / jnp.maximum(seen.sum(), 1)
    return jnp.where(average > 0, average, 1.0)


def columns(rows: Rows) -> tuple[Float[Array, " groups"], Float[Array, " D"], Float[Array, " D"]]:
    """Count, mean and variance of each column; mean and variance are zero of one that is never seen."""
    count, total = sum_over_rows(lambda r: (r.counts.sum(0), (r.counts * r.x).sum(0)), rows, rows.x.shape[1])
    divisor = jnp.where(count > 0, count, 1.0)
    mean = total / divisor
    squares = sum_over_rows(lambda r: (r.counts * (r.x - mean) ** 2).sum(0), rows, rows.x.shape[1])
    return count, mean, _beyond_rounding(squares / divisor, mean)


def _beyond_rounding(variance: Float[Array, " D"], mean: Float[Array, " D"]) -> Float[Array, " D"]:
    return jnp.where(variance > _CONSTANT * mean**2, variance, 0.0)


def sum_over_rows(terms: Callable[[Any], Any], rows: Any, width: int) -> Any:
    """Sum ``terms(rows)``, a pytree, over float64 chunks of rows that fit the budget.

    Parameters
    ----------
    terms
        Function of a chunk of ``rows``.
    rows
        Arrays or :class:`Rows`, or a tuple of them.
    width
        Float64 numbers that a row takes.
    """
    leaves = jax.tree.leaves(rows)
    size = max(1, CHUNK // width)
    chunks = len(leaves[0]) // size

    def add(total: Any, start: Array) -> tuple[Any, None]:
        part = jax.tree.map(lambda v: jax.lax.dynamic_slice_in_dim(v, start, size), rows)
        return jax.tree.map(jnp.add, total, terms(_wide(part))), None

    rest = terms(_wide(jax.tree.map(lambda v: v[chunks * size :], rows)))
    return jax.lax.scan(add, rest, jnp.arange(chunks) * size)[0] if chunks else rest


def _wide(rows: Any) -> Any:
    """Rows as float64, entries that are not seen zero."""

    def wide(part: Any) -> Any:
        part = jax.tree.map(lambda v: jnp.asarray(v, jnp.float64), part)
        if isinstance(part, Rows) and part.observed is not None:
            return part._replace(x=jnp.where(part.observed > 0, part.x, 0.0))  # also where it is NaN
        return part

    return jax.tree.map(wide, rows, is_leaf=lambda part: isinstance(part, Rows))
