r"""CycleGAN: two sets of rows that are not paired, and a map each way, which undo each other.

    y' = G(x),   x' = F(y)                                             made rows, each judged beside its set
    cycle     weight (|F(G(x)) - x| + |G(F(y)) - y|)                   there and back
    identity  identity weight (|G(y) - y| + |F(x) - x|)                what is there already stays

An implicit model whose noise is the other set's row, so that ``fit.predict(data)`` maps rows, and nothing is made of
none; |.| is the mean absolute difference over a row.

References
----------
Unpaired Image-to-Image Translation using Cycle-Consistent Adversarial Networks (Zhu, Park, Isola and Efros, 2017).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpyro
from jaxtyping import Array, Float

from ppl_models.networks import check_architecture, network


@dataclass(frozen=True)
class CycleGAN:
    """Maps between two sets: deterministic sites ``y`` = G(x) and ``x`` = F(y), parameters ``forward``, ``backward``.

    Parameters
    ----------
    network
        Architecture of both maps: see :func:`ppl_models.networks.network`.
    weight, identity
        Of the cycle and identity losses, in nats per unit of mean absolute difference. The identity loss needs rows of
        one length, and is left out at zero.

    Raises
    ------
    ValueError
        A weight below zero.
    TypeError
        ``network`` cannot be run by NumPyro.
    """

    network: Any
    weight: float = 10.0
    identity: float = 0.0

    def __post_init__(self) -> None:
        for name, value in (("weight", self.weight), ("identity", self.identity)):
            if not 0 <= value < float("inf"):
                raise ValueError(f"{name} is {value}; expected zero or more.")
        check_architecture(numpyro, "network", self.network)

    def __call__(
        self, x: Float[Array, "batch pixels"], y: Float[Array, "batch others"], num_data: int | None = None
    ) -> None:
        """Map each set's rows to the other.

        Parameters
        ----------
        x, y
            Rows of the two sets, shapes ``(batch, pixels)`` and ``(batch, others)``; no row of one belongs to one of
            the other.
        num_data
            Rows in each whole set, ``batch`` by default.
        """
        forward = network(numpyro, "forward", self.network, x.shape[-1], y.shape[-1])  # G
        backward = network(numpyro, "backward", self.network, y.shape[-1], x.shape[-1])  # F
        with numpyro.plate("data", num_data or len(x), subsample_size=len(x)):
            y_made, x_made = forward(x), backward(y)
            numpyro.deterministic("y", y_made)
            numpyro.deterministic("x", x_made)
            cycle = _distance(backward(y_made), x) + _distance(forward(x_made), y)
            numpyro.factor("cycle", -self.weight * cycle)
            if self.identity:
                numpyro.factor("stay", -self.identity * (_distance(forward(y), y) + _distance(backward(x), x)))


def _distance(a: Float[Array, "batch pixels"], b: Float[Array, "batch pixels"]) -> Float[Array, " batch"]:
    return jnp.abs(a - b).mean(-1)
