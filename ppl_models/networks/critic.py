"""A critic: a score for each row, large where the row looks like data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpyro
from jaxtyping import Array, Float

from .apply import check_architecture, network


@dataclass(frozen=True)
class Critic:
    """A network over whole rows, a program with parameter ``critic``.

    Parameters
    ----------
    network
        Architecture that maps the numbers of a row to one: see :func:`network`.

    Raises
    ------
    TypeError
        ``network`` cannot be run by NumPyro.
    """

    network: Any

    def __post_init__(self) -> None:
        check_architecture(numpyro, "network", self.network)

    def __call__(self, **rows: Float[Array, "batch *event"]) -> Float[Array, " batch"]:
        """Scores of rows, by the name of the site or input: ``x``, and ``z`` or ``y`` where there are such."""
        row = jnp.concatenate([rows[n].reshape(len(rows[n]), -1) for n in sorted(rows)], axis=-1)
        return network(numpyro, "critic", self.network, row.shape[-1], 1)(row)[:, 0]
