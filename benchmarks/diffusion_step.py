"""A training step of a diffusion against hand-written JAX, and its samplers against each other.

A dense network told the time, on MNIST, batch 128, T = 1000, Adam. ``fit``'s own runner and a loop written out by hand
run the same network on the same loss in this one process; blocks of steps are interleaved, so that a noisy machine
troubles both alike, and medians are compared. Then 1,000 ancestral steps and 50 of DDIM, each one compiled scan.

    python benchmarks/diffusion_step.py
    python benchmarks/diffusion_step.py --steps 100 --rounds 9 --width 1024
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from statistics import median
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
import tyro
from _sides import blocks, compare, started
from jax import lax
from rich.console import Console
from rich.table import Table

from inference import SVI
from inference.objectives import UnitDenoising
from ppl_models import Diffusion, datasets
from ppl_models.diffusion_samplers import DDIM, Ancestral
from ppl_models.networks import SinusoidalTime, TimeMLP

BATCH, PIXELS, T, FEATURES = 128, 784, 1000, 64


# --- hand-written JAX ---------------------------------------------------------------------------
def weights(key: jax.Array, width: int) -> dict[str, tuple[jax.Array, jax.Array]]:
    sizes = {
        "time": (FEATURES, width),
        "condition": (width, width),
        "in": (PIXELS, width),
        "in shift": (width, width),
        "hidden": (width, width),
        "hidden shift": (width, width),
        "out": (width, PIXELS),
    }
    draw = jax.nn.initializers.glorot_uniform()
    keys = jax.random.split(key, len(sizes))
    return {n: (draw(k, s), jnp.zeros(s[1])) for (n, s), k in zip(sizes.items(), keys, strict=True)}


def network(params: dict[str, Any], x: jax.Array, t: jax.Array) -> jax.Array:
    def affine(name: str, h: jax.Array) -> jax.Array:
        return h @ params[name][0] + params[name][1]

    phase = t[:, None] * jnp.exp(-jnp.log(10_000.0) * jnp.arange(FEATURES // 2) / (FEATURES // 2))
    features = jnp.concatenate([jnp.sin(phase), jnp.cos(phase)], axis=-1)
    c = jax.nn.silu(affine("condition", jax.nn.silu(affine("time", features))))
    h = jax.nn.silu(affine("in", x) + affine("in shift", c))
    h = jax.nn.silu(affine("hidden", h) + affine("hidden shift", c))
    return affine("out", h)


def by_hand(images: jax.Array, steps: int, width: int) -> Iterator[jax.Array]:
    """Yield the mean loss of the last 20 steps, after each block of them."""
    params = weights(jax.random.key(0), width)
    optimizer = optax.adam(1e-3)
    abar = jnp.cumprod(1 - jnp.linspace(1e-4, 0.02, T))

    def loss(params: dict[str, Any], key: jax.Array, x: jax.Array) -> jax.Array:
        key_t, key_e = jax.random.split(key)
        t = jax.random.randint(key_t, (len(x),), 0, T)
        e = jax.random.normal(key_e, x.shape)
        x_t = jnp.sqrt(abar[t])[:, None] * x + jnp.sqrt(1 - abar[t])[:, None] * e
        return jnp.mean((network(params, x_t, t + 1.0) - e) ** 2)

    @jax.jit
    def block(carry: tuple, key: jax.Array) -> tuple:
        order = jax.random.permutation(jax.random.fold_in(key, 0), len(images))[: steps * BATCH].reshape(-1, BATCH)

        def step(carry: tuple, rows: jax.Array) -> tuple:
            params, state, key = carry
            key, one = jax.random.split(key)
            value, gradient = jax.value_and_grad(loss)(params, one, images[rows])
            updates, state = optimizer.update(gradient, state, params)
            return (optax.apply_updates(params, updates), state, key), value

        (params, state, _), losses = lax.scan(step, (*carry, key), order)
        return (params, state), losses

    carry = (params, optimizer.init(params))
    for number in range(10**6):
        carry, losses = block(carry, jax.random.key(number))
        yield losses[-20:].mean()


# --- the library ----------------------------------------------------------------------------------
def library(images: jax.Array, steps: int, width: int) -> Iterator[jax.Array]:
    """``fit``'s own runner, a block of steps at a time."""
    model = Diffusion(TimeMLP((width, width), time=SinusoidalTime(FEATURES)))
    algorithm = SVI(model, model.noising, UnitDenoising(), optax.adam(1e-3))
    return blocks(*started(algorithm, {"x": images}, BATCH), steps, lambda metrics: metrics["squared_error"])


def samplers(width: int, rounds: int, count: int = 64) -> dict[str, float]:
    """Seconds to draw, each sampler's median; compiled before, and interleaved."""
    model = Diffusion(TimeMLP((width, width), time=SinusoidalTime(FEATURES)))

    params = {"denoiser": eqx.filter(model.denoiser.build(PIXELS + 1, PIXELS, jax.random.key(0)), eqx.is_array)}
    kinds = {"ancestral, 1,000 steps": Ancestral(), "DDIM, 50 steps": DDIM(50)}
    runs = {n: jax.jit(lambda k, s=s: model.draw(k, params, (count, PIXELS), sampler=s)) for n, s in kinds.items()}
    times: dict[str, list[float]] = {n: [] for n in runs}
    for number in range(rounds + 1):
        for name, run in runs.items():
            begin = time.perf_counter()
            jax.block_until_ready(run(jax.random.key(number)))
            if number:
                times[name].append(time.perf_counter() - begin)
    return {n: median(v) for n, v in times.items()}


def main(steps: int = 50, rounds: int = 7, width: int = 512) -> None:
    """Time both steps and both samplers.

    Args:
        steps: Steps of a block.
        rounds: Blocks timed of each, interleaved; one more is thrown away, to compile.
        width: Of the two hidden layers.
    """
    train, _ = datasets.load("mnist")
    images = 2 * jnp.asarray(train.arrays["x"], jnp.float32) - 1
    pair = library(images, steps, width), by_hand(images, steps, width)
    compare(f"Diffusion, dense, width {width}, batch {BATCH}", "squared error", [("", pair)], steps, rounds)
    table = Table(title=f"64 draws: {jax.devices()[0].device_kind}", title_justify="left")
    for column in ("sampler", "seconds", "times faster"):
        table.add_column(column, justify="left" if column == "sampler" else "right")
    slow, fast = samplers(width, rounds).items()
    table.add_row(slow[0], f"{slow[1]:.2f}", "")
    table.add_row(fast[0], f"{fast[1]:.3f}", f"{slow[1] / fast[1]:.1f}")
    Console(width=120).print(table)


if __name__ == "__main__":
    tyro.cli(main)
