"""How many latent dimensions? The log likelihood of held-out rows, and the Bayesian information criterion.

    BIC(q) = -2 log p(x | q) + p(q) log N,    p(q) = D q - q (q - 1) / 2 + D + 1

The loadings of probabilistic PCA are known up to a rotation, which takes q (q - 1) / 2 from its parameters p.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure

from inference import EM, fit
from ppl.figures import COLOURS, INK, WIDTH
from ppl.recipe import Result
from ppl_models import PPCA, datasets

TRUE_DIM, COLUMNS = 4, 12


def draw(num_rows: int, seed: int, missing: float) -> Float[np.ndarray, "rows 12"]:
    """Rows near a four-dimensional subspace, some entries NaN, float32."""
    rng = np.random.default_rng(seed)
    basis, _ = np.linalg.qr(rng.normal(size=(COLUMNS, TRUE_DIM)))
    x = rng.normal(size=(num_rows, TRUE_DIM)) * (3.0, 2.0, 1.5, 1.2) @ basis.T + rng.normal(size=(num_rows, COLUMNS))
    return np.where(rng.random(x.shape) < missing, np.nan, x).astype(np.float32)


def main(
    *, num_rows: int = 500, missing: float = 0.2, tolerance: float = 1e-4, largest: int = 60, seed: int = 0
) -> dict[str, Result]:
    """How many latent dimensions, by held-out rows and by BIC.

    Probabilistic PCA with one dimension after the other: of data from a subspace of four dimensions, some
    entries of which are missing, by EM; and of handwritten digits, where EM starts at the closed form. The
    likelihood of the rows that were fitted rises with every dimension; that of held-out rows, and the
    criterion, do not. Both find the four. For the digits (levels 0 to 16 spread evenly over their steps) they
    ask for 55 of 64: one noise variance for all pixels must be as small as that of the pixels at the border,
    which hardly vary, and then nothing else passes for noise.

    Parameters
    ----------
    num_rows
        Rows of the simulated data; as many are held out.
    missing
        Share of their entries that is missing.
    tolerance
        EM stops when a step gains less, in nats per row.
    largest
        Most dimensions tried on the digits, below their 64 pixels.
    seed
        Of the data and the starts.
    """
    simulated = draw(2 * num_rows, seed, missing)
    rng = np.random.default_rng(seed)
    digits = [spread(np.asarray(part.arrays["x"]).reshape(-1, 64), rng) for part in datasets.load("digits")]
    tables = {
        "Simulated, four dimensions": search(simulated[:num_rows], simulated[num_rows:], range(1, 9), tolerance, seed),
        "Digits": search(*digits, [q for q in (5, 10, 20, 30, 40, 50, 55) if q < largest] + [largest], tolerance, seed),
    }
    return {"Held-out log likelihood and BIC": curves(tables)} | tables


def spread(x: Float[np.ndarray, "N D"], rng: np.random.Generator) -> Float[np.ndarray, "N D"]:
    """Levels k / 16 drawn evenly from [k / 17, (k + 1) / 17): a density of discrete values means nothing."""
    return ((16 * x + rng.random(x.shape)) / 17).astype(np.float32)


def search(
    train: np.ndarray, test: np.ndarray, dimensions: Sequence[int], tolerance: float, seed: int
) -> list[dict[str, Any]]:
    """A fit for each number of dimensions, and how good it is."""
    rows = []
    for q in dimensions:
        model = PPCA(q)
        initial = None if np.isnan(train).any() else model.closed_form(train)
        run = fit(EM(model, tolerance=tolerance, initial=initial), train, key=seed)
        rows.append(
            {
                "q": q,
                "parameters": run.model.num_parameters(train.shape[1]),
                "log likelihood, nats per row": run.log_likelihood(train).mean,
                "held out, nats per row": run.log_likelihood(test).mean,
                "BIC / 2N, nats per row": run.bic(train) / 2 / len(train),
            }
        )
    return rows


def curves(tables: dict[str, list[dict[str, Any]]]) -> Figure:
    """Three curves over q for each data set, with the best of two of them marked."""
    figure = Figure(figsize=(WIDTH, 3.8), layout="constrained")
    for ax, (title, table) in zip(figure.subplots(1, len(tables)), tables.items(), strict=True):
        q = [row["q"] for row in table]
        for column, sign, colour in (
            ("log likelihood, nats per row", 1, INK),
            ("held out, nats per row", 1, COLOURS[0]),
            ("BIC / 2N, nats per row", -1, COLOURS[1]),
        ):
            values = [sign * row[column] for row in table]
            ax.plot(q, values, ".-", color=colour, label=("−" if sign < 0 else "") + column.split(",")[0])
            if column != "log likelihood, nats per row":
                ax.plot(q[int(np.argmax(values))], max(values), "o", color=colour, markersize=9)
        ax.set(title=title, xlabel="latent dimensions q", ylabel="nats per row")
        ax.xaxis.get_major_locator().set_params(integer=True)
        ax.legend(loc="lower right")
    return figure


if __name__ == "__main__":
    from ppl import run

    run(main)
