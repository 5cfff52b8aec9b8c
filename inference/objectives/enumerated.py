r"""The evidence lower bound with the guide's discrete draws summed out: E_q over few values is a sum.

For a guide q(y, z | x) whose y has finitely many values in each row,

    ELBO = shared + s sum_n sum_y q(y | x_n) mean_k [log p(x_n, y, z_nk) - log q(y, z_nk | x_n)],

with z_nk ~ q(z | x_n, y), whose gradient is pathwise in z and exact in y: no score has to be taken. Both programs run
once for each joint value of the discrete sites, with common random numbers. A site that is masked in a row (because its
value is known there) has log q = 0 whatever its value, and its values get equal shares: an average of equal bounds.

References
----------
Semi-supervised Learning with Deep Generative Models (Kingma, Rezende, Mohamed and Welling, 2014); Local Expectation
Gradients for Black Box Variational Inference (Titsias and Lázaro-Gredilla, 2015).
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float
from numpyro import handlers
from numpyro.distributions.kl import kl_divergence

from inference.errors import Incompatible
from inference.objectives.elbo import ELBO, analytic_kl_sites, average
from inference.objectives.objective import Estimate, Objective, State, check_particles
from inference.objectives.pair import Pair, draw, drawn_values, log_q, weigh
from inference.programs import Trace, by_row, plate_scale, site_log_prob, split_density

MAX_VALUES = 2**12  # of the discrete sites jointly: each is a run of both programs


@dataclass(frozen=True)
class EnumeratedELBO(Objective):
    """ELBO that sums over the guide's discrete sites, one variable a row with finite support, in place of drawing them.

    Other sites of the guide need pathwise gradients. Without discrete sites it is :class:`ELBO`.

    Parameters
    ----------
    num_particles
        Draws averaged per step, of what is not summed out.
    """

    num_particles: int = 1

    def __post_init__(self) -> None:
        check_particles(self.num_particles)

    def estimate(self, key: Array, both: Pair, state: State) -> Estimate:
        sites = _summed(both)
        if not sites:
            return ELBO(self.num_particles).estimate(key, both, state)
        analytic = frozenset() if both.left_out else analytic_kl_sites(both) - frozenset(sites)
        bound = average(lambda k: _particle(k, both, sites, analytic), key, self.num_particles)
        return Estimate(-bound, bound)


def _summed(both: Pair) -> tuple[str, ...]:
    """The guide's sites without pathwise gradients, which must be sums of few terms in each row."""
    discrete = tuple(n for n in both.guide_parts.latent if n not in both.guide_parts.pathwise)
    endless = [n for n in discrete if n not in both.guide_parts.enumerable]
    if endless:
        raise Incompatible(
            f"EnumeratedELBO differentiates through draws or sums them out, and {endless} have no reparameterised "
            "sampler and are no single variables with few values (vectors of bits have 2^n). Use ScoreFunction(), "
            "NVIL(), VIMCO() or ReweightedWakeSleep()."
        )
    shared = [n for n in discrete if n not in both.parts.local]
    if shared:
        raise Incompatible(
            f"{shared} lie outside the data plate, and EnumeratedELBO sums row by row. Leave them out of the guide, to "
            "be summed out exactly, or use ScoreFunction()."
        )
    return discrete


def _particle(key: Array, both: Pair, sites: tuple[str, ...], analytic: frozenset[str]) -> Array:
    plate = both.parts.plate
    shared_key, local_key = jax.random.split(key)
    first = draw(both.guide, shared_key, local_key, plate)
    values = _joint_values(first, sites)  # (value, site)

    def at(value: Array) -> tuple[Array, Array, Array]:
        fixed = {n: jnp.full_like(first[n]["value"], v) for n, v in zip(sites, value, strict=True)}
        q = draw(handlers.substitute(both.guide, data=fixed), shared_key, local_key, plate)
        return _log_q(q, sites, plate), *_terms(key, both, q, analytic)

    ln_q, shared, rows = jax.vmap(at)(values)  # (value, batch), (value,), (value, batch)
    # sum_y q(y | x_n) rows[y, n], with softmax(ln q) = q where q is normalised and 1 / C where it is masked
    return shared[0] + both.scale * jnp.sum(jax.nn.softmax(ln_q, axis=0) * rows)


def _joint_values(tr: Trace, sites: tuple[str, ...]) -> Array:
    supports = [jnp.ravel(tr[n]["fn"].enumerate_support(expand=False)) for n in sites]
    count = prod(len(s) for s in supports)
    if count > MAX_VALUES:
        raise Incompatible(
            f"the guide's discrete sites {list(sites)} have {count} joint values, and EnumeratedELBO runs both "
            f"programs for each, up to {MAX_VALUES}. Use ScoreFunction() or VIMCO()."
        )
    return jnp.stack([axis.ravel() for axis in jnp.meshgrid(*supports, indexing="ij")], axis=-1)


def _log_q(tr: Trace, sites: tuple[str, ...], plate: str | None) -> Float[Array, " batch"]:
    """Log q of the discrete sites in each row, never scaled."""
    scale = plate_scale(tr, plate)
    return sum((by_row(site_log_prob(tr[n]), {**tr[n], "scale": None}, plate, scale) for n in sites), jnp.zeros(()))


def _terms(key: Array, both: Pair, q: Trace, analytic: frozenset[str]) -> tuple[Array, Array]:
    """log p - log q of one run of the guide, with closed-form KL where it is known: shared, and by row."""
    values = drawn_values(q)
    if not analytic:
        w = weigh(both, key, q, values)
        return w.shared, w.rows
    with handlers.seed(rng_seed=key), handlers.substitute(data=values):
        p = dict(handlers.trace(both.model).get_trace())
    ln_p = {n: site_log_prob(s) for n, s in p.items() if s["type"] == "sample" and n not in analytic}
    kl = {n: kl_divergence(q[n]["fn"], p[n]["fn"]) for n in analytic}
    gain = split_density(ln_p, p, both.parts.plate)
    cost = split_density({n: v for n, v in log_q(q).items() if n not in analytic}, q, both.parts.plate)
    divergence = split_density(kl, p, both.parts.plate)
    return gain.shared - cost.shared - divergence.shared, gain.rows - cost.rows - divergence.rows


__all__ = ["EnumeratedELBO"]
