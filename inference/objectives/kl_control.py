"""Controlling the KL: beta, free bits, capacity, over any objective of the ELBO's type.

    ELBO = R - sum_g KL_g,      R the reconstruction, KL_g the KL of latent site g  (nats per row)

    Beta       R - beta sum_g KL_g
    FreeBits   R - sum_g max(lambda, KL_g)          KL_g averaged over the batch
    Capacity   R - gamma |sum_g KL_g - C|

The gradient of each is that of R - sum_g w_g KL_g with weights that depend on the KL but are not
differentiated: beta; 1 or 0 as KL_g is above lambda or not; gamma or -gamma as the sum is above C or
not. So the weights are put on the latent sites of both programs (as ``numpyro.handlers.scale`` would), and
the inner objective estimates the gradient as it always does: pathwise, closed form, or by scores. The
history keeps the plain ``bound``, ``reconstruction`` and ``kl`` beside.

Beta's objective is a bound on the evidence for beta >= 1 only, free bits' always; capacity's is none.

References
----------
beta-VAE (Higgins et al., 2017); Understanding disentangling in beta-VAE (Burgess et al., 2018); Improved
Variational Inference with Inverse Autoregressive Flow (Kingma et al., 2016); Generating Sentences from a
Continuous Space (Bowman et al., 2016); Cyclical Annealing Schedule (Fu et al., 2019).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
from jax.lax import stop_gradient
from jaxtyping import Array
from numpyro.primitives import Messenger

from inference.errors import Incompatible
from inference.objectives.elbo import ELBO, analytic_kl_sites, average, elbo_terms, refuse_left_out
from inference.objectives.objective import Estimate, Objective, Schedule, State, at_step, counted, next_step
from inference.objectives.pair import Pair
from inference.objectives.path_derivative import STL
from inference.objectives.score_function import NVIL, ScoreFunction
from inference.programs import Thunk
from inference.protocols import Program

KL = dict[str, Array]  # of each latent site, nats per row, without gradient
OF_ELBO_TYPE = (ELBO, STL, ScoreFunction, NVIL)


@dataclass(frozen=True)
class Beta(Objective):
    """The KL multiplied by beta: a constant, or a schedule such as a warm-up.

    Parameters
    ----------
    objective
        ``ELBO``, ``STL``, ``ScoreFunction`` or ``NVIL``.
    beta
        A number, or a function of the step such as ``optax.linear_schedule(0.0, 1.0, 5000)`` or
        :func:`cyclical`.
    """

    objective: Any = ELBO()
    beta: float | Schedule = 1.0

    def __post_init__(self) -> None:
        _check_inner(self.objective, "Beta")
        _check_positive("beta", self.beta)

    def guide(self, guide: Program) -> Program:
        return counted(self.objective.guide(guide))

    def estimate(self, key: Array, both: Pair, state: State) -> Estimate:
        beta = jnp.asarray(at_step(self.beta, state), jnp.float32)

        def weigh(kl: KL) -> tuple[KL, Array]:
            return dict.fromkeys(kl, beta), beta * _sum(kl)

        return _controlled(self.objective, key, both, state, weigh, {"beta": beta})


@dataclass(frozen=True)
class FreeBits(Objective):
    """Every latent site may cost ``nats`` a row for free: its KL is not pushed below that.

    Parameters
    ----------
    objective
        ``ELBO``, ``STL``, ``ScoreFunction`` or ``NVIL``.
    nats
        lambda, per site and row; the KL it is compared with is the batch's mean.
    """

    objective: Any = ELBO()
    nats: float | Schedule = 1.0

    def __post_init__(self) -> None:
        _check_inner(self.objective, "FreeBits")
        _check_positive("nats", self.nats)

    def guide(self, guide: Program) -> Program:
        return counted(self.objective.guide(guide))

    def estimate(self, key: Array, both: Pair, state: State) -> Estimate:
        free = jnp.asarray(at_step(self.nats, state), jnp.float32)

        def weigh(kl: KL) -> tuple[KL, Array]:
            charged = {n: jnp.maximum(free, v) for n, v in kl.items()}
            return {n: (v > free).astype(jnp.float32) for n, v in kl.items()}, _sum(charged)

        return _controlled(self.objective, key, both, state, weigh, {})


@dataclass(frozen=True)
class Capacity(Objective):
    """The KL is held at C nats a row, its distance multiplied by gamma.

    Parameters
    ----------
    objective
        ``ELBO``, ``STL``, ``ScoreFunction`` or ``NVIL``.
    nats
        C, a number or a schedule (raised from 0 in the paper).
    gamma
        Weight of the distance.
    """

    objective: Any = ELBO()
    nats: float | Schedule = 25.0
    gamma: float = 100.0

    def __post_init__(self) -> None:
        _check_inner(self.objective, "Capacity")
        _check_positive("nats", self.nats)
        _check_positive("gamma", self.gamma)

    def guide(self, guide: Program) -> Program:
        return counted(self.objective.guide(guide))

    def estimate(self, key: Array, both: Pair, state: State) -> Estimate:
        capacity = jnp.asarray(at_step(self.nats, state), jnp.float32)

        def weigh(kl: KL) -> tuple[KL, Array]:
            excess = _sum(kl) - capacity
            return dict.fromkeys(kl, self.gamma * jnp.sign(excess)), self.gamma * jnp.abs(excess)

        return _controlled(self.objective, key, both, state, weigh, {"capacity": capacity})


def cyclical(period: int, high: float = 1.0, rise: float = 0.5) -> Schedule:
    """A schedule that starts from 0 every ``period`` steps, rises linearly, and stays at ``high`` for the rest.

    Parameters
    ----------
    period
        Steps of a cycle.
    high
        Value reached.
    rise
        Share of the cycle in which it is reached.
    """
    if period < 1 or not 0 < rise <= 1:
        raise ValueError(f"period is {period} and rise {rise}; expected at least 1 step, and a share in (0, 1].")

    def schedule(step: Array) -> Array:
        return high * jnp.minimum((step % period) / (rise * period), 1.0)

    return schedule


def _controlled(
    objective: Objective,
    key: Array,
    both: Pair,
    state: State,
    weigh: Callable[[KL], tuple[KL, Array]],
    extra: dict[str, Array],
) -> Estimate:
    """The inner objective on sites weighed by ``weigh(kl)``, which also gives what they are charged, per row."""
    refuse_left_out(both, type(objective).__name__ + " under KL control")
    analytic = analytic_kl_sites(both)
    plain = average(lambda k: elbo_terms(k, both, analytic), key, objective.num_particles)  # pyright: ignore
    rows = both.parts.plates[both.parts.plate][0] if both.parts.plate else 1  # that the whole data set has
    kl: KL = {n: stop_gradient(v) / rows for n, v in plain.kl.items()}
    weights, charge = weigh(kl)

    def inside(thunk: Thunk) -> Thunk:
        return _Weighted(thunk, weights)

    inner = objective.estimate(key, both.through(inside, inside), state)
    value = stop_gradient(rows * charge - plain.reconstruction)
    metrics = {"reconstruction": plain.reconstruction, "kl": rows * _sum(kl)} | {n: rows * v for n, v in extra.items()}
    if len(kl) > 1:
        metrics |= {f"kl.{n}": rows * v for n, v in kl.items()}
    bound = plain.reconstruction - rows * _sum(kl)
    loss = inner.loss + stop_gradient(value - inner.loss)
    return Estimate(loss, bound, inner.metrics | metrics, inner.state | next_step(state))


class _Weighted(Messenger):
    """Multiply the log densities of these sites."""

    def __init__(self, fn: Thunk, weights: KL):
        self.weights = weights
        super().__init__(fn)

    def process_message(self, msg: dict[str, Any]) -> None:
        if msg["type"] == "sample" and msg["name"] in self.weights:
            weight = self.weights[msg["name"]]
            msg["scale"] = weight if msg["scale"] is None else weight * msg["scale"]


def _sum(kl: KL) -> Array:
    return sum(kl.values(), jnp.zeros(()))


def _check_inner(objective: Any, name: str) -> None:
    if not isinstance(objective, OF_ELBO_TYPE):
        raise Incompatible(
            f"{name} weighs the KL inside an ELBO, and {objective!r} is not of that type: give ELBO(), STL(), "
            "ScoreFunction() or NVIL(). (Relaxations go around it: GumbelSoftmax(Beta(ELBO(), 0.5)).)"
        )


def _check_positive(name: str, value: Any) -> None:
    if not callable(value) and not 0 <= value < float("inf"):
        raise ValueError(f"{name} is {value!r}; expected a number of at least 0, or a schedule (step -> number).")


__all__ = ["Beta", "Capacity", "FreeBits", "cyclical"]
