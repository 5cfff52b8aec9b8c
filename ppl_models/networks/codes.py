"""What programs over codes have in common: the sizes of latents and codebook, and a codebook's first vectors."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .layers import check_sizes
from .rows import check_count


def check_codes(program: Any) -> None:
    """Refuse sizes of codes that are none; ``latent_shape`` becomes a tuple."""
    for name in ("num_codes", "code_dim"):
        check_count(**{name: getattr(program, name)})
    shape = program.latent_shape
    shape = (shape,) if isinstance(shape, int) else tuple(shape)
    object.__setattr__(program, "latent_shape", shape)
    check_sizes("latent_shape", shape)
    if len(shape) > 2:
        raise ValueError(
            f"latent_shape is {shape}; expected () for one code a row, (positions,) for a sequence, or (height, width)."
        )


def check_code_levels(program: Any) -> None:
    """Refuse levels of codes that are no grids, or of which a lower one does not refine the one above."""
    shapes = tuple(tuple(shape) for shape in program.latent_shapes)
    object.__setattr__(program, "latent_shapes", shapes)
    if not shapes or any(len(shape) != 2 for shape in shapes):
        raise ValueError(f"latent_shapes is {shapes}; expected the (height, width) of each level, from the top down.")
    for shape in shapes:
        check_sizes("latent_shapes", shape)
    for above, below in pairwise(shapes):
        if below[0] % above[0] or below[1] % above[1]:
            raise ValueError(
                f"latent_shapes is {shapes}: a grid of {below} does not divide into the {above} of the level above. "
                "Make its sides multiples of those, such as ((2, 2), (4, 4))."
            )
    for name in ("num_codes", "code_dim"):
        check_count(**{name: getattr(program, name)})


def refined(vectors: list[Float[Array, "batch h w dim"]], shape: tuple[int, int]) -> Float[Array, "batch h2 w2 dims"]:
    """Grids of vectors, each repeated to a finer grid, side by side."""
    grids = []
    for v in vectors:
        _, h, w, _ = v.shape
        grids.append(jnp.repeat(jnp.repeat(v, shape[0] // h, axis=1), shape[1] // w, axis=2))
    return jnp.concatenate(grids, axis=-1)


def first_codebook(key: Array, encoded: Float[Array, "... dim"], num_codes: int) -> Float[Array, "codes dim"]:
    """Vectors that an encoder gave out, picked at random, with a little noise so that no two are the same."""
    key_row, key_noise = jax.random.split(key)
    vectors = encoded.reshape(-1, encoded.shape[-1])
    rows = jax.random.choice(key_row, len(vectors), (num_codes,), replace=len(vectors) < num_codes)
    spread = jnp.maximum(jnp.std(vectors), 1e-3)  # of a batch of rows that are all alike
    return vectors[rows] + 1e-2 * spread * jax.random.normal(key_noise, (num_codes, vectors.shape[-1]))
