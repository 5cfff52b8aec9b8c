"""Questions to a fitted deep belief network: hidden layers from its q(h | v), new rows by chains of its machine.

Chains of the machine on top start at rows' hidden layers as q draws them. Likelihoods are lower bounds, but for log Z
exact up to the error of draws from q: see :func:`inference.bracket`.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from inference.block_gibbs import Chains
from inference.bracket import Bracket, bracket
from inference.compiled import jit
from inference.data import Rows
from inference.energy_posterior import CHAINS, DRAWS, SWEEPS, THIN, refuse_given
from inference.errors import Incompatible
from inference.protocols import Batch, Belief
from inference.simulate import simulate, starts

point_draws = 1  # draws of q say no more of a point estimate


def log_likelihood(fit: Any, rows: Rows, num_particles: int, key: int) -> Bracket:
    """A bracket of these rows' variational bound, by at most 100 draws a row."""
    return bracket(fit, rows, num_particles=min(num_particles, 100), key=key)


def row_log_likelihood(
    model: Belief, guide: Any, values: dict[str, Any], key: Array, batch: Batch, num_particles: int
) -> tuple[Float[Array, " batch"], Float[Array, " batch"]]:
    """The variational bound of log p(x_n) in nats of each row, and its Monte-Carlo variance.

    Raises
    ------
    Incompatible
        When log Z cannot be enumerated.
    """
    rows, variance = model.bound(key, values, _visible(batch), min(num_particles, 100))
    machine, params = model.as_rbm(values)
    try:
        return rows - machine.log_partition(params), variance
    except ValueError as error:
        raise Incompatible(str(error)) from None


@lru_cache(maxsize=32)
def _layers(model: Belief) -> Any:
    return jit(lambda keys, params, v: jax.vmap(lambda key: model.sample_layers(key, params, v))(keys))


def local_draws(model: Belief, guide: Any, params: Any, draws: Any, keys: Array, batch: Batch) -> dict[str, Array]:
    """The rows' hidden layers ``h_1``, ``h_2``, … from q, for each of S keys: ``(S, batch, H_l)``."""
    return {f"h_{n}": h for n, h in enumerate(_layers(model)(keys, params, _visible(batch)), 1)}


@lru_cache(maxsize=32)
def _rows(model: Belief, expected: bool) -> Any:
    """Rows given the hidden layers, or given where the machine stands."""

    def given_layers(key: Array, params: Any, layers: Any) -> Array:
        mean = model.visible_mean(params, layers)
        return mean if expected else jax.random.bernoulli(key, mean).astype(mean.dtype)

    def given_machine(key: Array, params: Any, chains: Chains) -> Array:
        key_layers, key_rows = jax.random.split(key)
        return given_layers(key_rows, params, model.layers_given(key_layers, params, *chains))

    return jit(given_layers), jit(given_machine)


def predict(
    model: Belief, guide: Any, params: Any, draws: Any, keys: Array, batch: Batch, *, expected: bool
) -> dict[str, Array]:
    """Rows ``x`` anew for each of S keys: ``(S, batch, D)``.

    With a guide given the rows' hidden layers; without, by ``SWEEPS`` Gibbs sweeps of the machine from them.
    ``expected`` returns the mean given the hidden layers in place of a draw.
    """
    given_layers, given_machine = _rows(model, expected)
    v = _visible(batch)
    layers = _layers(model)(keys, params, v)
    if guide is not None:
        return {"x": given_layers(keys[-1], params, layers)}
    u = jnp.broadcast_to(v, (len(keys), *v.shape)) if len(layers) == 1 else layers[-2]
    chains = _simulated(model, params, u.reshape(-1, u.shape[-1]), keys[0])
    return {"x": given_machine(keys[-1], params, chains).reshape(len(keys), *v.shape)}


def generate(
    fit: Any, num_samples: int, key: int, *, expected: bool, given: Mapping[str, Any]
) -> dict[str, np.ndarray]:
    """New rows by ``SWEEPS`` sweeps of the machine, a chain each, from rows of the fit where it holds them."""
    refuse_given(given)
    key_units, key_chains, key_rows = jax.random.split(jax.random.key(key), 3)
    u = _rbm_units(fit.model)(key_units, fit.params, starts(fit, None, num_samples))
    chains = _simulated(fit.model, fit.params, u, key_chains)
    return {"x": np.asarray(_rows(fit.model, expected)[1](key_rows, fit.params, chains))}


def chain_free_energies(fit: Any, x: Float[Array, "rows D"]) -> Float[np.ndarray, "chain draw"]:
    """Free energies in nats of the machine along chains that start at some of these rows."""
    machine, params = fit.model.as_rbm(fit.params)
    u = _rbm_units(fit.model)(jax.random.key(0), fit.params, x[np.linspace(0, len(x) - 1, CHAINS).astype(int)])
    options = {"key": jax.random.key(1), "num_sweeps": THIN, "num_draws": DRAWS}
    return np.asarray(machine.free_energy(params, simulate(machine, params, u, **options).v)).T


@lru_cache(maxsize=32)
def _rbm_units(model: Belief) -> Any:
    return jit(model.rbm_units)


def _simulated(model: Belief, params: Any, u: Array, key: Array) -> Chains:
    machine, of_machine = model.as_rbm(params)
    chains = simulate(machine, of_machine, u, key=key, num_sweeps=SWEEPS)
    return Chains(chains.v[0], chains.h[0])


def _visible(batch: Batch) -> Array:
    return jnp.asarray(batch.data["x"], jnp.float32)


__all__ = [
    "chain_free_energies",
    "generate",
    "local_draws",
    "log_likelihood",
    "predict",
    "row_log_likelihood",
]
