r"""Variational inference with a guide that has draws and no density: a critic stands in for log q(z | x) - log p(z).

    critic   max_T  E_x [ E_q(z|x) log sigma(T(x, z)) + E_p(z) log(1 - sigma(T(x, z))) ],   T* = log q(z | x) - log p(z)
    players  max    E_x E_q(z|x) [ log p(x | z) - T(x, z) ],    the ELBO at T*

T is held fixed in the second line: at T* its own gradient in the guide's parameters has expectation zero.

References
----------
Adversarial Variational Bayes: Unifying Variational Autoencoders and Generative Adversarial Networks (Mescheder,
Nowozin and Geiger, 2017).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.nn import log_sigmoid
from jaxtyping import Array
from numpyro import handlers

from inference.adversarial import ADAM, constrain, start
from inference.check import check, check_arguments, program_name, readable
from inference.errors import Incompatible, check_whole
from inference.implicit import ImplicitGuide, generate
from inference.programs import anatomy, bind, site_log_prob, split_density, trace
from inference.protocols import Batch, Draws, Program, Record
from inference.weight_average import average

Params = dict[str, Any]
State = dict[str, Any]


@dataclass(frozen=True)
class AdversarialVariationalBayes:
    """Climb a bound whose KL a critic estimates.

    Parameters
    ----------
    model
        A NumPyro program with latents of rows and a likelihood of the data, such as ``VAE``.
    guide
        A program that makes the latents from rows and noise: a deterministic site for each, such as
        ``guides.AmortizedImplicit``. It is kept as :class:`~inference.implicit.ImplicitGuide`.
    critic
        A program called with the data's arrays and the latents by name; returns a score for each row.
    optimizer, critic_optimizer
        Optax transformations: of model and guide, and of the critic.
    critic_steps
        Steps of the critic for each of the others. A step of ``fit`` is one of the critic, on a batch of its own.

    Notes
    -----
    ``history`` holds ``bound``, in nats per row, which is the ELBO for the best critic alone, and too high or low by
    the critic's error; ``kl``, the part that the critic estimates; ``critic_loss`` and ``critic_accuracy``.
    """

    model: Program
    guide: Program
    critic: Program
    optimizer: optax.GradientTransformation = ADAM
    critic_optimizer: optax.GradientTransformation = ADAM
    critic_steps: int = 1

    engine: ClassVar[str] = "numpyro"

    def __post_init__(self) -> None:
        check_whole(f"{type(self).__name__}: critic_steps", self.critic_steps)
        if not isinstance(self.guide, ImplicitGuide):
            object.__setattr__(self, "guide", ImplicitGuide(self.guide))

    def check(self, batch: Batch) -> None:
        """Refuse a model without latents of rows, a guide that does not make them, a critic that cannot score them."""
        check(self.model, data=batch)
        name = program_name(getattr(self.guide, "maker", self.guide))
        check_arguments(self.guide, batch, name)
        parts = anatomy(bind(self.model, batch))
        with readable(name):
            made = anatomy(bind(self.guide, batch))
        shared = set(parts.latent) - parts.local
        if shared or not parts.latent or not parts.observed or parts.points.intersection(parts.observed):
            raise Incompatible(
                f"AdversarialVariationalBayes needs a model with a likelihood of rows and latents of rows alone; "
                f"{program_name(self.model)} has local latents {sorted(parts.local)}, others {sorted(shared)}, and "
                f"observes {list(parts.observed)}."
            )
        shapes = [{n: p.values[n] for n in p.latent} for p in (parts, made)]
        if shapes[0] != shapes[1]:
            raise Incompatible(
                f"{name} makes {shapes[1]}, and the model has latents {shapes[0]}: give it a deterministic site of "
                'each name and shape, as in numpyro.deterministic("z", f(x, e)).'
            )
        with readable(f"critic {program_name(self.critic)}"):
            state = jax.eval_shape(self.init, jax.random.key(0), batch)
        if not state["critic"] or state["players"].keys() & state["critic"].keys():
            raise Incompatible("the critic has no parameters of its own (numpyro.param), so there is nothing to learn.")
        with readable(f"critic {program_name(self.critic)}"):
            jax.eval_shape(self.step, jax.random.key(0), state, batch)

    def init(self, key: Array, batch: Batch) -> State:
        """All players' parameters (unconstrained) and optimizers' states."""
        key_players, key_rows, key_critic = jax.random.split(key, 3)
        players = start([bind(self.model, batch), bind(self.guide, batch)], key_players)
        prior = self._prior(key_rows, players, batch)
        critic = start([lambda: self.critic(**batch.data, **prior)], key_critic)
        return {
            "players": players,
            "critic": critic,
            "players_optimizer": self.optimizer.init(players),
            "critic_optimizer": self.critic_optimizer.init(critic),
            "count": jnp.int32(0),
        }

    def step(self, key: Array, state: State, batch: Batch) -> tuple[State, Record]:
        """A step of the critic, and where their turn has come one of model and guide."""
        key_prior, key_guide, key_score, key_players = jax.random.split(key, 4)
        prior = self._prior(key_prior, state["players"], batch)
        drawn = self._drawn(key_guide, state["players"], batch)

        def loss(critic: Params) -> tuple[Array, tuple[Array, Array]]:
            of_guide, of_prior = (self._score(key_score, critic, batch, z) for z in (drawn, prior))
            return -log_sigmoid(of_guide).mean() - log_sigmoid(-of_prior).mean(), (of_guide, of_prior)

        (value, (of_guide, of_prior)), gradient = jax.value_and_grad(loss, has_aux=True)(state["critic"])
        updates, optimizer = self.critic_optimizer.update(gradient, state["critic_optimizer"], state["critic"])
        metrics = {
            "bound": (self._reconstruction(key_guide, state["players"], drawn, batch) - of_guide).mean(),
            "kl": of_guide.mean(),
            "critic_loss": value,
            "critic_accuracy": ((of_guide > 0).mean() + (of_prior <= 0).mean()) / 2,
        }
        critic = optax.apply_updates(state["critic"], updates)
        state = state | {"critic": critic, "critic_optimizer": optimizer, "count": state["count"] + 1}
        turn = state["count"] % self.critic_steps == 0
        if self.critic_steps == 1:
            return self._move_players(key_players, state, batch), Record(metrics)
        return lax.cond(turn, lambda s: self._move_players(key_players, s, batch), lambda s: s, state), Record(metrics)

    def _move_players(self, key: Array, state: State, batch: Batch) -> State:
        key_guide, key_score = jax.random.split(key)

        def loss(players: Params) -> Array:
            drawn = self._drawn(key_guide, players, batch)
            kl = self._score(key_score, state["critic"], batch, drawn)
            return (kl - self._reconstruction(key_guide, players, drawn, batch)).mean()

        gradient = jax.grad(loss)(state["players"])
        updates, optimizer = self.optimizer.update(gradient, state["players_optimizer"], state["players"])
        return state | {"players": optax.apply_updates(state["players"], updates), "players_optimizer": optimizer}

    def evaluate(self, key: Array, state: State, batch: Batch) -> Array:
        """The bound on this batch by the critic as it is, in nats per row."""
        drawn = self._drawn(key, state["players"], batch)
        kl = self._score(key, state["critic"], batch, drawn)
        return (self._reconstruction(key, state["players"], drawn, batch) - kl).mean()

    def _prior(self, key: Array, players: Params, batch: Batch) -> Params:
        sites, _ = generate(self.model, batch, key, self._constrained(players, batch))
        return {n: sites[n] for n in anatomy(bind(self.model, batch)).latent}

    def _drawn(self, key: Array, players: Params, batch: Batch) -> Params:
        tr = trace(bind(self.guide, batch), key, self._constrained(players, batch))
        return {n: tr[n]["value"] for n in anatomy(bind(self.model, batch)).latent}

    def _reconstruction(self, key: Array, players: Params, latents: Params, batch: Batch) -> Array:
        """log p(x | z) of each row."""
        tr = trace(bind(self.model, batch), key, self._constrained(players, batch) | latents)
        rest = {n: site_log_prob(s) for n, s in tr.items() if s["type"] == "sample" and n not in latents}
        return split_density(rest, tr, anatomy(bind(self.model, batch)).plate).rows

    def _score(self, key: Array, critic: Params, batch: Batch, latents: Params) -> Array:
        params = constrain([lambda: self.critic(**batch.data, **latents)], critic)
        with handlers.block(), handlers.seed(rng_seed=key), handlers.substitute(data=params):
            scores = self.critic(**batch.data, **latents)
        if scores.shape != (len(batch),):
            raise Incompatible(f"it returned shape {scores.shape} for {len(batch)} rows; expected one score a row.")
        return scores

    def _constrained(self, players: Params, batch: Batch) -> Params:
        return constrain([bind(self.model, batch), bind(self.guide, batch)], players)

    def params(self, state: State, batch: Batch) -> Params:
        """Parameters of all players in their own spaces, by site name; averages where their optimizers keep them."""
        prior = self._prior(jax.random.key(0), state["players"], batch)
        players, critic = (average(state[f"{who}_optimizer"], state[who]) for who in ("players", "critic"))
        return self._constrained(players, batch) | constrain([lambda: self.critic(**batch.data, **prior)], critic)

    def finish(self, key: Array, state: State, records: Mapping[str, Array], batch: Batch) -> Draws:
        """The point estimates."""
        return Draws(self.params(state, batch), {}, {})


__all__ = ["AdversarialVariationalBayes"]
