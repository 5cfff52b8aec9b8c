"""Amortized implicit guide: a network makes the latent of every row from the row and noise.

    z = f(x, e),    e ~ N(0, I)

q(z | x) may have any shape, several modes too, but its density cannot be had: a critic stands in for it
(``inference.AdversarialVariationalBayes``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from jaxtyping import Array, Float

from guides.sites import check_site
from ppl_models.networks import check_architecture, check_count, network


@dataclass(frozen=True)
class AmortizedImplicit:
    """Latents made by a network: parameter site ``encoder``, sites ``noise`` and, deterministic, the latent.

    Parameters
    ----------
    latent_dim
        Length of the latent.
    network
        Architecture that maps a row and noise after it to a latent: see :func:`ppl_models.networks.network`.
    noise_dim
        Length of the noise; as many as the latent has or more.
    site
        Name of the model's latent site.

    Raises
    ------
    ValueError
        ``latent_dim`` or ``noise_dim`` is not a whole number of at least 1, or ``site`` is empty.
    TypeError
        ``network`` cannot be run by NumPyro.

    References
    ----------
    Adversarial Variational Bayes (Mescheder, Nowozin and Geiger, 2017).
    """

    latent_dim: int
    network: Any
    noise_dim: int = 4
    site: str = "z"

    def __post_init__(self) -> None:
        check_count(latent_dim=self.latent_dim, noise_dim=self.noise_dim)
        check_site(self.site)
        check_architecture(numpyro, "network", self.network)

    def __call__(self, x: Float[Array, "batch pixels"], num_data: int | None = None) -> Float[Array, "batch latent"]:
        """Make the latent of each row.

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
        f = network(numpyro, "encoder", self.network, x.shape[-1] + self.noise_dim, self.latent_dim)
        with numpyro.plate("data", num_data or len(x), subsample_size=len(x)):
            e: Any = numpyro.sample("noise", dist.Normal(0.0, 1.0).expand([self.noise_dim]).to_event(1))
            z = f(jnp.concatenate([x, e], axis=-1))  # z = f(x, e)
            numpyro.deterministic(self.site, z)
            return z
