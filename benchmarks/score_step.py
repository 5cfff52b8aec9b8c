"""A training step of a sigmoid belief net by score functions and by VIMCO, against hand-written JAX.

200 latent bits on MNIST, batch 100, dynamic binarization, Adam. ``fit``'s own runner and a loop written out
by hand run the same estimator of the same model and guide in this one process; blocks of steps are interleaved,
so that a noisy machine troubles both alike, and medians are compared. By hand softplus is JAX's.

    python benchmarks/score_step.py
    python benchmarks/score_step.py --steps 300 --rounds 9
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import optax
import tyro
from _sides import blocks, compare, started
from jax import lax
from jax.scipy.special import logsumexp

from guides import AmortizedBernoulli
from inference import SVI
from inference.data import as_data
from inference.objectives import VIMCO, ScoreFunction
from ppl_models import SigmoidBeliefNetwork, datasets

BATCH, UNITS, PIXELS = 100, 200, 784
Params = dict[str, tuple[jax.Array, jax.Array]]


# --- hand-written JAX ---------------------------------------------------------------------------
def log_bernoulli(bits: jax.Array, logits: jax.Array) -> jax.Array:
    return jnp.sum(bits * logits - jax.nn.softplus(logits), -1)


def log_joint_and_q(params: Params, key: jax.Array, x: jax.Array, particles: int) -> tuple[jax.Array, jax.Array]:
    """log p(x, z) and log q(z | x) of draws of q, each (particle, batch)."""
    (w, b), (v, c), (prior, _) = params["encoder"], params["decoder"], params["prior"]
    q = (2 * x - 1) @ w + b
    z = jax.random.bernoulli(key, jax.nn.sigmoid(q), (particles, *q.shape)).astype(jnp.float32)
    log_p = log_bernoulli(z, prior) + log_bernoulli(x, (2 * z - 1) @ v + c)
    return log_p, log_bernoulli(z, q)


def score_function(params: Params, key: jax.Array, x: jax.Array, particles: int) -> tuple[jax.Array, jax.Array]:
    """What is differentiated, and minus the bound."""
    log_p, log_q = log_joint_and_q(params, key, x, particles)
    cost = lax.stop_gradient(log_p - log_q)
    signal = cost - (cost.sum(0) - cost) / (particles - 1)
    return -jnp.mean(log_p - log_q + signal * log_q), -cost.mean()


def vimco(params: Params, key: jax.Array, x: jax.Array, particles: int) -> tuple[jax.Array, jax.Array]:
    log_p, log_q = log_joint_and_q(params, key, x, particles)
    log_w = log_p - log_q
    bound = logsumexp(log_w, 0) - jnp.log(particles)
    others = (log_w.sum(0) - log_w) / (particles - 1)
    replaced = jnp.where(jnp.eye(particles, dtype=bool)[:, :, None], others[:, None], log_w)
    signal = lax.stop_gradient(bound - logsumexp(replaced, 1) + jnp.log(particles))
    return -jnp.mean(bound + jnp.sum(signal * log_q, 0)), -bound.mean()


def by_hand(loss: Callable[..., Any], particles: int, images: jax.Array, steps: int) -> Iterator[jax.Array]:
    """Yield minus the mean bound of the last 20 steps, after each block of them."""
    key, bound = jax.random.key(0), (6 / (PIXELS + UNITS)) ** 0.5
    weights = [jax.random.uniform(k, (PIXELS, UNITS), minval=-bound, maxval=bound) for k in jax.random.split(key)]
    params: Params = {
        "encoder": (weights[0], jnp.zeros(UNITS)),
        "decoder": (weights[1].T, jnp.zeros(PIXELS)),
        "prior": (jnp.zeros(UNITS), jnp.zeros(())),
    }
    optimizer = optax.adam(1e-3)

    @jax.jit
    def block(carry: tuple, key: jax.Array) -> tuple:
        order = jax.random.permutation(jax.random.fold_in(key, 0), len(images))[: steps * BATCH].reshape(-1, BATCH)

        def step(carry: tuple, rows: jax.Array) -> tuple:
            params, state, key = carry
            key, key_x, key_z = jax.random.split(key, 3)
            x = jax.random.bernoulli(key_x, images[rows]).astype(jnp.float32)
            (_, value), gradient = jax.value_and_grad(loss, has_aux=True)(params, key_z, x, particles)
            updates, state = optimizer.update(gradient, state, params)
            return (optax.apply_updates(params, updates), state, key), value

        (params, state, _), losses = lax.scan(step, (*carry, key), order)
        return (params, state), losses

    carry = (params, optimizer.init(params))
    for number in range(10**6):
        carry, losses = block(carry, jax.random.key(number))
        yield losses[-20:].mean()


# --- the library ----------------------------------------------------------------------------------
def library(objective: ScoreFunction | VIMCO, train: object, steps: int) -> Iterator[jax.Array]:
    """``fit``'s own runner, a block of steps at a time."""
    model, guide = SigmoidBeliefNetwork((UNITS,)), AmortizedBernoulli((UNITS,))
    algorithm = SVI(model, guide, objective, optax.adam(1e-3))
    return blocks(*started(algorithm, train, BATCH), steps, lambda metrics: -metrics["bound"])


def main(steps: int = 200, rounds: int = 7) -> None:
    """Time both estimators, both ways.

    Args:
        steps: Steps of a block.
        rounds: Blocks timed of each, interleaved; one more is thrown away, to compile.
    """
    train, _ = datasets.load("mnist", binarization="dynamic")
    images = jnp.asarray(as_data(train).arrays["x"])
    images = (images / 255 if images.max() > 1 else images).astype(jnp.float32)
    pairs = {
        "ScoreFunction(2)": (library(ScoreFunction(2), train, steps), by_hand(score_function, 2, images, steps)),
        "VIMCO(10)": (library(VIMCO(10), train, steps), by_hand(vimco, 10, images, steps)),
    }
    compare(f"Sigmoid belief net, {UNITS} units, batch {BATCH}", "−bound", pairs.items(), steps, rounds)


if __name__ == "__main__":
    tyro.cli(main)
