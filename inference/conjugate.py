"""What Gibbs and variational Bayes share: what they ask of a program, and its log joint without locals."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from inference.check import check, declared_ppls, program_name, readable
from inference.errors import Incompatible
from inference.posterior import local_draw
from inference.programs import anatomy, bind, density, has_marginal, marginal_density, takes
from inference.protocols import Batch, Program

Values = dict[str, Any]


def check_program(algorithm: str, model: Any, parts: tuple[str, ...]) -> None:
    """Refuse a program that lacks one of these methods, or is written for Pyro."""
    name = program_name(model)
    missing = [part for part in parts if not hasattr(model, part)]
    if missing:
        raise Incompatible(
            f"{algorithm} needs a program with exact conditionals, and {name} has no {', '.join(missing)}: use "
            "NUTS(model), or SVI(model, guide, ELBO(), optimizer). GaussianMixture has them."
        )
    if any(ppl.__name__ == "pyro" for ppl in declared_ppls(model)):
        raise Incompatible(
            f"{algorithm} runs on NumPyro, and this {name} has ppl=pyro: leave ppl out, or use PyroNUTS or PyroSVI."
        )


def check_batch(algorithm: str, model: Any, steps: tuple[str, ...], batch: Batch) -> None:
    """Refuse minibatches, data that are not the program's, and data that one of its steps does not take."""
    if len(batch) < batch.num_data:
        raise Incompatible(
            f"{algorithm} needs all rows in every step, and the batch has {len(batch)} of {batch.num_data}: use "
            "batch_size=None, or SVI for minibatches."
        )
    name = program_name(model)
    for step in steps:
        missing = [argument for argument in batch.data if not takes(getattr(model, step), argument)]
        if missing and takes(model, missing[0]):
            raise Incompatible(
                f"{algorithm}: the data has {missing[0]!r}, which {name} takes but its {step} does not. Leave it out, "
                "or use EM(model) or NUTS(model)."
            )
    check(model, data=batch)
    params = anatomy(bind(model, batch)).params
    if params:
        raise Incompatible(
            f"{name} has parameters {list(params)}, which {algorithm} does not learn. Give them priors "
            "(numpyro.sample), or use SVI."
        )


def check_globals(algorithm: str, model: Any, step: str, draw: Any, batch: Batch) -> None:
    """Refuse steps whose draws, ``draw(key)``, are not the program's global sites."""
    name = program_name(model)
    parts = anatomy(bind(model, batch))
    expected = {n: parts.values[n] for n in parts.latent if n not in parts.local}
    with readable(f"{name}.{step}"):
        found = {n: tuple(v.shape) for n, v in jax.eval_shape(draw, jax.random.key(0)).items()}
    if found != expected:
        raise Incompatible(f"{name}.{step} draws {found}, and the global sites of {name} are {expected}.")


def log_joint(model: Program, values: Values, key: Array, batch: Batch) -> Float[Array, ""]:
    """log p(x, globals) in nats, the local latents integrated out.

    By the program's own ``log_joint(globals, **data)``, by its ``marginal`` or by enumeration, where it
    has one of them. Otherwise by its exact ``posterior``, since for any z

        log p(x, g) = log p(x, z, g) - log p(z | x, g).
    """
    if hasattr(model, "log_joint"):
        return model.log_joint(values, **batch.data)
    values = {n: jnp.asarray(v, jnp.float32) for n, v in values.items()}
    if has_marginal(model, batch):
        return marginal_density(model, batch, key, values).total()
    guide, plate = bind(model.posterior, batch), anatomy(bind(model, batch)).plate
    values |= local_draw(model, model.posterior, values, key, batch)
    rows = density(guide, key, values, plate).rows
    return density(bind(model, batch), key, values, plate).total() - jnp.sum(rows)


__all__ = ["check_batch", "check_globals", "check_program", "log_joint"]
