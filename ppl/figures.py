"""Figures that reports and recipes share: grids of images, histories of bounds, comparisons."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from inference.images import WIDTH, figure, image_panels, image_rows, mosaic

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from inference import Fit
    from inference.compare import Comparison

# Okabe and Ito's colours, told apart by colour-blind readers; without the yellow, too pale for lines.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#444444")
TEN_COLOURS = (*COLOURS, "#8c564b", "#7f3c8d", "#3c8d2f")
INK, PALE, FAINT = "#222222", "#9a9a9a", "#b9d3e6"


@contextmanager
def style() -> Iterator[None]:
    """Matplotlib settings of the reports: light axes, one palette, text that is read without zooming."""
    import matplotlib as mpl
    from cycler import cycler

    settings = {
        "figure.dpi": 100,
        "figure.facecolor": "white",
        "figure.autolayout": True,  # of figures that recipes and ArviZ make
        "font.size": 11,
        "font.family": "sans-serif",
        "axes.prop_cycle": cycler(color=COLOURS),
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.edgecolor": PALE,
        "axes.labelcolor": INK,
        "axes.titlesize": 11.5,
        "axes.titlelocation": "left",
        "axes.titleweight": "semibold",
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.color": "#ececec",
        "legend.frameon": False,
        "lines.linewidth": 1.6,
        "xtick.color": "#555555",
        "ytick.color": "#555555",
        "text.color": INK,
    }
    with mpl.rc_context(settings):
        yield


def history(fits: Mapping[str, Fit]) -> Figure | None:
    """The bound (or log density, for MCMC) over the steps of each fit, a panel each, a line per chain.

    The scale leaves out the first descent where it would flatten the rest. None without histories.
    """
    shown = {n: f for n, f in fits.items() if {"bound", "lp"} & f.history.keys()}
    if not shown:
        return None
    across = min(3, len(shown))
    lines = -(-len(shown) // across)
    fig = figure(WIDTH if across > 1 else 6.0, 2.7 * lines)
    axes = fig.subplots(lines, across, squeeze=False).ravel()
    for i, (ax, (name, run)) in enumerate(zip(axes, shown.items(), strict=False)):
        kind = "bound" if "bound" in run.history else "lp"
        _history(ax, run, kind)
        ax.set_title(name)
        ax.set_ylabel("bound, nats per row" if kind == "bound" else "log density, nats")
        ax.set_xlabel("step" if i >= len(shown) - across else "")
    for ax in axes[len(shown) :]:
        ax.set_axis_off()
    return fig


def _history(ax: Axes, run: Fit, kind: str) -> None:
    values = np.asarray(run.history[kind], float)  # (chain, step)
    steps = np.arange(1, values.shape[1] + 1)
    window = max(1, values.shape[1] // 100)
    for number in reversed(range(len(values))):  # the best restart comes first, and is drawn last
        smooth = np.convolve(values[number], np.ones(window) / window, mode="valid")
        look: dict[str, Any] = {"color": COLOURS[0] if number == 0 else FAINT}
        if kind == "lp":
            look = {"color": COLOURS[number % len(COLOURS)], "alpha": 0.7, "linewidth": 0.9}
        ax.plot(steps[window - 1 :], smooth, marker="o" if len(steps) < 30 else "", markersize=3, **look)
    warmup = getattr(run.algorithm, "num_warmup", 0)
    if warmup:
        ax.axvspan(0, warmup, color="#f1f1f1", zorder=0)
        ax.text(
            warmup / 2, 0.03, "warmup", transform=ax.get_xaxis_transform(), ha="center", color="#777777", fontsize=9
        )
    if "validation" in run.history:
        held_out = np.asarray(run.history["validation"])[0]
        ax.plot(run.history["validation_step"], held_out, color=COLOURS[1], label="held-out rows")
        ax.legend(loc="lower right")
        values = np.concatenate([values.ravel(), held_out])
    settled = values[..., max(warmup, values.shape[-1] // 10) :] if values.ndim == 2 else values
    low, high = np.nanpercentile(settled, 1), np.nanmax(settled)
    spread = max(high - low, 1e-3 * abs(high), 1e-9)
    if np.nanmin(values) < low - spread:
        ax.set_ylim(low - 0.3 * spread, high + 0.1 * spread)
    ax.locator_params(axis="x", nbins=4, integer=True)


def latent_plane(latents: Any, labels: Any) -> Figure:
    """Latents in the plane of their two widest directions, each drawn as its label.

    Parameters
    ----------
    latents
        Shape ``(n, latent_dim)``.
    labels
        Class of each, shape ``(n,)``, a few integers.
    """
    latents, labels = np.asarray(latents, float), np.asarray(labels)
    centred = latents - latents.mean(axis=0)
    _, scales, directions = np.linalg.svd(centred, full_matrices=False)
    plane = centred @ directions[:2].T
    share = scales[:2] ** 2 / np.sum(scales**2)
    fig = figure(WIDTH * 0.75, WIDTH * 0.6)
    ax = fig.subplots()
    classes = np.unique(labels)
    for colour, label in zip(_colours(len(classes)), classes, strict=True):
        x, y = plane[labels == label, :2].T
        ax.scatter(x, y, marker=f"${label}$", s=55, color=colour, linewidths=0.3, alpha=0.85)
    ax.set_xlabel(f"widest direction, {share[0]:.0%} of the variance")
    ax.set_ylabel(f"second widest, {share[1]:.0%}")
    ax.set_aspect("equal", adjustable="datalim")
    return fig


def _colours(count: int) -> Sequence[Any]:
    import matplotlib as mpl

    if count <= len(TEN_COLOURS):
        return TEN_COLOURS[:count]
    return list(mpl.colormaps["turbo"](np.linspace(0, 1, count)))


def comparison(table: Comparison) -> Figure:
    """The comparison as dots: log likelihood with its standard error, the bound, and the gap between."""
    rows = table.rows
    fig = figure(WIDTH * 0.8, 0.42 * len(rows) + 1.0)
    ax = fig.subplots()
    for y, row in enumerate(rows):
        ll = row.log_likelihood
        ax.plot([row.bound, ll.mean], [y, y], color="#d4d4d4", linewidth=8, solid_capstyle="round", zorder=1)
        first = y == 0
        ax.errorbar(
            ll.mean,
            y,
            xerr=2 * np.nan_to_num(ll.standard_error),
            fmt="o",
            color=COLOURS[0],
            markersize=7,
            capsize=3,
            label="log likelihood of these rows, ± 2 standard errors" if first else None,
        )
    bounded = [(row.bound, y) for y, row in enumerate(rows) if not np.isnan(row.bound)]
    if bounded:
        ax.plot(*zip(*bounded, strict=True), "D", color=COLOURS[1], markersize=5.5, label="training bound")
    ax.set_yticks(range(len(rows)), [row.name for row in rows])
    ax.set_ylim(len(rows) - 0.5, -0.5)
    ax.grid(axis="y", visible=False)
    ax.set_xlabel("nats per row; higher is better")
    handles, labels = ax.get_legend_handles_labels()
    order = sorted(range(len(labels)), key=lambda i: labels[i])  # the likelihood first
    fig.legend([handles[i] for i in order], [labels[i] for i in order], loc="outside upper left", ncols=2)
    return fig


__all__ = [
    "COLOURS",
    "WIDTH",
    "comparison",
    "history",
    "image_panels",
    "image_rows",
    "latent_plane",
    "mosaic",
    "style",
]
