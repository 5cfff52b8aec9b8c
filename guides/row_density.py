"""log p(x, z) of each row as a function of its latent, for guides that ask the model while they guess. NumPyro only."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float
from numpyro import handlers

Program = Callable[..., Any]


def row_log_joint(
    model: Program, site: str, x: Float[Array, "batch pixels"], num_data: int | None
) -> Callable[[Float[Array, "batch latent_dim"]], Float[Array, " batch"]]:
    """log p(x_n, z_n) in nats, each row counted once, whatever the scale of its plate.

    To be called in a guide's run, outside its plate: the model's parameters become sites of that run, under their
    names, so that they are the model's own.

    Parameters
    ----------
    model
        A program whose one latent is ``site``, in its data plate.
    site
        Name of the latent.
    x, num_data
        The model's arguments.

    Raises
    ------
    ValueError
        Another latent in the model, or a latent that is not in one plate, over rows.
    """
    with handlers.block(expose_types=["param", "plate"]), handlers.trace() as first:
        model(x, num_data=num_data)
    latent = [n for n, s in first.items() if s["type"] == "sample" and not s["is_observed"]]
    if latent != [site]:
        raise ValueError(
            f"the guide asks the model for log p(x, z) as a function of {site!r} alone, and the model's latent sites "
            f"are {latent}. Use a guide that samples them all, or name the site."
        )
    frames = first[site]["cond_indep_stack"]
    if len(frames) != 1 or frames[0].size != len(x):
        raise ValueError(
            f"{site!r} is in the plates {[f.name for f in frames]} of the model; expected one, over the {len(x)} rows."
        )
    held = {n: s["value"] for n, s in first.items() if s["type"] in ("param", "plate")}

    def log_joint(z: Float[Array, "batch latent_dim"]) -> Float[Array, " batch"]:
        with (
            handlers.block(),
            handlers.trace() as tr,
            handlers.seed(rng_seed=0),
            handlers.substitute(data=held | {site: z}),
        ):
            model(x, num_data=num_data)
        return jnp.asarray(sum(s["fn"].log_prob(s["value"]) for s in tr.values() if s["type"] == "sample"))

    return log_joint
