r"""The bound of a diffusion at steps that are drawn, one a row, and its unit-weight relative.

    ELBO = last_term + sum_t term_t = E_t[last_term + T term_t],    t uniform on 1 … T,

so that one x_t ~ q(x_t | x_0) and one run of the network a row give an unbiased estimate of what ``ELBO()`` takes T
for: the same bound, of the same model and guide. The steps of a batch are evenly spaced up to a common random shift,
each uniform on 1 … T, which leaves less noise than independent ones.

References
----------
Denoising Diffusion Probabilistic Models (Ho, Jain and Abbeel, 2020).
Variational Diffusion Models (Kingma, Salimans, Poole and Ho, 2021), for the steps.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from inference.errors import Incompatible
from inference.objectives.elbo import average
from inference.objectives.objective import Estimate, Objective, State, check_particles
from inference.objectives.pair import Pair
from inference.programs import trace
from inference.protocols import DenoisingPath, NoisingPath


@dataclass(frozen=True)
class Denoising(Objective):
    """The ELBO of a diffusion and its noising, at one step a row.

    Parameters
    ----------
    num_particles
        Draws of step and noise averaged.

    Notes
    -----
    ``history`` holds the ``bound`` and the network's ``squared_error``, averaged over entries and steps.
    """

    num_particles: int = 1

    def __post_init__(self) -> None:
        check_particles(self.num_particles)

    def estimate(self, key: Array, both: Pair, state: State) -> Estimate:
        at = _average(key, both, self.num_particles, "Denoising")
        return Estimate(-at.bound, at.bound, {"squared_error": at.error})


@dataclass(frozen=True)
class UnitDenoising(Objective):
    """The network's squared error with the same weight at every step: it draws better, and is no bound.

    Parameters
    ----------
    num_particles
        Draws of step and noise averaged.

    Notes
    -----
    What is minimised is ``squared_error`` in the history, averaged over entries and steps. ``bound``, and what is
    reported of validation rows, is the same estimate of the ELBO as that of :class:`Denoising`, from the same runs of
    the network: it is not what is followed.
    """

    num_particles: int = 1

    def __post_init__(self) -> None:
        check_particles(self.num_particles)

    def estimate(self, key: Array, both: Pair, state: State) -> Estimate:
        at = _average(key, both, self.num_particles, "UnitDenoising")
        return Estimate(at.error, at.bound, {"squared_error": at.error})


class _At(NamedTuple):
    """An estimate at drawn steps, summed over the whole data set."""

    bound: Float[Array, ""]  # nats
    error: Float[Array, ""]  # of a row, the mean over its entries


def _average(key: Array, both: Pair, num_particles: int, name: str) -> _At:
    model, noising = _chains(both, name)
    x = noising.x

    def one(key: Array) -> _At:
        key_steps, key_noise = jax.random.split(key)
        t = spread_steps(key_steps, len(x), model.num_steps)
        term, error = model.terms(x, t, jax.random.normal(key_noise, x.shape, x.dtype))
        rows = model.last_term(x) + model.num_steps * term
        return _At(both.parts.scale * rows.sum(), both.parts.scale * error.sum() / x.shape[-1])

    return average(one, key, num_particles)


def spread_steps(key: Array, num_rows: int, num_steps: int) -> Int[Array, " rows"]:
    """A step for each row, uniform on 1 … T, and all of them evenly spread."""
    place = (jax.random.uniform(key) + jnp.arange(num_rows) / num_rows) % 1.0
    return jnp.minimum(jnp.floor(num_steps * place).astype(jnp.int32), num_steps - 1) + 1


def _chains(both: Pair, name: str) -> tuple[DenoisingPath, NoisingPath]:
    """The laws of the one latent in model and guide. The decoder at a blank path is not used, and not computed."""
    latents = both.parts.latent
    if len(latents) == 1 == len(both.guide_parts.latent):
        (site,) = latents
        blank = {site: jnp.zeros(both.parts.shapes[site])}  # so that no path is drawn
        guide = trace(both.guide, jax.random.key(0), blank)
        model = trace(both.model, jax.random.key(0), blank)
        ours, theirs = model[site]["fn"], guide[site]["fn"]
        if isinstance(ours, DenoisingPath) and isinstance(theirs, NoisingPath) and ours.schedule == theirs.schedule:
            return ours, theirs
    raise Incompatible(
        f"{name} is the bound of a diffusion, step by step: it needs a latent path that the model takes towards the "
        f"data and the guide away from it, by one schedule, and the model samples {list(latents)}. Pair a Diffusion "
        "with its own guide, SVI(model, model.noising, ...), or use ELBO()."
    )


__all__ = ["Denoising", "UnitDenoising", "spread_steps"]
