"""Amortized Normal guide: one network guesses the latent of every row from the row.

    q(z | x) = N(loc(x), diag(scale(x))²),    (loc, raw) = encoder(x),    scale = softplus(raw)

Because nothing is stored per row, it guesses for rows it has never seen.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpyro
from jaxtyping import Float

from guides.sites import check_site
from ppl_models.networks import check_architecture, check_count, diagonal_normal, network


@dataclass(frozen=True)
class AmortizedNormal:
    """Normal with independent coordinates, from an encoder: parameter site ``encoder``.

    Parameters
    ----------
    latent_dim
        Length of the latent.
    network
        Architecture that maps a row to ``2 * latent_dim`` numbers, locations and then scales before
        their softplus: see :func:`ppl_models.networks.network`.
    site
        Name of the model's latent site.
    ppl
        ``numpyro`` or ``pyro``.

    Raises
    ------
    ValueError
        ``latent_dim`` is not a whole number of at least 1, or ``site`` is empty.
    TypeError
        ``network`` cannot be run by ``ppl``.

    References
    ----------
    Auto-Encoding Variational Bayes (Kingma & Welling, 2014).
    """

    latent_dim: int
    network: Any
    site: str = "z"
    ppl: ModuleType = numpyro

    def __post_init__(self) -> None:
        check_count(latent_dim=self.latent_dim)
        check_site(self.site)
        check_architecture(self.ppl, "network", self.network)

    def __call__(self, x: Float[Any, "batch pixels"], num_data: int | None = None) -> Any:
        """Sample the latent of each row.

        Parameters
        ----------
        x
            Rows, shape ``(batch, pixels)``.
        num_data
            Rows in the whole data set, ``batch`` by default.

        Returns
        -------
        Array
            Latents, shape ``(batch, latent_dim)``.
        """
        outputs = self.encode(x)
        with self.ppl.plate("data", num_data or len(x), subsample_size=len(x)):
            return self.ppl.sample(self.site, self.at(outputs))

    def encode(self, x: Float[Any, "batch pixels"]) -> Float[Any, "batch outputs"]:
        """The network's outputs for these rows: the parameters of q(z | x), unconstrained."""
        return network(self.ppl, "encoder", self.network, x.shape[-1], 2 * self.latent_dim)(x)

    def at(self, outputs: Float[Any, "*batch outputs"]) -> Any:
        """Distribution over z with these parameters."""
        return diagonal_normal(self.ppl, outputs)

    def conditional(self, x: Float[Any, "batch pixels"]) -> Any:
        """q(z | x) for each row, to be called inside a program."""
        return self.at(self.encode(x))
