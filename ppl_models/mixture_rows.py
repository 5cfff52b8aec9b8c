"""One pass over the rows of a mixture: assign every row to components, and sum up. In bounded memory.

    log p(x_n, k) = log weights_k + log N(x_n | m_k, Σ_k),    r_nk = p(k | x_n),    log p(x_n) = logsumexp_k

EM takes parameters for the weights and Gaussians; variational Bayes takes its expected log weights (any
constant a component) and expected precisions; Gibbs draws one component a row in place of r.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool, Float

from ppl_models.covariances import Structure

_CHUNK = {"cpu": 2**20}  # numbers held at once: what fits a processor's cache
_ACCELERATOR_CHUNK = 2**26  # and what keeps an accelerator busy
_PRECISE_ROWS = 2**15  # up to here whitened rows are float64: singular covariances take it, and time does not matter


class Moments(NamedTuple):
    """Expected sufficient statistics, float64 sums over rows; about the same origin they add up."""

    origin: Float[Array, " D"]
    count: Float[Array, " K"]  # n_k = sum r
    first: Float[Array, "K D"]  # sum r (x - origin)
    second: Float[Array, "..."]  # of x - origin, by the structure of the covariances


def responsibilities(log_joint: Float[Array, "K C"], start: Array) -> tuple[Float[Array, "K C"], Float[Array, " C"]]:
    """r (float32, in which exponentials are fast) and log p(x) for a chunk that begins at row ``start``."""
    top = log_joint.max(0)
    odds = jnp.exp((log_joint - top).astype(jnp.float32))
    total = odds.sum(0)
    return odds / total, top + jnp.log(total).astype(top.dtype)


def sum_over_rows(
    structure: Structure,
    log_weights: ArrayLike,
    means: ArrayLike,
    covariances: ArrayLike,
    x: Float[Array, "N D"],
    x_observed: Bool[Array, "N D"] | None = None,
    sample_weight: Float[Array, " N"] | None = None,
    assign: Callable[[Array, Array], tuple[Array, Array]] = responsibilities,
) -> tuple[Float[Array, ""], Moments]:
    """Sum over rows of log p(x_n) in nats, and the moments; all float64.

    Parameters
    ----------
    structure
        Of the covariances.
    log_weights, means, covariances
        The components, shapes (K,), (K, D) and by the structure; any float dtype.
    x
        Data. Of more than 32,768 rows, the full structure whitens rows in float32.
    x_observed
        Where ``x`` holds a number; the other entries are integrated out.
    sample_weight
        How many times each row counts.
    assign
        ``(log p(x, k), first row of the chunk)`` to responsibilities and what is summed.
    """
    x = jnp.asarray(x)
    x = x.astype(jnp.result_type(x, jnp.float32))  # whole numbers would truncate the whitened rows
    with jax.enable_x64(True):
        log_weights, means, covariances = (jnp.asarray(v, jnp.float64) for v in (log_weights, means, covariances))
        x = x.astype(jnp.float64) if len(x) <= _PRECISE_ROWS else x
        k, d = means.shape
        holes = x_observed is not None
        # What a row fills in the cache: whitened rows or matrices for every component, else a few float64 arrays.
        if holes and (structure.shared or covariances.ndim == 3):
            size = _chunk_rows(k * d * d)
        else:
            size = _chunk_rows(2 * k * d if covariances.ndim == 3 else 4 * (k + d))
        arrays: dict[str, Array] = {"x": x}
        if holes:
            arrays["observed"] = jnp.asarray(x_observed, bool)
        if sample_weight is not None:
            arrays["weight"] = jnp.asarray(sample_weight, x.dtype)
        # About a point amid the data, offsets cost no digits.
        centre = _centre(arrays["x"][:size], arrays["observed"][:size] if holes else None)
        origin = centre.astype(jnp.float64)
        kernel = (structure.kernel_with_holes if holes else structure.kernel)(means - origin, covariances)

        def terms(chunk: dict[str, Array], counts: Array, start: Array) -> tuple[Array, Any]:
            rows: Any = chunk["x"] - centre  # (C, D)
            if holes:
                rows = jnp.where(chunk["observed"], rows, 0.0), chunk["observed"]
            log_prob, found = kernel.log_prob(rows)  # (K, C)
            r, log_normaliser = assign(log_prob + log_weights.astype(log_prob.dtype)[:, None], start)
            counts = counts * chunk.get("weight", 1)
            total = jnp.where(counts > 0, counts * log_normaliser, 0.0).astype(jnp.float64).sum()
            return total, kernel.sums(r * counts, rows, found)

        total, sums = _add_up(terms, arrays, size)
        return total, Moments(origin, *kernel.moments(sums))


def move(structure: Structure, moments: Moments, origin: ArrayLike) -> Moments:
    """The same moments about another origin, where they can be added to others."""
    with jax.enable_x64(True):
        delta = moments.origin - jnp.asarray(origin, jnp.float64)  # x - new = (x - old) + delta
        _, n, first, second = moments
        second = structure.moved(delta, n, first, second)
        return Moments(moments.origin - delta, n, first + n[:, None] * delta, second)


def _centre(x: Float[Array, "C D"], observed: Bool[Array, "C D"] | None) -> Float[Array, " D"]:
    if observed is None:
        return x.mean(0)
    return jnp.where(observed, x, 0.0).sum(0) / jnp.maximum(observed.sum(0), 1).astype(x.dtype)


def _chunk_rows(numbers: int) -> int:
    """Rows of a chunk, for so many numbers a row: enough of them for vectors, and few enough for the cache."""
    budget = _CHUNK.get(jax.default_backend(), _ACCELERATOR_CHUNK)
    return max(256 if numbers < 2**12 else 16, budget // max(numbers, 256))


def _add_up(terms: Any, arrays: dict[str, Array], size: int) -> Any:
    """Sum ``terms(rows, counts, start)``, a pytree, over chunks of ``size`` rows.

    The last chunk ends at the last row and counts 0 for those of the chunk before it.
    """
    n, dtype = len(arrays["x"]), arrays["x"].dtype
    if n <= size:
        return terms(arrays, jnp.ones(n, dtype), jnp.int32(0))

    def add(total: Any, begin: Array) -> tuple[Any, None]:
        start = jnp.minimum(begin, n - size)
        counts = (start + jnp.arange(size) >= begin).astype(dtype)
        rows = {name: jax.lax.dynamic_slice_in_dim(v, start, size) for name, v in arrays.items()}
        return jax.tree.map(jnp.add, total, terms(rows, counts, start)), None

    first = {name: v[:size] for name, v in arrays.items()}
    shapes = jax.eval_shape(terms, first, jnp.ones(size, dtype), jnp.int32(0))
    zero = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    return jax.lax.scan(add, zero, jnp.arange(0, n, size, dtype=jnp.int32))[0]
