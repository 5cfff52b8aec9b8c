r"""Amortized categorical guide: one network guesses the choices of every row from the row.

    q(z | x) = prod_m Categorical(z_m; softmax(encoder(x)_m)),    z_m one-hot

Because nothing is stored per row, it guesses for rows it has never seen.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpyro
from jaxtyping import Float

from ppl_models.networks import check_architecture, check_count, network


@dataclass(frozen=True)
class AmortizedCategorical:
    """Independent choices from an encoder, for ``CategoricalVAE``: parameter site ``encoder``.

    Parameters
    ----------
    num_latents, num_categories
        M choices of K.
    network
        Architecture that maps a row to ``num_latents * num_categories`` logits, latent by latent: see
        :func:`ppl_models.networks.network`.
    site
        Name of the model's latent site.
    ppl
        ``numpyro`` or ``pyro``.

    Raises
    ------
    ValueError
        ``num_latents`` or ``num_categories`` is not a whole number of at least 1.
    TypeError
        ``network`` cannot be run by ``ppl``.

    References
    ----------
    Categorical Reparameterization with Gumbel-Softmax (Jang, Gu & Poole, 2017).
    """

    num_latents: int
    num_categories: int
    network: Any
    site: str = "z"
    ppl: ModuleType = numpyro

    def __post_init__(self) -> None:
        check_count(num_latents=self.num_latents, num_categories=self.num_categories)
        check_architecture(self.ppl, "network", self.network)

    def __call__(self, x: Float[Any, "batch pixels"], num_data: int | None = None) -> Any:
        """Sample the choices of each row.

        Parameters
        ----------
        x
            Rows, shape ``(batch, pixels)``.
        num_data
            Rows in the whole data set, ``batch`` by default.

        Returns
        -------
        Array
            One-hot choices, shape ``(batch, num_latents, num_categories)``.
        """
        ppl, shape = self.ppl, (self.num_latents, self.num_categories)
        encode = network(ppl, "encoder", self.network, x.shape[-1], shape[0] * shape[1])
        with ppl.plate("data", num_data or len(x), subsample_size=len(x)):
            logits = encode(x).reshape((len(x), *shape))
            return ppl.sample(self.site, ppl.distributions.Multinomial(1, logits=logits).to_event(1))
