r"""Dilated causal convolutions: a sequence, step after step, each step from exponentially many before it.

    p(x | c) = prod_t p(x_t | x_<t, c),    c: a class, or what a latent says of each step

References
----------
WaveNet: A Generative Model for Raw Audio (van den Oord et al., 2016).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpyro
from jaxtyping import Float

from ppl_models.autoregressive import Rows, autoregressive, check_autoregressive, class_context
from ppl_models.likelihoods import Bernoulli, Likelihood
from ppl_models.networks.causal import GatedCausalNetwork
from ppl_models.networks.layers import check_sizes


@dataclass(frozen=True)
class CausalCNN:
    """Causal convolutions, a program with the site ``x``, its class ``y`` if there are any, and parameter ``network``.

    It has no latents: ``SVI(CausalCNN(), guides.empty, ELBO(), optimizer)`` is maximum likelihood.

    Parameters
    ----------
    channels
        Channels of each layer.
    kernel_size
        Taps of a convolution, at least 2.
    dilations
        Steps between the taps of each layer. A step sees ``1 + (kernel_size - 1) * sum(dilations)`` steps back.
    likelihood
        Of a step given those before it: see :mod:`ppl_models.likelihoods`.
    num_classes
        With classes, rows come with labels ``y`` below this number, each class as likely as the others:
        p(x, y) = p(x | y) / num_classes.

    Raises
    ------
    ValueError
        Sizes that are not whole numbers of at least 1, a kernel of one tap, no dilation.
    TypeError
        ``likelihood`` is none.
    """

    channels: int = 32
    kernel_size: int = 2
    dilations: tuple[int, ...] = (1, 2, 4, 8)
    likelihood: Likelihood = Bernoulli()
    num_classes: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "dilations", tuple(self.dilations))
        check_sizes("channels", (self.channels,))
        check_sizes("kernel_size", (self.kernel_size,))
        check_sizes("dilations", self.dilations)
        if not self.dilations or self.kernel_size < 2:
            raise ValueError(
                f"kernel_size is {self.kernel_size}, dilations {self.dilations}; expected 2 taps and a layer at least."
            )
        check_autoregressive(self)

    def __call__(self, x: Float[Any, "batch steps"], y: Any = None, num_data: int | None = None) -> Any:
        """Observe x, step after step.

        Parameters
        ----------
        x
            Sequences in the likelihood's support, shape ``(batch, steps)``.
        y
            Labels, whole numbers below ``num_classes``, shape ``(batch,)``; none without classes.
        num_data
            Rows in the whole data set, ``batch`` by default.

        Returns
        -------
        Array
            The observed sequences.
        """
        row = self.rows("network", x.shape[-1], self.num_classes)
        with numpyro.plate("data", num_data or len(x), subsample_size=len(x)):
            given = class_context(self.num_classes, x, y)
            return numpyro.sample("x", row(given), obs=x)  # x_t ~ p(x_t | x_<t)

    def rows(self, name: str, pixels: int, features: int) -> Rows:
        """Sequences given the context of every step, or of all: see ``ppl_models.autoregressive.autoregressive``."""
        return autoregressive(name, self.build, self.likelihood, pixels, features)

    def positions(self, pixels: int) -> int:
        """A context for every step."""
        return pixels

    @property
    def build(self) -> Callable[..., GatedCausalNetwork]:
        """What makes the network, of the sizes that :func:`~ppl_models.autoregressive.autoregressive` gives it."""
        sizes = {"channels": self.channels, "kernel_size": self.kernel_size, "dilations": self.dilations}
        return partial(GatedCausalNetwork, **sizes)
