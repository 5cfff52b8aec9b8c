r"""Amortized Bernoulli guide: layer by layer upwards, each unit guessed independently of its neighbours.

    q(z_1 | x) q(z_2 | z_1) ... q(z_L | z_{L-1}),
    q(z_l | below) = prod_j Bernoulli(z_lj; sigma(g_l(2 below - 1)_j)),    below = x, z_1, z_2 ...

Because nothing is stored per row, it guesses for rows it has never seen. Within a layer it cannot say that
one cause explains another away; :class:`~guides.AutoregressiveBernoulli` can.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from types import ModuleType
from typing import Any

import numpyro
from jaxtyping import Float

from ppl_models.networks import Linear, bits, check_architecture, network


@dataclass(frozen=True)
class AmortizedBernoulli:
    """Independent bits in each layer, from a network: parameter sites ``encoder1`` to ``encoderL``.

    Rows and bits enter the networks as 2 x - 1, so that zeros and ones are centred.

    Parameters
    ----------
    layers
        Units of each layer, from the data upwards, as in ``SigmoidBeliefNetwork``.
    network
        Architecture that maps a row to the logits of the first layer: see
        :func:`ppl_models.networks.network`. Between layers the maps are affine, as in the model.
    sites
        Names of the model's latent sites, ``("z1", "z2", ...)`` by default; ``("z",)`` for ``DiscreteVAE``.
    ppl
        ``numpyro`` or ``pyro``.

    Raises
    ------
    ValueError
        ``layers`` is not one or more whole numbers of at least 1, or ``sites`` does not name each once.
    TypeError
        ``network`` cannot be run by ``ppl``.

    References
    ----------
    Neural Variational Inference and Learning in Belief Networks (Mnih and Gregor, 2014).
    """

    layers: tuple[int, ...] = (20,)
    network: Any = Linear()
    sites: tuple[str, ...] = ()
    ppl: ModuleType = numpyro

    def __post_init__(self) -> None:
        layers = tuple(self.layers) if isinstance(self.layers, (tuple, list)) else (self.layers,)
        if not layers or not all(isinstance(n, int) and not isinstance(n, bool) and n >= 1 for n in layers):
            raise ValueError(f"layers is {self.layers!r}; expected whole numbers of at least 1, from the data upwards.")
        object.__setattr__(self, "layers", layers)
        sites = (self.sites,) if isinstance(self.sites, str) else tuple(self.sites)
        sites = sites or tuple(f"z{layer}" for layer in range(1, len(layers) + 1))
        if len(set(sites)) != len(layers) or not all(isinstance(name, str) and name for name in sites):
            raise ValueError(f"sites is {self.sites!r}; expected {len(layers)} different names, one for each layer.")
        object.__setattr__(self, "sites", sites)
        check_architecture(self.ppl, "network", self.network)

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
            The top layer, shape ``(batch, layers[-1])``.
        """
        ppl, below = self.ppl, x
        encoders = [
            network(ppl, f"encoder{n}", self.network if n == 1 else Linear(), in_size, out_size)
            for n, (in_size, out_size) in enumerate(pairwise((x.shape[-1], *self.layers)), 1)
        ]
        with ppl.plate("data", num_data or len(x), subsample_size=len(x)):
            for site, encode in zip(self.sites, encoders, strict=True):
                logits = encode(2.0 * below - 1.0)
                below = ppl.sample(site, bits(ppl, logits).to_event(1))
        return below
