"""Draws from an energy program at given parameters: any number of chains as one batched scan, clamped where asked."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float

from inference.block_gibbs import BlockGibbs, Chains
from inference.check import program_name
from inference.compiled import jit
from inference.data import Rows
from inference.errors import BadData, Incompatible, check_whole
from inference.protocols import Energy, MachineSampler

GIBBS = BlockGibbs()


def simulate(
    model: Energy,
    params: Any,
    v: Float[ArrayLike, "chains D"],
    *,
    key: int | Array,
    num_sweeps: int = 1000,
    num_draws: int = 1,
    sampler: MachineSampler = GIBBS,
    observed: Bool[ArrayLike, "#chains D"] | bool = False,
) -> Chains:
    """Run chains of a machine from these visible units on.

    Parameters
    ----------
    model, params
        An energy program and its parameters by site name.
    v
        Where the chains start, ``(chains, D)``: thousands are as one.
    key
        Seed, or random key.
    num_sweeps
        Sweeps before every draw.
    num_draws
        Draws of each chain.
    sampler
        :class:`~inference.block_gibbs.BlockGibbs` or :class:`~inference.tempering.Tempering`.
    observed
        Entries of v that stay as they are, ``(chains, D)`` or ``(D,)``: draws are then conditional on them.

    Returns
    -------
    Chains
        ``v`` and ``h``, float32, ``(draws, chains, ...)``.

    Raises
    ------
    BadData
        When a count is not a whole number of at least 1, or ``observed`` does not fit the rows.
    """
    for name, count in (("num_sweeps", num_sweeps), ("num_draws", num_draws)):
        check_whole(name, count)
    v, key = jnp.asarray(v, jnp.float32), jax.random.key(key) if isinstance(key, int) else key
    mask = as_mask(observed, v.shape)
    return _chains(model, sampler, int(num_draws))(key, params, v, mask, int(num_sweeps))


def as_mask(observed: Any, shape: tuple[int, ...]) -> Bool[np.ndarray, "rows D"]:
    """Which entries of rows of this shape stay, or BadData."""
    mask = np.asarray(observed)
    if mask.dtype != bool or mask.shape not in ((), shape, shape[1:]):
        raise BadData(
            f"observed has dtype {mask.dtype} and shape {mask.shape}; expected booleans, True where an entry stays, of "
            f"shape {shape}, or {shape[1:]} for all rows alike."
        )
    return np.broadcast_to(mask, shape)


@lru_cache(maxsize=32)
def _chains(model: Energy, sampler: MachineSampler, num_draws: int) -> Any:
    def run(key: Array, params: Any, v: Array, observed: Array, num_sweeps: Array) -> Chains:
        def sweep(i: Array, carry: tuple[Any, Array]) -> tuple[Any, Array]:
            chains, key = carry
            return sampler.advance(jax.random.fold_in(key, i), model, params, chains, observed), key

        def draw(chains: Any, key: Array) -> tuple[Any, Chains]:
            chains, _ = jax.lax.fori_loop(0, num_sweeps, sweep, (chains, key))
            return chains, sampler.draws(chains)

        key_start, key_draws = jax.random.split(key)
        chains = sampler.start(key_start, model, params, v)
        return jax.lax.scan(draw, chains, jax.random.split(key_draws, num_draws))[1]

    return jit(run)


class Machine(NamedTuple):
    """An energy program, its parameters, and what draws from it."""

    model: Energy
    params: dict[str, Array]
    sampler: MachineSampler


def machine(fit: Any) -> Machine:
    """The machine that a fit has estimated.

    Raises
    ------
    Incompatible
        When the program has no energy, or its parameters were drawn and not estimated.
    """
    model = getattr(fit.model, "program", fit.model)  # of maximum likelihood
    if not isinstance(model, Energy):
        raise Incompatible(
            f"this needs the conditionals of an energy program, and {program_name(model)} has none: RBM, GaussianRBM "
            "and BoltzmannMachine have them."
        )
    if not fit.params:
        raise Incompatible(
            f"{program_name(fit.algorithm)} drew the parameters of {program_name(model)}, and this needs one value of "
            "them: pass a draw to inference.simulate(model, params, rows, key=...)."
        )
    return Machine(model, fit.params, getattr(fit.algorithm, "sampler", GIBBS))


def starts(fit: Any, rows: Rows | None, count: int) -> Float[np.ndarray, "count D"]:
    """Where so many chains start: evenly spaced rows of the fit, else of ``rows``, else blank ones."""
    source = fit.data if fit.data is not None else rows
    if source is None:
        return np.zeros((count, *fit.shapes["x"].shape[1:]), np.float32)
    return np.asarray(source.batch(np.linspace(0, source.num_data - 1, count).astype(int)).data["x"], np.float32)


__all__ = ["Machine", "as_mask", "machine", "simulate", "starts"]
