"""Block Gibbs sampling of an energy program: the visible units given the hidden ones, then those given them.

    v ~ p(v | h),    h ~ p(h | v)

leaves p(v, h) invariant, and with observed entries of v kept, p(v, h | those). Chains are the leading axis of v and h,
and advance together; the pair is the state, so that the last draw of h shares its product with what is asked about v
(its free energy, say).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from jax import random
from jaxtyping import Array, Float

from inference.protocols import Energy


class Chains(NamedTuple):
    """Where the chains stand: visible and hidden units, chains leading."""

    v: Float[Array, "chains D"]
    h: Float[Array, "chains H"]


def sweep(key: Array, model: Energy, params: Any, chains: Chains, *tempered: Any, observed: Any = False) -> Chains:
    """One sweep of every chain, at ``(beta, base)`` if given, with observed visible entries kept."""
    key_v, key_h = random.split(key)
    v = model.sample_visible(key_v, params, *chains, *tempered, observed=observed)
    move = getattr(model, "move_hidden", None)
    if move:  # hidden units that depend on each other given v
        return Chains(v, move(key_h, params, v, chains.h, *tempered[:1]))
    return Chains(v, model.sample_hidden(key_h, params, v, *tempered[:1]))


@dataclass(frozen=True)
class BlockGibbs:
    """Block Gibbs sweeps at the machine's own temperature; a :class:`~inference.protocols.MachineSampler`."""

    def start(self, key: Array, model: Energy, params: Any, v: Float[Array, "chains D"]) -> Chains:
        """Chains at these visible units, hidden ones drawn from their posterior."""
        return Chains(v, model.sample_hidden(key, params, v))

    def advance(self, key: Array, model: Energy, params: Any, chains: Chains, observed: Any = False) -> Chains:
        """One sweep."""
        return sweep(key, model, params, chains, observed=observed)

    def draws(self, chains: Chains) -> Chains:
        """Draws from the machine: all chains."""
        return chains

    def metrics(self, chains: Chains) -> dict[str, Array]:
        """Nothing: every draw is accepted."""
        return {}


__all__ = ["BlockGibbs", "Chains", "sweep"]
