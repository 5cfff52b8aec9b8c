"""How many components? Predictive checks, PSIS-LOO and BIC over mixtures of one to six Gaussians.

    elpd_loo = sum_n log p(x_n | x_-n),    BIC = -2 log p(x | theta_ML) + (free parameters) log N

The first averages over the posterior and asks for the next row; the second charges the maximum of the
likelihood for its parameters, and tends to twice the negative log evidence up to a constant.
"""

from __future__ import annotations

from typing import Any

import arviz as az
import jax
import numpy as np
import xarray as xr
from jaxtyping import Float
from matplotlib.figure import Figure
from numpyro import handlers
from numpyro.infer import Predictive

from inference import EM, Gibbs, fit
from ppl.figures import COLOURS, FAINT, INK, PALE, WIDTH
from ppl.recipe import Result
from ppl_models import GaussianMixture

MEANS = np.array([[-2.0, -1.0], [0.0, 2.0], [2.0, -1.0]])
SCALES = np.array([[0.9, 0.5], [1.0, 0.6], [0.5, 0.9]])
REPLICATES = 200


def draw(num_rows: int, seed: int) -> Float[np.ndarray, "rows 2"]:
    """Rows of three Gaussians around an empty middle, float32."""
    rng = np.random.default_rng(seed)
    z = rng.integers(0, 3, num_rows)
    return (MEANS[z] + SCALES[z] * rng.normal(size=(num_rows, 2))).astype(np.float32)


def main(
    *, num_rows: int = 150, max_components: int = 6, num_steps: int = 500, num_chains: int = 2, seed: int = 0
) -> dict[str, Result]:
    """Choose how many components a mixture has.

    The prior is checked first: its data sets should be wilder than the data, but not absurd. Then mixtures of
    every size are fitted by Gibbs sampling. A posterior predictive check draws the data anew and compares what
    a model was not fitted to: here the share of rows near the middle, which one Gaussian fills and the data
    leave empty. Leave-one-out cross-validation scores each size by rows it has not seen, and ``az.compare`` says by
    how much sizes differ, with the standard error of the difference. BIC of the best of 20 restarts of EM stands
    beside it.

    A size within about two standard errors of the best is not worse: take the smallest of them. Effective parameters
    far above those that a size has (with two components, 11) say that chains sit in different modes.

    Parameters
    ----------
    num_rows
        Rows drawn from three Gaussians.
    max_components
        Largest size tried.
    num_steps
        Gibbs sweeps kept, a chain.
    num_chains
        Chains.
    seed
        Of the data and the runs.
    """
    x = draw(num_rows, seed)
    sizes = range(1, max_components + 1)
    models = {k: GaussianMixture(k, mean_scale=3.0, scale=0.5) for k in sizes}
    runs = {k: fit(Gibbs(m), x, key=seed, num_steps=num_steps, num_chains=num_chains) for k, m in models.items()}
    found = {k: run.to_arviz() for k, run in runs.items()}
    bic = {k: fit(EM(m), x, key=seed, num_chains=20).bic(x) for k, m in models.items()}

    loo = {k: az.loo(data, pointwise=True) for k, data in found.items()}
    ranking = az.compare({str(k): elpd for k, elpd in loo.items()})
    best = int(ranking.index[0])
    chosen = min(int(k) for k, row in ranking.iterrows() if row["elpd_diff"] <= 2 * row["dse"])
    replicates = {k: data.posterior_predictive["x"] for k, data in found.items()}
    near = {k: middle(joined(rows)) for k, rows in replicates.items()}
    observed = float(middle(x[None])[0])
    prior = prior_predictive(models[chosen], x, seed)
    return {
        "What the data sets look like": panels(x, prior, {k: joined(replicates[k]) for k in sorted({1, chosen})}),
        "How many components": curves(ranking, bic, near, observed),
        "Sizes compared": table(ranking, loo, bic, near, observed),
        "Verdict": f"LOO is highest for {best} components, and the smallest size within two standard errors of it has "
        f"{chosen}. BIC chooses {min(bic, key=lambda k: bic[k])}. The data were drawn from 3.",
        "Mixture": runs[chosen],
    }


def prior_predictive(model: GaussianMixture, x: Float[np.ndarray, "N D"], seed: int) -> Float[np.ndarray, "draw N D"]:
    """Data sets under globals from the prior."""
    predictive = Predictive(handlers.uncondition(model), num_samples=REPLICATES)
    return np.asarray(predictive(jax.random.key(seed), x)["x"])


def joined(rows: xr.DataArray) -> Float[np.ndarray, "draw N D"]:
    """Replicates of all chains, at most as many as REPLICATES."""
    values = rows.values.reshape(-1, *rows.shape[2:])
    return values[:: max(1, len(values) // REPLICATES)]


def middle(x: Float[np.ndarray, "draw N D"]) -> Float[np.ndarray, " draw"]:
    """Share of rows nearer to the mean than half the median distance: 16 % of one round Gaussian."""
    distance = np.linalg.norm(x - x.mean(1, keepdims=True), axis=-1)
    return (distance < np.median(distance, axis=1, keepdims=True) / 2).mean(1)


def table(ranking: Any, loo: dict[int, Any], bic: dict[int, float], near: dict[int, Any], observed: float) -> list:
    """One row for each size; nats, and BIC on its own scale."""
    rows = []
    for k in sorted(loo):
        row = ranking.loc[str(k)]
        rows.append(
            {
                "components": k,
                "elpd_loo": float(row["elpd_loo"]),
                "below the best": f"{row['elpd_diff']:.1f} ± {row['dse']:.1f}",
                "effective parameters": float(row["p_loo"]),
                "largest k-hat": float(loo[k].pareto_k.max()),
                "BIC": bic[k],
                "P(middle ≤ data's)": float((near[k] <= observed).mean()),
            }
        )
    return rows


def panels(x: np.ndarray, prior: np.ndarray, posterior: dict[int, np.ndarray]) -> Figure:
    """Above, the data and replicates under them; below, data sets of the prior, on a wider scale. Pale: the data."""
    figure = Figure(figsize=(WIDTH, 5.8), layout="constrained")
    shown = {"data": x}
    shown |= {f"posterior, {k} component{'s' * (k > 1)}": rows[len(rows) // 2] for k, rows in posterior.items()}
    above = len(shown)
    shown |= {f"prior, draw {i + 1}": prior[i] for i in range(2)}
    shown["prior, 50 draws"] = prior[:50, :20].reshape(-1, 2)
    axes = figure.subplots(2, 3)
    middle_x, middle_y = (x.max(0) + x.min(0)) / 2
    size = (x.max(0) - x.min(0)).max()
    placed = [*axes[0, :above], *axes[1]]
    for i, (ax, (name, rows)) in enumerate(zip(placed, shown.items(), strict=True)):
        ax.plot(*x.T, ".", color=INK if i == 0 else FAINT, markersize=3)
        if i:
            ax.plot(*rows.T, ".", color=COLOURS[0] if i < above else COLOURS[1], markersize=2.5)
        half = size * (0.65 if i < above else 1.3)
        ax.set(xlim=(middle_x - half, middle_x + half), ylim=(middle_y - half, middle_y + half), title=name)
        ax.set_aspect("equal")
    for ax in axes[0, above:]:
        ax.set_axis_off()
    return figure


def curves(ranking: Any, bic: dict[int, float], near: dict[int, np.ndarray], observed: float) -> Figure:
    """Left, both criteria below their best, in nats; right, the share of rows in the middle, replicated."""
    sizes = sorted(bic)
    figure = Figure(figsize=(WIDTH, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    rows = [ranking.loc[str(k)] for k in sizes]
    difference, error = ([row[name] for row in rows] for name in ("elpd_diff", "dse"))
    left.errorbar(
        sizes, [-d for d in difference], yerr=2 * np.array(error), fmt="o-", capsize=3, label="LOO, ± 2 standard errors"
    )
    least = min(bic.values())
    left.plot(sizes, [-(bic[k] - least) / 2 for k in sizes], "D--", color=COLOURS[1], label="BIC / −2")
    left.axhline(0, color=PALE, linewidth=0.8)
    left.set(xlabel="components", ylabel="nats, the best at zero", title="Which size predicts best", xticks=sizes)
    left.legend(loc="lower right")

    right.boxplot([near[k] for k in sizes], positions=sizes, widths=0.6, whis=(2.5, 97.5), showfliers=False)
    right.axhline(observed, color=COLOURS[1], linewidth=1.4, label="data")
    right.set(xlabel="components", ylabel="share of rows in the middle", title="Posterior predictive check")
    right.legend(loc="upper right")
    for line in right.lines[: 6 * len(sizes)]:
        line.set_color(INK)
    return figure


if __name__ == "__main__":
    from ppl import run

    run(main)
