r"""Variational autoencoder: a row of pixels from a few Normal latents, through a network.

    z ~ p(z),    x | z ~ p(x | f(z)),    f: the decoder

with p(z) = N(0, I), or another of :mod:`ppl_models.priors`. Nothing here approximates: this is the model
p(x, z). The encoder is a guide (``guides.AmortizedNormal``), and the bound that trains both is an objective.

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
from jaxtyping import Float

from ppl_models.likelihoods import Bernoulli, Likelihood, check_likelihood
from ppl_models.networks import check_architecture, check_count, network, row_shape
from ppl_models.priors import Prior, StandardNormal, VampPrior


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
    prior
        What z is drawn from, which may have parameter sites of its own: see :mod:`ppl_models.priors`.
    ppl
        ``numpyro`` or ``pyro``.

    Raises
    ------
    ValueError
        ``latent_dim`` is not a whole number of at least 1.
    TypeError
        ``decoder`` cannot be run by ``ppl``, or ``likelihood`` or ``prior`` is none.
    """

    latent_dim: int
    decoder: Any
    likelihood: Likelihood = Bernoulli()
    prior: Prior = StandardNormal()
    ppl: ModuleType = numpyro

    def __post_init__(self) -> None:
        check_count(latent_dim=self.latent_dim)
        check_architecture(self.ppl, "decoder", self.decoder)
        check_likelihood(self.likelihood)
        if isinstance(self.prior, type) or not isinstance(self.prior, Prior):
            raise TypeError(f"prior is {self.prior!r}; expected a value such as StandardNormal().")

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
        ppl = self.ppl
        batch, pixels = row_shape(x)
        prior = self.prior(ppl, self.latent_dim, x)
        f = network(ppl, "decoder", self.decoder, self.latent_dim, self.likelihood.outputs_per_pixel * pixels)
        with ppl.plate("data", num_data or batch, subsample_size=batch):
            z = ppl.sample("z", prior)  # z ~ p(z)
            return ppl.sample("x", self.likelihood(ppl, f(z)), obs=x)  # x ~ p(x | f(z))

    @property
    def prior_density(self) -> _PriorDensity:
        """The prior alone as a program whose rows ``x`` are latents, ``(batch, latent_dim)``.

        Fitted by ``SVI(vae.prior_density, guides.empty, ELBO(), optimizer)`` to draws of the latents of a trained
        model, this is maximum likelihood under the aggregate posterior, which is what the prior can do for the bound.

        Raises
        ------
        TypeError
            A VampPrior, whose parameters are rows of data.
        """
        if isinstance(self.prior, VampPrior):
            raise TypeError(
                "the pseudo-inputs of VampPrior are rows of data, not latents: it is fitted with its VAE. MixturePrior "
                "and FlowPrior can be fitted to latents."
            )
        return _PriorDensity(self)


@dataclass(frozen=True)
class _PriorDensity:
    """The program z ~ p(z), observed."""

    model: VAE

    def __call__(self, x: Float[Any, "batch latent_dim"], num_data: int | None = None) -> Any:
        ppl, length = self.model.ppl, self.model.latent_dim
        if x.shape[-1] != length:
            raise ValueError(f"x has rows of {x.shape[-1]} values; expected latents, of {length}.")
        prior = self.model.prior(ppl, length, x)
        with ppl.plate("data", num_data or len(x), subsample_size=len(x)):
            return ppl.sample("x", prior, obs=x)
