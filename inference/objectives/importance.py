"""Importance-weighted bounds: K draws a row, weighed together, with pathwise gradients.

IWAE        shared + s sum_n (logsumexp_k rows[k, n] - log K)
Renyi(a)    shared + s sum_n (logsumexp_k (1 - a) rows[k, n] - log K) / (1 - a)
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import jax.numpy as jnp
from jax.scipy.special import logsumexp
from jaxtyping import Array, Float

from inference.objectives.objective import Estimate, Objective, State, check_particles
from inference.objectives.pair import Pair, log_weights, refuse_discrete, refuse_split_globals


@dataclass(frozen=True)
class IWAE(Objective):
    """Importance-weighted bound: log of the mean of K weights per row, pathwise gradients.

    Grows with K towards log p(x). Global latents are drawn once and the rows' bounds nest inside
    their expectation; a guide over globals alone weighs the full data set jointly.

    Parameters
    ----------
    num_particles
        K.

    References
    ----------
    Importance Weighted Autoencoders (Burda, Grosse and Salakhutdinov, 2016).
    """

    num_particles: int = 10

    def __post_init__(self) -> None:
        check_particles(self.num_particles)

    def estimate(self, key: Array, both: Pair, state: State) -> Estimate:
        return _renyi(0.0, key, both, self.num_particles, "IWAE")


@dataclass(frozen=True)
class Renyi(Objective):
    """Renyi's alpha-divergence bound; alpha = 0 is IWAE, alpha towards 1 the ELBO.

    For alpha < 0 it bounds the evidence from above, in expectation over infinitely many draws only.

    Parameters
    ----------
    alpha
        Order, any real number that is not within 0.001 of 1, where float32 has no digits left for the bound.
    num_particles
        K.

    References
    ----------
    Renyi Divergence Variational Inference (Li and Turner, 2016).
    """

    alpha: float = 0.5
    num_particles: int = 10

    def __post_init__(self) -> None:
        check_particles(self.num_particles)
        if not math.isfinite(self.alpha):
            raise ValueError(f"alpha is {self.alpha}; expected a real number other than 1.")
        # log mean_k w^(1 - alpha) is rounded to some 1e-7, and divided by 1 - alpha
        if abs(1 - self.alpha) < 1e-3:
            raise ValueError(f"alpha is {self.alpha}, where Renyi's bound is the ELBO (but for rounding): use ELBO().")

    def estimate(self, key: Array, both: Pair, state: State) -> Estimate:
        return _renyi(self.alpha, key, both, self.num_particles, "Renyi")


def _renyi(alpha: float, key: Array, both: Pair, num_particles: int, name: str) -> Estimate:
    refuse_discrete(both, name)
    refuse_split_globals(both, name)
    w = log_weights(both, key, num_particles)
    bound = w.shared + both.scale * jnp.sum(log_mean_exp((1 - alpha) * w.rows) / (1 - alpha))
    return Estimate(-bound, bound)


def log_mean_exp(rows: Float[Array, "particle batch"]) -> Float[Array, " batch"]:
    """Log of the mean over particles."""
    return logsumexp(rows, axis=0) - math.log(len(rows))


__all__ = ["IWAE", "Renyi"]
