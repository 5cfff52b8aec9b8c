"""A log likelihood averaged over rows, with its Monte-Carlo error."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import jax
import numpy as np
from jaxtyping import Float

if TYPE_CHECKING:
    from inference.data import Rows
    from inference.result import Fit


@dataclass(frozen=True)
class Estimate:
    """A log likelihood averaged over rows.

    Attributes
    ----------
    rows
        Nats per row, shape ``(rows,)``.
    variance
        Monte-Carlo variance of each row's estimate (zero where it is exact).
    mc_error
        Monte-Carlo standard error of the mean over rows. Draws of the globals are shared by all rows,
        whose errors then move together, so it is not the rows' variances added up.
    is_bound
        Whether the estimate is of a lower bound on the log likelihood: a diffusion's.
    """

    rows: Float[np.ndarray, " rows"]
    variance: Float[np.ndarray, " rows"]
    mc_error: float
    is_bound: bool = False

    @property
    def mean(self) -> float:
        """Mean over rows, in nats."""
        return float(np.mean(self.rows))

    @property
    def standard_error(self) -> float:
        """Standard error of the mean as an estimate for new rows."""
        return float(np.std(self.rows, ddof=1) / np.sqrt(len(self.rows))) if len(self.rows) > 1 else float("nan")

    def __float__(self) -> float:
        return self.mean

    def __str__(self) -> str:
        exact = "exact" if not self.variance.any() else f"Monte-Carlo error {self.mc_error:.2g}"
        what = f"{'variational bound, ' if self.is_bound else ''}{self.mean:.3f} nats per row"
        return f"{what} ({exact}; {len(self.rows)} rows, standard error {self.standard_error:.2g})"


def log_likelihood(fit: Fit, rows: Rows, num_particles: int, key: int) -> Estimate:
    """log p(row), globals averaged over their draws, locals integrated out by the engine's ``row_log_likelihood``."""
    draws = fit.globals()
    count = len(next(iter(draws.values()))) if draws else 1
    means, variances, within = [], [], 0.0
    influence = np.zeros(count)  # of each draw of the globals on the sum over rows
    for i, batch in enumerate(rows.batches(fit._batch_rows(rows))):
        values, errors = [], []
        for s in range(count):
            seed = jax.random.fold_in(jax.random.fold_in(jax.random.key(key), i), s)
            at = fit.params | {n: v[s] for n, v in draws.items()}
            value, error = fit.engine.row_log_likelihood(fit.model, fit.guide, at, seed, batch, num_particles)
            values.append(np.asarray(value, np.float64))
            errors.append(np.asarray(error, np.float64))
        mean, inner, relative = log_mean(np.stack(values), np.stack(errors))
        means.append(mean)
        variances.append(inner + (relative.var(axis=0, ddof=1) / count if count > 1 else 0.0))
        within += inner.sum()
        influence += relative.sum(axis=1)
    between = influence.var(ddof=1) / count if count > 1 else 0.0
    error = float(np.sqrt(between + within) / rows.num_data)
    return Estimate(np.concatenate(means), np.concatenate(variances), error)


def log_mean(values: np.ndarray, variance: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """log of the mean over S draws of exp(values), per row, and two parts of its error (delta method).

    The second result is the inner (importance sampling) variance carried along, the third the S
    relative weights w_s / mean(w), whose spread over S is the outer part; draws count as independent.
    """
    top = values.max(axis=0)
    possible = np.isfinite(top)  # a row that no draw makes possible has -inf, without an error
    weight = np.where(possible, np.exp(values - np.where(possible, top, 0.0)), 1.0)
    mean = weight.mean(axis=0)
    relative = weight / mean
    inner = np.where(possible, variance, 0.0)
    return top + np.log(mean), (relative**2 * inner).mean(axis=0) / len(values), relative


__all__ = ["Estimate", "log_likelihood", "log_mean"]
