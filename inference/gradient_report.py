"""Which estimator: bias, variance, signal and cost of every objective's gradient, at one point, on the same rows.

For each objective, R gradients g_r at the same parameters give, for the model's and for the guide's,

    z        (mean_r g_r - truth) / (sd / sqrt R), the worst component, where the truth is known
    variance sum over components of var_r g_r         (nats² per row², in the parameters' units)
    SNR      |mean_r g_r| / sd over the whole gradient: sqrt(sum mean² / sum variance)
    ms       wall time of one gradient, compiled

The truth is the exact gradient of what the objective estimates, E_q[log w] or E_q[log mean_k w_k], by
summing over every state of the guide's latents (K-tuples of states for a K-sample bound) where there
are few enough; or of a function that the user gives, for conjugate and quadrature cases.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array
from rich.console import Console
from rich.table import Table

from inference.check import check
from inference.compiled import jit
from inference.data import Rows, as_data
from inference.errors import BadData
from inference.objectives import ELBO, IWAE, NVIL, STL, VIMCO, DReG, ReweightedWakeSleep, ScoreFunction
from inference.objectives.importance import log_mean_exp
from inference.objectives.objective import Objective
from inference.objectives.pair import Pair, model_density, pair
from inference.programs import density, on_rows, scaled_rows, trace
from inference.protocols import Batch, Program
from inference.svi import SVI

MAX_TERMS = 2**14  # states, or tuples of states, that are summed over
ALARM = 5.0  # |z| of the worst component above which a gradient is called biased

_ELBOS = (ELBO, STL, ScoreFunction, NVIL)
_K_SAMPLE = (IWAE, DReG, VIMCO)

Params = dict[str, Any]


@dataclass(frozen=True)
class GradientRow:
    """One objective's gradient.

    Attributes
    ----------
    objective
        The objective.
    bound
        Mean of the bound, nats per row.
    z
        Worst component's z-score against the truth, of the model's and the guide's gradient; NaN where
        no truth is known.
    variance, snr
        Of the model's and the guide's gradient per row; NaN for a player without parameters.
    milliseconds
        Of one compiled gradient.
    """

    objective: Any
    bound: float
    z: tuple[float, float]
    variance: tuple[float, float]
    snr: tuple[float, float]
    milliseconds: float

    @property
    def num_particles(self) -> int:
        """K of the objective, 1 where it has none."""
        return getattr(self.objective, "num_particles", 1)


@dataclass(frozen=True)
class GradientReport:
    """Rows of :func:`gradient_report`; prints as a table and plots."""

    rows: tuple[GradientRow, ...]
    num_replicates: int

    def cells(self) -> list[dict[str, str]]:
        """The table as text."""
        return [
            {
                "objective": str(r.objective),
                "bound": f"{r.bound:.3f}",
                "z model": _z(r.z[0]),
                "z guide": _z(r.z[1]),
                "variance model": _number(r.variance[0]),
                "variance guide": _number(r.variance[1]),
                "SNR model": _number(r.snr[0]),
                "SNR guide": _number(r.snr[1]),
                "ms": f"{r.milliseconds:.2f}",
            }
            for r in self.rows
        ]

    def __str__(self) -> str:
        title = f"Gradients per row, {self.num_replicates} draws; z against the exact gradient (worst component)"
        table = Table(title=title, title_justify="left")
        cells = self.cells()
        for name in cells[0]:
            table.add_column(name, justify="left" if name == "objective" else "right", no_wrap=True)
        for row in cells:
            table.add_row(*row.values())
        console = Console(width=150, force_terminal=False, color_system=None)
        with console.capture() as capture:
            console.print(table)
        return capture.get().rstrip() + f"\n\nLeast noise in the guide's gradient for its cost: {self.best}."

    def _repr_html_(self) -> str:
        cells = self.cells()
        head = "".join(f"<th>{name}</th>" for name in cells[0])
        body = "".join("<tr>" + "".join(f"<td>{v}</td>" for v in row.values()) + "</tr>" for row in cells)
        return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"

    @property
    def best(self) -> str:
        """The unbiased objective whose guide's gradient has the largest SNR² per millisecond."""
        fair = [r for r in self.rows if not abs(r.z[1]) > ALARM and not math.isnan(r.snr[1])]
        return str(max(fair, key=lambda r: r.snr[1] ** 2 / r.milliseconds).objective) if fair else "none"

    def plot(self) -> Any:
        """Variance and signal-to-noise ratio against cost; objectives that differ in K alone are joined.

        Returns
        -------
        matplotlib.figure.Figure
        """
        from matplotlib.figure import Figure
        from matplotlib.ticker import StrMethodFormatter

        figure = Figure(figsize=(10, 4.2), layout="constrained")
        panels = figure.subplots(1, 2)
        families: dict[str, list[GradientRow]] = {}
        for row in self.rows:
            families.setdefault(type(row.objective).__name__, []).append(row)
        for name, members in families.items():
            members = sorted(members, key=lambda r: r.num_particles)
            cost = [r.milliseconds for r in members]
            for axes, values in zip(
                panels, ([r.variance[1] for r in members], [r.snr[1] for r in members]), strict=True
            ):
                axes.plot(cost, values, "o-", label=name)
                for r, x, y in zip(members, cost, values, strict=True):
                    axes.annotate(f"K={r.num_particles}", (x, y), xytext=(4, 4), textcoords="offset points", fontsize=8)
        for axes, label in zip(panels, ("variance of the guide's gradient", "signal-to-noise ratio"), strict=True):
            axes.set(xscale="log", yscale="log", xlabel="milliseconds a gradient", ylabel=label)
            axes.margins(x=0.15)
            axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
            axes.xaxis.set_minor_formatter(StrMethodFormatter("{x:.2g}"))
            axes.grid(alpha=0.3)
        panels[0].legend(fontsize=9)
        return figure


def gradient_report(
    model: Program,
    guide: Program,
    objectives: Sequence[Any],
    data: Any,
    *,
    params: Params | None = None,
    exact: Callable[..., Array] | None = None,
    num_replicates: int = 500,
    batch_size: int | None = 100,
    key: int = 0,
) -> GradientReport:
    """Compare the gradient estimators of several objectives for one model and guide.

    Parameters
    ----------
    model, guide
        NumPyro programs.
    objectives
        Objectives of :mod:`inference.objectives`; several K of one kind are joined in the figure.
    data
        Rows as for ``fit``; gradients are of one batch of them.
    params
        Where to compare, by site name in the sites' own spaces, for example ``run.params``; a fresh
        start by default. Baselines that an objective learns start untrained.
    exact
        ``exact(params, objective)``: the value in nats for the whole data set that the objective
        estimates, differentiable, for cases that cannot be enumerated.
    num_replicates
        Gradients drawn per objective.
    batch_size
        Rows of the batch, at most.
    key
        Seed.

    Returns
    -------
    GradientReport
        Prints as a table; ``.plot()`` draws variance and signal against cost.

    Raises
    ------
    Incompatible
        When an objective does not go with the pair.
    BadData
        Without objectives, or with data that cannot be used.
    """
    if isinstance(objectives, Objective):
        objectives = [objectives]
    if not objectives:
        raise BadData("no objectives to compare: give a list, such as [ScoreFunction(), VIMCO(10)].")
    if num_replicates < 2:
        raise BadData(f"num_replicates is {num_replicates}; a variance takes at least 2.")
    source = as_data(data, model, guide)
    rows = source.batch(slice(0, batch_size)) if isinstance(source, Rows) else source.first
    batch = Batch(rows.data, rows.rows, len(rows))  # these rows are the data set: N / B is not what is compared
    for objective in objectives:
        check(model, guide, objective, batch)
    report = [
        _measure(model, guide, objective, batch, params, exact, num_replicates, jax.random.key(key))
        for objective in objectives
    ]
    return GradientReport(tuple(report), num_replicates)


def _measure(
    model: Program,
    guide: Program,
    objective: Any,
    batch: Batch,
    params: Params | None,
    exact: Callable[..., Array] | None,
    count: int,
    key: Array,
) -> GradientRow:
    run = SVI(model, guide, objective, optax.identity())
    start = run.init(key, batch)
    values = run.params(start, batch) | {n: v for n, v in (params or {}).items() if n in start["params"]}
    on_model, on_guide = on_rows(model, batch), on_rows(objective.guide(guide), batch)
    theta = frozenset(_names(trace(lambda: on_model(**batch.data), key)))
    own = frozenset(_names(trace(lambda: on_rows(guide, batch)(**batch.data), key))) - theta
    moving = {n: values[n] for n in values if n in theta | own}
    fixed = {n: v for n, v in values.items() if n not in moving} | start["kept"]
    size = scaled_rows(model, batch)

    def loss(moving: Params, key: Array) -> tuple[Array, Array]:
        out = objective.evaluate(key, moving | fixed, on_model, on_guide, **batch.data)
        return out.loss / size, out.bound / size

    one = jit(jax.grad(loss, has_aux=True))
    keys = jax.random.split(key, count)

    def moments(moving: Params, keys: Array) -> tuple[Params, Params, Array]:
        def add(sums: Any, key: Array) -> tuple[Any, None]:
            gradient, bound = one(moving, key)
            moment = gradient, jax.tree.map(jnp.square, gradient), bound
            return jax.tree.map(jnp.add, sums, moment), None

        zero = jax.tree.map(jnp.zeros_like, moving)
        return jax.lax.scan(add, (zero, zero, jnp.zeros(())), keys)[0]

    first, second, bound = jit(moments)(moving, keys)
    mean = jax.tree.map(lambda v: np.asarray(v, np.float64) / count, first)
    variance = jax.tree.map(
        lambda s, m: np.maximum(np.asarray(s, np.float64) / count - m**2, 0) * count / (count - 1), second, mean
    )

    truth = _truth(objective, model, guide, batch, fixed, moving, exact)
    players = [theta & moving.keys(), own & moving.keys()]
    z = tuple(_worst_z(mean, variance, truth, names, count) for names in players)
    if exact is None and not isinstance(objective, (*_ELBOS, *_K_SAMPLE)):
        z = z[0], float("nan")  # the guide's update is not the gradient of a bound
    spread = tuple(_total(variance, names) for names in players)
    signal = tuple(
        math.sqrt(_total(jax.tree.map(np.square, mean), names) / v) if v > 0 else float("nan")
        for names, v in zip(players, spread, strict=True)
    )
    return GradientRow(objective, float(bound) / count, z, spread, signal, _milliseconds(one, moving, keys))  # pyright: ignore


def _names(tr: Any) -> list[str]:
    return [n for n, s in tr.items() if s["type"] == "param"]


def _milliseconds(one: Any, moving: Params, keys: Array) -> float:
    jax.block_until_ready(one(moving, keys[0]))
    times = []
    for k in keys[:20]:
        begin = time.perf_counter()
        jax.block_until_ready(one(moving, k))
        times.append(time.perf_counter() - begin)
    return 1e3 * float(np.median(times))


def _total(tree: Params, names: frozenset[str]) -> float:
    leaves = jax.tree.leaves({n: tree[n] for n in names})
    return float(sum(np.sum(v) for v in leaves)) if leaves else float("nan")


def _worst_z(mean: Params, variance: Params, truth: Params | None, names: frozenset[str], count: int) -> float:
    if truth is None or not names:
        return float("nan")
    worst = 0.0
    for name in names:
        for m, v, t in zip(*(jax.tree.leaves(tree[name]) for tree in (mean, variance, truth)), strict=True):
            # float32 sums of a gradient are exact to about 1e-5 of it
            error = np.sqrt(v / count) + 1e-5 * (np.abs(t) + np.sqrt(v)) + 1e-7
            z = (m - np.asarray(t)) / error
            worst = max((worst, float(z.flat[np.argmax(np.abs(z))])), key=abs)
    return worst


def _truth(
    objective: Any,
    model: Program,
    guide: Program,
    batch: Batch,
    fixed: Params,
    moving: Params,
    exact: Callable[..., Array] | None,
) -> Params | None:
    """The exact gradient of minus the objective per row, where it can be had."""
    size = scaled_rows(model, batch)
    if exact is not None:
        return jax.grad(lambda p: -exact(p | fixed, objective) / size)(moving)
    kind = 1 if isinstance(objective, _ELBOS) else getattr(objective, "num_particles", 0)
    if not isinstance(objective, (*_ELBOS, *_K_SAMPLE, ReweightedWakeSleep)):
        return None
    bound = enumerated_bound(model, guide, batch, kind)
    return None if bound is None else jit(jax.grad(lambda p: -bound(p | fixed) / size))(moving)


def enumerated_bound(
    model: Program, guide: Program, batch: Batch, num_particles: int
) -> Callable[[Params], Array] | None:
    """E_q[log mean_k w_k] summed over rows as a function of the parameters, by every K-tuple of the guide's states.

    None where the guide has globals, latents that are not finite, or more than 2**14 tuples.
    """
    on_model, on_guide = on_rows(model, batch), on_rows(guide, batch)

    def both_at(params: Params) -> Pair:
        return pair(on_model, on_guide, (), dict(batch.data), params)

    tr = trace(lambda: on_guide(**batch.data), jax.random.key(0))
    first = both_at({n: s["value"] for n, s in tr.items() if s["type"] == "param"})
    latent = first.guide_parts.latent
    if not latent or first.left_out or not set(latent) <= first.parts.local or not set(latent) <= first.parts.discrete:
        return None
    supports = [_event_states(tr[n]["fn"]) for n in latent]
    if any(s is None for s in supports):
        return None
    count = math.prod(len(s) for s in supports if s is not None)
    if count**num_particles > MAX_TERMS:
        return None
    index = np.stack(np.meshgrid(*[np.arange(len(s)) for s in supports], indexing="ij"), -1).reshape(count, -1)  # pyright: ignore
    tuples = np.stack(np.meshgrid(*[np.arange(count)] * num_particles, indexing="ij"), -1).reshape(-1, num_particles)

    def bound(params: Params) -> Array:
        both = both_at(params)

        def state(i: Array) -> tuple[Array, Array]:
            values = {}
            for axis, name in enumerate(latent):
                event = jnp.asarray(supports[axis])[i[axis]]
                values[name] = jnp.broadcast_to(event, tr[name]["value"].shape).astype(tr[name]["value"].dtype)
            q = density(both.guide, jax.random.key(0), values, both.parts.plate).rows
            return model_density(both, jax.random.key(0), values).rows - q, q

        log_w, log_q = jax.lax.map(state, jnp.asarray(index))  # (states, batch)

        def term(chosen: Array) -> Array:
            return jnp.sum(jnp.exp(jnp.sum(log_q[chosen], 0)) * log_mean_exp(log_w[chosen]))

        return both.parts.scale * jnp.sum(jax.lax.map(term, jnp.asarray(tuples)))

    return bound


def _event_states(fn: Any) -> np.ndarray | None:
    """Every value of one event of a finite distribution, (states, *event)."""
    base, event = fn, tuple(fn.event_shape)
    while hasattr(base, "base_dist"):
        base = base.base_dist
    if not base.has_enumerate_support or base.event_dim:
        return None
    points = np.unique(np.asarray(base.enumerate_support(expand=False)))
    length = math.prod(event)
    if len(points) ** length > MAX_TERMS:
        return None
    grid = np.stack(np.meshgrid(*[points] * max(length, 1), indexing="ij"), -1).reshape(-1, max(length, 1))
    return grid.reshape(-1, *event)


def _z(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:+.1f}" + (" biased" if abs(value) > ALARM else "")


def _number(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.3g}"


__all__ = ["GradientReport", "GradientRow", "enumerated_bound", "gradient_report"]
