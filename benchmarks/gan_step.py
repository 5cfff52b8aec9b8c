"""A step of both players, against the same step written by hand in JAX.

Two multilayer perceptrons of 256 units on images of 784 pixels, batch 64, Adam for both: the non-saturating game, and
Wasserstein with a gradient penalty. Interleaved blocks, so that a busy machine slows both alike; medians are shown.

python benchmarks/gan_step.py
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from _sides import blocks, compare, started
from jax import lax
from jax.nn import log_sigmoid, relu

from inference import Adversarial
from inference.games import Game, NonSaturating, WassersteinGradientPenalty
from ppl_models import Generator
from ppl_models.networks import MLP, Critic

PIXELS, UNITS, LATENT, BATCH = 784, 256, 64, 64
RATE, WEIGHT = 2e-4, 10.0

Params = list[tuple[jax.Array, jax.Array]]


# --- by hand --------------------------------------------------------------------------------------
def start(key: jax.Array, *sizes: int) -> Params:
    layers = []
    for k, a, b in zip(jax.random.split(key, len(sizes) - 1), sizes, sizes[1:], strict=False):
        bound = (6 / (a + b)) ** 0.5
        layers.append((jax.random.uniform(k, (a, b), minval=-bound, maxval=bound), jnp.zeros(b)))
    return layers


def network(params: Params, x: jax.Array) -> jax.Array:
    for w, b in params[:-1]:
        x = relu(x @ w + b)
    w, b = params[-1]
    return x @ w + b


def generate(params: Params, key: jax.Array) -> jax.Array:
    return jax.nn.sigmoid(network(params, jax.random.normal(key, (BATCH, LATENT))))


def non_saturating(critic: Params, x: jax.Array, made: jax.Array, key: jax.Array) -> jax.Array:
    return -log_sigmoid(network(critic, x)).mean() - log_sigmoid(-network(critic, made)).mean()


def gradient_penalty(critic: Params, x: jax.Array, made: jax.Array, key: jax.Array) -> jax.Array:
    t = jax.random.uniform(key, (BATCH, 1))
    slope = jax.grad(lambda v: network(critic, v).sum())(t * x + (1 - t) * made)
    penalty = jnp.square(jnp.sqrt(jnp.square(slope).sum(-1) + 1e-12) - 1).mean()
    return network(critic, made).mean() - network(critic, x).mean() + WEIGHT * penalty


LOSSES: dict[str, tuple[Callable[..., jax.Array], Callable[[jax.Array], jax.Array], Game]] = {
    "NonSaturating()": (non_saturating, lambda s: -log_sigmoid(s).mean(), NonSaturating()),
    "WassersteinGradientPenalty()": (gradient_penalty, lambda s: -s.mean(), WassersteinGradientPenalty(WEIGHT)),
}


def by_hand(name: str, images: jax.Array, steps: int) -> Iterator[jax.Array]:
    """Yield the critic's mean loss over the last 20 steps, after each block of them."""
    critic_loss, generator_loss, _ = LOSSES[name]
    slow, fast = optax.adam(RATE, b1=0.5), optax.adam(RATE, b1=0.5)
    keys = jax.random.split(jax.random.key(0))
    generator, critic = start(keys[0], LATENT, UNITS, UNITS, PIXELS), start(keys[1], PIXELS, UNITS, UNITS, 1)

    @jax.jit
    def block(carry: Any, key: jax.Array) -> Any:
        order = jax.random.permutation(jax.random.fold_in(key, 0), len(images))[: steps * BATCH].reshape(-1, BATCH)

        def step(carry: Any, inputs: Any) -> Any:
            generator, critic, s, f = carry
            rows, key = inputs
            k1, k2, k3 = jax.random.split(key, 3)
            value, gradient = jax.value_and_grad(critic_loss)(critic, images[rows], generate(generator, k1), k2)
            updates, f = fast.update(gradient, f)
            critic = optax.apply_updates(critic, updates)
            gradient = jax.grad(lambda g: generator_loss(network(critic, generate(g, k3))))(generator)
            updates, s = slow.update(gradient, s)
            return (optax.apply_updates(generator, updates), critic, s, f), value

        carry, values = lax.scan(step, carry, (order, jax.random.split(key, steps)))
        return carry, values[-20:].mean()

    carry = generator, critic, slow.init(generator), fast.init(critic)
    for number in range(10**6):
        carry, value = block(carry, jax.random.key(number))
        yield value


# --- the library ----------------------------------------------------------------------------------
def library(name: str, images: np.ndarray, steps: int) -> Iterator[jax.Array]:
    """``fit``'s own runner, a block of steps at a time."""
    generator = Generator(LATENT, MLP((UNITS, UNITS), "relu"), output="sigmoid")
    critic, game = Critic(MLP((UNITS, UNITS), "relu")), LOSSES[name][2]
    algorithm = Adversarial(generator, critic, game, optax.adam(RATE, b1=0.5), optax.adam(RATE, b1=0.5))
    return blocks(*started(algorithm, images, BATCH), steps, lambda metrics: metrics["critic_loss"])


def main(steps: int = 200, rounds: int = 7) -> None:
    """Time both games, both ways.

    Args:
        steps: Steps of a block.
        rounds: Blocks timed of each, interleaved; one more is thrown away, to compile.
    """
    images = np.random.default_rng(0).random((20_000, PIXELS), dtype=np.float32)
    title = f"Two players, {UNITS} units, batch {BATCH}"
    pairs = ((n, (library(n, images, steps), by_hand(n, jnp.asarray(images), steps))) for n in LOSSES)
    compare(title, "critic's loss", pairs, steps, rounds)


if __name__ == "__main__":
    tyro.cli(main)
