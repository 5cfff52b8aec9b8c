r"""The programs of linear Gaussian models, PPCA, factor analysis and Bayesian PCA, given their globals. Both engines.

    joint       z ~ N(0, I_q),    x | z ~ N(W z + mu, Psi)
    marginal    x ~ N(mu, W Wᵀ + Psi)
    posterior   z | x ~ N(z̄, G⁻¹),    G = I + Wᵀ Psi⁻¹ W,    z̄ = G⁻¹ Wᵀ Psi⁻¹ (x - mu)    (a guide)

A missing entry (``x_observed`` False) has density one, whatever stands there; draws of x are of whole rows. A row
counts as often as its ``sample_weight`` says.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Protocol

import jax
from array_api_compat import array_namespace, device
from jaxtyping import Array, Bool, Float

from ppl_models.low_rank_normal import latent, low_rank_normal

Observed = Bool[Array, "batch D"] | None
Weight = Float[Array, " batch"] | None


class LinearGaussian(Protocol):
    """A model with a prior of W (D, q), mu (D,) and the noise variance of every column psi (D,)."""

    @property
    def ppl(self) -> ModuleType: ...

    @property
    def latent_dim(self) -> int: ...

    def validate(self, x: Any, x_observed: Any = None, min_rows: int = 2) -> None: ...

    def _globals(self, x: Any) -> tuple[Any, Any, Any]: ...


def joint(
    model: LinearGaussian,
    x: Float[Array, "batch D"],
    num_data: int | None = None,
    x_observed: Observed = None,
    sample_weight: Weight = None,
) -> Any:
    """Sample the globals, z and x; ``x`` is observed, where ``x_observed`` is True, and returned."""
    model.validate(x, x_observed, min_rows=0)
    ppl, dist, xp = model.ppl, model.ppl.distributions, array_namespace(x)
    loadings, mean, psi = model._globals(x)
    with _rows(model, x, num_data, sample_weight):
        zero = xp.zeros((model.latent_dim,), dtype=x.dtype, device=device(x))
        z = ppl.sample("z", dist.Normal(zero, xp.ones_like(zero)).to_event(1))
        normal = dist.Normal(mean + z @ loadings.T, psi**0.5)
        normal = normal if x_observed is None else normal.mask(x_observed != 0)
        return ppl.sample("x", normal.to_event(1), obs=_finite(x, x_observed))


@dataclass(frozen=True)
class _Marginal:
    """The program with z integrated out."""

    model: LinearGaussian

    def __call__(
        self,
        x: Float[Array, "batch D"],
        num_data: int | None = None,
        x_observed: Observed = None,
        sample_weight: Weight = None,
    ) -> Any:
        self.model.validate(x, x_observed, min_rows=0)
        ppl, observed = self.model.ppl, None if x_observed is None else x_observed != 0
        loadings, mean, psi = self.model._globals(x)
        with _rows(self.model, x, num_data, sample_weight):
            normal = low_rank_normal(ppl.distributions, mean, loadings, psi, observed)
            return ppl.sample("x", normal, obs=_finite(x, x_observed))


@dataclass(frozen=True)
class _Posterior:
    """The guide p(z | x, globals), its globals drawn from the prior."""

    model: LinearGaussian

    def __call__(
        self,
        x: Float[Array, "batch D"],
        num_data: int | None = None,
        x_observed: Observed = None,
        sample_weight: Weight = None,
    ) -> Any:
        self.model.validate(x, x_observed, min_rows=0)
        ppl, observed = self.model.ppl, None if x_observed is None else x_observed != 0
        loadings, mean, psi = self.model._globals(x)
        with _rows(self.model, x, num_data, sample_weight):
            centre, precision = latent(x, mean, loadings, psi, observed)
            return ppl.sample("z", ppl.distributions.MultivariateNormal(centre, precision_matrix=precision))


def validate(self: LinearGaussian, x: Float[Array, "N D"], x_observed: Observed = None, min_rows: int = 2) -> None:
    """Raise ValueError unless ``x`` is a matrix, with more than ``latent_dim`` columns and enough rows."""
    name, shape = type(self).__name__, tuple(x.shape)
    if len(shape) != 2:
        raise ValueError(f"{name}: x has shape {shape}, not (rows, columns); flatten each observation to a row.")
    if shape[1] <= self.latent_dim:
        raise ValueError(
            f"{name}: latent_dim is {self.latent_dim} but x has {shape[1]} columns; the subspace must be "
            "smaller than the data space. Give a latent_dim below the number of columns."
        )
    if shape[0] < min_rows:
        raise ValueError(f"{name}: x has {shape[0]} rows, and a variance takes {min_rows}; give more rows.")
    if x_observed is not None and tuple(x_observed.shape) != shape:
        raise ValueError(
            f"{name}: x_observed has shape {tuple(x_observed.shape)} and x {shape}; give a boolean for each entry."
        )


@contextmanager
def _rows(model: LinearGaussian, x: Any, num_data: int | None, sample_weight: Any) -> Iterator[None]:
    """The data plate, with matrix products in full float32 (accelerators round the factors by default)."""
    ppl = model.ppl
    with ExitStack() as stack:
        stack.enter_context(ppl.plate("data", num_data or len(x), subsample_size=len(x)))
        stack.enter_context(jax.default_matmul_precision("highest"))
        if sample_weight is not None:
            handlers, xp = getattr(ppl, "poutine", None) or ppl.handlers, array_namespace(x)
            counted = sample_weight > 0  # handlers take no scale of zero
            stack.enter_context(handlers.scale(scale=xp.where(counted, sample_weight, xp.ones_like(sample_weight))))
            stack.enter_context(handlers.mask(mask=counted))
        yield


def _finite(x: Any, observed: Any) -> Any:
    """Zero where an entry is not seen: NaN is outside every support."""
    return x if observed is None else array_namespace(x).where(observed != 0, x, array_namespace(x).zeros_like(x))
