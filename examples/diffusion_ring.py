"""Eight Gaussians on a ring by denoising diffusion: all modes, whatever the seed.

ppl run examples/diffusion_ring.py --objective unit-denoising --num-seeds 5
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import jax
import numpy as np
import optax
from jaxtyping import Float
from matplotlib.figure import Figure

from inference import SVI, Fit, fit, step_bound
from inference.objectives import Denoising, UnitDenoising
from ppl.figures import COLOURS, PALE, WIDTH
from ppl.recipe import Result
from ppl_models import Diffusion
from ppl_models.diffusion_samplers import DDIM, Ancestral, Sampler
from ppl_models.networks import TimeMLP
from ppl_models.noise_schedules import CosineSchedule, LinearSchedule
from ppl_models.predictions import PredictVelocity

NUM_MODES, RADIUS, SCALE = 8, 1.4, 0.07
CENTRES = RADIUS * np.stack([f(2 * np.pi * np.arange(NUM_MODES) / NUM_MODES) for f in (np.cos, np.sin)], axis=1)


def draw(rng: np.random.Generator, num_rows: int) -> Float[np.ndarray, "rows 2"]:
    """Rows of the ring, of about unit variance, float32."""
    centres = CENTRES[rng.integers(0, NUM_MODES, num_rows)]
    return (centres + SCALE * rng.normal(size=(num_rows, 2))).astype(np.float32)


def log_density(x: Float[np.ndarray, "rows 2"]) -> Float[np.ndarray, " rows"]:
    """log p of the ring itself, in nats."""
    square = ((x[:, None] - CENTRES) ** 2).sum(-1) / SCALE**2
    return np.logaddexp.reduce(-0.5 * square, axis=1) - np.log(NUM_MODES * 2 * np.pi * SCALE**2)


def modes(x: Float[np.ndarray, "rows 2"]) -> tuple[int, float]:
    """How many modes draws have found, and the share of draws near one: within four standard deviations.

    A mode counts as found with a fourth of the draws that are its due.
    """
    distance = np.linalg.norm(x[:, None] - CENTRES, axis=-1)
    near = distance.min(1) < 4 * SCALE
    counts = np.bincount(distance.argmin(1)[near], minlength=NUM_MODES)
    return int((counts > len(x) / NUM_MODES / 4).sum()), float(near.mean())


def main(
    *,
    objective: Denoising | UnitDenoising = UnitDenoising(),
    schedule: LinearSchedule | CosineSchedule = CosineSchedule(100),
    num_rows: int = 4000,
    num_steps: int = 3000,
    num_seeds: int = 5,
    num_draws: int = 2000,
    seed: int = 0,
) -> dict[str, Result]:
    """A diffusion finds all eight modes of a ring.

    Several seeds are trained in one compile. Draws are by the model's own steps, and by a tenth as many of DDIM's.

    Parameters
    ----------
    objective
        The bound, or the squared error with the same weight at every step.
    schedule
        Variances of the steps.
    num_rows
        Rows to learn from; 1000 more are held out.
    num_steps
        Steps of Adam, on 256 rows each.
    num_seeds
        Independent runs.
    num_draws
        Draws of each run.
    seed
        Of the data and the runs.
    """
    rng = np.random.default_rng(seed)
    train, test = draw(rng, num_rows), draw(rng, 1000)
    model = Diffusion(TimeMLP((64, 64, 64)), schedule, PredictVelocity())
    optimizer = optax.adam(optax.cosine_decay_schedule(3e-3, num_steps))
    run = fit(
        SVI(model, model.noising, objective, optimizer),
        train,
        key=seed,
        num_steps=num_steps,
        num_chains=num_seeds,
        batch_size=256,
    )
    samplers = {"ancestral": Ancestral(), "DDIM": DDIM(max(1, schedule.num_steps // 10))}
    drawn = {name: draws(run, sampler, num_draws, seed) for name, sampler in samplers.items()}
    table = [
        {"sampler": name, "seed": i, "modes of 8": found, "share near a mode": round(share, 3)}
        for name, seeds in drawn.items()
        for i, (found, share) in enumerate(map(modes, seeds))
    ]
    bound = step_bound(run, test, num_sweeps=10)
    rows = [
        {"": "bound on log p, best seed", "nats per held-out row": round(float(bound.rows.mean()), 3)},
        {"": "log p of the ring itself", "nats per held-out row": round(float(log_density(test).mean()), 3)},
    ]
    return {
        "Draws": (scatter(train, drawn), "The data, and draws of every seed; crosses are the eight centres."),
        "Modes": table,
        "Held-out rows": rows,
        "Terms of the bound": terms(bound.by_step),
        "Diffusion": run,
    }


def draws(run: Fit, sampler: Sampler, count: int, seed: int) -> Float[np.ndarray, "seed draw 2"]:
    """Draws of every run, by one compiled scan."""
    one = partial(run.model.draw, shape=(count, 2), sampler=sampler)
    many = jax.jit(jax.vmap(lambda key, params: one(key, params)))
    return np.asarray(many(jax.random.split(jax.random.key(seed), run.num_chains), run.draws.params))


def scatter(train: np.ndarray, drawn: Mapping[str, np.ndarray]) -> Figure:
    """A line of panels for each sampler."""
    across = 1 + max(map(len, drawn.values()))
    figure = Figure(figsize=(WIDTH, WIDTH / across * len(drawn) + 0.5), layout="constrained")
    axes = figure.subplots(len(drawn), across, squeeze=False, sharex=True, sharey=True)
    for line, (name, seeds) in zip(axes, drawn.items(), strict=True):
        for ax, x, title in zip(
            line, [train, *seeds], ["data", *(f"{name}, {i}" for i in range(len(seeds)))], strict=True
        ):
            ax.plot(*x[:1000].T, ".", color=PALE if title == "data" else COLOURS[0], markersize=1.5, alpha=0.6)
            ax.plot(*CENTRES.T, "+", color=COLOURS[1], markersize=5)
            ax.set_title(title, fontsize=9)
            ax.set(aspect="equal", xticks=[], yticks=[])
    return figure


def terms(by_step: Float[np.ndarray, " steps"]) -> Figure:
    """Where along the path the nats are spent."""
    figure = Figure(figsize=(0.75 * WIDTH, 3.0), layout="constrained")
    ax = figure.subplots()
    ax.plot(np.arange(2, len(by_step)), -by_step[1:-1], color=COLOURS[0])
    ax.set(xlabel="step t", ylabel="KL divergence, nats per row", yscale="log")
    text = f"data given x_1: {by_step[0]:.2f} nats; of x_T from its prior: {-by_step[-1]:.2g}"
    ax.set_title(text.replace("-", "−"), fontsize=10)
    return figure


if __name__ == "__main__":
    from ppl import run

    run(main)
