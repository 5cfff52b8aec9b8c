"""What a model's run shows of its latents, for guides that are derived from a model."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
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
    """A latent site, with the shape of one event; enumerable when it is one variable with finitely many values."""

    name: str
    event_shape: tuple[int, ...]
    support: Any
    plates: tuple[Plate, ...]
    enumerable: bool = False

    @property
    def batch_shape(self) -> tuple[int, ...]:
        """All rows of each plate, at its dimension."""
        shape = [1] * max((-frame.dim for frame in self.plates), default=0)
        for frame in self.plates:
            shape[frame.dim] = frame.size
        return tuple(shape)


def open_plates(ppl: ModuleType, sites: Iterable[Site]) -> Callable[[Site], AbstractContextManager[None]]:
    """The plates of these sites, made once: ``with inside(site):`` opens those that a site is in."""
    frames = {frame.name: frame for site in sites for frame in site.plates}
    plates = {f.name: ppl.plate(f.name, f.size, subsample_size=f.subsample_size, dim=f.dim) for f in frames.values()}

    @contextmanager
    def inside(site: Site) -> Iterator[None]:
        with ExitStack() as stack:
            for frame in site.plates:
                stack.enter_context(plates[frame.name])
            yield

    return inside


def check_site(name: Any) -> None:
    """Refuse what cannot be the name of a guide's latent site."""
    if not isinstance(name, str) or not name:
        raise ValueError(f"site is {name!r}; expected the name of a latent site.")


def latent_sites(ppl: ModuleType, model: Callable[..., Any], args: tuple, kwargs: dict[str, Any]) -> list[Site]:
    """The continuous latent sites of a model on these arguments, in the order it draws them."""
    return (_numpyro_sites if ppl is numpyro else _pyro_sites)(model, args, kwargs)


def _numpyro_sites(model: Callable[..., Any], args: tuple, kwargs: dict[str, Any]) -> list[Site]:
    return [site for site in abstract_sites(model, args, kwargs) if not site.support.is_discrete]


def abstract_sites(model: Callable[..., Any], args: tuple, kwargs: dict[str, Any]) -> list[Site]:
    """All latent sites of a NumPyro model, discrete ones too, by shapes only: nothing is computed."""
    sites: list[Site] = []
    jax.eval_shape(lambda key: sites.extend(all_sites(model, args, kwargs, key)), jax.random.key(0))
    return sites


def all_sites(model: Callable[..., Any], args: tuple, kwargs: dict[str, Any], key: jax.Array) -> list[Site]:
    """All latent sites of a NumPyro model, discrete ones too, in a run that is really carried out."""
    with handlers.block(), handlers.trace() as trace, handlers.seed(rng_seed=key):
        model(*args, **kwargs)
    sizes = {name: site["args"][0] for name, site in trace.items() if site["type"] == "plate"}
    sites = []
    for name, site in trace.items():
        if site["type"] == "sample" and not site["is_observed"]:
            fn, frames = site["fn"], site["cond_indep_stack"]
            plates = tuple(Plate(f.name, f.dim, sizes[f.name], f.size) for f in frames)
            sites.append(Site(name, tuple(fn.event_shape), fn.support, plates, _is_enumerable(fn)))
    return sites


def _is_enumerable(fn: Any) -> bool:
    """Whether NumPyro can sum the site out: of ``Bernoulli.to_event(1)``, a product of many variables, it cannot."""
    inside = fn
    while hasattr(inside, "base_dist"):
        inside = inside.base_dist
    return bool(fn.has_enumerate_support) and fn.event_dim == inside.event_dim


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
