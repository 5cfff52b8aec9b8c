"""The one bijection that torch lacks: onto positive definite matrices.

Importing this module registers it with ``torch.distributions.biject_to``, so that NUTS and guides can
move precision and covariance matrices.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Transform, biject_to, constraints


class PositiveDefiniteBijection(Transform):
    """Vectors of D (D + 1) / 2 numbers to matrices L Lᵀ: first log diag(L), then L below the diagonal.

    dy = d(L Lᵀ) has the Jacobian 2^D prod_i L_ii^(D + 1 - i), i = 1 … D, and d L_ii = L_ii d log L_ii, so

        log|J| = D log 2 + sum_i (D + 2 - i) log L_ii.
    """

    domain = constraints.real_vector
    codomain = constraints.positive_definite
    bijective = True

    def __eq__(self, other: object) -> bool:
        return isinstance(other, PositiveDefiniteBijection)

    def _call(self, x: Tensor) -> Tensor:
        size = _size(x.shape[-1])
        row, column = torch.tril_indices(size, size, -1, device=x.device)
        factor = torch.diag_embed(x[..., :size].exp())
        factor[..., row, column] = x[..., size:]
        return factor @ factor.mT

    def _inverse(self, y: Tensor) -> Tensor:
        factor = torch.linalg.cholesky(y)
        row, column = torch.tril_indices(y.shape[-1], y.shape[-1], -1, device=y.device)
        diagonal = factor.diagonal(dim1=-2, dim2=-1).log()
        return torch.cat([diagonal, factor[..., row, column]], -1)

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """Log volume by which the map stretches space at ``x``."""
        size = y.shape[-1]
        power = torch.arange(size + 1, 1, -1, dtype=x.dtype, device=x.device)
        return size * math.log(2.0) + x[..., :size] @ power

    def forward_shape(self, shape: Any) -> torch.Size:
        """Of the matrices, from that of the vectors."""
        size = _size(shape[-1])
        return torch.Size([*shape[:-1], size, size])

    def inverse_shape(self, shape: Any) -> torch.Size:
        """Of the vectors, from that of the matrices."""
        size = shape[-1]
        return torch.Size([*shape[:-2], size * (size + 1) // 2])


def _size(length: int) -> int:
    return (math.isqrt(8 * length + 1) - 1) // 2  # D from D (D + 1) / 2


@biject_to.register(constraints.positive_definite)
def _(constraint: Any) -> Transform:
    return PositiveDefiniteBijection()
