"""Guides to the continuous pixels v behind grey levels k: noise u in the cell, v = (k + u) / L.

    UniformDequantization        u ~ U[0, 1)ᴰ
    VariationalDequantization    u = sigmoid(y),  y ~ Logistic(loc(x), scale(x)),  (loc, raw) = encoder(x)

The first has nothing to learn: its bound is that of adding uniform noise to the data. The second contains it (loc 0,
scale 1, which are the outputs of an encoder that puts out zeros), and is tighter where the density is not flat over a
cell.

References
----------
Flow++: Improving Flow-Based Generative Models with Variational Dequantization and Architecture Design (Ho, Chen,
Srinivas, Duan & Abbeel, 2019).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpyro
import numpyro.distributions as dist
from jaxtyping import Array, Float
from numpyro.distributions import transforms

from ppl_models.networks import check_architecture, check_levels, levels_of, network, softplus

SCALE_FLOOR = 1e-2  # u must stay away from the cell's ends, where float32 no longer tells it from them


@dataclass(frozen=True)
class UniformDequantization:
    """v uniform on the cell of the row's levels.

    Parameters
    ----------
    levels
        L, of pixels that are k / (L - 1).
    site
        Name of the model's latent site.

    Raises
    ------
    ValueError
        ``levels`` is not a whole number of at least 2.
    """

    levels: int = 256
    site: str = "v"

    def __post_init__(self) -> None:
        check_levels(self.levels)

    def __call__(self, x: Float[Array, "batch pixels"], num_data: int | None = None) -> Any:
        """Sample v of each row, shape ``(batch, pixels)``."""
        k = levels_of(x, self.levels)
        with numpyro.plate("data", num_data or len(x), subsample_size=len(x)):
            cell = dist.Uniform(k / self.levels, (k + 1) / self.levels)
            return numpyro.sample(self.site, cell.to_event(1))


@dataclass(frozen=True)
class VariationalDequantization:
    """v somewhere in the cell of the row's levels, where an encoder says: parameter site ``encoder``.

    Parameters
    ----------
    levels
        L, of pixels that are k / (L - 1).
    network
        Architecture that maps a row of D pixels to ``2 * D`` numbers: see :func:`ppl_models.networks.network`.
    site
        Name of the model's latent site.

    Raises
    ------
    ValueError
        ``levels`` is not a whole number of at least 2.
    TypeError
        ``network`` cannot be run by NumPyro.
    """

    levels: int
    network: Any
    site: str = "v"

    def __post_init__(self) -> None:
        check_levels(self.levels)
        check_architecture(numpyro, "network", self.network)

    def __call__(self, x: Float[Array, "batch pixels"], num_data: int | None = None) -> Any:
        """Sample v of each row, shape ``(batch, pixels)``."""
        k, pixels = levels_of(x, self.levels), x.shape[-1]
        encode = network(numpyro, "encoder", self.network, pixels, 2 * pixels)
        with numpyro.plate("data", num_data or len(x), subsample_size=len(x)):
            outputs = encode(x)
            loc, raw = outputs[..., :pixels], outputs[..., pixels:]
            into_cell = [
                transforms.SigmoidTransform(),  # u
                transforms.AffineTransform(k / self.levels, 1 / self.levels, dist.constraints.unit_interval),
            ]
            scale = softplus(raw) / math.log(2) + SCALE_FLOOR
            v = dist.TransformedDistribution(dist.Logistic(loc, scale), into_cell)
            return numpyro.sample(self.site, v.to_event(1))
