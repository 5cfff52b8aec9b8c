"""How the arrays of a row enter an encoder: centred, on a common scale, side by side."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

WEIGHT, MASK = "sample_weight", "_observed"


@dataclass(frozen=True, repr=False)
class RowInput:
    """(x - shift) / scale by column (or one for all), 0 where missing; if ``masked``, the mask beside, as -1 and 1."""

    name: str
    shift: tuple[float, ...]
    scale: tuple[float, ...]
    masked: bool

    def __repr__(self) -> str:
        digest = hashlib.sha256(np.array([self.shift, self.scale]).tobytes()).hexdigest()[:8]
        return f"RowInput({self.name!r}, standardisation={digest}, masked={self.masked})"

    def __call__(self, data: Mapping[str, Any]) -> Float[Array, "batch columns"]:
        """Columns for the encoder, from the arguments of the program."""
        x = jnp.asarray(data[self.name], jnp.float32)
        x = x.reshape(len(x), -1)
        columns = (x - np.array(self.shift, np.float32)) / np.array(self.scale, np.float32)
        observed = data.get(self.name + MASK)
        if observed is not None:
            columns = jnp.where(jnp.reshape(observed, x.shape), columns, 0.0)
        if not self.masked:
            return columns
        mask = jnp.ones_like(x) if observed is None else 2.0 * jnp.reshape(observed, x.shape) - 1.0
        return jnp.concatenate([columns, mask], axis=-1)


def arrays_of(data: Any, model: Callable[..., Any]) -> dict[str, np.ndarray]:
    """The arrays that ``fit`` would give the model, without holes: float32 or integers, masks beside.

    Raises
    ------
    ValueError
        When the model has no argument of an array's name, or none for the mask of one with NaN.
    """
    data = getattr(data, "arrays", data)
    named = dict(data) if isinstance(data, Mapping) else {"x": data}
    parameters = inspect.signature(model).parameters
    anything = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    out: dict[str, np.ndarray] = {}
    for name, value in named.items():
        if name not in parameters and not anything:
            raise ValueError(f"the data has an array {name!r}, and the model takes {list(parameters)}: rename it.")
        value = np.asarray(value)
        if value.ndim == 0 or len(value) == 0:
            raise ValueError(f"array {name!r} has shape {value.shape}; expected a leading axis of one or more rows.")
        if value.dtype.kind == "f":
            value = value.astype(np.float32)
            holes = np.isnan(value)
            if holes.any() and name + MASK not in parameters:
                raise ValueError(
                    f"array {name!r} has {int(holes.sum())} missing entries, and the model has no argument "
                    f"{name + MASK!r} for the mask: give it one, or fill them."
                )
            if holes.any():
                out[name + MASK] = ~holes
                value = np.where(holes, np.float32(0), value)
        out[name] = value
    return out


def row_inputs(arrays: Mapping[str, np.ndarray], model: Callable[..., Any]) -> tuple[RowInput, ...]:
    """How each array enters: those within [0, 1] as 2 x - 1, others standardised by column."""
    masks = {n for n in arrays if n.endswith(MASK) and n.removesuffix(MASK) in arrays}
    found = []
    for name, value in arrays.items():
        if name in masks or name == WEIGHT:
            continue
        x = value.reshape(len(value), -1).astype(np.float64)
        observed = arrays[name + MASK].reshape(x.shape) if name + MASK in masks else np.ones(x.shape, bool)
        if ((x[observed] >= 0) & (x[observed] <= 1)).all():
            shift = scale = np.array([0.5])
        else:
            count = np.maximum(observed.sum(axis=0), 1)
            shift = np.where(observed, x, 0).sum(axis=0) / count
            scale = np.sqrt(np.where(observed, (x - shift) ** 2, 0).sum(axis=0) / count)
            scale = np.where(scale > 0, scale, 1.0)  # a column that never changes enters as 0
        found.append(RowInput(name, tuple(shift.tolist()), tuple(scale.tolist()), name + MASK in masks))
    return tuple(found)
