"""Any objective on relaxed discrete draws: the guide's Bernoulli and one-hot sites get pathwise gradients.

    GumbelSoftmax    values between 0 and 1; the relaxed objective's gradient is exact, the objective is another
    StraightThrough  exact draws, so the bound is the inner objective's; its gradient is that of the relaxed ones

Both change the guide's sites, and the densities of the model's sites of the same names, as
:mod:`inference.relaxation` describes; the programs stay as they are. Both gradients are biased for the discrete
objective, less so and noisier at low temperatures.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from jaxtyping import Array

from inference.errors import Incompatible
from inference.objectives.elbo import ELBO
from inference.objectives.objective import Estimate, Objective, Schedule, State, at_step, counted, next_step
from inference.objectives.pair import Pair
from inference.protocols import Program
from inference.relaxation import gumbel_softmax, straight_through


@dataclass(frozen=True)
class GumbelSoftmax(Objective):
    """An objective on relaxed values ("Gumbel-softmax", or "Concrete").

    The ``bound`` in the history is of relaxed values: it is no bound on the evidence. Judge by ``log_likelihood``
    or by another objective.

    Parameters
    ----------
    objective
        Any of :mod:`inference.objectives`; ``ELBO()`` and ``IWAE(K)`` in the papers.
    temperature
        A positive number, or a function of the step such as ``optax.exponential_decay(1.0, 1000, 0.5)``.

    References
    ----------
    Categorical Reparameterization with Gumbel-Softmax (Jang, Gu and Poole, 2017); The Concrete Distribution (Maddison,
    Mnih and Teh, 2017).
    """

    objective: Any = ELBO()
    temperature: float | Schedule = 0.5

    def __post_init__(self) -> None:
        _check(self.objective, self.temperature, "GumbelSoftmax")

    def guide(self, guide: Program) -> Program:
        return _counted_if_scheduled(self.objective.guide(guide), self.temperature)

    def estimate(self, key: Array, both: Pair, state: State) -> Estimate:
        return _estimate(gumbel_softmax, self.objective, self.temperature, key, both, state)


@dataclass(frozen=True)
class StraightThrough(Objective):
    """An objective on exact draws whose gradient is taken through the relaxed ones ("straight-through Gumbel").

    Parameters
    ----------
    objective
        Any of :mod:`inference.objectives`.
    temperature
        A positive number, or a function of the step.

    References
    ----------
    Categorical Reparameterization with Gumbel-Softmax (Jang, Gu and Poole, 2017); Estimating or Propagating Gradients
    Through Stochastic Neurons for Conditional Computation (Bengio, Leonard and Courville, 2013).
    """

    objective: Any = ELBO()
    temperature: float | Schedule = 0.5

    def __post_init__(self) -> None:
        _check(self.objective, self.temperature, "StraightThrough")

    def guide(self, guide: Program) -> Program:
        return _counted_if_scheduled(self.objective.guide(guide), self.temperature)

    def estimate(self, key: Array, both: Pair, state: State) -> Estimate:
        return _estimate(straight_through, self.objective, self.temperature, key, both, state)


def _estimate(
    relax: Callable[..., Program],
    objective: Objective,
    temperature: float | Schedule,
    key: Array,
    both: Pair,
    state: State,
) -> Estimate:
    """The inner objective on the pair with the guide's sites relaxed, and the model's of the same names."""
    value, sites = at_step(temperature, state), frozenset(both.guide_parts.latent)
    relaxed = both.through(lambda model: relax(model, value, sites), lambda guide: relax(guide, value, sites))
    out = objective.estimate(key, relaxed, state)
    return out._replace(state=out.state | (next_step(state) if callable(temperature) else {}))


def _counted_if_scheduled(guide: Program, temperature: float | Schedule) -> Program:
    return counted(guide) if callable(temperature) else guide


def _check(objective: Any, temperature: Any, name: str) -> None:
    if not isinstance(objective, Objective):
        raise Incompatible(f"{objective!r} is not an objective of inference.objectives: {name} relaxes one of those.")
    if not callable(temperature) and not 0 < temperature < float("inf"):
        raise ValueError(f"temperature is {temperature!r}; expected a positive number, or a schedule (step -> number).")


__all__ = ["GumbelSoftmax", "StraightThrough"]
