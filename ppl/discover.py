"""What the packages hold: models, guides, algorithms and objectives, found by their shape in the public modules.

Nothing is registered. A model, or a guide, is a frozen dataclass (or a guide a function) that is called on the
data; an algorithm has ``engine``, ``init``, ``step`` and ``finish``; an objective has ``loss``.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Callable, Iterator
from dataclasses import MISSING, fields, is_dataclass
from types import ModuleType
from typing import Any, get_type_hints

import guides
import inference
import ppl_models
from ppl_models import networks

Kind = Callable[..., Any]


def models() -> dict[str, Kind]:
    """Model families by name."""
    return _found(ppl_models, lambda v: is_dataclass(v) and _takes_data(v))


def guide_kinds() -> dict[str, Kind]:
    """Guides by name: classes, plain functions that take whatever the model takes, and functions that make one."""
    return _found(
        guides,
        lambda v: _takes_data(v) if is_dataclass(v) else makes_guide(v) or inspect.isfunction(v) and _takes_anything(v),
    )


def makes_guide(kind: Kind) -> bool:
    """Whether this is a function that makes the guide of a model and its data."""
    return inspect.isfunction(kind) and list(inspect.signature(kind).parameters)[:2] == ["model", "data"]


def algorithms() -> dict[str, Kind]:
    """Algorithms by name."""
    parts = ("engine", "init", "step", "finish")
    return _found(inference, lambda v: is_dataclass(v) and all(hasattr(v, part) for part in parts))


def objectives() -> dict[str, Kind]:
    """Objectives of SVI by name."""
    return _found(inference, lambda v: is_dataclass(v) and hasattr(v, "loss"))


def wrappers() -> dict[str, Kind]:
    """Programs made of another program, such as ``MaximumLikelihood``, by name."""
    return _found(inference, lambda v: is_dataclass(v) and "program" in {f.name for f in fields(v)})


def architectures() -> dict[str, Kind]:
    """Network architectures by name: not flows, which are built for one size, in and out."""

    def builds(value: Any) -> bool:
        build = getattr(value, "build", None)
        return build is not None and "in_size" in inspect.signature(build).parameters

    return _found(networks, lambda v: is_dataclass(v) and builds(v))


def summary(value: Any) -> str:
    """The first line of the docstring."""
    return (inspect.getdoc(value) or "").partition("\n")[0]


def _found(package: ModuleType, fits: Callable[[Any], bool]) -> dict[str, Kind]:
    found = {}
    for module in _modules(package):
        for name, value in vars(module).items():
            own = getattr(value, "__module__", None) == module.__name__ and not name.startswith("_")
            if own and (inspect.isclass(value) or inspect.isfunction(value)) and fits(value):
                found[name] = value
    return dict(sorted(found.items()))


def _modules(package: ModuleType) -> Iterator[ModuleType]:
    yield package
    for info in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        if not any(part.startswith("_") for part in info.name.split(".")):
            yield importlib.import_module(info.name)


def _takes_data(cls: Any) -> bool:
    """Whether instances are called on data, as programs are: ``x``, or any arguments."""
    call = cls.__call__  # its own, a base's, or else the metaclass's, which is no function
    return inspect.isfunction(call) and ("x" in inspect.signature(call).parameters or _takes_anything(call))


def _takes_anything(function: Callable[..., Any]) -> bool:
    parameters = [p for p in inspect.signature(function).parameters.values() if p.name != "self"]
    return {p.kind for p in parameters} == {inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD}


def small(kind: Kind, **given: Any) -> Any:
    """A small instance: the fields that are given, their defaults, and little numbers for the rest.

    Raises
    ------
    TypeError
        When a field without a default is neither given nor a number or a tuple of numbers.
    """
    hints = get_type_hints(kind)
    values = {}
    for part in fields(kind):  # type: ignore[arg-type]
        if part.name in given:
            values[part.name] = given[part.name]
        elif part.default is MISSING and part.default_factory is MISSING:
            values[part.name] = _little(hints[part.name], f"{kind.__name__}.{part.name}")
    return kind(**values)


def _little(hint: Any, name: str) -> Any:
    import optax

    known: dict[Any, Any] = {int: 2, float: 1.0, tuple[int, ...]: (4,), optax.GradientTransformation: optax.adam(1e-3)}
    known |= {tuple[tuple[int, int], ...]: ((1, 1), (2, 2)), tuple[Any, ...]: (networks.MLP((4,)), networks.MLP((4,)))}
    if hint in known:
        return known[hint]
    if getattr(hint, "__origin__", None) is type:  # a class of torch.optim
        import torch

        return torch.optim.Adam
    raise TypeError(f"{name} has no default, and no small value of type {hint} is known.")


def open_fields(kind: Kind) -> dict[str, int]:
    """Fields without a default for networks: how many, one for each layer of the field before; 0 for a bare one."""
    hints, found, layers = get_type_hints(kind), {}, 1
    for name in (f.name for f in fields(kind) if f.default is MISSING):  # type: ignore[arg-type]
        if hints[name] is Any:
            found[name] = 0
        elif hints[name] == tuple[Any, ...]:
            found[name] = layers
        elif getattr(hints[name], "__origin__", None) is tuple:
            layers = len(_little(hints[name], name))
    return found
