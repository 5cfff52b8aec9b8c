r"""Grey levels under a continuous density: noise that fills the gaps, as a transform of the data or as a latent.

A pixel with L levels is x = k / (L - 1), k in {0, ..., L - 1}. Let v be continuous, and

    v ~ p(v),    k = floor(L v)    so that    P(k) = integral of p(v) over the cell [k / L, (k + 1) / L)

in each of D pixels, which has no closed form under a flow. For any q(v | k) on the cell, log P(k) is at least
E_q[log p(v) - log q(v | k)]. With q uniform, of density Lᴰ, that is E[log p((k + u) / L)] - D log L, u ~ U[0, 1)ᴰ:
fitting the density to pixels plus noise is that bound (:class:`Dequantize`). A learned q makes it tighter: that
is the program :class:`QuantizedFlow`, whose v a guide guesses (``guides.UniformDequantization``,
``guides.VariationalDequantization``).

References
----------
A Note on the Evaluation of Generative Models (Theis, van den Oord & Bethge, 2016).
Flow++: Improving Flow-Based Generative Models with Variational Dequantization and Architecture Design (Ho, Chen,
Srinivas, Duan & Abbeel, 2019).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jaxtyping import Array, Float
from numpyro.distributions import constraints

from ppl_models.grey_levels import grid
from ppl_models.networks import RealNVP, check_flow, check_levels, flow, levels_of

ROUNDING = 1e-3  # of a cell: L v in float32 may fall that far outside of [k, k + 1)


@dataclass(frozen=True)
class Dequantize:
    """Transform of a data set: x = low + (high - low) (k + u) / L with new noise u for every batch.

    Give it to a data set as its ``transform``: a flow fitted to that maximises a bound on log P(k) plus D log L,
    which :func:`bits_per_dimension` takes off again.

    Parameters
    ----------
    levels
        L, of pixels that are k / (L - 1): 256 for bytes in [0, 1], 17 for scikit-learn's digits.
    low, high
        What x lies between: 0 and 1, or -1 and 1 for a diffusion.

    Raises
    ------
    ValueError
        ``levels`` is not a whole number of at least 2, or ``low`` not below ``high``.
    """

    levels: int = 256
    low: float = 0.0
    high: float = 1.0

    def __post_init__(self) -> None:
        check_levels(self.levels)
        if not self.low < self.high:
            raise ValueError(f"low is {self.low} and high {self.high}; expected an interval.")

    def __call__(self, key: Array, batch: dict[str, Array]) -> dict[str, Array]:
        """The batch with x in [low, high), float32."""
        k = levels_of(batch["x"], self.levels)
        share = (k + jax.random.uniform(key, k.shape)) / self.levels
        return batch | {"x": self.low + (self.high - self.low) * share}


def bits_per_dimension(nats: float, dimensions: int, levels: int = 1) -> float:
    """Bits that a pixel costs: -(log p - D log L) / (D log 2).

    Parameters
    ----------
    nats
        Mean log likelihood, or bound on it, of an image.
    dimensions
        D, pixels (times channels) of an image.
    levels
        L, where ``nats`` is the log of a density of x in [0, 1), as after :class:`Dequantize`; 1, where it is the log
        of a probability of levels already, as of :class:`QuantizedFlow`.
    """
    return float(-(nats / dimensions - np.log(levels)) / np.log(2))


@dataclass(frozen=True)
class QuantizedFlow:
    """Grey levels from a flow: a NumPyro program with sites ``v`` (pixels,) and ``x``, and parameter ``flow``.

    Parameters
    ----------
    architecture
        Description of the flow: see :func:`ppl_models.networks.flow`.
    levels
        L, of pixels that are k / (L - 1).

    Raises
    ------
    TypeError
        ``architecture`` describes no flow.
    ValueError
        ``levels`` is not a whole number of at least 2.
    """

    architecture: Any = RealNVP()
    levels: int = 256

    def __post_init__(self) -> None:
        check_flow("architecture", self.architecture)
        check_levels(self.levels)

    def __call__(self, x: Float[Array, "batch pixels"], num_data: int | None = None) -> Any:
        """Sample v and observe x.

        Parameters
        ----------
        x
            Rows of pixels, each one of ``levels`` numbers from 0 to 1, shape ``(batch, pixels)``.
        num_data
            Rows in the whole data set, ``batch`` by default.

        Returns
        -------
        Array
            The observed rows.
        """
        middles = (levels_of(x, self.levels) + 0.5) / self.levels
        p = flow("flow", self.architecture, x.shape[-1], start=middles)
        with numpyro.plate("data", num_data or len(x), subsample_size=len(x)):
            v = numpyro.sample("v", p)
            return numpyro.sample("x", Floor(v, self.levels).to_event(1), obs=x)  # x = floor(L v) / (L - 1)


class Floor(dist.Distribution):
    """All mass at floor(L v) / (L - 1), cut off at 0 and 1.

    Parameters
    ----------
    v
        Any real numbers; the cells lie in [0, 1).
    levels
        L.
    """

    arg_constraints = {"v": constraints.real}
    pytree_data_fields = ("v",)
    pytree_aux_fields = ("levels",)

    def __init__(self, v: Any, levels: int, *, validate_args: bool | None = None):
        self.v, self.levels = v, levels
        super().__init__(batch_shape=jnp.shape(v), validate_args=validate_args)

    @property
    def support(self) -> Any:
        return grid(self.levels)

    @property
    def mean(self) -> Array:
        return jnp.clip(jnp.floor(self.levels * self.v), 0, self.levels - 1) / (self.levels - 1)

    def sample(self, key: Any, sample_shape: tuple[int, ...] = ()) -> Array:
        return jnp.broadcast_to(self.mean, self.shape(sample_shape))

    def log_prob(self, value: Any, intermediates: Any = None) -> Array:
        k, place = levels_of(value, self.levels), self.levels * self.v
        above = (place >= k - ROUNDING) | (k == 0)
        below = (place <= k + 1 + ROUNDING) | (k == self.levels - 1)
        return jnp.where(above & below, 0.0, -jnp.inf)
