r"""Bottom-up guide of a hierarchy of Normal latents: each layer is guessed from the one below.

    q(z_1 | x) q(z_2 | z_1) ... q(z_L | z_{L-1}),
    q(z_l | below) = N(loc, diag(scale)²),    (loc, raw) = encoder_l(below),    scale = softplus(raw)

Because nothing is stored per row, it guesses for rows it has never seen.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from types import ModuleType
from typing import Any

import numpyro
from jaxtyping import Float

from ppl_models.networks import check_layers, diagonal_normal, network


@dataclass(frozen=True)
class HierarchicalNormal:
    """Normals from the data upwards, for ``HierarchicalVAE``: parameter sites ``encoder1`` to ``encoderL``.

    Parameters
    ----------
    latent_dims
        Length of each layer, from the data upwards, as in the model.
    encoders
        Architecture of each arrow, from the data upwards: it maps what is below to the location of the layer and its
        scale before a softplus: see :func:`ppl_models.networks.network`.
    ppl
        ``numpyro`` or ``pyro``.

    Raises
    ------
    ValueError
        ``latent_dims`` is not one or more whole numbers of at least 1, or there is not an encoder for each.
    TypeError
        An encoder that ``ppl`` cannot run.

    References
    ----------
    Importance Weighted Autoencoders (Burda, Grosse & Salakhutdinov, 2016).
    """

    latent_dims: tuple[int, ...]
    encoders: tuple[Any, ...]
    ppl: ModuleType = numpyro

    def __post_init__(self) -> None:
        dims, encoders = check_layers(self.ppl, self.latent_dims, "encoders", self.encoders)
        object.__setattr__(self, "latent_dims", dims)
        object.__setattr__(self, "encoders", encoders)

    def __call__(self, x: Float[Any, "batch pixels"], num_data: int | None = None) -> Any:
        """Sample the latents of each row, from the data upwards.

        Parameters
        ----------
        x
            Rows, shape ``(batch, pixels)``.
        num_data
            Rows in the whole data set, ``batch`` by default.

        Returns
        -------
        Array
            The top layer, shape ``(batch, latent_dims[-1])``.
        """
        ppl, sizes = self.ppl, pairwise((x.shape[-1], *self.latent_dims))
        encoders = [
            network(ppl, f"encoder{n}", architecture, below, 2 * dim)
            for n, (architecture, (below, dim)) in enumerate(zip(self.encoders, sizes, strict=True), 1)
        ]
        with ppl.plate("data", num_data or len(x), subsample_size=len(x)):
            z = x
            for layer, encode in enumerate(encoders, 1):
                z = ppl.sample(f"z{layer}", diagonal_normal(ppl, encode(z)))  # z_l ~ q(z_l | z_{l-1})
        return z
