"""Running a Pyro program: on a store and generators of its own, the loop's rows in its data plate.

The counterpart of :mod:`inference.programs`, under the same names (log densities are in
:mod:`inference.pyro_density`). Nothing here leaves a trace behind: Pyro's global parameter store, the modules of ``pyro.module`` and
the generators of torch, NumPy and Python are as they were when a run is over.
"""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import jax
import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from pyro.poutine.subsample_messenger import _Subsample
from torch import Tensor
from torch.distributions import constraints

from inference.programs import Anatomy, scaled_rows, takes
from inference.protocols import Batch, Program

Thunk = Callable[[], Any]
Nodes = Mapping[str, Any]  # name -> message, of a trace


class _Rows(Messenger):
    """Give the data plate the rows that the loop chose, in place of a permutation drawn by the plate."""

    def __init__(self, rows: Tensor, num_data: int):
        self.rows, self.num_data = rows, num_data
        super().__init__()

    def _pyro_sample(self, msg: Any) -> None:
        fn = msg["fn"]
        if isinstance(fn, _Subsample) and msg["value"] is None:
            if (fn.size, fn.subsample_size) == (self.num_data, len(self.rows)):
                msg["value"] = self.rows


class _Substitute(Messenger):
    """Give sites their values and leave them latent (``poutine.condition`` would call them observed)."""

    def __init__(self, values: Mapping[str, Any]):
        self.values = values
        super().__init__()

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] in self.values:
            msg["value"], msg["done"] = self.values[msg["name"]], True


class _Lend(Messenger):
    """``pyro.module`` lets a module compute with its own tensors: lend it the run's, take the gradients back."""

    def __enter__(self) -> Any:
        self.lent: dict[str, tuple[Any, Tensor, Tensor | None]] = {}
        return super().__enter__()

    def _pyro_param(self, msg: Any) -> None:
        name, *start = msg["args"]
        store = pyro.get_param_store()
        if start and isinstance(start[0], torch.nn.Parameter) and name in store and name not in self.lent:
            self.lent[name] = (start[0], start[0].data, start[0].grad)
            start[0].grad = None
            start[0].data = dict(store.named_parameters())[name].data

    def __exit__(self, *error: Any) -> Any:
        values = dict(pyro.get_param_store().named_parameters())
        for name, (weight, data, grad) in self.lent.items():
            gradient, value = weight.grad, values[name]
            weight.grad = None
            weight.data, weight.grad = data, grad
            if gradient is not None:
                value.grad = gradient if value.grad is None else value.grad + gradient
        return super().__exit__(*error)


@contextmanager
def private(
    seed: int,
    params: Mapping[str, Tensor] | None = None,
    constraint: Mapping[str, Any] | None = None,
    device: str = "cpu",
) -> Iterator[dict[str, Any]]:
    """Seed the generators and put ``params`` into an empty store, for the time of the context.

    Values are unconstrained ones if ``constraint`` says what they become, else they are used as
    they are. The store's state is yielded, and up to date when the context has ended.
    """
    params = dict(params or {})
    state: Any = {"params": params, "constraints": dict(constraint or dict.fromkeys(params, constraints.real))}
    target = torch.device(device)
    on_cpu = target.type == "cpu"
    kind = "cuda" if on_cpu else target.type
    generators = random.getstate(), np.random.get_state()
    try:
        with (
            torch.random.fork_rng(devices=[] if on_cpu else [target], device_type=kind),
            pyro.get_param_store().scope(state),
            _Lend(),
            nullcontext() if on_cpu else target,
        ):
            pyro.set_rng_seed(seed)
            yield state
    finally:
        random.setstate(generators[0])
        np.random.set_state(generators[1])


def seed_of(key: Any) -> int:
    """A torch seed that is a function of a JAX key."""
    entropy = np.asarray(jax.random.key_data(key)).ravel().tolist()
    return int(np.random.SeedSequence(entropy).generate_state(1)[0])


def to_tensor(value: Any, device: str = "cpu") -> Tensor:
    """An array as a tensor on the device, without a copy where memory can be shared; integers are int64."""
    if not isinstance(value, Tensor):
        shared = isinstance(value, jax.Array) and value.is_fully_addressable and len(value.devices()) == 1
        if shared and next(iter(value.devices())).platform == "cpu":
            value = torch.from_dlpack(value)
        else:
            value = torch.as_tensor(np.array(value))
    return value.to(device, torch.int64 if value.dtype == torch.int32 else value.dtype)


def to_torch(batch: Batch, device: str = "cpu") -> Batch:
    """The batch with tensors for arrays."""
    data: Any = {n: to_tensor(v, device) for n, v in batch.data.items()}
    rows: Any = to_tensor(batch.rows, device)
    return Batch(data, rows, batch.num_data)


def bind(program: Program, batch: Batch, device: str = "cpu") -> Thunk:
    """The program on these rows: its arguments supplied, its data plate given the rows."""
    batch = to_torch(batch, device)
    arguments: dict[str, Any] = dict(batch.data)
    if takes(program, "num_data"):
        arguments["num_data"] = batch.num_data

    def run() -> Any:
        with _Rows(batch.rows, batch.num_data):  # pyright: ignore[reportArgumentType]
            return program(**arguments)

    return run


def substitute(thunk: Thunk, values: Mapping[str, Any]) -> Thunk:
    """The program with these sites at these values."""

    def run() -> Any:
        with _Substitute(values):
            return thunk()

    return run


def trace(thunk: Thunk, values: Mapping[str, Any] | None = None) -> Nodes:
    """Run once with these site values; to be called inside :func:`private`."""
    return poutine.trace(substitute(thunk, values or {})).get_trace().nodes


def anatomy(thunk: Thunk) -> Anatomy:
    """Run once, on parameters of its own, and describe the sites."""
    with rehearsal():
        return describe(trace(thunk))


@contextmanager
def rehearsal(device: str = "cpu") -> Iterator[None]:
    """A private run for the sake of its structure: of its numbers, drawn from the prior, no warning is due."""
    with private(0, device=device), torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def sample_sites(nodes: Nodes) -> dict[str, Any]:
    """The sites with a density: neither plates nor deterministic ones."""
    return {
        n: s
        for n, s in nodes.items()
        if s["type"] == "sample" and not isinstance(s["fn"], _Subsample) and not s["infer"].get("_deterministic")
    }


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
        enumerable=frozenset(n for n, s in latent.items() if s["fn"].has_enumerate_support),
        pathwise=frozenset(n for n, s in latent.items() if s["fn"].has_rsample),
        frames={n: tuple(f.name for f in stack) for n, stack in frames.items()},
        shapes={n: tuple(s["value"].shape) for n, s in samples.items()},
        supports={n: _support(s["fn"]) for n, s in samples.items() if not isinstance(s["fn"], dist.Unit)},
        event_dims={n: s["fn"].event_dim for n, s in samples.items()},
        params=tuple(params),
        param_plates={
            n: tuple(f.name for f in s["cond_indep_stack"])
            for n, s in params.items()
            if s["kwargs"].get("event_dim") is not None
        },
        nesting=max((-f.dim for stack in frames.values() for f in stack), default=0),
        deterministic=tuple(
            n for n, s in nodes.items() if s["type"] == "sample" and s["infer"].get("_deterministic")
        ),
    )


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


def row_params(model: Program, guide: Program, batch: Batch) -> list[str]:
    """Parameters of the guide that have a value for every row of the data."""
    plate = anatomy(bind(model, batch)).plate
    return [n for n, plates in anatomy(bind(guide, batch)).param_plates.items() if plate in plates]


def row_plates(program: Program, batch: Batch, device: str = "cpu") -> frozenset[str]:
    """The plates over rows: those that grow when the arguments have one more row."""
    batch = to_torch(batch, device)

    def more(value: Any) -> Any:
        return torch.cat([value, value[-1:]])

    larger = Batch({n: more(v) for n, v in batch.data.items()}, more(batch.rows), batch.num_data + 1)
    now, then = anatomy(bind(program, batch)).plates, anatomy(bind(program, larger)).plates
    return frozenset(name for name, size in now.items() if then.get(name) != size)


__all__ = [
    "anatomy",
    "bind",
    "describe",
    "private",
    "rehearsal",
    "row_params",
    "row_plates",
    "sample_sites",
    "scaled_rows",
    "seed_of",
    "substitute",
    "takes",
    "to_tensor",
    "to_torch",
    "trace",
]
