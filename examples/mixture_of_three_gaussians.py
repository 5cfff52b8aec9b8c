"""A mixture of three Gaussians learned by gradient: data beside samples, epoch by epoch.

    log p(x_n) = log sum_k 1/3 N(x_n | m_k, S_k)

The component z_n of a row takes three values, so it is summed out exactly: a guide that samples
nothing, and the ELBO is the log likelihood.
"""

from __future__ import annotations

import numpy as np
import optax
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from guides import empty
from inference import SVI, Fit, MaximumLikelihood, fit
from inference.objectives import ELBO
from ppl.figures import COLOURS, INK, PALE, WIDTH
from ppl.recipe import Result
from ppl_models import GaussianMixture

SHOWN = (0, 2, 4, 6)  # epochs with a panel, besides the last
TRUTH = {
    "weights": np.full(3, 1 / 3),
    "means": np.array([[-2.0, -1.0], [0.5, 2.0], [2.0, -1.0]]),
    "covariances": np.array([[[0.7, 0.5], [0.5, 0.6]], [[1.2, -0.3], [-0.3, 0.2]], [[0.15, 0.1], [0.1, 0.9]]]),
}


def draw(rng: np.random.Generator, num_rows: int) -> Float[np.ndarray, "rows 2"]:
    """Rows from the true mixture, float32."""
    z = rng.integers(0, 3, num_rows)
    noise = np.einsum("nij,nj->ni", np.linalg.cholesky(TRUTH["covariances"])[z], rng.normal(size=(num_rows, 2)))
    return (TRUTH["means"][z] + noise).astype(np.float32)


def main(*, num_rows: int = 1000, num_epochs: int = 20, step_size: float = 0.02, seed: int = 0) -> dict[str, Result]:
    """Three Gaussians find their clusters.

    A mixture with full covariances and fixed weights of 1/3 climbs the exact log likelihood by gradient.
    The true mixture's own log likelihood of the held-out rows is the ceiling: on average over new rows no
    other density has a higher one (log p_true - log p_model averages to a KL divergence, never negative).

    Parameters
    ----------
    num_rows
        Rows to learn from; four times as many are held out.
    num_epochs
        Passes over the rows.
    step_size
        Of Adam, in unconstrained parameters.
    seed
        Of the data, the start and the order of rows.
    """
    rng = np.random.default_rng(seed)
    train, test = draw(rng, num_rows), draw(rng, 4 * num_rows)
    mixture = GaussianMixture(num_components=3, covariance="full", mean_scale=1.0, scale=1.0)
    model = MaximumLikelihood(mixture, fixed=(("weights", (1 / 3, 1 / 3, 1 / 3)),))
    batch_size = -(-num_rows // 100)
    steps_per_epoch = -(-num_rows // batch_size)

    # The warm-up's first step has size zero, so one step is the start; and since a run is a function of
    # its key, a shorter run is the beginning of a longer one.
    size = optax.warmup_cosine_decay_schedule(0.0, step_size, steps_per_epoch, num_epochs * steps_per_epoch)
    learn = SVI(model, empty, ELBO(), optax.adam(size))
    runs = {}
    for epoch in [e for e in SHOWN if e < num_epochs] + [num_epochs]:
        steps = max(1, epoch * steps_per_epoch)
        runs[epoch] = fit(learn, train, key=seed, num_steps=steps, batch_size=batch_size, validation=test)

    ceiling = float(mixture.e_step(TRUTH, test)[0]) / len(test)
    reached = {epoch: run.log_likelihood(test).mean for epoch, run in runs.items()}
    rows = {f"after epoch {epoch}": value for epoch, value in reached.items()} | {"true mixture": ceiling}
    return {
        "Data beside samples": panels(train, runs, reached),
        "Log likelihood": curve(runs[num_epochs], reached, ceiling, steps_per_epoch),
        "Held-out rows": [{"": name, "log likelihood, nats per row": value} for name, value in rows.items()],
        "Mixture": runs[num_epochs],
    }


def panels(train: np.ndarray, runs: dict[int, Fit], reached: dict[int, float]) -> Figure:
    """The data, then as many samples of the model after each epoch, with its components' ellipses."""
    figure = Figure(figsize=(WIDTH, 5.7), layout="constrained")
    axes = figure.subplots(2, 3, sharex=True, sharey=True).ravel()
    scatter(axes[0], train, TRUTH["means"], TRUTH["covariances"], (INK,) * 3)
    axes[0].set_title("data and true components")
    for ax, (epoch, run) in zip(axes[1:], runs.items(), strict=False):
        samples = run.generate(len(train))["x"]
        scatter(ax, samples, run.params["means"], np.linalg.inv(run.params["precisions"]), COLOURS)
        ax.set_title(f"epoch {epoch}: {nats(reached[epoch])}")
    for ax in axes[1 + len(runs) :]:
        ax.set_visible(False)
    low, high = train.min(0) - 0.6, train.max(0) + 0.6
    axes[0].set(xlim=(low[0], high[0]), ylim=(low[1], high[1]))
    return figure


def scatter(ax: Axes, x: np.ndarray, means: np.ndarray, covariances: np.ndarray, colours: tuple[str, ...]) -> None:
    """Points, and each component's ellipse of two standard deviations (86 % of its mass)."""
    ax.plot(*x.T, ".", color=PALE, markersize=2.5, alpha=0.7)
    angle = np.linspace(0, 2 * np.pi, 100)
    circle = 2 * np.stack([np.cos(angle), np.sin(angle)])
    for mean, covariance, colour in zip(means, covariances, colours, strict=False):
        ax.plot(*(np.asarray(mean)[:, None] + np.linalg.cholesky(covariance) @ circle), color=colour, linewidth=2)
    ax.set_aspect("equal")


def curve(run: Fit, reached: dict[int, float], ceiling: float, steps_per_epoch: int) -> Figure:
    """The held-out log likelihood after every epoch, below that of the true mixture."""
    figure = Figure(figsize=(0.75 * WIDTH, 3.2), layout="constrained")
    ax = figure.subplots()
    ax.axhline(ceiling, color=INK, linestyle="--", linewidth=1.2, label=f"true mixture: {nats(ceiling)}")
    epochs = run.history["validation_step"] / steps_per_epoch
    ax.plot([0, *epochs], [reached[0], *run.history["validation"][0]], color=COLOURS[0])
    ax.plot(list(reached), list(reached.values()), "o", color=COLOURS[0], label="model; dots have a panel above")
    ax.set(xlabel="epoch", ylabel="nats per row", title="Exact log likelihood of held-out rows")
    ax.xaxis.get_major_locator().set_params(integer=True)
    ax.legend(loc="lower right")
    return figure


def nats(value: float) -> str:
    """A log likelihood as text, with a minus sign that is not a hyphen."""
    return f"{value:.2f} nats".replace("-", "−")


if __name__ == "__main__":
    from ppl import run

    run(main)
