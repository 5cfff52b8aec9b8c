"""A model and a guide at their parameters, and the importance weights of draws from the guide.

With data plate scale s = N / B, globals g and locals z_n, one draw of g and K draws of each z_n,

    shared     = log p(g) - log q(g)
    rows[k, n] = log p(x_n, z_nk | g) - log q(z_nk | x_n, g)          (nats)

and every objective is a few lines over ``shared`` and ``rows``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.lax import stop_gradient
from jaxtyping import Array, Float
from numpyro import handlers

from inference.errors import Incompatible
from inference.programs import (
    Anatomy,
    Density,
    SeedByPlate,
    Thunk,
    Trace,
    anatomy,
    by_row,
    joint_density,
    plate_scale,
    site_log_prob,
    split_density,
)

Params = dict[str, Any]


class Pair(NamedTuple):
    """A model and a guide bound to data and parameters, with what their abstract traces show."""

    model: Thunk
    guide: Thunk
    parts: Anatomy
    guide_parts: Anatomy
    params: Params = {}
    bare: tuple[Thunk, Thunk] | None = None  # model and guide without parameters
    arguments: dict[str, Any] = {}  # of both programs: by name, or by number
    guide_on: Callable[[dict[str, Any]], Thunk] | None = None  # the bare guide with other values of some arguments

    @property
    def left_out(self) -> set[str]:
        """Model latents that the guide does not sample."""
        return set(self.parts.latent) - set(self.guide_parts.latent)

    @property
    def joint(self) -> bool:
        """Whether the guide samples no local latent: a draw of it then weighs the whole data set at once."""
        return not self.parts.local & set(self.guide_parts.latent)

    @property
    def scale(self) -> float:
        """N / B as :func:`log_weights` leaves it to be applied to ``rows``."""
        return 1.0 if self.joint else self.parts.scale

    @property
    def frozen_guide(self) -> Thunk:
        """The guide with no gradient to its own parameters."""
        assert self.bare is not None
        return handlers.substitute(self.bare[1], data=jax.tree.map(stop_gradient, self.params))

    def at(self, params: Params) -> Pair:
        """The same pair at other parameters."""
        assert self.bare is not None
        model, guide = (handlers.substitute(thunk, data=params) for thunk in self.bare)
        return self._replace(model=model, guide=guide, params=params)

    def through(self, model: Callable[[Thunk], Thunk], guide: Callable[[Thunk], Thunk]) -> Pair:
        """The pair inside effect handlers, one for each program."""
        assert self.bare is not None
        bare = model(self.bare[0]), guide(self.bare[1])
        new = self._replace(bare=bare).at(self.params)
        return new._replace(parts=anatomy(new.model), guide_parts=anatomy(new.guide))


def pair(model: Any, guide: Any, args: tuple, kwargs: dict[str, Any], params: Params) -> Pair:
    """Bind both programs and refuse a guide that does not cover what cannot be summed out."""

    def guide_on(data: dict[str, Any]) -> Thunk:
        positional = [data.get(str(i), v) for i, v in enumerate(args)]
        return lambda: guide(*positional, **{n: data.get(n, v) for n, v in kwargs.items()})

    bare = (lambda: model(*args, **kwargs)), (lambda: guide(*args, **kwargs))
    model_thunk, guide_thunk = (handlers.substitute(thunk, data=params) for thunk in bare)
    arguments = {str(i): v for i, v in enumerate(args)} | kwargs
    parts, guide_parts = anatomy(model_thunk), anatomy(guide_thunk)
    both = Pair(model_thunk, guide_thunk, parts, guide_parts, params, bare, arguments, guide_on)
    extra = set(both.guide_parts.latent) - set(both.parts.latent)
    if extra:
        raise Incompatible(
            f"the guide samples {sorted(extra)}, which the model does not: the model's latent sites are "
            f"{list(both.parts.latent)}. Rename the guide's sites after the model's."
        )
    uncovered = both.left_out - both.parts.enumerable
    if uncovered:
        raise Incompatible(
            f"the guide leaves out {sorted(uncovered)}, which cannot be summed out exactly "
            "(only discrete sites with finite support can, one variable a site). Sample them in the guide."
        )
    for name in both.guide_parts.latent:
        ours, theirs = both.parts.shapes[name], both.guide_parts.shapes[name]
        if ours != theirs:
            raise Incompatible(f"site {name!r} has shape {ours} in the model but {theirs} in the guide.")
    return both


class Weights(NamedTuple):
    """Importance weights of K draws of the locals under one draw of the globals, in nats."""

    shared: Float[Array, ""]  # log p(g) - log q(g)
    rows: Float[Array, "particle batch"]  # log p(x_n, z_nk | g) - log q(z_nk)
    score_shared: Float[Array, ""]  # log q of the globals that have no pathwise gradient
    score_rows: Float[Array, "particle batch"]  # the same for the locals


def draw(guide: Thunk, shared: Array, local: Array, plate: str | None) -> Trace:
    """A run of the guide, globals drawn from one key and locals from another."""
    return dict(handlers.trace(SeedByPlate(guide, shared, local, plate)).get_trace())


def drawn_values(tr: Trace) -> dict[str, Any]:
    """What the guide drew, and the rows of its plates, for the model to be run on."""
    return {n: s["value"] for n, s in tr.items() if s["type"] in ("sample", "plate") and not s.get("is_observed")}


def log_q(tr: Trace) -> dict[str, Array]:
    """Elementwise log densities of the guide's sites."""
    return {n: site_log_prob(s) for n, s in tr.items() if s["type"] == "sample"}


def model_density(both: Pair, key: Array, values: dict[str, Any]) -> Density:
    """Log density of data and latents, with what the guide leaves out summed out."""
    return joint_density(both.model, key, values, both.parts)


def scores(both: Pair, tr: Trace) -> Density:
    """Log q of the sites that have no pathwise gradient; each row's own, never scaled."""
    scale = plate_scale(tr, both.parts.plate if both.parts.plate in tr else None)
    shared, rows = jnp.zeros(()), jnp.zeros((1,))
    for name, values in log_q(tr).items():
        if name in both.guide_parts.pathwise or name not in both.guide_parts.latent:
            continue
        term = by_row(values, {**tr[name], "scale": None}, both.parts.plate, scale)
        shared, rows = (shared, rows + term) if term.ndim else (shared + term, rows)
    return Density(shared, rows, scale)


def log_weights(both: Pair, key: Array, num_particles: int) -> Weights:
    """Draw the globals once and the locals K times; return their log weights.

    A pair with no local latents in the guide is one joint draw per particle: then the whole data
    set is a single row, which needs all of it at once.
    """
    shared_key, local_key = jax.random.split(key)

    def particle(local: Array) -> Weights:
        tr = draw(both.guide, local if both.joint else shared_key, local, both.parts.plate)
        return weigh(both, local, tr, drawn_values(tr))

    if num_particles == 1:  # a vmap over one particle costs time
        out = jax.tree.map(lambda v: jnp.asarray(v)[None], particle(local_key))
    else:
        out = jax.vmap(particle)(jax.random.split(local_key, num_particles))
    return Weights(out.shared[0], out.rows, out.score_shared[0], out.score_rows)


def weigh(both: Pair, key: Array, tr: Trace, values: dict[str, Any]) -> Weights:
    """Log weights of one run of the guide, for the model at ``values``; rows have no axis over particles."""
    q, p = split_density(log_q(tr), tr, both.parts.plate), model_density(both, key, values)
    score = scores(both, tr)
    if both.joint:
        total = (p.total() - q.total())[None]
        return Weights(jnp.zeros(()), total, jnp.zeros(()), jnp.reshape(score.total(), (1,)))
    rows = p.rows - q.rows
    return Weights(p.shared - q.shared, rows, score.shared, jnp.broadcast_to(score.rows, rows.shape))


def refuse_discrete(both: Pair, objective: str) -> None:
    """Pathwise gradients do not exist at these sites, and training would silently go wrong."""
    bad = [n for n in both.guide_parts.latent if n not in both.guide_parts.pathwise]
    if bad:
        can_sum = [n for n in bad if n in both.parts.enumerable]
        hint = f"leave {can_sum} out of the guide so that they are summed out exactly, or " if can_sum else ""
        raise Incompatible(
            f"{objective} differentiates through the guide's draws, but {bad} have no reparameterised sampler "
            f"(discrete sites never do). Instead, {hint}use ScoreFunction(), NVIL(), VIMCO() or ReweightedWakeSleep()."
        )


def refuse_split_globals(both: Pair, objective: str) -> None:
    """One weight for the whole data set cannot be had from a minibatch."""
    if both.joint and both.guide_parts.latent and both.parts.scale != 1:
        size, subsample = both.parts.plates[both.parts.plate or ""]
        raise Incompatible(
            f"{objective} over global latents alone weighs the whole data set at once, but this batch holds "
            f"{subsample} of {size} rows. Use batch_size=None, or ELBO()."
        )


__all__ = ["Pair", "Weights", "log_weights", "pair", "refuse_discrete", "refuse_split_globals"]
