r"""Amortized flow guide: a Normal guessed from the row, bent by invertible layers that see the row too.

    (loc, raw, h) = encoder(x),    z_0 ~ N(loc, diag(softplus(raw))²),    z = T(z_0; h)
    log q(z | x) = log N(z_0) - log|det dT/dz_0|

With autoregressive layers this is inverse autoregressive flow, with planar ones the planar flow. Of a draw the
density is known from the drawing. At any other z it is exact too, but T has to be inverted: one pass of the network
for each coordinate, or an equation in one unknown for each planar layer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpyro
import numpyro.distributions as dist
from jaxtyping import Float

from guides.sites import check_site
from ppl_models.networks import check_architecture, network, softplus
from ppl_models.networks.bijections import AutoregressiveFlow, FlowTransform, bijection

SCALE_FLOOR = 1e-6  # as in AmortizedNormal


@dataclass(frozen=True)
class AmortizedFlow:
    """Normal from an encoder, then a conditional flow: parameter sites ``encoder`` and ``flow``. NumPyro only.

    Parameters
    ----------
    latent_dim
        Length of the latent.
    network
        Architecture that maps a row to ``2 * latent_dim + context_dim`` numbers: locations, scales before their
        softplus, and what the flow is given: see :func:`ppl_models.networks.network`.
    flow
        Description of T with ``build(dim, key, context_dim)``: ``AutoregressiveFlow()`` or ``PlanarFlow()`` of
        :mod:`ppl_models.networks.flows`.
    context_dim
        Length of h.
    site
        Name of the model's latent site.

    Raises
    ------
    ValueError
        A size that is not a whole number of at least 1, or an empty ``site``.
    TypeError
        ``network`` or ``flow`` is no description.

    References
    ----------
    Variational Inference with Normalizing Flows (Rezende & Mohamed, 2015).
    Improving Variational Inference with Inverse Autoregressive Flow (Kingma et al., 2016).
    """

    latent_dim: int
    network: Any
    flow: Any = AutoregressiveFlow()
    context_dim: int = 16
    site: str = "z"
    ppl = numpyro  # no field: there is no other

    def __post_init__(self) -> None:
        for name in ("latent_dim", "context_dim"):
            size = getattr(self, name)
            if not isinstance(size, int) or size < 1:
                raise ValueError(f"{name} is {size!r}; expected a whole number of at least 1.")
        check_site(self.site)
        check_architecture(numpyro, "network", self.network)
        if isinstance(self.flow, type) or not callable(getattr(self.flow, "build", None)):
            raise TypeError(
                f"flow is {self.flow!r}; expected a description with build(dim, key, context_dim), such as "
                "AutoregressiveFlow()."
            )

    def __call__(self, x: Float[Any, "batch pixels"], num_data: int | None = None) -> Any:
        """Sample the latent of each row.

        Parameters
        ----------
        x
            Rows, shape ``(batch, pixels)``.
        num_data
            Rows in the whole data set, ``batch`` by default.

        Returns
        -------
        Array
            Latents, shape ``(batch, latent_dim)``.
        """
        q = self.conditional(x)
        with numpyro.plate("data", num_data or len(x), subsample_size=len(x)):
            return numpyro.sample(self.site, q)

    def conditional(self, x: Float[Any, "batch pixels"]) -> Any:
        """q(z | x) for each row, to be called inside a program."""
        d = self.latent_dim
        outputs = network(numpyro, "encoder", self.network, x.shape[-1], 2 * d + self.context_dim)(x)
        loc, raw, h = outputs[..., :d], outputs[..., d : 2 * d], outputs[..., 2 * d :]
        base = dist.Normal(loc, softplus(raw) + SCALE_FLOOR).to_event(1)
        return dist.TransformedDistribution(base, FlowTransform(bijection("flow", self.flow, d, self.context_dim), h))
