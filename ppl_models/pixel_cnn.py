r"""Gated PixelCNN: an image, pixel after pixel, by convolutions that see the pixels above and to the left alone.

    p(x | c) = prod_i p(x_i | x_<i, c),    i in raster order,    c: a class, or what a latent says of each pixel

Of a colour image x_i is one colour of a pixel, drawn given the pixels before and its own colours before. How far a
pixel sees is set by the kernels, which is what a latent variable would have to say otherwise: see
:class:`~ppl_models.PixelVAE`. Where it lies it is told, by a bias of each position: on MNIST that is worth six nats
to a pixel that sees four pixels away.

References
----------
Pixel Recurrent Neural Networks (van den Oord, Kalchbrenner & Kavukcuoglu, 2016).
Conditional Image Generation with PixelCNN Decoders (van den Oord et al., 2016).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import isqrt, prod
from typing import Any

import numpyro
from jaxtyping import Array, Float

from ppl_models.autoregressive import Rows, autoregressive, check_autoregressive, class_context
from ppl_models.likelihoods import Bernoulli, Likelihood
from ppl_models.networks.causal import GatedPixelNetwork, check_kernels
from ppl_models.networks.layers import check_sizes


@dataclass(frozen=True)
class PixelCNN:
    """Gated PixelCNN, a program with the site ``x``, its class ``y`` if there are any, and parameter ``network``.

    It has no latents: ``SVI(PixelCNN(), guides.empty, ELBO(), optimizer)`` is maximum likelihood.

    Parameters
    ----------
    channels
        Channels of each layer.
    kernel_sizes
        Odd width of the kernel of each layer, the first at least 3. A pixel sees the sum of their halves, rounded
        down, to the left, to the right and above.
    image_shape
        ``(height, width)`` or ``(height, width, colours)``; by default a square grey image.
    likelihood
        Of a value given those before it: see :mod:`ppl_models.likelihoods`. Of bytes it is ``Categorical(256)``, or
        ``DiscretizedLogisticMixture()``, which needs fewer outputs and knows that levels are in order.
    num_classes
        With classes, rows come with labels ``y`` below this number, each class as likely as the others:
        p(x, y) = p(x | y) / num_classes.

    Raises
    ------
    ValueError
        Sizes that are not whole numbers of at least 1, even kernels; when run, rows that are no such image.
    TypeError
        ``likelihood`` is none.
    """

    channels: int = 32
    kernel_sizes: tuple[int, ...] = (7, 5, 5)
    image_shape: tuple[int, ...] | None = None
    likelihood: Likelihood = Bernoulli()
    num_classes: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "kernel_sizes", tuple(self.kernel_sizes))
        check_sizes("channels", (self.channels,))
        check_kernels(self.kernel_sizes)
        if self.image_shape is not None:
            object.__setattr__(self, "image_shape", tuple(self.image_shape))
            check_sizes("image_shape", self.image_shape)
            if len(self.image_shape) not in (2, 3):
                raise ValueError(
                    f"image_shape is {self.image_shape}; expected (height, width) or (height, width, colours)."
                )
        check_autoregressive(self)

    def __call__(self, x: Float[Any, "batch pixels"], y: Any = None, num_data: int | None = None) -> Any:
        """Observe x, pixel after pixel.

        Parameters
        ----------
        x
            Rows of pixels in the likelihood's support, shape ``(batch, pixels)``.
        y
            Labels, whole numbers below ``num_classes``, shape ``(batch,)``; none without classes.
        num_data
            Rows in the whole data set, ``batch`` by default.

        Returns
        -------
        Array
            The observed rows.
        """
        row = self.rows("network", x.shape[-1], self.num_classes)
        with numpyro.plate("data", num_data or len(x), subsample_size=len(x)):
            given = class_context(self.num_classes, x, y)
            return numpyro.sample("x", row(given), obs=x)  # x_i ~ p(x_i | x_<i)

    def rows(self, name: str, pixels: int, features: int) -> Rows:
        """Images given the context of every pixel, or of all: see :func:`ppl_models.autoregressive.autoregressive`."""
        return autoregressive(name, self.build, self.likelihood, pixels, features)

    def positions(self, pixels: int) -> int:
        """A context for every pixel, whatever its colours."""
        return pixels // prod((self.image_shape or ())[2:])

    def build(
        self, pixels: int, outputs: int, features: int, centre: Callable[[Array], Array], key: Array
    ) -> GatedPixelNetwork:
        """The network with fresh weights, of the sizes that ``autoregressive`` gives it."""
        shape = self.image_shape or (isqrt(pixels), isqrt(pixels))
        if prod(shape) != pixels:
            given = "no image_shape was given" if self.image_shape is None else f"image_shape is {shape}"
            raise ValueError(
                f"rows have {pixels} pixels and {given}; expected an image_shape=(height, width[, colours]) of as many."
            )
        sizes = {"image_shape": shape, "channels": self.channels, "kernel_sizes": self.kernel_sizes}
        return GatedPixelNetwork(pixels, outputs, features, centre, key, **sizes)
