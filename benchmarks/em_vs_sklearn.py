"""EM for a Gaussian mixture, side by side with scikit-learn: time per iteration, and the same likelihood.

    python benchmarks/em_vs_sklearn.py
    python benchmarks/em_vs_sklearn.py --rows 1000000 --columns 32 --components 32
    python benchmarks/em_vs_sklearn.py --scaling

Both sides take float32 rows and the same start, in turns within one process, one iteration each, so
that whatever else the machine does falls on both. scikit-learn runs with all BLAS threads and with
one, and the better median counts. Likelihoods are those of the parameters that each side has reached
after its last iteration, computed by scikit-learn in float64, in nats per row. They are held against
scikit-learn's iterations in float64, from the same start: in float32 its own statistics lose digits.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from rich.console import Console
from rich.table import Table
from sklearn.mixture import GaussianMixture as Sklearn
from threadpoolctl import threadpool_limits

from inference import EM
from inference.protocols import Batch
from ppl_models import GaussianMixture

Params = dict[str, np.ndarray]


def simulate(rows: int, columns: int, components: int) -> np.ndarray:
    """Overlapping clusters, float32, of any covariance."""
    rng = np.random.default_rng(0)
    means = 2 * rng.normal(size=(components, columns))
    roots = np.eye(columns) + rng.normal(size=(components, columns, columns)) / np.sqrt(columns)
    labels = rng.integers(components, size=rows)
    x = np.empty((rows, columns), np.float32)
    for k in range(components):
        mine = labels == k
        x[mine] = means[k] + rng.normal(size=(mine.sum(), columns)) @ roots[k].T
    return x


def sklearn_at(covariance: str, params: Params, dtype: Any) -> Sklearn:
    """A scikit-learn mixture that stands at these parameters."""
    covariances = params["covariances"]
    matrices = covariance in ("full", "tied")
    root = np.linalg.cholesky(np.linalg.inv(covariances)) if matrices else covariances**-0.5
    model = Sklearn(len(params["weights"]), covariance_type=covariance)
    model.weights_, model.means_, model.covariances_, model.precisions_cholesky_ = (
        np.ascontiguousarray(value, dtype) for value in (params["weights"], params["means"], covariances, root)
    )
    return model


def score(covariance: str, params: Params, x: np.ndarray) -> float:
    """Mean log likelihood in nats per row, in float64."""
    model = sklearn_at(covariance, params, np.float64)
    parts = [model.score_samples(x[i : i + 2**16].astype(np.float64)).sum() for i in range(0, len(x), 2**16)]
    return float(np.sum(parts) / len(x))


def timed(call: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds, and the result."""
    begin = time.perf_counter()
    result = jax.block_until_ready(call())
    return time.perf_counter() - begin, result


def race(covariance: str, x: np.ndarray, components: int, iterations: int) -> tuple[float, float, Params, dict]:
    """Median seconds per iteration of scikit-learn and of EM, where both start, and where each arrives."""
    algorithm = EM(GaussianMixture(components, covariance))
    batch = Batch({"x": jnp.asarray(x)}, jnp.arange(len(x)), len(x))
    state = jax.jit(algorithm.init)(jax.random.key(0), batch)
    start = {name: np.asarray(value) for name, value in state["params"].items()}
    theirs = sklearn_at(covariance, start, np.float32)
    step = jax.jit(algorithm.step)
    jax.block_until_ready(step(jax.random.key(0), state, batch))  # compiles

    def iterate() -> None:
        theirs._m_step(x, theirs._e_step(x)[1])

    seconds: dict[str, list[float]] = {"ours": [], "all threads": [], "one thread": []}
    for i in range(iterations):
        with threadpool_limits(None if i % 2 else 1):
            seconds["all threads" if i % 2 else "one thread"].append(timed(iterate)[0])
        elapsed, (state, _) = timed(lambda state=state: step(jax.random.key(0), state, batch))
        seconds["ours"].append(elapsed)
    median = {name: float(np.median(values)) for name, values in seconds.items()}
    ours = {name: np.asarray(value) for name, value in state["params"].items()}
    return (
        min(median["all threads"], median["one thread"]),
        median["ours"],
        start,
        {"ours": ours, "theirs": params_of(theirs)},
    )


def params_of(model: Sklearn) -> Params:
    return {name: getattr(model, f"{name}_") for name in ("weights", "means", "covariances")}


def in_float64(covariance: str, start: Params, x: np.ndarray, iterations: int) -> Params:
    """Where scikit-learn arrives with rows and statistics in float64."""
    model, x = sklearn_at(covariance, start, np.float64), x.astype(np.float64)
    for _ in range(iterations):
        model._m_step(x, model._e_step(x)[1])
    return params_of(model)


def table(title: str, *headers: str) -> Table:
    out = Table(title=title)
    for header in headers:
        out.add_column(header, justify="left" if header == "covariance" else "right")
    return out


def scaling(rows: int, columns: int, components: int, covariances: tuple[str, ...], iterations: int) -> Table:
    """Milliseconds an iteration, ours and how many times scikit-learn's, from a base size: N, D and K by fours."""
    sizes = [(rows, columns, components)]
    sizes += [(rows * n, columns, components) for n in (4, 16)]
    sizes += [(rows, columns * d, components) for d in (4, 8)]
    sizes += [(rows, columns, components * k) for k in (4, 8)]
    out = table("EM, ms an iteration (scikit-learn's time / ours)", "N", "D", "K", *covariances)
    for n, d, k in sizes:
        x = simulate(n, d, k)
        results = [race(covariance, x, k, iterations) for covariance in covariances]
        cells = [f"{ours * 1e3:,.1f} ({theirs / ours:.1f})" for theirs, ours, *_ in results]
        out.add_row(f"{n:,}", str(d), str(k), *cells)
    return out


def main(
    rows: int = 200_000,
    columns: int = 16,
    components: int = 16,
    covariances: tuple[str, ...] = ("full", "tied", "diag", "spherical"),
    iterations: int = 10,
    scaling_table: Annotated[bool, tyro.conf.arg(name="scaling")] = False,
) -> None:
    """Compare on simulated rows; ``iterations`` is at least 2, from the same k-means start.

    ``--scaling`` prints how time grows with N, D and K instead, from a sixteenth of the rows and half of the
    columns and components.
    """
    if scaling_table:
        found = scaling(rows // 16, columns // 2, components // 2, covariances, iterations)
        Console(width=120).print(found)
        return
    x = simulate(rows, columns, components)
    found = table(
        f"EM, N = {rows:,}, D = {columns}, K = {components}, float32, after {iterations} iterations",
        *("covariance", "scikit-learn", "ppl-models", "ratio", "log likelihood", "off float64", "scikit-learn off"),
    )
    for covariance in covariances:
        theirs, ours, start, reached = race(covariance, x, components, iterations)
        exact = score(covariance, in_float64(covariance, start, x, iterations), x)
        off = {side: score(covariance, params, x) - exact for side, params in reached.items()}
        found.add_row(
            covariance,
            f"{theirs * 1e3:,.0f} ms",
            f"{ours * 1e3:,.0f} ms",
            f"{theirs / ours:.1f}",
            f"{exact:.6f}",
            f"{off['ours'] / abs(exact):+.1e}",
            f"{off['theirs'] / abs(exact):+.1e}",
        )
    Console(width=120).print(found)


if __name__ == "__main__":
    tyro.cli(main)
