"""The torch side of ``binary_states``: the mixture over states as a Pyro distribution."""

from __future__ import annotations

from typing import Any

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import Categorical, constraints
from torch.utils.checkpoint import checkpoint

from ppl_models.binary_states import Emission, rows_at_once


class StateMixture(TorchDistribution):
    """sum_s w_s p(x | outputs_s) over rows of one event; see :func:`ppl_models.binary_states.mixture`."""

    arg_constraints: Any = {}

    def __init__(self, log_weights: Tensor, outputs: Tensor, emission: Emission):
        self.log_weights, self.outputs, self.emission = log_weights, outputs, emission
        super().__init__(event_shape=emission(outputs).event_shape, validate_args=False)

    @constraints.dependent_property
    def support(self) -> Any:
        return self.emission(self.outputs).support

    def sample(self, sample_shape: Any = ()) -> Tensor:
        with torch.no_grad():
            state = Categorical(logits=self.log_weights).sample(torch.Size(sample_shape))
            return self.emission(self.outputs[state]).sample()

    def log_prob(self, value: Tensor) -> Tensor:
        table, numbers = self.emission.table(self.outputs)

        def chunk(rows: Tensor) -> Tensor:
            return torch.logsumexp(self.log_weights + table(rows), -1)

        rows = value.reshape(-1, *self.event_shape)
        chunks: Any = [
            checkpoint(chunk, part, use_reentrant=False, preserve_rng_state=False)
            for part in rows.split(rows_at_once(numbers))
        ]
        return torch.cat(chunks).reshape(value.shape[:-1])

    @property
    def mean(self) -> Tensor:
        return self.log_weights.exp() @ self.emission(self.outputs).mean
