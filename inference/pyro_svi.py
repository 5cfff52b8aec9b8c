"""Stochastic variational inference with Pyro: one torch optimizer step on a bound."""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

import jax
import numpy as np
import pyro
import torch
from pyro import poutine
from torch import Tensor
from torch.distributions import transform_to

from inference.errors import CorruptFile, Incompatible
from inference.objectives import Pair
from inference.programs import scaled_rows
from inference.protocols import Batch, Draws, Program, Record
from inference.pyro_anatomy import describe, sample_sites
from inference.pyro_baseline import with_baseline
from inference.pyro_check import check
from inference.pyro_objectives import estimator
from inference.pyro_posterior import guide_draws
from inference.pyro_programs import Thunk, bind, private, seed_of, to_torch


class State(NamedTuple):
    """One chain. Never changed in place: a step makes a new one."""

    params: dict[str, Tensor]  # unconstrained
    constraints: dict[str, Any]
    moments: dict[str, dict[str, Any]]  # what the optimizer remembers of each parameter
    options: dict[str, Any]  # of the optimizer; some optimizers change theirs
    estimator: Any


@dataclass(frozen=True)
class PyroSVI:
    """Maximise a bound over the parameters of a Pyro model and guide.

    Parameters
    ----------
    model, guide
        Pyro programs: functions with ``pyro.param`` or ``pyro.module``, or values with ``ppl=pyro``.
        Discrete latents that the guide leaves out are summed out exactly.
    objective
        ``ELBO``, ``IWAE``, ``Renyi``, ``ScoreFunction``, ``NVIL`` or ``ReweightedWakeSleep`` of
        :mod:`inference.objectives`, or an estimator of ``pyro.infer``.
    optimizer_class
        Of ``torch.optim``. It sees the gradient of minus the bound *per row* (nats), so step sizes
        do not depend on the size of the data set.
    optimizer_options
        Its keyword arguments. Kept as a sorted tuple of pairs, so that equal algorithms are equal.
    device
        A torch device, such as ``"cpu"`` or ``"cuda:0"``.

    Raises
    ------
    Incompatible
        If ``optimizer_class`` is not a torch optimizer that takes one gradient a step.

    References
    ----------
    Stochastic Variational Inference (Hoffman, Blei, Wang and Paisley, 2013); Pyro: Deep Universal
    Probabilistic Programming (Bingham et al., 2019).
    """

    model: Program
    guide: Program
    objective: Any
    optimizer_class: type[torch.optim.Optimizer]
    optimizer_options: Any = field(default_factory=dict)
    device: str = "cpu"

    engine: ClassVar[str] = "pyro"

    def __post_init__(self) -> None:
        pairs = sorted(dict(self.optimizer_options).items())
        options = tuple((name, tuple(v) if isinstance(v, list) else v) for name, v in pairs)
        object.__setattr__(self, "optimizer_options", options)
        object.__setattr__(self, "device", str(self.device))
        kind = self.optimizer_class
        if not (isinstance(kind, type) and issubclass(kind, torch.optim.Optimizer)):
            raise Incompatible(
                f"optimizer_class is {kind!r}; expected a class of torch.optim, with its arguments in "
                'optimizer_options: PyroSVI(model, guide, ELBO(), torch.optim.Adam, {"lr": 1e-3}).'
            )
        if inspect.signature(kind.step).parameters["closure"].default is inspect.Parameter.empty:
            raise Incompatible(
                f"{kind.__name__} evaluates the bound several times a step, which a Monte-Carlo bound does not bear. "
                "Use torch.optim.Adam."
            )

    def check(self, batch: Batch) -> None:
        """Refuse programs, an objective and data that do not go together."""
        check(self.model, self.guide, self.objective, batch, self.device)

    def init(self, seed: int, batch: Batch) -> State:
        """Parameters drawn with ``seed``, and the optimizer's state."""
        batch = to_torch(batch, self.device)
        model, guide = self._bound_programs(batch)
        with private(seed, device=self.device) as store, torch.no_grad():
            q, p = _traces(model, guide)
            both = Pair(model, guide, describe(p.nodes), describe(q.nodes))
        # A module's own tensors are where its run starts, so that the run has copies.
        params = {n: v.detach().to(self.device, copy=True) for n, v in store["params"].items()}
        optimizer = self._optimizer(params)
        return _state(params, store["constraints"], optimizer, estimator(self.objective, both))

    def step(self, seed: int, state: State, batch: Batch) -> tuple[State, Record]:
        """One gradient step on this batch; the record's bound is of the parameters before it.

        If the bound or its gradient is not finite the state stays as it was and the bound is NaN.
        """
        params = {n: v.clone() for n, v in state.params.items()}
        optimizer = self._optimizer(params)
        optimizer.state.update({params[n]: _copied(m) for n, m in state.moments.items()})
        optimizer.param_groups[0].update(copy.deepcopy(state.options))
        bound = self._bound(seed, state._replace(params=params), batch, gradient=True)
        gradients = [p.grad for p in params.values() if p.grad is not None]
        for gradient in gradients:
            gradient.div_(scaled_rows(self.model, batch))
        if not math.isfinite(bound) or not bool(torch.isfinite(torch.nn.utils.get_total_norm(gradients))):
            return state, Record({"bound": bound * math.nan})
        optimizer.step()
        return _state(params, state.constraints, optimizer, state.estimator), Record({"bound": bound})

    def evaluate(self, seed: int, state: State, batch: Batch) -> float:
        """The bound on this batch in nats per row, without a step."""
        return self._bound(seed, state, batch, gradient=False)

    def finish(self, key: Any, states: list[State], records: dict[str, Any], batch: Batch) -> Draws:
        """Parameters, and draws of the global latents from the guide with their log weights."""
        params = [self.params(state) for state in states]
        drawn = [
            guide_draws(self.model, self.guide, p, jax.random.fold_in(key, c), batch, device=self.device)
            for c, p in enumerate(params)
        ]
        return Draws(_stacked(params), _stacked([d[0] for d in drawn]), _stacked([d[1] for d in drawn]))

    def params(self, state: State) -> dict[str, np.ndarray]:
        """Parameters in their own spaces, by name."""
        with torch.no_grad():
            values = {n: transform_to(state.constraints[n])(v) for n, v in state.params.items()}
        return {n: v.detach().cpu().numpy().copy() for n, v in values.items()}

    def explain(self, key: Any, states: list[State], batch: Batch) -> str:
        """Name the first site whose log density is not finite, if there is one on this batch."""
        batch = to_torch(batch, self.device)
        model, guide = self._bound_programs(batch)
        for state in states:
            with private(seed_of(key), state.params, state.constraints, self.device), torch.no_grad():
                with pyro.validation_enabled(False):
                    q, p = _traces(model, guide)
                    for name, site in (*sample_sites(q.nodes).items(), *sample_sites(p.nodes).items()):
                        if not bool(torch.isfinite(site["fn"].log_prob(site["value"])).all()):
                            return f", first at site {name!r}"
        return ""

    def pack(self, states: list[State]) -> dict[str, np.ndarray]:
        """All chains as named arrays, from which :meth:`unpack` restores every bit."""
        arrays: dict[str, Any] = {}
        for c, state in enumerate(states):
            arrays |= {f"{c}/params//{n}": v for n, v in state.params.items()}
            arrays |= {f"{c}/options//{n}": v for n, v in state.options.items() if _is_number(v)}
            for name, moments in state.moments.items():
                arrays |= {f"{c}/tensors/{key}/{name}": v for key, v in moments.items() if isinstance(v, Tensor)}
                arrays |= {f"{c}/numbers/{key}/{name}": v for key, v in moments.items() if _is_number(v)}
        return {n: v.detach().cpu().numpy() if isinstance(v, Tensor) else np.asarray(v) for n, v in arrays.items()}

    def unpack(self, states: list[State], arrays: Mapping[str, np.ndarray]) -> list[State]:
        """The chains that were packed; ``states`` are fresh ones, which lend what is not an array."""
        restored = [s._replace(params=dict(s.params), moments={}, options=dict(s.options)) for s in states]
        for path, array in arrays.items():
            # The checkpoint writes ['0/params//name'] for the key 0/params//name.
            chain, kind, key, name = path.removeprefix("['").removesuffix("']").split("/", 3)
            state, value = restored[int(chain)], torch.from_numpy(np.array(array))
            if kind == "options":
                state.options[name] = array.item()
            elif name not in state.params or (kind == "params" and value.shape != state.params[name].shape):
                raise CorruptFile(f"the checkpoint holds {name!r}, shape {array.shape}: of another algorithm.")
            elif kind == "params":
                state.params[name] = value.to(self.device)
            else:
                # Counters stay on the CPU, where optimizers keep them.
                tensor = value if key == "step" else value.to(self.device)
                state.moments.setdefault(name, {})[key] = tensor if kind == "tensors" else array.item()
        return restored

    def _bound_programs(self, batch: Batch) -> tuple[Thunk, Thunk]:
        guide = with_baseline(self.objective, self.guide)
        return bind(self.model, batch, self.device), bind(guide, batch, self.device)

    def _optimizer(self, params: dict[str, Tensor]) -> torch.optim.Optimizer:
        leaves = [v.requires_grad_() for v in params.values()]
        return self.optimizer_class(leaves, **dict(self.optimizer_options))

    def _bound(self, seed: int, state: State, batch: Batch, gradient: bool) -> Any:
        batch = to_torch(batch, self.device)
        model, guide = self._bound_programs(batch)
        loss = state.estimator.loss_and_grads if gradient else state.estimator.loss
        with (
            private(seed, state.params, state.constraints, self.device) as store,
            torch.set_grad_enabled(gradient),
            pyro.validation_enabled(False),  # what validation would find is found by `check`, or not finite
        ):
            try:
                value = float(loss(model, guide))
            except torch.linalg.LinAlgError:  # pyright: ignore[reportPrivateImportUsage]
                # the Cholesky factor of a NaN
                return float("nan")
        late = store["params"].keys() - state.params.keys()
        if late:
            raise Incompatible(
                f"the parameters {sorted(late)} appear in the course of the run. A program has the same ones whatever "
                "the batch, and baselines that average over steps cannot be kept: use ScoreFunction()."
            )
        return -value / scaled_rows(self.model, batch)


def _traces(model: Thunk, guide: Thunk) -> tuple[poutine.Trace, poutine.Trace]:
    """Of the guide, and of the model at what the guide drew."""
    q = poutine.trace(guide).get_trace()
    return q, poutine.trace(poutine.replay(model, trace=q)).get_trace()


def _state(params: dict[str, Tensor], constraints: Any, optimizer: torch.optim.Optimizer, chosen: Any) -> State:
    moments = {n: optimizer.state[v] for n, v in params.items() if v in optimizer.state}
    options = {n: v for n, v in optimizer.param_groups[0].items() if n != "params"}
    bare = {n: v.detach() for n, v in params.items()}
    return State(bare, dict(constraints), moments, options, chosen)


def _copied(moments: dict[str, Any]) -> dict[str, Any]:
    return {n: v.clone() if isinstance(v, Tensor) else copy.deepcopy(v) for n, v in moments.items()}


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _stacked(chains: list[dict[str, np.ndarray]]) -> dict[str, Any]:
    return {n: np.stack([chain[n] for chain in chains]) for n in chains[0]}


__all__ = ["PyroSVI"]
