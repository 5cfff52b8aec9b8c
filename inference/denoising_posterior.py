"""Questions to a fitted diffusion: the same as of other programs, answered by scans over its steps.

The path of a row is as long as T rows and its likelihood takes T runs of the network, so new rows are drawn without
keeping their paths, and log p(x) has its bound, whose terms say where in the path the nats are spent.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from inference import posterior
from inference.compiled import jit
from inference.data import Rows
from inference.errors import BadData, Incompatible, check_whole
from inference.estimate import Estimate
from inference.posterior import local_draws
from inference.protocols import Batch, Denoiser

point_draws = 1  # of a path, in reports: it is as long as T rows


@dataclass(frozen=True)
class StepBound:
    """A lower bound on the log likelihood, step by step.

    Attributes
    ----------
    terms
        In nats, averages over draws of the noise, shape ``(T + 1, rows)``: log p(x | x_1); then minus the KL
        divergence of each step t = 2 … T; then minus that of q(x_T | x) from N(0, I).
    rows, variance, mc_error
        As those of :class:`~inference.result.Estimate`: the bound of each row.
    """

    terms: Float[np.ndarray, "steps rows"]
    variance: Float[np.ndarray, " rows"]
    mc_error: float

    @property
    def rows(self) -> Float[np.ndarray, " rows"]:
        """The bound of each row, in nats."""
        return self.terms.sum(axis=0)

    @property
    def by_step(self) -> Float[np.ndarray, " steps"]:
        """Mean over rows of each term, in nats: their sum is the bound."""
        return self.terms.mean(axis=1)

    @property
    def estimate(self) -> Estimate:
        """The bound without its terms."""
        return Estimate(self.rows, self.variance, self.mc_error, is_bound=True)

    def bits_per_dim(self, num_dims: int, width: float) -> float:
        """The bound of an image, turned round, in bits per dimension: it bounds them from above.

        Parameters
        ----------
        num_dims
            Numbers a row.
        width
            Width of a grey level in the unit of x, 2 / 256 for 256 levels in [-1, 1] that uniform noise has
            dequantized.
        """
        return -float(np.mean(self.rows)) / (num_dims * math.log(2)) - math.log2(width)


def step_bound(fit: Any, data: Any, *, num_sweeps: int = 2, key: int = 0) -> StepBound:
    """The bound of rows at a fit of a diffusion, with its terms.

    Parameters
    ----------
    fit
        Of a :class:`~inference.protocols.Denoiser`.
    data
        Rows as for ``fit``.
    num_sweeps
        Draws of the noise at every step, at least 2: T runs of the network a row each.
    key
        Seed.

    Returns
    -------
    StepBound
        Terms in nats.

    Raises
    ------
    Incompatible
        When the model is no diffusion.
    BadData
        When ``num_sweeps`` is below 2.
    """
    if not isinstance(fit.model, Denoiser):
        raise Incompatible(f"{type(fit.model).__name__} has no steps to bound its likelihood by: use log_likelihood.")
    check_whole("num_sweeps", num_sweeps, 2, "whose difference is the error")
    rows = fit._rows(data)
    run, parts = _bound_terms(fit.model), []
    for i, batch in enumerate(rows.batches(min(rows.num_data, 1024))):
        mean, sums = np.zeros(()), []
        for key_sweep in jax.random.split(jax.random.fold_in(jax.random.key(key), i), num_sweeps):
            terms = np.asarray(run(key_sweep, fit.params, batch.data), np.float64)
            mean = mean + terms / num_sweeps
            sums.append(terms.sum(0))
        parts.append((mean, np.var(sums, axis=0, ddof=1) / num_sweeps))
    terms, variance = (np.concatenate(v, axis=-1) for v in zip(*parts, strict=True))
    return StepBound(terms, variance, float(np.sqrt(variance.sum()) / len(variance)))


@lru_cache(maxsize=32)
def _bound_terms(model: Denoiser) -> Any:
    return jit(lambda key, params, data: model.bound_terms(key, params, **data))


def log_likelihood(fit: Any, rows: Rows, num_particles: int, key: int) -> Estimate:
    """The bound on these rows' log likelihood, by ``num_particles`` runs of the network a row, at least 2 T."""
    return step_bound(fit, rows, num_sweeps=max(2, num_particles // fit.model.num_evaluations), key=key).estimate


def row_log_likelihood(
    model: Denoiser, guide: Any, values: dict[str, Any], key: Array, batch: Batch, num_particles: int
) -> tuple[Float[Array, " batch"], Float[Array, " batch"]]:
    """Refused: what there is, is a bound.

    Raises
    ------
    Incompatible
        Always.
    """
    raise Incompatible(
        "the likelihood of a diffusion's rows has a lower bound, which would pass for it here. Use "
        "log_likelihood(data), which says that it is one, or step_bound(fit, data), for its terms."
    )


@lru_cache(maxsize=32)
def _draw(model: Denoiser, shape: tuple[int, int], options: tuple[tuple[str, Any], ...]) -> Any:
    return jit(lambda key, params, *y: model.draw(key, params, shape, *y, **dict(options)))


def generate(
    fit: Any, num_samples: int, key: int, *, expected: bool, given: Mapping[str, Any], **options: Any
) -> dict[str, np.ndarray]:
    """New rows ``x``, by one compiled scan.

    Parameters
    ----------
    fit, num_samples, key
        Of ``Fit.generate``.
    expected
        Without the noise of the last step.
    given
        ``y``, a class for every row, or one for all; -1 where it is not told. Needed where the model has classes.
    options
        ``sampler``: ``Ancestral()`` by default, or ``DDIM(50)``; with their guidance.
    """
    if set(given) - {"y"}:
        raise BadData(f"given is {sorted(given)}; expected the classes y, or nothing.")
    classes = _classes(fit, num_samples, given.get("y"))
    run = _draw(fit.model, (num_samples, fit.shapes["x"].shape[1]), tuple({"expected": expected, **options}.items()))
    return {"x": np.asarray(run(jax.random.key(key), fit.params, *classes))}


def _classes(fit: Any, num_samples: int, y: Any) -> tuple[Array, ...]:
    if "y" not in fit.shapes:
        if y is not None:
            raise BadData("the fit had no classes y: leave them out.")
        return ()
    if y is None:
        raise BadData(
            "rows are drawn given their classes: given={'y': ...}, one for all rows or one for each; -1: not told."
        )
    y = np.asarray(y)
    if y.ndim > 1 or y.shape not in ((), (num_samples,)) or not np.issubdtype(y.dtype, np.integer):
        raise BadData(
            f"y has shape {y.shape} and dtype {y.dtype}; expected one whole number, or {num_samples} of them."
        )
    if y.min() < -1 or y.max() >= fit.model.num_classes:
        raise BadData(
            f"y ranges over [{y.min()}, {y.max()}]; expected classes 0 to {fit.model.num_classes - 1}, or -1."
        )
    return (jnp.broadcast_to(jnp.asarray(y, jnp.int32), (num_samples,)),)


@lru_cache(maxsize=32)
def _predict(model: Denoiser, expected: bool) -> Any:
    def one(key: Array, params: Any, data: dict[str, Array]) -> Array:
        x, rest = data["x"], {n: v for n, v in data.items() if n != "x"}
        return model.draw(key, params, (len(x), x.shape[1]), **rest, expected=expected)

    return jit(jax.vmap(one, in_axes=(0, None, None)))


def predict(
    model: Denoiser, guide: Any, params: Any, draws: Any, keys: Array, batch: Batch, *, expected: bool
) -> dict[str, Array]:
    """Rows ``x`` anew for each of S keys, ``(S, batch, D)``: from x_1 given the rows with a guide, from x_T without."""
    if guide is None:
        return {"x": _predict(model, expected)(keys, params, dict(batch.data))}
    return posterior.predict(model, guide, params, draws, keys, batch, expected=expected)


__all__ = [
    "StepBound",
    "generate",
    "local_draws",
    "log_likelihood",
    "predict",
    "row_log_likelihood",
    "step_bound",
]
