"""What a fit has to show, as groups of arrays with named dimensions. ArviZ's schema, but no ArviZ.

No array holds more than 2**22 numbers, other than draws of global latents, which are all kept, nor takes
more than 2**33 multiplications, counting one a row for each number of the globals and parameters: first
draws are thinned, then rows, evenly.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from functools import lru_cache
from typing import Any, Literal

import jax
import numpy as np

from inference.align import align, invariants, unidentified
from inference.compiled import jit
from inference.data import MASK, Rows, is_mask
from inference.errors import BadData, Incompatible
from inference.estimate import Estimate
from inference.programs import anatomy, bind, has_marginal, trace
from inference.protocols import Batch
from inference.result import Fit, final_bound, kind_of
from inference.sites import Site, chunked, row_likelihood, row_weights, run_sites, sites, take
from inference.surgery import elbo_surgery

MAX_ELEMENTS = 2**22
MAX_WORK = 2**33
POINT_DRAWS = 200  # draws of the rows' latents under a point estimate
PRIOR_DRAWS = 500
PREDICTIVE_DRAWS, MIN_PREDICTIVE_DRAWS = 200, 20
MIN_LIKELIHOOD_DRAWS = 100  # fewer only where there are no more
PARTICLES = 200  # importance draws a row where its latents cannot be integrated exactly; under each of
NOISY_DRAWS, NOISY_PARTICLES = 50, 100  # several draws of the globals, this many of both
SURGERY_ROWS = 500
LOOPED_DRAWS = 1000  # Pyro answers for one draw at a time

Arrays = dict[str, Any]
Kind = Literal["mcmc", "guide", "point"]


@dataclass(frozen=True)
class Group:
    """Variables ``name -> (dims, array)``, coordinates where they are not 0, 1, 2, …, and attributes."""

    variables: dict[str, tuple[tuple[str, ...], Any]] = field(default_factory=dict)
    coords: Mapping[str, Any] = field(default_factory=dict)
    attrs: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class View:
    """The fit, some rows, and draws of the global latents, arrays ``(chain, draw, *event)``."""

    fit: Fit
    kind: Kind
    sites: dict[str, Site]
    row: str  # name of the dimension over rows
    rows: np.ndarray  # row numbers
    num_data: int
    evaluations: int  # rows times draws that may be asked for
    batch: Batch  # those rows
    shape: tuple[int, int]  # chains, draws
    posterior: Arrays
    local: Arrays  # draws of the rows' latents, where MCMC moved them

    @property
    def params(self) -> Arrays:
        """Values of parameters, less those of latents that were estimated under their own names."""
        return {n: v for n, v in self.fit.params.items() if n not in self.sites or self.sites[n].kind == "param"}

    @property
    def weighed(self) -> bool:
        """Whether ``lp`` and ``log_weight`` of a guide's draws are known to be of all rows."""
        mode = self.fit.info["mode"]
        return mode not in ("stream", "host") and (mode != "eager" or self.fit.data is not None)

    def names(self, *kinds: str, local: bool) -> tuple[str, ...]:
        """Sites of these kinds, with or without a value for every row."""
        return tuple(n for n, s in self.sites.items() if s.kind in kinds and s.local == local)

    def size(self, *kinds: str) -> int:
        """Numbers a row of the largest of these sites."""
        return max((self.sites[n].size for n in self.names(*kinds, local=True)), default=1)

    def group(self, arrays: Arrays, leading: Sequence[str] = (), **coords: Any) -> Group:
        """Arrays whose axes after the leading ones are the sites' own."""
        variables = {}
        for name, value in arrays.items():
            ndim = np.ndim(value) - len(leading)
            site = self.sites.get(name)
            dims = site.dims if site and len(site.dims) == ndim else [f"{name}_dim_{i}" for i in range(ndim)]
            variables[name] = (*leading, *(self.row if d is None else d for d in dims)), value
        return Group(variables, {self.row: self.rows} | coords)

    def thin(self, total: int) -> np.ndarray:
        """Numbers of evenly spaced draws, at most ``total`` over all chains."""
        return evenly(self.shape[1], total // self.shape[0])

    def flat(self, index: np.ndarray | slice = slice(None)) -> Arrays:
        """Draws of the globals with chains joined, ``(chain * draw, *event)``."""
        return {n: joined(v[:, index]) for n, v in self.posterior.items()}

    def split(self, arrays: Mapping[str, np.ndarray]) -> Arrays:
        """The chains apart again."""
        return {n: v.reshape(self.shape[0], -1, *v.shape[1:]) for n, v in arrays.items()}

    def run(self, values: Arrays, count: int, batch: Batch, names: Sequence[str], seed: int) -> Arrays:
        """Sites of the model in runs at these values."""
        return run_sites(self.fit, self.params, values, count, batch, names, seed)


def joined(values: np.ndarray) -> np.ndarray:
    """Chains and draws as one axis."""
    return values.reshape(-1, *values.shape[2:])


def evenly(count: int, limit: int) -> np.ndarray:
    """At most ``limit`` of the numbers below ``count``, and at least one."""
    return np.unique(np.linspace(0, count - 1, max(1, min(count, limit))).astype(int))


def view(fit: Fit, rows: Rows) -> View:
    """Choose rows and draws."""
    rows = rows.unweighted()
    found = sites(fit, rows.batch(np.arange(3) % rows.num_data))
    size = max((s.size for s in found.values() if s.kind == "observed" and s.local), default=1)
    kind = kind_of(fit)
    posterior = {n: np.asarray(v) for n, v in fit.draws.posterior.items()}
    if kind != "mcmc":  # restarts are not one posterior: the best alone
        posterior = {n: v[:1] for n, v in posterior.items()}
    repeats = getattr(fit.engine, "point_draws", POINT_DRAWS)
    if kind == "point":
        posterior = {n: np.repeat(v[:, :1], repeats, axis=1) for n, v in posterior.items()}
    shape = next((v.shape[:2] for v in posterior.values()), (1, repeats))
    local = {n: v for n, v in posterior.items() if n in found and found[n].local}
    posterior = {n: v for n, v in posterior.items() if n not in local}
    numbers = sum(v[0, 0].size for v in posterior.values()) + sum(map(np.size, jax.tree.leaves(fit.params)))
    numbers *= getattr(fit.model, "num_evaluations", 1)  # of a network, for a row
    evaluations = min(MAX_ELEMENTS, MAX_WORK // max(numbers, 1))
    limit = min(MAX_ELEMENTS // (MIN_PREDICTIVE_DRAWS * size), evaluations // MIN_LIKELIHOOD_DRAWS)
    kept = evenly(rows.num_data, limit)
    same = fit.data is not None and rows.fingerprint() == fit.data.unweighted().fingerprint()
    local = {n: np.take(v, kept, axis=2 + found[n].dims.index(None)) for n, v in local.items() if same}
    row = "row"
    while row in found:
        row += "_"
    batch = rows.batch(kept)
    return View(fit, kind, found, row, kept, rows.num_data, evaluations, batch, shape, posterior, local)


def posterior_group(view: View) -> Group:
    """Globals, invariants and deterministic sites, and the latents of some rows under each draw; MCMC's aligned."""
    count = view.shape[0] * view.shape[1]
    limit = min(MAX_ELEMENTS // (count * view.size("latent", "deterministic")), view.evaluations // count)
    some = evenly(len(view.rows), limit)
    batch = take(view.batch, some)
    local = {n: np.take(v, some, axis=2 + view.sites[n].dims.index(None)) for n, v in view.local.items()}
    drawn = set(view.names("latent", local=True))
    if drawn - local.keys():
        local |= view.split(_local_draws(view, batch, view.flat() | {n: joined(v) for n, v in local.items()}, drawn))

    known, found = set(view.names("latent", local=False)) <= view.posterior.keys(), drawn <= local.keys()
    attrs = {}
    if view.kind == "mcmc" and unidentified(view.fit.model):
        latents = {n: v for n, v in local.items() if n in drawn}
        aligned = align(view.fit.model, view.posterior, latents, _numbers(view))
        view, attrs = replace(view, posterior=aligned.posterior), {"aligned": aligned.how}
        # Deterministic sites of rows are computed anew, from what is aligned.
        local = aligned.local if known and found else local | aligned.local

    arrays = dict(view.posterior)
    for name in view.names("param", local=False):
        arrays[name] = np.broadcast_to(np.asarray(view.fit.params[name]), view.shape + np.shape(view.fit.params[name]))
    missing = [n for n in view.names("deterministic", local=False) if n not in arrays]
    if known:
        arrays |= view.split(view.run(view.flat(), count, view.batch, missing, 1))
    arrays |= {n: v for n, v in invariants(view.fit.model, arrays).items() if n not in arrays}
    missing = [n for n in view.names("deterministic", local=True) if n not in local]
    if known and found:
        given = view.flat() | {n: joined(v) for n, v in local.items()}
        local |= view.split(view.run(given, count, batch, missing, 3))
    group = view.group(arrays | local, ("chain", "draw"), **{view.row: view.rows[some]})
    return replace(group, attrs=attrs)


def _numbers(view: View) -> list[str]:
    """Latents of rows with the values 0 … K - 1, for K components: their labels."""
    if view.fit.algorithm.engine == "pyro":
        from inference.pyro_anatomy import anatomy as torch_anatomy
        from inference.pyro_programs import bind as torch_bind

        device = view.fit.algorithm.device
        supports = torch_anatomy(torch_bind(view.fit.model, view.batch, device), device).supports
    else:
        supports = anatomy(bind(view.fit.model, view.batch)).supports
    last = [view.posterior[n].shape[2] - 1 for n in getattr(view.fit.model, "exchangeable", ()) if n in view.posterior]
    return [n for n in view.names("latent", local=True) if getattr(supports[n], "upper_bound", None) in last]


def raw_group(view: View) -> Group:
    """MCMC's draws of the sites that :func:`posterior_group` aligns, as they came."""
    moved = unidentified(view.fit.model) if view.kind == "mcmc" else ()
    return view.group({n: view.posterior[n] for n in moved if n in view.posterior}, ("chain", "draw"))


def _local_draws(view: View, batch: Batch, given: Arrays, names: set[str]) -> Arrays:
    fit = view.fit

    def draw(values: Arrays, keys: Any) -> Arrays:
        return fit.engine.local_draws(fit.model, fit.guide, fit.params, values, keys, batch)

    try:
        found = chunked(draw, given, view.shape[0] * view.shape[1], len(batch), 2)
    except Incompatible:  # neither a guide nor enumeration
        return {}
    return {n: v for n, v in found.items() if n in names}


def sample_stats_group(view: View, posterior: Group) -> Group:
    """What the algorithm recorded of each draw, and log weights of the rows' latents under a point estimate."""
    fit = view.fit
    stats = {n: np.asarray(v) for n, v in fit.draws.sample_stats.items()}
    if "n_steps" in stats:  # a tree of depth d has 2**(d - 1) to 2**d - 1 steps
        stats["tree_depth"] = np.floor(np.log2(np.maximum(stats["n_steps"], 1))).astype(int) + 1
    if view.kind != "mcmc":
        stats = {n: v[:1] for n, v in stats.items()}
    if view.kind == "guide" and not view.weighed:
        stats = {n: v for n, v in stats.items() if n not in ("lp", "log_weight")}
    if view.kind == "point":
        stats = {n: np.repeat(v[:, :1], view.shape[1], axis=1) for n, v in stats.items()}
    variables: dict[str, Any] = {n: (("chain", "draw"), v) for n, v in stats.items()}
    drawn = [n for n in view.names("latent", local=True) if n in posterior.variables]
    exact = fit.guide == getattr(fit.model, "posterior", None)
    if view.kind == "point" and fit.guide is not None and drawn and not exact:
        batch = take(view.batch, np.searchsorted(view.rows, posterior.coords[view.row]))
        weights = row_weights(fit, {n: joined(posterior.variables[n][1]) for n in drawn}, batch)
        if weights is not None:
            variables["log_weight"] = ("chain", "draw", view.row), weights[None]
    return Group(variables, posterior.coords)


def log_likelihood_group(view: View) -> Group:
    """Of each row, its latents integrated out, at draws of the globals.

    Raises
    ------
    Incompatible
        When the rows' latents can be neither integrated out nor drawn, or the model has no plate over rows.
    """
    fit, name = view.fit, "_".join(view.names("observed", local=True)) or "rows"
    if view.kind == "point":
        values, _ = row_likelihood(fit, {n: v[:1] for n, v in view.flat().items()}, 1, view.batch, PARTICLES, 7)
        return Group({name: ((view.row,), values[0])}, {view.row: view.rows})
    limit = view.evaluations // len(view.rows)
    index = view.thin(min(limit, LOOPED_DRAWS) if fit.algorithm.engine == "pyro" else limit)
    if _noisy(view):
        index = view.thin(NOISY_DRAWS)
    count = view.shape[0] * len(index)
    values, _ = row_likelihood(fit, view.flat(index), count, view.batch, NOISY_PARTICLES, 7)
    if view.kind == "guide":
        return Group({name: (("guide_draw", view.row), values)}, {view.row: view.rows, "guide_draw": index})
    values = values.reshape(view.shape[0], len(index), len(view.rows))
    return Group({name: (("chain", "draw", view.row), values)}, {view.row: view.rows, "draw": index})


def _noisy(view: View) -> bool:
    """Whether a row's likelihood takes importance draws."""
    if view.fit.algorithm.engine == "numpyro":
        return not has_marginal(view.fit.model, view.batch)
    _, variance = row_likelihood(view.fit, view.flat(slice(1)), view.shape[0], view.batch, NOISY_PARTICLES, 7)
    return bool(variance.any())


def predictive_group(view: View) -> Group:
    """Observed sites drawn anew, the rows' latents from their prior under draws of the globals."""
    fit, rows = view.fit, len(view.rows)
    limit = min(MAX_ELEMENTS // (rows * view.size("observed")), view.evaluations // rows)
    index = view.thin(min(PREDICTIVE_DRAWS, limit))

    def draw(values: Arrays, keys: Any) -> Arrays:
        return fit.engine.predict(fit.model, None, fit.params, values, keys, view.batch, expected=False)

    arrays = chunked(draw, view.flat(index), view.shape[0] * len(index), rows, 4)
    return view.group(view.split(arrays), ("chain", "draw"), draw=index)


def prior_group(view: View) -> Group:
    """Draws of the globals and deterministic sites, where there are globals whose prior is proper and had a part."""
    names = view.names("latent", local=False)
    if not names or not getattr(view.fit.algorithm, "uses_prior", True):
        return Group()
    names += view.names("deterministic", local=False)
    try:
        if view.fit.algorithm.engine == "pyro":
            arrays = view.run({}, PRIOR_DRAWS, view.batch, names, 5)
        else:
            draw = _prior_draws(view.fit.model, names)
            arrays = chunked(lambda _, k: draw(view.params, k, view.batch), {}, PRIOR_DRAWS, len(view.batch), 5)
    except NotImplementedError:  # an improper prior has no draws
        return Group()
    return view.group({n: v[None] for n, v in arrays.items()}, ("chain", "draw"))


@lru_cache(maxsize=32)
def _prior_draws(model: Any, names: tuple[str, ...]) -> Any:
    def draw(params: Arrays, key: Any, batch: Batch) -> Arrays:
        tr = trace(bind(model, batch), key, params)
        return {n: tr[n]["value"] for n in names}

    # Gamma, Dirichlet and Wishart draw by rejection, whose loops take LLVM seconds to optimise, for one use.
    return jit(jax.vmap(draw, in_axes=(None, 0, None)), xla_backend_optimization_level=0)


def data_groups(view: View, predictive: Group) -> tuple[Group, Group]:
    """Observed sites, of the dtype of their replicates and NaN where missing; and inputs that no site observes."""
    names = view.names("observed", local=True) + view.names("observed", local=False)
    observed = {n: v[0] for n, v in view.run({}, 1, view.batch, names, 6).items()}
    data, inputs, holes = {n: np.asarray(v) for n, v in view.batch.data.items()}, {}, {}
    for name, value in data.items():
        if is_mask(name, data):
            continue
        shown = [n for n, v in observed.items() if value.shape == v.shape and np.array_equal(value, v)]
        if not shown:
            inputs[name] = (view.row, *(f"{name}_dim_{i}" for i in range(value.ndim - 1))), value
        if name + MASK in data:
            holes |= dict.fromkeys(shown, ~data[name + MASK])
    for name in observed.keys() & predictive.variables.keys():
        observed[name] = observed[name].astype(predictive.variables[name][1].dtype)
    observed |= {n: np.where(missing, np.nan, observed[n]) for n, missing in holes.items()}  # not the zeros there
    return view.group(observed), Group(inputs, {view.row: view.rows})


def restarts_group(fit: Fit) -> Group:
    """The final bound of each restart, best first."""
    if kind_of(fit) == "mcmc" or fit.num_chains == 1 or "bound" not in fit.history:
        return Group()
    return Group({"bound": (("restart",), final_bound(fit.history["bound"]))}, attrs={"unit": "nats per row"})


def surgery_group(view: View) -> Group:
    """The terms of the ELBO by row, of some rows and with the aggregate posterior of just these."""
    fit = view.fit
    if view.kind != "point" or fit.guide is None or not hasattr(fit.algorithm, "objective"):
        return Group()
    some = evenly(len(view.rows), SURGERY_ROWS)
    try:
        terms = elbo_surgery(fit, {n: np.asarray(v) for n, v in take(view.batch, some).data.items()})
    except Incompatible:
        return Group()
    group = result_group("elbo_surgery", terms)
    return Group(
        {n: ((view.row,), v) for n, (_, v) in group.variables.items()}, {view.row: view.rows[some]}, group.attrs
    )


def result_group(name: str, result: Any) -> Group:
    """Estimates by row, alone or as the fields of a result such as ``Surgery``, with their Monte-Carlo errors.

    Raises
    ------
    BadData
        For anything else.
    """
    parts = {name: result} if isinstance(result, Estimate) else {}
    if is_dataclass(result) and not parts:
        parts = {f.name: getattr(result, f.name) for f in fields(result)}
    found = {n: v for n, v in parts.items() if isinstance(v, Estimate)}
    if not found:
        raise BadData(f"results[{name!r}] is a {type(result).__name__}; expected estimates by row, as of elbo_surgery.")
    rows = {
        n: ("row" if len(v.rows) == len(next(iter(found.values())).rows) else f"{n}_row",) for n, v in found.items()
    }
    attrs = {f"{n}_mc_error": v.mc_error for n, v in found.items()}
    return Group({n: (rows[n], v.rows) for n, v in found.items()}, attrs=attrs | {"unit": "nats per row"})


def machine_group(view: View) -> Group:
    """Free energies along chains of the machine itself, at the fit: how its sampler mixes."""
    if not hasattr(view.fit.engine, "chain_free_energies"):
        return Group()
    found = view.fit.engine.chain_free_energies(view.fit, view.batch.data["x"])
    return Group({"free_energy": (("chain", "draw"), found)}, attrs={"unit": "nats"})
