r"""AR(1) prior of the delta-VAE: latents that follow each other, which no guide of independent ones matches for free.

    z_1 ~ N(0, 1),    z_t | z_{t-1} ~ N(a z_{t-1}, 1 - a²),    t = 2 … n,

so that z_t ~ N(0, 1) and corr(z_s, z_t) = a^|s - t|. The precision Λ is tridiagonal, with Λ_tt = 1 / (1 - a²) at both
ends and (1 + a²) / (1 - a²) between, and log|Λ⁻¹| = (n - 1) log(1 - a²). Of q(z | x) = N(m, diag(s²)),

    KL(q || p) = ½ [ mᵀΛm + sum_t (Λ_tt s_t² - 1 - log s_t²) + (n - 1) log(1 - a²) ].

mᵀΛm is never negative, and each term of the sum is convex in s_t², least at s_t² = 1 / Λ_tt. So, whatever the row,

    KL(q || p) >= delta = ½ sum_t log Λ_tt + ½ (n - 1) log(1 - a²) = ½ [ (n - 2) log(1 + a²) - log(1 - a²) ]  nats,

n >= 2: a rate that the family of q commits itself to. Where scales are bounded, low <= s_t <= high, the least of each
term is at 1 / Λ_tt clipped to [low², high²], and delta is no smaller; it is then positive for independent latents too
(a = 0), with ½ n (high² - 1 - 2 log high) for high < 1.

What is paid anyway may as well be used. But nothing makes it tell of the row: q(z | x) may be the same for every x, and
then the whole of delta is KL(q(z) || p(z)). ``inference.elbo_surgery`` tells one from the other.

References
----------
Preventing Posterior Collapse with delta-VAEs (Razavi, van den Oord, Poole and Vinyals, 2019).
"""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType
from typing import Any

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from array_api_compat import array_namespace, device
from jax.scipy.linalg import solve_triangular
from jaxtyping import Array, Float
from numpyro.distributions.kl import kl_divergence


@dataclass(frozen=True)
class AR1Prior:
    """z ~ chains of correlated standard normals, one for each correlation: z[t K + k] is step t of chain k of K.

    With one correlation 0 it is N(0, I).

    Parameters
    ----------
    correlations
        a of each chain, between -1 and 1; a number for a single one. Chains of several are slow and fast features.

    Raises
    ------
    ValueError
        A correlation that is not between -1 and 1; when called, a latent that the chains do not divide.
    """

    correlations: float | tuple[float, ...] = (0.9,)

    def __post_init__(self) -> None:
        given = np.atleast_1d(np.asarray(self.correlations, float))
        if given.ndim != 1 or not len(given) or not (np.abs(given) < 1).all():
            raise ValueError(f"correlations is {self.correlations!r}; expected numbers between -1 and 1, at least one.")
        object.__setattr__(self, "correlations", tuple(given.tolist()))

    def __call__(self, ppl: ModuleType, latent_dim: int, rows: Any) -> Any:
        """Distribution over z; the batch shape is empty."""
        xp, like = array_namespace(rows), {"dtype": rows.dtype, "device": device(rows)}
        made = MarkovNormal if ppl is numpyro else ppl.distributions.MultivariateNormal
        loc = xp.zeros((latent_dim,), **like)
        return made(loc, scale_tril=xp.asarray(self._scale_tril(latent_dim), **like))

    def minimal_kl(self, latent_dim: int, scale_bounds: tuple[float, float] = (0.0, np.inf)) -> float:
        """Delta: the least KL(q || p) in nats of any q with independent coordinates.

        Parameters
        ----------
        latent_dim
            Length of z.
        scale_bounds
            Between what q's standard deviations stay, as in :class:`guides.AmortizedBoundedNormal`.
        """
        low, high = scale_bounds
        precision = np.linalg.inv(self._scale_tril(latent_dim))
        precision = (precision**2).sum(axis=0)  # Λ_tt of Λ = L⁻ᵀ L⁻¹
        variance = np.clip(1 / precision, low**2, high**2)
        log_det = 2 * np.log(np.diag(self._scale_tril(latent_dim))).sum()
        return float(0.5 * ((precision * variance - 1 - np.log(variance)).sum() + log_det))

    def _scale_tril(self, latent_dim: int) -> Float[np.ndarray, "latent_dim latent_dim"]:
        """L of the covariance L Lᵀ: z_t = a^(t - 1) e_1 + sqrt(1 - a²) sum_s a^(t - s) e_s, s = 2 … t."""
        chains: tuple[float, ...] = self.correlations  # type: ignore[assignment]
        steps, rest = divmod(latent_dim, len(chains))
        if rest:
            raise ValueError(
                f"a latent of length {latent_dim} is no whole number of steps of {len(chains)} chains: make latent_dim "
                "a multiple of the number of correlations."
            )
        t = np.arange(steps)
        lag = t[:, None] - t
        out = np.zeros((steps, len(chains), steps, len(chains)))
        for k, a in enumerate(chains):
            moved = np.where(lag >= 0, a ** np.maximum(lag, 0), 0.0)
            out[:, k, :, k] = moved * np.where(t == 0, 1.0, np.sqrt(1 - a**2))
        return out.reshape(latent_dim, latent_dim)


class MarkovNormal(dist.MultivariateNormal):
    """N(loc, L Lᵀ), of whose KL from independent Normals NumPyro is told below."""


def _from_independent(q: dist.Independent, p: MarkovNormal) -> Float[Array, "*batch"]:
    """KL(q || p) in closed form, in nats."""
    if not isinstance(q.base_dist, dist.Normal) or q.reinterpreted_batch_ndims != 1:
        raise NotImplementedError
    tril: Any = p.scale_tril
    root = solve_triangular(tril, jnp.eye(len(tril)), lower=True)  # Λ = rootᵀ root
    variance, moved = q.base_dist.variance, jnp.matmul(q.mean - p.loc, root.T, precision="highest")
    terms = (root**2).sum(axis=0) * variance + moved**2 - 1 - jnp.log(variance)
    return 0.5 * terms.sum(axis=-1) + jnp.log(jnp.diagonal(tril)).sum()


kl_divergence.add((dist.Independent, MarkovNormal), _from_independent)

__all__ = ["AR1Prior"]
