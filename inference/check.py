"""Do these three go together? Answered by abstract runs, before anything is compiled.

Programs are traced on shapes alone (milliseconds), at B and at B + 1 rows, so that the plates over
rows are known and what would train silently to a wrong answer is refused.
"""

from __future__ import annotations

import inspect
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from functools import lru_cache
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
from jax.core import Tracer
from numpyro.distributions import constraints
from numpyro.infer import elbo
from numpyro.infer.autoguide import AutoGuide
from numpyro.ops.provenance import eval_provenance

from inference.compiled import jit
from inference.data import Rows, as_data
from inference.errors import BadData, Incompatible
from inference.objectives import Pair, pair
from inference.programs import Anatomy, anatomy, bind, on_rows, row_plates, scaled_rows, takes, trace
from inference.protocols import Batch, Program


def check(model: Program, guide: Program | None = None, objective: Any = None, data: Any = None) -> None:
    """Refuse a model, guide, objective and data that do not go together.

    Parameters
    ----------
    model, guide
        NumPyro programs; without a guide only the model is checked.
    objective
        From :mod:`inference.objectives` or ``numpyro.infer``.
    data
        Whatever :func:`inference.fit` takes, or one :class:`~inference.protocols.Batch`.

    Raises
    ------
    Incompatible
        Naming the site, what was found, what was expected, and what would do instead.
    BadData
        When data lie outside the support of the likelihood.
    """
    batch = data if isinstance(data, Batch) else _whole(data, model, guide)
    parts = check_model(model, batch)
    if guide is None:
        return
    both = check_guide(model, guide, parts, batch)
    if objective is not None:
        check_objective(objective, model, guide, both, batch)


def check_model(model: Program, batch: Batch) -> Anatomy:
    """:func:`check` of a model alone: what its abstract run shows."""
    name = program_name(model)
    _check_engine(model, name)
    check_arguments(model, batch, name)
    parts = _abstract(model, batch, name)
    _check_plates(model, parts, batch, name)
    check_support(model, batch)
    return parts


def check_guide(model: Program, guide: Program, parts: Anatomy, batch: Batch) -> Pair:
    """:func:`check` of a guide beside a model that has passed, ``parts`` what its run shows: the two together."""
    name = program_name(model)
    made = sorted({*parts.deterministic, *parts.points.intersection(parts.observed)}.intersection(batch.data))
    if made:
        raise Incompatible(
            f"{name} is implicit: it makes {made} without a density, so there is no likelihood to bound. Use "
            "Adversarial(model, critic), or give the model a likelihood of the data."
        )
    if isinstance(guide, AutoGuide):
        raise Incompatible(
            f"{type(guide).__name__} keeps state from its first call, so it is not a value and runs would share it. "
            "Use guides.MeanField(model), which is the same family as AutoNormal, or write the guide as a function."
        )
    _check_engine(guide, program_name(guide))
    check_arguments(guide, batch, program_name(guide))
    _abstract(guide, batch, program_name(guide))
    with _readable_pair(model, guide):
        both = pair(bind(model, batch), bind(guide, batch), (), {}, {})
        _check_latents(both)
        _check_shared_params(both)
    return both


def check_objective(objective: Any, model: Program, guide: Program, both: Pair, batch: Batch) -> None:
    """:func:`check` of an objective for a pair that has passed."""
    with _readable_pair(model, guide):
        _check_numpyro_objective(objective, both, model, batch)
        if isinstance(objective, type) or not hasattr(objective, "loss"):
            raise Incompatible(f"{objective!r} is not an objective: expected one of inference.objectives.")
        jax.eval_shape(lambda key: _loss(objective, model, guide, batch, key), jax.random.key(0))


def _readable_pair(model: Program, guide: Program) -> Any:
    return readable(f"model {program_name(model)} with guide {program_name(guide)}")


def _whole(data: Any, model: Program, guide: Program | None) -> Batch:
    source = as_data(data, model, guide)
    return source.whole() if isinstance(source, Rows) else source.first


def _loss(objective: Any, model: Program, guide: Program, batch: Batch, key: Any) -> Any:
    guide = objective.guide(guide) if hasattr(objective, "guide") else guide
    first = trace(bind(guide, batch), key)
    latents = {n: s["value"] for n, s in first.items() if s["type"] == "sample"}
    both = first | trace(bind(model, batch), key, latents)
    values = {n: s["value"] for n, s in both.items() if s["type"] in ("param", "mutable")}
    return objective.loss(key, values, on_rows(model, batch), on_rows(guide, batch), **batch.data)


def program_name(program: Any) -> str:
    """How an error names a program."""
    if hasattr(program, "__self__"):  # a bound method such as model.posterior
        return f"{type(program.__self__).__name__}.{program.__name__}"
    return getattr(program, "__name__", type(program).__name__)


@contextmanager
def readable(what: str) -> Any:
    """Turn an error raised inside JAX or NumPyro into one about the user's programs."""
    try:
        yield
    except (Incompatible, BadData):
        raise
    except Exception as error:
        text = str(error).split("\n\n")[0].strip()
        raise Incompatible(f"{what} could not be run: {type(error).__name__}: {text}") from None


def declared_ppls(program: Any) -> set[ModuleType]:
    """The engines that a program and the programs inside it say they are written for."""
    program = getattr(program, "__self__", program)  # of a bound method such as model.posterior
    found = {ppl for ppl in [getattr(program, "ppl", None)] if isinstance(ppl, ModuleType)}
    if is_dataclass(program) and not isinstance(program, type):
        found.update(*(declared_ppls(getattr(program, f.name)) for f in fields(program)))
    return found


def _check_engine(program: Program, name: str) -> None:
    """Refuse a program that says it is written for Pyro."""
    other = sorted(ppl.__name__ for ppl in declared_ppls(program) if ppl is not numpyro)
    if other:
        raise Incompatible(
            f"{name} is written for ppl={other[0]}, and this algorithm runs NumPyro programs. Make it with "
            "ppl=numpyro (and whatever it holds), or use PyroSVI or PyroNUTS."
        )


def check_arguments(program: Program, batch: Batch, name: str) -> None:
    if isinstance(program, type) or not callable(program):
        hint = f"a value of it, {name}(...)" if isinstance(program, type) else "a function with sample sites"
        raise Incompatible(f"{name} is {'a class' if isinstance(program, type) else 'not callable'}; expected {hint}.")
    missing = [argument for argument in batch.data if not takes(program, argument)]
    if missing:
        raise Incompatible(
            f"the data has {sorted(batch.data)}, but {name} takes {inspect.signature(program)}: it has no argument "
            f"{missing[0]!r}. Rename the arrays of the data, or the arguments (model and guide take the same)."
        )
    for argument, parameter in inspect.signature(program).parameters.items():
        required = parameter.default is parameter.empty and parameter.kind not in (
            parameter.VAR_KEYWORD,
            parameter.VAR_POSITIONAL,
        )
        if required and argument not in batch.data and argument != "num_data":
            raise Incompatible(f"{name} needs an argument {argument!r}; the data has {sorted(batch.data)}.")


def _abstract(program: Program, batch: Batch, name: str) -> Anatomy:
    shapes = {n: tuple(v.shape) for n, v in batch.data.items()}
    with readable(f"{name} on arrays of shape {shapes}"):
        return anatomy(bind(program, batch))


def _check_plates(model: Program, parts: Anatomy, batch: Batch, name: str) -> None:
    arguments = {"num_data": batch.num_data} if takes(model, "num_data") else {}
    with readable(f"{name} at one row more"):
        growing = row_plates(model, (), dict(batch.data) | arguments)
    minibatch = len(batch) < batch.num_data
    if parts.plate is not None and parts.plate not in growing and not growing:
        size, _ = parts.plates[parts.plate]
        raise Incompatible(
            f"the plate {parts.plate!r} of {name} has {size} rows whatever the data: the batch has {len(batch)}. "
            "Write numpyro.plate(name, num_data or len(x), subsample_size=len(x))."
        )
    for site in parts.observed:
        if parts.values[site] != parts.shapes[site]:
            raise Incompatible(
                f"site {site!r} is observed with shape {parts.values[site]}, but its distribution in {name} has shape "
                f"{parts.shapes[site]}: they would be broadcast and the data counted many times. Give the columns to "
                "one event with .to_event(1), or drop the axis, for example y[:, 0]."
            )
    if minibatch and parts.observed:
        _check_indexing(model, parts, batch, name)
    shared = [n for n in (*parts.latent, *parts.observed, *parts.factors) if parts.plate not in parts.frames[n]]
    if minibatch and shared and scaled_rows(model, batch) != batch.num_data:
        raise Incompatible(
            f"{name} has global sites {shared} but takes no num_data, so minibatches of {len(batch)} of "
            f"{batch.num_data} rows would count them {batch.num_data // len(batch)} times too much. "
            "Take num_data=None and write numpyro.plate(name, num_data or len(x), subsample_size=len(x))."
        )
    if minibatch and shared and parts.plate is not None and parts.plates[parts.plate][0] != batch.num_data:
        raise Incompatible(
            f"the plate {parts.plate!r} of {name} has size {parts.plates[parts.plate][0]}, but the data has "
            f"{batch.num_data} rows: without the factor N / B its global sites {shared} train to a wrong answer. "
            "Pass num_data as the plate's size."
        )
    if minibatch and shared and parts.plate is None:
        raise Incompatible(
            f"{name} has global sites {shared} and no plate over its rows, so minibatches cannot be scaled. "
            "Put the observed sites in a plate, or use batch_size=None."
        )


def _check_indexing(model: Program, parts: Anatomy, batch: Batch, name: str) -> None:
    """Refuse ``obs=x[rows]``: the batch is already cut, and JAX would clamp the row numbers in silence."""

    def observed(rows: Any) -> dict[str, Any]:
        tr = trace(bind(model, Batch(batch.data, rows, batch.num_data)), jax.random.key(0))
        return {n: tr[n]["value"] for n in parts.observed}

    cut = [n for n, source in eval_provenance(observed, rows=batch.rows).items() if source]
    if cut:
        raise Incompatible(
            f"{name} indexes the data of {cut} with the plate's rows, but the batch it is given is already cut: "
            "observe x, not x[rows]. (The rows are for parameters of single rows.)"
        )


def check_support(model: Program, batch: Batch) -> None:
    """Refuse observed values outside their likelihood's support, naming site, value and row.

    Only the supports are compiled: what they do not depend on is never computed.
    """
    for name, inside in _inside_support(model)(jax.random.key(0), batch).items():
        inside = np.asarray(inside)
        if inside.all():
            continue
        where = tuple(np.argwhere(~inside)[0]) if inside.ndim else ()
        tr = trace(bind(model, batch), jax.random.key(0))
        value, support = np.asarray(tr[name]["value"]), tr[name]["fn"].support
        raise BadData(
            f"site {name!r} is observed outside its likelihood's support, {support_name(support)}: "
            f"row {where[0] if where else 0} holds {_offending(support, value[where]):g}, and the data range over "
            f"[{value.min():g}, {value.max():g}]. Rescale or binarize the data, or choose another likelihood."
        )


def _offending(support: Any, values: np.ndarray) -> float:
    """The entry of a row to show: the furthest from zero, of those outside the support by themselves if any are."""
    outside = ~np.asarray(_base(support)(values))
    shown = values[outside] if outside.shape == np.shape(values) and outside.any() else np.ravel(values)
    return float(shown[np.argmax(np.abs(shown))])


@lru_cache(maxsize=32)
def _inside_support(model: Program) -> Any:
    def inside(key: Any, batch: Batch) -> dict[str, Any]:
        observed = set(anatomy(bind(model, batch)).observed)
        tr = trace(bind(model, batch), key)
        return {n: jnp.asarray(tr[n]["fn"].support(tr[n]["value"])) for n in observed}

    return jit(inside)


def support_name(support: Any) -> str:
    while hasattr(support, "base_constraint"):
        support = support.base_constraint
    if support.is_discrete and hasattr(support, "lower_bound") and isinstance(support.upper_bound, int):
        return f"whole numbers from {support.lower_bound} to {support.upper_bound}"
    if support.is_discrete and hasattr(support, "levels"):
        return f"grey levels 0, 1/{support.levels - 1}, … 1"
    return type(support).__name__.strip("_").lower().replace("_", " ")


def _base(support: Any) -> Any:
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    return support


def _within(inner: Any, outer: Any) -> bool:
    """Whether every value of one support lies in the other, as far as its kind tells."""
    inner, outer = _base(inner), _base(outer)
    real = (type(constraints.real), type(constraints.real_vector), type(constraints.real_matrix))
    if isinstance(outer, real) and not inner.is_discrete:
        return True
    limits = [getattr(s, f"{side}_bound", None) for s in (inner, outer) for side in ("lower", "upper")]
    if any(isinstance(limit, Tracer) for limit in limits):  # they depend on other sites or parameters
        return type(inner) is type(outer)
    if inner == outer:
        return True
    bounded = any(hasattr(outer, f"{side}_bound") for side in ("lower", "upper"))
    if type(inner) is type(outer) and not bounded:
        return True
    bounds = [(getattr(s, "lower_bound", -np.inf), getattr(s, "upper_bound", np.inf)) for s in (inner, outer)]
    positive = (
        type(constraints.positive),
        type(constraints.nonnegative),
        type(constraints.softplus_positive),
    )
    if isinstance(inner, positive):
        bounds[0] = (0.0, np.inf)
    if isinstance(outer, positive):
        bounds[1] = (0.0, np.inf)
    if inner.is_discrete != outer.is_discrete or bounds[1] == (-np.inf, np.inf):
        return False
    return bool(np.all(bounds[0][0] >= bounds[1][0]) and np.all(bounds[0][1] <= bounds[1][1]))


def _check_latents(both: Pair) -> None:
    for name in both.guide_parts.latent:
        ours, theirs = both.parts.supports[name], both.guide_parts.supports[name]
        if not _within(theirs, ours) and name not in both.guide_parts.points:
            raise Incompatible(
                f"the guide draws {name!r} from {support_name(theirs)}, outside its support in the model, "
                f"{support_name(ours)}. Use a distribution on that support, or transform a Normal with biject_to."
            )
    misplaced = (both.parts.local & set(both.guide_parts.latent)) - _inside(both.guide_parts, both.parts.plate)
    if misplaced:
        raise Incompatible(
            f"{sorted(misplaced)} are in the plate {both.parts.plate!r} in the model but not in the guide, so the "
            "two are scaled differently. Open the same plate, by name, in the guide."
        )
    check_weights(both)
    for plate, size in both.guide_parts.plates.items():
        if plate in both.parts.plates and both.parts.plates[plate] != size:
            raise Incompatible(
                f"the plate {plate!r} has (size, rows) {both.parts.plates[plate]} in the model and {size} in the guide."
            )


def check_weights(both: Pair) -> None:
    """Refuse sites whose rows have weights of their own in one of the two programs alone."""
    uneven = sorted(set(both.guide_parts.latent) & (both.parts.weighted ^ both.guide_parts.weighted))
    if uneven:
        raise Incompatible(
            f"rows of {uneven} count by a weight each (handlers.scale) in one of model and guide alone, so that log p "
            "and log q of a row would weigh differently. Scale both alike, repeat rows in place of weights, or take a "
            "guide that does, such as the model's own posterior."
        )


def _check_shared_params(both: Pair) -> None:
    """A parameter that both programs have is one parameter: refuse two that have but the name in common."""
    shared = set(both.parts.params) & set(both.guide_parts.params)

    def values(thunk: Any) -> dict[str, Any]:
        return jax.eval_shape(lambda key: {n: trace(thunk, key)[n]["value"] for n in shared}, jax.random.key(0))

    if shared:
        ours, theirs = (
            {n: jax.tree.map(lambda leaf: leaf.shape, value) for n, value in values(thunk).items()}
            for thunk in (both.model, both.guide)
        )
        for name in sorted(shared):
            if ours[name] != theirs[name]:
                raise Incompatible(
                    f"model and guide both have the parameter {name!r}, which is then one parameter, but its shapes "
                    f"are {jax.tree.leaves(ours[name], is_leaf=_is_shape)} in the model and "
                    f"{jax.tree.leaves(theirs[name], is_leaf=_is_shape)} in the guide. Give both the same (a VampPrior "
                    "the guide's own encoder), or rename one of them."
                )


def _is_shape(value: Any) -> bool:
    return isinstance(value, tuple)


def _inside(parts: Anatomy, plate: str | None) -> set[str]:
    return {n for n in parts.latent if plate in parts.frames[n]}


def _check_numpyro_objective(objective: Any, both: Pair, model: Program, batch: Batch) -> None:
    """NumPyro's own objectives, where they would go wrong without a word."""
    if not isinstance(objective, elbo.ELBO):
        return
    discrete = [n for n in both.guide_parts.latent if n not in both.guide_parts.pathwise]
    minibatch = len(batch) < batch.num_data and takes(model, "num_data")
    pathwise = (elbo.Trace_ELBO, elbo.TraceMeanField_ELBO, elbo.RenyiELBO)
    if discrete and isinstance(objective, pathwise):
        raise Incompatible(
            f"numpyro's {type(objective).__name__} has no gradient for {discrete}, which have no reparameterised "
            "sampler. Use ScoreFunction(), or leave discrete sites out of the guide and use ELBO()."
        )
    if isinstance(objective, elbo.TraceGraph_ELBO) and minibatch:
        raise Incompatible(
            "numpyro 0.22's TraceGraph_ELBO multiplies score gradients by N / B twice on minibatches. "
            "Use ScoreFunction(), or batch_size=None."
        )
    if both.left_out and isinstance(objective, pathwise):
        raise Incompatible(
            f"the guide leaves out {sorted(both.left_out)}, which numpyro's {type(objective).__name__} would draw "
            "from the prior. Use ELBO(), which sums them out."
        )


__all__ = ["check", "check_guide", "check_model", "check_objective", "check_support", "program_name"]
