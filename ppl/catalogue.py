"""``ppl list``: what the packages hold and what goes with a model, found by asking, not by lists.

Each guide and objective is checked abstractly on a few rows of a small image, as ``fit`` would check it
before compiling; the reasons under the tables are its own error messages.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from inference import SVI, BadData, Incompatible
from inference.check import check_guide, check_model, check_objective
from inference.data import Rows
from inference.objectives import Pair
from inference.programs import Anatomy
from inference.protocols import Batch
from ppl import discover
from ppl.discover import small, summary
from ppl.options import UsageError
from ppl_models.networks import MLP, Critic

# Zeros and ones are in the support of every likelihood; enough rows for a full covariance of two components.
ROWS = {"x": (np.random.default_rng(0).random((40, 4)) < 0.5).astype(np.float32)}
CLASSES = {"y": np.arange(40) % 3 - 1}  # two, and unknown ones
REFUSALS = (Incompatible, BadData, TypeError, ValueError)


def rows_for(program: Any) -> dict[str, Any]:
    """The rows, with their classes where the program takes them."""
    return ROWS | CLASSES if getattr(program, "num_classes", 0) else ROWS


def batch_for(program: Any) -> Batch:
    """The same, as programs are given them."""
    return Rows(rows_for(program)).whole()


def show(families: Sequence[str] = ()) -> None:
    """Print what there is; or, of these model families, what goes with each, and why the rest does not.

    Raises
    ------
    UsageError
        When there is no such family.
    """
    console = Console(highlight=False)
    if families:
        models = small_models(families)
        with console.status("checking which go together"):
            tables = [go_together(models), objectives_of_pairs(models)]
        for table, reasons in tables:
            console.print(table)
            for number, reason in enumerate(reasons, 1):
                console.print(f" [dim]{number}[/]  {reason}", soft_wrap=False)
        return
    for title, found in (
        ("Models, p(x, z)", discover.models()),
        ("Guides, q(z | x)", discover.guide_kinds()),
        ("Algorithms", discover.algorithms()),
        ("Objectives of SVI", discover.objectives()),
    ):
        console.print(_names(title, found))
    console.print("[dim]ppl list MODEL … shows what goes with a model, and why the rest does not.[/]")


def _names(title: str, found: dict[str, Any]) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", show_header=False, box=None, pad_edge=False)
    table.add_column(no_wrap=True, style="cyan", min_width=22)
    table.add_column()
    for name, value in found.items():
        table.add_row(name, summary(value))
    return table


class Reasons(list[str]):
    """Why things do not go together, each once; a cell shows a tick or the number of its reason."""

    def cell(self, attempt: Callable[[], Any], name: str) -> str:
        """Try it; a reason that differs by the name alone is the same."""
        reason = refusal(attempt)
        if reason is None:
            return "[green]✓[/]"
        reason = reason.replace(f"{name} ", "it ") if reason.startswith(f"{name} ") else reason
        if reason not in self:
            self.append(reason)
        return f"[dim]{self.index(reason) + 1}[/]"


def refusal(attempt: Callable[[], Any]) -> str | None:
    """The first sentence of the error that ``attempt`` raises, or None."""
    try:
        attempt()
    except REFUSALS as error:
        text = str(error).strip().partition("\n")[0]
        return text.partition(". ")[0].rstrip(".") + "."
    return None


def small_models(families: Sequence[str]) -> dict[str, Any]:
    """An instance of each of these families, with the first architecture that its networks accept."""
    kinds = discover.models()
    for name in families:
        if name not in kinds:
            raise UsageError(f"{name!r} is not a model; expected one of: {', '.join(kinds)}.")
    return {name: _with_networks(kinds[name], run_of) for name in families}


def _with_networks(kind: Any, accept: Callable[[Any], Any], **given: Any) -> Any:
    """A small instance, its networks of the first architecture with which it is accepted (else the first)."""
    places = {name: count for name, count in discover.open_fields(kind).items() if name not in given}
    if not places:
        return small(kind, **given)

    def filled(network: Any) -> Any:
        return small(kind, **given, **{n: (network,) * count if count else network for n, count in places.items()})

    simplest_first = sorted(discover.architectures().values(), key=lambda a: len(a.__dataclass_fields__))
    candidates = [filled(small(architecture)) for architecture in simplest_first]
    for candidate in candidates:
        reason = refusal(lambda candidate=candidate: accept(candidate))
        if reason is None:
            return candidate
        if "could not be run" not in reason:  # whatever the network
            break
    return candidates[0]


@lru_cache(maxsize=64)
def small_guides(model: Any) -> dict[str, Any]:
    """Each guide for this model, and the model's own: its posterior, or its noising."""
    found, batch = {}, batch_for(model)

    def accept(guide: Any) -> None:
        check_guide(model, guide, run_of(model), batch)

    for name, kind in discover.guide_kinds().items():
        if discover.makes_guide(kind):
            with suppress(*REFUSALS):
                found[name] = kind(model, rows_for(model))
        elif not isinstance(kind, type):
            found[name] = kind
        elif "encoder" in kind.__dataclass_fields__:  # it starts from another guide
            given = {"model": model, "encoder": next(guide for guide in found.values() if hasattr(guide, "encode"))}
            found[name] = _with_networks(kind, accept, **given)
        elif "model" in kind.__dataclass_fields__:
            found[name] = small(kind, model=model)
        else:
            found[name] = _with_networks(kind, accept)
    own = [n for n in ("posterior", "noising") if hasattr(model, n)]
    return found | {f"model.{n}": getattr(model, n) for n in own}


@lru_cache(maxsize=64)
def run_of(model: Any) -> Anatomy:
    """What an abstract run of the model shows; it raises where the model is made for other data."""
    return check_model(model, batch_for(model))


@lru_cache(maxsize=64)
def pairs(model: Any) -> dict[str, Pair]:
    """The guides that sample what they must for this model, whatever the objective, each bound beside it."""
    found = {}
    for name, guide in small_guides(model).items():
        with suppress(*REFUSALS):
            found[name] = check_guide(model, guide, run_of(model), batch_for(model))
    return found


def go_together(models: dict[str, Any]) -> tuple[Table, Reasons]:
    """Algorithms against models; where an algorithm takes a guide, any of them will do."""
    reasons = Reasons()
    table = _table("Algorithm and model", ["algorithm"], list(models))
    for name, kind in discover.algorithms().items():
        table.add_row(name, *(reasons.cell(lambda k=kind, m=model: _accepted(k, m), "") for model in models.values()))
    return table, reasons


def _accepted(kind: Any, model: Any) -> None:
    """Raise what the algorithm says against the model (with the last guide, where none will do)."""
    batch, engine = batch_for(model), _engine(kind.engine)
    if not {"guide", "svi"} & kind.__dataclass_fields__.keys():
        small(kind, model=_on(engine, model)).check(batch)
        return
    guides, objectives = small_guides(model), list(discover.objectives().values())
    covering = [guides[name] for name in pairs(model)]
    if {"objective", "svi"} & kind.__dataclass_fields__.keys():  # a bound, for which a guide must cover the latents
        choices = [(make(), guide) for make in objectives for guide in covering] or [
            (objectives[0](), [*guides.values()][-1])
        ]
    else:
        alone = [None] if kind.__dataclass_fields__["guide"].default is None else []
        choices = [(None, guide) for guide in (*alone, *guides.values())]
    errors = []
    for objective, guide in choices:
        try:
            _made(kind, model=_on(engine, model), guide=_on(engine, guide), objective=objective).check(batch)
            return
        except (Incompatible, BadData) as error:
            errors.append(error)
    raise errors[-1]


def _made(kind: Any, **parts: Any) -> Any:
    """A small algorithm of these parts, inside an SVI where it takes one, with a critic where it needs one."""
    if "critic" in kind.__dataclass_fields__:
        parts["critic"] = Critic(MLP((4,)))
    return small(kind, svi=small(SVI, **parts)) if "svi" in kind.__dataclass_fields__ else small(kind, **parts)


def _has_globals(model: Any) -> bool:
    if refusal(lambda: run_of(model)) is not None:
        return False
    parts = run_of(model)
    return bool(set(parts.latent) - parts.local)


def _engine(name: str) -> Any:
    import importlib

    return importlib.import_module(name)


def _on(engine: Any, program: Any) -> Any:
    """The program on this engine, if it can choose."""
    return replace(program, ppl=engine) if "ppl" in getattr(program, "__dataclass_fields__", {}) else program


def objectives_of_pairs(models: dict[str, Any]) -> tuple[Table, Reasons]:
    """Models and guides against objectives, for SVI; also of models whose globals are parameters."""
    reasons, kinds = Reasons(), discover.objectives()
    table = Table(title="\nSVI: model, guide and objective", title_justify="left", title_style="bold")
    for name in ("model", "guide", "goes with", "does not, because of"):
        table.add_column(name)
    shared = {name: model for name, model in models.items() if _has_globals(model)}
    for wrapper_name, wrapper in discover.wrappers().items():
        models = models | {f"{wrapper_name}({name})": small(wrapper, program=model) for name, model in shared.items()}
    for name, model in models.items():
        batch, guides = batch_for(model), small_guides(model)
        for guide_name, both in pairs(model).items():
            cells = {
                kind.__name__: reasons.cell(
                    lambda k=kind, m=model, g=guides[guide_name], p=both, b=batch: check_objective(k(), m, g, p, b),
                    kind.__name__,
                )
                for kind in kinds.values()
            }
            fits = [n for n, cell in cells.items() if "✓" in cell]
            table.add_row(name, guide_name, ", ".join(fits) or "–", _by_reason(cells))
            name = ""
        table.add_section()
    return table, reasons


def _by_reason(cells: dict[str, str]) -> str:
    """The objectives that are refused, those of one reason together, with its number."""
    refused: dict[str, list[str]] = {}
    for name, cell in cells.items():
        if "✓" not in cell:
            refused.setdefault(cell, []).append(name)
    return "; ".join(f"{', '.join(names)} {cell}" for cell, names in refused.items())


def _table(title: str, left: list[str], columns: Iterable[str]) -> Table:
    table = Table(title=f"\n{title}", title_justify="left", title_style="bold")
    for name in left:
        table.add_column(name, no_wrap=True)
    for name in columns:
        table.add_column(name, justify="center", overflow="fold")  # long names break, so that all columns show
    return table
