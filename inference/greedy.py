"""Greedy layerwise learning of deep programs: one restricted machine after the other, on what the one below infers.

The first machine learns the rows; every next one the hidden units of the one below, drawn in every step from their
probabilities. A program may ask for copies of a layer (a deep Boltzmann machine does: a layer of it has input from both
sides, and while it is learned from one). Then rows are set beside themselves, and every step of the optimizer is
projected onto machines whose copies have the same weights.

References
----------
A Fast Learning Algorithm for Deep Belief Nets (Hinton, Osindero and Teh, 2006).
Deep Boltzmann Machines (Salakhutdinov and Hinton, 2009).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from inference.check import program_name
from inference.contrastive_divergence import ContrastiveDivergence
from inference.data import Rows, as_data
from inference.errors import BadData, Incompatible
from inference.fit import as_key, fit

Learn = Callable[[Any], ContrastiveDivergence]


def greedy(model: Any, data: Any, learn: Learn, *, key: int | Array, **options: Any) -> dict[str, Array]:
    """Parameters of a deep program from those of restricted machines, learned one after the other.

    Parameters
    ----------
    model
        A program with ``machines``, ``copies`` and ``stacked``: ``DeepBeliefNetwork`` or ``DeepBoltzmannMachine``.
    data
        Rows as for ``fit``.
    learn
        The algorithm for a machine, such as ``lambda rbm: ContrastiveDivergence(rbm, persistent=True)``.
    key
        Seed.
    options
        For :func:`inference.fit`, the same for every machine: ``num_epochs``, ``batch_size``, …

    Returns
    -------
    dict
        Parameters by site name: ``initial`` of :class:`~inference.up_down.UpDown` or
        :class:`~inference.contrastive_divergence.ContrastiveDivergence`.

    Raises
    ------
    Incompatible
        When the program has no layers to learn, or ``learn`` returns another algorithm.
    """
    missing = [n for n in ("machines", "copies", "stacked") if not hasattr(model, n)]
    if missing:
        raise Incompatible(
            f"greedy learns a deep program layer by layer, and {program_name(model)} has no {', '.join(missing)}: "
            "DeepBeliefNetwork and DeepBoltzmannMachine have them."
        )
    rows = as_data(data, model)
    if not isinstance(rows, Rows):
        raise BadData("greedy needs arrays, not a stream: every machine goes over the rows of the one below.")
    parts = []
    for layer, (machine, (below, above)) in enumerate(zip(model.machines, model.copies, strict=True)):
        algorithm = _tied(learn(machine), below, above)
        doubled = replace(rows, transform=_Side(rows.transform, below))
        run = fit(algorithm, doubled, key=jax.random.fold_in(as_key(key), layer), **options)
        parts.append(run.params)
        rows = _hidden(machine, run.params, doubled, above)
    return model.stacked(parts)


def _tied(algorithm: Any, below: int, above: int) -> Any:
    """The algorithm, with copies of a layer kept equal."""
    if not isinstance(algorithm, ContrastiveDivergence):
        raise Incompatible(
            f"learn returned {program_name(algorithm)}; greedy learns machines by ContrastiveDivergence, as in "
            "lambda rbm: ContrastiveDivergence(rbm, persistent=True)."
        )
    if below == above == 1:
        return algorithm
    return replace(algorithm, optimizer=optax.chain(algorithm.optimizer, tied(below, above)))


def tied(below: int, above: int) -> optax.GradientTransformation:
    """Project every step onto machines whose ``below`` copies of visible units are alike, and ``above`` of hidden ones.

    The nearest one has their mean; the first step ties what started untied.
    """
    copies = {"weights": (below, above), "visible_bias": (below,), "hidden_bias": (above,)}

    def project(name: str, value: Array) -> Array:
        split = [n for size, c in zip(value.shape, copies[name], strict=True) for n in (c, size // c)]
        axes = tuple(range(0, len(split), 2))
        mean = value.reshape(split).mean(axes, keepdims=True)
        return jnp.broadcast_to(mean, split).reshape(value.shape)

    def update(updates: Any, params: Any) -> Any:
        return {n: project(n, params[n] + step) - params[n] for n, step in updates.items()}

    return optax.stateless(update)


@dataclass(frozen=True)
class _Side:
    """A transform of rows: the one before, and then each beside itself."""

    before: Any
    copies: int

    def __call__(self, key: Array, data: dict[str, Array]) -> dict[str, Array]:
        data = data if self.before is None else self.before(key, data)
        return data | {"x": jnp.tile(data["x"], (1, self.copies))}


@dataclass(frozen=True)
class _Draw:
    """A transform of rows: probabilities drawn anew."""

    def __call__(self, key: Array, data: dict[str, Array]) -> dict[str, Array]:
        return data | {"x": jax.random.bernoulli(key, data["x"]).astype(jnp.float32)}


def _hidden(machine: Any, params: Any, rows: Rows, above: int) -> Rows:
    """Rows of hidden probabilities of one copy, drawn anew in every batch."""
    mean = jax.jit(machine.hidden_mean)
    parts = [np.asarray(mean(params, batch.data["x"])) for batch in rows.batches(1024)]
    found: Float[np.ndarray, "rows hidden"] = np.concatenate(parts)
    return Rows({"x": found[:, : found.shape[1] // above]}, _Draw(), rows.name)


__all__ = ["greedy", "tied"]
