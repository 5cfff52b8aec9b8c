"""New rows from a fitted model: latents from their prior, inputs and observed sites held where they are given."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from inference.errors import BadData, Incompatible
from inference.programs import anatomy, bind
from inference.protocols import Batch

if TYPE_CHECKING:
    from inference.result import Fit


def generate(
    fit: Fit, num_samples: int, key: int, *, expected: bool, given: Mapping[str, Any], **options: Any
) -> dict[str, np.ndarray]:
    """What :meth:`inference.Fit.generate` returns of programs that are run to draw from them."""
    if options:
        raise Incompatible(f"{type(fit.model).__name__} is drawn from in one way, which has no {sorted(options)}.")
    draws = fit.globals(num_samples, seed=key)
    held = _held(fit, given, num_samples)
    blank = {n: jnp.zeros((num_samples, *v.shape[1:]), v.dtype) for n, v in fit.shapes.items()}
    inputs = _inputs(fit, _batch(blank | held, num_samples), held)
    keys = jax.random.split(jax.random.key(key), num_samples)
    if draws:
        if inputs:
            raise Incompatible(f"each row has its own draw of the globals: use predict(data) with {sorted(inputs)}.")
        draws |= {n: v[:, None] for n, v in held.items()}  # of one row
        row = _batch({n: v[:1] for n, v in blank.items()}, 1)
        out = fit.engine.predict(fit.model, None, fit.params, draws, keys, row, expected=expected)
        return {n: np.asarray(v)[:, 0] for n, v in out.items()}
    rows = _batch(blank | inputs, num_samples)
    params = fit.params | {n: v for n, v in held.items() if n not in inputs}
    out = fit.engine.predict(fit.model, None, params, {}, keys[:1], rows, expected=expected)
    return {n: np.asarray(v)[0] for n, v in out.items()}


def _held(fit: Fit, given: Mapping[str, Any], num_samples: int) -> dict[str, Array]:
    """Given values, one for each row."""
    if not isinstance(given, Mapping):
        raise BadData(f"given is {given!r}; expected a mapping from names to values, such as {{'y': 3}}.")
    out = {}
    for name, value in given.items():
        if name not in fit.shapes:
            raise BadData(f"given is {sorted(given)}; expected names of arrays of the data, {sorted(fit.shapes)}.")
        shape, value = (num_samples, *fit.shapes[name].shape[1:]), np.asarray(value)
        if value.shape not in (shape, shape[1:]):
            raise BadData(f"given {name!r} has shape {value.shape}; expected {shape}, or {shape[1:]} for all rows.")
        dtype = np.dtype(fit.shapes[name].dtype)
        if value.dtype.kind not in ("fiub" if dtype.kind == "f" else "iub"):
            raise BadData(f"given {name!r} has dtype {value.dtype}; expected {dtype}, as in the data.")
        out[name] = jnp.asarray(np.broadcast_to(value, shape), dtype)
    return out


def _inputs(fit: Fit, rows: Batch, held: dict[str, Any]) -> dict[str, Any]:
    """Which of the held values are inputs of the model, run on these rows; those that it does not generate must be."""
    if fit.algorithm.engine == "pyro":
        from inference.pyro_anatomy import anatomy as torch_anatomy
        from inference.pyro_programs import bind as torch_bind

        device = fit.algorithm.device
        observed = torch_anatomy(torch_bind(fit.model, rows, device), device).observed
    else:
        observed = anatomy(bind(fit.model, rows)).observed
    inputs = sorted(set(fit.shapes) - set(observed) - set(held))
    if inputs:
        raise Incompatible(
            f"{inputs} are inputs of the model that it does not generate: give them, as in "
            f"generate(n, given={{{inputs[0]!r}: value}}), or use predict(data) to draw the observed sites at "
            "inputs of your own."
        )
    return {n: v for n, v in held.items() if n not in observed}


def _batch(data: dict[str, Array], size: int) -> Batch:
    return Batch(data, jnp.arange(size, dtype=jnp.int32), size)


__all__ = ["generate"]
