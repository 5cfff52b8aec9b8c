"""Several fits side by side, in one table and one figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from inference.align import identified
from inference.check import program_name
from inference.errors import BadData, Incompatible
from inference.estimate import Estimate
from inference.posterior_error import Error, errors, monte_carlo_error, still, worst
from inference.result import Fit, final_bound, kind_of

NAN = float("nan")


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
        MCMC only: the worst over what the model identifies (:func:`inference.align.identified`), so that a
        chain that switches labels does not count as unconverged.
    spread
        Standard deviation of the final bound between restarts. Restarts are not draws of one
        posterior, so they have no R-hat.
    seconds
        Wall time of the run.
    bound_on
        What the bound is below: ``evidence``, log p(x), or ``likelihood``, log p(x) at the estimates, which the
        log likelihood of EM attains.
    raw_ess_per_second, raw_r_hat
        The same over the draws as they came.
    errors
        Of each identified quantity, against the longest MCMC run of the same model.
    reference
        Whether this is that run, and others are compared with it.
    quantities
        Draws ``(chain, draw, *event)`` of the identified quantities.
    """

    name: str
    bound: float
    log_likelihood: Estimate
    ess_per_second: float
    r_hat: float
    spread: float
    seconds: float
    bound_on: str = ""
    raw_ess_per_second: float = NAN
    raw_r_hat: float = NAN
    errors: Mapping[str, Error] = field(default_factory=dict)
    reference: bool = False
    quantities: Mapping[str, np.ndarray] = field(default_factory=dict, repr=False, compare=False)

    @property
    def gap(self) -> float:
        """Log likelihood of the data compared on, less the training bound, in nats per row.

        On the training rows this is what the bound loses; on held-out rows it also holds what the fit
        loses on new data, and may be negative.
        """
        return self.log_likelihood.mean - self.bound

    @property
    def mean_error(self) -> float:
        """The largest error of a mean over the quantities, in the reference's standard deviations."""
        return max((e.mean for e in self.errors.values() if not np.isnan(e.mean)), default=NAN)

    @property
    def sd_error(self) -> float:
        """The error of a standard deviation that is largest in size, a log ratio; quantities without one left out."""
        return max((e.sd for e in self.errors.values() if not np.isnan(e.sd)), key=abs, default=NAN)

    def cells(self) -> dict[str, str]:
        """The row as text."""
        ll = self.log_likelihood
        return {
            "algorithm": self.name,
            "log-likelihood": f"{'≥ ' if ll.is_bound else ''}{ll.mean:.3f} ± {ll.standard_error:.3f}",
            "MC error": "exact" if not ll.variance.any() else f"{ll.mc_error:.3f}",
            "bound": _text(self.bound, ".3f"),
            "on": self.bound_on if np.isfinite(self.bound) and self.bound_on else "–",
            "gap": _text(self.gap, "z.3f"),
            "mean error": "reference" if self.reference else _text(self.mean_error, ".3f"),
            "sd error": _text(self.sd_error, "+z.3f"),
            "R-hat": _text(self.r_hat, ".3f"),
            "(raw)": _text(self.raw_r_hat, ".3f"),
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

    def cells(self) -> list[dict[str, str]]:
        """The rows as text, without the columns that apply to none of them."""
        cells = [row.cells() for row in self.rows]
        shown = [name for name in cells[0] if {row[name] for row in cells} != {"–"}]
        return [{name: row[name] for name in shown} for row in cells]

    def notes(self) -> str:
        """What the columns shown mean, beyond their names."""
        shown, text = self.cells()[0], []
        for reference in (row for row in self.rows if row.reference):
            noise = np.array([monte_carlo_error(v) for v in reference.quantities.values()])
            known = noise[np.isfinite(noise)]
            text.append(
                "Mean error (in posterior standard deviations) and sd error (a log ratio): of the worst quantity, "
                f"against {reference.name}"
                + (f", whose own Monte-Carlo error is {known.max():.3f}." if len(known) else ".")
            )
        for row in self.rows:
            bad = [name for name, draws in row.quantities.items() if np.isnan(draws).any()]
            if bad:
                text.append(f"{row.name} has draws of {bad} that are not numbers.")
        if "(raw)" in shown:
            text.append("R-hat and ESS: the worst of what the model identifies; (raw): R-hat of all sites as drawn.")
        return " ".join(text)

    def table(self) -> Table:
        """As a rich table."""
        cells = self.cells()
        table = Table(
            title="Nats per row; higher is better",
            title_justify="left",
            caption=f"\n{self.notes()}" if self.notes() else None,
            caption_justify="left",
            box=box.SIMPLE_HEAD,
            padding=(0, 1, 0, 0),
            pad_edge=False,
            show_edge=False,
        )
        for name in cells[0]:
            named = name == "algorithm"  # where width is short names are folded, and no number is cut
            table.add_column(name, justify="left" if named else "right", no_wrap=not named, overflow="fold")
        for row in cells:
            table.add_row(*row.values())
        return table

    def plot_forest(self, var_names: Sequence[str] | None = None, **options: Any) -> Any:
        """Posterior means and intervals of the identified quantities, the algorithms side by side.

        Parameters
        ----------
        var_names
            Quantities to show; by default those that all rows have, else all. Of a large one eight
            evenly spaced elements are shown.
        options
            For ``az.plot_forest``, such as ``hdi_prob=0.9``.

        Returns
        -------
        matplotlib.figure.Figure
            Median, quartiles and 94% interval of each; a point estimate is a dot.

        Raises
        ------
        BadData
            When no row has such a quantity.
        """
        from inference.to_arviz import forest

        return forest([(row.name, row.quantities) for row in self.rows], var_names, **options)

    def __str__(self) -> str:
        console = Console(width=150, force_terminal=False, color_system=None)
        with console.capture() as capture:
            console.print(self.table())
        return "\n".join(line.rstrip() for line in capture.get().rstrip().splitlines())

    def _repr_html_(self) -> str:
        cells = self.cells()
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
        Bound and what it is on, log likelihood with errors, gap; error of posterior means and standard
        deviations against the MCMC run of the same model with the most draws, ESS per second and R-hat
        (MCMC); spread between restarts (the others), and seconds. ``plot_forest`` draws them.
    """
    if isinstance(fits, Fit):
        fits = [fits]
    if not fits:
        raise BadData("nothing to compare: give at least one fit.")
    labels = list(names) if names is not None else [label(f) for f in fits]
    if len(labels) != len(fits):
        raise BadData(f"{len(labels)} names for {len(fits)} fits; expected as many names as fits.")
    rows = [summarise(f, data, n, num_particles) for f, n in zip(fits, labels, strict=True)]
    longest = [_longest(run.model, fits) for run in fits]
    for i, run in enumerate(longest):
        if run == i:
            rows[i] = replace(rows[i], reference=longest.count(i) > 1)
        elif run is not None:
            rows[i] = replace(rows[i], errors=errors(rows[i].quantities, rows[run].quantities))
    return Comparison(tuple(rows))


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
    quantities, seconds = identified(run), run.info["seconds"]
    row = Row(name, NAN, likelihood, NAN, NAN, NAN, seconds, quantities=quantities)
    if "bound" in run.history:
        last = final_bound(run.history["bound"])
        spread = float(np.std(last, ddof=1)) if len(last) > 1 else NAN
        bound_on = "evidence" if kind_of(run) == "guide" else "likelihood"
        draws = run.draws.posterior.values() if bound_on == "evidence" else ()
        joint = bool(draws) and all(still(np.asarray(v)[0]) for v in draws)
        # Of a point guide it is the log joint density there, which bounds nothing.
        row = replace(row, bound=NAN if joint else float(last[0]), spread=spread, bound_on=bound_on)
    if kind_of(run) == "mcmc":
        ess, r_hat = worst(quantities)
        row = replace(row, ess_per_second=ess / seconds, r_hat=r_hat)
        if quantities.keys() != run.draws.posterior.keys():
            ess, r_hat = worst(run.draws.posterior)
            row = replace(row, raw_ess_per_second=ess / seconds, raw_r_hat=r_hat)
    return row


def _longest(model: Any, fits: Sequence[Fit]) -> int | None:
    """Which fit is the MCMC run of this model, whichever steps it has, with the most draws."""
    chains = [i for i, f in enumerate(fits) if kind_of(f) == "mcmc" and _program(f.model) == _program(model)]
    return max(chains, key=lambda i: fits[i].draws.sample_stats["diverging"].size, default=None)


def _program(model: Any) -> Any:
    """What a program with other steps, such as ``model.mean_field``, is a program of."""
    return getattr(model, "model", model)


__all__ = ["Comparison", "Row", "compare", "label", "summarise"]
