"""K Gaussians at a chunk of rows: log densities, and sums of rows weighed by responsibilities.

What EM, variational Bayes and Gibbs need of the rows of a mixture. Rows x (C, D) and means come about an
origin near the data. Three structures are linear in features of a row, so that both directions are one
float64 product each, log N(x | k) = Theta Phi(x)ᵀ and sum_n r_nk Phi(x_n) = r Phi:

    diag       Phi = (1, x, x²),     Theta = (c, λ m, -λ/2),    c = ½ sum log λ - D/2 log 2π - ½ sum λ m²
    spherical  Phi = (1, x, |x|²)    and the same Theta
    tied       Phi = (1, y), y = P x with PᵀP = Λ; the term -|y|²/2 is common to all components

For the full structure Phi would be D²/2 numbers. It whitens the rows for every component instead,
y_k = P_k (x - m_k), in the precision of x. In a component's own units float32 suffices, unless Σ is singular
to that precision.

Entries that are missing (m = 0 where they are, x = 0 there) are integrated out exactly. Diagonal structures stay
linear, in Phi = (1, m, m x, m x²). For matrices, with Σ' = m mᵀ ∘ Σ + diag(1 - m), the observed block's inverse,
padded by zeros, is G = m mᵀ ∘ Σ'⁻¹, and

    -2 log N(x_obs) = (x - m)ᵀ G (x - m) + log|Σ'| + |m| log 2π,
    E[x | x_obs, k] = m_k + Σ G (x - m_k) where missing,    Cov[x | x_obs, k] = Σ - Σ G Σ,

so that sum_n r_nk Cov = n_k Σ - Σ (sum_n r_nk G_n) Σ.

References
----------
Ghahramani and Jordan, "Supervised learning from incomplete data via an EM approach", 1994.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

_HIGHEST = jax.lax.Precision.HIGHEST  # accelerators round the float32 factors of a product by default
_LOG_2PI = 1.8378770664093453


class Kernel(NamedTuple):
    """Components at given means and covariances; everything about one origin.

    Attributes
    ----------
    log_prob
        Rows of a chunk to log N(x_n | m_k, Σ_k), (K, C), and what :attr:`sums` takes over from it. Rows are
        x (C, D), or the pair of x and a mask (C, D) of the entries that are observed.
    sums
        ``(r, rows, taken over)`` to sums over the chunk, for responsibilities r (K, C).
    moments
        Added up sums to float64 n (K,), sum r x (K, D) and the structure's second moment.
    """

    log_prob: Callable[[Any], tuple[Float[Array, "K C"], Any]]
    sums: Callable[[Array, Any, Any], Any]
    moments: Callable[[Any], tuple[Array, Array, Array]]


def whitener(covariances: Float[Array, "*K D D"]) -> tuple[Float[Array, "*K D D"], Float[Array, "*K"]]:
    """P = L⁻¹ for Σ = L Lᵀ, and log|P|."""
    root = jnp.linalg.cholesky(covariances)
    p = jax.scipy.linalg.solve_triangular(root, jnp.broadcast_to(jnp.eye(root.shape[-1]), root.shape), lower=True)
    return p, jnp.log(jnp.diagonal(p, axis1=-2, axis2=-1)).sum(-1)


def _with_one(x: Float[Array, "C D"]) -> Float[Array, "C D+1"]:
    return jnp.concatenate([jnp.ones((len(x), 1), x.dtype), x], axis=1)


def _outer(vectors: Float[Array, "K D"]) -> Float[Array, "K D D"]:
    return vectors[:, :, None] * vectors[:, None]


def full(means: Float[Array, "K D"], covariances: Float[Array, "K D D"]) -> Kernel:
    """Whitened rows are laid out (K, D, C), so that sums over dimensions run down contiguous vectors."""
    k, d = means.shape
    p, log_det = whitener(covariances)
    constant = log_det - 0.5 * d * _LOG_2PI
    affine = jnp.concatenate([-(p @ means[..., None]), p], axis=2).reshape(k * d, 1 + d)  # [-P m, P]

    def log_prob(x: Float[Array, "C D"]) -> tuple[Array, Array]:
        y = jnp.matmul(affine.astype(x.dtype), _with_one(x).T, precision=_HIGHEST).reshape(k, d, -1)
        return constant.astype(x.dtype)[:, None] - 0.5 * jnp.sum(y * y, axis=1), y

    def sums(r: Array, x: Array, y: Array) -> tuple[Array, Array, Array]:
        product = jnp.matmul(y * r[:, None].astype(y.dtype), y.mT, precision=_HIGHEST)  # sum r y yᵀ
        r = r.astype(jnp.float64)
        return r.sum(1), r @ x.astype(jnp.float64), product.astype(jnp.float64)

    def moments(total: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        """sum r x xᵀ = L (sum r y yᵀ - s sᵀ / n) Lᵀ + f fᵀ / n, as x = L y + m; f = sum r x, s = P (f - n m).

        Rounding of sum r y yᵀ is small beside the variance in every direction, however small that is.
        """
        n, f, product = total
        inverse = 1 / jnp.where(n > 0, n, 1)[:, None, None]
        s = (p @ (f - n[:, None] * means)[..., None])[..., 0]
        root = jnp.linalg.cholesky(covariances)
        second = root @ (product - _outer(s) * inverse) @ root.mT + _outer(f) * inverse
        return n, f, (second + second.mT) / 2

    return Kernel(log_prob, sums, moments)


def tied(means: Float[Array, "K D"], covariance: Float[Array, "D D"]) -> Kernel:
    """Rows are whitened once for all components; the second moment is sum x xᵀ whatever the responsibilities."""
    p, log_det = whitener(covariance)
    centres = means @ p.T
    constant = log_det - 0.5 * means.shape[1] * _LOG_2PI - 0.5 * (centres**2).sum(1)

    def log_prob(x: Float[Array, "C D"]) -> tuple[Array, Array]:
        x = x.astype(jnp.float64)
        y = x @ p.T
        return constant[:, None] + centres @ y.T - 0.5 * (y**2).sum(1), x

    def sums(r: Array, _: Any, x: Array) -> tuple[Array, Array, Array]:
        r = r.astype(jnp.float64)
        return r.sum(1), r @ x, (x * r.sum(0)[:, None]).T @ x

    return Kernel(log_prob, sums, lambda total: total)


def diag(means: Float[Array, "K D"], variances: Float[Array, "K D"]) -> Kernel:
    """Linear in (1, x, x²)."""
    return _linear(means, variances, lambda x: x**2)


def spherical(means: Float[Array, "K D"], variances: Float[Array, " K"]) -> Kernel:
    """Linear in (1, x, |x|²)."""
    kernel = _linear(means, variances[:, None], lambda x: (x**2).sum(1, keepdims=True))
    return kernel._replace(moments=lambda total: (*total[:2], total[2][:, 0]))


def _linear(means: Array, variances: Array, squares: Callable[[Array], Array]) -> Kernel:
    """Products with each part of Phi by itself: joining the parts costs as much as the products."""
    wide = jnp.broadcast_to(variances, means.shape)
    constant = -0.5 * (_LOG_2PI + jnp.log(wide) + means**2 / wide).sum(1, keepdims=True)
    slope, curvature = means / wide, -0.5 / variances

    def log_prob(x: Float[Array, "C D"]) -> tuple[Array, tuple[Array, Array]]:
        x = x.astype(jnp.float64)
        xx = squares(x)
        return constant + slope @ x.T + curvature @ xx.T, (x, xx)

    def sums(r: Array, _: Any, found: tuple[Array, Array]) -> tuple[Array, Array, Array]:
        r = r.astype(jnp.float64)
        return r.sum(1), r @ found[0], r @ found[1]

    return Kernel(log_prob, sums, lambda total: total)


def full_with_holes(means: Float[Array, "K D"], covariances: Float[Array, "K D D"]) -> Kernel:
    """One factorisation for every row and component."""

    def moments(total: tuple[Array, Array, Array, Array]) -> tuple[Array, Array, Array]:
        n, first, scatter, g = total
        return n, first, scatter + n[:, None, None] * covariances - covariances @ g @ covariances

    def sums(r: Array, _: Any, found: tuple[Array, Array]) -> tuple[Array, Array, Array, Array]:
        g, filled = found
        r, filled = r.astype(jnp.float64), filled.swapaxes(0, 1)  # (K, C), (K, C, D)
        weighed = (filled * r[..., None]).mT
        return r.sum(1), weighed.sum(-1), weighed @ filled, jnp.einsum("kc,ckij->kij", r, g)

    return Kernel(_observed_log_prob(means, covariances), sums, moments)


def tied_with_holes(means: Float[Array, "K D"], covariance: Float[Array, "D D"]) -> Kernel:
    """One factorisation for every row."""

    def moments(total: tuple[Array, Array, Array, Array]) -> tuple[Array, Array, Array]:
        n, first, scatter, g = total
        return n, first, scatter + n.sum() * covariance - covariance @ g @ covariance

    def sums(r: Array, _: Any, found: tuple[Array, Array]) -> tuple[Array, Array, Array, Array]:
        g, filled = found
        r, filled = r.astype(jnp.float64), filled.swapaxes(0, 1)  # (K, C), (K, C, D)
        weighed = (filled * r[..., None]).mT
        scatter = (weighed @ filled).sum(0)
        return r.sum(1), weighed.sum(-1), scatter, jnp.tensordot(r.sum(0), g[:, 0], 1)

    return Kernel(_observed_log_prob(means, covariance[None]), sums, moments)


def _observed_log_prob(means: Array, covariances: Float[Array, "K|1 D D"]) -> Callable[[Any], tuple[Array, Any]]:
    """Log density of what is observed, and G (C, K or 1, D, D) with the filled-in rows (C, K, D)."""
    eye = jnp.eye(means.shape[1])

    def log_prob(rows: tuple[Array, Array]) -> tuple[Array, tuple[Array, Array]]:
        x, m = (v.astype(jnp.float64) for v in rows)
        both = (m[:, :, None] * m[:, None])[:, None]  # m mᵀ, (C, 1, D, D)
        root = jnp.linalg.cholesky(both * covariances + eye * (1 - m)[:, None, None])  # of Σ'
        g = both * jax.scipy.linalg.cho_solve((root, True), jnp.broadcast_to(eye, root.shape))
        residual = (x[:, None] - means) * m[:, None]  # (C, K, D)
        solved = (g @ residual[..., None])[..., 0]
        log_det = 2 * jnp.log(jnp.diagonal(root, axis1=-2, axis2=-1)).sum(-1)
        filled = jnp.where(m[:, None] > 0, x[:, None], means + (covariances @ solved[..., None])[..., 0])
        log_prob = -0.5 * ((residual * solved).sum(-1) + log_det + m.sum(1, keepdims=True) * _LOG_2PI)
        return log_prob.T, (g, filled)

    return log_prob


def diag_with_holes(means: Float[Array, "K D"], variances: Float[Array, "K D"]) -> Kernel:
    """Linear in (m, m x, m x²); a missing entry has the component's own mean and variance."""
    constant = -0.5 * (_LOG_2PI + jnp.log(variances) + means**2 / variances)

    def log_prob(rows: tuple[Array, Array]) -> tuple[Array, tuple[Array, Array]]:
        x, m = (v.astype(jnp.float64) for v in rows)
        return constant @ m.T + (means / variances) @ x.T - 0.5 / variances @ (x**2).T, (x, m)

    def sums(r: Array, _: Any, found: tuple[Array, Array]) -> tuple[Array, Array, Array, Array]:
        r, (x, m) = r.astype(jnp.float64), found
        return r.sum(1), r @ m, r @ x, r @ x**2

    def moments(total: tuple[Array, Array, Array, Array]) -> tuple[Array, Array, Array]:
        n, seen, first, second = total
        missing = n[:, None] - seen
        return n, first + missing * means, second + missing * (means**2 + variances)

    return Kernel(log_prob, sums, moments)


def spherical_with_holes(means: Float[Array, "K D"], variances: Float[Array, " K"]) -> Kernel:
    """As the diagonal, with equal variances."""
    kernel = diag_with_holes(means, jnp.broadcast_to(variances[:, None], means.shape))

    def moments(total: Array) -> tuple[Array, Array, Array]:
        n, first, second = kernel.moments(total)
        return n, first, second.sum(1)

    return kernel._replace(moments=moments)
