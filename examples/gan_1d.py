"""What a critic learns, beside what it should: densities on a line, where the optimal critics are integrals.

    data      p = ½ N(-1.5, ½²) + ½ N(1.5, ½²)
    model     q = N(0, 1), held still at first

    D* = p / (p + q),   V(D*) = 2 JS(p, q) - log 4
    f*' = sign(Q - P),  E_p f* - E_q f* = W_1(p, q) = ∫ |P - Q|        P, Q: distribution functions

References
----------
Generative Adversarial Networks (Goodfellow et al., 2014), proposition 1 and theorem 1; Wasserstein GAN (Arjovsky,
Chintala and Bottou, 2017); Improved Training of Wasserstein GANs (Gulrajani et al., 2017).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
from jaxtyping import Array, Float
from matplotlib.figure import Figure
from numpyro import handlers
from scipy.stats import norm, wasserstein_distance

from inference import Adversarial, Fit, fit, quality
from inference.games import (
    Game,
    Minimax,
    NonSaturating,
    Wasserstein,
    WassersteinGradientPenalty,
    WassersteinLipschitzPenalty,
)
from ppl.figures import COLOURS, INK, WIDTH
from ppl.recipe import Result
from ppl_models import Generator
from ppl_models.networks import MLP, Critic

GRID = np.linspace(-5, 5, 2001)
CELL = GRID[1] - GRID[0]
P = (norm.pdf(GRID, -1.5, 0.5) + norm.pdf(GRID, 1.5, 0.5)) / 2
Q = norm.pdf(GRID)
BEST = P / (P + Q)  # D*
JENSEN_SHANNON = float(CELL * np.sum(P * np.log(2 * BEST) + Q * np.log(2 * (1 - BEST))) / 2)
BEHIND = np.cumsum(Q - P) * CELL  # Q - P as distribution functions
W1 = float(CELL * np.sum(np.abs(BEHIND)))
POTENTIAL = np.cumsum(np.sign(BEHIND)) * CELL  # f*, up to a constant
WEIGHT = 10.0  # of the gradient penalty


def _priced() -> float:
    """V under the penalty: W₁ + ∫ (P - Q)² / (2 weight r), for the best slope is 1 + |P - Q| / (2 weight r).

    r is the density of places between a row a of the data and a row b of the model: of x = t a + (1 - t) b, t uniform.
    """
    x, p, q, gap = (v[::10] for v in (GRID, P, Q, BEHIND))
    cell = 10 * CELL
    apart = np.abs(x[:, None] - x) + np.eye(len(x))
    pairs = np.triu((np.outer(p, q) + np.outer(q, p)) / apart, 1)  # of ends, the lower first
    r = cell**2 * np.triu(np.cumsum(pairs, axis=0), 1).sum(1)  # lower end at most x, upper end above it
    inside = r > 1e-6
    return W1 + float(cell * np.sum(gap[inside] ** 2 / (2 * WEIGHT * r[inside])))


PRICED = _priced()


@dataclass(frozen=True)
class Humps:
    """Fresh rows of the data at every step: no critic learns them by heart.

    Parameters
    ----------
    size
        Rows a step.
    """

    size: int
    name: ClassVar[str] = "two humps"

    @property
    def arrays(self) -> dict[str, np.ndarray]:
        return {"x": np.zeros((self.size, 1), np.float32)}

    @staticmethod
    def transform(key: Array, data: dict[str, Array]) -> dict[str, Array]:
        side, noise = jax.random.split(key)
        shape = data["x"].shape
        return {"x": 1.5 * jax.random.rademacher(side, shape, jnp.float32) + 0.5 * jax.random.normal(noise, shape)}


def standard_normal(x: Float[Array, "batch 1"], num_data: int | None = None) -> None:
    """The model that is held still; its parameter is never moved."""
    loc: Any = numpyro.param("loc", 0.0)
    with numpyro.plate("data", num_data or len(x), subsample_size=len(x)):
        z = numpyro.sample("z", dist.Normal(0, 1).expand([1]).to_event(1))
        numpyro.deterministic("x", loc + z)


def main(
    *, critic_steps: int = 2000, generator_steps: int = 3000, batch_size: int = 512, seed: int = 0
) -> dict[str, Result]:
    """A learned critic beside the optimal one, and generators by four games.

    First the model is held still and only the critic learns. The logistic critic should find p / (p + q), its value
    2 JS - log 4; the Wasserstein critic with a gradient penalty a function of slope ±1, its value the distance, a
    little more (the penalty's price) being expected exactly. Then a generator learns too, by each game.

    Parameters
    ----------
    critic_steps
        Steps of the critic against the model that stands still.
    generator_steps
        Steps of each game in which both learn.
    batch_size
        Rows of data, and of the model, in a step.
    seed
        Of all runs.
    """
    data = Humps(batch_size)
    logistic = still(Minimax(), "silu", 1e-2, data, critic_steps, seed)
    distance = still(WassersteinGradientPenalty(WEIGHT), "relu", 2e-3, data, critic_steps, seed)
    learned = {type(game).__name__: play(game, data, generator_steps, seed) for game in GAMES}
    return {
        "The critic against the optimal one": [*logistic_rows(logistic), *distance_rows(distance)],
        "Critics": critics(logistic, distance),
        "Generators": [outcome(name, run, data, seed) for name, run in learned.items()],
        "Draws": draws(learned, seed),
        **learned,
    }


GAMES = (Minimax(), NonSaturating(), Wasserstein(0.1), WassersteinLipschitzPenalty(WEIGHT))


def still(game: Game, activation: Any, rate: float, data: Humps, steps: int, seed: int) -> Fit:
    """The critic alone learns."""
    optimizer = optax.adam(optax.cosine_decay_schedule(rate, steps))
    critic = Critic(MLP((32, 32), activation))
    return fit(
        Adversarial(standard_normal, critic, game, optax.set_to_zero(), optimizer), data, key=seed, num_steps=steps
    )


def play(game: Game, data: Humps, steps: int, seed: int) -> Fit:
    """Both learn; the generator more slowly, and more and more so."""
    slow = optax.adam(optax.cosine_decay_schedule(1e-3, steps), b1=0.0)
    fast = optax.adam(optax.cosine_decay_schedule(5e-3, steps, 0.1), b1=0.0)
    generator, critic = Generator(2, MLP((32, 32), "silu")), Critic(MLP((32, 32), "relu"))
    return fit(Adversarial(generator, critic, game, slow, fast), data, key=seed, num_steps=steps)


def scores(run: Fit) -> Float[np.ndarray, " grid"]:
    """What the critic gives each place."""
    critic = handlers.substitute(run.algorithm.critic, data=run.params)
    return np.asarray(critic(x=jnp.asarray(GRID[:, None], jnp.float32)), np.float64)


def probabilities(run: Fit) -> Float[np.ndarray, " grid"]:
    """D, the critic's chance that a row is of the data."""
    return 1 / (1 + np.exp(-scores(run)))


def logistic_rows(run: Fit) -> list[dict[str, Any]]:
    found = probabilities(run)
    value = float(CELL * np.sum(P * np.log(found) + Q * np.log(1 - found)))
    dense = P + Q > 0.02  # where 99% of the rows are
    best = 2 * JENSEN_SHANNON - np.log(4)
    return [
        {"": "largest |D − D*| where 99% of rows are", "learned": float(np.abs(found - BEST)[dense].max()), "exact": 0},
        {"": "V(D), nats; 2 JS − log 4", "learned": value, "exact": float(best)},
        {"": "JS, nats, by the history", "learned": recent(run), "exact": JENSEN_SHANNON},
    ]


def distance_rows(run: Fit) -> list[dict[str, Any]]:
    value = float(CELL * np.sum((P - Q) * scores(run)))
    return [
        {"": "E_p f − E_q f, under the penalty", "learned": value, "exact": PRICED},
        {"": "the same, by the history", "learned": recent(run), "exact": PRICED},
        {"": "Wasserstein distance W₁", "learned": value * W1 / PRICED, "exact": W1},
    ]


def recent(run: Fit) -> float:
    """The divergence at the end, over a tenth of the steps."""
    values = run.history["divergence"][0]
    return float(values[-max(1, len(values) // 10) :].mean())


def outcome(name: str, run: Fit, data: Humps, seed: int) -> dict[str, Any]:
    """How near the generator's draws are to the data."""
    made = run.generate(4000, key=seed + 1)["x"]
    fresh = np.asarray(data.transform(jax.random.key(seed + 2), {"x": jnp.zeros((4000, 1))})["x"])
    test = quality.mmd_test(fresh[:500], made[:500], seed=seed)
    return {
        "game": name,
        "W₁ to the data": float(wasserstein_distance(fresh[:, 0], made[:, 0])),
        "draws above 0": float(np.mean(made > 0)),
        "MMD², p": test.p_value,
        "critic's accuracy": float(run.history["critic_accuracy"][0, -200:].mean()),
        "divergence": recent(run),
    }


def critics(logistic: Fit, distance: Fit) -> Figure:
    """Both critics, learned and optimal."""
    figure = Figure(figsize=(WIDTH, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    for ax in (left, right):
        shade = ax.twinx()
        shade.fill_between(GRID, P, color=COLOURS[0], alpha=0.12, linewidth=0)
        shade.fill_between(GRID, Q, color=COLOURS[1], alpha=0.12, linewidth=0)
        shade.set_axis_off()
        shade.set_ylim(0, 1.2)
        ax.set(xlabel="x", xlim=(-4, 4))
    left.plot(GRID, BEST, color=INK, linestyle="--", label="D* = p / (p + q)")
    left.plot(GRID, probabilities(logistic), color=COLOURS[2], label="learned")
    left.set(title="Chance of data, D", ylim=(0, 1.15))
    values, inside = scores(distance), np.abs(GRID) < 4
    shift = np.average(values - POTENTIAL, weights=P + Q)
    right.plot(GRID[inside], POTENTIAL[inside], color=INK, linestyle="--", label="f*, slope ±1")
    right.plot(GRID[inside], (values - shift)[inside], color=COLOURS[2], label="learned, gradient penalty")
    right.set(title="Wasserstein critic, up to a constant", ylim=(-1, 5))
    for ax in (left, right):
        ax.legend(loc="upper center", fontsize=9)
    return figure


def draws(learned: dict[str, Fit], seed: int) -> Figure:
    """Histograms of the generators' draws over the data's density."""
    figure = Figure(figsize=(WIDTH, 2.6), layout="constrained")
    axes = figure.subplots(1, len(learned), sharey=True)
    for ax, (name, run), colour in zip(axes, learned.items(), COLOURS, strict=False):
        made = run.generate(20_000, key=seed + 1)["x"][:, 0]
        ax.hist(made, bins=np.linspace(-4, 4, 81), density=True, color=colour, alpha=0.6)
        ax.plot(GRID, P, color=INK, linewidth=1.2)
        ax.set_title(name.replace("Wasserstein", "Wasserstein\n"), fontsize=9)
        ax.set(xlim=(-4, 4), xlabel="x")
    return figure


if __name__ == "__main__":
    from ppl import run

    run(main)
