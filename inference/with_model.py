"""A fit asked about another model: the parameters that were learned, under a prior that was fitted afterwards."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import jax

from inference.errors import Incompatible
from inference.protocols import Draws, Program
from inference.result import Fit
from inference.svi import SVI


def with_model(run: Fit, model: Program, params: dict[str, Any]) -> Fit:
    """The same guide and parameters with another model, whose own parameters are given.

    Nothing is fitted. The history of the run is not that of the new pair, and is left out.

    Parameters
    ----------
    run
        A fit of point estimates by NumPyro's ``SVI``.
    model
        A program with the latents and arguments of the run's model.
    params
        Values of parameters by site name, in place of the run's or besides them.

    Returns
    -------
    Fit
        With the parameters that ``model`` and guide have, and no others.

    Raises
    ------
    Incompatible
        Parameters that are missing or of another shape, globals that were drawn, or another algorithm.
    """
    if not isinstance(run.algorithm, SVI):
        raise Incompatible(f"with_model needs a fit by NumPyro's SVI; this one is by {type(run.algorithm).__name__}.")
    if run.draws.posterior:
        raise Incompatible(
            f"the fit has draws of {sorted(run.draws.posterior)}, made under its own model: with_model is for fits "
            "whose parameters are point estimates."
        )
    algorithm = replace(run.algorithm, model=model)
    example = run.example
    wanted = jax.eval_shape(lambda key: algorithm.params(algorithm.init(key, example), example), jax.random.key(0))
    given = run.params | params
    missing = sorted(wanted.keys() - given.keys())
    if missing:
        raise Incompatible(
            f"the new model and the guide have parameters {sorted(wanted)}, and neither the fit nor params has a value "
            f"of {missing}. Give them in params."
        )
    for name, shapes in wanted.items():
        found = jax.tree.map(jax.numpy.shape, given[name])
        expected = jax.tree.map(jax.numpy.shape, shapes)
        if found != expected:
            raise Incompatible(f"parameter {name!r} has shape {found}; the new model and the guide need {expected}.")
    kept = {name: given[name] for name in wanted}
    draws = Draws(jax.tree.map(lambda v: jax.numpy.asarray(v)[None], kept), {}, {})
    return replace(run, algorithm=algorithm, params=kept, draws=draws, history={})


__all__ = ["with_model"]
