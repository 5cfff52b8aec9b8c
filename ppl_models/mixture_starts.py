"""Where EM of a mixture may start. Four functions of one form, ``start(mixture, key, x, …) -> params``.

=========================== ====================================================================
k_means                     k-means++ seeds, then ten Lloyd steps; what ``GaussianMixture.initial`` is
k_means_plus_plus           the seeds alone: rows far from each other
random_rows                 means at K rows, drawn at random
random_responsibilities     every row belongs to every component, at random: all means near the middle
=========================== ====================================================================

Hand one to an algorithm, as in ``EM(mixture, initial=random_rows)``. All work on at most 16,384 rows (or
100 a component), drawn at random; take one covariance for all components, that of the rows about the mean
of the component they fall to; and put components in order of the first column of their means, so that
independent chains mostly agree on the labels. Missing entries are left out of sums and distances; rows of
greater weight are drawn more often. Parameters are float64.

References
----------
Arthur and Vassilvitskii, "k-means++: the advantages of careful seeding", 2007.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

_ROWS = 2**14  # at most this many are seen (or 100 a component)
_LLOYD_STEPS = 10
_HIGHEST = jax.lax.Precision.HIGHEST

Params = dict[str, Float[Array, "..."]]


class _Rows(NamedTuple):
    """Some rows, float32."""

    x: Float[Array, "N D"]  # about the origin; zero where it is missing
    seen: Float[Array, "N D"]  # 1 where it is not
    weight: Float[Array, " N"]
    origin: Float[Array, " D"]  # the mean of what is seen


def k_means(
    model: Any,
    key: Array,
    x: Float[Array, "N D"],
    x_observed: Bool[Array, "N D"] | None = None,
    sample_weight: Float[Array, " N"] | None = None,
) -> Params:
    """k-means++ seeds, ten Lloyd steps, and the covariance within clusters for every component.

    Parameters
    ----------
    model
        The mixture.
    key
        Random key.
    x
        Data, shape (N, D).
    x_observed
        Where ``x`` holds a number (everywhere, by default).
    sample_weight
        How many times each row counts (once, by default).

    Returns
    -------
    dict
        ``weights``, ``means``, ``covariances``, float64.

    Raises
    ------
    ValueError
        If ``x`` is not a matrix or has fewer rows than components.
    """
    key_rows, key_seeds = jax.random.split(key)
    rows = _some_rows(model, key_rows, x, x_observed, sample_weight)
    return _at(model, rows, _lloyd(rows, _seeds(key_seeds, rows, model.num_components)))


def k_means_plus_plus(model: Any, key: Array, x: Array, x_observed: Any = None, sample_weight: Any = None) -> Params:
    """k-means++ seeds for means: each a row drawn with odds of its squared distance from those before."""
    key_rows, key_seeds = jax.random.split(key)
    rows = _some_rows(model, key_rows, x, x_observed, sample_weight)
    return _at(model, rows, _seeds(key_seeds, rows, model.num_components))


def random_rows(model: Any, key: Array, x: Array, x_observed: Any = None, sample_weight: Any = None) -> Params:
    """Means at K rows drawn at random, in proportion to their weights, none twice.

    A missing entry stands at the mean of its column. Of more rows than are seen (above) those that are seen are
    drawn with replacement, so that two means may be the same row.
    """
    key_rows, key_seeds = jax.random.split(key)
    rows = _some_rows(model, key_rows, x, x_observed, sample_weight)
    odds = rows.weight / rows.weight.sum()
    index = jax.random.choice(key_seeds, len(rows.x), (model.num_components,), replace=False, p=odds)
    return _at(model, rows, rows.x[index])


def random_responsibilities(
    model: Any, key: Array, x: Array, x_observed: Any = None, sample_weight: Any = None
) -> Params:
    """Means of all rows, weighed by responsibilities drawn uniformly; the covariance is that of all rows."""
    key_rows, key_shares = jax.random.split(key)
    rows = _some_rows(model, key_rows, x, x_observed, sample_weight)
    r = jax.random.dirichlet(key_shares, jnp.ones(model.num_components), (len(rows.x),)) * rows.weight[:, None]
    centres = _means(r, rows, jnp.zeros((model.num_components, rows.x.shape[1])))
    order = jnp.argsort(centres[:, 0])
    return _params(model, rows, centres[order], r.sum(0)[order], jnp.zeros_like(rows.x))


def _some_rows(model: Any, key: Array, x: Array, observed: Any, weight: Any) -> _Rows:
    model.validate(x, x_observed=observed, sample_weight=weight)
    x = jnp.asarray(x)
    x = x.astype(jnp.result_type(x, jnp.float32))
    seen = jnp.ones_like(x) if observed is None else jnp.asarray(observed).astype(x.dtype)
    odds = None if weight is None else jnp.asarray(weight, x.dtype) / jnp.sum(weight)
    size = max(_ROWS, 100 * model.num_components)
    if len(x) > size:
        index = jax.random.choice(key, len(x), (size,), p=odds)
        x, seen, weight = x[index], seen[index], None
    weight = jnp.ones(len(x), x.dtype) if weight is None else jnp.asarray(weight, x.dtype)
    share = seen * weight[:, None]
    total = share.sum(0)
    origin = jnp.where(share > 0, x, 0).T @ weight / jnp.where(total > 0, total, 1)
    return _Rows(jnp.where(seen > 0, x - origin, 0), seen, weight, origin)


def _seeds(key: Array, rows: _Rows, num_components: int) -> Float[Array, "K D"]:
    x, seen, weight, _ = rows
    key_first, key_others = jax.random.split(key)
    first = x[jax.random.categorical(key_first, jnp.log(weight))]

    def distance(centre: Array) -> Array:
        return jnp.sum(seen * (x - centre) ** 2, -1)

    def seed(k: Array, state: tuple[Array, Array]) -> tuple[Array, Array]:
        centres, nearest = state
        odds = weight * nearest
        odds = jnp.where(odds.max() > 0, odds, weight)  # all rows are centres already
        centre = x[jax.random.categorical(jax.random.fold_in(key_others, k), jnp.log(odds))]
        return centres.at[k].set(centre), jnp.minimum(nearest, distance(centre))

    start = (jnp.broadcast_to(first, (num_components, x.shape[1])), distance(first))
    return jax.lax.fori_loop(1, num_components, seed, start)[0]


def _lloyd(rows: _Rows, centres: Float[Array, "K D"]) -> Float[Array, "K D"]:
    """A few steps of k-means. A centre that loses its rows stays where it is."""

    def step(_: Array, centres: Array) -> Array:
        member = jax.nn.one_hot(_nearest(rows, centres), len(centres), dtype=rows.x.dtype)  # (N, K)
        return _means(member * rows.weight[:, None], rows, centres)

    return jax.lax.fori_loop(0, _LLOYD_STEPS, step, centres)


def _means(r: Float[Array, "N K"], rows: _Rows, empty: Float[Array, "K D"]) -> Float[Array, "K D"]:
    """sum r x / sum r over what is seen; ``empty`` where nothing is."""
    count = jnp.matmul(r.T, rows.seen, precision=_HIGHEST)
    total = jnp.matmul(r.T, rows.x, precision=_HIGHEST)
    return jnp.where(count > 0, total / jnp.where(count > 0, count, 1), empty)


def _nearest(rows: _Rows, centres: Float[Array, "K D"]) -> Array:
    """argmin_k |x - c_k|² over what is seen = argmin_k sᵀ c_k² - 2 xᵀ c_k."""
    cross = jnp.matmul(rows.x, centres.T, precision=_HIGHEST)
    return jnp.argmin(jnp.matmul(rows.seen, (centres**2).T, precision=_HIGHEST) - 2 * cross, axis=-1)


def _at(model: Any, rows: _Rows, centres: Float[Array, "K D"]) -> Params:
    """Parameters for these means, each row belonging to the nearest."""
    centres = centres[jnp.argsort(centres[:, 0])]
    labels = _nearest(rows, centres)
    count = jnp.zeros(len(centres)).at[labels].add(rows.weight) + rows.weight.mean()  # no weight starts at zero
    return _params(model, rows, centres, count, centres[labels])


def _params(model: Any, rows: _Rows, means: Array, count: Array, fitted: Float[Array, "N D"]) -> Params:
    """One covariance for all components, of the rows about ``fitted``; columns with holes are scaled up."""
    with jax.enable_x64(True):
        x, seen, weight, origin, means, count, fitted = (v.astype(jnp.float64) for v in (*rows, means, count, fitted))
        residual = jnp.where(seen > 0, x - fitted, 0.0) * jnp.sqrt(weight)[:, None]
        share = weight @ seen / weight.sum()
        scale = jnp.where(share > 0, share, 1) ** -0.5
        within = residual.T @ residual / weight.sum() * jnp.outer(scale, scale)
        within = within + model.reg_covar * jnp.eye(x.shape[1])
        return {
            "weights": count / count.sum(),
            "means": means + origin,
            "covariances": model._structure.pooled(within, len(means)),
        }
