"""Path derivatives: gradients that vanish where the guide is the posterior.

With z = z(e, phi), the gradient of log w = log p(x, z) - log q(z; phi) in phi has two parts,

    d log w / d phi = (d log w / d z) (d z / d phi) - d log q(z; phi) / d phi at fixed z,

and the second has expectation zero under q. Sticking the landing leaves it out: at q = p(z | x), where
log w does not depend on z, no noise is left. For K weights w~_k = w_k / sum w per row the same
identity gives the doubly reparameterised gradient,

    grad_phi E[log mean w] = E[ sum_k w~_k² (d log w_k / d z_k) (d z_k / d phi) ].

The model's parameters keep the weights w~_k. Globals g are drawn once: log p(x, z | g) depends on
them as on parameters of the model (weight w~_k); the locals z(e, phi, g) carry them as phi does (w~_k²),
and what log q(z | x, g) owes to g at fixed z has the same expectation zero and goes.

References
----------
Sticking the Landing (Roeder, Wu and Duvenaud, 2017); Doubly Reparameterized Gradient Estimators for
Monte Carlo Objectives (Tucker, Lawson, Gu and Maddison, 2019).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.lax import stop_gradient
from jaxtyping import Array, Float

from inference.objectives.elbo import average
from inference.objectives.importance import log_mean_exp
from inference.objectives.objective import Estimate, Objective, State, check_particles
from inference.objectives.pair import (
    Pair,
    draw,
    drawn_values,
    model_density,
    refuse_discrete,
    refuse_split_globals,
)
from inference.programs import density


@dataclass(frozen=True)
class STL(Objective):
    """The ELBO, its guide's gradient along the path of the draws alone ("sticking the landing").

    Unbiased, and without noise at the exact posterior; away from it not always the quieter one.

    Parameters
    ----------
    num_particles
        Draws averaged per step.
    """

    num_particles: int = 1

    def __post_init__(self) -> None:
        check_particles(self.num_particles)

    def estimate(self, key: Array, both: Pair, state: State) -> Estimate:
        refuse_discrete(both, "STL")

        def particle(key: Array) -> Array:
            key_shared, key_local = jax.random.split(key)
            values = drawn_values(draw(both.guide, key_shared, key_local, both.parts.plate))
            q = density(both.frozen_guide, key, values, both.parts.plate)
            return model_density(both, key, values).total() - q.total()

        bound = average(particle, key, self.num_particles)
        return Estimate(-bound, bound)


@dataclass(frozen=True)
class DReG(Objective):
    """The importance-weighted bound with doubly reparameterised gradients of the guide.

    The signal-to-noise ratio of its gradient grows with K, where that of :class:`IWAE` falls.

    Parameters
    ----------
    num_particles
        K.
    """

    num_particles: int = 10

    def __post_init__(self) -> None:
        check_particles(self.num_particles)

    def estimate(self, key: Array, both: Pair, state: State) -> Estimate:
        refuse_discrete(both, "DReG")
        refuse_split_globals(both, "DReG")
        shared_key, local_key = jax.random.split(key)
        keys = jax.random.split(local_key, self.num_particles)
        plate = both.parts.plate

        def particle(local: Array, weight: Float[Array, " batch"] | None) -> tuple[Array, Array]:
            tr = draw(both.guide, local if both.joint else shared_key, local, plate)
            values = drawn_values(tr)
            if weight is not None:
                weighed = both.guide_parts.latent if both.joint else both.parts.local
                values |= {
                    n: _scale_gradient(v, _on_rows(weight, tr[n], plate)) for n, v in values.items() if n in weighed
                }
            p = model_density(both, local, values)
            if both.joint:
                return jnp.zeros(()), (p.total() - density(both.frozen_guide, local, values, plate).total())[None]
            globals_ = {n: stop_gradient(v) for n, v in values.items() if n not in both.parts.local}
            shared = p.shared - density(both.frozen_guide, local, values, plate).shared
            return shared, p.rows - density(both.frozen_guide, local, values | globals_, plate).rows

        first = jax.vmap(lambda k: particle(k, None)[1])(keys)  # (K, batch)
        weights = stop_gradient(jax.nn.softmax(first, axis=0))
        shared, rows = jax.vmap(particle)(keys, weights)
        # sum_k w~_k log w_k has the gradient; log mean w has the value
        surrogate = shared[0] + both.scale * jnp.sum(weights * rows)
        bound = shared[0] + both.scale * jnp.sum(log_mean_exp(first))
        bound = stop_gradient(bound - surrogate) + surrogate
        return Estimate(-bound, bound)


def _scale_gradient(value: Array, weight: Array) -> Array:
    """The value itself, its gradient multiplied by ``weight``."""
    scaled = value * weight
    return scaled + stop_gradient(value - scaled)


def _on_rows(weight: Float[Array, " batch"], site: dict[str, Any], plate: str | None) -> Array:
    """A number a row, along the axis of a site's value that is the data plate."""
    frame = next((f for f in site["cond_indep_stack"] if f.name == plate), None)
    if frame is None:  # a guide over globals alone: one number for the whole draw
        return weight[0]
    return weight.reshape(weight.shape + (1,) * (site["fn"].event_dim - frame.dim - 1))


__all__ = ["STL", "DReG"]
