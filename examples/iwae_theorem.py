"""The importance-weighted bound rises to log p(x): how fast depends on the tail of the weights.

    z ~ N(0, 1),   x | z ~ N(z, 1),   so p(z | x) = N(x / 2, 1 / 2) and p(x) = N(x; 0, 2)
    q(z) = N(x / 2, r / 2),   w = p(x, z) / q(z),   L_k = E[log (w_1 + … + w_k) / k]

r is the variance of the guide over that of the posterior. log w = log p(x) + ½ log r + ½ (1/r - 1) e², e ~ N(0, 1)
under the posterior's scale, so

    r ≥ 1      w ≤ p(x) √r: bounded
    ½ < r < 1  unbounded, of finite variance: chi² = E[w²] / p(x)² - 1 = r / √(2r - 1) - 1
    r ≤ ½      infinite variance: P(w > t) falls like t^(-1/(1 - r))

L_k never falls and tends to log p(x) in all three. The gap goes like chi² / 2k in the first two, and like
k^(-r/(1 - r)), up to logarithms, in the third.

L_k has no closed form but two integrals in one dimension, exact to many digits:

    log S = ∫₀^∞ (exp(-t) - exp(-t S)) dt / t,   so   L_k = ∫₀^∞ (exp(-t) - E[exp(-t w / k)]^k) dt / t

References
----------
Importance Weighted Autoencoders (Burda, Grosse and Salakhutdinov, 2016), theorem 1; Debiasing Evidence Approximations:
On Importance-Weighted Autoencoders and Jackknife Variational Inference (Nowozin, 2018).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jaxtyping import Array, Float
from matplotlib.figure import Figure

from inference.objectives import IWAE
from ppl.figures import COLOURS, INK, WIDTH
from ppl.recipe import Result

RATIOS = (2.0, 0.7, 0.3, 0.1)  # r: bounded weights, finite variance, infinite variance twice
SAMPLED = (1, 4, 16, 64, 256, 1024)  # k at which the objective itself is run


def model(x: Float[Array, "1"]) -> None:
    """One Normal latent, one observation."""
    with numpyro.plate("data", len(x)):
        z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        numpyro.sample("x", dist.Normal(z, 1.0), obs=x)


@dataclass(frozen=True)
class Guide:
    """N(x / 2, ratio / 2): the mean of the posterior, and its variance times a ratio."""

    ratio: float

    def __call__(self, x: Float[Array, "1"]) -> None:
        with numpyro.plate("data", len(x)):
            numpyro.sample("z", dist.Normal(x / 2, (self.ratio / 2) ** 0.5))


def main(*, x: float = 1.5, max_draws: int = 1_000_000, num_repeats: int = 1000, seed: int = 0) -> dict[str, Result]:
    """More draws, tighter bound, and sooner or later exact.

    The bound of k importance-weighted draws is computed exactly for guides wider and narrower than the
    posterior, beside the objective that SVI climbs. A guide wider than the posterior has bounded weights, and its
    gap closes like 1/k. So does that of one a little narrower. One much narrower misses the tails, where its
    weights are huge and rare: the gap still closes, but ten times as many draws hardly help.

    Parameters
    ----------
    x
        The observation.
    max_draws
        Largest k of the exact curves.
    num_repeats
        Evaluations of the objective at each k.
    seed
        Of its draws.
    """
    draws = np.unique(np.round(np.geomspace(1, max_draws, 60)).astype(int))
    evidence = log_evidence(x)
    curves = {r: np.array([exact_bound(x, r, int(k)) for k in draws]) for r in RATIOS}
    few = [k for k in SAMPLED if k <= max_draws]
    sampled = {r: np.array([estimate(x, r, k, num_repeats, seed) for k in few]) for r in RATIOS}
    return {
        "The bound rises to the evidence": bounds(draws, curves, few, sampled, evidence),
        "Bounds in nats": [row(x, r, few, sampled[r], max_draws) for r in RATIOS],
    }


def log_evidence(x: float) -> float:
    """log N(x; 0, 2)."""
    return float(-0.5 * np.log(2 * np.pi * 2) - x**2 / 4)


def elbo(x: float, ratio: float) -> float:
    """L_1 = log p(x) - KL(q || p(z | x)) = log p(x) - ½ (r - 1 - log r)."""
    return log_evidence(x) - 0.5 * (ratio - 1 - float(np.log(ratio)))


def chi_squared(ratio: float) -> float:
    """Variance of w / p(x) under q, infinite for r ≤ ½."""
    return ratio / float(np.sqrt(2 * ratio - 1)) - 1 if ratio > 0.5 else float("inf")


def exact_bound(x: float, ratio: float, k: int) -> float:
    """L_k by two integrals: over e = (z - x/2) / √(r/2) ~ N(0, 1), and over u = log t.

    log w / p(x) = ½ log r - ½ (r - 1) e². Both integrands are smooth and fall off exponentially in u, and like a
    Gaussian in e, where the trapezoidal rule gains digits exponentially.
    """
    e = np.linspace(0, 12, 481)
    density = np.sqrt(2 / np.pi) * np.exp(-0.5 * e**2) * (e[1] - e[0])  # of |e|
    density[0] /= 2
    w = np.exp(0.5 * np.log(ratio) - 0.5 * (ratio - 1) * e**2) / k
    u = np.linspace(-45, 45 + np.log(k), 451 + int(5 * np.log(k)))
    t = np.exp(u)
    # E[exp(-t w)]^k as exp(k log1p(E[exp(-t w) - 1])), for small t
    laplace = np.expm1(-t[:, None] * w) @ density
    power = np.exp(k * np.log1p(np.maximum(laplace, -1 + 1e-16)))
    return log_evidence(x) + float(np.sum(np.exp(-t) - power) * (u[1] - u[0]))


def estimate(x: float, ratio: float, k: int, num_repeats: int, seed: int) -> tuple[float, float]:
    """The objective's value for this k, averaged over repeats, and its standard error."""
    losses = _losses(Guide(ratio), k, jax.random.split(jax.random.key(seed), num_repeats), jnp.array([x]))
    values = -np.asarray(losses, np.float64)
    return float(values.mean()), float(values.std() / np.sqrt(num_repeats))


@partial(jax.jit, static_argnums=(0, 1))
def _losses(guide: Guide, k: int, keys: Array, x: Float[Array, "1"]) -> Float[Array, " repeats"]:
    return jax.lax.map(lambda key: IWAE(k).loss(key, {}, model, guide, x), keys)


def row(x: float, ratio: float, few: list[int], sampled: np.ndarray, max_draws: int) -> dict[str, str | float]:
    """What the theory says of a guide, and its bounds."""
    kind = "bounded" if ratio >= 1 else "finite variance" if ratio > 0.5 else "infinite variance"
    k = few[-1]
    return {
        "guide's variance / posterior's": ratio,
        "weights": kind,
        "L₁": elbo(x, ratio),
        f"L of {k} draws": exact_bound(x, ratio, k),
        "by the objective": f"{sampled[-1, 0]:.4f} ± {2 * sampled[-1, 1]:.4f}".replace("-", "−"),
        f"L of {max_draws:,} draws": exact_bound(x, ratio, max_draws),
        "log p(x)": log_evidence(x),
        "gap falls like": "1 / k" if ratio > 0.5 else f"1 / k^{ratio / (1 - ratio):.2f}",
    }


def bounds(
    draws: np.ndarray,
    curves: dict[float, np.ndarray],
    few: list[int],
    sampled: dict[float, np.ndarray],
    evidence: float,
) -> Figure:
    """The bounds and the gaps over the number of draws; lines are exact, dots are the objective's values."""
    figure = Figure(figsize=(WIDTH, 4.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.axhline(evidence, color=INK, linestyle="--", linewidth=1.2, label="log p(x)")
    for (ratio, curve), colour in zip(curves.items(), COLOURS, strict=False):
        kind = "bounded weights" if ratio >= 1 else "finite variance" if ratio > 0.5 else "infinite variance"
        value, error = sampled[ratio].T
        left.plot(draws, curve, color=colour, label=f"r = {ratio:g}, {kind}")
        left.errorbar(few, value, 2 * error, fmt="o", color=colour, markersize=4, capsize=2, linewidth=1)
        gap = evidence - curve
        right.plot(draws, gap, color=colour)
        if ratio > 0.5:
            limit = chi_squared(ratio) / (2 * draws)
        else:
            limit = gap[-1] * (draws / draws[-1]) ** (-ratio / (1 - ratio))
        right.plot(draws, limit, color=colour, linestyle=":", linewidth=1.2)
    right.plot([], [], color=INK, linestyle=":", linewidth=1.2, label="rate for large k")
    left.set(xscale="log", xlabel="draws k", ylabel="nats", title="L_k: exact (lines), objective (dots)")
    right.set(xscale="log", yscale="log", xlabel="draws k", ylabel="log p(x) − L_k, nats", title="The gap")
    right.set_ylim(min((evidence - c).min() for c in curves.values()) / 3, 3)
    figure.legend(loc="outside lower center", ncols=3)
    return figure


if __name__ == "__main__":
    from ppl import run

    run(main)
