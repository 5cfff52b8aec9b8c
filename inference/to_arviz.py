"""Fits as ArviZ ``InferenceData``, and leave-one-out cross-validation where it means something.

No array holds more than 2**22 numbers, other than draws of global latents, which are all kept: first draws
are thinned, then rows, evenly, and the coordinates ``draw`` and ``row`` say which are left.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib import metadata
from typing import Any, Literal, NamedTuple

import jax
import numpy as np

from inference.errors import BadData, Incompatible
from inference.fit import describe
from inference.programs import bind, trace
from inference.protocols import Batch, Program
from inference.result import Fit

MAX_ELEMENTS = 2**22
POINT_DRAWS = 200  # draws of the local latents under a point estimate
PRIOR_DRAWS = 500
PREDICTIVE_DRAWS, MIN_PREDICTIVE_DRAWS = 200, 20
MIN_LIKELIHOOD_DRAWS = 400  # fewer are kept only where there are no more
PARTICLES = 1000  # importance draws a row, where locals cannot be integrated exactly; with draws of
NOISY_DRAWS, NOISY_PARTICLES = 50, 100  # the globals as well, so many draws of them, and particles under each
CHUNK = 2**14  # rows times draws in one call
K_HAT = 0.7

Arrays = dict[str, Any]


def to_arviz(fit: Fit, data: Any = None) -> Any:
    """The result as an ArviZ ``InferenceData``.

    ================== ==========================================================================
    posterior          global latents and deterministic sites, ``(chain, draw, *event)``: MCMC's chains, or
                       draws from the guide of the best restart. A point estimate (EM, or parameters of a
                       model fitted by SVI) stands in every one of 200 draws; networks are left out. The
                       rows' latents, drawn under each, where the guide or enumeration can.
    sample_stats       what the algorithm recorded: ``lp``, ``diverging``, …; ``log_weight`` = log p - log q
                       of draws from a guide, a number a draw, or ``(chain, draw, row)`` where only the rows
                       have latents; ``pareto_k`` among the attributes
    log_likelihood     of each row, its latents integrated out, nats: ``(chain, draw, row)`` for MCMC,
                       ``(guide_draw, row)`` for draws from a guide, ``(row)`` for a point estimate
    posterior_pre-     observed sites drawn anew, the rows' latents from their prior under each draw of the
    dictive            globals
    prior              500 draws of global latents and deterministic sites
    observed_data,     observed sites, and the inputs that none of them observes
    constant_data
    restarts           final ``bound`` of each, nats per row, best first. They are not chains of one posterior.
    ================== ==========================================================================

    Dimensions are named ``row``, by plates, else ``SITE_dim_0`` …. The dimensions of ``log_likelihood`` keep
    ``az.loo`` from reading what is not a posterior: on a guide's draws or a point estimate it stops with
    ``KeyError: 'chain'``. Use :func:`loo`, or :func:`psis_resample` first.

    Parameters
    ----------
    fit
        What :func:`inference.fit` returned.
    data
        Rows that the groups are about; by default those of the fit.

    Returns
    -------
    arviz.InferenceData
        ``to_netcdf`` writes it. Attributes tell versions, seed, algorithm, seconds, and whether the run was
        interrupted.

    Raises
    ------
    BadData
        When the fit holds no rows (loaded from a file, or fitted to a stream) and none are passed.
    Incompatible
        When the guide has parameters of its own for every training row, and other rows are passed.
    """
    import arviz as az

    view = _view(fit, data)
    posterior = _posterior(view)
    try:
        likelihood = _log_likelihood(view)
    except Incompatible as error:
        likelihood = _Group({}, {}, {"left_out": str(error)})
    groups = {
        "posterior": posterior,
        "sample_stats": _sample_stats(view, posterior),
        "log_likelihood": likelihood,
        "posterior_predictive": _predictive(view),
        "prior": _prior(view),
        **_data_groups(view),
        "restarts": _restarts(fit),
    }
    kept = {n: g.dataset() for n, g in groups.items() if g.variables}
    return az.InferenceData(attrs=_attributes(view, likelihood), **kept)


def loo(fit: Fit, data: Any = None, **options: Any) -> Any:
    """Leave-one-out cross-validation by ``az.loo``: of draws by MCMC, or from a guide after :func:`psis_resample`.

    Parameters
    ----------
    fit
        A result with draws of global latents.
    data
        The rows it was fitted to, where the fit does not hold them. Of more rows than ``to_arviz`` keeps,
        those kept are scored.
    options
        For ``az.loo``, such as ``pointwise=True``.

    Returns
    -------
    arviz.ELPDData
        Expected log predictive density in nats, summed over rows.

    Raises
    ------
    Incompatible
        For a point estimate; for a guide too far from the posterior (k-hat above 0.7); for rows whose
        latents can be neither integrated out nor drawn.

    References
    ----------
    Practical Bayesian Model Evaluation Using Leave-One-Out Cross-Validation and WAIC (Vehtari, Gelman and
    Gabry, 2017); Yes, but Did It Work?: Evaluating Variational Inference (Yao et al., 2018).
    """
    import arviz as az

    if _kind(fit) == "point":
        raise Incompatible(
            f"{type(fit.algorithm).__name__} gave a point estimate, and leave-one-out reweighs posterior draws: a single "
            "value cannot tell how the fit would change without a row. Compare log_likelihood on held-out rows, or "
            "fit with NUTS."
        )
    inference_data = to_arviz(fit, data)
    if "log_likelihood" not in inference_data.groups():
        raise Incompatible(inference_data.attrs["log_likelihood_left_out"])
    if _kind(fit) == "guide":
        inference_data = psis_resample(inference_data)
        options = {"reff": inference_data.sample_stats.attrs["relative_efficiency"]} | options
    return az.loo(inference_data, **options)


def psis_resample(inference_data: Any, seed: int = 0) -> Any:
    """Draws from a guide turned into draws from the posterior, by Pareto-smoothed importance resampling.

    Parameters
    ----------
    inference_data
        Of SVI, with ``log_weight`` for each draw of the global latents.
    seed
        Of the resampling, which is systematic: a draw of weight w comes floor(S w) or ceil(S w) times.

    Returns
    -------
    arviz.InferenceData
        ``posterior``, ``posterior_predictive`` and ``log_likelihood`` resampled, so that ``az.loo`` runs.
        ``sample_stats`` has ``relative_efficiency``, the effective share of draws, among its attributes.

    Raises
    ------
    Incompatible
        Without weights for whole draws; when k-hat is above 0.7, where the weights have no useful mean.

    References
    ----------
    Pareto Smoothed Importance Sampling (Vehtari, Simpson, Gelman, Yao and Gabry, 2024).
    """
    import arviz as az

    stats = inference_data.get("sample_stats", {})
    if "log_weight" not in stats or stats["log_weight"].dims != ("chain", "draw"):
        raise Incompatible(
            "there is no log_weight for each draw: only draws of global latents from a guide (SVI) are resampled. "
            "MCMC draws are from the posterior as they are; a point estimate has none."
        )
    smoothed, k_hat = az.psislw(stats["log_weight"].values.astype(np.float64).ravel())
    if not k_hat <= K_HAT:
        raise Incompatible(
            f"k-hat of the guide's draws is {float(k_hat):.2f}, above {K_HAT}: the guide is too far from the posterior "
            "for importance resampling. Use a richer guide or more steps, or fit with NUTS."
        )
    weights = stats["log_weight"].copy(data=np.exp(smoothed)[None])
    offset = np.random.default_rng(seed).uniform()

    def resample(group: Any) -> Any:
        w = weights.sel(draw=group["draw"]).values[0]
        index = np.searchsorted(np.cumsum(w / w.sum()), (np.arange(len(w)) + offset) / len(w))
        return group.isel(draw=np.minimum(index, len(w) - 1)).assign_coords(draw=np.arange(len(w)))

    out = dict(inference_data.items())
    if "log_likelihood" in out:
        renamed = out["log_likelihood"].rename(guide_draw="draw").expand_dims("chain").assign_coords(chain=[0])
        out["log_likelihood"] = renamed
    for name in {"posterior", "posterior_predictive", "log_likelihood"} & out.keys():
        out[name] = resample(out[name])
    efficiency = 1 / float(np.sum(weights.values**2)) / weights.size
    lp = stats[[n for n in stats.data_vars if n != "log_weight"]]
    out["sample_stats"] = resample(lp).assign_attrs(relative_efficiency=efficiency)
    return az.InferenceData(attrs=inference_data.attrs, **out)


class _Site(NamedTuple):
    """A site of the model: its dimensions, ``None`` standing for the rows, and numbers a row (or in all)."""

    kind: str  # latent, observed, deterministic or param
    dims: tuple[str | None, ...]
    size: int

    @property
    def local(self) -> bool:
        return None in self.dims


@dataclass(frozen=True)
class _Group:
    """Variables ``name -> (dims, array)``, coordinates other than 0, 1, 2, … and attributes."""

    variables: dict[str, tuple[tuple[str, ...], Any]]
    coords: Mapping[str, Any]
    attrs: Mapping[str, Any]

    def dataset(self) -> Any:
        import xarray as xr

        sizes = {d: n for dims, v in self.variables.values() for d, n in zip(dims, np.shape(v), strict=True)}
        coords = {d: np.arange(n) for d, n in sizes.items()} | {d: v for d, v in self.coords.items() if d in sizes}
        return xr.Dataset({n: (d, np.asarray(v)) for n, (d, v) in self.variables.items()}, coords, self.attrs)


@dataclass(frozen=True)
class _View:
    """What the groups are made of: the fit, some rows, and draws of the global latents (chain, draw, *event)."""

    fit: Fit
    kind: Literal["mcmc", "guide", "point"]
    sites: dict[str, _Site]
    row: str  # name of the dimension over rows
    rows: np.ndarray  # row numbers
    num_data: int
    batch: Batch  # those rows
    chains: int
    draws: int
    posterior: Arrays
    local: Arrays  # draws of the rows' latents, where the algorithm drew them

    @property
    def params(self) -> Arrays:
        """Values of parameters, not of latents that an algorithm estimates under their own names."""
        return {n: v for n, v in self.fit.params.items() if n not in self.sites or self.sites[n].kind == "param"}

    def names(self, *kinds: str, local: bool) -> tuple[str, ...]:
        return tuple(n for n, s in self.sites.items() if s.kind in kinds and s.local == local)

    def dims(self, name: str, ndim: int) -> tuple[str, ...]:
        site = self.sites.get(name)
        if site is None or len(site.dims) != ndim:
            return tuple(f"{name}_dim_{i}" for i in range(ndim))
        return tuple(self.row if d is None else d for d in site.dims)

    def variables(self, arrays: Arrays, leading: Sequence[str]) -> dict[str, tuple[tuple[str, ...], Any]]:
        return {n: ((*leading, *self.dims(n, np.ndim(v) - len(leading))), v) for n, v in arrays.items()}

    def thin(self, total: int) -> np.ndarray:
        """Draws of every chain, ``total`` at most over all chains."""
        return _evenly(self.draws, total // self.chains)

    def flat(self, index: np.ndarray | None = None) -> Arrays:
        """Draws of the globals with chains joined, ``(chain * draw, *event)``."""
        return {n: _joined(v if index is None else v[:, index]) for n, v in self.posterior.items()}

    def split(self, arrays: Mapping[str, Any]) -> Arrays:
        """The chains apart again."""
        return {n: np.asarray(v).reshape(self.chains, -1, *np.shape(v)[1:]) for n, v in arrays.items()}


def _joined(values: Any) -> np.ndarray:
    return np.asarray(values).reshape(-1, *values.shape[2:])


def _evenly(count: int, limit: int) -> np.ndarray:
    return np.unique(np.linspace(0, count - 1, max(1, min(count, limit))).astype(int))


def _kind(fit: Fit) -> Literal["mcmc", "guide", "point"]:
    if "diverging" in fit.draws.sample_stats:
        return "mcmc"
    return "guide" if "log_weight" in fit.draws.sample_stats else "point"


def _view(fit: Fit, data: Any) -> _View:
    if data is None and fit.data is None:
        raise BadData(
            "the fit does not hold its rows (it was loaded from a file, or fitted to a stream or to data larger than "
            "memory). Pass them: fit.to_arviz(data)."
        )
    rows = fit.data if data is None else fit._rows(data)
    same = fit.data is not None and rows.fingerprint() == fit.data.fingerprint()
    sites = _sites(fit, rows.batch(np.arange(3) % rows.num_data))
    size = max((s.size for s in sites.values() if s.kind == "observed" and s.local), default=1)
    limit = min(MAX_ELEMENTS // (MIN_PREDICTIVE_DRAWS * size), MAX_ELEMENTS // MIN_LIKELIHOOD_DRAWS)
    kept = _evenly(rows.num_data, limit)

    kind = _kind(fit)
    posterior = {n: np.asarray(v) for n, v in fit.draws.posterior.items()}
    if kind != "mcmc":  # restarts are not one posterior: the best alone
        posterior = {n: v[:1] for n, v in posterior.items()}
    if kind == "point":
        posterior = {n: np.repeat(v[:, :1], POINT_DRAWS, axis=1) for n, v in posterior.items()}
    chains, draws = next((v.shape[:2] for v in posterior.values()), (1, POINT_DRAWS))
    local = {n: v for n, v in posterior.items() if n in sites and sites[n].local}
    posterior = {n: v for n, v in posterior.items() if n not in local}
    if same:
        local = {n: np.take(v, kept, axis=2 + sites[n].dims.index(None)) for n, v in local.items()}
    row = "row"
    while row in sites:
        row += "_"
    batch = rows.batch(kept)
    return _View(
        fit, kind, sites, row, kept, rows.num_data, batch, chains, draws, posterior, local if same else {}
    )


def _sites(fit: Fit, batch: Batch) -> dict[str, _Site]:
    """The sites of the model. An axis over rows is known by being longer with three rows than with two."""
    two, three = _shapes(fit, _take(batch, slice(2))), _shapes(fit, batch)
    out = {}
    for name, (kind, shape, plates) in three.items():
        if name not in two or len(two[name][1]) != len(shape):
            continue
        grows = [a != b for a, b in zip(shape, two[name][1], strict=True)]
        unnamed = iter(range(len(shape)))
        names: list[str | None] = []
        for axis, more in enumerate(grows):
            plate = plates.get(axis)
            while plate in three:  # a dimension may not have a variable's name
                plate += "_plate"
            names.append(None if more else plate or f"{name}_dim_{next(unnamed)}")
        out[name] = _Site(kind, tuple(names), math.prod(n for n, more in zip(shape, grows, strict=True) if not more))
    return out


def _take(batch: Batch, index: Any) -> Batch:
    return Batch({n: v[index] for n, v in batch.data.items()}, batch.rows[index], batch.num_data)


def _shapes(fit: Fit, batch: Batch) -> dict[str, tuple[str, tuple[int, ...], dict[int, str]]]:
    """Kind, shape, and axes that are plates, of each site in a run on this batch."""
    batch = Batch(batch.data, batch.rows, max(batch.num_data, len(batch.rows)))
    if fit.algorithm.engine == "pyro":
        import torch

        from inference import pyro_programs

        with pyro_programs.private(0), torch.no_grad():
            nodes = pyro_programs.trace(pyro_programs.bind(fit.model, batch))
        return {n: _shape(s) for n, s in nodes.items() if _is_site(s)}
    found: dict[str, Any] = {}

    def run(key: Any, batch: Batch) -> None:
        found.update({n: _shape(s) for n, s in trace(bind(fit.model, batch), key).items() if _is_site(s)})

    jax.eval_shape(run, jax.random.key(0), batch)
    return found


def _is_site(message: Any) -> bool:
    """Whether it has an array of numbers to show (so no plates, factors, or networks)."""
    if message["type"] == "param":
        return hasattr(message["value"], "shape") and "." not in message["name"]
    hidden = ("Unit", "_Subsample")
    return message["type"] == "deterministic" or (
        message["type"] == "sample" and type(message["fn"]).__name__ not in hidden
    )


def _shape(message: Any) -> tuple[str, tuple[int, ...], dict[int, str]]:
    shape = tuple(message["value"].shape)
    kind = message["type"]
    frames = [f for f in message["cond_indep_stack"] if f.dim is not None]
    batch_dims = max((-f.dim for f in frames), default=0)
    if kind == "sample" and message["infer"].get("_deterministic"):
        kind = "deterministic"
    elif kind == "sample":
        kind = "observed" if message["is_observed"] else "latent"
        batch_dims = len(shape) - message["fn"].event_dim
    axes = {batch_dims + f.dim: f for f in frames}
    return kind, shape, {a: f.name for a, f in axes.items() if 0 <= a < len(shape) and shape[a] == f.size}


def _run(view: _View, values: Arrays, count: int, batch: Batch, names: Collection[str], seed: int) -> Arrays:
    """Sites of the model in ``count`` runs, one at each of the values ``(count, ...)``; others are drawn."""
    if not names:
        return {}
    if view.fit.algorithm.engine != "pyro":
        run = _compiled(view.fit.model, tuple(names))
        return _chunked(lambda v, k: run(view.params, v, k, batch), values, count, len(batch), seed)
    import torch

    from inference import pyro_programs as programs

    device = getattr(view.fit.algorithm, "device", "cpu")
    tensors = {n: programs.to_tensor(v, device) for n, v in view.params.items()}
    out: dict[str, list[np.ndarray]] = {n: [] for n in names}
    with programs.private(seed, tensors, device=device), torch.no_grad():
        thunk = programs.bind(view.fit.model, batch, device)
        for s in range(count):
            nodes = programs.trace(thunk, {n: programs.to_tensor(v[s], device) for n, v in values.items()})
            for name in names:
                out[name].append(nodes[name]["value"].cpu().numpy())
    return {n: np.stack(v) for n, v in out.items()}


@lru_cache(maxsize=32)
def _compiled(model: Program, names: tuple[str, ...]) -> Callable[..., Arrays]:
    def run(params: Arrays, values: Arrays, key: Any, batch: Batch) -> Arrays:
        tr = trace(bind(model, batch), key, params | values)
        return {n: tr[n]["value"] for n in names}

    return jax.jit(jax.vmap(run, in_axes=(None, 0, 0, None)))


def _chunked(function: Callable[..., Mapping[str, Any]], values: Arrays, count: int, rows: int, seed: int) -> Arrays:
    """``function(values, keys)`` on pieces of equal length (the last wraps around), put together."""
    keys = jax.random.split(jax.random.key(seed), count)
    size = max(1, min(count, CHUNK // rows))
    index = np.resize(np.arange(count), (-(-count // size), size))
    parts = [function({n: v[i] for n, v in values.items()}, keys[i]) for i in index]
    return {n: np.concatenate([np.asarray(p[n]) for p in parts])[:count] for n in parts[0]}


def _posterior(view: _View) -> _Group:
    fit, count = view.fit, view.chains * view.draws
    arrays = dict(view.posterior)
    for name in view.names("param", local=False):
        value = np.asarray(fit.params[name])
        arrays[name] = np.broadcast_to(value, (view.chains, view.draws, *value.shape))

    latent = set(view.names("latent", local=False))
    values = view.flat()
    missing = [n for n in view.names("deterministic", local=False) if n not in arrays]
    if latent <= arrays.keys():
        arrays |= view.split(_run(view, values, count, view.batch, missing, 1))

    names = view.names("latent", "deterministic", local=True)
    size = max((view.sites[n].size for n in names), default=1)
    some = _evenly(len(view.rows), MAX_ELEMENTS // (count * max(size, 1)))
    axes = {n: 2 + view.sites[n].dims.index(None) for n in view.local}
    local = {n: np.take(v, some, axis=axes[n]) for n, v in view.local.items()}
    batch = _take(view.batch, some)
    drawn = set(view.names("latent", local=True))
    if drawn - local.keys():
        given = values | {n: _joined(v) for n, v in local.items()}
        try:
            found = _chunked(
                lambda v, k: fit.engine.local_draws(fit.model, fit.guide, fit.params, v, k, batch), given, count, len(some), 2
            )
            local |= view.split({n: v for n, v in found.items() if n in drawn})
        except Incompatible:  # neither guide nor enumeration
            pass
    missing = [n for n in view.names("deterministic", local=True) if n not in local]
    if latent | drawn <= arrays.keys() | local.keys():
        given = values | {n: _joined(v) for n, v in local.items()}
        local |= view.split(_run(view, given, count, batch, missing, 3))
    variables = view.variables(arrays | local, ("chain", "draw"))
    return _Group(variables, {view.row: view.rows[some]}, _attributes(view))


def _sample_stats(view: _View, posterior: _Group) -> _Group:
    import arviz as az

    fit, attrs = view.fit, {}
    stats = {n: np.asarray(v) for n, v in fit.draws.sample_stats.items()}
    if "n_steps" in stats:  # a tree of depth d has 2**(d - 1) to 2**d - 1 steps
        stats["tree_depth"] = np.floor(np.log2(np.maximum(stats["n_steps"], 1))).astype(int) + 1
    if view.kind != "mcmc":
        stats = {n: v[:1] for n, v in stats.items()}
    if view.kind == "guide":
        attrs["pareto_k"] = float(az.psislw(stats["log_weight"].astype(np.float64).ravel())[1])
    if view.kind == "point":
        stats = {n: np.repeat(v[:, :1], view.draws, axis=1) for n, v in stats.items()}
    variables: dict[str, Any] = {n: (("chain", "draw"), v) for n, v in stats.items()}
    coords = {}
    if view.kind == "point" and fit.guide is not None:
        variables |= _row_weights(view, posterior)
        coords = posterior.coords
    return _Group(variables, coords, attrs)


def _row_weights(view: _View, posterior: _Group) -> dict[str, Any]:
    """log p(x_n, z_n) - log q(z_n) of the draws of the rows' latents: importance weights of one particle."""
    fit = view.fit
    names = [n for n in view.names("latent", local=True) if n in posterior.variables]
    batch = _take(view.batch, np.searchsorted(view.rows, posterior.coords[view.row]))
    if not names or not _row_likelihood(view, {}, batch, 2, 0)[1].any():
        return {}  # no latents, or integrated out exactly
    draws = {n: _joined(posterior.variables[n][1]) for n in names} | view.flat()
    weights = [
        _row_likelihood(view, {n: v[s] for n, v in draws.items()}, batch, 1, s)[0] for s in range(view.draws)
    ]
    return {"log_weight": (("chain", "draw", view.row), np.stack(weights)[None])}


def _row_likelihood(view: _View, values: Arrays, batch: Batch, particles: int, seed: int) -> tuple[Any, Any]:
    fit = view.fit
    parts = [_take(batch, slice(i, i + 4096)) for i in range(0, len(batch), 4096)]
    out = [
        fit.engine.row_log_likelihood(fit.model, fit.guide, fit.params | values, jax.random.key(seed), part, particles)
        for part in parts
    ]
    rows, variance = (np.concatenate([np.asarray(v) for v in group]) for group in zip(*out, strict=True))
    return rows, variance


def _log_likelihood(view: _View) -> _Group:
    observed = view.names("observed", local=True)
    name = "_".join(observed)
    coords = {view.row: view.rows}
    if view.kind == "point":
        at = {n: v[0] for n, v in view.flat().items()}
        rows, _ = _row_likelihood(view, at, view.batch, PARTICLES, 0)
        return _Group({name: ((view.row,), rows)}, coords, {})
    index = view.thin(MAX_ELEMENTS // len(view.rows))
    particles = NOISY_PARTICLES
    if _row_likelihood(view, {n: v[0] for n, v in view.flat().items()}, _take(view.batch, slice(1)), 2, 0)[1].any():
        index = view.thin(NOISY_DRAWS)
    draws = view.flat(index)
    count = view.chains * len(index)
    rows = [_row_likelihood(view, {n: v[s] for n, v in draws.items()}, view.batch, particles, s)[0] for s in range(count)]
    values = np.stack(rows)
    if view.kind == "guide":
        return _Group({name: (("guide_draw", view.row), values)}, coords | {"guide_draw": index}, {})
    dims = ("chain", "draw", view.row)
    return _Group({name: (dims, values.reshape(view.chains, -1, len(view.rows)))}, coords | {"draw": index}, {})


def _predictive(view: _View) -> _Group:
    fit = view.fit
    size = max((view.sites[n].size for n in view.names("observed", local=True)), default=1)
    index = view.thin(min(PREDICTIVE_DRAWS, MAX_ELEMENTS // (len(view.rows) * max(size, 1))))
    arrays = _chunked(
        lambda v, k: fit.engine.predict(fit.model, None, fit.params, v, k, view.batch, expected=False),
        view.flat(index),
        view.chains * len(index),
        len(view.rows),
        4,
    )
    return _Group(view.variables(view.split(arrays), ("chain", "draw")), {view.row: view.rows, "draw": index}, {})


def _prior(view: _View) -> _Group:
    names = view.names("latent", local=False)
    if not names:
        return _Group({}, {}, {})
    names += view.names("deterministic", local=False)
    try:
        arrays = _run(view, {}, PRIOR_DRAWS, view.batch, names, 5)
    except NotImplementedError:  # an improper prior has no draws
        return _Group({}, {}, {})
    return _Group(view.variables({n: np.asarray(v)[None] for n, v in arrays.items()}, ("chain", "draw")), {}, {})


def _data_groups(view: _View) -> dict[str, _Group]:
    names = view.names("observed", local=True) + view.names("observed", local=False)
    observed = {n: np.asarray(v)[0] for n, v in _run(view, {}, 1, view.batch, names, 6).items()}
    coords = {view.row: view.rows}
    inputs = {}
    for name, array in view.batch.data.items():
        value = np.asarray(array)
        if not any(value.shape == o.shape and np.array_equal(value, o) for o in observed.values()):
            inputs[name] = ((view.row, *(f"{name}_dim_{i}" for i in range(value.ndim - 1))), value)
    return {
        "observed_data": _Group(view.variables(observed, ()), coords, {}),
        "constant_data": _Group(inputs, coords, {}),
    }


def _restarts(fit: Fit) -> _Group:
    if _kind(fit) == "mcmc" or fit.num_chains == 1 or "bound" not in fit.history:
        return _Group({}, {}, {})
    # The mean of the last steps, by which they are ordered: a single bound of SVI is noisy.
    return _Group({"bound": (("restart",), fit.history["bound"][:, -50:].mean(axis=1))}, {}, {"unit": "nats per row"})


def _attributes(view: _View, likelihood: _Group | None = None) -> dict[str, Any]:
    """Plain text and numbers only: netCDF takes nothing else."""
    fit = view.fit
    engine, backend = ("pyro-ppl", "torch") if fit.algorithm.engine == "pyro" else ("numpyro", "jax")
    versions = {"arviz_version": "arviz", f"{backend}_version": backend, "ppl_models_version": "ppl-models"}
    return {
        "inference_library": engine,
        "inference_library_version": _version(engine),
        **{n: _version(v) for n, v in versions.items()},
        "algorithm": describe(fit.algorithm),
        "seed": np.ravel(fit.info["seed"]).astype(np.int64),
        "num_steps": int(fit.info["num_steps"]),
        "sampling_time": float(fit.info["seconds"]),
        "interrupted": int(fit.info["interrupted"]),
        "num_data": view.num_data,
        **({f"log_likelihood_{n}": v for n, v in likelihood.attrs.items()} if likelihood else {}),
    }


def _version(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return "unknown"


__all__ = ["loo", "psis_resample", "to_arviz"]
