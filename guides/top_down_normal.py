r"""The ladder's guide of a hierarchy of Normal latents: from the top down, as the model, with word from the data.

A pass upwards, without draws, gives each layer a Normal message from the data,

    (d_l, m_l, raw_l) = encoder_l(d_{l-1}),    d_0 = x,    s_l = softplus(raw_l),

and a pass downwards draws z_L ~ N(m_L, diag(s_L)²) and then each layer from the product of its message and the model's
own p(z_l | z_{l+1}) = N(mu, diag(sigma)²), which weighs the two means by their precisions:

    q(z_l | z_{l+1}, x) = N(v (m / s² + mu / sigma²), diag(v)),    1 / v = 1 / s² + 1 / sigma².

If a message is the likelihood of its layer, this is Bayes' rule. The guide has the model's decoders and their
parameters, which learn from both.

References
----------
Ladder Variational Autoencoders (Sønderby, Raiko, Maaløe, Sønderby & Winther, 2016).
"""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpyro
from jaxtyping import Float

from ppl_models.networks import check_count, check_layers, diagonal_normal, loc_scale, network


@dataclass(frozen=True)
class TopDownNormal:
    """Normals from the top down, for ``HierarchicalVAE``: parameters ``encoder1``, ``encoder2`` …, its ``decoder2`` ….

    Parameters
    ----------
    latent_dims
        Length of each layer, from the data upwards, as in the model.
    encoders
        Architecture of each step upwards, from the data: see :func:`ppl_models.networks.network`.
    decoders
        The model's ``decoders``; the first, of the pixels, has no part in the guide.
    width
        Length of d_l, what a step upwards hands to the next.
    ppl
        ``numpyro`` or ``pyro``.

    Raises
    ------
    ValueError
        ``latent_dims`` is not one or more whole numbers of at least 1, or has not an encoder and a decoder for each.
    TypeError
        A network that ``ppl`` cannot run.
    """

    latent_dims: tuple[int, ...]
    encoders: tuple[Any, ...]
    decoders: tuple[Any, ...]
    width: int = 100
    ppl: ModuleType = numpyro

    def __post_init__(self) -> None:
        dims, encoders = check_layers(self.ppl, self.latent_dims, "encoders", self.encoders)
        _, decoders = check_layers(self.ppl, self.latent_dims, "decoders", self.decoders)
        check_count(width=self.width)
        for name, value in {"latent_dims": dims, "encoders": encoders, "decoders": decoders}.items():
            object.__setattr__(self, name, value)

    def __call__(self, x: Float[Any, "batch pixels"], num_data: int | None = None) -> Any:
        """Sample the latents of each row, from the top down.

        Parameters
        ----------
        x
            Rows, shape ``(batch, pixels)``.
        num_data
            Rows in the whole data set, ``batch`` by default.

        Returns
        -------
        Array
            The layer next to the data, shape ``(batch, latent_dims[0])``.
        """
        ppl, top = self.ppl, len(self.latent_dims)
        d, messages = x, []
        for n, (architecture, dim) in enumerate(zip(self.encoders, self.latent_dims, strict=True), 1):
            width = self.width if n < top else 0
            outputs = network(ppl, f"encoder{n}", architecture, d.shape[-1], width + 2 * dim)(d)
            d, message = outputs[..., :width], outputs[..., width:]
            messages.append(message)
        decoders = {
            n: network(ppl, f"decoder{n + 1}", self.decoders[n], self.latent_dims[n], 2 * self.latent_dims[n - 1])
            for n in range(1, top)
        }
        with ppl.plate("data", num_data or len(x), subsample_size=len(x)):
            z = ppl.sample(f"z{top}", diagonal_normal(ppl, messages[-1]))
            for layer in range(top - 1, 0, -1):
                (m, s), (mu, sigma) = loc_scale(messages[layer - 1]), loc_scale(decoders[layer](z))
                v = 1 / (s**-2 + sigma**-2)
                normal = ppl.distributions.Normal(v * (m * s**-2 + mu * sigma**-2), v**0.5)
                z = ppl.sample(f"z{layer}", normal.to_event(1))
        return z
