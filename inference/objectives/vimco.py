"""VIMCO: the K-sample bound for guides without pathwise gradients.

    L = log (1/K sum_k w_k),
    grad E[L] = E[ sum_k (L - L_{-k}) grad log q(z_k) + sum_k w~_k grad log w_k ],

where L_{-k} is L with w_k replaced by the geometric mean of the others: it does not depend on z_k,
so subtracting it leaves the gradient unbiased, and it is close to L, so little noise is left. Where the other
weights are all zero, which does not depend on z_k either, nothing is subtracted.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import jax.numpy as jnp
from jax.lax import stop_gradient
from jax.scipy.special import logsumexp
from jaxtyping import Array, Float

from inference.objectives.importance import log_mean_exp
from inference.objectives.objective import Estimate, Objective, State, check_particles, surrogate
from inference.objectives.pair import Pair, log_weights, refuse_split_globals


@dataclass(frozen=True)
class VIMCO(Objective):
    """Importance-weighted bound with score-function gradients, each draw's baseline made of the others.

    Sites that have pathwise gradients keep them; only the others get scores. Global latents are
    drawn once; one without a pathwise gradient is credited with the whole bound.

    Parameters
    ----------
    num_particles
        K, at least 2.

    References
    ----------
    Variational Inference for Monte Carlo Objectives (Mnih and Rezende, 2016).
    """

    num_particles: int = 10

    def __post_init__(self) -> None:
        check_particles(self.num_particles, least=2)

    def estimate(self, key: Array, both: Pair, state: State) -> Estimate:
        refuse_split_globals(both, "VIMCO")
        w = log_weights(both, key, self.num_particles)
        per_row = log_mean_exp(w.rows)
        bound = w.shared + both.scale * jnp.sum(per_row)
        baseline = leave_one_out(w.rows)
        signal = stop_gradient(per_row - jnp.where(jnp.isfinite(baseline), baseline, 0.0))  # (K, batch)
        scores = both.scale * jnp.sum(signal * w.score_rows) + stop_gradient(bound) * w.score_shared
        bound = bound + surrogate(scores)
        return Estimate(-bound, bound)


def leave_one_out(rows: Float[Array, "particle batch"]) -> Float[Array, "particle batch"]:
    """For each draw, the bound with its weight replaced by the geometric mean of the others."""
    k = len(rows)
    on_diagonal = jnp.eye(k, dtype=bool)[:, :, None]
    # log of the geometric mean; less rows from the sum would be -inf + inf where a weight is zero
    others = jnp.sum(jnp.where(on_diagonal, 0.0, rows[None]), axis=1) / (k - 1)
    replaced = jnp.where(on_diagonal, others[:, None], rows[None])  # (left out, particle, batch)
    return logsumexp(replaced, axis=1) - math.log(k)


__all__ = ["VIMCO"]
