"""A network outside a program, at the weights that a fit found."""

from __future__ import annotations

from collections.abc import Mapping
from types import ModuleType
from typing import Any

import numpy as np
import numpyro
from jaxtyping import Float
from numpyro import handlers

from .apply import network


def fitted_network(
    ppl: ModuleType, name: str, architecture: Any, out_size: int, params: Mapping[str, Any], x: Any
) -> Float[np.ndarray, "rows out"]:
    """Outputs of a program's network.

    Parameters
    ----------
    ppl, name, architecture, out_size
        As the program gives them to :func:`~ppl_models.networks.network`.
    params
        Of the fit, by site name.
    x
        Inputs, shape ``(rows, in_size)``.
    """
    x = np.asarray(x, np.float32)
    if ppl is numpyro:
        with handlers.block(), handlers.seed(rng_seed=0), handlers.substitute(data=dict(params)):
            return np.asarray(network(ppl, name, architecture, x.shape[-1], out_size)(x))
    import pyro
    import torch
    from torch.distributions import constraints

    weights = {n: torch.as_tensor(np.array(v)) for n, v in params.items() if n.startswith(f"{name}.")}
    state: Any = {"params": weights, "constraints": dict.fromkeys(weights, constraints.real)}
    with pyro.get_param_store().scope(state), torch.no_grad():
        return network(ppl, name, architecture, x.shape[-1], out_size)(torch.as_tensor(x)).numpy()
