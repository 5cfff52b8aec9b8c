"""Which modes a generator finds: eight Gaussians on a ring, by games and seeds.

    x = 2 (cos φ, sin φ) + 0.05 e,    φ uniform on eight angles,    e ~ N(0, I)

A generator may leave modes out (mode collapse) and its critic never mind, for it only sees what is drawn. Here the
modes are known, and counted.

References
----------
Unrolled Generative Adversarial Networks (Metz, Poole, Pfau and Sohl-Dickstein, 2017), for the ring; Improved Training
of Wasserstein GANs (Gulrajani et al., 2017).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import jax
import numpy as np
import optax
from jaxtyping import Float
from matplotlib.figure import Figure

from inference import Adversarial, Fit, fit, quality
from inference.games import NonSaturating, WassersteinGradientPenalty
from ppl.figures import COLOURS, FAINT, WIDTH
from ppl.recipe import Result
from ppl_models import Generator
from ppl_models.networks import MLP, Critic

MODES, RADIUS, SPREAD = 8, 2.0, 0.05
ANGLES = 2 * np.pi * np.arange(MODES) / MODES
CENTRES = RADIUS * np.stack([np.cos(ANGLES), np.sin(ANGLES)], -1)
NEAR = 4 * SPREAD  # of a mode: 1 - exp(-8), all but 3 in 10,000 of its rows


def ring(size: int, seed: int) -> Float[np.ndarray, "rows 2"]:
    """Rows of the data."""
    rng = np.random.default_rng(seed)
    rows = CENTRES[rng.integers(0, MODES, size)] + SPREAD * rng.normal(size=(size, 2))
    return rows.astype(np.float32)


def main(
    *, steps: int = 12_000, seeds: int = 5, weight: float = 0.1, batch_size: int = 128, seed: int = 0
) -> dict[str, Result]:
    """Eight modes, and how many of them each game finds.

    The same generator and critic play three games, from several seeds each: Wasserstein with a gradient penalty, four
    steps of the critic to one of the generator; the non-saturating game, step by step; and the same with a critic
    that learns a third as fast, which the generator outruns: it moves from mode to mode, or away, and covers few.

    Parameters
    ----------
    steps
        Of the critic. The non-saturating games have half as many, and so more of the generator.
    seeds
        Independent runs of each game.
    weight
        Of the gradient penalty.
    batch_size
        Rows in a step.
    seed
        Of all runs.
    """
    data = ring(20_000, seed)
    half = max(1, steps // 2)
    runs = {
        "Wasserstein, gradient penalty": Adversarial(
            *PLAYERS, WassersteinGradientPenalty(weight), adam(2e-3, max(1, steps // 4)), adam(2e-3, steps), 4
        ),
        "Non-saturating": Adversarial(*PLAYERS, NonSaturating(), adam(1e-3, half), adam(1e-3, half)),
        "Non-saturating, slow critic": Adversarial(*PLAYERS, NonSaturating(), adam(1e-3, half), adam(3e-4, half)),
    }
    fits = {}
    for name, algorithm in runs.items():
        count = steps if algorithm.critic_steps > 1 else half
        fits[name] = fit(algorithm, data, key=seed, num_steps=count, num_chains=seeds, batch_size=batch_size)
    found = {name: draws(run, 2500, seed) for name, run in fits.items()}
    return {
        "Modes": [outcome(name, fits[name], found[name], seed) for name in fits],
        "Draws": panels(data, found),
        **fits,
    }


PLAYERS = Generator(2, MLP((64, 64), "relu")), Critic(MLP((64, 64), "relu"))


def adam(rate: float, steps: int) -> Any:
    """Adam with little momentum, and a rate that falls to a fiftieth."""
    return optax.adam(optax.cosine_decay_schedule(rate, steps, 0.02), b1=0.5, b2=0.9)


def draws(run: Fit, size: int, seed: int) -> list[Float[np.ndarray, "rows 2"]]:
    """Rows of each seed's generator."""
    made = []
    for s in range(run.num_chains):
        params = jax.tree.map(lambda v, s=s: v[s], run.draws.params)
        made.append(replace(run, params=params).generate(size, key=seed)["x"])
    return made


def outcome(name: str, run: Fit, found: list[np.ndarray], seed: int) -> dict[str, Any]:
    """Modes and draws of all seeds, and measures of the first."""
    modes = [quality.mode_coverage(rows, CENTRES, NEAR) for rows in found]
    shares = quality.precision_recall(ring(1000, seed + 1), found[0][:1000])
    return {
        "game": name,
        "modes covered, by seed": " ".join(str(m.covered) for m in modes),
        "draws at a mode": f"{np.mean([1 - m.outside for m in modes]):.0%}",
        "precision": shares.precision,
        "recall": shares.recall,
        "MMD²": quality.mmd_test(ring(500, seed + 2), found[0][:500], num_permutations=1).statistic,
        "critic's accuracy": float(run.history["critic_accuracy"][:, -200:].mean()),
    }


def panels(data: np.ndarray, found: dict[str, list[np.ndarray]]) -> Figure:
    """Draws of every seed, in a row for each game; the data behind them."""
    columns = len(next(iter(found.values())))
    figure = Figure(figsize=(WIDTH, 0.5 + len(found) * (WIDTH / max(columns, 3) + 0.1)), layout="constrained")
    grid = figure.subplots(len(found), columns, squeeze=False, sharex=True, sharey=True)
    for row, (name, samples), colour in zip(grid, found.items(), COLOURS, strict=False):
        for ax, rows in zip(row, samples, strict=True):
            ax.scatter(*data[:2000].T, s=4, color=FAINT, linewidth=0)
            ax.scatter(*rows[:1000].T, s=2, color=colour, alpha=0.5, linewidth=0)
            ax.set(xlim=(-3, 3), ylim=(-3, 3), aspect="equal", xticks=[], yticks=[])
        row[0].set_title(name, fontsize=10)
    return figure


if __name__ == "__main__":
    from ppl import run

    run(main)
