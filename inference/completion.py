"""Rows completed: chains of an energy program clamped at what is observed, or one exact pass, entry by entry."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Bool

from inference import energy_posterior
from inference.check import program_name
from inference.compiled import jit
from inference.data import Rows
from inference.errors import BadData, Incompatible
from inference.programs import anatomy, bind, trace
from inference.protocols import Batch, Energy, Program
from inference.simulate import as_mask


def complete(fit: Any, rows: Rows, observed: Any, num_sweeps: int, key: int) -> dict[str, np.ndarray]:
    """Rows of an observed site with what is not observed drawn given the rest.

    Raises
    ------
    Incompatible
        When the program has neither an energy nor rows drawn entry by entry.
    BadData
        When ``observed`` does not fit the rows, or comes too late in their order.
    """
    if isinstance(getattr(fit.model, "program", fit.model), Energy):
        return energy_posterior.complete(fit, rows, observed, num_sweeps, key)
    if fit.algorithm.engine != "numpyro":
        raise Incompatible(f"{program_name(fit.model)} runs in Pyro, and rows are completed by NumPyro programs.")
    batch = rows.batch(slice(0, 1))
    site = _site(fit, batch)
    mask = as_mask(observed, (rows.num_data, *batch.data[site].shape[1:]))

    def look(params: Any) -> None:
        trace(bind(fit.model, batch), jax.random.key(0), params)[site]["fn"].check_observed(mask)

    try:
        jax.eval_shape(look, fit.params)  # the order is part of the architecture
    except ValueError as error:
        raise BadData(str(error)) from None
    parts, first = [], 0
    for i, batch in enumerate(rows.batches(fit._batch_rows(rows))):
        part, first = mask[first : first + len(batch)], first + len(batch)
        parts.append(_completed(fit.model, site)(jax.random.key(key + i), fit.params, batch, part))
    return {site: np.concatenate([np.asarray(p) for p in parts])}


def _site(fit: Any, batch: Batch) -> str:
    """The observed site that can be completed: given the row's entries, and nothing that is not known."""
    parts, found = anatomy(bind(fit.model, batch)), []

    def look(key: Array) -> None:
        tr = trace(bind(fit.model, batch), key)
        found.extend(n for n in parts.observed if hasattr(tr[n]["fn"], "complete"))

    jax.eval_shape(look, jax.random.key(0))
    if not found:
        raise Incompatible(
            f"{program_name(fit.model)} cannot complete rows: an energy program can (RBM, BoltzmannMachine), and one "
            "whose rows are drawn entry by entry (MADE, PixelCNN)."
        )
    if parts.latent:
        raise Incompatible(
            f"{program_name(fit.model)} draws rows given {list(parts.latent)}, of which no posterior given part of a "
            "row is known. Complete rows with a model without latents, such as PixelCNN."
        )
    return found[0]


@lru_cache(maxsize=32)
def _completed(model: Program, site: str) -> Any:
    def run(key: Array, params: Any, batch: Batch, observed: Bool[Array, "batch D"]) -> Array:
        fn = trace(bind(model, batch), key, params)[site]["fn"]
        return fn.complete(key, batch.data[site], observed)

    return jit(run)


__all__ = ["complete"]
