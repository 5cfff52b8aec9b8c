"""Variational objectives: small frozen NumPyro ``ELBO`` subclasses over one function, :func:`log_weights`.

With data plate scale s = N / B, globals g and locals z_n, one draw of g and K draws of each z_n,

    shared     = log p(g) - log q(g)
    rows[k, n] = log p(x_n, z_nk | g) - log q(z_nk | x_n, g)          (nats)

    ELBO        shared + s sum_n mean_k rows[k, n]
    IWAE        shared + s sum_n (logsumexp_k rows[k, n] - log K)
    Renyi(a)    shared + s sum_n (logsumexp_k (1 - a) rows[k, n] - log K) / (1 - a)

Discrete latents that the guide leaves out are summed out exactly. Each loss is minus the bound, in
nats for the whole data set, usable as it is in ``numpyro.infer.SVI``.

References
----------
Auto-Encoding Variational Bayes (Kingma and Welling, 2014); Importance Weighted Autoencoders (Burda,
Grosse and Salakhutdinov, 2016); Renyi Divergence Variational Inference (Li and Turner, 2016);
Gradient Estimation Using Stochastic Computation Graphs (Schulman et al., 2015).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.lax import stop_gradient
from jax.scipy.special import logsumexp
from jaxtyping import Array, Float
from numpyro import handlers
from numpyro.distributions.kl import kl_divergence
from numpyro.infer import elbo
from numpyro.ops.provenance import eval_provenance

from inference.errors import Incompatible
from inference.programs import (
    Anatomy,
    Density,
    Thunk,
    _SeedByPlate,
    anatomy,
    density,
    enumerated_density,
    site_log_prob,
    split_density,
)


class Weights(NamedTuple):
    """Importance weights of K draws of the locals under one draw of the globals, in nats."""

    shared: Float[Array, ""]  # log p(g) - log q(g)
    rows: Float[Array, "particle batch"]  # log p(x_n, z_nk | g) - log q(z_nk)
    scale: float  # N / B
    score_shared: Float[Array, ""]  # log q of the globals that have no pathwise gradient
    score_rows: Float[Array, "particle batch"]  # the same for the locals


class Pair(NamedTuple):
    """A model and a guide bound to their arguments, with what their abstract traces show."""

    model: Thunk
    guide: Thunk
    parts: Anatomy
    guide_parts: Anatomy

    @property
    def left_out(self) -> set[str]:
        """Model latents that the guide does not sample."""
        return set(self.parts.latent) - set(self.guide_parts.latent)


def pair(model: Any, guide: Any, args: tuple, kwargs: dict[str, Any], params: dict[str, Any]) -> Pair:
    """Bind both programs and refuse a guide that does not cover what cannot be summed out."""
    model_thunk = handlers.substitute(lambda: model(*args, **kwargs), data=params)
    guide_thunk = handlers.substitute(lambda: guide(*args, **kwargs), data=params)
    both = Pair(model_thunk, guide_thunk, anatomy(model_thunk), anatomy(guide_thunk))
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
            "(only discrete sites with finite support can). Sample them in the guide."
        )
    for name in both.guide_parts.latent:
        ours, theirs = both.parts.shapes[name], both.guide_parts.shapes[name]
        if ours != theirs:
            raise Incompatible(f"site {name!r} has shape {ours} in the model but {theirs} in the guide.")
    return both


def _draw(guide: Thunk, shared: Array, local: Array, plate: str | None) -> dict[str, Any]:
    return dict(handlers.trace(_SeedByPlate(guide, shared, local, plate)).get_trace())


def _values(tr: dict[str, Any]) -> dict[str, Any]:
    """What the guide drew, and the rows of its plates, for the model to be run on."""
    return {n: s["value"] for n, s in tr.items() if s["type"] in ("sample", "plate") and not s.get("is_observed")}


def _model_density(both: Pair, key: Array, values: dict[str, Any]) -> Density:
    if both.left_out:
        return enumerated_density(both.model, key, values, both.parts)
    return density(both.model, key, values, both.parts.plate)


def log_weights(both: Pair, key: Array, num_particles: int) -> Weights:
    """Draw the globals once and the locals K times; return their log weights.

    A pair with no local latents in the guide is one joint draw per particle: then the whole data
    set is a single row, which needs all of it at once.
    """
    joint = not both.parts.local & set(both.guide_parts.latent)
    plate = both.parts.plate
    shared_key, local_key = jax.random.split(key)

    def particle(local: Array) -> Weights:
        tr = _draw(both.guide, local if joint else shared_key, local, plate)
        log_q = {n: site_log_prob(s) for n, s in tr.items() if s["type"] == "sample"}
        q = split_density(log_q, tr, plate)
        score = split_density({n: v for n, v in log_q.items() if n not in both.guide_parts.pathwise}, tr, plate)
        p = _model_density(both, local, _values(tr))
        if joint:
            total = p.total() - q.total()
            return Weights(jnp.zeros(()), total[None], 1.0, jnp.zeros(()), score.total()[None])
        return Weights(p.shared - q.shared, p.rows - q.rows, 1.0, score.shared, score.rows)

    if num_particles == 1:  # a vmap over one particle costs time
        out = jax.tree.map(lambda v: jnp.asarray(v)[None], particle(local_key))
    else:
        out = jax.vmap(particle)(jax.random.split(local_key, num_particles))
    scale = 1.0 if joint else both.parts.scale
    return Weights(out.shared[0], out.rows, scale, out.score_shared[0], out.score_rows)


def _refuse_discrete(both: Pair, objective: str) -> None:
    """Pathwise gradients do not exist at these sites, and training would silently go wrong."""
    bad = [n for n in both.guide_parts.latent if n not in both.guide_parts.pathwise]
    if bad:
        can_sum = [n for n in bad if n in both.parts.enumerable]
        hint = f"leave {can_sum} out of the guide so that they are summed out exactly, or " if can_sum else ""
        raise Incompatible(
            f"{objective} differentiates through the guide's draws, but {bad} have no reparameterised sampler "
            f"(discrete sites never do). Instead, {hint}use ScoreFunction()."
        )


def _refuse_split_globals(both: Pair, objective: str) -> None:
    joint = not both.parts.local & set(both.guide_parts.latent)
    if joint and both.guide_parts.latent and both.parts.scale != 1:
        size, subsample = both.parts.plates[both.parts.plate or ""]
        raise Incompatible(
            f"{objective} over global latents alone weighs the whole data set at once, but this batch holds "
            f"{subsample} of {size} rows. Use batch_size=None, or ELBO()."
        )


class _Objective(elbo.ELBO):
    """What the objectives share: the loss is minus ``bound`` plus a term that is zero in value."""

    can_infer_discrete = True

    def loss_with_mutable_state(
        self, rng_key: Array, param_map: dict[str, Any], model: Any, guide: Any, *args: Any, **kwargs: Any
    ) -> dict[str, Any]:
        bound = self.bound(rng_key, pair(model, guide, args, kwargs, param_map))
        return {"loss": -bound, "mutable_state": None}

    def bound(self, key: Array, both: Pair) -> Float[Array, ""]:
        """Estimate of the bound on the whole data set's log evidence, in nats."""
        raise NotImplementedError


def _check_particles(num_particles: int) -> None:
    if num_particles < 1:
        raise ValueError(f"num_particles is {num_particles}; expected at least 1.")


@dataclass(frozen=True)
class ELBO(_Objective):
    """Evidence lower bound with pathwise gradients and analytic KL where it exists.

    The KL of a site is taken in closed form when NumPyro knows it and no parent of the site in the
    model descends from it in the guide (otherwise the closed form is another quantity).

    Parameters
    ----------
    num_particles
        Draws averaged per step.

    References
    ----------
    Auto-Encoding Variational Bayes (Kingma and Welling, 2014).
    """

    num_particles: int = 1

    def __post_init__(self) -> None:
        _check_particles(self.num_particles)

    def bound(self, key: Array, both: Pair) -> Float[Array, ""]:
        _refuse_discrete(both, "ELBO")
        analytic = frozenset() if both.left_out else analytic_kl_sites(both)
        if self.num_particles == 1:  # a vmap over one particle costs time
            return self._particle(key, both, analytic)
        keys = jax.random.split(key, self.num_particles)
        return jnp.mean(jax.vmap(lambda k: self._particle(k, both, analytic))(keys))

    def _particle(self, key: Array, both: Pair, analytic: frozenset[str]) -> Array:
        if not analytic:
            w = log_weights(both, key, 1)
            return w.shared + w.scale * jnp.sum(w.rows)
        plate = both.parts.plate
        key_shared, key_local = jax.random.split(key)
        q = _draw(both.guide, key_shared, key_local, plate)
        with handlers.seed(rng_seed=key), handlers.substitute(data=_values(q)):
            p = dict(handlers.trace(both.model).get_trace())
        # sum_i log p(x_i) - sum_j KL(q_j || p_j), the sampled difference where no closed form exists
        terms = {n: site_log_prob(s) for n, s in p.items() if s["type"] == "sample" and n not in analytic}
        terms |= {n: -kl_divergence(q[n]["fn"], p[n]["fn"]) for n in analytic}
        log_q = {n: site_log_prob(s) for n, s in q.items() if s["type"] == "sample" and n not in analytic}
        return split_density(terms, p, plate).total() - split_density(log_q, q, plate).total()


def analytic_kl_sites(both: Pair) -> frozenset[str]:
    """Sites whose KL may be taken in closed form."""
    names = [n for n in both.parts.latent if n in both.guide_parts.latent]
    if not names:
        return frozenset()
    known: set[str] = set()

    def run(key: Array) -> None:
        q = _draw(both.guide, key, key, both.parts.plate)
        with handlers.seed(rng_seed=key), handlers.substitute(data=_values(q)):
            p = handlers.trace(both.model).get_trace()
        for name in names:
            try:
                kl_divergence(q[name]["fn"], p[name]["fn"])
            except NotImplementedError:
                continue
            known.add(name)

    jax.eval_shape(run, jax.random.key(0))
    parents, ancestors = _parents(both.model, both.parts), _ancestors(_parents(both.guide, both.guide_parts))
    # z_j may be integrated out alone if no model parent of z_j is j itself or has j among its guide ancestors.
    return frozenset(n for n in known if not any(n in ancestors.get(m, set()) for m in parents[n]))


def _parents(thunk: Thunk, parts: Anatomy) -> dict[str, set[str]]:
    """For each latent site, the latent sites that its distribution depends on."""

    def draw(key: Array) -> dict[str, Array]:
        with handlers.seed(rng_seed=key):
            tr = handlers.trace(thunk).get_trace()
        return {n: tr[n]["value"] for n in parts.latent}

    shapes = jax.eval_shape(draw, jax.random.key(0))

    def distributions(**values: Array) -> dict[str, Any]:
        with handlers.seed(rng_seed=0), handlers.substitute(data=values):
            tr = handlers.trace(thunk).get_trace()
        # The density at a constant point depends on the distribution alone, not on the site's value.
        point = {n: tr[n]["fn"] for n in parts.latent}
        return {n: jax.tree_util.tree_leaves(fn) for n, fn in point.items()}

    provenance = eval_provenance(distributions, **shapes)
    return {n: set().union(*map(frozenset, leaves)) if leaves else set() for n, leaves in provenance.items()}


def _ancestors(parents: dict[str, set[str]]) -> dict[str, set[str]]:
    """Each site with all its ancestors, itself included; sites come in the order they are drawn."""
    out: dict[str, set[str]] = {}
    for name, direct in parents.items():
        out[name] = {name}.union(*(out.get(parent, {parent}) for parent in direct))
    return out


@dataclass(frozen=True)
class IWAE(_Objective):
    """Importance-weighted bound: log of the mean of K weights per row, pathwise gradients.

    Grows with K towards log p(x). Global latents are drawn once and the rows' bounds nest inside
    their expectation; a guide over globals alone weighs the full data set jointly.

    Parameters
    ----------
    num_particles
        K.

    References
    ----------
    Importance Weighted Autoencoders (Burda, Grosse and Salakhutdinov, 2016).
    """

    num_particles: int = 10

    def __post_init__(self) -> None:
        _check_particles(self.num_particles)

    def bound(self, key: Array, both: Pair) -> Float[Array, ""]:
        return _renyi(0.0, key, both, self.num_particles, "IWAE")


@dataclass(frozen=True)
class Renyi(_Objective):
    """Renyi's alpha-divergence bound; alpha = 0 is IWAE, alpha towards 1 the ELBO.

    For alpha < 0 it bounds the evidence from above, in expectation over infinitely many draws only.

    Parameters
    ----------
    alpha
        Order, any real number but 1.
    num_particles
        K.

    References
    ----------
    Renyi Divergence Variational Inference (Li and Turner, 2016).
    """

    alpha: float = 0.5
    num_particles: int = 10

    def __post_init__(self) -> None:
        _check_particles(self.num_particles)
        if self.alpha == 1:
            raise ValueError("alpha is 1, where Renyi's bound is the ELBO: use ELBO().")

    def bound(self, key: Array, both: Pair) -> Float[Array, ""]:
        return _renyi(self.alpha, key, both, self.num_particles, "Renyi")


def _renyi(alpha: float, key: Array, both: Pair, num_particles: int, name: str) -> Array:
    _refuse_discrete(both, name)
    _refuse_split_globals(both, name)
    w = log_weights(both, key, num_particles)
    rows = (logsumexp((1 - alpha) * w.rows, axis=0) - math.log(num_particles)) / (1 - alpha)
    return w.shared + w.scale * jnp.sum(rows)


@dataclass(frozen=True)
class ScoreFunction(_Objective):
    """ELBO with likelihood-ratio gradients at the sites that have no pathwise ones.

    grad E_q[f] = E_q[grad f + f grad log q]. A local site is credited with its own row's weight
    only, which is exact (other rows do not depend on it) and far less noisy than the whole sum; a
    global site with the total. Each of K draws uses the others' mean as its baseline, which leaves
    the gradient unbiased. Right under subsampling, where NumPyro 0.22's ``TraceGraph_ELBO``
    multiplies the score term by N / B twice.

    Parameters
    ----------
    num_particles
        K.

    References
    ----------
    Gradient Estimation Using Stochastic Computation Graphs (Schulman et al., 2015); Buy 4 REINFORCE
    Samples, Get a Baseline for Free! (Kool, van Hoof and Welling, 2019).
    """

    num_particles: int = 1

    def __post_init__(self) -> None:
        _check_particles(self.num_particles)

    def bound(self, key: Array, both: Pair) -> Float[Array, ""]:
        # One draw of the globals and locals per particle, so that each is an independent joint draw.
        draws = jax.vmap(lambda k: log_weights(both, k, 1))
        shared, rows, _, score_shared, score_rows = draws(jax.random.split(key, self.num_particles))
        scale = log_weights_scale(both)
        rows, score_rows = rows[:, 0], score_rows[:, 0]  # (particle, batch)
        total = shared + scale * jnp.sum(rows, axis=1)
        value = jnp.mean(total)
        surrogate = jnp.mean(
            score_shared * _leave_one_out(total) + scale * jnp.sum(score_rows * _leave_one_out(rows), axis=1)
        )
        return value + surrogate - stop_gradient(surrogate)


def _leave_one_out(cost: Array) -> Array:
    """Each draw's cost less the mean of the other draws', without gradient."""
    k = cost.shape[0]
    if k == 1:
        return stop_gradient(cost)
    return stop_gradient(cost - (jnp.sum(cost, axis=0) - cost) / (k - 1))


def log_weights_scale(both: Pair) -> float:
    """N / B as :func:`log_weights` applies it."""
    return both.parts.scale if both.parts.local & set(both.guide_parts.latent) else 1.0


__all__ = ["ELBO", "IWAE", "Renyi", "ScoreFunction"]
