"""Questions to a fitted pair of Pyro programs, as in :mod:`inference.posterior`; answers are NumPy arrays.

``values`` hold parameters (in their own spaces) and one draw of the global latents by name. Draws and
particles are looped over, never vectorised.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyro
import torch
from jaxtyping import Float
from pyro import poutine
from pyro.infer import config_enumerate, infer_discrete
from torch import Tensor

from inference.errors import Incompatible
from inference.estimate import log_likelihood
from inference.generation import generate
from inference.protocols import Batch, Program
from inference.pyro_anatomy import describe, sample_sites, without_factors
from inference.pyro_density import at_values, density, marginal_density
from inference.pyro_programs import Nodes, bind, private, seed_of, to_tensor, to_torch, trace

Values = Mapping[str, Any]


def on(device: str) -> SimpleNamespace:
    """The questions of this module, answered on a torch device."""
    questions = (guide_draws, local_draws, row_log_likelihood, predict)
    here = {q.__name__: partial(q, device=device) for q in questions}
    return SimpleNamespace(**here, generate=generate, log_likelihood=log_likelihood)


def guide_draws(
    model: Program,
    guide: Program,
    params: Values,
    key: Any,
    batch: Batch,
    num_draws: int = 500,
    *,
    device: str = "cpu",
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Draws of the globals from the guide, with ``lp`` = log p(x, g) and ``log_weight`` = lp - log q(g).

    Local latents are integrated out where that is exact; otherwise both densities are joint with
    locals drawn from the guide. Nats, for the whole data set. Empty without global latents.
    """
    batch, params = to_torch(batch, device), _tensors(params, device)
    draws: list[dict[str, Any]] = []
    # Of a run that was stopped because a bound is not finite, draws are shown as they are.
    with private(seed_of(key), params, device=device), torch.no_grad(), pyro.validation_enabled(False):
        thunk = bind(model, batch, device)
        guided = bind(guide, batch, device)
        latents = _latents(trace(guided))
        parts = describe(trace(thunk, latents))
        shared = [n for n in latents if n not in parts.local]
        if not shared:
            return {}, {}
        marginal = marginal_density(model, batch, latents, device)
        for _ in range(num_draws):
            q = trace(guided)
            latents = _latents(q)
            draw = {n: latents[n] for n in shared}
            log_q = density(without_factors(q), parts.plate)
            if marginal is not None:
                lp, log_q = marginal(params | draw).total(), log_q.shared
            else:
                lp, log_q = at_values(thunk, params | latents, parts).total(), log_q.total()
            draws.append(draw | {"lp": lp, "log_weight": lp - log_q})
    stacked = _stack(draws)
    return {n: stacked.pop(n) for n in shared}, stacked


def _local_draw(model: Program, guide: Program | None, values: dict[str, Tensor], batch: Batch, device: str) -> Values:
    """One draw of the latents of these rows: from the guide, and exactly for what it leaves out."""
    latents: dict[str, Tensor] = {}
    if guide is not None:
        latents = _latents(trace(bind(guide, batch, device), values))
        latents = {n: v for n, v in latents.items() if n not in values}
    thunk = poutine.condition(bind(model, batch, device), data=values | latents)
    parts = describe(trace(thunk))
    if not parts.latent:
        return latents
    if not set(parts.latent) <= parts.enumerable:
        missing = sorted(set(parts.latent) - parts.enumerable)
        raise Incompatible(f"there is no posterior to draw {missing} from: neither guide nor enumeration.")
    sampled = infer_discrete(
        config_enumerate(thunk),
        first_available_dim=-1 - parts.nesting,
        temperature=1,
        strict_enumeration_warning=False,
    )
    drawn = trace(sampled)
    return latents | {n: drawn[n]["value"] for n in parts.latent}


def local_draws(
    model: Program,
    guide: Program | None,
    params: Values,
    draws: Values,
    keys: Any,
    batch: Batch,
    *,
    device: str = "cpu",
) -> dict[str, np.ndarray]:
    """The rows' latents for each of S keys and stacked draws of the globals: arrays ``(S, batch, *event)``."""
    batch = to_torch(batch, device)
    out = []
    for seed, values in _each(params, draws, keys, device):
        with private(seed, values, device=device), torch.no_grad():
            out.append(_local_draw(model, guide, values, batch, device))
    return _stack(out)


def row_log_likelihood(
    model: Program,
    guide: Program | None,
    values: Values,
    key: Any,
    batch: Batch,
    num_particles: int,
    *,
    device: str = "cpu",
) -> tuple[Float[np.ndarray, " batch"], Float[np.ndarray, " batch"]]:
    """log p(x_n | globals, parameters) in nats per row, locals integrated out, and its Monte-Carlo variance.

    Exact (zero variance) where the locals can be summed or integrated; otherwise importance sampling
    from the guide with ``num_particles`` draws.
    """
    batch, values = to_torch(batch, device), _tensors(values, device)
    with private(seed_of(key), values, device=device), torch.no_grad():
        thunk = bind(model, batch, device)
        parts = describe(trace(thunk, values))
        if parts.plate is None:
            raise Incompatible("the model has no plate over its rows: put its observed sites in one.")
        marginal = marginal_density(model, batch, values, device)
        if marginal is not None:
            rows = _array(marginal(values).rows)
            return rows, np.zeros_like(rows)
        if guide is None:
            raise Incompatible(
                "the likelihood of a row needs its local latents integrated out: give the model a `marginal`, "
                "make them discrete (they are summed), or fit a guide to sample them from."
            )
        guided = bind(guide, batch, device)
        # Streamed: running log sums of w and w^2.
        first = second = torch.full((len(batch),), -math.inf, dtype=torch.float64)
        for _ in range(num_particles):
            q = trace(guided, values)
            p = at_values(thunk, values | _latents(q), parts)
            w = (p.rows - density(without_factors(q), parts.plate).rows).double()
            first, second = torch.logaddexp(first, w), torch.logaddexp(second, 2 * w)
    # Delta method: var(log mean w) = var(w) / (K mean(w)^2) = (K sum w^2 / (sum w)^2 - 1) / K
    k = num_particles
    variance = torch.clamp(k * torch.exp(second - 2 * first) - 1, min=0) / k
    return _array(first) - math.log(k), _array(variance)


def predict(
    model: Program,
    guide: Program | None,
    params: Values,
    draws: Values,
    keys: Any,
    batch: Batch,
    *,
    expected: bool,
    device: str = "cpu",
) -> dict[str, np.ndarray]:
    """Observed sites anew for each of S keys and stacked draws of the globals: ``(S, batch, *event)``.

    With a guide the rows' latents come from their posterior (replicated data), without from the
    prior (new data). ``expected`` returns the likelihood's mean in place of a draw.
    """
    batch = to_torch(batch, device)
    thunk = bind(model, batch, device)
    out = []
    for seed, values in _each(params, draws, keys, device):
        with private(seed, values, device=device), torch.no_grad():
            observed = describe(trace(thunk, values)).observed
            if guide is not None:
                values = values | dict(_local_draw(model, guide, values, batch, device))
            drawn = trace(poutine.uncondition(thunk), values)
        out.append({n: drawn[n]["fn"].mean if expected else drawn[n]["value"] for n in observed})
    return _stack(out)


def _each(params: Values, draws: Values, keys: Any, device: str) -> Iterable[tuple[int, dict[str, Tensor]]]:
    """A seed, and parameters with one draw of the globals, for each key."""
    params, draws = _tensors(params, device), _tensors(draws, device)
    for s in range(len(keys)):
        yield seed_of(keys[s]), params | {n: v[s] for n, v in draws.items()}


def _tensors(values: Values, device: str) -> dict[str, Tensor]:
    return {n: to_tensor(v, device) for n, v in values.items()}


def _latents(nodes: Nodes) -> dict[str, Tensor]:
    return {n: s["value"] for n, s in sample_sites(nodes).items() if not s["is_observed"]}


def _array(value: Tensor) -> np.ndarray:
    return value.detach().cpu().numpy()


def _stack(draws: list[Any]) -> dict[str, np.ndarray]:
    return {n: np.stack([_array(draw[n]) for draw in draws]) for n in draws[0]}
