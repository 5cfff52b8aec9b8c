"""From a recipe's signature to its options on the command line, and from those to its arguments.

tyro makes an option of every parameter. A parameter annotated as a union of dataclasses, say
``objective: ELBO | IWAE = ELBO()``, becomes a choice and the options of what was chosen:
``--objective iwae --objective.num-particles 50``. The chosen class is looked up in the arguments
before tyro runs, because the options that it has depend on it.
"""

from __future__ import annotations

import inspect
import re
import types
from collections.abc import Callable, Sequence
from dataclasses import is_dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

RESERVED = "name"  # of the run: an option of the command itself
_VALUE = "__value"  # suffix of the parameter that holds a chosen value


class UsageError(Exception):
    """The command was called in a way that it cannot follow; the message is one line for the user."""


def parse(
    main: Callable[..., Any], arguments: Sequence[str], *, prog: str, default_name: str
) -> tuple[dict[str, Any], str]:
    """Read a recipe's options.

    Parameters
    ----------
    main
        The recipe's function: typed keyword parameters with defaults, and a docstring.
    arguments
        What follows ``ppl run FILE.py``.
    prog
        How help and errors name the command.
    default_name
        Name of the run when ``--name`` is not given.

    Returns
    -------
    tuple
        The keyword arguments of ``main``, and the run's name.

    Raises
    ------
    UsageError
        On an unknown choice, or a parameter that cannot become an option.
    SystemExit
        After ``--help`` (0), and on other mistakes in the options (2), which tyro explains.
    """
    import tyro

    arguments = list(arguments)
    hints = _hints(main)
    parameters: list[inspect.Parameter] = []
    chosen = []
    for name, parameter in inspect.signature(main).parameters.items():
        _check(parameter, hints)
        members = _members(hints[name])
        if members is None:
            parameters.append(_keyword(name, hints[name], parameter.default))
            continue
        chosen.append(name)
        parameters += _choice(parameter, members, arguments)
    text = tyro.conf.arg(help="The run is left in runs/NAME/.")
    parameters.append(_keyword(RESERVED, Annotated[str, text], default_name))

    def collect(**options: Any) -> dict[str, Any]:
        return options

    collect.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    collect.__annotations__ = {p.name: p.annotation for p in parameters}
    collect.__doc__ = main.__doc__
    options = tyro.cli(collect, args=arguments, prog=prog, config=(tyro.conf.SuppressFixed,))
    run_name = options.pop(RESERVED)
    for name in chosen:
        options[name] = options.pop(name + _VALUE, None)
    return options, run_name


def _hints(main: Callable[..., Any]) -> dict[str, Any]:
    """Types of the parameters; that of the result may be one that only type checkers know."""

    def parameters() -> None: ...

    parameters.__annotations__ = {n: v for n, v in main.__annotations__.items() if n != "return"}
    try:
        return get_type_hints(parameters, main.__globals__, include_extras=True)
    except NameError as error:
        raise UsageError(f"main's types cannot be read: {error}. Import them where the recipe runs.") from None


def _check(parameter: inspect.Parameter, hints: dict[str, Any]) -> None:
    name = parameter.name
    if parameter.kind not in (parameter.KEYWORD_ONLY, parameter.POSITIONAL_OR_KEYWORD):
        raise UsageError(f"main takes {parameter}; a recipe's parameters have names of their own.")
    if name == RESERVED:
        raise UsageError(f"main has a parameter {name!r}, which is an option of the command; rename it.")
    if name not in hints:
        raise UsageError(f"main's parameter {name!r} has no type; annotate it, for example {name}: int = 1.")


def _keyword(name: str, annotation: Any, default: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=annotation, default=default)


def _members(hint: Any) -> dict[str, type] | None:
    """The classes of a union of dataclasses (and None), by their names as choices; else None."""
    if get_origin(hint) is Annotated:
        hint = get_args(hint)[0]
    if get_origin(hint) not in (Union, types.UnionType):
        return None
    members = get_args(hint)
    if not all(m is type(None) or is_dataclass(m) for m in members):
        return None
    return {choice_name(m): m for m in members}


def choice_name(cls: type) -> str:
    """The class as a word on the command line: ``IWAE`` is iwae, ``ScoreFunction`` is score-function."""
    if cls is type(None):
        return "none"
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z][a-z])", "-", cls.__name__).lower()


def _choice(parameter: inspect.Parameter, members: dict[str, type], arguments: list[str]) -> list[inspect.Parameter]:
    """A parameter of union type as tyro is to see it: a literal, and a value of the chosen class."""
    import tyro

    name, default = parameter.name, parameter.default
    usual = default if default is parameter.empty else choice_name(type(default))
    pick = _keyword(name, Literal[tuple(members)], usual)
    chosen = _given(name, members, arguments) or usual
    cls = members.get(str(chosen), type(None))
    if cls is type(None):
        return [pick]
    value = default if type(default) is cls else _default(cls)
    annotation = Annotated[cls, tyro.conf.arg(name=name)]
    return [pick, _keyword(name + _VALUE, annotation, value)]


def _given(name: str, members: dict[str, type], arguments: list[str]) -> str | None:
    """The choice made in ``arguments``, any case and _ for -; there it is brought to its canonical name."""
    option, found = "--" + name.replace("_", "-"), None
    for position, argument in enumerate(arguments):
        flag, equals, value = argument.partition("=")
        if flag.replace("_", "-") != option:
            continue
        if not equals:
            value = arguments[position + 1] if position + 1 < len(arguments) else ""
        found = value.lower().replace("_", "-")
        if found not in members:
            raise UsageError(f"{option} is {value!r}; expected one of: {', '.join(members)}.")
        if equals:
            arguments[position] = f"{option}={found}"
        else:
            arguments[position + 1] = found
    return found


def _default(cls: type) -> Any:
    """The class's own defaults, or nothing where it has required fields."""
    try:
        return cls()
    except TypeError:
        return inspect.Parameter.empty
