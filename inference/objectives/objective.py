"""What an objective is: an estimate of a bound whose gradient is the estimator, and what it keeps between steps."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax.lax import stop_gradient
from jaxtyping import Array, Float, Int
from numpyro.infer import elbo
from numpyro.primitives import mutable

from inference.errors import Incompatible, check_whole
from inference.objectives.pair import Pair, pair
from inference.protocols import Program

State = dict[str, Any]
Schedule = Callable[[Int[Array, ""]], Any]  # step -> value, such as optax's

STEP = "objective_step"


class Estimate(NamedTuple):
    """What one evaluation gives, in nats for the whole data set.

    ``loss`` is differentiated: its value is minus the objective and its gradient the estimator's.
    ``bound`` is the bound as one reports it (higher is better); ``metrics`` are its parts; ``state``
    is what the next step starts from.
    """

    loss: Float[Array, ""]
    bound: Float[Array, ""]
    metrics: dict[str, Float[Array, ""]] = {}
    state: State = {}


class Objective(elbo.ELBO):
    """A NumPyro ``ELBO`` over :class:`~inference.objectives.pair.Pair`; the concrete ones are frozen dataclasses."""

    can_infer_discrete = True

    def guide(self, guide: Program) -> Program:
        """The guide to train with: itself, or with the parameters and state that the objective needs beside it.

        ``inference.SVI`` calls this; in plain NumPyro write
        ``numpyro.infer.SVI(model, objective.guide(guide), optimizer, objective)``.
        """
        return guide

    def estimate(self, key: Array, both: Pair, state: State) -> Estimate:
        """One draw of the estimator."""
        raise NotImplementedError

    def loss_with_mutable_state(
        self, rng_key: Array, param_map: dict[str, Any], model: Any, guide: Any, *args: Any, **kwargs: Any
    ) -> dict[str, Any]:
        out = self.evaluate(rng_key, param_map, model, guide, *args, **kwargs)
        return {"loss": out.loss, "mutable_state": out.state or None}

    def evaluate(
        self, rng_key: Array, param_map: dict[str, Any], model: Any, guide: Any, *args: Any, **kwargs: Any
    ) -> Estimate:
        """:meth:`estimate` for two programs on their arguments, at these parameters and this state."""
        both = pair(model, guide, args, kwargs, param_map)
        kept = {n: param_map[n] for n in both.guide_parts.mutable if n in param_map}
        out = self.estimate(rng_key, both, kept)
        return out._replace(state=kept | out.state)


def surrogate(value: Array) -> Array:
    """A term that is zero and has the gradient of ``value``."""
    return value - stop_gradient(value)


def check_particles(num_particles: int, least: int = 1) -> None:
    """Refuse fewer draws than an objective needs, and parts of one."""
    check_whole("num_particles", num_particles, least)


@dataclass(frozen=True)
class Beside:
    """A guide with something run beside it: a parameter, or state that is kept between steps.

    Parameters
    ----------
    beside
        The guide.
    companion
        Called with the guide's arguments before it.
    """

    beside: Program
    companion: Callable[..., Any]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.companion(*args, **kwargs)
        return self.beside(*args, **kwargs)

    @property
    def __signature__(self) -> inspect.Signature:
        return inspect.signature(self.beside)


def keep(name: str, start: dict[str, Any]) -> None:
    """A site of state that is kept between steps, with its first value."""
    mutable(name, start)  # pyright: ignore[reportArgumentType] (dicts are what it is for)


def beside(guide: Program, companion: Callable[..., Any]) -> Program:
    """The guide with this run beside it. Of companions of one class the first stays, and serves all that need one."""
    inside = guide
    while isinstance(inside, Beside):
        if type(inside.companion) is type(companion):
            return guide
        inside = inside.beside
    return Beside(guide, companion)


@dataclass(frozen=True)
class _Count:
    """The number of steps taken."""

    def __call__(self, *args: Any, **kwargs: Any) -> None:
        keep(STEP, {"count": jnp.zeros((), jnp.int32)})


def counted(guide: Program) -> Program:
    """The guide with a count of steps beside it, for schedules."""
    return beside(guide, _Count())


def at_step(schedule: float | Schedule, state: State) -> Any:
    """The value of a schedule at this step; a number is a constant."""
    if not callable(schedule):
        return schedule
    if STEP not in state:
        raise Incompatible(
            "a schedule needs the count of steps, which the objective keeps beside the guide: pass "
            "objective.guide(guide) to numpyro.infer.SVI (inference.SVI does)."
        )
    return schedule(state[STEP]["count"])


def next_step(state: State) -> State:
    """The count of steps, one on, where there is one."""
    return {STEP: {"count": state[STEP]["count"] + 1}} if STEP in state else {}


__all__ = ["Estimate", "Objective", "Schedule", "at_step", "beside", "check_particles", "counted", "next_step"]
