"""Four normalizing flows on densities in the plane whose entropy is known.

A flow q is judged by its divergence from the target p, the cross-entropy less the entropy, in nats:

    KL(p || q) = E_p[log p(x) - log q(x)].

References
----------
Normalizing Flows for Probabilistic Modeling and Inference (Papamakarios et al., 2021).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import optax
from jaxtyping import Float
from matplotlib.figure import Figure
from scipy import stats
from scipy.special import logsumexp

import guides
from inference import SVI, Fit, fit
from inference.objectives import ELBO
from ppl.figures import WIDTH
from ppl.recipe import Result
from ppl_models import Flow
from ppl_models.networks import MAF, NeuralSpline, Planar, RealNVP

Rows = Float[np.ndarray, "rows 2"]


@dataclass(frozen=True)
class Target:
    """A density in the plane: draws, and its logarithm."""

    sample: Callable[[np.random.Generator, int], Rows]
    log_prob: Callable[[Rows], Float[np.ndarray, " rows"]]


def arcs() -> Float[np.ndarray, "points 2"]:
    """Points on two half circles that reach into each other."""
    t = np.linspace(0, np.pi, 64)
    return np.concatenate([np.stack([np.cos(t), np.sin(t)], 1), np.stack([1 - np.cos(t), 0.5 - np.sin(t)], 1)])


def sample_moons(rng: np.random.Generator, size: int) -> Rows:
    """Two moons: a mixture of 128 Normals along two half circles."""
    return arcs()[rng.integers(128, size=size)] + 0.15 * rng.normal(size=(size, 2))


def log_moons(x: Rows) -> Float[np.ndarray, " rows"]:
    return logsumexp(stats.norm(arcs()[:, None], 0.15).logpdf(x).sum(-1), axis=0) - np.log(128)


def sample_banana(rng: np.random.Generator, size: int) -> Rows:
    """A Normal bent along a parabola: a ~ N(0, 4), b ~ N(a² / 2 - 2, 1)."""
    a = 2 * rng.normal(size=size)
    return np.stack([a, a**2 / 2 - 2 + rng.normal(size=size)], 1)


def log_banana(x: Rows) -> Float[np.ndarray, " rows"]:
    return stats.norm(0, 2).logpdf(x[:, 0]) + stats.norm(x[:, 0] ** 2 / 2 - 2).logpdf(x[:, 1])


TARGETS = {"moons": Target(sample_moons, log_moons), "banana": Target(sample_banana, log_banana)}
FLOWS = {"RealNVP": RealNVP(8), "MAF": MAF(6), "NeuralSpline": NeuralSpline(4), "Planar": Planar(32)}


def main(
    *,
    flows: tuple[str, ...] = ("RealNVP", "MAF", "NeuralSpline", "Planar"),
    target: str = "moons",
    num_rows: int = 20_000,
    steps: int = 4000,
    learning_rate: float = 3e-3,
    batch_size: int = 256,
    seed: int = 0,
) -> dict[str, Result]:
    """Normalizing flows in the plane, against the truth.

    Each flow is fitted by maximum likelihood, and judged by its Kullback-Leibler divergence from the target on
    new rows. Planar layers with a leaky rectifier only fold the plane along straight lines, and stay behind on moons.

    Parameters
    ----------
    flows
        Which of RealNVP, MAF, NeuralSpline and Planar.
    target
        moons or banana.
    num_rows
        Rows to fit, and as many new ones.
    steps
        Of Adam.
    learning_rate
        Where its step size starts, to fall to zero along a cosine; 0.01 for planar layers.
    batch_size
        Rows in a step.
    seed
        Of data and runs.
    """
    truth, rng = TARGETS[target], np.random.default_rng(seed)
    x, new = (truth.sample(rng, num_rows).astype(np.float32) for _ in range(2))
    optimizer = optax.chain(
        optax.clip_by_global_norm(5.0), optax.adam(optax.cosine_decay_schedule(learning_rate, steps))
    )
    runs = {}
    for name in flows:
        algorithm = SVI(Flow(FLOWS[name]), guides.empty, ELBO(), optimizer)
        runs[name] = fit(algorithm, x, key=seed, num_steps=steps, batch_size=batch_size)
    return {
        "Nats from the target": [row(name, run, truth, new) for name, run in runs.items()],
        "Densities": densities(runs, truth, new),
        **runs,
    }


def row(name: str, run: Fit, truth: Target, new: Rows) -> dict[str, object]:
    """A flow's divergence on new rows, with its standard error."""
    log_p, log_q = truth.log_prob(new), run.log_likelihood(new).rows
    gap = log_p - log_q
    return {
        "flow": name,
        "entropy of the target": round(-log_p.mean(), 4),
        "cross-entropy": round(-log_q.mean(), 4),
        "KL": round(gap.mean(), 4),
        "standard error": round(gap.std() / len(gap) ** 0.5, 4),
    }


def densities(runs: dict[str, Fit], truth: Target, new: Rows, points: int = 120) -> Figure:
    """The target's density and each flow's, on one colour scale."""
    low, high = new.min(0), new.max(0)
    axes = [np.linspace(a, b, points, dtype=np.float32) for a, b in zip(low, high, strict=True)]
    grid = np.stack(np.meshgrid(*axes), -1).reshape(-1, 2)
    panels = {"target": truth.log_prob(grid)} | {n: run.log_likelihood(grid).rows for n, run in runs.items()}
    fig = Figure(figsize=(WIDTH, WIDTH / len(panels) + 0.3), layout="constrained")
    top = np.exp(panels["target"]).max()
    for ax, (name, log_density) in zip(fig.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
        extent = (float(low[0]), float(high[0]), float(low[1]), float(high[1]))
        image = np.exp(log_density).reshape(points, points)
        ax.imshow(image, origin="lower", extent=extent, aspect="auto", cmap="Greys", vmin=0, vmax=top)
        ax.set(title=name, xticks=[], yticks=[])
    return fig


if __name__ == "__main__":
    from ppl import run

    run(main)
