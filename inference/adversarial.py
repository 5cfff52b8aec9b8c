r"""Adversarial learning: a critic tells the data's rows from the model's, and the model learns to deceive it.

    critic      max_T  V(T; data, model)
    generator   min_G  its own side of the game, see :mod:`inference.games`

The model is drawn from, never evaluated, so any program that makes rows will do. With a guide the critic sees pairs,
(x, z ~ q(z | x)) of the data and (x = g(z), z ~ p(z)) of the model; the two laws agree only where q is the model's
posterior (ALI, BiGAN).

References
----------
Generative Adversarial Networks (Goodfellow et al., 2014); Adversarially Learned Inference (Dumoulin et al., 2017);
Adversarial Feature Learning (Donahue, Krähenbühl and Darrell, 2017).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpyro
import optax
from jax import lax
from jaxtyping import Array
from numpyro import handlers
from numpyro.distributions import biject_to, constraints
from numpyro.distributions.util import scale_and_mask

from inference.check import check_arguments, declared_ppls, program_name, readable
from inference.errors import Incompatible, check_whole
from inference.games import Game, NonSaturating
from inference.implicit import Implicit, check_generator, generate, generated
from inference.objectives.pair import pair, refuse_discrete
from inference.programs import Trace, anatomy, bind, site_log_prob, trace
from inference.protocols import Batch, Draws, Program, Record
from inference.weight_average import average

ADAM = optax.adam(2e-4, b1=0.5)  # Radford, Metz and Chintala (2016)

Params = dict[str, Any]
Rows = dict[str, Array]
State = dict[str, Any]


@dataclass(frozen=True)
class Adversarial:
    """Learn a program that makes rows, against a critic.

    Parameters
    ----------
    model
        A NumPyro program with a deterministic or sample site for each array of the data that it makes, such as
        ``x``; other arrays are inputs, which the critic sees too (a conditional GAN). ``Generator`` is one. Its
        ``numpyro.factor`` are climbed besides, per row (cycle and identity losses of a ``CycleGAN``). It is kept as
        :class:`~inference.implicit.Implicit`.
    critic
        A NumPyro program called with the data's arrays by name (and the latents', with a guide); returns a score for
        each row, or for each row and several critics, whose games are averaged. ``networks.Critic`` is one. What it
        observes is climbed besides, per row of the data: labels of some rows make it a semi-supervised classifier.
    game
        A value of :mod:`inference.games`.
    generator_optimizer, critic_optimizer
        Optax transformations; the guide is moved by the generator's. Around either, ``averaged`` makes what is
        reported and drawn from an average of weights over steps, between which players circle.
    critic_steps
        Steps of the critic for each of the generator. A step of ``fit`` is one of the critic, on a batch of its own,
        and every ``critic_steps``-th moves the generator too.
    guide
        An encoder q(z | x), for ALI: it must sample the latents of the model.

    Notes
    -----
    ``history`` holds of each step, before it: ``generator_loss`` (with a guide its loss is added) and ``critic_loss``,
    minus what the critic climbs; ``critic_accuracy``, the share of rows it tells right, a half where it cannot;
    ``divergence``, what it estimates: Jensen-Shannon in nats, or Wasserstein in the unit of x. All are of one batch.

    Raises
    ------
    ValueError
        ``critic_steps`` is not a whole number of at least 1.
    """

    model: Program
    critic: Program
    game: Game = NonSaturating()
    generator_optimizer: optax.GradientTransformation = ADAM
    critic_optimizer: optax.GradientTransformation = ADAM
    critic_steps: int = 1
    guide: Program | None = None

    engine: ClassVar[str] = "numpyro"
    uses_prior: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_whole("Adversarial: critic_steps", self.critic_steps)
        if not isinstance(self.model, Implicit):
            object.__setattr__(self, "model", Implicit(self.model))

    def check(self, batch: Batch) -> None:
        """Refuse programs and data that do not go together."""
        for program in (self.model, self.critic, self.guide):
            other = sorted(ppl.__name__ for ppl in declared_ppls(program) if ppl is not numpyro)
            if other:
                raise Incompatible(f"{program_name(program)} is written for ppl={other[0]}: make it with ppl=numpyro.")
        check_generator(self.model, batch)
        if self.guide is not None:
            check_arguments(self.guide, batch, program_name(self.guide))
            with readable(f"the guide {program_name(self.guide)}"):
                both = pair(bind(self.model, batch), bind(self.guide, batch), (), {}, {})
                refuse_discrete(both, "Adversarial")
        key, name = jax.random.key(0), f"critic {program_name(self.critic)}"
        with readable("the model's rows"):
            players = jax.eval_shape(lambda key: start(self._programs(batch), key), key)
            shown = jax.eval_shape(lambda key, players: self._rows(key, players, batch)[1], key, players)
        check_arguments(self.critic, Batch(shown, batch.rows, batch.num_data), name)
        with readable(f"{name} on { {n: v.shape for n, v in shown.items()} }"):
            critic = jax.eval_shape(lambda key, rows: start([lambda: self.critic(**rows)], key), key, shown)
            scores = jax.eval_shape(self._score, key, critic, shown)
        if scores.shape[:1] != (len(batch),) or len(scores.shape) > 2 or scores.shape == (len(batch), 1):
            raise Incompatible(
                f"{name} returned shape {scores.shape} for {len(batch)} rows; expected one score a row, for example "
                "network(...)(x)[:, 0], or a column for each of several critics."
            )
        for player, params in (("model", players), ("critic", critic)):
            if not params:
                raise Incompatible(f"the {player} has no parameters (numpyro.param), so there is nothing to learn.")
        shared = players.keys() & critic.keys()
        if shared:
            raise Incompatible(f"model and critic share parameters {sorted(shared)}: rename the critic's.")

    def init(self, key: Array, batch: Batch) -> State:
        """Both players' parameters (unconstrained) and their optimizers' states."""
        players, critic = self._start(key, batch)
        return {
            "players": players,
            "critic": critic,
            "players_optimizer": self.generator_optimizer.init(players),
            "critic_optimizer": self.critic_optimizer.init(critic),
            "count": jnp.int32(0),
        }

    def step(self, key: Array, state: State, batch: Batch) -> tuple[State, Record]:
        """A step of the critic, and where its turn has come one of the generator; the record is of the state before."""
        key_critic, key_players = jax.random.split(key)
        state, record = self._move_critic(key_critic, state, batch)
        if self.critic_steps == 1:
            return self._move_players(key_players, state, batch), record
        turn = state["count"] % self.critic_steps == 0
        return lax.cond(turn, lambda s: self._move_players(key_players, s, batch), lambda s: s, state), record

    def _move_critic(self, key: Array, state: State, batch: Batch) -> tuple[State, Record]:
        key_rows, key_score, key_penalty = jax.random.split(key, 3)
        real, fake, factors = self._rows(key_rows, state["players"], batch)

        def loss(critic: Params) -> tuple[Array, tuple[Array, Array]]:
            (s_real, labels), (s_fake, _) = (self._judge(key_score, critic, rows) for rows in (real, fake))
            penalty = self._penalty(key_penalty, critic, real, fake, batch)
            return penalty - self.game.critic(s_real, s_fake) - labels, (s_real, s_fake)

        (value, (s_real, s_fake)), gradient = jax.value_and_grad(loss, has_aux=True)(state["critic"])
        updates, optimizer = self.critic_optimizer.update(gradient, state["critic_optimizer"], state["critic"])
        project = getattr(self.game, "project", lambda params: params)
        critic = project(optax.apply_updates(state["critic"], updates))
        metrics = {
            "generator_loss": self._players_loss(s_real, s_fake) - factors,
            "critic_loss": value,
            "critic_accuracy": self.game.accuracy(s_real, s_fake),
            "divergence": self.game.divergence(s_real, s_fake),
        }
        new = {"critic": critic, "critic_optimizer": optimizer, "count": state["count"] + 1}
        return state | new, Record(metrics)

    def _move_players(self, key: Array, state: State, batch: Batch) -> State:
        key_rows, key_score = jax.random.split(key)

        def loss(players: Params) -> Array:
            real, fake, factors = self._rows(key_rows, players, batch)
            s_real = None if self.guide is None else self._score(key_score, state["critic"], real)
            return self._players_loss(s_real, self._score(key_score, state["critic"], fake)) - factors

        gradient = jax.grad(loss)(state["players"])
        updates, optimizer = self.generator_optimizer.update(gradient, state["players_optimizer"], state["players"])
        return state | {"players": optax.apply_updates(state["players"], updates), "players_optimizer": optimizer}

    def _players_loss(self, real: Any, fake: Array) -> Array:
        loss = self.game.generator(fake)
        return loss if self.guide is None else loss + self.game.encoder(real)

    def _penalty(self, key: Array, critic: Params, real: Rows, fake: Rows, batch: Batch) -> Array | float:
        penalty = getattr(self.game, "penalty", None)
        if penalty is None:
            return 0.0
        inputs = {n: v for n, v in real.items() if n in batch.data and n not in generated(self.model, batch)}

        def score(rows: Rows) -> Array:
            return self._score(key, critic, rows | inputs)

        made = [n for n in real if n not in inputs]
        return penalty(key, score, {n: real[n] for n in made}, {n: fake[n] for n in made})

    def _rows(self, key: Array, players: Params, batch: Batch) -> tuple[Rows, Rows, Any]:
        """What the critic is shown, the data with the guide's latents and what the model made; and its factors."""
        key_model, key_guide = jax.random.split(key)
        params = constrain(self._programs(batch), players)
        sites, factors = generate(self.model, batch, key_model, params)
        fake = {n: sites.get(n, v) for n, v in batch.data.items()}
        if self.guide is None:
            return dict(batch.data), fake, factors
        latents = anatomy(bind(self.guide, batch)).latent
        drawn = trace(bind(self.guide, batch), key_guide, params)
        real = dict(batch.data) | {n: drawn[n]["value"] for n in latents}
        return real, fake | {n: sites[n] for n in latents}, factors

    def _score(self, key: Array, critic: Params, rows: Rows) -> Array:
        return self._judge(key, critic, rows)[0]

    def _judge(self, key: Array, critic: Params, rows: Rows) -> tuple[Array, Any]:
        """Scores of rows, and the log density of what the critic observes besides, nats per row."""
        params = constrain([lambda: self.critic(**rows)], critic)
        with handlers.block(), handlers.seed(rng_seed=key), handlers.substitute(data=params), handlers.trace() as tr:
            scores = self.critic(**rows)
        seen = [s for s in tr.values() if s["type"] == "sample" and s["is_observed"]]
        total = sum(jnp.sum(scale_and_mask(site_log_prob(s), scale=s["scale"])) for s in seen)
        return scores, total / len(scores)

    def _programs(self, batch: Batch) -> list[Callable[[], Any]]:
        return [bind(p, batch) for p in (self.model, self.guide) if p is not None]

    def _start(self, key: Array, batch: Batch) -> tuple[Params, Params]:
        """Parameters of model and guide, and of the critic, all unconstrained."""
        key_players, key_rows, key_critic = jax.random.split(key, 3)
        players = start(self._programs(batch), key_players)
        _, fake, _ = self._rows(key_rows, players, batch)
        return players, start([lambda: self.critic(**fake)], key_critic)

    def params(self, state: State, batch: Batch) -> Params:
        """Parameters of all players in their own spaces, by site name; averages where their optimizers keep them."""
        _, fake, _ = self._rows(jax.random.key(0), state["players"], batch)
        players, critic = (average(state[f"{who}_optimizer"], state[who]) for who in ("players", "critic"))
        return constrain(self._programs(batch), players) | constrain([lambda: self.critic(**fake)], critic)

    def finish(self, key: Array, state: State, records: Mapping[str, Array], batch: Batch) -> Draws:
        """The point estimates."""
        return Draws(self.params(state, batch), {}, {})

    def explain(self, key: Array, state: State, batch: Batch) -> str:
        """Which player stops being finite, for the error message."""
        for _ in range(2):
            real, fake, _ = self._rows(key, state["players"], batch)
            made = {n: fake[n] for n in fake if n not in batch.data or n in generated(self.model, batch)}
            for what, tree in (("parameter", state["players"]), ("critic's parameter", state["critic"])):
                bad = [n for n, v in tree.items() if not _finite(v)]
                if bad:
                    return f", where the {what} {bad[0]!r} is not"
            bad = [n for n, v in made.items() if not _finite(v)]
            if bad:
                return f", where the model's rows {bad[0]!r} are not"
            if not all(_finite(self._score(key, state["critic"], rows)) for rows in (real, fake)):
                return ", where the critic's scores are not"
            state, _ = self.step(key, state, batch)
        return ""


def start(thunks: list[Callable[[], Any]], key: Array) -> Params:
    """Parameters of programs drawn from ``key``, mapped to unconstrained spaces."""
    found: Trace = {}
    for i, thunk in enumerate(thunks):
        found = trace(thunk, jax.random.fold_in(key, i)) | found
    return {n: _transform(s).inv(s["value"]) for n, s in found.items() if s["type"] == "param"}


def constrain(thunks: list[Callable[[], Any]], unconstrained: Params) -> Params:
    """Map parameters into their constraints, found by an abstract run of the programs."""
    found: dict[str, Any] = {}

    def run(key: Array) -> None:
        for thunk in thunks:
            with handlers.block():
                found.update({n: _transform(s) for n, s in trace(thunk, key).items() if s["type"] == "param"})

    jax.eval_shape(run, jax.random.key(0))
    return {n: found[n](v) for n, v in unconstrained.items()}


def _transform(site: dict[str, Any]) -> Any:
    return biject_to(site["kwargs"].get("constraint", constraints.real))


def _finite(value: Any) -> bool:
    return all(bool(jnp.all(jnp.isfinite(leaf))) for leaf in jax.tree.leaves(value))


__all__ = ["Adversarial", "constrain", "start"]
