"""A program that makes its rows, seen as one that observes them: an implicit model, without a likelihood.

    z ~ p(z),   x = g(z)

has no density to evaluate, only draws. Here a deterministic site named after an array of the data becomes a Delta at
what the program made, observed at the data's rows, so that the questions asked of any model (new rows, rows beside
the data) have one answer, and those that need log p(x) can be refused with the reason.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from jaxtyping import Array
from numpyro import handlers
from numpyro.ops.provenance import eval_provenance
from numpyro.primitives import Messenger

from inference.check import check_arguments, program_name, readable
from inference.errors import Incompatible
from inference.programs import anatomy, bind, trace
from inference.protocols import Batch, Program


@dataclass(frozen=True)
class Implicit:
    """The program with the sites that are named after its arguments observed there.

    Parameters
    ----------
    generator
        A NumPyro program with a deterministic site ``x``, or a sample site ``x`` (observed or not), for data named
        ``x``. Arrays that no site is named after are its inputs.
    """

    generator: Program

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the program on its arguments."""
        bound = inspect.signature(self.generator).bind(*args, **kwargs)
        data = {n: v for n, v in (bound.arguments | kwargs).items() if jnp.ndim(v)}
        with handlers.condition(data=data), _Observe(data):
            return self.generator(*args, **kwargs)

    @property
    def __signature__(self) -> inspect.Signature:
        return inspect.signature(self.generator)


class _Observe(Messenger):
    """A deterministic site of this name becomes an observed Delta."""

    def __init__(self, data: dict[str, Any]):
        self.data = data
        super().__init__()

    def process_message(self, msg: dict[str, Any]) -> None:
        if msg["type"] != "deterministic" or msg["name"] not in self.data:
            return
        value, obs = msg["value"], self.data[msg["name"]]
        if jnp.shape(value) != jnp.shape(obs):
            raise Incompatible(
                f"the program makes {msg['name']!r} with shape {jnp.shape(value)}, and the data has {jnp.shape(obs)}: "
                "give its network outputs of the size of a row."
            )
        msg["stop"] = True  # it is a sample site now
        numpyro.sample(msg["name"], dist.Delta(value, event_dim=jnp.ndim(value) - 1), obs=obs)


@dataclass(frozen=True)
class ImplicitGuide:
    """A guide that makes latents from the row and noise, z = f(x, e), seen as one that samples them.

    Its deterministic sites become the latents, Deltas at what it made; its own sample sites are noise, and hidden.

    Parameters
    ----------
    maker
        A NumPyro program with a deterministic site for each latent of the model.
    """

    maker: Program

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the guide on its arguments."""
        with _Latents():
            return self.maker(*args, **kwargs)

    @property
    def __signature__(self) -> inspect.Signature:
        return inspect.signature(self.maker)


class _Latents(Messenger):
    """Deterministic sites become samples of a Delta, and sample sites are drawn unseen."""

    def process_message(self, msg: dict[str, Any]) -> None:
        if msg["type"] == "deterministic":
            msg["stop"] = True
            numpyro.sample(msg["name"], dist.Delta(msg["value"], event_dim=jnp.ndim(msg["value"]) - 1))
        elif msg["type"] == "sample" and not isinstance(msg["fn"], dist.Delta) and not msg["is_observed"]:
            msg["stop"] = True
            msg["kwargs"]["rng_key"] = numpyro.prng_key()


def generated(model: Program, batch: Batch) -> tuple[str, ...]:
    """Arrays of the data that the model makes; the others are its inputs."""
    observed = anatomy(bind(model, batch)).observed
    return tuple(n for n in batch.data if n in observed)


def generate(model: Program, batch: Batch, key: Array, params: dict[str, Any]) -> tuple[dict[str, Any], Any]:
    """All sites of one run that draws its rows anew, and its factors, nats per row of the batch."""
    tr = trace(handlers.uncondition(bind(model, batch)), key, params)
    sites = {n: s for n, s in tr.items() if s["type"] in ("sample", "deterministic")}
    factors = [n for n, s in sites.items() if s["type"] == "sample" and isinstance(s["fn"], dist.Unit)]
    total = sum(jnp.sum(sites[n]["fn"].log_factor) for n in factors) / len(batch)
    return {n: s["value"] for n, s in sites.items() if n not in factors}, total


def check_generator(model: Program, batch: Batch) -> None:
    """Refuse a program that makes none of the data, or whose draws carry no gradient to its parameters."""
    name = program_name(getattr(model, "generator", model))
    check_arguments(model, batch, name)
    with readable(f"{name} on arrays of shape { {n: tuple(v.shape) for n, v in batch.data.items()} }"):
        made = generated(model, batch)
    if not made:
        raise Incompatible(
            f"{name} has no site named after the data, {sorted(batch.data)}: the rows it makes must be a site of that "
            'name, as in numpyro.deterministic("x", g(z)).'
        )
    blocked = _without_gradient(model, batch)
    if blocked:
        raise Incompatible(
            f"sites {blocked} of {name} depend on its parameters and have no reparameterised sampler, so that no "
            "gradient passes from the rows to the parameters. Draw them from distributions without parameters, or "
            "relax them."
        )


def _without_gradient(model: Program, batch: Batch) -> list[str]:
    thunk = handlers.uncondition(bind(model, batch))
    first = jax.eval_shape(partial(_params, thunk), jax.random.key(0))

    def distributions(**params: Any) -> dict[str, Any]:
        tr = trace(thunk, jax.random.key(0), params)
        drawn = {n: s["fn"] for n, s in tr.items() if s["type"] == "sample" and not s["is_observed"]}
        rough = {n: fn for n, fn in drawn.items() if not fn.has_rsample and not isinstance(fn, dist.Unit)}
        return {n: jax.tree.leaves(fn) for n, fn in rough.items()}

    sources = eval_provenance(distributions, **first)
    return [n for n, leaves in sources.items() if frozenset().union(*leaves)]


def _params(thunk: Any, key: Array) -> dict[str, Any]:
    return {n: s["value"] for n, s in trace(thunk, key).items() if s["type"] == "param"}


__all__ = ["Implicit", "ImplicitGuide", "check_generator", "generate", "generated"]
