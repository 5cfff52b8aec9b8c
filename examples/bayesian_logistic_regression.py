"""Bayesian logistic regression: the mode of the posterior beside the posterior, and what each predicts.

    w ~ N(0, s² I),    b ~ N(0, s²),    y_n ~ Bernoulli(1 / (1 + exp(-x_n·w - b)))

There is no latent variable of a row: everything unknown is shared by all rows.

    MAP          p(y | x) = p(y | x, w*),           w* = argmax p(w | data)
    full Bayes   p(y | x) = E[p(y | x, w)]          over p(w | data), or over q(w)
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
from jaxtyping import Array, Float, Int
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from guides import Delta, MeanField
from inference import NUTS, SVI, Fit, compare, fit
from inference.objectives import ELBO
from ppl.figures import COLOURS, INK, PALE, WIDTH
from ppl.recipe import Result

TRUE_WEIGHTS, TRUE_BIAS = np.array([1.5, -1.0]), 0.5
PRIOR_SCALE = 3.0  # s
EDGE, POINTS = 10.0, 81  # the predictions are drawn on so many points each way, up to the edge
BINS = np.linspace(0, 1, 11)  # of predicted probabilities

Data = dict[str, np.ndarray]


def draw(rng: np.random.Generator, num_rows: int) -> Data:
    """Standard normal features, and labels from the true weights."""
    x = rng.normal(size=(num_rows, 2)).astype(np.float32)
    return {"x": x, "y": (rng.random(num_rows) < truth(x)).astype(np.int32)}


def truth(x: Float[np.ndarray, "rows 2"]) -> Float[np.ndarray, " rows"]:
    """The true probability of the label 1."""
    return 1 / (1 + np.exp(-x @ TRUE_WEIGHTS - TRUE_BIAS))


def logistic(x: Float[Array, "rows 2"], y: Int[Array, " rows"] | None = None, num_data: int | None = None) -> None:
    """The model."""
    weights = numpyro.sample("weights", dist.Normal(jnp.zeros(x.shape[1]), PRIOR_SCALE).to_event(1))
    bias = numpyro.sample("bias", dist.Normal(0.0, PRIOR_SCALE))
    with numpyro.plate("data", num_data or len(x), subsample_size=len(x)):
        numpyro.sample("y", dist.Bernoulli(logits=x @ weights + bias), obs=y)


def main(
    *, num_rows: int = 10, num_steps: int = 2000, num_draws: int = 1000, num_test: int = 4000, seed: int = 0
) -> dict[str, Result]:
    """MAP beside full Bayes: how sure a classifier should be far from its data.

    A logistic regression learns from a few rows in the plane: by the mode of the posterior (MAP), a
    mean-field guide and NUTS. All draw nearly the same line between the classes. But MAP is as sure of its
    line as if it had been told: its contours are parallel, and a few steps away it is certain. The average
    over the posterior knows that other lines fit too: its contours fan out, and far from the data it stays
    unsure wherever those lines differ. MAP pays for its certainty in the log score of held-out rows. On one
    small data set luck may decide, but averaged over data sets from the prior no prediction scores higher
    than full Bayes.

    The mean-field guide leaves out that both slopes grow together, and so is sure of the steepness.

    Parameters
    ----------
    num_rows
        Rows to learn from.
    num_steps
        Gradient steps of MAP and of the mean-field guide.
    num_draws
        Kept draws of each of four NUTS chains.
    num_test
        Held-out rows.
    seed
        Of the data and the runs.
    """
    rng = np.random.default_rng(seed)
    train, test = draw(rng, num_rows), draw(rng, num_test)
    adam = optax.adam(optax.cosine_decay_schedule(0.05, num_steps))
    fits = {
        "MAP": fit(SVI(logistic, Delta(logistic), ELBO(), adam), train, key=seed, num_steps=num_steps),
        "mean-field": fit(
            SVI(logistic, MeanField(logistic), ELBO(num_particles=10), adam), train, key=seed, num_steps=num_steps
        ),
        "NUTS": fit(NUTS(logistic, num_warmup=num_draws), train, key=seed, num_steps=num_draws, num_chains=4),
    }
    predicted = {name: probability(run, test["x"]) for name, run in fits.items()}
    scores = [score(name, p, test["y"]) for name, p in (predicted | {"true weights": truth(test["x"])}).items()]
    return {
        "Predictions": (
            contours(fits, train),
            "Probability of the label 1 far beyond the rows that were learned from, which are the dots.",
        ),
        "Log score of held-out rows": compare(list(fits.values()), test, list(fits)),
        "Calibration on held-out rows": (
            scores,
            "Confidence is the mean of max(p, 1 - p): calibrated, it equals the accuracy. Calibration error is the "
            "mean over rows of |predicted - observed| frequency, in ten bins.",
            reliability(predicted, test["y"]),
        ),
        "The posterior of the weights": weights(fits),
        **fits,
    }


def probability(run: Fit, x: Float[np.ndarray, "rows 2"]) -> Float[np.ndarray, " rows"]:
    """The predictive probability of the label 1: the likelihood's mean, averaged over draws of the weights."""
    blank = np.zeros(len(x), np.int32)
    return np.asarray(run.reconstruct({"x": x.astype(np.float32), "y": blank}, num_samples=500)["y"], np.float64)


def score(name: str, p: Float[np.ndarray, " rows"], y: Int[np.ndarray, " rows"]) -> dict[str, float | str]:
    """Accuracy, confidence and how far probabilities are from frequencies."""
    share, predicted, observed = frequencies(p, y)
    return {
        "": name,
        "accuracy": float(np.mean((p > 0.5) == y)),
        "confidence": float(np.maximum(p, 1 - p).mean()),
        "calibration error": float(share @ abs(predicted - observed)),
        "Brier score": float(np.mean((p - y) ** 2)),
        "log score, nats per row": float(np.mean(np.log(np.where(y == 1, p, 1 - p)))),
    }


def frequencies(
    p: Float[np.ndarray, " rows"], y: Int[np.ndarray, " rows"]
) -> tuple[Float[np.ndarray, " bins"], Float[np.ndarray, " bins"], Float[np.ndarray, " bins"]]:
    """Share of the rows, mean prediction and frequency of the label 1, of each bin that has rows."""
    bins = np.clip(np.digitize(p, BINS) - 1, 0, len(BINS) - 2)
    count = np.bincount(bins, minlength=len(BINS) - 1)
    used = count > 0
    predicted, observed = (np.bincount(bins, v, len(BINS) - 1)[used] / count[used] for v in (p, y))
    return count[used] / len(p), predicted, observed


def contours(fits: dict[str, Fit], train: Data) -> Figure:
    """Predictive probabilities over the plane, far beyond the data."""
    axis = np.linspace(-EDGE, EDGE, POINTS)
    grid = np.stack(np.meshgrid(axis, axis), -1).reshape(-1, 2)
    figure = Figure(figsize=(WIDTH, 3.7), layout="constrained")
    axes = figure.subplots(1, len(fits), sharex=True, sharey=True)
    levels = np.array([0, 0.02, 0.1, 0.3, 0.5, 0.7, 0.9, 0.98, 1])
    for ax, (name, run) in zip(axes, fits.items(), strict=True):
        p = probability(run, grid).reshape(POINTS, POINTS)
        filled = ax.contourf(axis, axis, p, levels, cmap="RdBu_r", vmin=0, vmax=1, alpha=0.75)
        ax.contour(axis, axis, p, levels[1:-1], colors=INK, linewidths=0.6)
        (w1, w2), b = TRUE_WEIGHTS, TRUE_BIAS
        ax.axline((0, -b / w2), slope=-w1 / w2, color=INK, linestyle="--", label="true probability ½")
        for label, colour in enumerate((COLOURS[0], COLOURS[1])):
            rows = train["x"][train["y"] == label]
            ax.plot(*rows.T, "o", color=colour, markeredgecolor="white", markersize=4.5, label=f"y = {label}")
        ax.set(title=name, xlabel="x₁", aspect="equal", xlim=(-EDGE, EDGE), ylim=(-EDGE, EDGE))
        ax.grid(False)
    axes[0].set_ylabel("x₂")
    bar = figure.colorbar(filled, ax=axes, ticks=levels, shrink=0.8, label="probability of y = 1")
    bar.ax.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, markerscale=1.4)
    return figure


def reliability(predicted: dict[str, Float[np.ndarray, " rows"]], y: Int[np.ndarray, " rows"]) -> Figure:
    """Observed against predicted frequencies; dots are as large as their share of the rows."""
    figure = Figure(figsize=(0.6 * WIDTH, 4.4), layout="constrained")
    ax = figure.subplots()
    ax.plot([0, 1], [0, 1], color=PALE, linestyle="--", label="calibrated")
    for (name, p), colour in zip(predicted.items(), COLOURS, strict=False):
        share, expected, observed = frequencies(p, y)
        ax.plot(expected, observed, color=colour, label=name)
        ax.scatter(expected, observed, s=20 + 400 * share, color=colour, alpha=0.6, linewidths=0)
    ax.set(xlabel="predicted probability of y = 1", ylabel="frequency of y = 1 in held-out rows", aspect="equal")
    ax.set_title("Ten bins of predictions")
    ax.legend(loc="upper left")
    return figure


def weights(fits: dict[str, Fit]) -> Figure:
    """Draws of NUTS and of the mean-field guide, and the mode."""
    figure = Figure(figsize=(WIDTH, 4.2), layout="constrained")
    axes = figure.subplots(1, 2)
    drawn = {name: fits[name].draws.posterior for name in ("NUTS", "mean-field")}
    mode = fits["MAP"].params
    for ax, label, pair in (
        (axes[0], ("w₁", "w₂"), lambda w, b: (w[..., 0], w[..., 1])),
        (axes[1], ("w₁", "b"), lambda w, b: (w[..., 0], b)),
    ):
        for (name, draws), colour in zip(drawn.items(), (COLOURS[4], COLOURS[1]), strict=True):
            x, y = (np.ravel(v)[:: max(1, np.size(v) // 1000)] for v in pair(draws["weights"], draws["bias"]))
            ax.plot(x, y, ".", color=colour, markersize=3, alpha=0.5, label=f"{name}, 1,000 draws")
        ax.plot(*pair(mode["weights_value"], mode["bias_value"]), "*", color=INK, markersize=13, label="MAP")
        ax.plot(
            *pair(TRUE_WEIGHTS, TRUE_BIAS), "P", color="white", markeredgecolor=INK, markersize=9, label="true weights"
        )
        ax.set(xlabel=label[0], ylabel=label[1])
    handles, labels = axes[0].get_legend_handles_labels()
    legend = figure.legend(handles, labels, loc="outside lower center", ncols=4)
    for handle in legend.legend_handles[:2]:
        handle.set(markersize=8, alpha=1)
    return figure


if __name__ == "__main__":
    from ppl import run

    run(main)
