"""A function mapped over many draws a few at a time, so that memory is bounded and it is compiled once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


def map_batches(function: Callable[[Any], Any], xs: Any, most: int) -> Any:
    """``jax.lax.map`` in batches of equal size.

    Where the last batch is smaller, ``jax.lax.map`` compiles the function for it a second time; here it is
    filled up with the first elements, whose results are dropped.

    Parameters
    ----------
    function
        Of one element.
    xs
        Arrays (a pytree) whose leading axes have one length, at least 1.
    most
        Elements at once, at most.

    Returns
    -------
    Any
        Its results, with the same leading axis.
    """
    count = len(jax.tree.leaves(xs)[0])
    batches = -(-count // max(1, most))
    size = -(-count // batches)
    if count == batches * size:
        return jax.lax.map(function, xs, batch_size=size)
    filled = jnp.arange(batches * size) % count
    out = jax.lax.map(function, jax.tree.map(lambda v: v[filled], xs), batch_size=size)
    return jax.tree.map(lambda v: v[:count], out)


__all__ = ["map_batches"]
