"""One objective for the model and another for the guide.

    theta follows  grad_theta of the model's objective at fixed phi,
    phi   follows  grad_phi   of the guide's objective at fixed theta.

Both objectives contain log p_theta(x, z) and log q_phi(z | x), so each player's parameters are held
still in the other's: otherwise theta would follow the sum of two gradients.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
from jax.lax import stop_gradient
from jaxtyping import Array

from inference.errors import Incompatible
from inference.objectives.elbo import ELBO
from inference.objectives.importance import IWAE
from inference.objectives.objective import Estimate, Objective, State, surrogate
from inference.objectives.pair import Pair
from inference.protocols import Program


@dataclass(frozen=True)
class Players(Objective):
    """Two objectives, one for each player: ``Players(IWAE(50), ELBO())``.

    The reported bound is the model's. A parameter that both programs have is the model's.

    Parameters
    ----------
    of_model
        What the model's parameters climb.
    of_guide
        What the guide's climb.

    References
    ----------
    Tighter Variational Bounds are Not Necessarily Better (Rainforth et al., 2018).
    """

    of_model: Any = IWAE()
    of_guide: Any = ELBO()

    def __post_init__(self) -> None:
        for objective in (self.of_model, self.of_guide):
            if not isinstance(objective, Objective):
                raise Incompatible(f"{objective!r} is not an objective of inference.objectives.")

    def guide(self, guide: Program) -> Program:
        # The guide's own baseline comes first, and stays: the model's gradient has no use for one.
        return self.of_model.guide(self.of_guide.guide(guide))

    def estimate(self, key: Array, both: Pair, state: State) -> Estimate:
        theta = set(both.parts.params)

        def held(stop: bool) -> dict[str, Any]:
            return {n: jax.tree.map(stop_gradient, v) if (n in theta) == stop else v for n, v in both.params.items()}

        ours = self.of_model.estimate(key, both.at(held(False)), state)
        theirs = self.of_guide.estimate(key, both.at(held(True)), state)
        metrics = theirs.metrics | ours.metrics | {"guide_bound": theirs.bound}
        return Estimate(ours.loss + surrogate(theirs.loss), ours.bound, metrics, ours.state | theirs.state)


__all__ = ["Players"]
