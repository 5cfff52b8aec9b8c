"""NVIL under Pyro: a network beside the guide predicts each row's cost, and is ``TraceGraph_ELBO``'s baseline."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

import pyro
import torch
from pyro import poutine
from torch import Tensor

from inference.objectives import NVIL
from inference.protocols import Program

BASELINE = "nvil_baseline"


def with_baseline(objective: Any, guide: Program) -> Program:
    """The guide to train with: ``NVIL`` puts a baseline at its sites that have no pathwise gradient."""
    return _Baselined(guide, objective.hidden) if isinstance(objective, NVIL) else guide


@dataclass(frozen=True)
class _Baselined:
    """The guide, with a baseline b(x) of one hidden layer at each of its rows' sites.

    Pyro's cost of a row holds the factor N / B of the plate, and so must what predicts it.
    """

    program: Program
    hidden: int

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        arrays = [v for v in (*args, *kwargs.values()) if isinstance(v, Tensor) and v.ndim]
        rows = torch.cat([v.reshape(len(v), -1).to(torch.get_default_dtype()) for v in arrays], 1)
        scale = (kwargs.get("num_data") or len(rows)) / len(rows)
        predict = self._network(rows)

        def options(site: Any) -> Any:
            if site["type"] != "sample" or site["is_observed"] or site["fn"].has_rsample:
                return {}
            return {"baseline": {"nn_baseline": lambda x: scale * predict(x), "nn_baseline_input": rows}}

        return poutine.infer_config(self.program, config_fn=options)(*args, **kwargs)  # pyright: ignore

    @property
    def __signature__(self) -> inspect.Signature:
        return inspect.signature(self.program)

    def _network(self, rows: Tensor) -> Any:
        """w2 tanh(W1 x + b1) + b2, parameters drawn as ``torch.nn.Linear`` draws them."""
        width, like = rows.shape[1], {"dtype": rows.dtype, "device": rows.device}

        def uniform(*shape: int, fan: int) -> Any:
            return lambda: (2 * torch.rand(*shape, **like) - 1) / fan**0.5  # pyright: ignore

        w1 = pyro.param(f"{BASELINE}.w1", uniform(width, self.hidden, fan=width))
        b1 = pyro.param(f"{BASELINE}.b1", uniform(self.hidden, fan=width))
        w2 = pyro.param(f"{BASELINE}.w2", uniform(self.hidden, fan=self.hidden))
        b2 = pyro.param(f"{BASELINE}.b2", lambda: torch.zeros((), **like))  # pyright: ignore
        return lambda x: torch.tanh(x @ w1 + b1) @ w2 + b2


__all__ = ["with_baseline"]
