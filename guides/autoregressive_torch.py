"""The torch side of ``autoregressive_bernoulli``: the vector of bits as a Pyro distribution."""

from __future__ import annotations

from typing import Any

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import constraints

from guides.autoregressive_bernoulli import log_prob


class AutoregressiveBits(TorchDistribution):
    """A vector of bits, each with the logit offsets_i + sum_{j < i} lateral_ij (2 z_j - 1)."""

    arg_constraints: Any = {"offsets": constraints.real_vector, "lateral": constraints.independent(constraints.real, 2)}
    support: Any = constraints.independent(constraints.boolean, 1)

    def __init__(self, offsets: Tensor, lateral: Tensor, validate_args: bool | None = None):
        self.offsets, self.lateral = offsets, lateral
        super().__init__(offsets.shape[:-1], offsets.shape[-1:], validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> AutoregressiveBits:
        return AutoregressiveBits(self.offsets.expand(torch.Size(batch_shape) + self.event_shape), self.lateral)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        with torch.no_grad():
            logits = self.offsets.expand(self.shape(torch.Size(sample_shape)))
            bits = []
            for i in range(logits.shape[-1]):
                bits.append(torch.bernoulli(torch.sigmoid(logits[..., i])))
                logits = logits + (2 * bits[-1] - 1)[..., None] * self.lateral[:, i]
            return torch.stack(bits, -1)

    def log_prob(self, value: Tensor) -> Tensor:
        return log_prob(value, self.offsets, self.lateral)
