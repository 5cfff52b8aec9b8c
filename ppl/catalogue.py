"""``ppl list``: what the packages hold and which of it goes together, found by asking, not by lists.

Every pair is checked abstractly on a few rows of a small image, as ``fit`` would check it before
compiling; the reasons under the tables are its own error messages.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import lru_cache
from inspect import signature
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from inference import SVI, BadData, Incompatible, check
from inference.data import Rows
from inference.programs import anatomy, bind
from ppl import discover
from ppl.discover import small, summary
from ppl_models.networks import MLP, Critic

# Zeros and ones are in the support of every likelihood; enough rows for a full covariance of two components.
ROWS = {"x": (np.random.default_rng(0).random((40, 4)) < 0.5).astype(np.float32)}
CLASSES = {"y": np.arange(40) % 3 - 1}  # two, and unknown ones


def rows_for(program: Any) -> dict[str, Any]:
    """The rows, with their classes where the program takes them."""
    return ROWS | CLASSES if "y" in signature(program).parameters else ROWS


def show() -> None:
    """Print everything."""
    console = Console(highlight=False)
    for title, found in (
        ("Models, p(x, z)", discover.models()),
        ("Guides, q(z | x)", discover.guide_kinds()),
        ("Algorithms", discover.algorithms()),
        ("Objectives of SVI", discover.objectives()),
    ):
        console.print(_names(title, found))
    with console.status("checking which go together"):
        tables = [go_together(), objectives_of_pairs()]
    for table, reasons in tables:
        console.print(table)
        for number, reason in enumerate(reasons, 1):
            console.print(f" [dim]{number}[/]  {reason}", soft_wrap=False)


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
    except (Incompatible, BadData, TypeError, ValueError) as error:
        text = str(error).strip().partition("\n")[0]
        return text.partition(". ")[0].rstrip(".") + "."
    return None


def small_models() -> dict[str, Any]:
    """An instance of each family, with the first architecture that its networks accept."""
    return {
        name: _with_networks(kind, lambda model: check(model, data=rows_for(model)))
        for name, kind in discover.models().items()
    }


def _with_networks(kind: Any, accept: Callable[[Any], Any], **given: Any) -> Any:
    """A small instance, its networks of the first architecture with which it is accepted (else the first)."""
    places = [name for name in discover.open_fields(kind) if name not in given]
    if not places:
        return small(kind, **given)
    simplest_first = sorted(discover.architectures().values(), key=lambda a: len(a.__dataclass_fields__))
    candidates = [small(kind, **given, **dict.fromkeys(places, small(a))) for a in simplest_first]
    return next((c for c in candidates if refusal(lambda c=c: accept(c)) is None), candidates[0])


@lru_cache(maxsize=64)
def small_guides(model: Any) -> dict[str, Any]:
    """Each guide for this model, and the model's own: its posterior, or its noising."""
    found = {}
    for name, kind in discover.guide_kinds().items():
        if discover.makes_guide(kind):
            if refusal(lambda make=kind: make(model, rows_for(model))) is None:
                found[name] = kind(model, rows_for(model))
        elif not isinstance(kind, type):
            found[name] = kind
        elif "encoder" in kind.__dataclass_fields__:  # it starts from another guide
            given = {"model": model, "encoder": next(guide for guide in found.values() if hasattr(guide, "encode"))}
            found[name] = _with_networks(kind, lambda guide: check(model, guide, data=rows_for(model)), **given)
        elif "model" in kind.__dataclass_fields__:
            found[name] = small(kind, model=model)
        else:
            found[name] = _with_networks(kind, lambda guide: check(model, guide, data=rows_for(model)))
    own = [n for n in ("posterior", "noising") if hasattr(model, n)]
    return found | {f"model.{n}": getattr(model, n) for n in own}


def go_together() -> tuple[Table, Reasons]:
    """Algorithms against models; where an algorithm takes a guide, any of them will do."""
    reasons, models = Reasons(), small_models()
    table = _table("Algorithm and model", ["algorithm"], list(models))
    for name, kind in discover.algorithms().items():
        table.add_row(name, *(reasons.cell(lambda k=kind, m=model: _accepted(k, m), "") for model in models.values()))
    return table, reasons


def _accepted(kind: Any, model: Any) -> None:
    """Raise what the algorithm says against the model (with the last guide, where none will do)."""
    batch = Rows(rows_for(model)).whole()
    engine = _engine(kind.engine)
    model = _on(engine, model)
    if not {"guide", "svi"} & kind.__dataclass_fields__.keys():
        small(kind, model=model).check(batch)
        return
    errors = []
    guides = small_guides(model).values()
    for objective in discover.objectives().values():
        for guide in guides:  # if one will do, most objectives will
            try:
                _made(kind, model=model, guide=_on(engine, guide), objective=objective()).check(batch)
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
    if refusal(lambda: check(model, data=rows_for(model))) is not None:  # made for other data
        return False
    parts = anatomy(bind(model, Rows(rows_for(model)).whole()))
    return bool(set(parts.latent) - parts.local)


def _engine(name: str) -> Any:
    import importlib

    return importlib.import_module(name)


def _on(engine: Any, program: Any) -> Any:
    """The program on this engine, if it can choose."""
    return replace(program, ppl=engine) if "ppl" in getattr(program, "__dataclass_fields__", {}) else program


def objectives_of_pairs() -> tuple[Table, Reasons]:
    """Models and guides against objectives, for SVI; also of models whose globals are parameters."""
    reasons, kinds = Reasons(), discover.objectives()
    table = Table(title="\nSVI: model, guide and objective", title_justify="left", title_style="bold")
    for name in ("model", "guide", "goes with", "does not, because of"):
        table.add_column(name)
    models = small_models()
    shared = {name: model for name, model in models.items() if _has_globals(model)}
    for wrapper_name, wrapper in discover.wrappers().items():
        models |= {f"{wrapper_name}({name})": small(wrapper, program=model) for name, model in shared.items()}
    for name, model in models.items():
        for guide_name, guide in small_guides(model).items():
            if refusal(lambda m=model, g=guide: check(m, g, None, rows_for(m))) is not None:
                continue  # whatever the objective
            cells = {
                kind.__name__: reasons.cell(
                    lambda k=kind, m=model, g=guide: check(m, g, k(), rows_for(m)), kind.__name__
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
