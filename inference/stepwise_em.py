"""Stepwise expectation-maximisation: a batch of rows a step, for data that do not fit memory.

    s <- (1 - eta_t) s + eta_t (N / B) s_batch,    theta <- the maximum given s,    eta_t = (t + delay)^-decay,

with s_batch the expected sufficient statistics of the batch at the present parameters. The running average
stands for all N rows; where the steps end, E[s_batch | theta] N / B = s, theta is a stationary point of the
likelihood. scikit-learn has no such mixture (issue #8714).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike

from inference.check import check
from inference.em import (
    Initial,
    check_program,
    check_start,
    frozen,
    mean_log_likelihood,
    point_estimate,
    single_precision,
    start,
)
from inference.protocols import Batch, Conjugate, Draws, Program, Record


@dataclass(frozen=True)
class StepwiseEM:
    """Maximum likelihood by EM on minibatches: arrays, memory-mapped arrays, or a stream.

    Parameters
    ----------
    model
        As for :class:`~inference.em.EM`. Its statistics are averaged entry by entry, or by its method
        ``combine(old, new, keep, add)``, if it has one: keep · old + add · new.
    decay
        How fast steps shrink, above 0.5 and at most 1. Small values forget the start sooner and stay
        noisier.
    delay
        Steps by which the schedule is ahead; at least 1. Larger values start more carefully.
    initial
        As for ``EM``; the model's own start, or a function, sees the first batch.

    Raises
    ------
    Incompatible
        When the program does not fit, or ``initial`` does not fit the program.

    Notes
    -----
    The ``bound`` in the history is the log likelihood of each step's batch before the step, in nats per row,
    and ``lp`` that of all rows (of the first batch, scaled up, where not all are in memory). A batch whose rows
    all have weight zero changes nothing, and repeats the bound of the one before.

    References
    ----------
    Online EM for unsupervised models (Liang and Klein, 2009); On-line expectation-maximization algorithm
    for latent data models (Cappé and Moulines, 2009).
    """

    model: Conjugate
    decay: float = 0.7
    delay: float = 2.0
    initial: Mapping[str, ArrayLike] | Initial | None = None

    engine: ClassVar[str] = "numpyro"
    uses_prior: ClassVar[bool] = False  # so that a stream need not say how many rows it has

    def __post_init__(self) -> None:
        if not 0.5 < self.decay <= 1:
            raise ValueError(f"StepwiseEM: decay is {self.decay!r}; give a number above 0.5 and at most 1.")
        if not 1 <= self.delay < float("inf"):
            raise ValueError(f"StepwiseEM: delay is {self.delay!r}; give at least 1.")
        check_program(self.model, "StepwiseEM")
        object.__setattr__(self, "initial", frozen(self.initial))

    @property
    def guide(self) -> Program:
        """The exact posterior of the local latents given the parameters."""
        return self.model.posterior

    def check(self, batch: Batch) -> None:
        """Refuse data that are not the program's, and a given start of other shapes."""
        check(self.model, data=batch)
        check_start(self.model, self.initial, batch, "StepwiseEM")

    def init(self, key: Array, batch: Batch) -> dict[str, Any]:
        """The starting parameters, and the bound and the statistics of the first batch under them."""
        params = start(self.model, self.initial, key, batch)
        log_likelihood, new = self.model.e_step(params, **batch.data)
        with jax.enable_x64(True):
            bound = log_likelihood / jnp.where(batch.weight > 0, batch.weight, 1.0)
        statistics = self._combine(new, new, 0.0, batch)
        return {"params": params, "statistics": statistics, "bound": bound, "step": jnp.int32(0)}

    def step(self, key: Array, state: dict[str, Any], batch: Batch) -> tuple[dict[str, Any], Record]:
        """An E-step on the batch, a step of the average, and an M-step."""
        log_likelihood, new = self.model.e_step(state["params"], **batch.data)
        with jax.enable_x64(True):
            keep = 1 - (state["step"].astype(jnp.float64) + self.delay) ** -self.decay
            bound = log_likelihood / batch.weight
        statistics = self._combine(state["statistics"], new, keep, batch)
        params = self.model.m_step(statistics)
        done = {"params": params, "statistics": statistics, "bound": bound, "step": state["step"] + 1}
        with jax.enable_x64(True):  # a batch that does not count changes nothing
            state = jax.tree.map(lambda new, old: jnp.where(batch.weight > 0, new, old), done, state)
            return state, Record({"bound": state["bound"].astype(jnp.float32)})

    def evaluate(self, key: Array, state: dict[str, Any], batch: Batch) -> Array:
        """Mean log likelihood of these rows in nats, without a step."""
        return mean_log_likelihood(self.model, state["params"], batch)

    def params(self, state: dict[str, Any], batch: Batch) -> dict[str, Array]:
        """Parameters by site name, float32."""
        return single_precision(self.model, state["params"])

    def finish(self, key: Array, state: dict[str, Any], records: Mapping[str, Array], batch: Batch) -> Draws:
        """The point estimate, also as a single draw."""
        return point_estimate(self.model, state["params"], batch)

    def _combine(self, old: Any, new: Any, keep: ArrayLike, batch: Batch) -> Any:
        """keep · old + (1 - keep) (N / B) · new, float64."""
        with jax.enable_x64(True):
            keep = jnp.asarray(keep, jnp.float64)
            add = (1 - keep) * (batch.num_data / len(batch))
            if hasattr(self.model, "combine"):
                return self.model.combine(old, new, keep, add)  # pyright: ignore[reportAttributeAccessIssue]
            return jax.tree.map(lambda a, b: keep * a + add * b, old, new)


__all__ = ["StepwiseEM"]
