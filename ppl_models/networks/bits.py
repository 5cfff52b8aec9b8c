r"""Independent bits with given log odds, in either engine.

    log p(z) = z l - softplus(l),    d log p / dl = z - sigmoid(l)

NumPyro's own has a log1p that XLA has no fast code for on a CPU, where it is half of a step of a dense autoencoder, and
at l = 0 its gradient is -z: a clip has no slope at its corner.
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
    return Bits(logits) if ppl is numpyro else ppl.distributions.Bernoulli(logits=logits)


class Bits(dist.BernoulliLogits):
    """NumPyro's Bernoulli with another log mass."""

    @validate_sample
    def log_prob(self, value: Any) -> Float[Array, "..."]:
        return _log_mass(self.logits, jnp.asarray(value, jnp.result_type(self.logits)))


@jax.custom_jvp
def _log_mass(logits: Any, z: Any) -> Any:
    # Of z = 1 and a large l this is 0 - softplus(-l): nothing cancels.
    return z * logits - jnp.maximum(logits, 0) - softplus(-jnp.abs(logits))


_log_mass.defjvps(
    lambda tangent, _, logits, z: (z - jax.nn.sigmoid(logits)) * tangent,
    lambda tangent, _, logits, z: logits * tangent,
)

__all__ = ["Bits", "bits"]
