"""Training steps of ``fit`` beside the same written by hand: how they take turns, and how they are shown."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from statistics import median
from typing import Any

import jax
from rich.console import Console
from rich.table import Table

from inference.data import as_data
from inference.execution import Runner, Schedule, make_keys

Metric = Callable[[Mapping[str, Any]], Any]


def started(algorithm: Any, data: Any, batch_size: int) -> tuple[Runner, Any]:
    """``fit``'s own runner, and the state that it starts from."""
    source = as_data(data)
    runner = Runner(algorithm, source, Schedule(source.num_data, batch_size), make_keys(jax.random.key(0), 1), "loop")
    return runner, runner.init(source.batch(slice(0, batch_size)))


def blocks(runner: Runner, state: Any, steps: int, metric: Metric) -> Iterator[Any]:
    """A block of steps at a time: the mean of a metric over its last 20."""
    for number in range(10**6):
        segment = runner.run(state, number * steps, steps, steps)
        state = segment.state
        yield metric(segment.metrics).reshape(-1)[-20:].mean()


Sides = tuple[Iterator[Any], Iterator[Any]]


def compare(title: str, loss: str, pairs: Iterable[tuple[str, Sides]], steps: int, rounds: int) -> None:
    """Print milliseconds a step of each pair (fit's, by hand), their ratio, and where both stand.

    Blocks take turns, so that a noisy machine troubles both alike; the first, which compiles, is thrown away.
    """
    table = Table(title=f"{title}: milliseconds a step, {jax.devices()[0].device_kind}", title_justify="left")
    for column in ("", "fit", "hand-written JAX", "ratio", f"{loss}, fit", "by hand"):
        table.add_column(column, justify="right" if column else "left")
    for name, runs in pairs:
        times: tuple[list[float], list[float]] = [], []
        losses = [0.0, 0.0]
        for number in range(rounds + 1):
            for which, run in enumerate(runs):
                begin = time.perf_counter()
                losses[which] = float(next(run))
                if number:
                    times[which].append(1e3 * (time.perf_counter() - begin) / steps)
        ours, theirs = map(median, times)
        table.add_row(name, f"{ours:.2f}", f"{theirs:.2f}", f"{ours / theirs:.2f}", *(f"{v:.4g}" for v in losses))
    Console(width=120).print(table)
