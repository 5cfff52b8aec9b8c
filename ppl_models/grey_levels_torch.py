"""The torch side of ``grey_levels``: the same two distributions as Pyro's."""

from __future__ import annotations

from typing import Any

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import Categorical, constraints
from torch.distributions.constraints import Constraint

from ppl_models.grey_levels import TOLERANCE, above, log_mass
from ppl_models.networks import levels_of


class _Grid(Constraint):
    """The levels 0, 1/(L-1), ..., 1."""

    is_discrete = True
    event_dim = 0

    def __init__(self, levels: int):
        self.levels = levels
        super().__init__()

    def check(self, value: Tensor) -> Tensor:
        level = value * (self.levels - 1)
        return ((level - level.round()).abs() < TOLERANCE) & (value >= 0) & (value <= 1)


class GreyLevels(TorchDistribution):
    """Any distribution over the levels: ``logits`` of shape ``(..., levels)``."""

    arg_constraints: Any = {}

    def __init__(self, logits: Tensor):
        self.logits = torch.log_softmax(logits, -1)
        self.levels = logits.shape[-1]
        super().__init__(batch_shape=logits.shape[:-1], validate_args=False)

    @constraints.dependent_property
    def support(self) -> Any:
        return _Grid(self.levels)

    def expand(self, batch_shape: Any, _instance: Any = None) -> GreyLevels:
        return GreyLevels(self.logits.expand(*batch_shape, self.levels))

    def sample(self, sample_shape: Any = ()) -> Tensor:
        with torch.no_grad():
            level = Categorical(logits=self.logits).sample(torch.Size(sample_shape))
            return level.to(self.logits.dtype) / (self.levels - 1)

    def log_prob(self, value: Tensor) -> Tensor:
        return Categorical(logits=self.logits, validate_args=False).log_prob(levels_of(value, self.levels).long())

    @property
    def mean(self) -> Tensor:
        return self.logits.exp() @ torch.linspace(0, 1, self.levels, dtype=self.logits.dtype, device=self.logits.device)


class LogisticLevels(TorchDistribution):
    """A mixture of rounded logistics: ``logits``, ``loc`` and ``scale`` of shape ``(..., mixtures)``."""

    arg_constraints: Any = {}

    def __init__(self, logits: Tensor, loc: Tensor, scale: Tensor, levels: int):
        self.logits, self.loc, self.scale, self.levels = logits, loc, scale, levels
        super().__init__(batch_shape=loc.shape[:-1], validate_args=False)

    @constraints.dependent_property
    def support(self) -> Any:
        return _Grid(self.levels)

    def expand(self, batch_shape: Any, _instance: Any = None) -> LogisticLevels:
        logits, loc, scale = (v.expand(*batch_shape, v.shape[-1]) for v in (self.logits, self.loc, self.scale))
        return LogisticLevels(logits, loc, scale, self.levels)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        with torch.no_grad():
            k = Categorical(logits=self.logits).sample(torch.Size(sample_shape))[..., None]
            loc, scale = (v.expand(*k.shape[:-1], v.shape[-1]).gather(-1, k)[..., 0] for v in (self.loc, self.scale))
            value = loc + scale * torch.logit(torch.rand_like(loc), eps=1e-7)
            return levels_of(value.clamp(0, 1), self.levels) / (self.levels - 1)

    def log_prob(self, value: Tensor) -> Tensor:
        return log_mass(value, self.logits, self.loc, self.scale, self.levels)

    @property
    def mean(self) -> Tensor:
        # E[v] = d sum over the edges between levels of P(v > edge)
        width = 1 / (self.levels - 1)
        total = torch.zeros_like(self.loc[..., 0])
        for edge in range(self.levels - 1):
            total = total + above((edge + 0.5) * width, self.logits, self.loc, self.scale)
        return width * total
