"""Gradient steps through a convolution: ``correlate``, what it stands in for, and torch.

Convolutions 3x3 that keep the size, as in the U-Net and in the PixelCNN's stacks: the value, and the gradients in image
and kernel, in a compiled loop of steps. Three ways in JAX: correlate; one product of patches; XLA's own convolution and
its transposes. Blocks are interleaved in this one process, and medians are compared.

    python benchmarks/convolution_step.py
    OMP_NUM_THREADS=1 taskset -c 0 python benchmarks/convolution_step.py
"""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median
from typing import Any

import jax
import jax.numpy as jnp
import torch
import tyro
from rich.console import Console
from rich.table import Table

from inference.compiled import jit
from ppl_models.networks.correlation import correlate


def patches(x: jax.Array, weight: jax.Array) -> jax.Array:
    k, n, _, out = weight.shape
    h, w = x.shape[0] - k + 1, x.shape[1] - n + 1
    taps = [x[i : i + h, j : j + w] for i in range(k) for j in range(n)]
    return jnp.concatenate(taps, axis=-1) @ weight.reshape(-1, out)


def convolution(x: jax.Array, weight: jax.Array) -> jax.Array:
    numbers = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(x[None], weight, (1, 1), "VALID", dimension_numbers=numbers)[0]


def in_jax(layer: Callable[..., jax.Array], size: int, channels: int, batch: int, steps: int) -> Callable[[], Any]:
    """A block of steps, each of which moves image and kernel along their gradients."""
    x = jax.random.normal(jax.random.key(0), (batch, size, size, channels))
    weight = 0.05 * jax.random.normal(jax.random.key(1), (3, 3, channels, channels))

    def loss(x: jax.Array, weight: jax.Array) -> jax.Array:
        padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
        return jnp.sum(jnp.sin(jax.vmap(lambda image: layer(image, weight))(padded)))

    def step(at: tuple, _: None) -> tuple:
        of_x, of_weight = jax.grad(loss, (0, 1))(*at)
        return (at[0] - 1e-3 * of_x, at[1] - 1e-5 * of_weight), None

    block = jit(lambda x, weight: jax.lax.scan(step, (x, weight), None, length=steps)[0])
    return lambda: jax.block_until_ready(block(x, weight))


def in_torch(size: int, channels: int, batch: int, steps: int) -> Callable[[], Any]:
    x = torch.randn(batch, channels, size, size, requires_grad=True)
    weight = (0.05 * torch.randn(channels, channels, 3, 3)).requires_grad_()

    def block() -> None:
        for _ in range(steps):
            loss = torch.sin(torch.nn.functional.conv2d(x, weight, padding=1)).sum()
            of_x, of_weight = torch.autograd.grad(loss, (x, weight))
            with torch.no_grad():
                x.sub_(1e-3 * of_x)
                weight.sub_(1e-5 * of_weight)

    return block


def main(batch: int = 64, steps: int = 4, rounds: int = 5, xla: bool = True) -> None:
    """Time a step each way.

    Args:
        batch: Images in a step.
        steps: Steps of a block.
        rounds: Blocks timed of each, interleaved; one more is thrown away, to compile.
        xla: Whether XLA's own convolution runs as well, which takes a minute.
    """
    layers = {"correlate": correlate, "one product of patches": patches} | ({"XLA's own": convolution} if xla else {})
    table = Table(title=f"A gradient step, batch {batch}: {jax.devices()[0].device_kind}", title_justify="left")
    for column in ("image", "channels", *layers, "torch"):
        table.add_column(column, justify="right")
    for size, channels in ((28, 32), (14, 64), (7, 64)):
        sizes = size, channels, batch, steps
        runs = {name: in_jax(layer, *sizes) for name, layer in layers.items()} | {"torch": in_torch(*sizes)}
        times: dict[str, list[float]] = {name: [] for name in runs}
        for number in range(rounds + 1):
            for name, run in runs.items():
                begin = time.perf_counter()
                run()
                if number:
                    times[name].append(1e3 * (time.perf_counter() - begin) / steps)
        ours = median(times["correlate"])
        found = {name: median(t) for name, t in times.items()}
        cells = [f"{t:.1f} ms" + (f" ({t / ours:.1f})" if t != ours else "") for t in found.values()]
        table.add_row(f"{size} x {size}", str(channels), *cells)
    Console(width=120).print(table)


if __name__ == "__main__":
    tyro.cli(main)
