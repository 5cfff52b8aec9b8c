r"""Vector-quantized variational autoencoder: pixels from codes, each of which stands for a vector of a codebook.

    z ~ p(z), one-hot of K at each of P positions,    e_p = z_p E,    x | z ~ p(x | f(e)),    f: the decoder

With classes x | z, y ~ p(x | f(e, y)): what the decoder is told the codes need not hold, and a row decoded under
another class than its own is that row with its identity changed.

Under the uniform prior log p(z) = -P log K. The encoder is a guide (``guides.VectorQuantized``), which takes the code
nearest to its vector; the objective that trains both, with the codebook E, is ``inference.objectives
.VectorQuantization``. A prior may be learned afterwards from the codes alone: see :mod:`ppl_models.code_priors`.

References
----------
Neural Discrete Representation Learning (van den Oord, Vinyals & Kavukcuoglu, 2017).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import log2, prod
from typing import Any

import jax
import jax.numpy as jnp
import numpyro
from jaxtyping import Array, Float

from ppl_models.autoregressive import check_labels, check_num_classes
from ppl_models.binary_states import MAX_BITS, mixture
from ppl_models.code_priors import CodePrior, UniformCodes, check_prior
from ppl_models.likelihoods import Gaussian, Likelihood, check_likelihood
from ppl_models.networks import beside, check_architecture, check_codes, network, one_hot


@dataclass(frozen=True)
class VQVAE:
    """Codes and a decoder: sites ``z`` (*latent_shape, num_codes) and ``x``, parameters ``codebook`` and ``decoder``.

    Parameters
    ----------
    num_codes
        K.
    code_dim
        Length D of a vector of the codebook.
    latent_shape
        One code for the row, ``()``; a sequence, ``(positions,)``; or a grid, ``(height, width)``.
    decoder
        Architecture that maps the vectors of all positions to the likelihood's outputs: a dense one, or
        ``GridDecoder`` for grids.
    likelihood
        What the outputs mean: see :mod:`ppl_models.likelihoods`.
    prior
        p(z): see :mod:`ppl_models.code_priors`.
    num_classes
        With classes, rows come with labels ``y`` below this number, which the decoder is told at every position.

    Raises
    ------
    ValueError
        A size that is not a whole number of at least 1, or more than two axes of latents.
    TypeError
        ``decoder`` cannot be run by NumPyro; ``likelihood`` or ``prior`` is none.
    """

    num_codes: int
    code_dim: int
    latent_shape: tuple[int, ...]
    decoder: Any
    likelihood: Likelihood = Gaussian(0.1)
    prior: CodePrior = UniformCodes()
    num_classes: int = 0

    def __post_init__(self) -> None:
        check_codes(self)
        check_num_classes(self.num_classes)
        check_architecture(numpyro, "decoder", self.decoder)
        check_prior(self.prior)
        check_likelihood(self.likelihood)

    def __call__(self, x: Float[Array, "batch pixels"], y: Any = None, num_data: int | None = None) -> Any:
        """Sample the codes and observe x.

        Parameters
        ----------
        x
            Rows of pixels in the likelihood's support, shape ``(batch, pixels)``.
        y
            Labels, whole numbers below ``num_classes``, shape ``(batch,)``; none without classes. They are an input:
            nothing is said of how classes come about.
        num_data
            Rows in the whole data set, ``batch`` by default.

        Returns
        -------
        Array
            The observed rows.
        """
        check_labels(self.num_classes, y)
        p, codebook, f = _parameters(self, x.shape[-1])
        with numpyro.plate("data", num_data or len(x), subsample_size=len(x)):
            z: Any = numpyro.sample("z", p)
            e: Any = numpyro.deterministic("z_quantized", z @ codebook)  # (batch, *latent_shape, code_dim)
            if self.num_classes:
                told = one_hot(y, self.num_classes, e)  # (batch, num_classes)
                e = beside(e, jnp.expand_dims(told, tuple(range(1, e.ndim - 1))))
            return numpyro.sample("x", self.likelihood(numpyro, f(jnp.reshape(e, (len(x), -1)))), obs=x)

    @property
    def marginal(self) -> _Marginal:
        """The same program with z summed out exactly, a value like the model.

        Raises
        ------
        AttributeError
            More than 2^16 states of the codes, or classes, each of which has states of its own.
        """
        if self.num_classes:
            raise AttributeError(
                f"VQVAE has no marginal with {self.num_classes} classes. Estimate the likelihood with importance "
                "samples of a guide."
            )
        if prod(self.latent_shape) * log2(self.num_codes) > MAX_BITS:
            raise AttributeError(
                f"VQVAE has no marginal with {self.num_codes} codes at {prod(self.latent_shape)} positions: it would "
                f"sum over {self.num_codes}^{prod(self.latent_shape)} states, and does so up to 2^{MAX_BITS}. Estimate "
                "the likelihood with importance samples of a guide."
            )
        return _Marginal(self)


@dataclass(frozen=True)
class _Marginal:
    """The program x ~ sum_z p(z) p(x | z)."""

    model: VQVAE

    def __call__(self, x: Float[Array, "batch pixels"], num_data: int | None = None) -> Any:
        model = self.model
        p, codebook, f = _parameters(model, x.shape[-1])
        positions, k = prod(model.latent_shape), model.num_codes
        states = jnp.arange(k**positions)[:, None] // k ** jnp.arange(positions) % k  # (states, positions)
        z = jax.nn.one_hot(states, k).reshape(-1, *model.latent_shape, k)
        outputs = f(jnp.reshape(z @ codebook, (len(z), -1)))
        row = mixture(numpyro, p.log_prob(z), outputs, model.likelihood)
        with numpyro.plate("data", num_data or len(x), subsample_size=len(x)):
            return numpyro.sample("x", row, obs=x)


def _parameters(model: VQVAE, pixels: int) -> tuple[Any, Any, Callable[[Any], Any]]:
    """p(z), the codebook and the decoder."""
    shape, outputs = (model.num_codes, model.code_dim), model.likelihood.outputs_per_pixel * pixels
    codebook = numpyro.param("codebook", lambda key: jax.random.normal(key, shape))
    f = network(
        numpyro, "decoder", model.decoder, prod(model.latent_shape) * (model.code_dim + model.num_classes), outputs
    )
    return model.prior(model.latent_shape, model.num_codes), codebook, f
