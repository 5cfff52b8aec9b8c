r"""Parallel tempering of an energy program: copies of the chains at several temperatures, which swap places.

Copy t moves by block Gibbs sweeps at E_t = (1 - beta_t) E_base + beta_t E, from beta = 0, the base-rate model, which
mixes at once, to beta = 1, the machine. Neighbours s and t then swap their states x = (v, h) with probability

    min(1, exp(E_s(x_s) + E_t(x_t) - E_s(x_t) - E_t(x_s))) = min(1, exp((beta_s - beta_t) (D(x_s) - D(x_t)))),

D = E - E_base being of the joint energy that the sweeps temper (free energies at beta = 1 would leave another law
invariant). Even and odd pairs take turns in one sweep. All copies and chains are one batch.

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
from inference.errors import check_whole
from inference.protocols import Energy


class Tempered(NamedTuple):
    """Chains at every temperature, hottest first; the base-rate model that they are tempered from; last swaps."""

    v: Float[Array, "temperatures chains D"]
    h: Float[Array, "temperatures chains H"]
    base: Any
    swap_rate: Float[Array, ""]  # share of the last swaps proposed that took place


@dataclass(frozen=True)
class Tempering:
    """Parallel tempering; a :class:`~inference.protocols.MachineSampler`.

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
        check_whole("Tempering: num_temperatures", self.num_temperatures, 2)

    def start(self, key: Array, model: Energy, params: Any, v: Float[Array, "chains D"]) -> Tempered:
        """Every copy at these visible units, whose base rates are the hottest model."""
        base, _ = model.base_rate(v)
        keys = jax.random.split(key, self.num_temperatures)
        h = jax.vmap(lambda key, beta: model.sample_hidden(key, params, v, beta))(keys, self._betas)
        return Tempered(jnp.broadcast_to(v, (self.num_temperatures, *v.shape)), h, base, jnp.zeros(()))

    def advance(self, key: Array, model: Energy, params: Any, chains: Tempered, observed: Any = False) -> Tempered:
        """A sweep of every copy, then swaps of neighbours."""
        key_sweep, key_even, key_odd = jax.random.split(key, 3)

        def move(key: Array, units: Chains, beta: Array) -> tuple[Chains, Array]:
            units = sweep(key, model, params, units, beta, chains.base, observed=observed)
            return units, model.energy(params, *units) - model.energy(params, *units, 0.0, chains.base)

        keys = jax.random.split(key_sweep, self.num_temperatures)
        moved, excess = jax.vmap(move)(keys, Chains(chains.v, chains.h), self._betas)
        place = jnp.broadcast_to(jnp.arange(self.num_temperatures)[:, None], excess.shape)
        place, excess, even = self.swap(key_even, place, excess, 0)
        place, _, odd = self.swap(key_odd, place, excess, 1)
        v, h = (units[place, jnp.arange(units.shape[1])] for units in moved)
        return Tempered(v, h, chains.base, jnp.concatenate([even, odd]).mean(dtype=jnp.float32))

    def swap(
        self, key: Array, place: Array, excess: Float[Array, "temperatures chains"], first: int
    ) -> tuple[Array, Array, Array]:
        """Propose to swap copies first and first + 1, first + 2 and first + 3, and so on, chain by chain.

        ``place`` says which copy's state each temperature has, ``excess`` the D of that state; both come back swapped,
        with the proposals that were accepted.
        """
        lower = jnp.arange(first, self.num_temperatures - 1, 2)
        upper = lower + 1
        log_ratio = (self._betas[lower] - self._betas[upper])[:, None] * (excess[lower] - excess[upper])
        accept = jnp.log(jax.random.uniform(key, log_ratio.shape)) < log_ratio

        def exchanged(x: Array) -> Array:
            low, high = x[lower], x[upper]
            return x.at[lower].set(jnp.where(accept, high, low)).at[upper].set(jnp.where(accept, low, high))

        return exchanged(place), exchanged(excess), accept

    def draws(self, chains: Tempered) -> Chains:
        """Draws from the machine: the coldest copy."""
        return Chains(chains.v[-1], chains.h[-1])

    def metrics(self, chains: Tempered) -> dict[str, Array]:
        """``swap_rate``, the share of the last swaps proposed that took place: near zero, give more temperatures."""
        return {"swap_rate": chains.swap_rate}

    @property
    def _betas(self) -> Array:
        return jnp.linspace(0.0, 1.0, self.num_temperatures)


__all__ = ["Tempered", "Tempering"]
