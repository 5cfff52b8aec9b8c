"""The density that gradient-based samplers follow: p(data, globals), unconstrained, the rest summed out.

Local latents that the program can integrate out (``marginal``) are, discrete ones are enumerated, and
constrained sites move in unconstrained coordinates, whose log Jacobian the density holds.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array
from numpyro import handlers
from numpyro.infer.initialization import init_to_uniform, init_to_value
from numpyro.infer.util import constrain_fn, initialize_model, potential_energy
from numpyro.util import soft_vmap

from inference.check import check
from inference.errors import Incompatible
from inference.programs import anatomy, bind
from inference.protocols import Batch, Program


def target(model: Program) -> Program:
    """The program that is sampled: ``marginal``, where the model offers it."""
    return getattr(model, "marginal", model)


def check_target(name: str, model: Program, batch: Batch) -> None:
    """Refuse what a sampler called ``name`` cannot follow gradients of.

    Raises
    ------
    Incompatible
        For minibatches, discrete latents that cannot be summed out, nothing to sample, parameters to learn.
    """
    if len(batch) < batch.num_data:
        raise Incompatible(f"{name} needs all rows in every step: use batch_size=None, or SVI for minibatches.")
    check(target(model), data=batch)
    parts = anatomy(bind(target(model), batch))
    stuck = parts.discrete - parts.enumerable
    if stuck:
        raise Incompatible(
            f"{name} follows gradients, and {sorted(stuck)} are discrete and cannot be summed out (one variable "
            "of finite support a site can). Use SVI with ScoreFunction()."
        )
    if not set(parts.latent) - parts.discrete:
        raise Incompatible(f"the model has no continuous latent site for {name} to sample.")
    if parts.params:
        raise Incompatible(
            f"the model has parameters {list(parts.params)}, which {name} does not learn. Give them priors "
            "(numpyro.sample), or use SVI."
        )


def start(model: Program, key: Array, batch: Batch) -> Any:
    """A valid unconstrained point ``z``, its ``potential_energy`` and ``z_grad``.

    At what the model proposes (``initial``, ``site_values``), else uniform on (-2, 2).
    """
    key_start, key_init = jax.random.split(key)
    strategy = init_to_uniform
    if hasattr(model, "site_values"):
        values: Any = model
        proposed = values.site_values(values.initial(key_start, **batch.data))
        strategy = init_to_value(values={n: jnp.asarray(v, dtype=jnp.float32) for n, v in proposed.items()})
    thunk = bind(target(model), batch)
    return initialize_model(key_init, thunk, init_strategy=strategy, validate_grad=True).param_info


def potential(model: Program, batch: Batch) -> Callable[[dict[str, Array]], Any]:
    """-log p(data, globals) in nats, a scalar function of unconstrained sites."""
    thunk = bind(target(model), batch)
    parts = anatomy(thunk)
    enumerated = bool(parts.discrete)
    if enumerated:
        from numpyro.contrib.funsor import config_enumerate, enum

        thunk = enum(config_enumerate(thunk), first_available_dim=-1 - parts.nesting)
    return lambda z: potential_energy(thunk, (), {}, z, enum=enumerated)


def constrained(model: Program, key: Array, z: dict[str, Array], batch: Batch) -> dict[str, Array]:
    """Unconstrained draws ``(draw, ...)`` in the model's own spaces, with its deterministic sites."""
    thunk = bind(target(model), batch)
    program = handlers.seed(thunk, key)

    def one(z: dict[str, Array]) -> dict[str, Array]:
        return constrain_fn(program, (), {}, z, return_deterministic=True)

    posterior = soft_vmap(one, z, chunk_size=32)
    parts = anatomy(thunk)
    return {n: v for n, v in posterior.items() if n not in parts.discrete | set(parts.observed)}


__all__ = ["check_target", "constrained", "potential", "start", "target"]
