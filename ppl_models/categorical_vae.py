r"""Variational autoencoder with categorical latents: a row of pixels from a few choices, through a network.

    z_m ~ Categorical(1/K, ..., 1/K) for m = 1, ..., M,    x | z ~ p(x | f(z)),    f: the decoder

Each z_m is one-hot, a value of ``Multinomial(1, ...)``, so that draws can be relaxed into weights
(``inference.objectives.GumbelSoftmax``, ``StraightThrough``). With few latents the likelihood
p(x) = K^-M sum_z p(x | z) is a sum that can be carried out.

References
----------
Categorical Reparameterization with Gumbel-Softmax (Jang, Gu & Poole, 2017).
The Concrete Distribution: A Continuous Relaxation of Discrete Random Variables (Maddison, Mnih & Teh, 2017).
"""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpyro
from array_api_compat import array_namespace, device
from jaxtyping import Float

from ppl_models.binary_states import mixture
from ppl_models.likelihoods import Bernoulli, Likelihood, check_likelihood
from ppl_models.networks import check_architecture, check_count, network, one_hot, row_shape

MAX_STATES = 2**16


@dataclass(frozen=True)
class CategoricalVAE:
    """VAE with M choices of K: sites ``z`` (num_latents, num_categories), one-hot, and ``x``; parameter ``decoder``.

    Parameters
    ----------
    num_latents, num_categories
        M and K.
    decoder
        Architecture that maps the one-hot choices, side by side, to the likelihood's outputs: see
        :func:`ppl_models.networks.network`.
    likelihood
        What the outputs mean: see :mod:`ppl_models.likelihoods`.
    ppl
        ``numpyro`` or ``pyro``.

    Raises
    ------
    ValueError
        ``num_latents`` or ``num_categories`` is not a whole number of at least 1.
    TypeError
        ``decoder`` cannot be run by ``ppl``, or ``likelihood`` is none.
    """

    num_latents: int
    num_categories: int
    decoder: Any
    likelihood: Likelihood = Bernoulli()
    ppl: ModuleType = numpyro

    def __post_init__(self) -> None:
        check_count(num_latents=self.num_latents, num_categories=self.num_categories)
        check_architecture(self.ppl, "decoder", self.decoder)
        check_likelihood(self.likelihood)

    def __call__(self, x: Float[Any, "batch pixels"], num_data: int | None = None) -> Any:
        """Sample the choices and observe x.

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
        ppl, xp, size = self.ppl, array_namespace(x), self.num_latents * self.num_categories
        f = network(ppl, "decoder", self.decoder, size, self.likelihood.outputs_per_pixel * row_shape(x)[1])
        even = xp.zeros((len(x), self.num_latents, self.num_categories), dtype=x.dtype, device=device(x))
        with ppl.plate("data", num_data or len(x), subsample_size=len(x)):
            z = ppl.sample("z", ppl.distributions.Multinomial(1, logits=even).to_event(1))
            row = 1.0 * z.reshape((*z.shape[:-2], size))  # drawn as whole numbers
            return ppl.sample("x", self.likelihood(ppl, f(row)), obs=x)  # x ~ p(x | f(z))

    @property
    def marginal(self) -> _Marginal:
        """The same program with z summed out exactly, a value like the model.

        Raises
        ------
        AttributeError
            More than 2^16 joint choices.
        """
        if self.num_categories**self.num_latents > MAX_STATES:
            raise AttributeError(
                f"CategoricalVAE has no marginal with {self.num_latents} latents of {self.num_categories} categories: "
                f"it would sum over {self.num_categories}^{self.num_latents} states, and does so up to {MAX_STATES}. "
                "Estimate the likelihood with importance samples of a guide."
            )
        return _Marginal(self)


@dataclass(frozen=True)
class _Marginal:
    """The program x ~ K^-M sum_z p(x | z)."""

    model: CategoricalVAE

    def __call__(self, x: Float[Any, "batch pixels"], num_data: int | None = None) -> Any:
        m, ppl, xp = self.model, self.model.ppl, array_namespace(x)
        size = m.num_latents * m.num_categories
        f = network(ppl, "decoder", m.decoder, size, m.likelihood.outputs_per_pixel * x.shape[-1])
        index = xp.arange(m.num_categories**m.num_latents, device=device(x))
        # The choices of state s are its digits in base K.
        digits = xp.stack([index // m.num_categories**n % m.num_categories for n in range(m.num_latents)], axis=-1)
        states = one_hot(digits, m.num_categories, x).reshape((len(index), size))
        log_weights = xp.log(xp.full((len(index),), 1 / len(index), dtype=x.dtype, device=device(x)))
        row = mixture(ppl, log_weights, f(states), m.likelihood)
        with ppl.plate("data", num_data or len(x), subsample_size=len(x)):
            return ppl.sample("x", row, obs=x)
