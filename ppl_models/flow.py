r"""Normalizing flow: rows with a density in closed form, from a standard Normal through an invertible network.

    z ~ N(0, I),    x = g(z),    log p(x) = log N(f(x); 0, I) + log |det df(x)/dx|,    f = g⁻¹

There is nothing latent: an SVI fit with ``guides.empty`` is maximum likelihood, and the likelihood is exact.

References
----------
Normalizing Flows for Probabilistic Modeling and Inference (Papamakarios et al., 2021).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpyro
from jaxtyping import Array, Float

from ppl_models.networks import RealNVP, check_flow, flow


@dataclass(frozen=True)
class Flow:
    """Normalizing flow, a NumPyro program with site ``x`` and parameter ``flow``.

    Parameters
    ----------
    architecture
        Description of the flow: ``RealNVP()``, ``MAF()``, ``NeuralSpline()`` or ``Planar()``, or whatever
        :func:`ppl_models.networks.flow` takes.

    Raises
    ------
    TypeError
        ``architecture`` describes no flow.
    """

    architecture: Any = RealNVP()

    def __post_init__(self) -> None:
        check_flow("architecture", self.architecture)

    def __call__(
        self,
        x: Float[Array, "batch dim"],
        y: Float[Array, "batch condition"] | None = None,
        num_data: int | None = None,
    ) -> Any:
        """Observe x.

        Parameters
        ----------
        x
            Rows of real numbers, shape ``(batch, dim)``. The flow starts at their mean and standard deviations.
        y
            What the rows depend on, if anything, shape ``(batch, condition)``: then this is p(x | y).
        num_data
            Rows in the whole data set, ``batch`` by default.

        Returns
        -------
        Array
            The observed rows.
        """
        p = flow("flow", self.architecture, x.shape[-1], condition=y, start=x)
        with numpyro.plate("data", num_data or len(x), subsample_size=len(x)):
            return numpyro.sample("x", p, obs=x)  # x = g(z), z ~ N(0, I)
