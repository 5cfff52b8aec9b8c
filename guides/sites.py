"""What a model's run shows of its continuous latents, for guides that are derived from a model."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from types import ModuleType
from typing import Any, NamedTuple

import jax
import numpy as np
import numpyro
from numpyro import handlers


class Plate(NamedTuple):
    """A plate a site is in: its position, all its rows, and the rows in this run."""

    name: str
    dim: int
    size: int
    subsample_size: int


class Site(NamedTuple):
    """A continuous latent site, with the shape of one event."""

    name: str
    event_shape: tuple[int, ...]
    support: Any
    plates: tuple[Plate, ...]


def latent_sites(ppl: ModuleType, model: Callable[..., Any], args: tuple, kwargs: dict[str, Any]) -> list[Site]:
    """The continuous latent sites of a model on these arguments, in the order it draws them."""
    return (_numpyro_sites if ppl is numpyro else _pyro_sites)(model, args, kwargs)


def _numpyro_sites(model: Callable[..., Any], args: tuple, kwargs: dict[str, Any]) -> list[Site]:
    sites: list[Site] = []

    def run(key: jax.Array) -> None:
        with handlers.block(), handlers.trace() as trace, handlers.seed(rng_seed=key):
            model(*args, **kwargs)
        sizes = {name: site["args"][0] for name, site in trace.items() if site["type"] == "plate"}
        for name, site in trace.items():
            if site["type"] == "sample" and not site["is_observed"] and not site["fn"].support.is_discrete:
                frames = tuple(Plate(f.name, f.dim, sizes[f.name], f.size) for f in site["cond_indep_stack"])
                sites.append(Site(name, tuple(site["fn"].event_shape), site["fn"].support, frames))

    jax.eval_shape(run, jax.random.key(0))  # shapes only: nothing is computed
    return sites


def _pyro_sites(model: Callable[..., Any], args: tuple, kwargs: dict[str, Any]) -> list[Site]:
    import torch
    from pyro import poutine

    sites = []
    with torch.no_grad(), poutine.block():
        trace = poutine.trace(model).get_trace(*args, **kwargs)
    nodes: dict[str, Any] = dict(trace.nodes)
    for name, site in nodes.items():
        hidden = site["type"] != "sample" or site["is_observed"] or site["infer"].get("_deterministic")
        if hidden or type(site["fn"]).__name__ == "_Subsample" or site["fn"].support.is_discrete:
            continue
        frames = tuple(
            Plate(f.name, f.dim, f.full_size or f.size, f.size) for f in site["cond_indep_stack"] if f.dim is not None
        )
        sites.append(Site(name, tuple(site["fn"].event_shape), site["fn"].support, frames))
    return sites


def initial_values(ppl: ModuleType, model: Any, args: tuple, kwargs: dict[str, Any]) -> Callable[[], dict[str, Any]]:
    """Starting values of the global sites from the data, where the model proposes some (else none).

    Lazy: nothing is computed unless a parameter is being initialised, and then once for all sites,
    since the components of a mixture must come from one proposal.
    """
    if not (hasattr(model, "initial") and hasattr(model, "site_values")):
        return dict
    bound = inspect.signature(model).bind(*args, **kwargs).arguments
    data = {name: value for name, value in bound.items() if np.ndim(value)}
    proposed: dict[str, Any] = {}
    if ppl is numpyro:
        key = numpyro.prng_key()

        def propose() -> dict[str, Any]:
            if not proposed:
                proposed.update(model.site_values(model.initial(key, **data)))
            return proposed

        return propose

    def propose_torch() -> dict[str, Any]:
        import torch

        if not proposed:
            seed = int(torch.randint(2**31, ()))
            arrays = {name: np.asarray(value.cpu()) for name, value in data.items()}
            values = model.site_values(model.initial(jax.random.key(seed), **arrays))
            like = next(iter(data.values()))
            proposed.update(
                {n: torch.as_tensor(np.array(v), dtype=like.dtype, device=like.device) for n, v in values.items()}
            )
        return proposed

    return propose_torch
