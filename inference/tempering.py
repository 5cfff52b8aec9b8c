r"""Parallel tempering of an energy program: copies of the chains at several temperatures, which swap places.

Copy t moves by block Gibbs sweeps at E_t = (1 - beta_t) E_base + beta_t E, from beta = 0, the base-rate model, which
mixes at once, to beta = 1, the machine. Neighbours s and t then swap their states x with probability

    min(1, exp(E_s(x_s) + E_t(x_t) - E_s(x_t) - E_t(x_s))),    x = (v, h),

on the joint energy that the sweeps temper (their free energies at beta = 1 would leave another law invariant).
Even and odd pairs take turns in one sweep. All copies and chains are one batch.

References
----------
Tempered Markov Chain Monte Carlo for Training of Restricted Boltzmann Machines (Desjardins et al., 2010).
Parallel Tempering Is Efficient for Learning Restricted Boltzmann Machines (Cho, Raiko and Ilin, 2010).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from inference.block_gibbs import Chains, sweep
from inference.protocols import Energy


class Tempered(NamedTuple):
    """Chains at every temperature, hottest first, with the base-rate model that they are tempered from."""

    v: Float[Array, "temperatures chains D"]
    h: Float[Array, "temperatures chains H"]
    base: Any


@dataclass(frozen=True)
class Tempering:
    """Parallel tempering, as the sampler of persistent contrastive divergence.

    Parameters
    ----------
    num_temperatures
        Copies of every chain, at inverse temperatures evenly spaced from 0 to 1.

    Raises
    ------
    ValueError
        Fewer than 2 temperatures.
    """

    num_temperatures: int = 10

    def __post_init__(self) -> None:
        if (
            isinstance(self.num_temperatures, bool)
            or not isinstance(self.num_temperatures, int)
            or self.num_temperatures < 2
        ):
            raise ValueError(f"Tempering: num_temperatures is {self.num_temperatures!r}; expected at least 2.")

    def start(self, key: Array, model: Energy, params: Any, v: Float[Array, "chains D"]) -> Tempered:
        """Every copy at these visible units, whose base rates are the hottest model."""
        base, _ = model.base_rate(v)
        keys = jax.random.split(key, self.num_temperatures)
        h = jax.vmap(lambda key, beta: model.sample_hidden(key, params, v, beta))(keys, self._betas)
        return Tempered(jnp.broadcast_to(v, (self.num_temperatures, *v.shape)), h, base)

    def advance(self, key: Array, model: Energy, params: Any, chains: Tempered) -> Tempered:
        """A sweep of every copy, then swaps of neighbours."""
        key_sweep, key_even, key_odd = jax.random.split(key, 3)

        def move(key: Array, chains: Chains, beta: Array) -> Chains:
            return sweep(key, model, params, chains, beta, base)

        base = chains.base
        keys = jax.random.split(key_sweep, self.num_temperatures)
        moved = jax.vmap(move)(keys, Chains(chains.v, chains.h), self._betas)
        for key_swap, first in ((key_even, 0), (key_odd, 1)):
            moved = self.swap(key_swap, model, params, moved, base, first)
        return Tempered(*moved, base)

    def swap(self, key: Array, model: Energy, params: Any, chains: Chains, base: Any, first: int) -> Chains:
        """Propose to swap copies first and first + 1, first + 2 and first + 3, and so on, chain by chain."""
        count = self.num_temperatures
        lower = jnp.arange(first, count - 1, 2)
        partner = jnp.arange(count).at[lower].set(lower + 1).at[lower + 1].set(lower)
        other = jax.tree.map(lambda units: units[partner], chains)

        def energy(chains: Chains, beta: Array) -> Array:
            return model.energy(params, *chains, beta, base)

        own, swapped = (jax.vmap(energy)(x, self._betas) for x in (chains, other))  # E_t(x_t), E_t(x_partner)
        gain = own - swapped
        accept = jnp.log(jax.random.uniform(key, gain.shape)) < gain + gain[partner]
        accept = accept[jnp.minimum(jnp.arange(count), partner)] & (partner != jnp.arange(count))[:, None]
        return jax.tree.map(lambda mine, theirs: jnp.where(accept[..., None], theirs, mine), chains, other)

    def draws(self, chains: Tempered) -> Chains:
        """Draws from the machine: the coldest copy."""
        return Chains(chains.v[-1], chains.h[-1])

    @property
    def _betas(self) -> Array:
        return jnp.linspace(0.0, 1.0, self.num_temperatures)


__all__ = ["Tempered", "Tempering"]
