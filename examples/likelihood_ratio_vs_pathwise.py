"""Two gradients of one expectation: likelihood ratio against pathwise, in the simplest problem that has both.

    minimise E‖x - c‖² over mu,    x ~ N(mu, I) in d = 2 dimensions,    c = (5, 5);    the gradient is 2 (mu - c)

    pathwise           x = mu + e, e ~ N(0, I):   g = 2 (x - c)
    likelihood ratio   E[f ∇log p(x; mu)]:        g = ‖x - c‖² (x - mu)
    with a baseline    E[∇log p] = 0:             g = (‖x - c‖² - b) (x - mu),  b = mean of the other draws' ‖x - c‖²

All are unbiased. With a = ‖mu - c‖², one draw's variances, summed over the d coordinates, are

    pathwise           4 d
    likelihood ratio   d a² + a (2d² + 8d + 4) + d (d + 2)(d + 4)
    best baseline      4 a (d + 1) + 2 d (d + 2)                       at b = a + d + 2
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from matplotlib.figure import Figure

from ppl.figures import COLOURS, INK, PALE, WIDTH
from ppl.recipe import Result

TARGET = np.array([5.0, 5.0])
START = np.array([0.0, 0.0])
MEASURED = 4000  # gradients, at each of a few points
REPEATS = 300  # descents
PATH, RATIO, BASELINE = "pathwise", "likelihood ratio", "likelihood ratio, baseline"

Mean = Float[Array, "2"]


def cost(x: Float[Array, "draws 2"]) -> Float[Array, " draws"]:
    return jnp.sum((x - TARGET) ** 2, axis=-1)


def pathwise(mu: Mean, e: Float[Array, "draws 2"]) -> Mean:
    """The gradient of a mean over draws, taken through them."""
    return jax.grad(lambda mu: jnp.mean(cost(mu + e)))(mu)


def likelihood_ratio(mu: Mean, e: Float[Array, "draws 2"]) -> Mean:
    """Costs times ∇log p(x; mu) = x - mu."""
    return jnp.mean(cost(mu + e)[:, None] * e, axis=0)


def with_baseline(mu: Mean, e: Float[Array, "draws 2"]) -> Mean:
    """Each draw's cost less the mean of the others'."""
    f, n = cost(mu + e), len(e)
    return jnp.mean((f - (f.sum() - f) / (n - 1))[:, None] * e, axis=0)


ESTIMATORS: dict[str, Callable[[Mean, Array], Mean]] = {
    PATH: pathwise,
    RATIO: likelihood_ratio,
    BASELINE: with_baseline,
}


def variance(name: str, distance: Float[np.ndarray, "..."], num_draws: int, d: int = 2) -> Float[np.ndarray, "..."]:
    """Variance of the mean over draws, summed over coordinates, at this distance of mu from the target.

    With the others' mean as its baseline the estimator is the sample covariance of f = ‖x - c‖² and e, whose
    variance is [mu22 - mu11² (n - 2) / (n - 1) + mu20 mu02 / (n - 1)] / n with the moments mu of the two.
    """
    a = np.asarray(distance, float) ** 2
    if name == PATH:
        return np.full_like(a, 4 * d) / num_draws
    if name == RATIO:
        return (d * a**2 + a * (2 * d**2 + 8 * d + 4) + d * (d + 2) * (d + 4)) / num_draws
    best = 4 * a * (d + 1) + 2 * d * (d + 2)
    mu22 = best + 4 * d + 4 * a  # the mean cost, a + d, is 2 from the best baseline
    mu11_squared, mu20, mu02 = 4 * a, 4 * a + 2 * d, d
    return (mu22 - mu11_squared * (num_draws - 2) / (num_draws - 1) + mu20 * mu02 / (num_draws - 1)) / num_draws


def main(*, num_steps: int = 400, num_draws: int = 10, step_size: float = 0.01, seed: int = 1) -> dict[str, Result]:
    """Likelihood ratio against pathwise gradients.

    Stochastic gradient descent moves the mean of a Normal to where the expected squared distance from (5, 5) is
    least. The pathwise gradient knows the slope of the cost; the likelihood ratio only its size, so it is noisy
    even where the cost is flat, and the more so the larger the cost is. A baseline takes away most of that.

    Parameters
    ----------
    num_steps
        Of gradient descent.
    num_draws
        Draws a step, at least 2.
    step_size
        Of gradient descent, the same for all.
    seed
        Of the draws.
    """
    keys = jax.random.split(jax.random.key(seed), REPEATS)
    paths = {n: np.asarray(descend(g, keys, num_steps, num_draws, step_size)) for n, g in ESTIMATORS.items()}
    points = np.linspace(START, TARGET, 6)
    found = {n: [measure(g, p, num_draws, seed) for p in points] for n, g in ESTIMATORS.items()}
    distances = np.linalg.norm(points - TARGET, axis=1)
    table = [
        {"estimator": name, "distance of μ": float(r), "variance": float(v), "± 2 errors": 2 * error}
        | {"formula": float(variance(name, r, num_draws)), "bias / its error": bias}
        for name, rows in found.items()
        for r, (v, error, bias) in zip(distances, rows, strict=True)
        if r in (distances[0], distances[-1])
    ]
    return {
        "Descent": trajectories(paths, num_draws, step_size),
        "Variance of the gradient": variances(distances, found, num_draws),
        f"One gradient of {num_draws} draws": table,
    }


@partial(jax.jit, static_argnums=(0, 2, 3, 4))
def descend(
    gradient: Callable[[Mean, Array], Mean], keys: Array, num_steps: int, num_draws: int, step_size: float
) -> Float[Array, "repeats steps 2"]:
    """The means that gradient descent passes, the start first, in independent repeats."""

    def step(mu: Mean, key: Array) -> tuple[Mean, Mean]:
        return mu - step_size * gradient(mu, jax.random.normal(key, (num_draws, 2))), mu

    def one(key: Array) -> Float[Array, "steps 2"]:
        start = jnp.asarray(START, jnp.float32)
        return jax.lax.scan(step, start, jax.random.split(key, num_steps))[1]

    return jax.vmap(one)(keys)


def measure(
    gradient: Callable[[Mean, Array], Mean], mu: Float[np.ndarray, "2"], num_draws: int, seed: int
) -> tuple[float, float, float]:
    """Variance of the gradient at ``mu``, its standard error, and the worst coordinate's bias over its error."""
    e = jax.random.normal(jax.random.key(seed + 1), (MEASURED, num_draws, 2))
    g = np.asarray(jax.vmap(gradient, (None, 0))(jnp.asarray(mu, jnp.float32), e), np.float64)
    centred = ((g - g.mean(0)) ** 2).sum(1)
    bias = (g.mean(0) - 2 * (mu - TARGET)) / (g.std(0) / np.sqrt(MEASURED))
    worst = float(bias[np.argmax(np.abs(bias))])
    return float(centred.mean()), float(centred.std() / np.sqrt(MEASURED)), worst


def expected_distance(num_steps: int, num_draws: int, step_size: float) -> Float[np.ndarray, " steps"]:
    """Root mean square distance of the pathwise descent: E‖mu - c‖² shrinks by (1 - 2 s)² and gains s² Var g."""
    step = np.arange(num_steps)
    shrink, gain = (1 - 2 * step_size) ** 2, step_size**2 * float(variance(PATH, np.zeros(()), num_draws))
    squared = shrink**step * np.sum((START - TARGET) ** 2) + gain * (1 - shrink**step) / (1 - shrink)
    return np.sqrt(squared)


def trajectories(paths: dict[str, Float[np.ndarray, "repeats steps 2"]], num_draws: int, step_size: float) -> Figure:
    """One descent in the plane, over circles of equal cost, and the distance from the optimum over all."""
    figure = Figure(figsize=(WIDTH, 4.4), layout="constrained")
    plane, over = figure.subplots(1, 2)
    shown = np.concatenate([p[0] for p in paths.values()])
    low, high = np.minimum(shown.min(0), -0.5) - 0.3, np.maximum(shown.max(0), 6.5) + 0.3
    grid = np.stack(np.meshgrid(*(np.linspace(a, b, 200) for a, b in zip(low, high, strict=True))), axis=-1)
    distance = np.linalg.norm(grid - TARGET, axis=-1)
    plane.contour(grid[..., 0], grid[..., 1], distance, levels=np.arange(1, 12), colors="#dddddd", linewidths=1)
    for (name, path), colour in zip(paths.items(), COLOURS, strict=False):
        order = 3 if name == PATH else 2
        plane.plot(*path[0].T, color=colour, linewidth=1.1, zorder=order)
        root_mean_square = np.sqrt(np.mean(np.sum((path - TARGET) ** 2, axis=-1), axis=0))
        over.plot(root_mean_square, color=colour, label=name, zorder=order)
    num_steps = next(iter(paths.values())).shape[1]
    over.plot(expected_distance(num_steps, num_draws, step_size), ":", color=INK, zorder=4, label="pathwise, formula")
    plane.plot(*START, "o", color=INK, zorder=4)
    plane.plot(*TARGET, "*", color=INK, markersize=13, zorder=4)
    plane.annotate("start", START, xytext=(8, -10), textcoords="offset points")
    plane.annotate("optimum", TARGET, xytext=(-10, 12), textcoords="offset points", ha="right")
    plane.set(xlabel="μ₁", ylabel="μ₂", aspect="equal", title=f"One descent, {num_draws} draws a step")
    over.set(yscale="log", xlabel="step", ylabel="root mean square ‖μ − (5, 5)‖", title=f"{len(path)} descents")
    figure.legend(loc="outside lower center", ncols=4)
    return figure


def variances(distances: np.ndarray, found: dict[str, list[tuple[float, float, float]]], num_draws: int) -> Figure:
    """Measured variances as dots, the formulae as lines."""
    figure = Figure(figsize=(0.8 * WIDTH, 4.2), layout="constrained")
    ax = figure.subplots()
    line = np.linspace(0, distances.max(), 100)
    for (name, rows), colour in zip(found.items(), COLOURS, strict=False):
        ax.plot(line, variance(name, line, num_draws), color=colour)
        value, error, _ = np.array(rows).T
        ax.errorbar(distances, value, 2 * error, fmt="o", color=colour, markersize=5, capsize=3, label=name)
    squared = 4 * line**2  # ‖2 (mu - c)‖²
    ax.plot(line[1:], squared[1:], color=PALE, linestyle="--", label="squared length of the gradient itself")
    ax.set(yscale="log", xlabel="‖μ − (5, 5)‖", ylabel="variance, summed over coordinates", ylim=(0.3, None))
    ax.set_title(f"Gradients of {num_draws} draws: formula (lines), measured (dots)")
    figure.legend(loc="outside lower center", ncols=2)
    return figure


if __name__ == "__main__":
    from ppl import run

    run(main)
