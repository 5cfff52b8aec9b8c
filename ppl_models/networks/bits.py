r"""Independent bits with given log odds, in either engine.

    log p(z) = z l - softplus(l),    d log p / dl = z - sigmoid(l)

NumPyro's own has a log1p that XLA has no fast code for on a CPU, where it is half of a step of a dense autoencoder, and
at l = 0 its gradient is z, where z - 1/2 is right.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from jaxtyping import Array, Float
from numpyro.distributions.util import validate_sample

from .layers import softplus


def bits(ppl: ModuleType, logits: Any) -> Any:
    """Bernoulli(sigmoid(logits)) for each number.

    Parameters
    ----------
    ppl
        ``numpyro`` or ``pyro``.
    logits
        Log odds of a one, shape ``(...)``.

    Returns
    -------
    Distribution
        Batch shape ``(...)``, event shape ``()``; log masses in nats.
    """
    # A likelihood may be given the distributions of an engine alone.
    ours = ppl.distributions is numpyro.distributions
    return Bits(logits) if ours else ppl.distributions.Bernoulli(logits=logits)


class Bits(dist.BernoulliLogits):
    """NumPyro's Bernoulli with another log mass."""

    @validate_sample
    def log_prob(self, value: Any) -> Float[Array, "..."]:
        return _log_mass(self.logits, jnp.asarray(value, jnp.result_type(float, self.logits)))


@jax.custom_jvp
def _log_mass(logits: Any, z: Any) -> Any:
    # z l - softplus(l) without what cancels, and without 0 times infinity.
    size, wrong = jnp.abs(logits), jnp.where(logits > 0, 1 - z, z)
    return -jnp.where(wrong == 0, 0, wrong * size) - softplus(-size)


_log_mass.defjvps(
    lambda tangent, _, logits, z: (z - jax.nn.sigmoid(logits)) * tangent,
    lambda tangent, _, logits, z: logits * tangent,
)

__all__ = ["Bits", "bits"]
