"""The evidence lower bound, with pathwise gradients and closed-form KL where that is the same quantity.

ELBO = shared + s sum_n mean_k rows[k, n] = E_q[log p(x | z)] - KL(q(z | x) || p(z)).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float
from numpyro import handlers
from numpyro.distributions.kl import kl_divergence
from numpyro.ops.provenance import eval_provenance

from inference.errors import Incompatible
from inference.objectives.objective import Estimate, Objective, State, check_particles
from inference.objectives.pair import Pair, draw, drawn_values, log_q, log_weights, refuse_discrete
from inference.programs import Anatomy, Thunk, Trace, site_log_prob, split_density


@dataclass(frozen=True)
class ELBO(Objective):
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
        check_particles(self.num_particles)

    def estimate(self, key: Array, both: Pair, state: State) -> Estimate:
        refuse_discrete(both, "ELBO")
        analytic = frozenset() if both.left_out else analytic_kl_sites(both)
        bound = average(lambda k: _particle(k, both, analytic), key, self.num_particles)
        return Estimate(-bound, bound)


def average(one: Any, key: Array, num_particles: int) -> Any:
    """The mean of ``one(key)`` over independent draws; a vmap over one would cost time."""
    if num_particles == 1:
        return one(key)
    return jax.tree.map(lambda v: jnp.mean(v, axis=0), jax.vmap(one)(jax.random.split(key, num_particles)))


def _particle(key: Array, both: Pair, analytic: frozenset[str]) -> Array:
    if not analytic:
        w = log_weights(both, key, 1)
        return w.shared + both.scale * jnp.sum(w.rows)
    terms = elbo_terms(key, both, analytic)
    return terms.reconstruction - sum(terms.kl.values(), jnp.zeros(()))


class Terms(NamedTuple):
    """The two parts of one draw of the ELBO, in nats for the whole data set: their difference is the bound."""

    reconstruction: Float[Array, ""]  # log p(x | z)
    kl: dict[str, Float[Array, ""]]  # of each site that the guide samples


def elbo_terms(key: Array, both: Pair, analytic: frozenset[str]) -> Terms:
    """One draw of the reconstruction and of every site's KL, in closed form for the sites in ``analytic``."""
    plate = both.parts.plate
    key_shared, key_local = jax.random.split(key)
    q = draw(both.guide, key_shared, key_local, plate)
    with handlers.seed(rng_seed=key), handlers.substitute(data=drawn_values(q)):
        p = dict(handlers.trace(both.model).get_trace())
    guessed, ln_q = both.guide_parts.latent, log_q(q)

    def total(terms: dict[str, Array], tr: Trace) -> Array:
        return split_density(terms, tr, plate).total()

    kl = {n: total({n: kl_divergence(q[n]["fn"], p[n]["fn"])}, p) for n in guessed if n in analytic}
    for name in (n for n in guessed if n not in analytic):  # the sampled difference
        kl[name] = total({name: ln_q[name]}, q) - total({name: site_log_prob(p[name])}, p)
    rest = {n: site_log_prob(s) for n, s in p.items() if s["type"] == "sample" and n not in guessed}
    return Terms(total(rest, p), kl)


def analytic_kl_sites(both: Pair) -> frozenset[str]:
    """Sites whose KL may be taken in closed form."""
    names = [n for n in both.parts.latent if n in both.guide_parts.latent]
    if not names:
        return frozenset()
    known: set[str] = set()

    def run(key: Array) -> None:
        q = draw(both.guide, key, key, both.parts.plate)
        with handlers.seed(rng_seed=key), handlers.substitute(data=drawn_values(q)):
            p = handlers.trace(both.model).get_trace()
        for name in names:
            try:
                kl_divergence(q[name]["fn"], p[name]["fn"])
            except NotImplementedError:
                continue
            known.add(name)

    jax.eval_shape(run, jax.random.key(0))
    ours, theirs = parents(both.model, both.parts), ancestors(parents(both.guide, both.guide_parts))
    # z_j may be integrated out alone if no model parent of z_j is j itself or has j among its guide ancestors.
    return frozenset(n for n in known if not any(n in theirs.get(m, set()) for m in ours[n]))


def parents(thunk: Thunk, parts: Anatomy) -> dict[str, set[str]]:
    """For each latent site, the latent sites that its distribution depends on."""

    def values(key: Array) -> dict[str, Array]:
        with handlers.seed(rng_seed=key):
            tr = handlers.trace(thunk).get_trace()
        return {n: tr[n]["value"] for n in parts.latent}

    shapes = jax.eval_shape(values, jax.random.key(0))

    def distributions(**values: Array) -> dict[str, Any]:
        with handlers.seed(rng_seed=0), handlers.substitute(data=values):
            tr = handlers.trace(thunk).get_trace()
        return {n: jax.tree.leaves(tr[n]["fn"]) for n in parts.latent}  # its parameters, whatever its value

    provenance = eval_provenance(distributions, **shapes)
    return {n: set().union(*map(frozenset, leaves)) if leaves else set() for n, leaves in provenance.items()}


def ancestors(direct: dict[str, set[str]]) -> dict[str, set[str]]:
    """Each site with all its ancestors, itself included; sites come in the order they are drawn."""
    out: dict[str, set[str]] = {}
    for name, above in direct.items():
        out[name] = {name}.union(*(out.get(parent, {parent}) for parent in above))
    return out


def refuse_left_out(both: Pair, objective: str) -> None:
    """What is summed out has no KL of its own."""
    if both.left_out:
        raise Incompatible(
            f"{objective} weighs the KL of each site, and {sorted(both.left_out)} are summed out, so they have none. "
            "Sample them in the guide, or use ELBO()."
        )


__all__ = ["ELBO", "Terms", "analytic_kl_sites", "elbo_terms"]
