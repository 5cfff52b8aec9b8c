"""Persistent contrastive divergence on MNIST, side by side with scikit-learn's BernoulliRBM: images per second.

    python benchmarks/rbm_vs_sklearn.py
    python benchmarks/rbm_vs_sklearn.py --scaling

Both sides learn the same binary images at equal settings: 500 hidden units, batches of 100, PCD-1 with as many
chains, plain gradient, float32. They take turns within one process, an epoch of part of the data each, so that
whatever else the machine does falls on both. Ours is ``fit`` as a user calls it, less compiling; scikit-learn runs
with all BLAS threads and with one, and the better counts. Beside them is scikit-learn on float64 rows, which it keeps
so: what it does with images that were divided by 255; and the least that a step can be in JAX, a scan of the five
products and the draws, with no shuffling, no metrics, no centring and no checks.
"""

from __future__ import annotations

import time
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from rich.console import Console
from rich.table import Table
from sklearn.neural_network import BernoulliRBM
from threadpoolctl import threadpool_limits

from inference import ContrastiveDivergence, fit
from inference.compiled import jit
from ppl_models import RBM, datasets
from ppl_models.binary_draws import bernoulli

RATE = optax.sgd(0.01)
THEIRS, BARE = ("all threads", "one thread", "float64"), "a scan by hand"


def ours(hidden: int, chains: int, centring: float | None = None) -> ContrastiveDivergence:
    return ContrastiveDivergence(RBM(hidden), persistent=True, num_particles=chains, optimizer=RATE, centring=centring)


def seconds(algorithm: ContrastiveDivergence, x: np.ndarray, batch_size: int, epochs: int = 1) -> float:
    """Of ``fit``'s loop."""
    return fit(algorithm, x, key=0, num_epochs=epochs, batch_size=batch_size, progress=False).info["seconds"]


def theirs(hidden: int, x: np.ndarray, batch_size: int) -> float:
    """Of scikit-learn's ``fit``."""
    machine = BernoulliRBM(hidden, learning_rate=0.01, batch_size=batch_size, n_iter=1, random_state=0)
    begin = time.perf_counter()
    machine.fit(x)
    return time.perf_counter() - begin


@jit
def bare_epoch(state: tuple, batches: jax.Array) -> tuple:
    """PCD-1 by hand."""

    def step(state: tuple, x: jax.Array) -> tuple:
        weights, b, c, h, key = state
        key, key_v, key_h = jax.random.split(key, 3)
        v = bernoulli(key_v, jax.nn.sigmoid(h @ weights.T + b))
        drawn, data = jax.nn.sigmoid(v @ weights + c), jax.nn.sigmoid(x @ weights + c)
        rate = 0.01 / len(x)
        moved = weights + rate * (x.T @ data - v.T @ drawn), b + rate * (x - v).sum(0), c + rate * (data - drawn).sum(0)
        return (*moved, bernoulli(key_h, drawn), key), None

    return jax.lax.scan(step, state, batches)[0]


def bare(hidden: int, x: np.ndarray, batch_size: int) -> float:
    """Seconds of a scan by hand, compiled before."""
    batches = jnp.asarray(x[: len(x) // batch_size * batch_size], jnp.float32).reshape(-1, batch_size, x.shape[1])
    weights = 0.01 * jax.random.normal(jax.random.key(0), (x.shape[1], hidden))
    zeros = jnp.zeros(x.shape[1]), jnp.zeros(hidden), jnp.zeros((batch_size, hidden))
    start = jax.block_until_ready((weights, *zeros, jax.random.key(1)))
    begin = time.perf_counter()
    jax.block_until_ready(bare_epoch(start, batches))
    return time.perf_counter() - begin


def compare(x: np.ndarray, hidden: int, batch_size: int, repeats: int) -> dict[str, list[float]]:
    """Seconds of each side, in turns."""
    sides: dict[str, Any] = {"plain": ours(hidden, batch_size), "centred": ours(hidden, batch_size, 0.01)}
    for algorithm in sides.values():
        seconds(algorithm, x, batch_size)  # compiles
    bare(hidden, x, batch_size)
    found: dict[str, list[float]] = {name: [] for name in (*THEIRS, *sides, BARE)}
    for _ in range(repeats):
        for name, limit, rows in (("all threads", None, x), ("one thread", 1, x), ("float64", None, x.astype(float))):
            with threadpool_limits(limit):
                found[name].append(theirs(hidden, rows, batch_size))
        for name, algorithm in sides.items():
            found[name].append(seconds(algorithm, x, batch_size))
        found[BARE].append(bare(hidden, x, batch_size))
    return found


def main(
    images: int = 10_000,
    hidden: int = 500,
    batch_size: int = 100,
    repeats: int = 7,
    scaling_table: Annotated[bool, tyro.conf.arg(name="scaling")] = False,
) -> None:
    """Compare on the first images of MNIST; ``--scaling`` shows images per second by hidden units and chains."""
    train, _ = datasets.load("mnist", binarization="threshold")
    x = train.arrays["x"][:images]
    if scaling_table:
        console, out = Console(width=100), Table(title="PCD-1, centred, images per second (fit)")
        for column in ("hidden", "100 chains", "400 chains", "1,600 chains"):
            out.add_column(column, justify="right")
        for units in (125, 250, 500, 1000, 2000):
            cells = []
            for chains in (100, 400, 1600):
                algorithm = ours(units, chains, 0.01)
                seconds(algorithm, x, batch_size)
                cells.append(f"{len(x) / min(seconds(algorithm, x, batch_size) for _ in range(3)):,.0f}")
            out.add_row(str(units), *cells)
        console.print(out)
        return
    found = compare(x, hidden, batch_size, repeats)
    best = min(np.median(found[name]) for name in ("all threads", "one thread"))
    out = Table(title=f"PCD-1 on MNIST, {hidden} hidden units, batch {batch_size}, {len(x):,} images a turn")
    for column in ("", "images per second", "best turn", "ratio to scikit-learn"):
        out.add_column(column, justify="left" if not column else "right")
    for name, times in found.items():
        median = float(np.median(times))
        side = name if name == BARE else f"{'scikit-learn' if name in THEIRS else 'ppl-models'}, {name}"
        out.add_row(side, f"{len(x) / median:,.0f}", f"{len(x) / min(times):,.0f}", f"{best / median:.1f}")
    Console(width=100).print(out)


if __name__ == "__main__":
    tyro.cli(main)
