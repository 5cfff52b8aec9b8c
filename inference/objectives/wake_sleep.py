"""Reweighted wake-sleep: the guide learns from the posterior, or from dreams, instead of through the bound.

With weights w_k of K draws per row, normalised to w~_k, and nothing differentiated through a draw,

    wake, theta   sum_k w~_k grad log p(x_n, z_k)          the gradient of the K-sample bound
    wake, phi     sum_k w~_k grad log q(z_k | x_n)         KL(p(z | x) || q(z | x)) falls
    sleep, phi    grad log q(z' | x'),  (x', z') ~ p       the same KL, averaged over the model's own data

Globals with pathwise gradients keep them: the rows' bound nests in their expectation as in IWAE.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.lax import stop_gradient
from jaxtyping import Array
from numpyro import handlers

from inference.errors import Incompatible
from inference.objectives.elbo import parents
from inference.objectives.importance import log_mean_exp
from inference.objectives.objective import Estimate, Objective, State, check_particles, surrogate
from inference.objectives.pair import Pair, draw, drawn_values, model_density, refuse_split_globals, scores
from inference.programs import density


@dataclass(frozen=True)
class ReweightedWakeSleep(Objective):
    """Importance-weighted bound for the model; the guide is drawn towards the posterior.

    The reported bound is the K-sample one. The guide's updates are not the gradient of any bound, and
    need no reparameterised sampler.

    Parameters
    ----------
    num_particles
        K, at least 2 for the wake phase to say anything.
    sleep
        Share of the sleep phase in the guide's update, from 0 (wake only) to 1 (the sleep phase of
        the wake-sleep algorithm).

    References
    ----------
    Reweighted Wake-Sleep (Bornschein and Bengio, 2015); The Wake-Sleep Algorithm for Unsupervised
    Neural Networks (Hinton, Dayan, Frey and Neal, 1995).
    """

    num_particles: int = 10
    sleep: float = 0.0

    def __post_init__(self) -> None:
        check_particles(self.num_particles, least=2 if self.sleep < 1 else 1)
        if not 0 <= self.sleep <= 1:
            raise ValueError(f"sleep is {self.sleep}; expected a share from 0 to 1.")

    def estimate(self, key: Array, both: Pair, state: State) -> Estimate:
        refuse_split_globals(both, "ReweightedWakeSleep")
        refuse_factors(both)
        _refuse_descending_locals(both)
        plate = both.parts.plate
        shared_key, local_key, dream_key = jax.random.split(key, 3)
        held = set(both.guide_parts.latent) if both.joint else both.parts.local

        def particle(local: Array) -> tuple[Array, ...]:
            tr = draw(both.guide, local if both.joint else shared_key, local, plate)
            values = {n: stop_gradient(v) if n in held else v for n, v in drawn_values(tr).items()}
            p, q = model_density(both, local, values), density(both.guide, local, values, plate)
            if both.joint:
                return jnp.zeros(()), p.total()[None], q.total()[None], jnp.zeros(())
            return p.shared - q.shared, p.rows, q.rows, scores(both, tr).shared

        shared, p, q, score = jax.vmap(particle)(jax.random.split(local_key, self.num_particles))
        rows = p - stop_gradient(q)
        bound = shared[0] + both.scale * jnp.sum(log_mean_exp(rows))
        bound = bound + surrogate(stop_gradient(bound) * score[0])  # globals without pathwise gradients
        weights = stop_gradient(jax.nn.softmax(rows, axis=0))
        learned = (1 - self.sleep) * both.scale * jnp.sum(weights * q)  # log q, towards the posterior
        if self.sleep:
            learned = learned + self.sleep * both.scale * jnp.sum(_dreamed_log_q(dream_key, both))
        return Estimate(-bound - surrogate(learned), bound)


def refuse_factors(both: Pair) -> None:
    """A guide that climbs log q would climb its factors too, which the bound subtracts."""
    if both.guide_parts.factors:
        raise Incompatible(
            f"the guide has the factors {list(both.guide_parts.factors)}, terms of a bound, and ReweightedWakeSleep "
            "moves the guide up its density and not up the bound. Use EnumeratedELBO(), ScoreFunction() or VIMCO()."
        )


def _refuse_descending_locals(both: Pair) -> None:
    shared = {n for n in both.guide_parts.latent if n not in both.parts.local}
    if both.joint or not shared:
        return
    above = parents(both.guide, both.guide_parts)
    tied = [n for n in both.guide_parts.latent if n in both.parts.local and above[n] & shared]
    if tied:
        raise Incompatible(
            f"ReweightedWakeSleep differentiates through no draw of {tied}, which depend on the global latents "
            f"{sorted(shared)} in the guide: their gradient would be lost. Let the guide draw them from the data "
            "alone, or use VIMCO()."
        )


def _dreamed_log_q(key: Array, both: Pair) -> Array:
    """Log q of each row's latents, for rows and latents that the model dreams."""
    key_dream, key_guide = jax.random.split(key)
    if both.joint or set(both.guide_parts.latent) - both.parts.local:
        raise Incompatible("the sleep phase dreams rows, and the guide samples global latents: use sleep=0.")
    if both.left_out:
        raise Incompatible(
            f"the sleep phase needs every latent in the guide, which leaves out {sorted(both.left_out)}."
        )
    with handlers.seed(rng_seed=key_dream):
        awake = handlers.trace(both.model).get_trace()
        dream = handlers.trace(handlers.uncondition(both.model)).get_trace()
    assert both.guide_on is not None
    data = {n: stop_gradient(dream[s]["value"]) for s, n in _sources(both, awake).items()}
    guide = handlers.substitute(both.guide_on(data), data=both.params)
    values = {n: stop_gradient(dream[n]["value"]) for n in both.guide_parts.latent}
    return density(guide, key_guide, values, both.parts.plate).rows


def _sources(both: Pair, tr: Any) -> dict[str, str]:
    """For each observed site the guide's argument that it observes."""
    out = {}
    for site in both.parts.observed:
        names = [n for n, v in both.arguments.items() if v is tr[site]["value"]]
        if not names:
            raise Incompatible(
                f"the sleep phase hands the guide dreamed values of {site!r}, which the model observes as something "
                "else than one of its arguments. Write obs=x with x an argument of both programs, or use sleep=0."
            )
        out[site] = names[0]
    return out


__all__ = ["ReweightedWakeSleep"]
