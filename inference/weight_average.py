r"""Averages of weights over steps: a gradient's last noise goes, and what is reported and drawn from is steadier.

    average_n = d_n average_{n-1} + (1 - d_n) params_n,    d_n = min(decay, (1 + n) / (10 + n))

so that the start is soon forgotten. Training goes on at the weights themselves.

References
----------
Acceleration of Stochastic Approximation by Averaging (Polyak and Juditsky, 1992).
Denoising Diffusion Probabilistic Models (Ho, Jain and Abbeel, 2020), for the decay.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int


class Averaging(NamedTuple):
    """State of an optimizer with an average of the weights beside it."""

    inner: Any
    average: Any
    count: Int[Array, ""]


def averaged(optimizer: optax.GradientTransformation, decay: float = 0.999) -> optax.GradientTransformationExtraArgs:
    """An optimizer that keeps an exponential average of the weights: ``SVI(..., averaged(optax.adam(1e-3)))``.

    ``Fit.params``, draws and validation are then of the average; so are the players that ``Adversarial`` reports. It
    goes around everything else that changes updates.

    Parameters
    ----------
    optimizer
        An optax transformation.
    decay
        Weight of the past, of a step, inside (0, 1).

    Raises
    ------
    ValueError
        ``decay`` is not inside (0, 1).
    """
    if not 0 < decay < 1:
        raise ValueError(f"decay is {decay!r}; expected a number inside (0, 1), such as 0.999.")
    optimizer = optax.with_extra_args_support(optimizer)

    def init(params: Any) -> Averaging:
        return Averaging(optimizer.init(params), params, jnp.zeros((), jnp.int32))

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> tuple[Any, Averaging]:
        updates, inner = optimizer.update(updates, state.inner, params, **extra)
        count = state.count + 1
        fresh = 1 - jnp.minimum(decay, (1 + count) / (10 + count))
        average = optax.incremental_update(optax.apply_updates(params, updates), state.average, fresh)
        return updates, Averaging(inner, average, count)

    return optax.GradientTransformationExtraArgs(init, update)


def average(optimizer_state: Any, params: dict[str, Any]) -> dict[str, Any]:
    """The averages that optimizers keep of these parameters, where they do, else the parameters."""
    states = jax.tree.leaves(optimizer_state, is_leaf=lambda node: isinstance(node, Averaging))
    for state in states:
        if isinstance(state, Averaging):
            params = params | state.average
    return params


__all__ = ["Averaging", "average", "averaged"]
