r"""Hierarchical variational autoencoder: latents over latents over a row of pixels.

    z_L ~ N(0, I),    z_l | z_{l+1} ~ N(loc, diag(scale)²)(f_{l+1}(z_{l+1})),    x | z_1 ~ p(x | f_1(z_1)),

with a network f_l for each arrow. The hierarchy makes p(z_1) a rich prior. The two-layer model of Burda et al. is

    HierarchicalVAE((100, 50), decoders=(MLP((200, 200)), MLP((100, 100)))).

Two guides go with it: bottom-up, q(z_1 | x) q(z_2 | z_1) ... (``guides.HierarchicalNormal``), and the ladder's, from
the top down as the model (``guides.TopDownNormal``). Objectives that weigh the KL of each layer, such as ``Beta`` and
``FreeBits``, keep it in the history.

References
----------
Importance Weighted Autoencoders (Burda, Grosse & Salakhutdinov, 2016).
Ladder Variational Autoencoders (Sønderby, Raiko, Maaløe, Sønderby & Winther, 2016).
"""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpyro
from jaxtyping import Float

from ppl_models.likelihoods import Bernoulli, Likelihood, check_likelihood
from ppl_models.networks import check_layers, diagonal_normal, network, row_shape
from ppl_models.priors import StandardNormal


@dataclass(frozen=True)
class HierarchicalVAE:
    """VAE with L layers of latents: sites ``z1``, next to the data, to ``zL``, and ``x``; parameters ``decoder1`` ….

    Parameters
    ----------
    latent_dims
        Length of each layer, from the data upwards: with ``(100, 50)`` z1 has 100 and z2, the top, 50.
    decoders
        Architecture of each arrow, from the data upwards: the first maps z1 to the likelihood's outputs, the second z2
        to the location of z1 and its scale before a softplus, and so on: see :func:`ppl_models.networks.network`. Those
        above the first do better with bounded hidden units (tanh): scales near zero, of rare draws, stop the training.
    likelihood
        What the first decoder's outputs mean: see :mod:`ppl_models.likelihoods`.
    ppl
        ``numpyro`` or ``pyro``.

    Raises
    ------
    ValueError
        ``latent_dims`` is not one or more whole numbers of at least 1, or there is not a decoder for each.
    TypeError
        A decoder that ``ppl`` cannot run, or ``likelihood`` is none.
    """

    latent_dims: tuple[int, ...]
    decoders: tuple[Any, ...]
    likelihood: Likelihood = Bernoulli()
    ppl: ModuleType = numpyro

    def __post_init__(self) -> None:
        dims, decoders = check_layers(self.ppl, self.latent_dims, "decoders", self.decoders)
        object.__setattr__(self, "latent_dims", dims)
        object.__setattr__(self, "decoders", decoders)
        check_likelihood(self.likelihood)

    def __call__(self, x: Float[Any, "batch pixels"], num_data: int | None = None) -> Any:
        """Sample the layers from the top down, and observe x.

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
        ppl, (batch, pixels) = self.ppl, row_shape(x)
        top, outputs = len(self.latent_dims), self.likelihood.outputs_per_pixel * pixels
        f = {}
        for layer, (architecture, dim) in enumerate(zip(self.decoders, self.latent_dims, strict=True), 1):
            f[layer] = network(ppl, f"decoder{layer}", architecture, dim, outputs)
            outputs = 2 * dim  # of the decoder above: location and raw scale
        with ppl.plate("data", num_data or batch, subsample_size=batch):
            z = ppl.sample(f"z{top}", StandardNormal()(ppl, self.latent_dims[-1], x))  # z_L ~ N(0, I)
            for layer in range(top - 1, 0, -1):
                z = ppl.sample(f"z{layer}", diagonal_normal(ppl, f[layer + 1](z)))  # z_l ~ p(z_l | z_{l+1})
            return ppl.sample("x", self.likelihood(ppl, f[1](z)), obs=x)  # x ~ p(x | f_1(z_1))
