r"""How fast a diffusion adds noise: the variances beta_1 … beta_T of its steps, and what follows from them.

    q(x_t | x_{t-1}) = N(sqrt(alpha_t) x_{t-1}, beta_t I),                  alpha_t = 1 - beta_t
    q(x_t | x_0)     = N(sqrt(abar_t) x_0, (1 - abar_t) I),                 abar_t  = alpha_1 ... alpha_t
    q(x_{t-1} | x_t, x_0) has variance btilde_t = beta_t (1 - abar_{t-1}) / (1 - abar_t), which is 0 at t = 1

References
----------
Denoising Diffusion Probabilistic Models (Ho, Jain and Abbeel, 2020).
Improved Denoising Diffusion Probabilistic Models (Nichol and Dhariwal, 2021).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float

Variance = Literal["posterior", "forward"]  # sigma_t²: btilde_t, beta_t


@runtime_checkable
class NoiseSchedule(Protocol):
    """A frozen value with ``betas``, the variances beta_1 … beta_T of the steps, each inside (0, 1), float64."""

    @property
    def betas(self) -> Float[np.ndarray, " steps"]: ...


@dataclass(frozen=True)
class LinearSchedule:
    """beta_t rises linearly from ``first`` to ``last``.

    Parameters
    ----------
    num_steps
        T.
    first, last
        beta_1 and beta_T. By default 0.1 / T and 20 / T, the published 1e-4 and 0.02 at T = 1000: any T then
        leaves about the same of the data, abar_T near 4e-5.

    Raises
    ------
    ValueError
        ``num_steps`` is not a whole number of at least 1, or a variance lies outside (0, 1).
    """

    num_steps: int = 1000
    first: float | None = None
    last: float | None = None

    def __post_init__(self) -> None:
        _check_steps(self.num_steps)
        check_betas(self, self.betas)

    @property
    def betas(self) -> Float[np.ndarray, " steps"]:
        """Variances of the steps, shape ``(num_steps,)``."""
        first = 0.1 / self.num_steps if self.first is None else self.first
        last = 20 / self.num_steps if self.last is None else self.last
        return np.linspace(first, last, self.num_steps)


@dataclass(frozen=True)
class CosineSchedule:
    """abar_t = f(t) / f(0) with f(t) = cos²((t / T + offset) / (1 + offset) · pi / 2): slower at both ends.

    Parameters
    ----------
    num_steps
        T.
    offset
        Keeps beta_1 from being too small.
    largest
        No beta_t is above this; the last would be 1.

    Raises
    ------
    ValueError
        ``num_steps`` is not a whole number of at least 1, ``offset`` is negative, or a variance lies outside (0, 1).
    """

    num_steps: int = 1000
    offset: float = 0.008
    largest: float = 0.999

    def __post_init__(self) -> None:
        _check_steps(self.num_steps)
        if not 0 <= self.offset < float("inf"):
            raise ValueError(f"CosineSchedule: offset is {self.offset!r}; expected a number of at least 0.")
        check_betas(self, self.betas)

    @property
    def betas(self) -> Float[np.ndarray, " steps"]:
        """Variances of the steps, shape ``(num_steps,)``."""
        t = np.arange(self.num_steps + 1) / self.num_steps
        f = np.cos((t + self.offset) / (1 + self.offset) * np.pi / 2) ** 2
        return np.minimum(1 - f[1:] / f[:-1], self.largest)


@dataclass(frozen=True)
class FixedSchedule:
    """Variances that are given.

    Parameters
    ----------
    variances
        beta_1 … beta_T, each inside (0, 1).

    Raises
    ------
    ValueError
        No variance, or one outside (0, 1).
    """

    variances: tuple[float, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "variances", tuple(float(v) for v in self.variances))
        check_betas(self, self.betas)

    @property
    def betas(self) -> Float[np.ndarray, " steps"]:
        """Variances of the steps, shape ``(steps,)``."""
        return np.asarray(self.variances)


class Levels(NamedTuple):
    """What follows from a schedule, each a float64 array ``(T + 1,)`` indexed by t, with x_0 without noise."""

    beta: Float[np.ndarray, " levels"]
    alpha: Float[np.ndarray, " levels"]
    signal: Float[np.ndarray, " levels"]  # sqrt(abar_t)
    noise: Float[np.ndarray, " levels"]  # sqrt(1 - abar_t)
    posterior_variance: Float[np.ndarray, " levels"]  # btilde_t

    @property
    def num_steps(self) -> int:
        """T."""
        return len(self.beta) - 1


@lru_cache(maxsize=64)
def levels(schedule: NoiseSchedule) -> Levels:
    """Signal and noise at every step."""
    beta = np.concatenate([[0.0], schedule.betas])
    log_abar = np.cumsum(np.log1p(-beta))
    left = -np.expm1(log_abar)  # 1 - abar_t, with all its digits where beta is small
    posterior = np.zeros_like(beta)
    posterior[1:] = beta[1:] * left[:-1] / left[1:]
    return Levels(beta, 1 - beta, np.exp(log_abar / 2), np.sqrt(left), posterior)


@lru_cache(maxsize=64)
def reverse_variances(schedule: NoiseSchedule, variance: Variance) -> Float[np.ndarray, " levels"]:
    """sigma_t² of the reverse steps, indexed by t: btilde_t or beta_t, and beta_1 for the step to the data."""
    known = levels(schedule)
    out = (known.beta if variance == "forward" else known.posterior_variance).copy()
    out[1] = known.beta[1]  # btilde_1 is zero, and the data have a density
    return out


def check_betas(schedule: NoiseSchedule, betas: Float[np.ndarray, " steps"]) -> None:
    """Refuse variances outside (0, 1)."""
    name = type(schedule).__name__
    if betas.ndim != 1 or not len(betas):
        raise ValueError(f"{name}: there are no variances; expected one for each step.")
    wrong = np.flatnonzero(~((betas > 0) & (betas < 1)))
    if len(wrong):
        raise ValueError(
            f"{name}: beta_{wrong[0] + 1} of {len(betas)} steps is {betas[wrong[0]]:g}; every beta_t is the variance "
            "of a step and lies inside (0, 1). Give other limits, or more steps."
        )


def _check_steps(num_steps: int) -> None:
    if isinstance(num_steps, bool) or not isinstance(num_steps, int) or num_steps < 1:
        raise ValueError(f"num_steps is {num_steps!r}; expected a whole number of at least 1.")


__all__ = [
    "CosineSchedule",
    "FixedSchedule",
    "Levels",
    "LinearSchedule",
    "NoiseSchedule",
    "Variance",
    "levels",
    "reverse_variances",
]
