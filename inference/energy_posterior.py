"""Questions to a fitted energy program: the same as of other programs, answered by chains of the fit's own sampler.

The fit is a point estimate, which ``params`` holds; draws of the globals are copies of it, and say no more. Hidden
units given a row are exact draws, and log p(v) = -F(v) - log Z is exact but for one number: see
:mod:`inference.bracket`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from inference.bracket import Bracket, bracket
from inference.check import check_support
from inference.compiled import jit
from inference.data import Rows
from inference.errors import Incompatible
from inference.protocols import Batch, Energy
from inference.simulate import as_mask, machine, simulate, starts

SWEEPS = 1000  # of chains that draw new rows
CHAINS, DRAWS, THIN = 20, 200, 5  # whose free energies show how the machine mixes
point_draws = 1  # the posterior of the hidden units is exact, and not drawn


def log_likelihood(fit: Any, rows: Rows, num_particles: int, key: int) -> Bracket:
    """A bracket of these rows' log likelihood; ``num_particles`` plays no part, since free energies are exact."""
    return bracket(fit, rows, key=key)


def row_log_likelihood(
    model: Energy, guide: Any, values: dict[str, Any], key: Array, batch: Batch, num_particles: int
) -> tuple[Float[Array, " batch"], Float[Array, " batch"]]:
    """log p(x_n) in nats of each row, exact.

    Raises
    ------
    Incompatible
        When the machine is too large to enumerate.
    """
    try:
        rows = -model.free_energy(values, batch.data["x"]) - model.log_partition(values)
    except ValueError as error:
        raise Incompatible(str(error)) from None
    return rows, jnp.zeros_like(rows)


@lru_cache(maxsize=32)
def _hidden(model: Energy) -> Any:
    return jit(lambda keys, params, x: jax.vmap(lambda key: model.sample_hidden(key, params, x))(keys))


def local_draws(model: Energy, guide: Any, params: Any, draws: Any, keys: Array, batch: Batch) -> dict[str, Array]:
    """The rows' hidden units given them, ``h``, for each of S keys: ``(S, batch, H)``."""
    return {"h": _hidden(model)(keys, params, _visible(batch))}


@lru_cache(maxsize=32)
def _visible_given(model: Energy, expected: bool) -> Any:
    def run(key: Array, params: Any, v: Array, h: Array) -> Array:
        return model.visible_mean(params, v, h) if expected else model.sample_visible(key, params, v, h)

    return jit(run)


def predict(
    model: Energy, guide: Any, params: Any, draws: Any, keys: Array, batch: Batch, *, expected: bool
) -> dict[str, Array]:
    """Rows ``x`` anew for each of S keys: ``(S, batch, D)``.

    With a guide given the rows' hidden units; without, by ``SWEEPS`` Gibbs sweeps of chains that start at the rows.
    ``expected`` returns the mean given the hidden units in place of a draw.
    """
    v = _visible(batch)
    if guide is not None:
        h = local_draws(model, guide, params, draws, keys, batch)["h"]
        v = jnp.broadcast_to(v, (len(keys), *v.shape))
    else:
        starts = jnp.broadcast_to(v, (len(keys), *v.shape)).reshape(-1, *v.shape[1:])
        chains = simulate(model, params, starts, key=keys[0], num_sweeps=SWEEPS)
        v, h = (units.reshape(len(keys), len(v), *units.shape[2:]) for units in chains)
    fresh = jax.random.fold_in(keys[-1], 1)  # h was drawn by the key itself
    return {"x": _visible_given(model, expected)(fresh, params, v, h)}


def generate(
    fit: Any, num_samples: int, key: int, *, expected: bool, given: Mapping[str, Any]
) -> dict[str, np.ndarray]:
    """New rows by ``SWEEPS`` sweeps of the fit's sampler, a chain each, from rows of the fit where it holds them."""
    refuse_given(given)
    model, params, sampler = machine(fit)
    key_chains, key_v = jax.random.split(jax.random.key(key))
    v = starts(fit, None, num_samples)
    chains = simulate(model, params, v, key=key_chains, num_sweeps=SWEEPS, sampler=sampler)
    return {"x": np.asarray(_visible_given(model, expected)(key_v, params, chains.v[0], chains.h[0]))}


def refuse_given(given: Mapping[str, Any]) -> None:
    """Units are drawn together, and none given another's value before it."""
    if given:
        raise Incompatible(f"a machine draws all its units together: use complete, which holds {sorted(given)}.")


def complete(fit: Any, rows: Rows, observed: Any, num_sweeps: int, key: int) -> dict[str, np.ndarray]:
    """Rows with what is not observed drawn with the rest clamped, a chain each, by the fit's sampler."""
    model, params, sampler = machine(fit)
    batch = rows.whole()
    x = batch.data["x"]
    clamped = jnp.where(as_mask(observed, x.shape), x, 0)  # what else stands there does not count
    check_support(model, replace(batch, data={"x": clamped}))
    options = {"key": jax.random.key(key), "num_sweeps": num_sweeps, "sampler": sampler, "observed": observed}
    return {"x": np.asarray(simulate(model, params, x, **options).v[0])}


def chain_free_energies(fit: Any, x: Float[Array, "rows D"]) -> Float[np.ndarray, "chain draw"]:
    """Free energies in nats along chains of the fit's sampler, which start at some of these rows."""
    model, params, sampler = machine(fit)
    v, key = x[np.linspace(0, len(x) - 1, CHAINS).astype(int)], jax.random.key(0)
    chains = simulate(model, params, v, key=key, num_sweeps=THIN, num_draws=DRAWS, sampler=sampler)
    return np.asarray(_free_energies(model)(params, chains.v)).T


@lru_cache(maxsize=32)
def _free_energies(model: Energy) -> Any:
    return jit(model.free_energy)


def _visible(batch: Batch) -> Array:
    return jnp.asarray(batch.data["x"], jnp.float32)


__all__ = [
    "chain_free_energies",
    "complete",
    "generate",
    "local_draws",
    "log_likelihood",
    "predict",
    "refuse_given",
    "row_log_likelihood",
]
