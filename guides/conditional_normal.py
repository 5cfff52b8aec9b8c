"""Amortized Normal guide of rows whose class is known.

q(z | x, y) = N(loc(x, y), diag(scale(x, y))²),    (loc, raw) = encoder(x, one-hot y),    scale = softplus(raw)
"""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpyro
from jaxtyping import Float, Int

from ppl_models.networks import beside, check_architecture, check_count, diagonal_normal, network, one_hot


@dataclass(frozen=True)
class ConditionalNormal:
    """Normal with independent coordinates, from an encoder of row and class: parameter site ``encoder``.

    Parameters
    ----------
    num_classes
        How many classes there are.
    latent_dim
        Length of the latent ``z``.
    network
        Architecture that maps a row and its one-hot class, side by side, to ``2 * latent_dim`` numbers, locations and
        then scales before their softplus: see :func:`ppl_models.networks.network`.
    ppl
        ``numpyro`` or ``pyro``.

    Raises
    ------
    ValueError
        ``num_classes`` or ``latent_dim`` is not a whole number of at least 1.
    TypeError
        ``network`` cannot be run by ``ppl``.

    References
    ----------
    Learning Structured Output Representation using Deep Conditional Generative Models (Sohn, Lee & Yan, 2015).
    """

    num_classes: int
    latent_dim: int
    network: Any
    ppl: ModuleType = numpyro

    def __post_init__(self) -> None:
        check_count(num_classes=self.num_classes, latent_dim=self.latent_dim)
        check_architecture(self.ppl, "network", self.network)

    def __call__(self, x: Float[Any, "batch pixels"], y: Int[Any, " batch"], num_data: int | None = None) -> Any:
        """Sample the latent of each row.

        Parameters
        ----------
        x
            Rows, shape ``(batch, pixels)``.
        y
            Classes from 0 to ``num_classes - 1``, shape ``(batch,)``.
        num_data
            Rows in the whole data set, ``batch`` by default.

        Returns
        -------
        Array
            Latents, shape ``(batch, latent_dim)``.
        """
        encode = network(self.ppl, "encoder", self.network, x.shape[-1] + self.num_classes, 2 * self.latent_dim)
        with self.ppl.plate("data", num_data or len(x), subsample_size=len(x)):
            inputs = beside(x, one_hot(y, self.num_classes, x))
            return self.ppl.sample("z", diagonal_normal(self.ppl, encode(inputs)))
