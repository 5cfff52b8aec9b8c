"""NUTS on one mixture with its labels summed out: effective samples per second, NumPyro engine against Pyro engine.

The same model file, data, warmup, draws and step-size target; both through ``fit``. Effective samples
are the fewest over the weights, means and precisions; seconds are those of the whole run, warmup
included, compiling excluded for NumPyro by a first run that is thrown away (Pyro does not compile).

    python benchmarks/nuts_vs_pyro.py
"""

from __future__ import annotations

import numpy as np
import pyro
import tyro
from rich.console import Console
from rich.table import Table

from inference import NUTS, Fit, PyroNUTS, fit
from inference.posterior_error import diagnose_site
from ppl_models import GaussianMixture


def main(rows: int = 200, num_warmup: int = 200, num_draws: int = 300, num_chains: int = 2) -> None:
    """Sample both and print the ratio.

    Args:
        rows: Rows of data, two columns, three clusters.
        num_warmup: Steps of adaptation a chain.
        num_draws: Draws kept a chain.
        num_chains: Chains.
    """
    rng = np.random.default_rng(0)
    centres = np.array([[-4.0, 0.0], [0.0, 3.0], [4.0, 0.0]])
    x = (centres[rng.integers(0, 3, rows)] + rng.normal(size=(rows, 2))).astype(np.float32)
    options = {"num_steps": num_draws, "num_chains": num_chains}
    ours = NUTS(GaussianMixture(3, "diag", scale=1.0), num_warmup=num_warmup)
    theirs = PyroNUTS(GaussianMixture(3, "diag", scale=1.0, ppl=pyro), num_warmup=num_warmup)
    fit(ours, x, key=1, **options)  # compiles
    runs = {
        "NUTS (NumPyro)": fit(ours, x, key=0, **options),
        "PyroNUTS": fit(theirs, x, key=0, **options),
    }
    table = Table(title=f"Gaussian mixture, {rows} rows, K = 3, {num_chains} chains of {num_warmup} + {num_draws}")
    for column in ("", "seconds", "fewest effective samples", "R-hat", "ESS per second"):
        table.add_column(column, justify="right")
    rates = []
    for name, run in runs.items():
        ess, r_hat = summary(run)
        rates.append(ess / run.info["seconds"])
        table.add_row(name, f"{run.info['seconds']:.1f}", f"{ess:.0f}", f"{r_hat:.3f}", f"{rates[-1]:.2f}")
    Console().print(table)
    print(f"NUTS gives {rates[0] / rates[1]:.0f} times as many effective samples a second as PyroNUTS.")


def summary(run: Fit) -> tuple[float, float]:
    """Fewest effective samples and largest R-hat over the free sites."""
    sites = [diagnose_site(run.draws.posterior[n]) for n in ("weights", "means", "precisions")]
    return min(s[0] for s in sites), max(s[1] for s in sites)


if __name__ == "__main__":
    tyro.cli(main)
