"""What goes into a network beside a latent, and what its outputs mean: for the arrays of either engine."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import jax.numpy as jnp
import numpy as np
from array_api_compat import array_namespace, device
from jax.core import Tracer

from .apply import check_architecture
from .layers import softplus

# softplus underflows to 0 in float32 near raw = -104; log scale must stay finite there.
SCALE_FLOOR = 1e-6


def diagonal_normal(ppl: ModuleType, outputs: Any) -> Any:
    """N(loc, diag(scale)²) with scale = softplus(raw), of a network's outputs (loc, raw).

    Parameters
    ----------
    ppl
        ``numpyro`` or ``pyro``.
    outputs
        Locations, then scales before their softplus, shape ``(..., 2 * latent_dim)``.

    Returns
    -------
    Distribution
        Batch shape ``(...)``, event shape ``(latent_dim,)``.
    """
    loc, scale = loc_scale(outputs)
    return ppl.distributions.Normal(loc, scale).to_event(1)


def loc_scale(outputs: Any) -> tuple[Any, Any]:
    """The two halves of a network's outputs, as location and scale."""
    # Split at once: the gradient of two slices is two padded arrays, added.
    loc, raw = outputs.chunk(2, -1) if hasattr(outputs, "chunk") else jnp.split(outputs, 2, axis=-1)
    return loc, softplus(raw) + SCALE_FLOOR


def one_hot(y: Any, num_classes: int, like: Any) -> Any:
    """Whole numbers ``(...)`` as unit vectors ``(..., num_classes)`` in the floating-point type of ``like``."""
    xp = _namespace(y)
    return xp.astype(y[..., None] == xp.arange(num_classes, device=device(y)), like.dtype)


def where(condition: Any, one: Any, other: Any) -> Any:
    """``one`` where the condition holds, else ``other``; given arrays may be NumPy's, and drawn ones the engine's."""
    return _namespace(condition, one, other).where(condition, one, other)


def beside(*parts: Any) -> Any:
    """Rows side by side, their leading axes (rows, particles, enumerated values) broadcast."""
    xp = _namespace(*parts)
    batch = xp.broadcast_arrays(*(part[..., 0] for part in parts))[0].shape
    return xp.concat([xp.broadcast_to(part, (*batch, part.shape[-1])) for part in parts], axis=-1)


def _namespace(*arrays: Any) -> Any:
    """The engine's functions, if one of the arrays is the engine's."""
    return array_namespace(*[a for a in arrays if not isinstance(a, np.ndarray)] or arrays)


def check_count(**counts: Any) -> None:
    """Refuse what is not a whole number of at least one."""
    for name, value in counts.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} is {value!r}; expected a whole number of at least 1.")


def row_shape(x: Any) -> tuple[int, int]:
    """Rows and columns of x; refuse what is no matrix."""
    if x.ndim != 2:
        raise ValueError(
            f"x has shape {tuple(x.shape)}; expected rows of pixels, (rows, pixels). Images are rows after "
            "x.reshape(len(x), -1)."
        )
    return x.shape


def check_classes(y: Any, num_classes: int, unknown: bool = False) -> None:
    """Refuse what is no class of a row, and would be a vector of zeros. While code is compiled it is not known.

    Parameters
    ----------
    y
        Classes, from 0 to ``num_classes - 1``, shape ``(rows,)``.
    num_classes
        How many there are.
    unknown
        Whether -1 is allowed besides.
    """
    if y.ndim != 1:
        raise ValueError(f"classes y have shape {tuple(y.shape)}; expected one whole number a row, (rows,).")
    if isinstance(y, Tracer):
        return
    y = np.asarray(y.cpu() if hasattr(y, "cpu") else y)
    if y.min() < -unknown or y.max() >= num_classes or (y != np.round(y)).any():
        raise ValueError(
            f"classes y range over [{y.min()}, {y.max()}]; expected whole numbers from 0 to {num_classes - 1}"
            + (", or -1 where unknown." if unknown else ".")
        )


def check_layers(ppl: ModuleType, latent_dims: Any, name: str, architectures: Any) -> tuple[tuple, tuple]:
    """Lengths of layers and an architecture for each, as tuples; refuse what is not."""
    dims = tuple(latent_dims) if isinstance(latent_dims, (tuple, list)) else (latent_dims,)
    if not dims or not all(isinstance(n, int) and not isinstance(n, bool) and n >= 1 for n in dims):
        raise ValueError(
            f"latent_dims is {latent_dims!r}; expected whole numbers of at least 1, from the data upwards."
        )
    networks = tuple(architectures) if isinstance(architectures, (tuple, list)) else (architectures,)
    if len(networks) != len(dims):
        raise ValueError(f"{name} has {len(networks)} networks; expected {len(dims)}, one for each of latent_dims.")
    for n, architecture in enumerate(networks, 1):
        check_architecture(ppl, f"{name}[{n - 1}]", architecture)
    return dims, networks
