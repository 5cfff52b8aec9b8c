"""log p(x) = ELBO + KL(q || posterior), bar by bar over the half-steps of EM.

    ELBO = sum_n sum_k q_nk [log p(x_n, z_n = k | theta) - log q_nk]
    KL   = sum_n sum_k q_nk [log q_nk - log p(z_n = k | x_n, theta)]

In a mixture the latent z_n has K values, so both are finite sums and nothing is estimated.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from jaxtyping import ArrayLike, Float
from matplotlib.figure import Figure
from scipy.special import log_softmax, xlogy
from scipy.stats import multivariate_normal
from sklearn.datasets import load_iris

from ppl.figures import COLOURS, INK, WIDTH
from ppl.recipe import Result
from ppl_models import GaussianMixture

Params = Mapping[str, ArrayLike]


def main(*, num_components: int = 3, num_iterations: int = 9, seed: int = 2) -> dict[str, Result]:
    """The log likelihood is a bound plus a gap, and EM moves them in turn.

    For any q over the latents, log p(x) = ELBO + KL(q || p(z | x)). An E-step sets q to the posterior: the
    gap closes, and log p(x) stays where it is. An M-step raises the ELBO in the parameters, and log p(x)
    rises by as much and by the new gap: the posterior has moved away from q.

    Parameters
    ----------
    num_components
        K of the mixture, fitted to iris (150 flowers, 4 lengths).
    num_iterations
        E-steps, and M-steps.
    seed
        Of the flowers towards which the means start.
    """
    x = load_iris().data.astype(np.float32)
    mixture = GaussianMixture(num_components)
    params: Params = start(x, num_components, seed)
    q = np.full((len(x), num_components), 1 / num_components)  # knows nothing of x

    log_likelihood, statistics = mixture.e_step(params, x)
    steps = [{"step": "start"} | decompose(q, params, x, log_likelihood)]
    for i in range(1, num_iterations + 1):
        q = np.exp(log_posterior(params, x))
        steps.append({"step": f"E{i}"} | decompose(q, params, x, log_likelihood))
        params = mixture.m_step(statistics)
        log_likelihood, statistics = mixture.e_step(params, x)
        steps.append({"step": f"M{i}"} | decompose(q, params, x, log_likelihood))
    return {"Bound and gap": bars(steps), "Numbers, in nats per row": steps}


def start(x: Float[np.ndarray, "N D"], num_components: int, seed: int) -> dict[str, np.ndarray]:
    """A poor start, so that EM takes its time: means near the middle, and one covariance for all."""
    rows = np.random.default_rng(seed).choice(len(x), num_components, replace=False)
    return {
        "weights": np.full(num_components, 1 / num_components),
        "means": 0.7 * x.mean(0) + 0.3 * x[rows],
        "covariances": np.repeat(np.cov(x.T)[None], num_components, axis=0),
    }


def log_joint(params: Params, x: Float[np.ndarray, "N D"]) -> Float[np.ndarray, "N K"]:
    """log p(x_n, z_n = k | theta) = log weights_k + log N(x_n | m_k, S_k)."""
    weights, means, covariances = (np.asarray(params[n], np.float64) for n in ("weights", "means", "covariances"))
    densities = [multivariate_normal(m, s).logpdf(x) for m, s in zip(means, covariances, strict=True)]
    return np.log(weights) + np.stack(densities, axis=1)


def log_posterior(params: Params, x: Float[np.ndarray, "N D"]) -> Float[np.ndarray, "N K"]:
    """log p(z_n = k | x_n, theta)."""
    return log_softmax(log_joint(params, x), axis=1)


def decompose(
    q: Float[np.ndarray, "N K"], params: Params, x: Float[np.ndarray, "N D"], log_likelihood: ArrayLike
) -> dict[str, float]:
    """The three terms in nats per row, each computed without the others."""
    elbo = (q * log_joint(params, x) - xlogy(q, q)).sum() / len(x)
    kl = (xlogy(q, q) - q * log_posterior(params, x)).sum() / len(x)
    log_p = float(log_likelihood) / len(x)
    assert abs(log_p - elbo - kl) < 1e-4, f"log p = {log_p}, but ELBO + KL = {elbo} + {kl}"
    return {"log p(x)": log_p, "ELBO": float(elbo), "KL(q || posterior)": max(float(kl), 0.0)}


def bars(steps: list[dict]) -> Figure:
    """ELBO and KL stacked up to log p(x), and below them the KL on a scale of its own."""
    names = [s["step"] for s in steps]
    log_p, elbo, kl = (np.array([s[n] for s in steps]) for n in ("log p(x)", "ELBO", "KL(q || posterior)"))
    figure = Figure(figsize=(WIDTH, 5.2), layout="constrained")
    ax, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    floor = elbo.min() - 0.15 * np.ptp(log_p)
    ax.bar(names, elbo - floor, bottom=floor, width=0.86, color=COLOURS[4], label="ELBO")
    ax.bar(names, kl, bottom=elbo, width=0.86, color=COLOURS[1], label="KL(q ‖ posterior), the gap")
    ax.step(range(len(names)), log_p, where="mid", color=INK, label="log p(x)")
    ax.set(ylim=(floor, log_p.max() + 0.05 * np.ptp(log_p)), ylabel="nats per row", title="log p(x) = ELBO + KL")
    ax.legend(loc="upper left")
    below.bar(names, kl, width=0.86, color=COLOURS[1])
    below.set(
        ylabel="nats per row",
        title="The gap alone",
        xlabel="E-steps close the gap; M-steps raise log p(x) and open it again",
    )
    for axes in (ax, below):
        axes.grid(axis="x", visible=False)
        axes.margins(x=0.01)
    return figure


if __name__ == "__main__":
    from ppl import run

    run(main)
