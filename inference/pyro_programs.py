"""Running a Pyro program: on a store and generators of its own, the loop's rows in its data plate.

With :mod:`inference.pyro_anatomy` and :mod:`inference.pyro_density` the counterpart of
:mod:`inference.programs`, under the same names. Nothing here leaves a trace behind: Pyro's parameter
store, the modules of ``pyro.module`` and the generators of torch, NumPy and Python are as they were
when a run is over.
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
import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from pyro.poutine.subsample_messenger import _Subsample
from torch import Tensor
from torch.distributions import constraints

from inference import pyro_bijections  # noqa: F401  (for NUTS and for guides)
from inference.programs import takes
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
            warnings.catch_warnings(),
        ):
            # The loop reports a NaN itself, and torch's Wishart says the other of every first sample.
            warnings.filterwarnings("ignore", "Encountered NaN|Singular sample detected")
            pyro.set_rng_seed(seed)
            yield state
    finally:
        random.setstate(generators[0])
        np.random.set_state(generators[1])


@contextmanager
def rehearsal(device: str = "cpu") -> Iterator[None]:
    """A private run for the sake of its structure: of its numbers, drawn from the prior, no warning is due."""
    with private(0, device=device), torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


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
