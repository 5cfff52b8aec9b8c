r"""A variational autoencoder whose decoder draws pixels one after the other: what pixels say themselves, z need not.

    z ~ N(0, I),    x_i | x_<i, z ~ p(x_i | outputs_i(x_<i, f(z))),    f: the decoder

The likelihood may be any autoregressive model. One that sees all pixels before (MADE, or a PixelCNN of many layers)
can do without z, and the bound then prefers q(z | x) = p(z), which costs nothing; one that sees few leaves to z what is
further away. So its reach decides what the latent holds, and ``inference.bits_back`` counts it.

The prior may be another of :mod:`ppl_models.priors`, or autoregressive too: z_j ~ p(z_j | z_<j) with a learned mean and
scale. Read from z to noise that is an inverse autoregressive flow, whose prior and posterior are equally flexible.

References
----------
PixelVAE: A Latent Variable Model for Natural Images (Gulrajani et al., 2017).
Variational Lossy Autoencoder (Chen et al., 2017).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from jaxtyping import Float

from ppl_models.autoregressive import Rows, no_context
from ppl_models.likelihoods import Likelihood
from ppl_models.networks import check_architecture, check_count, network
from ppl_models.pixel_cnn import PixelCNN
from ppl_models.priors import Prior, StandardNormal


@runtime_checkable
class Autoregressive(Protocol):
    """A model of rows, entry after entry: MADE, PixelCNN, CausalCNN.

    ``rows(name, pixels, features)`` makes, inside a program, the distribution of rows given a context of
    ``features`` numbers at each of ``positions(pixels)``, with the network's weights in the parameter ``name``.
    """

    likelihood: Likelihood
    num_classes: int

    def rows(self, name: str, pixels: int, features: int) -> Rows: ...

    def positions(self, pixels: int) -> int: ...


@dataclass(frozen=True)
class PixelVAE:
    """Latents and an autoregressive likelihood: sites ``z`` (latent_dim,), ``x``, parameters ``decoder``, ``pixels``.

    Parameters
    ----------
    latent_dim
        Length of z.
    decoder
        Architecture f that maps z to ``features`` numbers for each pixel (for the whole row, under MADE), sized from
        the data: see :func:`ppl_models.networks.network`.
    pixels
        The autoregressive model of pixels given what the decoder says, and its likelihood.
    features
        How much the decoder says of each position.
    prior
        What z is drawn from: see :mod:`ppl_models.priors`. Or an autoregressive model of z, such as
        ``MADE((50,), likelihood=GaussianPixelScale())``, parameter ``prior``.

    Raises
    ------
    ValueError
        ``latent_dim`` or ``features`` is not a whole number of at least 1; a model with classes.
    TypeError
        ``decoder`` is no architecture, ``pixels`` no autoregressive model, ``prior`` neither that nor a prior.
    """

    latent_dim: int
    decoder: Any
    pixels: Any = PixelCNN(16, (5, 3))
    features: int = 8
    prior: Any = StandardNormal()

    def __post_init__(self) -> None:
        check_count(latent_dim=self.latent_dim, features=self.features)
        check_architecture(numpyro, "decoder", self.decoder)
        if isinstance(self.pixels, type) or not isinstance(self.pixels, Autoregressive):
            raise TypeError(
                f"pixels is {self.pixels!r}; expected an autoregressive model such as PixelCNN(16, (5, 3))."
            )
        if isinstance(self.prior, type) or not isinstance(self.prior, (Autoregressive, Prior)):
            raise TypeError(f"prior is {self.prior!r}; expected a value such as StandardNormal(), or MADE((50,), ...).")
        for name in ("pixels", "prior"):
            classes = getattr(getattr(self, name), "num_classes", 0)
            if classes:
                raise ValueError(f"{name} has {classes} classes; expected a model without, num_classes=0.")

    def __call__(self, x: Float[Any, "batch pixels"], num_data: int | None = None) -> Any:
        """Sample z and observe x, pixel after pixel.

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
        batch, pixels = x.shape
        positions = self.pixels.positions(pixels)
        f = network(numpyro, "decoder", self.decoder, self.latent_dim, positions * self.features)
        row = self.pixels.rows("pixels", pixels, self.features)
        p_z = self._prior(x)
        with numpyro.plate("data", num_data or batch, subsample_size=batch):
            z: Any = numpyro.sample("z", p_z)
            said = f(z).reshape(*z.shape[:-1], positions, self.features)
            return numpyro.sample("x", row(said), obs=x)  # x_i ~ p(x_i | x_<i, f(z))

    def _prior(self, x: Any) -> dist.Distribution:
        if isinstance(self.prior, Autoregressive):
            return self.prior.rows("prior", self.latent_dim, 0)(no_context(len(x)))
        return self.prior(numpyro, self.latent_dim, jnp.asarray(x, float))
