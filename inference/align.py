"""What a model does not identify: its draws aligned, and quantities that need no aligning.

A model says so in properties of its own, all optional:

``exchangeable``
    Names of the sites whose leading event axis is the component, in whatever order (a mixture's weights,
    means, …). Latents of rows that number the components are renumbered with them. In a model with
    ``rotated`` loadings and no such latents, components are the columns of the loadings (the precisions of
    automatic relevance determination), and follow the column that each makes most of.
``rotated``
    Names of loading sites ``(…, q)`` that are known up to a rotation or reflection of their last axis, the
    same for all of them. Latents of rows ``(q,)`` are turned with them, so that W z stays as it was.
``invariants(**globals)``
    Named functions of one draw of the global sites that neither numbering nor rotation changes.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import lru_cache
from typing import Any, NamedTuple

import jax
import numpy as np
from numpyro.util import soft_vmap

from inference.compiled import jit
from inference.programs import takes
from inference.relabel import assign, by_labels, by_parameters, ordered, relabelled
from inference.result import Fit, kind_of
from inference.rotate import rotations
from inference.sites import sites, take

MAX_ELEMENTS = 2**24  # numbers that all draws of an invariant may hold

Arrays = dict[str, np.ndarray]


class Aligned(NamedTuple):
    """Draws ``(chain, draw, …)`` of globals and of the rows' latents, and in words what was done."""

    posterior: Arrays
    local: Arrays
    how: str


def unidentified(model: Any) -> tuple[str, ...]:
    """Sites whose draws mean nothing before they are aligned."""
    return (*getattr(model, "exchangeable", ()), *getattr(model, "rotated", ()))


def align(
    model: Any, posterior: Mapping[str, np.ndarray], local: Mapping[str, np.ndarray], labels: Collection[str]
) -> Aligned:
    """Draws with the same numbering of components and the same orientation of loadings in all chains.

    Parameters
    ----------
    model
        With ``exchangeable`` or ``rotated``; of a model without them the draws are returned as they are.
    posterior
        Draws of the global sites, ``(chain, draw, *event)``.
    local
        Draws of the rows' latents under each of them, ``(chain, draw, row, *event)``, some or none.
    labels
        Which of the rows' latents number the components. Without any, components are told apart by their
        parameters.
    """
    posterior, local, how = dict(posterior), dict(local), []
    turn = None
    loadings = [n for n in getattr(model, "rotated", ()) if n in posterior]
    if loadings:
        q = posterior[loadings[0]].shape[-1]
        columns = [_joined(posterior[n]) for n in loadings]
        turn = rotations(np.concatenate([v.reshape(len(v), -1, q) for v in columns], axis=1))
        factors = [n for n, v in local.items() if v.ndim > 3 and v.shape[-1] == q and v.dtype.kind == "f"]
        posterior |= {n: _turned(posterior[n], turn) for n in loadings}
        local |= {n: _turned(local[n], turn) for n in factors}  # (Rᵀ z)ᵀ = zᵀ R
        how.append("loadings in one orientation (Procrustes, then Varimax)")
    components = {n: _joined(posterior[n]) for n in getattr(model, "exchangeable", ()) if n in posterior}
    count = next((v.shape[1] for v in components.values()), 1)
    if count > 1:
        numbers = [_joined(local[n]) for n in labels if n in local]
        if numbers:
            orders = by_labels(np.concatenate([n.reshape(len(n), -1) for n in numbers], axis=1), count)
            by = "by their rows (ECR)"
        elif turn is not None and turn.shape[1] == count:
            orders = assign(turn.mT**2)  # new column k holds the share R_jk² of old column j
            by = "with the columns of the loadings"
        else:
            orders = by_parameters(np.concatenate([v.reshape(len(v), count, -1) for v in components.values()], axis=2))
            by = "by their parameters"
        posterior |= {n: ordered(v, orders).reshape(posterior[n].shape) for n, v in components.items()}
        local |= {n: relabelled(_joined(local[n]), orders).reshape(local[n].shape) for n in labels if n in local}
        moved = (orders != np.arange(count)).any(1).mean()
        how.append(f"components numbered alike {by}, which changed {moved:.0%} of the draws")
    return Aligned(posterior, local, "; ".join(how))


def invariants(model: Any, posterior: Mapping[str, Any]) -> Arrays:
    """The model's invariants at draws ``(chain, draw, *event)``; those of more than 2**24 numbers are left out."""
    if not hasattr(model, "invariants"):
        return {}
    draws = {n: np.asarray(v) for n, v in posterior.items() if takes(model.invariants, n)}
    if not draws:
        return {}
    chains, count = next(iter(draws.values())).shape[:2]
    one = {n: jax.ShapeDtypeStruct(v.shape[2:], v.dtype) for n, v in draws.items()}
    shapes = jax.eval_shape(lambda values: model.invariants(**values), one)
    names = tuple(n for n, s in shapes.items() if s.size * chains * count <= MAX_ELEMENTS)
    found = _invariants(model, names)({n: _joined(v) for n, v in draws.items()})
    return {n: np.asarray(v).reshape(chains, count, *v.shape[1:]) for n, v in found.items()}


@lru_cache(maxsize=32)
def _invariants(model: Any, names: tuple[str, ...]) -> Any:
    def one(values: dict[str, Any]) -> dict[str, Any]:
        found = model.invariants(**values)
        return {n: found[n] for n in names}

    return jit(lambda draws: soft_vmap(one, draws, chunk_size=256))


def identified(fit: Fit) -> Arrays:
    """Draws ``(chain, draw, *event)`` of what the data can tell: invariants, and globals that are not moved.

    Of a model without invariants all draws, as they are. Of restarts, which are not one posterior, the best.
    """
    chains = None if kind_of(fit) == "mcmc" else 1
    posterior = {n: np.asarray(v)[:chains] for n, v in fit.draws.posterior.items()}
    found = invariants(fit.model, posterior)
    if not found:
        return posterior
    known = sites(fit, take(fit.example, np.arange(3) % len(fit.example)))
    moved = {*unidentified(fit.model), *(n for n, site in known.items() if site.local)}
    kept = {n: v for n, v in posterior.items() if n not in moved}
    return kept | {n: v for n, v in found.items() if n not in kept}


def _joined(values: np.ndarray) -> np.ndarray:
    return values.reshape(-1, *values.shape[2:])


def _turned(values: np.ndarray, rotation: np.ndarray) -> np.ndarray:
    """Rows of each draw times its matrix."""
    flat = _joined(values)
    turned = flat.reshape(len(flat), -1, flat.shape[-1]) @ rotation
    return turned.reshape(values.shape).astype(values.dtype)


__all__ = ["Aligned", "align", "identified", "invariants", "unidentified"]
