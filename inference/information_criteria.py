"""Akaike's and the Bayesian information criterion of a maximum-likelihood fit. Smaller is better.

    AIC = -2 log p(x) + 2 p,    BIC = -2 log p(x) + p log N,

with p free parameters. Both in nats (times two), over all rows.

References
----------
Akaike, "A new look at the statistical model identification", 1974.
Schwarz, "Estimating the dimension of a model", 1978.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from inference.check import program_name
from inference.compiled import jit
from inference.data import Rows, as_data
from inference.errors import BadData, Incompatible
from inference.result import Fit, kind_of


def aic(fit: Fit, data: Any) -> float:
    """Akaike's criterion of a fit by EM, on the rows it was fitted to."""
    log_likelihood, free, _ = _ingredients(fit, data)
    return -2 * log_likelihood + 2 * free


def bic(fit: Fit, data: Any) -> float:
    """The Bayesian information criterion of a fit by EM, on the rows it was fitted to."""
    log_likelihood, free, rows = _ingredients(fit, data)
    return -2 * log_likelihood + free * float(np.log(rows))


def _ingredients(fit: Fit, data: Any) -> tuple[float, int, float]:
    """Log likelihood of the rows in nats, free parameters, and how many rows count."""
    model, name = fit.model, program_name(fit.model)
    missing = [part for part in ("e_step", "num_parameters") if not hasattr(model, part)]
    if missing or kind_of(fit) != "point":
        raise Incompatible(
            f"information criteria are of a maximum-likelihood fit: {type(fit.algorithm).__name__} of {name}"
            + (f" has no {', '.join(missing)}." if missing else " is none.")
            + " Fit with EM, or compare log_likelihood on held-out rows."
        )
    fit._rows(data)  # refuses rows of other shapes
    rows = as_data(data, model, fit.guide)
    if not isinstance(rows, Rows):
        raise BadData("expected arrays, not a stream.")
    total = weight = 0.0
    e_step = jit(model.e_step)
    for batch in rows.batches(2**16):
        total += float(e_step(fit.params, **batch.data)[0])
        weight += float(batch.weight)
    columns = int(np.prod(next(iter(fit.shapes.values())).shape[1:]))
    return total, model.num_parameters(columns), weight


__all__ = ["aic", "bic"]
