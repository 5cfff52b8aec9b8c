r"""Discrete variational autoencoder: a row of pixels from a few latent bits, through a deep network.

    z_j ~ Bernoulli(sigma(b_j)),    x | z ~ p(x | f(2 z - 1)),    f: the decoder

With b = 0 every pattern of bits is as likely as any other; a learned b also lets bits be rare. Up to 16
bits the likelihood p(x) = sum_z p(z) p(x | z) is a sum that can be carried out, which makes this the model
on which to compare ways of learning with the truth.

References
----------
Neural Variational Inference and Learning in Belief Networks (Mnih and Gregor, 2014).
Discrete Variational Autoencoders (Rolfe, 2017).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpyro
from array_api_compat import array_namespace, device
from jaxtyping import Float

from ppl_models.binary_states import all_states, centred, check_bits, mixture
from ppl_models.likelihoods import Bernoulli, Likelihood, check_likelihood
from ppl_models.networks import bits, check_architecture, check_count, network, row_shape


@dataclass(frozen=True)
class DiscreteVAE:
    """Latent bits and a deep network: sites ``z`` (num_bits,) and ``x``, parameters ``decoder``, ``prior_logits``.

    Parameters
    ----------
    num_bits
        Length of z.
    decoder
        Architecture that maps z, as -1 and 1, to the likelihood's outputs, sized from the data: see
        :func:`ppl_models.networks.network`.
    likelihood
        What the outputs mean: see :mod:`ppl_models.likelihoods`.
    learn_prior
        Whether the logits b of the bits are learned, the parameter ``prior_logits``; else p(z_j = 1) is 1/2.
    ppl
        ``numpyro`` or ``pyro``.

    Raises
    ------
    ValueError
        ``num_bits`` is not a whole number of at least 1.
    TypeError
        ``decoder`` cannot be run by ``ppl``, or ``likelihood`` is none.
    """

    num_bits: int
    decoder: Any
    likelihood: Likelihood = Bernoulli()
    learn_prior: bool = True
    ppl: ModuleType = numpyro

    def __post_init__(self) -> None:
        check_count(num_bits=self.num_bits)
        check_architecture(self.ppl, "decoder", self.decoder)
        check_likelihood(self.likelihood)

    def __call__(self, x: Float[Any, "batch pixels"], num_data: int | None = None) -> Any:
        """Sample the bits and observe x.

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
        prior, f = _parameters(self, x)
        zeros = xp.zeros((len(x), self.num_bits), dtype=prior.dtype, device=device(x))
        with ppl.plate("data", num_data or len(x), subsample_size=len(x)):
            z = ppl.sample("z", bits(ppl, zeros + prior).to_event(1))
            return ppl.sample("x", self.likelihood(ppl, f(centred(z))), obs=x)  # x ~ p(x | f(2 z - 1))

    @property
    def marginal(self) -> _Marginal:
        """The same program with z summed out exactly, a value like the model.

        Raises
        ------
        AttributeError
            More than 16 bits.
        """
        check_bits(self, self.num_bits)
        return _Marginal(self)


@dataclass(frozen=True)
class _Marginal:
    """The program x ~ sum_z p(z) p(x | z)."""

    model: DiscreteVAE

    def __call__(self, x: Float[Any, "batch pixels"], num_data: int | None = None) -> Any:
        ppl = self.model.ppl
        prior, f = _parameters(self.model, x)
        states = all_states(self.model.num_bits, prior)
        log_weights = bits(ppl, prior).to_event(1).log_prob(states)  # log p(z)
        row = mixture(ppl, log_weights, f(centred(states)), self.model.likelihood)
        with ppl.plate("data", num_data or len(x), subsample_size=len(x)):
            return ppl.sample("x", row, obs=x)


def _parameters(model: DiscreteVAE, x: Any) -> tuple[Any, Callable[[Any], Any]]:
    """Logits of the bits, and the decoder."""
    xp = array_namespace(x)
    start = xp.zeros((model.num_bits,), device=device(x))
    prior = model.ppl.param("prior_logits", start) if model.learn_prior else xp.zeros_like(start)
    outputs = model.likelihood.outputs_per_pixel * row_shape(x)[1]
    return prior, network(model.ppl, "decoder", model.decoder, model.num_bits, outputs)
