r"""Rows of which some entries are seen: drawn whole, scored by what is seen. Both engines.

With a mask m (1 where an entry is seen) and x set to zero elsewhere, the density of the seen entries of
x ~ N(mu, Sigma) is that of a Gaussian in all dimensions,

    N(x_seen | mu_seen, Sigma_seen) = N(m ∘ x | m ∘ mu, m mᵀ ∘ Sigma + diag(1 - m) / 2π),

since N(0 | 0, 1 / 2π) = 1 for every entry that is not. So shapes do not depend on the mask. For independent
entries ``Normal(…).mask(m).to_event(1)`` does the same.
"""

from __future__ import annotations

from functools import cache
from math import pi
from typing import Any

import jax.numpy as jnp
from array_api_compat import array_namespace, device
from jaxtyping import Array
from numpyro.distributions import Distribution


def partly_observed_normal(dist: Any, mean: Any, covariance: Any, scale_tril: Any, observed: Any) -> Any:
    """N(mean, covariance), of which only the observed entries are scored.

    Parameters
    ----------
    dist
        ``numpyro.distributions`` or ``pyro.distributions``.
    mean, covariance, scale_tril
        Of all entries, batches of (D,) and (D, D).
    observed
        Boolean mask, batches of (D,).
    """
    xp = array_namespace(mean)
    m = observed * xp.ones_like(mean)
    missing = (1 - m)[..., None] * xp.eye(mean.shape[-1], dtype=mean.dtype, device=device(mean))
    masked = m[..., :, None] * m[..., None, :] * covariance + missing / (2 * pi)
    seen = dist.MultivariateNormal(m * mean, scale_tril=xp.linalg.cholesky(masked))
    whole = dist.MultivariateNormal(mean, scale_tril=scale_tril).expand(seen.batch_shape)
    if hasattr(dist, "TorchDistribution"):  # Pyro
        return _pyro_partly_observed(dist)(whole, seen, observed)
    return PartlyObserved(whole, seen, observed)


class PartlyObserved(Distribution):
    """Draws of ``whole``, scored by ``seen`` with the entries that are not ``observed`` set to zero."""

    arg_constraints = {}
    pytree_data_fields = ("whole", "seen", "observed")

    def __init__(self, whole: Distribution, seen: Distribution, observed: Array):
        self.whole, self.seen, self.observed = whole, seen, observed
        super().__init__(seen.batch_shape, seen.event_shape)

    @property
    def support(self) -> Any:
        return self.whole.support

    @property
    def mean(self) -> Any:
        return self.whole.mean

    @property
    def variance(self) -> Any:
        return self.whole.variance

    def sample(self, key: Array | None, sample_shape: tuple[int, ...] = ()) -> Any:
        return self.whole.sample(key, sample_shape)

    def log_prob(self, value: Any, intermediates: Any = None) -> Any:
        return self.seen.log_prob(jnp.where(self.observed, value, 0.0))


@cache
def _pyro_partly_observed(dist: Any) -> Any:
    class PartlyObserved(dist.TorchDistribution):
        arg_constraints = {}
        has_rsample = True

        def __init__(self, whole: Any, seen: Any, observed: Any):
            self.whole, self.seen, self.observed = whole, seen, observed
            super().__init__(seen.batch_shape, seen.event_shape, validate_args=False)

        support = dist.MultivariateNormal.support

        @property
        def mean(self) -> Any:
            return self.whole.mean

        def expand(self, batch_shape: Any, _instance: Any = None) -> Any:
            return type(self)(self.whole.expand(batch_shape), self.seen.expand(batch_shape), self.observed)

        def rsample(self, sample_shape: Any = ()) -> Any:
            return self.whole.rsample(sample_shape)

        def log_prob(self, value: Any) -> Any:
            return self.seen.log_prob(value.masked_fill(~self.observed, 0.0))

    return PartlyObserved
