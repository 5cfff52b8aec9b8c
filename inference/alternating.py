"""Taking turns: the guide's parameters and the model's are moved one at a time, not together.

    E-steps    phi   <- phi + eta grad_phi ELBO(theta, phi)         `guide_steps` of them
    M-steps    theta <- theta + eta grad_theta ELBO(theta, phi)     `model_steps` of them

:class:`Alternating` counts the steps of each turn, which is variational EM. :class:`LaggingEncoder` moves
the guide until its gain stops, then the model once, so that the guide does not lag behind a model that
learns to do without its latents (posterior collapse).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import jax.numpy as jnp
import optax
from jax import lax
from jaxtyping import Array, Bool

from inference.errors import Incompatible, check_whole
from inference.programs import anatomy, bind
from inference.protocols import Batch, Draws, Program, Record
from inference.svi import SVI

State = dict[str, Any]


class _Turns:
    """What both schedules share: an :class:`SVI` whose two players have an optimizer state each."""

    svi: SVI
    engine: ClassVar[str] = "numpyro"

    @property
    def model(self) -> Program:
        return self.svi.model

    @property
    def guide(self) -> Program:
        return self.svi.guide

    @property
    def objective(self) -> Any:
        return self.svi.objective

    def __post_init__(self) -> None:
        if not isinstance(self.svi, SVI):
            raise Incompatible(f"svi is {self.svi!r}; expected an SVI, whose players take turns.")

    def check(self, batch: Batch) -> None:
        """Refuse what SVI refuses, and a model or guide that has nothing to learn in its turn."""
        self.svi.check(batch)
        params = self.svi.init_shapes(batch)
        for player, names in self._players(params, batch).items():
            if not names:
                raise Incompatible(
                    f"the {player} has no parameters of its own, so there are no turns to take. Use SVI, or make the "
                    "model's global latents parameters with MaximumLikelihood(model)."
                )

    def init(self, key: Array, batch: Batch) -> State:
        """As SVI's, with an optimizer state for each player."""
        state = self.svi.init(key, batch)
        players = self._players(state["params"], batch)
        optimizer = {
            player: self.svi.optimizer.init({n: state["params"][n] for n in names}) for player, names in players.items()
        }
        return state | {"optimizer": optimizer} | self._start()

    def evaluate(self, key: Array, state: State, batch: Batch) -> Array:
        """The bound on this batch in nats per row, without a step."""
        return self.svi.evaluate(key, state, batch)

    def params(self, state: State, batch: Batch) -> dict[str, Any]:
        """Parameters in their own spaces, by site name."""
        return self.svi.params(state, batch)

    def finish(self, key: Array, state: State, records: dict[str, Array], batch: Batch) -> Draws:
        """As SVI's."""
        return self.svi.finish(key, state, records, batch)

    def explain(self, key: Array, state: State, batch: Batch) -> str:
        """As SVI's."""
        return self.svi.explain(key, state, batch)

    def _start(self) -> State:
        raise NotImplementedError

    def _players(self, params: Any, batch: Batch) -> dict[str, frozenset[str]]:
        """Names of each player's parameters; one that both programs have is the model's."""
        theta = set(anatomy(bind(self.model, batch)).params)
        return {"model": frozenset(params) & theta, "guide": frozenset(params) - theta}

    def _move(self, player: str, key: Array, state: State, batch: Batch) -> tuple[State, Any]:
        """One gradient step of one player; the other's is not computed."""
        names = self._players(state["params"], batch)[player]
        gradient, estimate = self.svi.gradient(key, state, batch, wrt=names)
        own = {n: state["params"][n] for n in names}
        updates, moved = self.svi.optimizer.update(gradient, state["optimizer"][player], own)
        new = {
            "params": state["params"] | optax.apply_updates(own, updates),
            "optimizer": state["optimizer"] | {player: moved},
            "kept": estimate.state,
        }
        return state | new, estimate

    def _turn(self, guide: Bool[Array, ""], key: Array, state: State, batch: Batch) -> tuple[State, Any]:
        def move(player: str) -> Any:
            return lambda state: self._move(player, key, state, batch)

        return lax.cond(guide, move("guide"), move("model"), state)


@dataclass(frozen=True)
class Alternating(_Turns):
    """Variational EM: ``guide_steps`` gradient steps of the guide, then ``model_steps`` of the model, and so on.

    Parameters
    ----------
    svi
        Model, guide, objective and optimizer (each player gets a state of the optimizer of its own).
    guide_steps, model_steps
        Length of each turn. A step of ``fit`` is one gradient step of one player.

    References
    ----------
    A View of the EM Algorithm that Justifies Incremental, Sparse, and Other Variants (Neal and Hinton, 1998).
    """

    svi: SVI
    guide_steps: int = 1
    model_steps: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("guide_steps", "model_steps"):
            check_whole(name, getattr(self, name))

    def step(self, key: Array, state: State, batch: Batch) -> tuple[State, Record]:
        """One gradient step of the player whose turn it is."""
        position = state["position"]
        new, estimate = self._turn(position < self.guide_steps, key, state, batch)
        new["position"] = (position + 1) % (self.guide_steps + self.model_steps)
        return new, self.svi.record(estimate, batch)

    def _start(self) -> State:
        return {"position": jnp.int32(0)}


@dataclass(frozen=True)
class LaggingEncoder(_Turns):
    """The guide is trained until it stops gaining before every step of the model, for the first part of a run.

    In the aggressive part the guide takes steps until the mean bound of ``window`` of them is no better
    than that of the ``window`` before, or ``max_inner`` are taken; then the model takes one. After
    ``aggressive_steps`` steps of ``fit`` in all, both move together.

    Parameters
    ----------
    svi
        Model, guide, objective and optimizer.
    aggressive_steps
        Gradient steps, of either player, before both move together.
    window, max_inner
        Steps whose mean bounds are compared, and most steps of the guide in a turn.

    References
    ----------
    Lagging Inference Networks and Posterior Collapse in Variational Autoencoders (He, Spokoyny, Neubig and
    Berg-Kirkpatrick, 2019). There the aggressive part ends when the mutual information stops rising; here
    its length is given, so that a run does not depend on a validation set.
    """

    svi: SVI
    aggressive_steps: int = 5000
    window: int = 10
    max_inner: int = 100

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.aggressive_steps < 0 or self.window < 1 or self.max_inner < self.window:
            raise ValueError(
                f"aggressive_steps={self.aggressive_steps}, window={self.window}, max_inner={self.max_inner}; expected "
                "at least 0, at least 1, and at least the window."
            )

    def step(self, key: Array, state: State, batch: Batch) -> tuple[State, Record]:
        """One gradient step: of the guide, of the model when the guide is done, or of both."""
        aggressive = state["count"] < self.aggressive_steps
        new, estimate = lax.cond(
            aggressive,
            lambda s: self._turn(~s["gained"], key, s, batch),
            lambda s: self._together(key, s, batch),
            state,
        )
        new = new | _gain(self, state, estimate.bound) | {"count": state["count"] + 1}
        return new, self.svi.record(estimate, batch)

    def _start(self) -> State:
        window = {n: jnp.float32(0) for n in ("now", "before")}
        return window | {"inner": jnp.int32(0), "count": jnp.int32(0), "gained": jnp.asarray(False)}

    def _together(self, key: Array, state: State, batch: Batch) -> tuple[State, Any]:
        gradient, estimate = self.svi.gradient(key, state, batch)
        params, optimizer = {}, {}
        for player, names in self._players(state["params"], batch).items():
            own = {n: state["params"][n] for n in names}
            updates, optimizer[player] = self.svi.optimizer.update(
                {n: gradient[n] for n in names}, state["optimizer"][player], own
            )
            params = params | dict(optax.apply_updates(own, updates))  # pyright: ignore
        return state | {"params": params, "optimizer": optimizer, "kept": estimate.state}, estimate


def _gain(schedule: LaggingEncoder, state: State, bound: Array) -> State:
    """Windows of the guide's turn: whether it has gained all it will (then the next step is the model's)."""
    was_model = state["gained"]
    inner = jnp.where(was_model, 0, state["inner"] + 1)
    now = jnp.where(was_model, 0.0, state["now"] + bound / schedule.window)
    full = (inner > 0) & (inner % schedule.window == 0)
    stalled = full & (inner >= 2 * schedule.window) & (now <= state["before"])
    gained = jnp.where(was_model, False, stalled | (inner >= schedule.max_inner))
    before = jnp.where(full, now, state["before"])
    return {"inner": inner, "now": jnp.where(full, 0.0, now), "before": before, "gained": gained}


__all__ = ["Alternating", "LaggingEncoder"]
