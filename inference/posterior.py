"""Questions to a fitted pair: draws, log likelihoods, new data. NumPyro programs.

Everything here takes ``values``: parameters and one draw of the global latents by site name,
substituted into model and guide alike, so that EM, SVI and MCMC results are asked the same way.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
from jax.scipy.special import logsumexp
from jaxtyping import Array, Float
from numpyro import handlers
from numpyro.util import soft_vmap

from inference.compiled import jit
from inference.errors import Incompatible
from inference.estimate import log_likelihood
from inference.generation import generate
from inference.programs import (
    Anatomy,
    anatomy,
    base_of,
    bind,
    density,
    has_marginal,
    joint_density,
    marginal_density,
    site_log_prob,
    split_density,
    trace,
    without_factors,
)
from inference.protocols import Batch, Program

Values = dict[str, Any]


def guide_draws(
    model: Program, guide: Program, params: Values, key: Array, batch: Batch, num_draws: int = 1000
) -> tuple[dict[str, Array], dict[str, Array]]:
    """Draws of the globals from the guide, with ``lp`` = log p(x, g) and ``log_weight`` = lp - log q(g).

    Local latents are integrated out where that is exact; otherwise both densities are joint with
    locals drawn from the guide. Nats, for the whole data set. Empty without global latents.
    """
    parts = anatomy(bind(model, batch))
    guided = anatomy(handlers.substitute(bind(guide, batch), data=params))
    shared = [n for n in guided.latent if n not in parts.local]
    if not shared:
        return {}, {}
    exact = has_marginal(model, batch)

    def one(bits: Array) -> tuple[dict[str, Array], dict[str, Array]]:
        key_draw = jax.random.wrap_key_data(bits, impl=jax.random.key_impl(key))
        tr = trace(bind(guide, batch), key_draw, params)
        latents = {n: tr[n]["value"] for n in guided.latent}
        draw = {n: latents[n] for n in shared}
        log_q = density(without_factors(bind(guide, batch)), key_draw, params | latents, parts.plate)
        if exact:
            p, q = marginal_density(model, batch, key_draw, params | draw).total(), log_q.shared
        else:
            p, q = joint_density(bind(model, batch), key_draw, params | latents).total(), log_q.total()
        return draw, {"lp": p, "log_weight": p - q}

    at_once = max(1, min(32, 2**16 // len(batch)))  # memory is bounded by draws times rows
    return soft_vmap(one, jax.random.key_data(jax.random.split(key, num_draws)), chunk_size=at_once)


def local_draw(model: Program, guide: Program | None, values: Values, key: Array, batch: Batch) -> dict[str, Array]:
    """One draw of the latents of these rows: from the guide, and exactly for what it leaves out."""
    key_guide, key_discrete, key_model = jax.random.split(key, 3)
    latents: Values = {}
    if guide is not None:
        tr = trace(bind(guide, batch), key_guide, values)
        latents = {n: s["value"] for n, s in tr.items() if s["type"] == "sample" and not s["is_observed"]}
    parts = anatomy(bind(model, batch))
    missing = set(parts.latent) - latents.keys() - values.keys()
    if not missing:
        return latents
    if not missing <= parts.enumerable:
        raise Incompatible(f"there is no posterior to draw {sorted(missing)} from: neither guide nor enumeration.")
    from numpyro.contrib.funsor import config_enumerate, infer_discrete

    fixed = handlers.substitute(bind(model, batch), data=values | latents)
    sampled = infer_discrete(
        config_enumerate(fixed),
        first_available_dim=-1 - parts.nesting,
        temperature=1,
        rng_key=key_discrete,
    )
    tr = handlers.trace(handlers.seed(sampled, key_model)).get_trace()
    return latents | {n: tr[n]["value"] for n in missing}


@lru_cache(maxsize=32)
def _local_draws(model: Program, guide: Program | None) -> Any:
    def one(params: Values, draw: Values, key: Array, batch: Batch) -> dict[str, Array]:
        return local_draw(model, guide, params | draw, key, batch)

    return jit(jax.vmap(one, in_axes=(None, 0, 0, None)))


def local_draws(
    model: Program, guide: Program | None, params: Values, draws: Values, keys: Array, batch: Batch
) -> dict[str, Array]:
    """The rows' latents for each of S keys and stacked draws of the globals: arrays ``(S, batch, *event)``."""
    return _local_draws(model, guide)(params, draws, keys, batch)


@lru_cache(maxsize=32)
def _exact_rows(model: Program) -> Any:
    return jit(lambda values, key, batch: marginal_density(model, batch, key, values).rows)


@lru_cache(maxsize=32)
def _importance_rows(model: Program, guide: Program, num_particles: int) -> Any:
    def rows(values: Values, key: Array, batch: Batch) -> tuple[Array, Array]:
        parts = anatomy(bind(model, batch))

        def weight(key: Array) -> Array:
            # What the guide leaves out is summed out, not drawn: its draws would have to be weighed too.
            tr = trace(bind(guide, batch), key, values)
            latents = {n: s["value"] for n, s in tr.items() if s["type"] == "sample" and not s["is_observed"]}
            # Of the draws at hand: a flow knows their density from the drawing, at other values it must be inverted.
            drawn = {n: site_log_prob(s) for n, s in tr.items() if n in latents}
            guided = split_density(drawn, tr, parts.plate)
            return joint_density(bind(model, batch), key, values | latents).rows - guided.rows

        # Streamed: running log sums of w and w^2 over chunks of particles.
        def chunk(carry: tuple[Array, Array], inputs: tuple[Array, Array]) -> tuple[tuple[Array, Array], None]:
            keys, counted = inputs
            w = jnp.where(counted[:, None], jax.vmap(weight)(keys), -jnp.inf)
            first, second = carry
            return (jnp.logaddexp(first, logsumexp(w, 0)), jnp.logaddexp(second, logsumexp(2 * w, 0))), None

        chunks = -(-num_particles // max(1, 2**14 // len(batch)))
        size = -(-num_particles // chunks)
        keys = jax.random.split(key, chunks * size).reshape(chunks, size)
        counted = (jnp.arange(chunks * size) < num_particles).reshape(chunks, size)
        start = jnp.full((len(batch),), -jnp.inf)
        (first, second), _ = jax.lax.scan(chunk, (start, start), (keys, counted))
        k = num_particles
        # Delta method: var(log mean w) = var(w) / (K mean(w)^2) = (K sum w^2 / (sum w)^2 - 1) / K
        return first - jnp.log(k), jnp.maximum(k * jnp.exp(second - 2 * first) - 1, 0.0) / k

    return jit(rows)


def _shapes(batch: Batch) -> tuple[tuple[str, tuple[int, ...], str], ...]:
    return tuple((n, tuple(v.shape), v.dtype.name) for n, v in batch.data.items())


@lru_cache(maxsize=128)
def _shown(program: Program, shapes: tuple[tuple[str, tuple[int, ...], str], ...], num_data: int) -> Anatomy:
    """The program's anatomy on rows of these shapes, traced once."""
    data = {n: jnp.zeros(shape, dtype) for n, shape, dtype in shapes}
    return anatomy(bind(program, Batch(data, jnp.arange(shapes[0][1][0], dtype=jnp.int32), num_data)))


def row_log_likelihood(
    model: Program, guide: Program | None, values: Values, key: Array, batch: Batch, num_particles: int
) -> tuple[Float[Array, " batch"], Float[Array, " batch"]]:
    """log p(x_n | globals, parameters) in nats per row, locals integrated out, and its Monte-Carlo variance.

    Exact (zero variance) where the locals can be summed or integrated; otherwise importance sampling
    from the guide with ``num_particles`` draws.
    """
    parts = _shown(getattr(model, "marginal", model), _shapes(batch), batch.num_data)
    if parts.plate is None:
        raise Incompatible(
            "the model observes its rows outside any plate, so there is no likelihood of a single row. "
            "Put the observed sites in numpyro.plate(name, num_data or len(x), subsample_size=len(x))."
        )
    made = sorted(parts.points.intersection(parts.observed))
    if made:
        raise Incompatible(
            f"the model is implicit: it makes {made} from its latents without a density, so a row has no likelihood. "
            "Compare draws with the data instead: see inference.quality."
        )
    tied = parts.discrete - parts.local - values.keys()
    if tied:
        raise Incompatible(
            f"{sorted(tied)} are discrete, outside the data plate and have no value: they tie the rows together, so "
            "there is no likelihood of a single row. Sample them in the guide."
        )
    if parts.local <= parts.enumerable:
        rows = _exact_rows(model)(values, key, batch)
        return rows, jnp.zeros_like(rows)
    if guide is None:
        raise Incompatible(
            "the likelihood of a row needs its local latents integrated out: give the model a `marginal`, "
            "make them discrete (they are summed), or fit a guide to sample them from."
        )
    points = _shown(guide, _shapes(batch), batch.num_data).points & parts.local
    if points:
        raise Incompatible(
            f"the guide puts all mass of {sorted(points)} at one value, or makes them without a density, so their "
            "draws cannot be weighed against the model's density: there is no likelihood of a row. Use a guide with a "
            "density and a spread for the rows' latents."
        )
    return _importance_rows(model, guide, num_particles)(values, key, batch)


@lru_cache(maxsize=32)
def _predict(model: Program, guide: Program | None, expected: bool) -> Any:
    def one(params: Values, draw: Values, key: Array, batch: Batch) -> dict[str, Array]:
        values = params | draw
        if guide is not None:
            values |= local_draw(model, guide, values, key, batch)
        tr = trace(handlers.uncondition(bind(model, batch)), key, values)
        observed = anatomy(bind(model, batch)).observed
        return {n: _mean(n, tr[n]) if expected else tr[n]["value"] for n in observed}

    return jit(jax.vmap(one, in_axes=(None, 0, 0, None)))


def _mean(name: str, site: dict[str, Any]) -> Array:
    """Mean of a site's distribution; of one drawn entry by entry, the means of the entries along its draw."""
    fn = site["fn"]
    try:
        return fn.mean_along(site["value"]) if hasattr(fn, "mean_along") else fn.mean
    except NotImplementedError:
        raise Incompatible(
            f"site {name!r} is a {type(base_of(fn)).__name__.strip('_')}, which has no mean in closed form: there is "
            "no expected row and no reconstruction: draw rows with generate(num_samples) or predict(data)."
        ) from None


def predict(
    model: Program,
    guide: Program | None,
    params: Values,
    draws: Values,
    keys: Array,
    batch: Batch,
    *,
    expected: bool,
) -> dict[str, Array]:
    """Observed sites anew for each of S keys and stacked draws of the globals: ``(S, batch, *event)``.

    With a guide the rows' latents come from their posterior (replicated data), without from the
    prior (new data). ``expected`` returns the likelihood's mean in place of a draw.
    """
    return _predict(model, guide, expected)(params, draws, keys, batch)


__all__ = [
    "generate",
    "guide_draws",
    "local_draw",
    "local_draws",
    "log_likelihood",
    "predict",
    "row_log_likelihood",
]
