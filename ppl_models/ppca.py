r"""Probabilistic principal components and factor analysis: a plane in data space, plus noise.

    z ~ N(0, I_q),    x | z ~ N(W z + mu, Psi),    hence    x ~ N(mu, W Wᵀ + Psi),

with ``Psi = sigma² I`` (:class:`PPCA`, one noise variance) or ``Psi = diag(psi)``
(:class:`FactorAnalysis`, one per column). W (D, q) is known only up to a rotation of z;
``communality`` = diag(W Wᵀ), the variance that each column shares with the others, is not.

Local posterior, in the q x q matrix G = I + Wᵀ Psi⁻¹ W (for PPCA, sigma² G = M = WᵀW + sigma² I):

    p(z | x) = N(z̄, G⁻¹),    z̄ = G⁻¹ Wᵀ Psi⁻¹ (x - mu).

Likelihood, by |C| = |Psi| |G| and C⁻¹ = Psi⁻¹ - Psi⁻¹ W G⁻¹ Wᵀ Psi⁻¹ for C = W Wᵀ + Psi:

    -2 log p(x) = D log 2 pi + log|Psi| + log|G| + (x - mu)ᵀ Psi⁻¹ (x - mu) - z̄ᵀ G z̄.

EM. The expected complete log likelihood is a Gaussian regression of x on (z, 1), so its sufficient
statistics are plain sums over rows (chunks add up, in any order):

    N,  sum x,  sum x²,  sum z̄,  sum x z̄ᵀ,  sum E[z zᵀ] = sum z̄ z̄ᵀ + N G⁻¹.

With covariances S_xz = <x z̄ᵀ> - <x><z̄>ᵀ and S_zz = <E[z zᵀ]> - <z̄><z̄>ᵀ, its maximum is

    W = S_xz S_zz⁻¹,    mu = <x> - W <z̄>,    psi = diag(S_xx - W S_xzᵀ),    sigma² = mean(psi).

The noise variance is kept above a millionth of a variance of the data (noise no smaller than a
thousandth of the signal, which is what a float32 Cholesky factor of G bears): of its own column in
factor analysis, of the average column in PPCA and for a column that never varies. The M-step under
this constraint is the clipped one, so EM stays monotone.

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

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from numbers import Integral
from types import ModuleType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpyro
from array_api_compat import array_namespace, device
from jaxtyping import Array, ArrayLike, Float

_FLOOR = 1e-6  # smallest noise variance, relative to the data's
_CONSTANT = 1e-12  # a column whose variance / mean square is below this varies by rounding only
_CHUNK = 2**20  # float64 numbers held at once (8 MiB) when summing over rows

Params = dict[str, Float[Array, "..."]]


class Moments(NamedTuple):
    """Expected sufficient statistics, float64 sums over rows; those of two sets of rows add."""

    count: Float[Array, ""]
    x: Float[Array, " D"]
    xx: Float[Array, " D"]  # of squares
    z: Float[Array, " q"]
    xz: Float[Array, "D q"]
    zz: Float[Array, "q q"]


def _globals(model: PPCA | FactorAnalysis, x: Any) -> tuple[Any, Any, Any]:
    """Sample loadings W (D, q), mean mu (D,) and the noise variance of every column psi (D,)."""
    ppl, dist, xp = model.ppl, model.ppl.distributions, array_namespace(x)
    one = xp.ones((x.shape[-1], model.latent_dim), dtype=x.dtype, device=device(x))
    event = xp.ones(model._noise_event(x.shape[-1]), dtype=x.dtype, device=device(x))
    noise = dist.InverseGamma(model.noise_shape * event, model.noise_scale * event)
    psi = ppl.sample("noise_variance", noise.to_event(event.ndim)) * one[:, 0]
    scale = (psi**0.5)[:, None] * one
    loadings = ppl.sample("loadings", dist.Normal(0 * one, model.loadings_scale * scale).to_event(2))
    mean = ppl.sample("mean", dist.Normal(0 * one[:, 0], model.mean_scale * scale[:, 0]).to_event(1))
    return loadings, mean, psi


@contextmanager
def _rows(model: PPCA | FactorAnalysis, x: Any, num_data: int | None) -> Iterator[None]:
    """The data plate, with matrix products in full float32 (accelerators round the factors by default)."""
    with model.ppl.plate("data", num_data or len(x), subsample_size=len(x)):
        with jax.default_matmul_precision("highest"):
            yield


def _joint(self: PPCA | FactorAnalysis, x: Float[Array, "batch D"], num_data: int | None = None) -> Any:
    """Sample the globals, z and x; ``x`` is observed and returned."""
    _validate(self, x, min_rows=0)
    ppl, dist, xp = self.ppl, self.ppl.distributions, array_namespace(x)
    loadings, mean, psi = _globals(self, x)
    ppl.deterministic("communality", (loadings**2).sum(-1))
    with _rows(self, x, num_data):
        zero = xp.zeros((self.latent_dim,), dtype=x.dtype, device=device(x))
        z = ppl.sample("z", dist.Normal(zero, xp.ones_like(zero)).to_event(1))
        return ppl.sample("x", dist.Normal(mean + z @ loadings.T, psi**0.5).to_event(1), obs=x)


@dataclass(frozen=True)
class _Marginal:
    """The program with z integrated out, x ~ N(mu, W Wᵀ + Psi)."""

    model: PPCA | FactorAnalysis

    def __call__(self, x: Float[Array, "batch D"], num_data: int | None = None) -> Any:
        _validate(self.model, x, min_rows=0)
        ppl = self.model.ppl
        loadings, mean, psi = _globals(self.model, x)
        ppl.deterministic("communality", (loadings**2).sum(-1))
        with _rows(self.model, x, num_data):
            normal = ppl.distributions.LowRankMultivariateNormal(mean, loadings, psi)
            return ppl.sample("x", normal, obs=x)


@dataclass(frozen=True)
class _Posterior:
    """The guide p(z | x, globals) = N(z̄, G⁻¹), its globals drawn from the prior."""

    model: PPCA | FactorAnalysis

    def __call__(self, x: Float[Array, "batch D"], num_data: int | None = None) -> Any:
        _validate(self.model, x, min_rows=0)
        ppl, xp = self.model.ppl, array_namespace(x)
        loadings, mean, psi = _globals(self.model, x)
        with _rows(self.model, x, num_data):
            weighted = loadings / psi[:, None]  # Psi⁻¹ W
            eye = xp.eye(self.model.latent_dim, dtype=x.dtype, device=device(x))
            precision = eye + loadings.T @ weighted  # G = I + Wᵀ Psi⁻¹ W
            gain = array_namespace(precision).linalg.solve(precision, weighted.T).T  # Psi⁻¹ W G⁻¹
            z = ppl.distributions.MultivariateNormal((x - mean) @ gain, precision_matrix=precision)
            return ppl.sample("z", z)


def _initial(self: PPCA | FactorAnalysis, key: Array, x: Float[Array, "N D"]) -> Params:
    """Random loadings that explain about half the variance, the data's mean, the other half as noise.

    Parameters
    ----------
    key
        Random key of the loadings.
    x
        Data, shape (N, D).

    Returns
    -------
    dict
        ``loadings`` (D, q), ``mean`` (D,) and ``noise_variance``, float64.
    """
    _validate(self, x)
    # float32: float64 bits cannot be drawn in a jit whose x64 is off
    normal = jax.random.normal(key, (x.shape[1], self.latent_dim), jnp.float32)
    with jax.enable_x64(True):
        total, squares = _sum_over_rows(lambda rows: (rows.sum(0), (rows**2).sum(0)), x)
        variance = _variance(len(x), total, squares)
        return {
            "loadings": normal * jnp.sqrt(variance / 2 / self.latent_dim)[:, None],
            "mean": total / len(x),
            "noise_variance": self._noise(variance / 2, variance),
        }


def _e_step(
    self: PPCA | FactorAnalysis, params: Mapping[str, ArrayLike], x: Float[Array, "N D"]
) -> tuple[Float[Array, ""], Moments]:
    """Log likelihood of all rows and expected sufficient statistics.

    Parameters
    ----------
    params
        ``loadings`` (D, q), ``mean`` (D,), ``noise_variance`` () or (D,), of any float dtype.
    x
        Data, shape (N, D); read in chunks of rows, so that memory stays bounded.

    Returns
    -------
    tuple
        The sum over rows of log p(x) in nats, and :class:`Moments`; all float64.
    """
    _validate(self, x, min_rows=0)
    with jax.enable_x64(True):
        loadings, mean, psi = (
            jnp.asarray(params[name], jnp.float64) for name in ("loadings", "mean", "noise_variance")
        )
        psi = jnp.broadcast_to(psi, mean.shape)
        weighted = loadings / psi[:, None]
        precision = jnp.eye(self.latent_dim) + loadings.T @ weighted  # G = I + Wᵀ Psi⁻¹ W
        factor = jnp.linalg.cholesky(precision)
        covariance = jax.scipy.linalg.cho_solve((factor, True), jnp.eye(self.latent_dim))
        gain = weighted @ covariance

        def terms(rows: Array) -> tuple[Moments, Array]:
            centred = rows - mean
            z = centred @ gain  # z̄
            moments = Moments(
                count=jnp.asarray(len(rows), jnp.float64),
                x=rows.sum(0),
                xx=(rows**2).sum(0),
                z=z.sum(0),
                xz=rows.T @ z,
                zz=z.T @ z + len(rows) * covariance,  # sum z̄ z̄ᵀ + N G⁻¹
            )
            # (x - mu)ᵀ Psi⁻¹ (x - mu) - z̄ᵀ G z̄
            return moments, (centred**2).sum(0) @ (1 / psi) - ((z @ precision) * z).sum()

        moments, quadratic = _sum_over_rows(terms, x)
        log_det = jnp.log(psi).sum() + 2 * jnp.log(jnp.diagonal(factor)).sum()  # log|Psi| + log|G|
        constant = len(mean) * jnp.log(2 * jnp.pi) + log_det
        return -0.5 * (moments.count * constant + quadratic), moments


def _m_step(self: PPCA | FactorAnalysis, statistics: Moments) -> Params:
    """The parameters (float64) that maximise the expected complete log likelihood."""
    with jax.enable_x64(True):
        count, x, xx, z, xz, zz = statistics
        s_xz = xz / count - jnp.outer(x, z) / count**2  # <x z̄ᵀ> - <x><z̄>ᵀ
        s_zz = zz / count - jnp.outer(z, z) / count**2
        loadings = jnp.linalg.solve(s_zz, s_xz.T).T  # W = S_xz S_zz⁻¹
        variance = _variance(count, x, xx)
        return {
            "loadings": loadings,
            "mean": (x - loadings @ z) / count,  # mu = <x> - W <z̄>
            "noise_variance": self._noise(variance - (loadings * s_xz).sum(-1), variance),
        }


def _sum_over_rows(terms: Callable[[Array], Any], x: Float[Array, "N D"]) -> Any:
    """Sum ``terms(rows)``, a pytree, over float64 chunks of rows that fit the budget."""
    size = max(1, _CHUNK // x.shape[1])
    chunks = len(x) // size

    def add(total: Any, start: Array) -> tuple[Any, None]:
        rows = jax.lax.dynamic_slice_in_dim(x, start, size).astype(jnp.float64)
        return jax.tree.map(jnp.add, total, terms(rows)), None

    rest = terms(jnp.asarray(x[chunks * size :], jnp.float64))
    return jax.lax.scan(add, rest, jnp.arange(chunks) * size)[0] if chunks else rest


def _variance(count: Array | int, total: Array, squares: Array) -> Float[Array, " D"]:
    """Variance of each column, exactly zero where it differs from zero by rounding."""
    variance = squares / count - (total / count) ** 2
    return jnp.where(variance > _CONSTANT * squares / count, variance, 0.0)


def _typical(variance: Float[Array, " D"]) -> Float[Array, ""]:
    """Average variance of the columns, or 1 when none of them varies."""
    average = jnp.mean(variance)
    return jnp.where(average > 0, average, 1.0)


def _check_fields(self: PPCA | FactorAnalysis) -> None:
    name = type(self).__name__
    if not isinstance(self.latent_dim, Integral) or self.latent_dim < 1:
        raise ValueError(f"{name}: latent_dim is {self.latent_dim!r}; give a whole number of at least 1.")
    for prior in ("loadings_scale", "mean_scale", "noise_shape", "noise_scale"):
        if not 0 < getattr(self, prior) < float("inf"):
            raise ValueError(f"{name}: {prior} is {getattr(self, prior)!r}; give a positive finite number.")


def _validate(self: PPCA | FactorAnalysis, x: Float[Array, "N D"], min_rows: int = 2) -> None:
    """Raise ValueError unless ``x`` is a matrix, with more than ``latent_dim`` columns and enough rows."""
    name, shape = type(self).__name__, tuple(x.shape)
    if len(shape) != 2:
        raise ValueError(f"{name}: x has shape {shape}, not (rows, columns); flatten each observation to a row.")
    if shape[1] <= self.latent_dim:
        raise ValueError(
            f"{name}: latent_dim is {self.latent_dim} but x has {shape[1]} columns; the subspace must be "
            "smaller than the data space. Give a latent_dim below the number of columns."
        )
    if shape[0] < min_rows:
        raise ValueError(f"{name}: x has {shape[0]} rows, and a variance takes {min_rows}; give more rows.")


@dataclass(frozen=True)
class PPCA:
    """Probabilistic PCA: a q-dimensional Gaussian subspace with the same noise in every direction.

    Sites: globals ``noise_variance`` (), ``loadings`` (D, q), ``mean`` (D,), deterministic
    ``communality`` (D,); local ``z`` (q,); observed ``x`` (D,). ``marginal`` is the same program with
    z integrated out, ``posterior`` the guide p(z | x, globals); both are equal for equal models.

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
        matrix with more than ``latent_dim`` columns.

    References
    ----------
    Tipping and Bishop, "Probabilistic principal component analysis", 1999.
    """

    latent_dim: int
    loadings_scale: float = 10.0
    mean_scale: float = 100.0
    noise_shape: float = 1.0
    noise_scale: float = 0.01
    ppl: ModuleType = field(default=numpyro, repr=False)

    __post_init__ = _check_fields
    __call__ = _joint
    validate = _validate
    initial = _initial
    e_step = _e_step
    m_step = _m_step

    @property
    def marginal(self) -> _Marginal:
        """The same program with z integrated out, a value like the model."""
        return _Marginal(self)

    @property
    def posterior(self) -> _Posterior:
        """The exact p(z | x, globals), a guide; its globals come from the prior. A value like the model."""
        return _Posterior(self)

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
            ``loadings`` (D, q), ``mean`` (D,), ``noise_variance`` (), of the data's dtype.

        Raises
        ------
        ValueError
            If ``x`` is not a finite matrix of 2 rows and more than ``latent_dim`` columns.
        """
        self.validate(x)
        if not jnp.isfinite(jnp.asarray(x)).all():
            raise ValueError("PPCA: x has NaN or infinite entries; remove or impute them.")
        dtype, q = jnp.asarray(x[:1]).dtype, self.latent_dim
        with jax.enable_x64(True):
            mean = _sum_over_rows(lambda rows: rows.sum(0), x) / len(x)
            covariance = _sum_over_rows(lambda rows: (rows - mean).T @ (rows - mean), x) / len(x)
            values, vectors = jnp.linalg.eigh(covariance)
            values, vectors = values[::-1], vectors[:, ::-1][:, :q]
            noise = self._noise(values[q:], jnp.diagonal(covariance))
            largest = vectors[jnp.argmax(jnp.abs(vectors), axis=0), jnp.arange(q)]
            loadings = vectors * jnp.sign(largest) * jnp.sqrt(jnp.maximum(values[:q] - noise, 0.0))
            params = {"loadings": loadings, "mean": mean, "noise_variance": noise}
            return {name: value.astype(dtype) for name, value in params.items()}

    def _noise_event(self, columns: int) -> tuple[int, ...]:
        return ()

    def _noise(self, residual: Array, variance: Array) -> Float[Array, ""]:
        return jnp.maximum(jnp.mean(residual), _FLOOR * _typical(variance))  # sigma² = mean(psi)


@dataclass(frozen=True)
class FactorAnalysis:
    """Factor analysis: a q-dimensional Gaussian subspace with its own noise in every column.

    Everything as in :class:`PPCA`, but ``noise_variance`` is (D,); the fit does not depend on the
    units of the columns, and there is no closed form.

    References
    ----------
    Rubin and Thayer, "EM algorithms for ML factor analysis", 1982.
    """

    latent_dim: int
    loadings_scale: float = 10.0
    mean_scale: float = 100.0
    noise_shape: float = 1.0
    noise_scale: float = 0.01
    ppl: ModuleType = field(default=numpyro, repr=False)

    __post_init__ = _check_fields
    __call__ = _joint
    validate = _validate
    initial = _initial
    e_step = _e_step
    m_step = _m_step

    @property
    def marginal(self) -> _Marginal:
        """The same program with z integrated out, a value like the model."""
        return _Marginal(self)

    @property
    def posterior(self) -> _Posterior:
        """The exact p(z | x, globals), a guide; its globals come from the prior. A value like the model."""
        return _Posterior(self)

    def _noise_event(self, columns: int) -> tuple[int, ...]:
        return (columns,)

    def _noise(self, residual: Array, variance: Array) -> Float[Array, " D"]:
        return jnp.maximum(residual, _FLOOR * jnp.where(variance > 0, variance, _typical(variance)))
