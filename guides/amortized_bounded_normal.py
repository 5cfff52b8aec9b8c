r"""Amortized Normal guide whose scales stay between bounds, so that its KL to a given prior cannot vanish.

    q(z | x) = N(loc(x), diag(scale(x))²),    (loc, raw) = encoder(x),    scale = low + (high - low) sigmoid(raw)

Of a standard normal prior each coordinate costs ½ (loc² + scale² - 1) - log scale nats, which for scale <= high < 1 is
at least ½ (high² - 1) - log high, whatever the row. Under an AR(1) prior independent coordinates cost something
whatever their scales, and more under bounds: ``AR1Prior(...).minimal_kl(latent_dim, guide.scale_bounds)`` is the
committed rate in nats, and :mod:`ppl_models.ar1_prior` derives it.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpyro
from array_api_compat import array_namespace
from jaxtyping import Float

from guides.sites import check_site
from ppl_models.networks import check_architecture, check_count, network, softplus
from ppl_models.networks.rows import SCALE_FLOOR


@dataclass(frozen=True)
class AmortizedBoundedNormal:
    """Normal with independent coordinates of bounded scale, from an encoder: parameter site ``encoder``.

    Parameters
    ----------
    latent_dim
        Length of the latent.
    network
        Architecture that maps a row to ``2 * latent_dim`` numbers, locations and then scales before their sigmoid: see
        :func:`ppl_models.networks.network`.
    scale_bounds
        Least and greatest standard deviation.
    site
        Name of the model's latent site.
    ppl
        ``numpyro`` or ``pyro``.

    Raises
    ------
    ValueError
        ``latent_dim`` is not a whole number of at least 1, ``site`` is empty, or the bounds are not two increasing
        numbers from 0.
    TypeError
        ``network`` cannot be run by ``ppl``.

    References
    ----------
    Preventing Posterior Collapse with delta-VAEs (Razavi, van den Oord, Poole and Vinyals, 2019).
    """

    latent_dim: int
    network: Any
    scale_bounds: tuple[float, float] = (0.0, 0.5)
    site: str = "z"
    ppl: ModuleType = numpyro

    def __post_init__(self) -> None:
        check_count(latent_dim=self.latent_dim)
        check_site(self.site)
        low, high = self.scale_bounds
        if not 0 <= low < high < float("inf"):
            raise ValueError(f"scale_bounds is {self.scale_bounds}; expected (least, greatest), from 0.")
        object.__setattr__(self, "scale_bounds", (float(low), float(high)))
        check_architecture(self.ppl, "network", self.network)

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
        outputs = self.encode(x)
        with self.ppl.plate("data", num_data or len(x), subsample_size=len(x)):
            return self.ppl.sample(self.site, self.at(outputs))

    def encode(self, x: Float[Any, "batch pixels"]) -> Float[Any, "batch outputs"]:
        """The network's outputs for these rows: the parameters of q(z | x), unconstrained."""
        return network(self.ppl, "encoder", self.network, x.shape[-1], 2 * self.latent_dim)(x)

    def at(self, outputs: Float[Any, "*batch outputs"]) -> Any:
        """Distribution over z with these parameters."""
        xp, (low, high) = array_namespace(outputs), self.scale_bounds
        low = max(low, min(SCALE_FLOOR, high / 2))
        loc, raw = outputs[..., : self.latent_dim], outputs[..., self.latent_dim :]
        sigmoid = xp.exp(-softplus(-raw))
        return self.ppl.distributions.Normal(loc, low + (high - low) * sigmoid).to_event(1)

    def conditional(self, x: Float[Any, "batch pixels"]) -> Any:
        """q(z | x) for each row, to be called inside a program."""
        return self.at(self.encode(x))
