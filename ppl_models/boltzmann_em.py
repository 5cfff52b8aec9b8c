r"""Exact EM of a binary Boltzmann machine: generalised, with a gradient M-step, for machines that can be enumerated.

With -E(v, h) = <theta, T(v, h)>, linear in the parameters, the expected complete log likelihood of N rows is

    Q(theta) = <theta, s> - N log Z(theta),    s = sum_n E[T(v_n, h) | v_n, theta_old] = grad(-sum_n F(v_n)),

the latter by Fisher's identity. Q is concave, and has no maximum in closed form: the M-step takes a few steps of
L-BFGS, with a line search that only ascends, from where it stands; so no step of EM lowers the likelihood.

References
----------
Information geometry of the EM and em algorithms for neural networks (Amari, 1995).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, ArrayLike, Float

from ppl_models.boltzmann_rows import Params

M_STEPS = 10  # of L-BFGS


class Statistics(NamedTuple):
    """What the M-step needs, float64: where it starts, expected statistics summed over rows, and how many rows."""

    params: Params
    expected: Params
    count: Float[Array, ""]


def e_step(self: Any, params: Mapping[str, ArrayLike], x: Float[Array, "N D"]) -> tuple[Float[Array, ""], Statistics]:
    """Log likelihood of all rows in nats, and their expected sufficient statistics; float64."""
    with jax.enable_x64(True):
        theta = {n: jnp.asarray(v, jnp.float64) for n, v in params.items()}
        rows = jnp.asarray(x, jnp.float64)
        total, expected = jax.value_and_grad(lambda theta: -self.free_energy(theta, rows).sum())(theta)
        count = jnp.asarray(len(x), jnp.float64)
        return total - count * self.log_partition(theta), Statistics(theta, expected, count)


def combine(self: Any, old: Statistics, new: Statistics, keep: ArrayLike, add: ArrayLike) -> Statistics:
    """keep · old + add · new of the sums, what stepwise EM averages; the M-step starts where the new ones were made."""
    with jax.enable_x64(True):
        return Statistics(new.params, *jax.tree.map(lambda a, b: keep * a + add * b, tuple(old[1:]), tuple(new[1:])))


def m_step(self: Any, statistics: Statistics) -> Params:
    """Parameters (float64) with a higher expected complete log likelihood, or the same where it has none."""
    start, expected, count = statistics

    def loss(theta: Params) -> Array:
        inner = jax.tree.map(lambda a, b: jnp.vdot(a, b), theta, expected)
        return self.log_partition(theta) - sum(jax.tree.leaves(inner)) / count

    with jax.enable_x64(True):
        optimizer = optax.lbfgs()
        value_and_grad = optax.value_and_grad_from_state(loss)

        def ascend(carry: Any, _: None) -> tuple[Any, None]:
            theta, state = carry
            value, grad = value_and_grad(theta, state=state)
            updates, state = optimizer.update(grad, state, theta, value=value, grad=grad, value_fn=loss)
            return (optax.apply_updates(theta, updates), state), None

        (found, _), _ = jax.lax.scan(ascend, (start, optimizer.init(start)), None, length=M_STEPS)
        better = loss(found) < loss(start)  # false also where it is not finite
        return jax.tree.map(lambda new, old: jnp.where(better, new, old), found, start)
