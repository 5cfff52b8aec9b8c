"""Diffusion in one dimension, where everything is known: q(x_t), the best denoiser, and the reverse step.

ppl run examples/diffusion_1d.py --schedule cosine-schedule --schedule.num-steps 200
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float
from matplotlib.figure import Figure
from scipy.stats import norm

from inference import SVI, Fit, fit, step_bound
from inference.objectives import Denoising
from ppl.figures import COLOURS, INK, PALE, WIDTH
from ppl.recipe import Result
from ppl_models import Diffusion
from ppl_models.networks import TimeMLP
from ppl_models.noise_schedules import CosineSchedule, LinearSchedule, NoiseSchedule, levels

# x_0 ~ sum_k w_k N(m_k, v_k), of mean zero and variance near one
WEIGHTS, MEANS, SCALES = np.array([0.35, 0.65]), np.array([-1.3, 0.7]), np.array([0.25, 0.4])
GRID = np.linspace(-4.0, 4.0, 2001)
STEP = GRID[1] - GRID[0]


@dataclass(frozen=True)
class BestDenoiser:
    """E[e | x_t] of the mixture: x_t is a mixture of N(a m_k, a² v_k + s²), each of which has a linear one.

    In the place of a network; it has no weights.
    """

    schedule: NoiseSchedule

    def build(self, in_size: int, out_size: int, key: Array) -> Any:
        """Module that maps a row (x_t, t / T) to the noise."""
        known = levels(self.schedule)

        def run(row: Float[Array, " 2"]) -> Float[Array, " 1"]:
            t = jnp.round(row[1] * known.num_steps).astype(int)
            a, s = (jnp.asarray(v, jnp.float32)[t] for v in (known.signal, known.noise))
            variance = a**2 * SCALES**2 + s**2
            gap = row[0] - a * MEANS
            log_r = jnp.log(WEIGHTS) - 0.5 * (gap**2 / variance + jnp.log(variance))
            return (jax.nn.softmax(log_r) * s * gap / variance).sum()[None]

        return eqx.nn.Lambda(run)


def density(x: Any, a: float = 1.0, s: float = 0.0) -> Any:
    """q(x_t) at signal a and noise s; the data's own density for none."""
    return (WEIGHTS * norm.pdf(np.asarray(x)[..., None], a * MEANS, np.sqrt(a**2 * SCALES**2 + s**2))).sum(-1)


def reverse_density(x_t: float, a: float, s: float, beta: float) -> Float[np.ndarray, " grid"]:
    """q(x_{t-1} | x_t) on the grid, by Bayes' rule: q(x_t | x_{t-1}) q(x_{t-1}), at the levels of t - 1."""
    joint = norm.pdf(x_t, np.sqrt(1 - beta) * GRID, np.sqrt(beta)) * density(GRID, a, s)
    return joint / (joint.sum() * STEP)


def distance_from_gaussian(p: Float[np.ndarray, " grid"]) -> float:
    """KL(p || the Gaussian of the same mean and variance), in nats: no Gaussian is nearer."""
    mean = (p * GRID).sum() * STEP
    scale = np.sqrt((p * (GRID - mean) ** 2).sum() * STEP)
    inside = p > 1e-30
    return float((p * (np.log(np.maximum(p, 1e-30)) - norm.logpdf(GRID, mean, scale)))[inside].sum() * STEP)


def main(
    *,
    schedule: LinearSchedule | CosineSchedule = LinearSchedule(100),
    num_rows: int = 4000,
    num_steps: int = 3000,
    seed: int = 0,
) -> dict[str, Result]:
    """Diffusion of a mixture of two Gaussians in one dimension.

    Noise turns the density into N(0, 1) step by step, exactly known at each. The reverse step is by Bayes' rule, and
    near a Gaussian for small steps only; what Gaussian steps lose is the gap between log p and the bound with the
    best denoiser, which closes as steps get smaller. A network that learns comes near the best denoiser.

    Parameters
    ----------
    schedule
        Variances of the steps, for the network.
    num_rows
        Rows to learn from.
    num_steps
        Steps of Adam, on 256 rows each.
    seed
        Of the data and the run.
    """
    rng = np.random.default_rng(seed)
    component = (rng.random(num_rows) > WEIGHTS[0]).astype(int)
    x = (MEANS[component] + SCALES[component] * rng.normal(size=num_rows)).astype(np.float32)[:, None]
    model = Diffusion(TimeMLP((64, 64)), schedule)
    optimizer = optax.adam(optax.cosine_decay_schedule(3e-3, num_steps))
    run = fit(SVI(model, model.noising, Denoising(), optimizer), x, key=seed, num_steps=num_steps, batch_size=256)

    test = x[:1000]
    log_p = float(np.log(density(test[:, 0])).mean())
    table = [{"denoiser": "log p, exact", "steps": "", "nats per row": round(log_p, 3), "gap": ""}]
    for count in (25, 50, 100, 200, 400):
        best = Diffusion(BestDenoiser(LinearSchedule(count)), LinearSchedule(count))
        table.append(_row("best, linear schedule", count, bound(best, test, seed), log_p))
    table.append(_row("network", model.num_evaluations, float(step_bound(run, test, num_sweeps=20).rows.mean()), log_p))
    return {
        "Noise added": (forward(schedule, x[:, 0], seed), "Exact densities q(x_t), and histograms of rows with noise."),
        "The reverse step": (
            reverse(),
            "q(x_{t-1} | x_t) at three x_t by Bayes' rule, with the Gaussians of the same mean and variance, dashed: "
            "for a large beta it has the modes of the data, and no Gaussian is near.",
        ),
        "Distance from a Gaussian": (
            distance(),
            "Averaged over q(x_t), for a step of size beta from data that are kept.",
        ),
        "Bounds": table,
        "Denoisers": (denoisers(run), "The noise that the network sees in x_t, and the best answer, dashed."),
        "Draws": (draws(run, x, seed), "Draws of the model, in ancestral steps, on the density of the data."),
        "Diffusion": run,
    }


def bound(model: Diffusion, x: Float[np.ndarray, "rows 1"], seed: int, num_sweeps: int = 20) -> float:
    """The bound of rows in nats, without anything fitted."""
    weights = {"denoiser": eqx.filter(model.denoiser.build(2, 1, jax.random.key(0)), eqx.is_array)}
    run = jax.jit(lambda key: model.bound_terms(key, weights, jnp.asarray(x)).sum(0).mean())
    return float(np.mean([run(key) for key in jax.random.split(jax.random.key(seed), num_sweeps)]))


def _row(name: str, steps: int, value: float, log_p: float) -> dict[str, Any]:
    return {"denoiser": name, "steps": steps, "nats per row": round(value, 3), "gap": round(log_p - value, 3)}


def forward(schedule: NoiseSchedule, x: Float[np.ndarray, " rows"], seed: int) -> Figure:
    """Densities of x_t at a few t."""
    known, rng = levels(schedule), np.random.default_rng(seed)
    shown = np.unique(np.round(np.linspace(0, known.num_steps, 6)).astype(int))
    figure = Figure(figsize=(WIDTH, 2.2), layout="constrained")
    for ax, t in zip(figure.subplots(1, len(shown), sharey=True), shown, strict=True):
        a, s = known.signal[t], known.noise[t]
        noisy = a * x + s * rng.normal(size=len(x))
        ax.hist(noisy, bins=50, range=(-3, 3), density=True, color=PALE, alpha=0.6)
        ax.plot(GRID, density(GRID, a, s), color=COLOURS[0])
        ax.plot(GRID, norm.pdf(GRID), "--", color=INK, linewidth=0.8)
        ax.set(xlim=(-3, 3), title=f"t = {t}", yticks=[])
    return figure


def reverse() -> Figure:
    """The exact reverse step, for a large and a small step."""
    figure = Figure(figsize=(WIDTH, 2.8), layout="constrained")
    for ax, beta in zip(figure.subplots(1, 3), (0.9, 0.5, 0.05), strict=True):
        for colour, x_t in zip(COLOURS, (-1.0, -0.2, 0.8), strict=False):
            p = reverse_density(x_t, 1.0, 0.0, beta)
            mean = (p * GRID).sum() * STEP
            scale = np.sqrt((p * (GRID - mean) ** 2).sum() * STEP)
            ax.plot(GRID, p, color=colour, label=f"$x_t$ = {x_t}".replace("-", "−"))
            ax.plot(GRID, norm.pdf(GRID, mean, scale), "--", color=colour, linewidth=1)
        ax.set(xlim=(-2.5, 2.5), title=f"beta = {beta}", xlabel="$x_{t-1}$", yticks=[])
    figure.axes[2].legend(fontsize=9)
    return figure


def distance() -> Figure:
    """KL of the reverse step from the nearest Gaussian, over beta."""
    betas = np.geomspace(1e-3, 0.95, 25)
    middle = GRID[::40]
    values = []
    for beta in betas:
        mass = density(middle, np.sqrt(1 - beta), np.sqrt(beta))
        seen = mass > 1e-4
        each = [distance_from_gaussian(reverse_density(x, 1.0, 0.0, beta)) for x in middle[seen]]
        values.append(float(np.average(each, weights=mass[seen])))
    figure = Figure(figsize=(0.6 * WIDTH, 3.0), layout="constrained")
    ax = figure.subplots()
    ax.plot(betas, values, "o-", color=COLOURS[0], markersize=3)
    ax.set(xscale="log", yscale="log", xlabel="beta", ylabel="KL divergence, nats")
    return figure


def denoisers(run: Fit) -> Figure:
    """The network's noise beside the best, at a few t."""
    model, x = run.model, np.linspace(-3, 3, 200, dtype=np.float32)[:, None]
    best = Diffusion(BestDenoiser(model.schedule), model.schedule)
    nothing = {"denoiser": eqx.filter(best.denoiser.build(2, 1, jax.random.key(0)), eqx.is_array)}
    figure = Figure(figsize=(0.75 * WIDTH, 3.2), layout="constrained")
    ax = figure.subplots()
    shown = np.round(model.num_evaluations * np.array([0.05, 0.2, 0.5, 1.0])).astype(int)
    for colour, t in zip(COLOURS, np.maximum(shown, 1), strict=False):
        steps = jnp.full(len(x), t)
        ax.plot(x, model.fitted(run.params, x.shape, None).found(x, steps)[1], color=colour, label=f"t = {t}")
        ax.plot(x, best.fitted(nothing, x.shape, None).found(x, steps)[1], "--", color=INK, linewidth=0.9)
    ax.set(xlabel="$x_t$", ylabel="noise")
    ax.legend()
    return figure


def draws(run: Fit, x: Float[np.ndarray, "rows 1"], seed: int) -> Figure:
    """A histogram of draws."""
    figure = Figure(figsize=(0.6 * WIDTH, 2.8), layout="constrained")
    ax = figure.subplots()
    ax.hist(run.generate(len(x), key=seed)["x"][:, 0], bins=60, range=(-3, 3), density=True, color=PALE, label="draws")
    ax.plot(GRID, density(GRID), color=COLOURS[0], label="data")
    ax.set(xlim=(-3, 3), yticks=[])
    ax.legend()
    return figure


if __name__ == "__main__":
    from ppl import run

    run(main)
