r"""Generator: rows made from Normal noise by a network, with no likelihood.

    z ~ N(0, I),    x = g(z),    or, given y,    x = g(z, y)

An implicit model: it is drawn from, and log p(x) cannot be had, so that it is learned by an adversary
(``inference.Adversarial``) and not by a bound.

References
----------
Generative Adversarial Networks (Goodfellow et al., 2014); Conditional Generative Adversarial Nets (Mirza and
Osindero, 2014).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, get_args

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from jaxtyping import Array, Float

from ppl_models.networks import check_architecture, check_count, network
from ppl_models.networks.layers import Activation


@dataclass(frozen=True)
class Generator:
    """Normal noise through a network, a program with sites ``z`` (latent_dim,), ``x`` and parameter ``generator``.

    Parameters
    ----------
    latent_dim
        Length of z.
    network
        Architecture that maps z, and y after it, to a row: see :func:`ppl_models.networks.network`.
    output
        Nonlinearity that keeps rows where the data are, such as ``"sigmoid"`` for grey levels in [0, 1]; none by
        default.

    Raises
    ------
    ValueError
        ``latent_dim`` is not a whole number of at least 1, or ``output`` is no activation.
    TypeError
        ``network`` cannot be run by NumPyro.
    """

    latent_dim: int
    network: Any
    output: Activation | None = None

    def __post_init__(self) -> None:
        check_count(latent_dim=self.latent_dim)
        if self.output is not None and self.output not in get_args(Activation):
            raise ValueError(f"output is {self.output!r}; expected None or one of {', '.join(get_args(Activation))}.")
        check_architecture(numpyro, "network", self.network)

    def __call__(
        self,
        x: Float[Array, "batch pixels"],
        y: Float[Array, "batch classes"] | None = None,
        num_data: int | None = None,
    ) -> Float[Array, "batch pixels"]:
        """Make rows; x says how many and how long, and nothing else.

        Parameters
        ----------
        x
            Rows, shape ``(batch, pixels)``.
        y
            What to make rows of, shape ``(batch, classes)``: labels as one-hot rows, or any numbers.
        num_data
            Rows in the whole data set, ``batch`` by default.

        Returns
        -------
        Array
            The rows made, shape ``(batch, pixels)``.
        """
        batch, pixels = x.shape
        inputs = self.latent_dim + (0 if y is None else y.shape[-1])
        g = network(numpyro, "generator", self.network, inputs, pixels)
        with numpyro.plate("data", num_data or batch, subsample_size=batch):
            z: Any = numpyro.sample("z", dist.Normal(0.0, 1.0).expand([self.latent_dim]).to_event(1))  # z ~ N(0, I)
            rows = g(z if y is None else jnp.concatenate([z, y.astype(z.dtype)], axis=-1))
            if self.output is not None:
                rows = getattr(jax.nn, self.output)(rows)
            numpyro.deterministic("x", rows)  # x = g(z, y)
            return rows
