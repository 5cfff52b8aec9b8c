r"""Autoregressive Bernoulli guide: each bit is guessed from the row and from the bits before it.

    q(z | x) = prod_i Bernoulli(z_i; sigma(l_i)),    l_i = g(2 x - 1)_i + sum_{j < i} W_ij (2 z_j - 1)

One vector site: the density of given bits takes one masked matrix product; a draw takes the bits one
after the other. Bits depend on each other given x, so the guide can follow a posterior in which one
cause explains another away.

References
----------
Deep AutoRegressive Networks (Gregor, Danihelka, Mnih, Blundell and Wierstra, 2014).
"""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from array_api_compat import array_namespace, device
from jaxtyping import Array, Float
from numpyro.distributions import constraints
from numpyro.distributions.util import validate_sample

from guides.sites import check_site
from ppl_models.networks import Linear, check_architecture, network, softplus


@dataclass(frozen=True)
class AutoregressiveBernoulli:
    """Bits that depend on the bits before them: parameter sites ``encoder`` and ``lateral``.

    ``lateral`` is W, shape (num_bits, num_bits), used below its diagonal. It starts at zero, where the
    guide is factorised.

    Parameters
    ----------
    num_bits
        Length of the latent.
    network
        Architecture g that maps a row to ``num_bits`` logits: see :func:`ppl_models.networks.network`.
    site
        Name of the model's latent site: ``"z"`` of ``DiscreteVAE``, ``"z1"`` of ``SigmoidBeliefNetwork``.
    ppl
        ``numpyro`` or ``pyro``.

    Raises
    ------
    ValueError
        ``num_bits`` is not a whole number of at least 1, or ``site`` is empty.
    TypeError
        ``network`` cannot be run by ``ppl``.
    """

    num_bits: int
    network: Any = Linear()
    site: str = "z"
    ppl: ModuleType = numpyro

    def __post_init__(self) -> None:
        if not isinstance(self.num_bits, int) or self.num_bits < 1:
            raise ValueError(f"num_bits is {self.num_bits!r}; expected a whole number of at least 1.")
        check_site(self.site)
        check_architecture(self.ppl, "network", self.network)

    def __call__(self, x: Float[Any, "batch pixels"], num_data: int | None = None) -> Any:
        """Sample the bits of each row.

        Parameters
        ----------
        x
            Rows, shape ``(batch, pixels)``.
        num_data
            Rows in the whole data set, ``batch`` by default.

        Returns
        -------
        Array
            Bits, shape ``(batch, num_bits)``.
        """
        ppl, xp = self.ppl, array_namespace(x)
        encode = network(ppl, "encoder", self.network, x.shape[-1], self.num_bits)
        lateral = ppl.param("lateral", xp.zeros((self.num_bits, self.num_bits), device=device(x)))
        with ppl.plate("data", num_data or len(x), subsample_size=len(x)):
            return ppl.sample(self.site, _bits(ppl, encode(2.0 * x - 1.0), lateral))


def _bits(ppl: ModuleType, offsets: Any, lateral: Any) -> Any:
    if ppl is numpyro:
        return _AutoregressiveBits(offsets, lateral)
    from guides.autoregressive_torch import AutoregressiveBits

    return AutoregressiveBits(offsets, lateral)


def log_prob(value: Any, offsets: Any, lateral: Any) -> Any:
    """Log probability of bits ``(..., bits)`` at offsets ``(..., bits)`` and W ``(bits, bits)``, in nats."""
    with jax.default_matmul_precision("highest"):  # as exact as the sums by which they were drawn
        logits = offsets + (2.0 * value - 1.0) @ array_namespace(lateral).tril(lateral, k=-1).T
    # log Bernoulli(z; sigma(l)) = z l - softplus(l), whose derivative z - sigma(l) is right at l = 0 too.
    return (value * logits - softplus(logits)).sum(-1)


class _AutoregressiveBits(dist.Distribution):
    """A vector of bits, each with the logit offsets_i + sum_{j < i} lateral_ij (2 z_j - 1)."""

    arg_constraints = {"offsets": constraints.real_vector, "lateral": constraints.real_matrix}

    def __init__(self, offsets: Array, lateral: Array, *, validate_args: bool | None = None):
        self.offsets, self.lateral = offsets, lateral
        super().__init__(offsets.shape[:-1], offsets.shape[-1:], validate_args=validate_args)

    @property
    def support(self) -> Any:
        return constraints.independent(constraints.boolean, 1)

    def sample(self, key: Array | None, sample_shape: tuple[int, ...] = ()) -> Array:
        assert key is not None
        logits = jnp.broadcast_to(self.offsets, sample_shape + self.offsets.shape)
        uniform = jax.random.uniform(key, logits.shape)

        def draw(logits: Array, i: Array) -> tuple[Array, Array]:
            z = (uniform[..., i] < jax.nn.sigmoid(logits[..., i])).astype(int)
            # Those up to i have been drawn: that W_ij with j >= i reaches their logits has no effect.
            return logits + (2.0 * z - 1.0)[..., None] * self.lateral[:, i], z

        _, bits = jax.lax.scan(draw, logits, jnp.arange(logits.shape[-1]))
        return jnp.moveaxis(bits, 0, -1)

    @validate_sample
    def log_prob(self, value: Any, intermediates: Any = None) -> Array:
        return log_prob(value, self.offsets, self.lateral)
