"""Do these three go together, in Pyro? The refusals of :mod:`inference.check`, answered by small real runs."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.nn import PyroModule
from torch.distributions import constraints

from inference.check import check_arguments, check_weights, declared_ppls, program_name, readable, support_name
from inference.errors import BadData, Incompatible
from inference.objectives import Pair
from inference.programs import Anatomy, scaled_rows
from inference.protocols import Batch, Program
from inference.pyro_anatomy import anatomy, row_plates, sample_sites
from inference.pyro_objectives import estimator
from inference.pyro_programs import bind, rehearsal, to_torch, trace


def check(
    model: Program, guide: Program | None = None, objective: Any = None, data: Any = None, device: str = "cpu"
) -> None:
    """Refuse a Pyro model, guide, objective and batch that do not go together.

    Parameters
    ----------
    model, guide
        Pyro programs; without a guide only the model is checked.
    objective
        ELBO, IWAE, Renyi or ScoreFunction of :mod:`inference.objectives`, or one of ``pyro.infer``.
    data
        A :class:`~inference.protocols.Batch`.
    device
        Where to run.

    Raises
    ------
    Incompatible
        Naming the site, what was found, what was expected, and what would do instead.
    BadData
        When data lie outside the support of the likelihood.
    """
    batch, name = to_torch(data, device), program_name(model)
    parts = _anatomy(model, batch, device)
    _check_plates(model, parts, batch, name, device)
    check_support(model, batch, device)
    if guide is None:
        return
    guide_parts = _anatomy(guide, batch, device)
    with readable(f"model {name} with guide {program_name(guide)}"):
        both = Pair(bind(model, batch, device), bind(guide, batch, device), parts, guide_parts)
        _check_pair(both)
        if objective is not None:
            estimate = estimator(objective, both)
            with rehearsal(device):
                estimate.loss(both.model, both.guide)


def check_engine(program: Program) -> None:
    """Refuse a program of another engine, and one that keeps weights of its own."""
    name = program_name(program)
    other = sorted(ppl.__name__ for ppl in declared_ppls(program) if ppl is not pyro)
    if other:
        raise Incompatible(
            f"{name} is written for ppl={other[0]}, and this algorithm runs Pyro programs. Make it with ppl=pyro "
            "(and whatever it holds), or use SVI, NUTS or EM."
        )
    if isinstance(getattr(program, "__self__", program), PyroModule):
        raise Incompatible(
            f"{name} is a PyroModule, which keeps its weights from one run to the next, so that a run would not be "
            "a function of its key. Use a function with pyro.param or pyro.module, or guides.MeanField."
        )


def _anatomy(program: Program, batch: Batch, device: str) -> Anatomy:
    name = program_name(program)
    check_arguments(program, batch, name)
    check_engine(program)
    shapes = {n: tuple(v.shape) for n, v in batch.data.items()}
    with readable(f"{name} on arrays of shape {shapes}"):
        return anatomy(bind(program, batch, device), device)


def _check_plates(model: Program, parts: Anatomy, batch: Batch, name: str, device: str) -> None:
    with readable(f"{name} at one row more"):
        growing = row_plates(model, batch, device)
    if not parts.observed:
        raise Incompatible(f"{name} observes nothing: no pyro.sample(..., obs=...) was met. Is it a Pyro program?")
    minibatch = len(batch) < batch.num_data
    if parts.plate is not None and not growing:
        size, _ = parts.plates[parts.plate]
        raise Incompatible(
            f"the plate {parts.plate!r} of {name} has {size} rows whatever the data: the batch has {len(batch)}. "
            "Write pyro.plate(name, num_data or len(x), subsample_size=len(x))."
        )
    shared = [n for n in parts.latent if n not in parts.local]
    if not minibatch or not shared:
        return
    if scaled_rows(model, batch) != batch.num_data:
        raise Incompatible(
            f"{name} has global latents {shared} but takes no num_data, so minibatches of {len(batch)} of "
            f"{batch.num_data} rows would count their prior {batch.num_data // len(batch)} times too much. "
            "Take num_data=None and write pyro.plate(name, num_data or len(x), subsample_size=len(x))."
        )
    if parts.plate is None:
        raise Incompatible(
            f"{name} has global latents {shared} and no plate over its rows, so minibatches cannot be scaled. "
            "Put the observed sites in a plate, or use batch_size=None."
        )
    if parts.plates[parts.plate][0] != batch.num_data:
        raise Incompatible(
            f"the plate {parts.plate!r} of {name} has size {parts.plates[parts.plate][0]}, but the data has "
            f"{batch.num_data} rows: without the factor N / B its global latents {shared} train to a wrong answer. "
            "Pass num_data as the plate's size."
        )


def check_support(model: Program, batch: Batch, device: str = "cpu") -> None:
    """Refuse observed values outside their likelihood's support, naming site, value and row."""
    with rehearsal(device):
        nodes = trace(bind(model, batch, device))
    for name, site in sample_sites(nodes).items():
        if not site["is_observed"] or isinstance(site["fn"], dist.Unit):
            continue
        values, inside = site["value"], site["fn"].support.check(site["value"])
        if bool(inside.all()):
            continue
        row = int((~inside).nonzero()[0][0]) if inside.dim() else 0
        bad = (values[row] if values.dim() else values).flatten()
        raise BadData(
            f"site {name!r} is observed outside its likelihood's support, {support_name(site['fn'].support)}: the "
            f"data range over [{values.min():g}, {values.max():g}] (first in row {row}, e.g. "
            f"{bad[bad.abs().argmax()]:g}). Rescale or binarize the data, or choose another likelihood."
        )


def _check_pair(both: Pair) -> None:
    parts, guide_parts = both.parts, both.guide_parts
    extra = set(guide_parts.latent) - set(parts.latent)
    if extra:
        raise Incompatible(
            f"the guide samples {sorted(extra)}, which the model does not: the model's latent sites are "
            f"{list(parts.latent)}. Rename the guide's sites after the model's."
        )
    uncovered = both.left_out - parts.enumerable
    if uncovered:
        raise Incompatible(
            f"the guide leaves out {sorted(uncovered)}, which cannot be summed out exactly "
            "(only discrete sites with finite support can). Sample them in the guide."
        )
    for name in guide_parts.latent:
        ours, theirs = parts.shapes[name], guide_parts.shapes[name]
        if ours != theirs:
            raise Incompatible(f"site {name!r} has shape {ours} in the model but {theirs} in the guide.")
        ours, theirs = parts.supports[name], guide_parts.supports[name]
        if not _within(theirs, ours):
            raise Incompatible(
                f"the guide draws {name!r} from {support_name(theirs)}, outside its support in the model, "
                f"{support_name(ours)}. Use a distribution on that support, or transform a Normal with biject_to."
            )
    misplaced = {n for n in parts.local & set(guide_parts.latent) if parts.plate not in guide_parts.frames[n]}
    if misplaced:
        raise Incompatible(
            f"{sorted(misplaced)} are in the plate {parts.plate!r} in the model but not in the guide, so the two are "
            "scaled differently. Open the same plate, by name, in the guide."
        )
    check_weights(both)
    for plate, size in guide_parts.plates.items():
        if parts.plates.get(plate, size) != size:
            raise Incompatible(
                f"the plate {plate!r} has (size, rows) {parts.plates[plate]} in the model and {size} in the guide."
            )
    if not parts.params and not guide_parts.params:
        raise Incompatible("neither model nor guide has a parameter (pyro.param) to be learned.")


def _within(inner: Any, outer: Any) -> bool:
    """Whether every value of one support lies in the other, as far as its kind tells."""
    while hasattr(inner, "base_constraint"):
        inner = inner.base_constraint
    while hasattr(outer, "base_constraint"):
        outer = outer.base_constraint
    if inner is None or outer is None or inner is outer:
        return True
    if inner.is_discrete != outer.is_discrete:
        return False
    if isinstance(outer, type(constraints.real)):
        return True
    ours, theirs = _bounds(outer), _bounds(inner)
    if ours is None or theirs is None:
        return type(inner) is type(outer)
    return ours[0] <= theirs[0] and theirs[1] <= ours[1]


def _bounds(support: Any) -> tuple[float, float] | None:
    low, high = getattr(support, "lower_bound", None), getattr(support, "upper_bound", None)
    if low is None and high is None:
        return None
    infinity = float("inf")
    return (
        -infinity if low is None else float(torch.as_tensor(low).min()),
        infinity if high is None else float(torch.as_tensor(high).max()),
    )


__all__ = ["check", "check_engine", "check_support", "declared_ppls"]
