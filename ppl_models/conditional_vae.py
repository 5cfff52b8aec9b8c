r"""Conditional variational autoencoder: a row of pixels of a given class.

    z ~ N(0, I),    x | y, z ~ p(x | f(z, y)),    f: the decoder,    y: the class, an input

The class is known in every row and nothing is said of how classes come about, so that z is left with what is not the
class: style. With the guide q(z | x, y) (``guides.ConditionalNormal``) the bound is on log p(x | y).

References
----------
Learning Structured Output Representation using Deep Conditional Generative Models (Sohn, Lee & Yan, 2015).
"""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpyro
from jaxtyping import Float, Int

from ppl_models.likelihoods import Bernoulli, Likelihood, check_likelihood
from ppl_models.networks import beside, check_architecture, check_classes, check_count, network, one_hot, row_shape
from ppl_models.priors import StandardNormal


@dataclass(frozen=True)
class ConditionalVAE:
    """Conditional VAE, a program of rows and their classes: sites ``z`` (latent_dim,), ``x``; parameter ``decoder``.

    Parameters
    ----------
    num_classes
        How many classes there are. ``generate(n, given={"y": 3})`` draws rows of one.
    latent_dim
        Length of z.
    decoder
        Architecture that maps z and the one-hot class, side by side, to the likelihood's outputs: see
        :func:`ppl_models.networks.network`.
    likelihood
        What the outputs mean: see :mod:`ppl_models.likelihoods`.
    ppl
        ``numpyro`` or ``pyro``.

    Raises
    ------
    ValueError
        ``num_classes`` or ``latent_dim`` is not a whole number of at least 1.
    TypeError
        ``decoder`` cannot be run by ``ppl``, or ``likelihood`` is none.
    """

    num_classes: int
    latent_dim: int
    decoder: Any
    likelihood: Likelihood = Bernoulli()
    ppl: ModuleType = numpyro

    def __post_init__(self) -> None:
        check_count(num_classes=self.num_classes, latent_dim=self.latent_dim)
        check_architecture(self.ppl, "decoder", self.decoder)
        check_likelihood(self.likelihood)

    def __call__(self, x: Float[Any, "batch pixels"], y: Int[Any, " batch"], num_data: int | None = None) -> Any:
        """Sample z and observe x, given the class.

        Parameters
        ----------
        x
            Rows of pixels in the likelihood's support, shape ``(batch, pixels)``.
        y
            Classes from 0 to ``num_classes - 1``, shape ``(batch,)``.
        num_data
            Rows in the whole data set, ``batch`` by default.

        Returns
        -------
        Array
            The observed rows.

        Raises
        ------
        ValueError
            x is no matrix, or classes are out of range (as far as they are known: of the first batch of a fit, and
            of rows that it is asked about).
        """
        check_classes(y, self.num_classes)
        ppl, (batch, pixels) = self.ppl, row_shape(x)
        in_size = self.latent_dim + self.num_classes
        f = network(ppl, "decoder", self.decoder, in_size, self.likelihood.outputs_per_pixel * pixels)
        with ppl.plate("data", num_data or batch, subsample_size=batch):
            z = ppl.sample("z", StandardNormal()(ppl, self.latent_dim, x))  # z ~ N(0, I)
            inputs = beside(z, one_hot(y, self.num_classes, x))
            return ppl.sample("x", self.likelihood(ppl, f(inputs)), obs=x)  # x ~ p(x | f(z, y))
