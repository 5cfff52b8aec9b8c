r"""Semi-supervised variational autoencoder, M2: a class and a style make a row of pixels; few rows have their class.

    y ~ Categorical(1/C, ..., 1/C),    z ~ N(0, I),    x | y, z ~ p(x | f(z, y)),    f: the decoder

y is observed in some rows and latent in the others, so that a row has the likelihood

    log p(x, y) = log p(y) + log E_p(z)[p(x | y, z)]    where its class is known,
    log p(x)    = log sum_y p(x, y)                     where it is not.

With the guide q(y | x) q(z | x, y) (``guides.SemiSupervisedNormal``) these have the bounds

    L(x, y) = E_q(z | x, y)[log p(x | y, z)] + log p(y) - KL(q(z | x, y) || p(z)),
    U(x)    = sum_y q(y | x) L(x, y) + H[q(y | x)],

and ``inference.objectives.EnumeratedELBO`` carries out the sum over y. q(y | x) is the classifier; it has no part
in L, so the guide also asks it to predict the classes that are known.

References
----------
Semi-supervised Learning with Deep Generative Models (Kingma, Rezende, Mohamed & Welling, 2014).
"""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpyro
from array_api_compat import array_namespace, device
from jaxtyping import Float, Int

from ppl_models.likelihoods import Bernoulli, Likelihood, check_likelihood
from ppl_models.networks import (
    beside,
    check_architecture,
    check_classes,
    check_count,
    network,
    one_hot,
    row_shape,
    where,
)
from ppl_models.priors import StandardNormal


@dataclass(frozen=True)
class SemiSupervisedVAE:
    """M2, a program with sites ``y``, ``y_hidden``, ``z`` (latent_dim,) and ``x``, and the parameter ``decoder``.

    A row's class is the observed site ``y`` where it is known and the latent ``y_hidden`` where it is not; each is
    masked where it is the other.

    Parameters
    ----------
    num_classes
        C, how many classes there are.
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
        """Sample class and z, and observe x and the classes that are known.

        Parameters
        ----------
        x
            Rows of pixels in the likelihood's support, shape ``(batch, pixels)``.
        y
            Classes from 0 to C - 1, and -1 where unknown (as in scikit-learn), shape ``(batch,)``.
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
        check_classes(y, self.num_classes, unknown=True)
        ppl, xp = self.ppl, array_namespace(x)
        batch, pixels = row_shape(x)
        in_size = self.latent_dim + self.num_classes
        f = network(ppl, "decoder", self.decoder, in_size, self.likelihood.outputs_per_pixel * pixels)
        even = xp.zeros((batch, self.num_classes), dtype=x.dtype, device=device(x))
        known = y >= 0
        with ppl.plate("data", num_data or batch, subsample_size=batch):
            classes = ppl.distributions.Categorical(logits=even)  # p(y) = 1 / C
            seen = ppl.sample("y", classes.mask(known), obs=where(known, y, 0 * y))
            hidden = ppl.sample("y_hidden", classes.mask(~known))
            y = one_hot(where(known, seen, hidden), self.num_classes, x)
            z = ppl.sample("z", StandardNormal()(ppl, self.latent_dim, x))  # z ~ N(0, I)
            return ppl.sample("x", self.likelihood(ppl, f(beside(z, y))), obs=x)  # x ~ p(x | f(z, y))
