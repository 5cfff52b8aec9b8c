"""Drawing images from a PixelCNN with cached activations, against a full forward pass for every pixel; training steps.

    python benchmarks/pixel_cnn_sampling.py
    python benchmarks/pixel_cnn_sampling.py --training-steps

Both ways of drawing run in one compiled loop, on the same weights, with the same keys, and must draw the same pixels.
A full pass costs the same whichever pixel it is for, so the naive loop is timed on the first ``--naive-pixels`` of
them and counted for all. ``--training-steps`` sets a step of ``SVI`` beside steps written by hand in JAX: masked
matrices for MADE, padded and shifted ``conv_general_dilated`` for the PixelCNN. Sides take turns, and medians are
compared.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from jax import lax
from numpyro import handlers
from rich.console import Console
from rich.table import Table

import guides
from inference import SVI
from inference.compiled import jit
from inference.objectives import ELBO
from inference.protocols import Batch
from ppl_models import MADE, PixelCNN
from ppl_models.autoregressive import AutoregressiveRow
from ppl_models.networks.masked import degrees

PIXELS = 784


def row_of(model: Any, batch: int) -> AutoregressiveRow:
    """The distribution of so many images under fresh weights."""
    x = jnp.zeros((batch, PIXELS))
    return handlers.trace(handlers.seed(model, jax.random.key(0))).get_trace(x)["x"]["fn"]


def naive(row: AutoregressiveRow, key: jax.Array, count: int) -> jax.Array:
    """The first pixels of images, each from a forward pass over the whole image."""
    keys = jax.random.split(key, row.batch_shape[0])

    def pixel(i: jax.Array, x: jax.Array) -> jax.Array:
        outputs = jax.vmap(row.network)(x, row.context)[:, i]

        def draw(key: jax.Array, outputs: jax.Array) -> jax.Array:
            return row.emission(outputs).sample(jax.random.fold_in(key, i))[0]

        return x.at[:, i].set(jax.vmap(draw)(keys, outputs).astype(x.dtype))

    return lax.fori_loop(0, count, pixel, jnp.zeros((len(keys), PIXELS)))


def seconds(function: Callable[[], Any]) -> float:
    begin = time.perf_counter()
    jax.block_until_ready(function())
    return time.perf_counter() - begin


def sampling(model: PixelCNN, images: int, naive_pixels: int, repeats: int) -> Table:
    row, key = row_of(model, images), jax.random.key(1)
    cached = jit(lambda key: row.sample(key))
    full = jit(lambda key: naive(row, key, naive_pixels))
    same = np.mean(np.asarray(cached(key))[:, :naive_pixels] == np.asarray(full(key))[:, :naive_pixels])
    times = [(seconds(lambda: cached(key)), seconds(lambda: full(key)) * PIXELS / naive_pixels) for _ in range(repeats)]
    ours, theirs = (median(column) for column in zip(*times, strict=True))
    out = Table(title=f"{images} images of 28 x 28 from {model.channels} channels, kernels {model.kernel_sizes}")
    for column in ("", "seconds", "ratio"):
        out.add_column(column, justify="right" if column else "left")
    out.add_row("cached activations, one scan", f"{ours:.2f}", "1")
    out.add_row("a full forward pass a pixel", f"{theirs:.2f}", f"{theirs / ours:.0f}")
    out.caption = f"{same:.2%} of the first {naive_pixels} pixels are the same"
    return out


# --- steps by hand --------------------------------------------------------------------------------------------------
def made_by_hand(hidden: int) -> tuple[dict, Callable]:
    ins, (units, *_) = degrees(PIXELS, (hidden,), 0)[0], degrees(PIXELS, (hidden,), 0)[1:]
    first, last = jnp.asarray(units[:, None] >= ins, float), jnp.asarray(ins[:, None] > units, float)
    bound = (6 / (PIXELS + hidden)) ** 0.5

    def draw(seed: int, shape: tuple[int, ...]) -> jax.Array:
        return jax.random.uniform(jax.random.key(seed), shape, minval=-bound, maxval=bound)

    params = {"w": draw(0, (hidden, PIXELS)), "v": draw(1, (PIXELS, hidden))}
    params |= {"b": jnp.zeros(hidden), "c": jnp.zeros(PIXELS), "a": jnp.zeros((PIXELS, PIXELS))}

    def logits(p: dict, x: jax.Array) -> jax.Array:
        x = 2 * x - 1
        h = jax.nn.relu(x @ (first * p["w"]).T + p["b"])
        return h @ (last * p["v"]).T + x @ jnp.tril(p["a"], -1).T + p["c"]

    return params, logits


def pixels_by_hand(channels: int, kernels: tuple[int, ...]) -> tuple[dict, Callable]:
    params: dict[str, jax.Array] = {}

    def add(name: str, *shape: int) -> None:
        params[name] = 0.05 * jax.random.normal(jax.random.key(len(params)), shape)
        params[name + "_b"] = jnp.zeros(shape[-1])

    for i, k in enumerate(kernels):
        rows, size = k // 2 + (i > 0), channels if i else 1
        add(f"down{i}", rows, k, size, 2 * channels)
        add(f"right{i}", 1, rows, size, 2 * channels)
        add(f"across{i}", 2 * channels, 2 * channels)
        add(f"residual{i}", channels, channels)
    add("head0", channels, channels)
    add("head1", channels, 1)

    def conv(p: dict, name: str, x: jax.Array) -> jax.Array:
        return (
            lax.conv_general_dilated(x, p[name], (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))
            + (p[name + "_b"])
        )

    def gate(x: jax.Array) -> jax.Array:
        a, b = jnp.split(x, 2, -1)
        return jnp.tanh(a) * jax.nn.sigmoid(b)

    def logits(p: dict, x: jax.Array) -> jax.Array:
        v = h = (2 * x - 1).reshape(-1, 28, 28, 1)

        def dense(name: str, x: jax.Array) -> jax.Array:
            return x @ p[name] + p[name + "_b"]

        for i, k in enumerate(kernels):
            a = k // 2
            above = jnp.pad(v, ((0, 0), (a, 0), (a, a), (0, 0)))
            left = jnp.pad(h, ((0, 0), (0, 0), (a, 0), (0, 0)))
            down = conv(p, f"down{i}", above[:, :-1] if i == 0 else above)
            right = conv(p, f"right{i}", left[:, :, :-1] if i == 0 else left) + dense(f"across{i}", down)
            new = dense(f"residual{i}", gate(right))
            v, h = gate(down), new if i == 0 else h + new
        return dense("head1", jax.nn.relu(dense("head0", jax.nn.relu(h)))).reshape(x.shape)

    return params, logits


def by_hand(parts: tuple[dict, Callable], x: jax.Array) -> Callable[[], Any]:
    params, logits = parts
    optimizer = optax.adam(1e-3)
    state = [params, optimizer.init(params)]

    def loss(p: dict) -> jax.Array:
        out = logits(p, x)
        return jnp.sum(jax.nn.softplus(out) - x * out) / len(x)

    def step(params: dict, kept: Any) -> tuple:
        updates, kept = optimizer.update(jax.grad(loss)(params), kept)
        return optax.apply_updates(params, updates), kept

    compiled = jit(step)

    def advance() -> Any:
        state[:] = compiled(*state)
        return state

    return advance


def ours(model: Any, x: jax.Array) -> Callable[[], Any]:
    algorithm = SVI(model, guides.empty, ELBO(), optax.adam(1e-3))
    batch = Batch({"x": x}, jnp.arange(len(x), dtype=jnp.int32), len(x))
    state = [algorithm.init(jax.random.key(0), batch)]
    compiled = jit(lambda key, state: algorithm.step(key, state, batch)[0])

    def advance() -> Any:
        state[0] = compiled(jax.random.key(0), state[0])
        return state

    return advance


def several(advance: Callable[[], Any], steps: int) -> float:
    """Seconds of a step."""
    return seconds(lambda: [advance() for _ in range(steps)]) / steps


def training(model: PixelCNN, repeats: int) -> Table:
    out = Table(title="A training step on binary images of 28 x 28")
    for column in ("", "by hand, ms", "SVI, ms", "ratio"):
        out.add_column(column, justify="right" if column else "left")
    sides = {
        "MADE, 500 units, batch 100": (100, MADE((500,)), made_by_hand(500), 20),
        "PixelCNN, batch 50": (50, model, pixels_by_hand(model.channels, model.kernel_sizes), 1),
    }
    for name, (size, program, parts, steps) in sides.items():
        x = (jax.random.uniform(jax.random.key(2), (size, PIXELS)) < 0.2).astype(float)
        hand, fitted = by_hand(parts, x), ours(program, x)
        hand(), fitted()  # compile
        times = [[several(side, steps) for side in (hand, fitted)] for _ in range(repeats)]
        theirs, mine = (median(column) for column in zip(*times, strict=True))
        out.add_row(name, f"{1e3 * theirs:.1f}", f"{1e3 * mine:.1f}", f"{mine / theirs:.2f}")
    return out


def main(
    images: int = 64,
    channels: int = 32,
    kernel_sizes: tuple[int, ...] = (7, 3, 3, 3, 3, 3),
    naive_pixels: int = 28,
    repeats: int = 3,
    training_steps: bool = False,
) -> None:
    """Compare ways of drawing, or with ``--training-steps`` steps of training."""
    model = PixelCNN(channels, kernel_sizes)
    table = training(model, repeats) if training_steps else sampling(model, images, naive_pixels, repeats)
    Console(width=100).print(table)


if __name__ == "__main__":
    tyro.cli(main)
