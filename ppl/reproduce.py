"""``ppl reproduce``: a paper's protocol, found by its file's name in :mod:`ppl.papers`."""

from __future__ import annotations

import ast
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from ppl import papers
from ppl.options import UsageError
from ppl.recipe import execute, load

FOLDER = Path(papers.__file__).parent


def names() -> dict[str, str]:
    """Papers by name, with the first line of what each file says; nothing is imported."""
    files = (path for path in sorted(FOLDER.glob("*.py")) if path.stem not in ("__init__", "protocol"))
    return {path.stem: (ast.get_docstring(ast.parse(path.read_text())) or "").partition("\n")[0] for path in files}


def reproduce(name: str, arguments: Sequence[str]) -> None:
    """Run a paper's protocol.

    Raises
    ------
    UsageError
        When there is no such paper.
    """
    known = names()
    name = name.replace("-", "_")
    if name not in known:
        raise UsageError(f"there is no paper {name!r}; expected one of: {', '.join(known)}.")
    execute(load(FOLDER / f"{name}.py"), arguments, prog=f"ppl reproduce {name}")


def show() -> None:
    """Print the papers."""
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(no_wrap=True, style="cyan")
    table.add_column()
    for name, text in names().items():
        table.add_row(name, text)
    Console(highlight=False).print(table)


__all__ = ["names", "reproduce", "show"]
