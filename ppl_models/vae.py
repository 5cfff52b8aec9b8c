r"""Variational autoencoder: a row of pixels from a few Normal latents, through a network.

    z ~ N(0, I),    x | z ~ p(x | f(z)),    f: the decoder

Nothing here approximates: this is the model p(x, z). The encoder is a guide (``guides.AmortizedNormal``),
and the bound that trains both is an objective.

References
----------
Auto-Encoding Variational Bayes (Kingma & Welling, 2014).
Stochastic Backpropagation and Approximate Inference in Deep Generative Models (Rezende, Mohamed &
Wierstra, 2014).
"""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpyro
from array_api_compat import array_namespace, device
from jaxtyping import Float

from ppl_models.likelihoods import Bernoulli, Likelihood
from ppl_models.networks import check_architecture, network


@dataclass(frozen=True)
class VAE:
    """Variational autoencoder, a program with sites ``z`` (latent_dim,), ``x`` and parameter ``decoder``.

    Parameters
    ----------
    latent_dim
        Length of z.
    decoder
        Architecture that maps z to the likelihood's outputs, sized from the data: see
        :func:`ppl_models.networks.network`.
    likelihood
        What the outputs mean: see :mod:`ppl_models.likelihoods`.
    ppl
        ``numpyro`` or ``pyro``.

    Raises
    ------
    ValueError
        ``latent_dim`` is not a whole number of at least 1.
    TypeError
        ``decoder`` cannot be run by ``ppl``, or ``likelihood`` is none.
    """

    latent_dim: int
    decoder: Any
    likelihood: Likelihood = Bernoulli()
    ppl: ModuleType = numpyro

    def __post_init__(self) -> None:
        if not isinstance(self.latent_dim, int) or self.latent_dim < 1:
            raise ValueError(f"latent_dim is {self.latent_dim!r}; expected a whole number of at least 1.")
        check_architecture(self.ppl, "decoder", self.decoder)
        if isinstance(self.likelihood, type) or not isinstance(self.likelihood, Likelihood):
            raise TypeError(f"likelihood is {self.likelihood!r}; expected a value such as Bernoulli().")

    def __call__(self, x: Float[Any, "batch pixels"], num_data: int | None = None) -> Any:
        """Sample z and observe x.

        Parameters
        ----------
        x
            Rows of pixels in the likelihood's support, shape ``(batch, pixels)``.
        num_data
            Rows in the whole data set, ``batch`` by default.

        Returns
        -------
        Array
            The observed rows.
        """
        ppl, xp = self.ppl, array_namespace(x)
        batch, pixels = x.shape
        f = network(ppl, "decoder", self.decoder, self.latent_dim, self.likelihood.outputs_per_pixel * pixels)
        zeros = xp.zeros((batch, self.latent_dim), dtype=x.dtype, device=device(x))
        with ppl.plate("data", num_data or batch, subsample_size=batch):
            z = ppl.sample("z", ppl.distributions.Normal(zeros, 1.0).to_event(1))  # z ~ N(0, I)
            return ppl.sample("x", self.likelihood(ppl, f(z)), obs=x)  # x ~ p(x | f(z))
