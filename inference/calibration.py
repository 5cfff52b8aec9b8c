"""The outcome of simulation-based calibration: a table, a verdict and a figure.

Ranks of a calibrated algorithm are uniform. Each quantity's are tested at once over all of (0, 1), and the
level is shared among quantities, so that the stated false-alarm rate is that of the whole verdict.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from html import escape
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, Int
from rich.console import Console
from rich.table import Table

from inference import uniformity

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, eq=False)
class Calibration:
    """Ranks of the truth among posterior draws; prints as a table, ``plot()`` draws them.

    Attributes
    ----------
    title
        Algorithm and model.
    quantities
        Names of the scalars that were ranked.
    ranks
        Rank of the truth, as a share of the draws with ties broken at random: uniform on (0, 1) when calibrated.
    num_draws
        Draws that each simulation's ranks are among; of MCMC, thinned to half the smallest effective sample size.
    false_alarm
        Chance that a calibrated algorithm has any quantity rejected.
    seconds
        Wall time, compiling included.
    """

    title: str
    quantities: tuple[str, ...]
    ranks: Float[np.ndarray, "simulation quantity"]
    num_draws: Int[np.ndarray, " simulation"]
    false_alarm: float
    seconds: float

    @cached_property
    def p_values(self) -> Float[np.ndarray, " quantity"]:
        """Of the exact simultaneous test that the ranks are uniform (:mod:`inference.uniformity`)."""
        return np.array([uniformity.p_value(u) for u in self.ranks.T])

    @property
    def level(self) -> float:
        """A quantity is rejected at this p-value: ``false_alarm`` shared among all (Bonferroni)."""
        return self.false_alarm / len(self.quantities)

    @property
    def rejected(self) -> tuple[str, ...]:
        """Quantities whose ranks are not uniform."""
        return tuple(n for n, p in zip(self.quantities, self.p_values, strict=True) if p <= self.level)

    @property
    def calibrated(self) -> bool:
        """Whether no quantity is rejected."""
        return not self.rejected

    def cells(self) -> list[dict[str, str]]:
        """The table as text: mean and standard deviation of the ranks, p-value, verdict."""
        return [
            {
                "quantity": name,
                "mean rank": f"{u.mean():.3f}",
                "sd / uniform": f"{u.std() * 12**0.5:.2f}",
                "p-value": f"{p:.2g}",
                "verdict": "ok" if p > self.level else _fault(u),
            }
            for name, u, p in zip(self.quantities, self.ranks.T, self.p_values, strict=True)
        ]

    @property
    def summary(self) -> str:
        """The verdict in a sentence."""
        count = len(self.quantities)
        verdict = "no quantity" if self.calibrated else f"{len(self.rejected)} of {count} quantities"
        return (
            f"{verdict} rejected at p <= {self.level:.2g}, family-wise false-alarm rate {self.false_alarm:g}. "
            f"{len(self.ranks)} simulations, median {np.median(self.num_draws):.0f} draws each, {self.seconds:.1f} s."
        )

    def __str__(self) -> str:
        table = Table()
        rows = self.cells()
        for name in rows[0]:
            table.add_column(name, justify="left" if name in ("quantity", "verdict") else "right", no_wrap=True)
        for row in rows:
            table.add_row(*row.values())
        console = Console(width=150, force_terminal=False, color_system=None)
        with console.capture() as capture:
            console.print(table)
        return f"Simulation-based calibration of {self.title}\n{capture.get()}{self.summary}"

    def _repr_html_(self) -> str:
        rows = self.cells()
        head = "".join(f"<th>{escape(name)}</th>" for name in rows[0])
        body = "".join("<tr>" + "".join(f"<td>{escape(v)}</td>" for v in row.values()) + "</tr>" for row in rows)
        caption = f"<caption>{escape(self.title)}: {escape(self.summary)}</caption>"
        return f"<table>{caption}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"

    def plot(self) -> Figure:
        """Distribution function of the ranks less the uniform one, a panel for each quantity.

        A curve leaves its band exactly when the quantity is rejected. A slope up, then down and up again (an S)
        is a posterior too narrow; a curve below zero, draws that are too low.
        """
        from matplotlib.figure import Figure

        count, num = len(self.quantities), len(self.ranks)
        across = min(4, count)
        lines = -(-count // across)
        figure = Figure(figsize=(2.4 * across + 0.6, 1.9 * lines + 0.6), layout="constrained")
        axes = figure.subplots(lines, across, squeeze=False, sharex=True, sharey=True).ravel()
        z = uniformity.points(num)
        low, high = uniformity.band(num, self.level)
        for ax, name, u, p in zip(axes, self.quantities, self.ranks.T, self.p_values, strict=False):
            ax.fill_between(z, low - z, high - z, color="#dddddd", linewidth=0)
            ax.axhline(0, color="#9a9a9a", linewidth=0.8)
            grid = np.concatenate([[0], np.sort(u), [1]])
            height = np.concatenate([[0], np.arange(1, num + 1) / num, [1]])
            colour = "#D55E00" if p <= self.level else "#0072B2"
            ax.plot(grid, height - grid, color=colour, linewidth=1.4, drawstyle="steps-post")
            ax.set_title(f"{name}, p = {p:.2g}", fontsize=9, loc="left", color=colour)
            ax.tick_params(labelsize=8)
        for ax in axes[count:]:
            ax.set_axis_off()
        for ax in axes[max(0, count - across) : count]:  # the lowest of their columns
            ax.tick_params(labelbottom=True)
        figure.supxlabel("rank of the truth among the draws", fontsize=9)
        figure.supylabel("share of ranks below, less uniform", fontsize=9)
        return figure


def _fault(u: np.ndarray) -> str:
    """How the draws differ from the posterior, by whichever of the ranks' mean and variance is further off."""
    root = len(u) ** 0.5
    shift = (u.mean() - 0.5) * 12**0.5 * root
    spread = (((u - 0.5) ** 2).mean() - 1 / 12) * 180**0.5 * root  # var (u - 1/2)² = 1/180
    if abs(shift) > abs(spread):
        return "draws too low" if shift > 0 else "draws too high"
    return "draws too narrow" if spread > 0 else "draws too wide"


__all__ = ["Calibration"]
