r"""Exact steps of Bayesian PCA: its conjugate regression, and blocked Gibbs sampling over it.

Notation: h_n = (z_n, 1), so that x_n ~ N(B h_n, sigma² I) with B = [W mu], D rows b_d and k = q + 1
columns; Lambda_0 = diag(alpha_1, ..., alpha_q, 1 / mean_scale²). The prior is
b_d | sigma², alpha ~ N(0, sigma² Lambda_0⁻¹), so given z and alpha everything is one conjugate
regression of x on h, whose sufficient statistics are the sums over rows in :class:`Moments`:

    Lambda = Lambda_0 + sum h hᵀ,    b̄_d = Lambda⁻¹ sum h x_d,
    sigma² ~ InverseGamma(noise_shape + N D / 2,  noise_scale + ½ sum_d (sum x_d² - b̄_dᵀ Lambda b̄_d)),
    b_d | sigma² ~ N(b̄_d, sigma² Lambda⁻¹).

A sweep (:func:`complete`, then :func:`draw`) goes through z | rest; (sigma², B) | z, alpha; alpha | B, sigma²,

    alpha_j ~ Gamma(a + D / 2,  b + ||w_j||² / 2 sigma²),    a, b = precision_shape, precision_rate,

and then along the model's near-symmetries, since given z the loadings hardly move where the noise is
small (by sigma / √N, in a posterior as wide as ||w|| / √N). Each move draws from the posterior
restricted to the orbit of a group under which W z + mu stays as it is (generalised Gibbs, with the
group's invariant measure):

    translation  z + t, mu - W t:          t ~ N(P⁻¹ (Wᵀ mu / (s² sigma²) - sum z), P⁻¹),
                                           P = N I + Wᵀ W / (s² sigma²),  s = mean_scale;
    rotation     of columns i, j of W and of z by theta: with M = Wᵀ W / sigma², log density
                                           -½ (alpha_i - alpha_j) (½ (M_ii - M_jj) cos 2 theta + M_ij sin 2 theta),
                                           a von Mises in 2 theta, moved by one slice step (its slice is an arc);
    scale        z_j √v, w_j / √v, alpha_j v:  v ~ Gamma(N / 2 + a,  ½ sum z_j² + b alpha_j).

References
----------
Liu and Sabatti, "Generalised Gibbs sampler and multigrid Monte Carlo for Bayesian computation", 2000.
Neal, "Slice sampling", 2003.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.linalg import cho_solve, solve_triangular
from jax.scipy.special import digamma
from jaxtyping import Array, ArrayLike, Float

if TYPE_CHECKING:
    from ppl_models.bayesian_pca import BayesianPCA

_CHUNK = 2**20  # float64 numbers held at once (8 MiB) when summing over rows
_FLOOR = 1e-6  # smallest noise variance to start from, relative to the data's

Params = dict[str, Float[Array, "..."]]


class Moments(NamedTuple):
    """Sufficient statistics of (x, z), drawn or expected: float64 sums over rows; those of two sets add."""

    count: Float[Array, ""]
    x: Float[Array, " D"]
    xx: Float[Array, ""]  # of squared norms
    z: Float[Array, " q"]
    xz: Float[Array, "D q"]
    zz: Float[Array, "q q"]

    @property
    def hh(self) -> Float[Array, "k k"]:
        """Sum of h hᵀ, h = (z, 1)."""
        return jnp.block([[self.zz, self.z[:, None]], [self.z[None], self.count[None, None]]])

    @property
    def xh(self) -> Float[Array, "D k"]:
        """Sum of x hᵀ."""
        return jnp.column_stack([self.xz, self.x])


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


def initial(model: BayesianPCA, key: Array, x: Float[Array, "N D"]) -> Params:
    """Random loadings that explain about half the variance, the data's mean, the other half as noise."""
    normal = draw_normal(key, (x.shape[1], model.latent_dim))
    with jax.enable_x64(True):
        total, squares = sum_over_rows(lambda rows, _: (rows.sum(0), (rows**2).sum(0)), x)
        mean = total / len(x)
        variance = jnp.maximum(jnp.mean(squares / len(x) - mean**2), 0.0)
        typical = jnp.where(variance > 1e-12 * jnp.mean(squares) / len(x), variance, 1.0)  # beyond rounding
        noise = jnp.maximum(variance / 2, _FLOOR * typical)
        loadings = normal.astype(jnp.float64) * jnp.sqrt(noise / model.latent_dim)
        return {
            "loadings": loadings,
            "loadings_precision": x.shape[1] * noise / (loadings**2).sum(0),
            "mean": mean,
            "noise_variance": noise,
        }


def complete(key: Array, params: Mapping[str, ArrayLike], x: Float[Array, "N D"]) -> Moments:
    """Draw z_n ~ N(z̄_n, G⁻¹), G = I + WᵀW / sigma², for every row; sums over rows."""
    with jax.enable_x64(True):
        loadings, mean, noise = (
            jnp.asarray(params[name], jnp.float64) for name in ("loadings", "mean", "noise_variance")
        )
        weighted = loadings / noise
        factor = jnp.linalg.cholesky(jnp.eye(loadings.shape[1]) + loadings.T @ weighted)
        gain = cho_solve((factor, True), weighted.T).T

        def terms(rows: Array, chunk: Array) -> Moments:
            spread = draw_normal(jax.random.fold_in(key, chunk), (len(rows), loadings.shape[1])).astype(jnp.float64)
            # G = L Lᵀ: L⁻ᵀ e has covariance G⁻¹
            z = (rows - mean) @ gain + solve_triangular(factor, spread.T, trans=1, lower=True).T
            return moments_of(rows, z)

        return sum_over_rows(terms, x)


def draw(model: BayesianPCA, key: Array, params: Mapping[str, ArrayLike], statistics: Moments) -> Params:
    """Draw sigma², W, mu and alpha given z, then move along translations, rotations and scales of z."""
    keys = jax.random.split(key, 4)
    (columns, size), s = statistics.xz.shape, statistics
    normal = draw_normal(keys[0], (columns, size + 1))
    with jax.enable_x64(True):
        alpha = jnp.asarray(params["loadings_precision"], jnp.float64)
        coefficients, factor, noise = regression(model, alpha, s)
        variance = noise.rate / draw_gamma(keys[1], noise.shape)
        spread = solve_triangular(factor, normal.astype(jnp.float64).T, trans=1, lower=True).T
        coefficients = coefficients + jnp.sqrt(variance) * spread  # b_d ~ N(b̄_d, sigma² Lambda⁻¹)
        loadings, mean = coefficients[:, :-1], coefficients[:, -1]
        shape = jnp.broadcast_to(model.precision_shape + columns / 2, alpha.shape)
        alpha = draw_gamma(keys[2], shape) / (model.precision_rate + 0.5 * (loadings**2).sum(0) / variance)
        keys = jax.random.split(keys[3], 3)
        mean, s = _translate(model, keys[0], loadings, mean, variance, s)
        loadings, s = _rotate(keys[1], loadings, alpha, variance, s)
        v = scale_move(model, s, alpha, lambda g: draw_gamma(keys[2], g.shape) / g.rate)
        return {
            "loadings": loadings / jnp.sqrt(v),
            "loadings_precision": alpha * v,
            "mean": mean,
            "noise_variance": variance,
        }


def _translate(
    model: BayesianPCA, key: Array, loadings: Array, mean: Array, variance: Array, s: Moments
) -> tuple[Array, Moments]:
    weighted = loadings / (model.mean_scale**2 * variance)
    factor = jnp.linalg.cholesky(s.count * jnp.eye(len(s.z)) + loadings.T @ weighted)
    spread = solve_triangular(factor, draw_normal(key, s.z.shape).astype(jnp.float64), trans=1, lower=True)
    t = cho_solve((factor, True), mean @ weighted - s.z) + spread
    outer = jnp.outer(s.z, t)
    zz = s.zz + outer + outer.T + s.count * jnp.outer(t, t)
    return mean - loadings @ t, s._replace(z=s.z + s.count * t, xz=s.xz + jnp.outer(s.x, t), zz=zz)


def _rotate(key: Array, loadings: Array, alpha: Array, variance: Array, s: Moments) -> tuple[Array, Moments]:
    """Turn random disjoint pairs of columns: they do not touch each other, so all pairs move at once."""
    key_pairs, key_level, key_angle = jax.random.split(key, 3)
    pairs = len(alpha) // 2
    i, j = jax.random.permutation(key_pairs, len(alpha))[: 2 * pairs].reshape(2, pairs)
    second = loadings.T @ loadings / variance  # M
    gap = -0.5 * (alpha[i] - alpha[j])
    along, across = gap * 0.5 * (second[i, i] - second[j, j]), gap * second[i, j]
    concentration, mode = jnp.hypot(along, across), jnp.arctan2(across, along)
    # 2 theta - mode = phi has density exp(concentration cos phi), and is -mode now. The slice at height
    # exp(-e) below it is |phi| < A with sin²(A / 2) = sin²(mode / 2) + e / (2 concentration).
    below = jax.random.exponential(key_level, (pairs,), jnp.float32).astype(jnp.float64)
    arc = jnp.sin(mode / 2) ** 2 + below / (2 * jnp.maximum(concentration, 1e-300))
    widest = 2 * jnp.arcsin(jnp.sqrt(jnp.minimum(arc, 1.0)))
    phi = widest * jax.random.uniform(key_angle, (pairs,), jnp.float32, -1.0, 1.0).astype(jnp.float64)
    cos, sin = jnp.cos((phi + mode) / 2), jnp.sin((phi + mode) / 2)
    rotation = jnp.eye(len(alpha)).at[i, i].set(cos).at[j, j].set(cos).at[j, i].set(sin).at[i, j].set(-sin)
    return loadings @ rotation, rotated(s, rotation)


def rotated(s: Moments, rotation: Array) -> Moments:
    """The statistics of Rᵀz."""
    return s._replace(z=s.z @ rotation, xz=s.xz @ rotation, zz=rotation.T @ s.zz @ rotation)


def scale_move(model: BayesianPCA, s: Moments, alpha: Array, choose: Callable[[Gamma], Array]) -> Array:
    """The factor v of each column's precision, chosen from its Gamma(N / 2 + a, ½ sum z_j² + b alpha_j)."""
    shape = jnp.broadcast_to(s.count / 2 + model.precision_shape, alpha.shape)
    return choose(Gamma(shape, 0.5 * jnp.diagonal(s.zz) + model.precision_rate * alpha))


def prior_precision(model: BayesianPCA, alpha: Array) -> Float[Array, " k"]:
    """The diagonal of Lambda_0."""
    return jnp.append(alpha, 1 / model.mean_scale**2)


def regression(model: BayesianPCA, alpha: Array, s: Moments) -> tuple[Array, Array, Gamma]:
    """B̄, the Cholesky factor of Lambda, and the Gamma of tau."""
    factor = jnp.linalg.cholesky(jnp.diag(prior_precision(model, alpha)) + s.hh)
    coefficients = cho_solve((factor, True), s.xh.T).T
    residual = jnp.maximum(s.xx - (coefficients * s.xh).sum(), 0.0)  # negative by rounding only
    shape = model.noise_shape + 0.5 * s.count * len(s.x)
    return coefficients, factor, Gamma(shape, model.noise_scale + 0.5 * residual)


def moments_of(rows: Array, z: Array) -> Moments:
    """The statistics of rows and latents."""
    count = jnp.asarray(len(rows), jnp.float64)
    return Moments(count, rows.sum(0), (rows**2).sum(), z.sum(0), rows.T @ z, z.T @ z)


def sum_over_rows(terms: Callable[[Array, Array], Any], x: Float[Array, "N D"]) -> Any:
    """Sum ``terms(rows, number of the chunk)``, a pytree, over float64 chunks of rows that fit the budget."""
    size = max(1, _CHUNK // x.shape[1])
    chunks = len(x) // size

    def add(total: Any, chunk: Array) -> tuple[Any, None]:
        rows = jax.lax.dynamic_slice_in_dim(x, chunk * size, size).astype(jnp.float64)
        return jax.tree.map(jnp.add, total, terms(rows, chunk)), None

    rest = terms(jnp.asarray(x[chunks * size :], jnp.float64), jnp.asarray(chunks, jnp.int32))
    return jax.lax.scan(add, rest, jnp.arange(chunks, dtype=jnp.int32))[0] if chunks else rest


def draw_normal(key: Array, shape: tuple[int, ...]) -> Array:
    """Standard normals; float32, since float64 bits cannot be drawn in a jit whose x64 is off."""
    return jax.random.normal(key, shape, jnp.float32)


def draw_gamma(key: Array, shape: Array) -> Array:
    """Gamma variates of rate one, of the precision of float32."""
    return jax.random.gamma(key, shape.astype(jnp.float32), dtype=jnp.float32).astype(jnp.float64)
