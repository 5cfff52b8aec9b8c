"""What a run prints: its tables and text, and where it left the rest."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

from ppl.values import cell, kind, parts


def show(results: dict[str, Any]) -> None:
    """Print the comparisons, tables and text of a run."""
    for title, part in parts(results):
        match kind(part):
            case "comparison":
                print_table(part.table(), title)
            case "table":
                print_table(_table(part), title)
            case "text" if not isinstance(results[title], tuple):  # not a figure's caption
                print(f"\n{title}\n{part}")


def print_table(table: Table, title: str = "") -> None:
    """Print a table in full width: where the terminal is narrower, its lines wrap and no cell is cut."""
    console = Console(highlight=False)
    width = Measurement.get(console, console.options.update_width(1000), table).maximum
    if console.width < width:
        console = Console(width=width, highlight=False)
    if title:
        console.print(f"\n[bold]{title}[/]")
    console.print(table)


def closing(folder: Path, seconds: float) -> None:
    """Say where the results are."""
    try:
        folder = folder.relative_to(Path.cwd())
    except ValueError:
        pass
    files = sorted(p.name for p in folder.iterdir() if not p.name.startswith("."))
    kept = ", ".join(f"{n}{os.sep}" if (folder / n).is_dir() else n for n in files if n != "report.html")
    print(f"\n{seconds:.0f} s. Report: {folder / 'report.html'} (beside it: {kept})")


def _table(rows: list[dict[str, Any]]) -> Table:
    table = Table()
    for i, name in enumerate(rows[0]):
        table.add_column(name, justify="right" if i else "left")
    for row in rows:
        table.add_row(*(cell(v) for v in row.values()))
    return table
