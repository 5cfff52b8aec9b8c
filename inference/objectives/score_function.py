"""Likelihood-ratio gradients: for sites that have no pathwise ones, discrete latents above all.

    grad E_q[f] = E_q[ grad f + (f - b) grad log q ],    since E_q[grad log q] = 0,

for any baseline b that does not depend on the draw. A local site is credited with its own row's weight
only, which is exact (other rows do not depend on it) and far less noisy than the whole sum; a global
site with the total. Right under subsampling, where NumPyro 0.22's ``TraceGraph_ELBO`` multiplies the
score term by N / B twice.

References
----------
Gradient Estimation Using Stochastic Computation Graphs (Schulman, Heess, Weber and Abbeel, 2015).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpyro
from jax.lax import stop_gradient
from jaxtyping import Array, Float
from numpyro import handlers

from inference.errors import Incompatible
from inference.objectives.objective import Estimate, Objective, State, beside, check_particles, keep, surrogate
from inference.objectives.pair import Pair, log_weights
from inference.protocols import Program

AVERAGE, BASELINE, MOMENTS = "score_average", "nvil_baseline", "nvil_moments"


@dataclass(frozen=True)
class ScoreFunction(Objective):
    """ELBO with likelihood-ratio gradients at the sites that have no pathwise ones.

    Each of K draws uses the mean of the others as its baseline; both that and a moving average over
    earlier steps leave the gradient unbiased.

    Parameters
    ----------
    num_particles
        K.
    decay
        Of a moving average of the cost per row over earlier steps, subtracted as a baseline where K
        is 1; 0 is no baseline. The average is kept beside the guide (``objective.guide``).

    References
    ----------
    Buy 4 REINFORCE Samples, Get a Baseline for Free! (Kool, van Hoof and Welling, 2019).
    """

    num_particles: int = 1
    decay: float = 0.0

    def __post_init__(self) -> None:
        check_particles(self.num_particles)
        _check_decay(self.decay)

    def guide(self, guide: Program) -> Program:
        return beside(guide, _Average()) if self.decay else guide

    def estimate(self, key: Array, both: Pair, state: State) -> Estimate:
        rows, score_rows, total, score_shared = _joint_draws(both, key, self.num_particles)
        value = jnp.mean(total)
        if self.decay:
            per_row, whole, new = _moving_average(state, rows, total, self.decay)
        else:
            per_row, whole, new = _leave_one_out(rows), _leave_one_out(total), {}
        scores = jnp.mean(score_shared * whole + both.scale * jnp.sum(score_rows * per_row, axis=1))
        return Estimate(-value - surrogate(scores), value, {}, new)


class _Draws(NamedTuple):
    """K independent joint draws: globals are drawn anew for each."""

    rows: Float[Array, "particle batch"]  # log weights of the locals, nats
    score_rows: Float[Array, "particle batch"]
    total: Float[Array, " particle"]  # log weight of all that is drawn, for the whole data set
    score_shared: Float[Array, " particle"]


def _joint_draws(both: Pair, key: Array, num_particles: int) -> _Draws:
    w = jax.vmap(lambda k: log_weights(both, k, 1))(jax.random.split(key, num_particles))
    rows = w.rows[:, 0]
    return _Draws(rows, w.score_rows[:, 0], w.shared + both.scale * jnp.sum(rows, axis=1), w.score_shared)


def _leave_one_out(cost: Array) -> Array:
    """Each draw's cost less the mean of the other draws', without gradient."""
    k = cost.shape[0]
    if k == 1:
        return stop_gradient(cost)
    return stop_gradient(cost - (jnp.sum(cost, axis=0) - cost) / (k - 1))


@dataclass(frozen=True)
class _Average:
    """Of costs, over earlier steps."""

    def __call__(self, *args: Any, **kwargs: Any) -> None:
        keep(AVERAGE, {"row": jnp.zeros(()), "total": jnp.zeros(()), "weight": jnp.zeros(())})


def _moving_average(state: State, rows: Array, total: Array, decay: float) -> tuple[Array, Array, State]:
    """Costs less the average of earlier steps (weights of an average that starts from nothing sum to one)."""
    _need(state, AVERAGE, "ScoreFunction(decay=...)")
    old, rows, total = state[AVERAGE], stop_gradient(rows), stop_gradient(total)
    known = jnp.maximum(old["weight"], 1e-12)
    new = {
        "row": decay * old["row"] + (1 - decay) * jnp.mean(rows),
        "total": decay * old["total"] + (1 - decay) * jnp.mean(total),
        "weight": decay * old["weight"] + (1 - decay),
    }
    return rows - old["row"] / known, total - old["total"] / known, {AVERAGE: new}


@dataclass(frozen=True)
class NVIL(Objective):
    """ELBO with likelihood-ratio gradients and a learned baseline ("neural variational inference and learning").

    The cost of row n is centred by b(x_n) + c and divided by max(1, sigma):

        grad = E_q[ grad f_n + (f_n - b(x_n) - c) / max(1, sigma) grad log q(z_n | x_n) ],

    with b a small network that learns to predict f_n (its squared error joins the loss, and reaches
    nothing else), c and sigma moving averages of the mean and deviation of what is left, of earlier
    steps. Centring leaves the gradient unbiased; dividing scales the guide's part of it. The network
    and the averages are kept beside the guide (``objective.guide``).

    Parameters
    ----------
    hidden
        Width of the network's one hidden layer.
    decay
        Of the moving averages.
    num_particles
        Draws averaged per step.

    References
    ----------
    Neural Variational Inference and Learning in Belief Networks (Mnih and Gregor, 2014).
    """

    hidden: int = 100
    decay: float = 0.8
    num_particles: int = 1

    def __post_init__(self) -> None:
        check_particles(self.num_particles)
        _check_decay(self.decay)
        if self.hidden < 1:
            raise ValueError(f"hidden is {self.hidden}; expected a width of at least 1.")

    def guide(self, guide: Program) -> Program:
        return beside(guide, _Baseline(self.hidden))

    def estimate(self, key: Array, both: Pair, state: State) -> Estimate:
        _need(state, MOMENTS, "NVIL")
        if both.joint:
            raise Incompatible(
                "NVIL's baseline is of single rows, and the guide samples no local latent: use ScoreFunction()."
            )
        rows, score_rows, total, score_shared = _joint_draws(both, key, self.num_particles)
        value = jnp.mean(total)

        old, predicted = state[MOMENTS], _predicted(both, key)
        mean, deviation = old["mean"] / jnp.maximum(old["weight"], 1e-12), _deviation(old)
        left = stop_gradient(rows) - predicted - mean
        signal = stop_gradient(left) / jnp.maximum(1.0, deviation)
        scores = jnp.mean(score_shared * stop_gradient(total) + both.scale * jnp.sum(score_rows * signal, axis=1))
        error = 0.5 * both.scale * jnp.mean(jnp.sum(left**2, axis=1))  # of the baseline alone

        residual = stop_gradient(rows - predicted)
        average = {"mean": jnp.mean(residual), "square": jnp.mean(residual**2), "weight": jnp.ones(())}
        new = {n: self.decay * old[n] + (1 - self.decay) * v for n, v in average.items()}
        return Estimate(-value - surrogate(scores) + surrogate(error), value, {}, {MOMENTS: new})


@dataclass(frozen=True)
class _Baseline:
    """A network b(x) of each row, whose output is a deterministic site, and the moving averages."""

    hidden: int

    def __call__(self, *args: Any, **kwargs: Any) -> None:
        arrays = [v for v in (*args, *kwargs.values()) if jnp.ndim(v)]
        rows = jnp.concatenate([jnp.reshape(v, (len(v), -1)).astype(jnp.float32) for v in arrays], axis=1)

        def build(key: Array) -> eqx.nn.MLP:
            return eqx.nn.MLP(rows.shape[1], "scalar", self.hidden, depth=1, activation=jnp.tanh, key=key)

        abstract = eqx.filter_eval_shape(build, jax.random.key(0))
        _, static = eqx.partition(abstract, lambda leaf: isinstance(leaf, jax.ShapeDtypeStruct))
        weights: Any = numpyro.param(BASELINE, lambda key: eqx.filter(build(key), eqx.is_array))
        numpyro.deterministic(f"{BASELINE}_value", jax.vmap(eqx.combine(weights, static))(rows))
        keep(MOMENTS, {"mean": jnp.zeros(()), "square": jnp.zeros(()), "weight": jnp.zeros(())})


def _predicted(both: Pair, key: Array) -> Float[Array, " batch"]:
    with handlers.seed(rng_seed=key):
        return handlers.trace(both.guide).get_trace()[f"{BASELINE}_value"]["value"]


def _deviation(moments: dict[str, Array]) -> Array:
    known = jnp.maximum(moments["weight"], 1e-12)
    return jnp.sqrt(jnp.maximum(moments["square"] / known - (moments["mean"] / known) ** 2, 0.0))


def _check_decay(decay: float) -> None:
    if not 0 <= decay < 1:
        raise ValueError(f"decay is {decay}; expected at least 0 and less than 1.")


def _need(state: State, name: str, objective: str) -> None:
    if name not in state:
        raise Incompatible(
            f"{objective} keeps averages beside the guide: pass objective.guide(guide) to numpyro.infer.SVI "
            "(inference.SVI does)."
        )


__all__ = ["NVIL", "ScoreFunction"]
