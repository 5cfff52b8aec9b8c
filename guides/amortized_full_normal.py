r"""Amortized Normal guide with a full covariance: one network guesses location and Cholesky factor from the row.

    q(z | x) = N(loc(x), L(x) L(x)ᵀ),    (loc, raw) = encoder(x),
    L_ii = softplus(raw_ii),    L_ij = raw_ij for j < i,    0 above the diagonal

Where the posterior's axes are not the coordinates' (a linear decoder whose loadings are not orthogonal), this
guide reaches the evidence, which independent coordinates cannot.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType
from typing import Any

import jax.numpy as jnp
import numpy as np
import numpyro
from array_api_compat import array_namespace, device
from jaxtyping import Array, Float
from numpyro import distributions as dist
from numpyro.distributions.kl import kl_divergence

from guides.sites import check_site
from ppl_models.networks import check_architecture, check_count, network, softplus
from ppl_models.networks.rows import SCALE_FLOOR


@dataclass(frozen=True)
class AmortizedFullNormal:
    """Normal with a full covariance for each row, from an encoder: parameter site ``encoder``.

    Parameters
    ----------
    latent_dim
        Length d of the latent.
    network
        Architecture that maps a row to ``d + d (d + 1) / 2`` numbers, the location and the lower triangle row by row,
        its diagonal before the softplus: see :func:`ppl_models.networks.network`.
    site
        Name of the model's latent site.
    ppl
        ``numpyro`` or ``pyro``.

    Raises
    ------
    ValueError
        ``latent_dim`` is not a whole number of at least 1, or ``site`` is empty.
    TypeError
        ``network`` cannot be run by ``ppl``.
    """

    latent_dim: int
    network: Any
    site: str = "z"
    ppl: ModuleType = numpyro

    def __post_init__(self) -> None:
        check_count(latent_dim=self.latent_dim)
        check_site(self.site)
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
        d = self.latent_dim
        return network(self.ppl, "encoder", self.network, x.shape[-1], d + d * (d + 1) // 2)(x)

    def at(self, outputs: Float[Any, "*batch outputs"]) -> Any:
        """Distribution over z with these parameters."""
        xp, d = array_namespace(outputs), self.latent_dim
        loc, triangle = outputs[..., :d], outputs[..., d:]
        place = np.zeros((d, d), int)
        place[np.tril_indices(d)] = np.arange(d * (d + 1) // 2)
        raw = triangle[..., place]  # (*batch, d, d); what stands above the diagonal is not used
        scale = softplus(triangle[..., place.diagonal().copy()]) + SCALE_FLOOR  # (*batch, d)
        diagonal = xp.eye(d, dtype=outputs.dtype, device=device(outputs)) * scale[..., None, :]
        return self.ppl.distributions.MultivariateNormal(loc, scale_tril=xp.tril(raw, k=-1) + diagonal)

    def conditional(self, x: Float[Any, "batch pixels"]) -> Any:
        """q(z | x) for each row, to be called inside a program."""
        return self.at(self.encode(x))


def _to_independent(q: dist.MultivariateNormal, p: dist.Independent) -> Float[Array, "*batch"]:
    """KL(N(m, L Lᵀ) || prod_i N(a_i, s_i²)) in nats, of which NumPyro knows none."""
    base = p.base_dist.base_dist if isinstance(p.base_dist, dist.ExpandedDistribution) else p.base_dist  # in a plate
    if not isinstance(base, dist.Normal) or p.reinterpreted_batch_ndims != 1:
        raise NotImplementedError
    variance, tril = p.variance, jnp.asarray(q.scale_tril)
    squares = (tril**2).sum(-1) + (q.mean - p.mean) ** 2  # E_q[(z_i - a_i)²]
    terms = 0.5 * (squares / variance - 1 + jnp.log(variance)) - jnp.log(jnp.diagonal(tril, axis1=-2, axis2=-1))
    return terms.sum(-1)


kl_divergence.add((dist.MultivariateNormal, dist.Independent), _to_independent)

__all__ = ["AmortizedFullNormal"]
