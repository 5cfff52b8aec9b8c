"""The sites of a model as arrays with named dimensions, and their values in many runs. Both engines."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from functools import lru_cache
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float

from inference.compiled import jit
from inference.programs import anatomy, bind, density, joint_density, trace, without_factors
from inference.protocols import Batch, Program
from inference.result import Fit

CHUNK = 2**12  # rows times draws in one call

Values = dict[str, Any]
Shapes = dict[str, tuple[str, tuple[int, ...], dict[int, str]]]  # kind, shape, names of axes that are plates


class Site(NamedTuple):
    """A site of a model.

    Attributes
    ----------
    kind
        ``latent``, ``observed``, ``deterministic`` or ``param``.
    dims
        Names of its axes: plates, else ``NAME_dim_0`` …; ``None`` is the axis over rows.
    size
        Numbers a row, or in all.
    """

    kind: str
    dims: tuple[str | None, ...]
    size: int

    @property
    def local(self) -> bool:
        """Whether it has a value for every row."""
        return None in self.dims


def take(batch: Batch, index: Any) -> Batch:
    """Some rows of a batch."""
    return Batch({n: v[index] for n, v in batch.data.items()}, batch.rows[index], batch.num_data)


def sites(fit: Fit, batch: Batch) -> dict[str, Site]:
    """The sites of the model on a batch of three rows; an axis that is shorter on two of them is the rows'."""
    batch = Batch(batch.data, batch.rows, max(batch.num_data, len(batch)))
    shapes = _pyro_shapes if fit.algorithm.engine == "pyro" else _numpyro_shapes
    two, three = shapes(fit, take(batch, slice(2))), shapes(fit, batch)
    out = {}
    for name, (kind, shape, plates) in three.items():
        grows = [a != b for a, b in zip(shape, two[name][1], strict=True)]
        counter = iter(range(len(shape)))
        dims: list[str | None] = []
        for axis, more in enumerate(grows):
            dims.append(None if more else plates.get(axis) or f"{name}_dim_{next(counter)}")
        size = math.prod(n for n, more in zip(shape, grows, strict=True) if not more)
        out[name] = Site(kind, tuple(dims), size)
    return out


def _numpyro_shapes(fit: Fit, batch: Batch) -> Shapes:
    found: Shapes = {}

    def run(key: Array, batch: Batch) -> None:
        found.update(_shapes(trace(bind(fit.model, batch), key)))

    jax.eval_shape(run, jax.random.key(0), batch)
    return found


def _pyro_shapes(fit: Fit, batch: Batch) -> Shapes:
    from inference import pyro_programs as pyro

    device = fit.algorithm.device
    with pyro.rehearsal(device):
        return _shapes(pyro.trace(pyro.bind(fit.model, batch, device)))


def _shapes(messages: Mapping[str, Any]) -> Shapes:
    """Of what has an array of numbers to show: no plates, factors, or weights of networks."""
    out: Shapes = {}
    for name, message in messages.items():
        kind, value = message["type"], message.get("value")
        hidden = kind == "sample" and type(message["fn"]).__name__ in ("Unit", "_Subsample")
        weights = kind == "param" and (not hasattr(value, "shape") and not np.isscalar(value) or "." in name)
        if kind not in ("sample", "deterministic", "param") or hidden or weights:
            continue
        shape = tuple(np.shape(value))
        frames = [f for f in message["cond_indep_stack"] if f.dim is not None]
        batch_dims = max((-f.dim for f in frames), default=0)
        if kind == "sample" and message["infer"].get("_deterministic"):
            kind = "deterministic"
        elif kind == "sample":
            kind = "observed" if message["is_observed"] else "latent"
            batch_dims = len(shape) - message["fn"].event_dim
        axes = {batch_dims + f.dim: f for f in frames}
        out[name] = kind, shape, {a: f.name for a, f in axes.items() if 0 <= a < len(shape) and shape[a] == f.size}
    return out


def chunked(
    function: Callable[[Values, Array], Mapping[str, Any]], values: Values, count: int, rows: int, seed: int
) -> dict[str, np.ndarray]:
    """``function(values, keys)`` for ``count`` draws, in pieces of equal length (the last wraps around)."""
    keys = jax.random.split(jax.random.key(seed), count)
    pieces = -(-count * rows // CHUNK)
    index = np.resize(np.arange(count), (min(pieces, count), -(-count // min(pieces, count))))
    parts = [function({n: v[i] for n, v in values.items()}, keys[i]) for i in index]
    return {n: np.concatenate([np.asarray(p[n]) for p in parts])[:count] for n in parts[0]}


def run_sites(
    fit: Fit, params: Values, values: Values, count: int, batch: Batch, names: Collection[str], seed: int
) -> dict[str, np.ndarray]:
    """Sites of the model in ``count`` runs, each at its ``values`` ``(count, ...)``; what has none is drawn."""
    if not names:
        return {}
    if fit.algorithm.engine == "pyro":
        return _pyro_runs(fit, params, values, count, batch, names, seed)
    run = _numpyro_runs(fit.model, tuple(names))
    return chunked(lambda v, keys: run(params, v, keys, batch), values, count, len(batch), seed)


@lru_cache(maxsize=32)
def _numpyro_runs(model: Program, names: tuple[str, ...]) -> Callable[..., Values]:
    def run(params: Values, values: Values, key: Array, batch: Batch) -> Values:
        tr = trace(bind(model, batch), key, params | values)
        return {n: tr[n]["value"] for n in names}

    return jit(jax.vmap(run, in_axes=(None, 0, 0, None)))


def _pyro_runs(
    fit: Fit, params: Values, values: Values, count: int, batch: Batch, names: Collection[str], seed: int
) -> dict[str, np.ndarray]:
    import torch

    from inference import pyro_programs as pyro

    device = fit.algorithm.device
    tensors, draws = ({n: pyro.to_tensor(v, device) for n, v in arrays.items()} for arrays in (params, values))
    out: dict[str, list[np.ndarray]] = {n: [] for n in names}
    with pyro.private(seed, tensors, device=device), torch.no_grad():
        thunk = pyro.bind(fit.model, batch, device)
        for s in range(count):
            nodes = pyro.trace(thunk, {n: v[s] for n, v in draws.items()})
            for name in names:
                out[name].append(nodes[name]["value"].cpu().numpy())
    return {n: np.stack(v) for n, v in out.items()}


def row_likelihood(
    fit: Fit, values: Values, count: int, batch: Batch, particles: int, seed: int
) -> tuple[Float[np.ndarray, "draw batch"], Float[np.ndarray, "draw batch"]]:
    """Log likelihood of each row in nats, its latents integrated out, at draws ``(draw, ...)``; and its variance.

    Raises
    ------
    Incompatible
        As the engine's ``row_log_likelihood``.
    """

    def question(v: Values, keys: Array) -> Values:
        if fit.algorithm.engine == "pyro":
            pairs = [_likelihood(fit, {n: u[s] for n, u in v.items()}, k, batch, particles) for s, k in enumerate(keys)]
            rows, variance = (np.stack(p) for p in zip(*pairs, strict=True))
        else:
            rows, variance = _numpyro_likelihood(fit.engine, fit.model, fit.guide, particles)(
                fit.params, v, keys, batch
            )
        return {"rows": rows, "variance": variance}

    out = chunked(question, values, count, len(batch), seed)
    rows, variance = (out[n].reshape(count, len(batch)) for n in ("rows", "variance"))
    return rows, variance


def _likelihood(fit: Fit, values: Values, key: Array, batch: Batch, particles: int) -> tuple[Any, Any]:
    return fit.engine.row_log_likelihood(fit.model, fit.guide, fit.params | values, key, batch, particles)


@lru_cache(maxsize=32)
def _numpyro_likelihood(
    engine: Any, model: Program, guide: Program | None, particles: int
) -> Callable[..., tuple[Array, Array]]:
    def run(params: Values, values: Values, key: Array, batch: Batch) -> tuple[Array, Array]:
        return engine.row_log_likelihood(model, guide, params | values, key, batch, particles)

    return jit(jax.vmap(run, in_axes=(None, 0, 0, None)))


def row_weights(fit: Fit, values: Values, batch: Batch) -> Float[np.ndarray, "draw batch"] | None:
    """log p(x_n, z_n) - log q(z_n | x_n) in nats at draws ``(draw, ...)`` of the rows' latents.

    Discrete latents that the guide leaves out are summed out, whether they have values or not. None where
    the guide samples nothing, or knows the density of its own draws alone (as ``Hamiltonian`` does), or one of the two
    has no density: rows or latents made, or all mass at one value.
    """
    count, pyro = len(next(iter(values.values()))), fit.algorithm.engine == "pyro"
    known = _pyro_latents(fit, batch) if pyro else anatomy(bind(fit.guide, batch)).latent
    values = {n: v for n, v in values.items() if n in known}
    if not values:
        return None
    if pyro:
        return _pyro_weights(fit, values, count, batch)
    parts, guided = anatomy(bind(fit.model, batch)), anatomy(bind(fit.guide, batch))
    if parts.points.intersection(parts.observed) or guided.points.intersection(values):
        return None
    run = _numpyro_weights(fit.model, fit.guide)
    try:
        out = chunked(lambda v, keys: {"weight": run(fit.params, v, keys, batch)}, values, count, len(batch), 0)
    except NotImplementedError:
        return None
    return out["weight"].reshape(count, len(batch))


@lru_cache(maxsize=32)
def _numpyro_weights(model: Program, guide: Program) -> Callable[..., Array]:
    def run(params: Values, values: Values, key: Array, batch: Batch) -> Array:
        thunk, drawn = bind(model, batch), params | values
        parts = anatomy(thunk)
        q = density(without_factors(bind(guide, batch)), key, drawn, parts.plate)
        return joint_density(thunk, key, drawn, parts).rows - q.rows

    return jit(jax.vmap(run, in_axes=(None, 0, 0, None)))


def _pyro_latents(fit: Fit, batch: Batch) -> Collection[str]:
    from inference.pyro_anatomy import anatomy
    from inference.pyro_programs import bind

    return anatomy(bind(fit.guide, batch, fit.algorithm.device), fit.algorithm.device).latent


def _pyro_weights(fit: Fit, values: Values, count: int, batch: Batch) -> np.ndarray:
    import torch

    from inference import pyro_programs as pyro
    from inference.pyro_anatomy import describe
    from inference.pyro_anatomy import without_factors as less_factors
    from inference.pyro_density import at_values
    from inference.pyro_density import density as pyro_density

    device = fit.algorithm.device
    params, draws = ({n: pyro.to_tensor(v, device) for n, v in arrays.items()} for arrays in (fit.params, values))
    out = []
    with pyro.private(0, params, device=device), torch.no_grad():
        thunk, guided = pyro.bind(fit.model, batch, device), pyro.bind(fit.guide, batch, device)
        parts = describe(pyro.trace(thunk))
        for s in range(count):
            drawn = {n: v[s] for n, v in draws.items()}
            q = less_factors(pyro.trace(guided, drawn))
            p = at_values(thunk, params | drawn, parts)
            out.append((p.rows - pyro_density(q, parts.plate).rows).cpu().numpy())
    return np.stack(out)


__all__ = ["Site", "chunked", "row_likelihood", "row_weights", "run_sites", "sites", "take"]
