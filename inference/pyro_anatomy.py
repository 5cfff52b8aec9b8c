"""What a run of a Pyro program shows: its sites, plates, parameters; as in :mod:`inference.programs`."""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
import torch
from pyro.poutine.subsample_messenger import _Subsample

from inference.programs import Anatomy
from inference.protocols import Batch, Program
from inference.pyro_programs import Nodes, Thunk, bind, rehearsal, to_torch, trace


def anatomy(thunk: Thunk, device: str = "cpu") -> Anatomy:
    """Run once, on parameters of its own, and describe the sites."""
    with rehearsal(device):
        return describe(trace(thunk))


def sample_sites(nodes: Nodes) -> dict[str, Any]:
    """The sites with a density: neither plates nor deterministic ones."""
    return {
        n: s
        for n, s in nodes.items()
        if s["type"] == "sample" and not isinstance(s["fn"], _Subsample) and not s["infer"].get("_deterministic")
    }


def without_factors(nodes: Nodes) -> dict[str, Any]:
    """The sites less factors: those of a guide are terms of the objective, and no part of q's density."""
    return {n: s for n, s in sample_sites(nodes).items() if not isinstance(s["fn"], dist.Unit)}


def describe(nodes: Nodes) -> Anatomy:
    """What a trace shows of a program."""
    samples = sample_sites(nodes)
    latent = {n: s for n, s in samples.items() if not s["is_observed"]}
    observed = {n: s for n, s in samples.items() if s["is_observed"] and not isinstance(s["fn"], dist.Unit)}
    frames = {n: tuple(f for f in s["cond_indep_stack"] if f.vectorized) for n, s in samples.items()}
    plates = {f.name: (f.full_size or f.size, f.size) for stack in frames.values() for f in stack}
    plate = _data_plate([{f.name: f.dim for f in frames[n]} for n in observed], plates)
    params = {n: s for n, s in nodes.items() if s["type"] == "param"}
    return Anatomy(
        plate=plate,
        plates=plates,
        latent=tuple(latent),
        local=frozenset(n for n in latent if plate in {f.name for f in frames[n]}),
        observed=tuple(observed),
        discrete=frozenset(n for n, s in latent.items() if s["fn"].support.is_discrete),
        enumerable=frozenset(n for n, s in latent.items() if _is_enumerable(s["fn"])),
        pathwise=frozenset(n for n, s in latent.items() if s["fn"].has_rsample),
        frames={n: tuple(f.name for f in stack) for n, stack in frames.items()},
        shapes={n: tuple(s["fn"].shape()) for n, s in samples.items()},
        values={n: tuple(s["value"].shape) for n, s in samples.items()},
        factors=tuple(n for n, s in samples.items() if isinstance(s["fn"], dist.Unit)),
        supports={n: _support(s["fn"]) for n, s in samples.items() if not isinstance(s["fn"], dist.Unit)},
        event_dims={n: s["fn"].event_dim for n, s in samples.items()},
        params=tuple(params),
        param_plates={
            n: tuple(f.name for f in s["cond_indep_stack"])
            for n, s in params.items()
            if s["kwargs"].get("event_dim") is not None
        },
        nesting=max((-f.dim for stack in frames.values() for f in stack), default=0),
        deterministic=tuple(n for n, s in nodes.items() if s["type"] == "sample" and s["infer"].get("_deterministic")),
        mutable=(),
        points=frozenset(n for n, s in latent.items() if isinstance(_base_of(s["fn"]), dist.Delta)),
        weighted=frozenset(n for n, s in samples.items() if getattr(s["scale"], "ndim", 0)),
    )


def _base_of(fn: Any) -> Any:
    """The distribution inside masks and reinterpreted dimensions."""
    while isinstance(fn, (dist.Independent, dist.MaskedDistribution)):
        fn = fn.base_dist
    return fn


def _is_enumerable(fn: Any) -> bool:
    """Whether a site is one variable with finitely many values: ``Bernoulli.to_event(1)`` is a product of many."""
    return fn.has_enumerate_support and fn.event_dim == _base_of(fn).event_dim


def _data_plate(stacks: list[dict[str, int]], plates: dict[str, tuple[int, int]]) -> str | None:
    """The plate over rows: shared by all observed sites; subsampled if one is, else the outermost."""
    if not stacks:
        return None
    shared = set(stacks[0]).intersection(*stacks)
    subsampled = {n for n in shared if plates[n][0] != plates[n][1]}
    return min(subsampled or shared, key=lambda name: stacks[0][name], default=None)


def _support(fn: Any) -> Any:
    """The support of a distribution, ``None`` where it is not known.

    A point mass lies wherever it is put, and torch calls the image of an affine map the whole line.
    """
    if isinstance(fn, dist.Delta):
        return None
    base, last = fn, None
    while hasattr(base, "base_dist") and not hasattr(base, "transforms"):
        base = base.base_dist
    transforms = list(getattr(base, "transforms", ()))
    while transforms:
        last = transforms[-1]
        transforms = list(getattr(last, "parts", ())) or list(filter(None, [getattr(last, "base_transform", None)]))
    if isinstance(last, torch.distributions.AffineTransform):
        return None
    return fn.support


def row_params(model: Program, guide: Program, batch: Batch, device: str = "cpu") -> list[str]:
    """Parameters of the guide that have a value for every row of the data."""
    ours, theirs = (anatomy(bind(program, batch, device), device) for program in (model, guide))
    return [n for n, plates in theirs.param_plates.items() if ours.plate in plates]


def row_plates(program: Program, batch: Batch, device: str = "cpu") -> frozenset[str]:
    """The plates over rows: those that grow when the arguments have one more row."""
    batch = to_torch(batch, device)

    def more(value: Any) -> Any:
        return torch.cat([value, value[-1:]])

    larger = Batch({n: more(v) for n, v in batch.data.items()}, more(batch.rows), batch.num_data + 1)
    now, then = (anatomy(bind(program, b, device), device).plates for b in (batch, larger))
    return frozenset(name for name, size in now.items() if then.get(name) != size)
