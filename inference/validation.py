"""The bound on held-out rows, evaluated at steps fixed in advance so that runs are repeatable."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import jax
import numpy as np

from inference.compiled import jit
from inference.data import Rows, row_shapes
from inference.errors import BadData, Incompatible
from inference.execution import Runner
from inference.protocols import Batch
from inference.result import rows_of_their_own
from inference.run import Run

VALIDATION_STEPS = 100  # at least this many steps between validations, and whole epochs


@dataclass
class Validation:
    """Evaluates the bound on held-out rows at steps fixed in advance, so that runs are repeatable."""

    algorithm: Any
    source: Any
    runner: Runner
    patience: int | None

    def __post_init__(self) -> None:
        if not isinstance(self.source, Rows):
            raise BadData("validation data must be arrays, not a stream.")
        arrays = getattr(self.runner.source, "arrays", self.source.arrays)
        got, expected = row_shapes(self.source.arrays), row_shapes(arrays)
        if got != expected:
            raise BadData(f"validation rows have shape {got}; expected {expected}, as the training rows.")
        per_epoch = self.runner.schedule.steps_per_epoch
        self.every = per_epoch * max(1, -(-VALIDATION_STEPS // per_epoch))
        if rows_of_their_own(self.algorithm, self.source.batch(slice(0, self.runner.schedule.batch_size))):
            raise Incompatible(
                "the guide has parameters of its own for every training row and none for validation rows. "
                "Use an amortized guide, or leave validation out."
            )

    def until_next(self, step: int) -> int:
        """Steps until the next evaluation."""
        return self.every - step % self.every

    def due(self, step: int) -> bool:
        """Whether it is time."""
        return step % self.every == 0

    def evaluate(self, run: Run) -> None:
        """Record the bound; remember the best state; stop when patience is out."""
        num_data = self.runner.schedule.num_data
        size = min(1024, num_data)
        total, bound = 0.0, np.zeros(self.runner.chains)
        for i, batch in enumerate(self.source.batches(size)):
            batch = Batch(batch.data, batch.rows, num_data)
            value = _evaluate(self.algorithm, self.runner.chains, self.runner.mode)(jax.random.key(i), run.state, batch)
            weight = float(batch.weight)
            bound += np.asarray(value).reshape(-1) * weight
            total += weight
        bound /= total
        run.validation.append((run.step, bound))
        if self.patience is None:
            return
        if bound.max() > run.best_bound:
            run.best_bound, run.best, run.patience = float(bound.max()), run.state, 0
        else:
            run.patience += 1
            run.done = run.done or run.patience >= self.patience


@lru_cache(maxsize=32)
def _evaluate(algorithm: Any, chains: int, mode: str) -> Any:
    if mode == "eager":
        return lambda key, state, batch: np.array([algorithm.evaluate(0, s, batch) for s in state])
    return jit(algorithm.evaluate if chains == 1 else jax.vmap(algorithm.evaluate, in_axes=(None, 0, None)))
