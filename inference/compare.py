"""Several fits of one model side by side, in one table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpyro.diagnostics import effective_sample_size, split_gelman_rubin
from rich.console import Console
from rich.table import Table

from inference.check import program_name
from inference.errors import BadData, Incompatible
from inference.result import Estimate, Fit, final_bound


@dataclass(frozen=True)
class Row:
    """One fit in the table. Nats are per row of data; what does not apply is NaN.

    Attributes
    ----------
    name
        Algorithm and objective.
    bound
        The training bound at the end (a log likelihood for EM), mean of the last steps.
    log_likelihood
        Of the data compared on, with errors.
    ess_per_second, r_hat
        MCMC only: the worst over all global latents.
    spread
        Standard deviation of the final bound between restarts. Restarts are not draws of one
        posterior, so they have no R-hat.
    seconds
        Wall time of the run.
    """

    name: str
    bound: float
    log_likelihood: Estimate
    ess_per_second: float
    r_hat: float
    spread: float
    seconds: float

    @property
    def gap(self) -> float:
        """Log likelihood of the data compared on, less the training bound, in nats per row.

        On the training rows this is what the bound loses; on held-out rows it also holds what the fit
        loses on new data, and may be negative.
        """
        return self.log_likelihood.mean - self.bound

    def cells(self) -> dict[str, str]:
        """The row as text."""
        ll = self.log_likelihood
        return {
            "algorithm": self.name,
            "log-likelihood": f"{ll.mean:.3f} ± {ll.standard_error:.3f}",
            "MC error": "exact" if not ll.variance.any() else f"{ll.mc_error:.3f}",
            "bound": _text(self.bound, ".3f"),
            "gap": _text(self.gap, ".3f"),
            "R-hat": _text(self.r_hat, ".3f"),
            "ESS/s": _text(self.ess_per_second, ",.1f"),
            "spread": _text(self.spread, ".3f"),
            "seconds": f"{self.seconds:.1f}",
        }


def _text(value: float, form: str) -> str:
    return "–" if np.isnan(value) else format(value, form)


@dataclass(frozen=True)
class Comparison:
    """Rows of :func:`compare`; prints as a table and shows as one in notebooks."""

    rows: tuple[Row, ...]

    def table(self) -> Table:
        """As a rich table."""
        table = Table(title="Nats per row; higher is better", title_justify="left")
        cells = [row.cells() for row in self.rows]
        for name in cells[0]:
            table.add_column(name, justify="left" if name == "algorithm" else "right", no_wrap=True)
        for row in cells:
            table.add_row(*row.values())
        return table

    def __str__(self) -> str:
        console = Console(width=150, force_terminal=False, color_system=None)
        with console.capture() as capture:
            console.print(self.table())
        return capture.get().rstrip()

    def _repr_html_(self) -> str:
        cells = [row.cells() for row in self.rows]
        head = "".join(f"<th>{name}</th>" for name in cells[0])
        body = "".join("<tr>" + "".join(f"<td>{v}</td>" for v in row.values()) + "</tr>" for row in cells)
        return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def compare(
    fits: Sequence[Fit], data: Any, names: Sequence[str] | None = None, *, num_particles: int = 1000
) -> Comparison:
    """Put fits on the same data into one table.

    Parameters
    ----------
    fits
        Results of ``fit``, of models of the same data.
    data
        Rows whose log likelihood is compared (held-out rows, if there are any).
    names
        Labels; by default the model, algorithm and objective.
    num_particles
        Importance draws a row where the likelihood is not exact.

    Returns
    -------
    Comparison
        Bound, log likelihood with errors, gap, ESS per second and R-hat (MCMC), spread between
        restarts (the others), and seconds.
    """
    if isinstance(fits, Fit):
        fits = [fits]
    if not fits:
        raise BadData("nothing to compare: give at least one fit.")
    labels = list(names) if names is not None else [label(f) for f in fits]
    if len(labels) != len(fits):
        raise BadData(f"{len(labels)} names for {len(fits)} fits; expected as many names as fits.")
    return Comparison(tuple(summarise(f, data, n, num_particles) for f, n in zip(fits, labels, strict=True)))


def label(run: Fit) -> str:
    """A short name: model, algorithm, objective."""
    objective = getattr(run.algorithm, "objective", None)
    inside = program_name(run.model) + ("" if objective is None else f", {objective}")
    return f"{type(run.algorithm).__name__}({inside})"


def summarise(run: Fit, data: Any, name: str, num_particles: int = 1000) -> Row:
    """One row of the table."""
    try:
        likelihood = run.log_likelihood(data, num_particles)
    except Incompatible as error:
        raise Incompatible(f"{name}: {error}") from None
    nan = float("nan")
    bound = spread = ess = r_hat = nan
    if "bound" in run.history:
        last = final_bound(run.history["bound"])
        bound = float(last[0])
        spread = float(np.std(last, ddof=1)) if len(last) > 1 else nan
    if "diverging" in run.draws.sample_stats:
        sizes, rhats = zip(*(diagnose_site(v) for v in run.draws.posterior.values()), strict=True)
        ess, r_hat = float(np.nanmin(sizes)) / run.info["seconds"], float(np.nanmax(rhats))
    return Row(name, bound, likelihood, ess, r_hat, spread, run.info["seconds"])


def diagnose_site(draws: Any) -> tuple[float, float]:
    """The smallest effective sample size and largest R-hat of a site; constant elements are skipped."""
    draws = np.asarray(draws, np.float64)
    moving = draws.std(axis=(0, 1)) > 0
    if draws.shape[1] < 4 or not np.any(moving):
        return float("nan"), float("nan")
    draws = draws[..., moving] if draws.ndim > 2 else draws
    return float(np.min(effective_sample_size(draws))), float(np.max(split_gelman_rubin(draws)))
