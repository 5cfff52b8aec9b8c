"""The folder of a run: metrics, figures, InferenceData, weights and the report, each written whole or not at all.

A folder belongs to one recipe with one set of options: running the same again replaces it, anything
else gets a folder of its own (NAME-2, NAME-3, …). Files that a run did not write are left alone.
"""

from __future__ import annotations

import io
import json
import os
import sys
from collections.abc import Callable, Iterable
from datetime import datetime
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ppl import figures, metrics, report
from ppl.values import kind, parts, plain, slug

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from inference import Fit
    from inference.compare import Row
    from ppl.recipe import Recipe

METRICS = "metrics.json"


def write(
    recipe: Recipe, options: dict[str, Any], results: dict[str, Any], *, seconds: float, name: str, root: str = "runs"
) -> Path:
    """Write everything that a run leaves.

    Parameters
    ----------
    recipe, options, results
        What was run, with which arguments, and what its ``main`` returned.
    seconds
        Wall time of ``main``.
    name
        Of the folder, unless another run has it.
    root
        Folder of all runs.

    Returns
    -------
    Path
        The folder.
    """
    identity = {"recipe": _shown_path(recipe.path), "options": plain(options)}
    folder = _claim(Path(root), name, identity)
    files: list[str] = []
    notes: list[str] = []

    def keep(file: str, produce: Callable[[Path], Any]) -> None:
        _keep(folder / file, produce)
        files.append(file)

    shown = list(parts(results))
    fits = _numbered((title, part) for title, part in shown if kind(part) == "fit")
    images = {title: _png(fig) for title, fig in _numbered(_drawn(shown, fits)).items()}
    for title, png in images.items():
        keep(f"figures/{title}.png", lambda path, png=png: path.write_bytes(png))
    for file, run in _numbered((slug(title), run) for title, run in fits.items()).items():
        for suffix, produce in ((".safetensors", run.save), (".nc", _netcdf(run))):
            try:
                keep(file + suffix, produce)
            except Exception as error:  # one file that cannot be written must not take the others with it
                notes.append(f"{file}{suffix} was not written: {type(error).__name__}: {error}")
                print(f"ppl: {notes[-1]}", file=sys.stderr)
    told = identity | {
        "finished": datetime.now().astimezone().isoformat(timespec="seconds"),
        "seconds": round(seconds, 3),
        "versions": metrics.versions(),
        "hardware": metrics.hardware(),
        "fits": {title: metrics.summary(run, _row(title, shown)) for title, run in fits.items()},
        "comparisons": {t: [metrics.numbers(r) for r in c.rows] for t, c in shown if kind(c) == "comparison"},
        "notes": notes,
    }
    page = report.page(recipe, options, shown, told, images)
    keep("report.html", lambda path: path.write_text(page, encoding="utf-8"))
    text = json.dumps(plain(told | {"files": [*files, METRICS]}), indent=1, ensure_ascii=False)
    keep(METRICS, lambda path: path.write_text(text + "\n", encoding="utf-8"))
    return folder


def _claim(root: Path, name: str, identity: dict[str, Any]) -> Path:
    """The first of NAME, NAME-2, … that is free, unfinished, or holds this same run (whose files it removes)."""
    for number in count(1):
        folder = root / (name if number == 1 else f"{name}-{number}")
        folder.mkdir(parents=True, exist_ok=True)
        before = _read(folder / METRICS)
        if before is not None and {n: before.get(n) for n in identity} != identity:
            continue
        for file in (before or {}).get("files", ()):
            path = folder / file
            if path.resolve().is_relative_to(folder.resolve()):
                path.unlink(missing_ok=True)
        # From here on another process sees whose folder this is.
        text = json.dumps(identity | {"files": []})
        _keep(folder / METRICS, lambda path, text=text: path.write_text(text, encoding="utf-8"))
        return folder
    raise AssertionError("count() does not end")


def _read(path: Path) -> dict[str, Any] | None:
    """What a folder says about its run; None when it has no run, or half of one."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _keep(path: Path, produce: Callable[[Path], Any]) -> None:
    """Let ``produce`` write a temporary file, and rename it: a reader never sees half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        produce(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _netcdf(run: Fit) -> Callable[[Path], None]:
    def produce(path: Path) -> None:
        run.to_arviz().to_netcdf(str(path))

    return produce


def _numbered(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """A mapping in which a title that comes again gets a number."""
    found: dict[str, Any] = {}
    for title, value in pairs:
        names = (title if number == 1 else f"{title}-{number}" for number in count(1))
        found[next(name for name in names if name not in found)] = value
    return found


def _drawn(shown: list[tuple[str, Any]], fits: dict[str, Fit]) -> Iterable[tuple[str, Figure]]:
    """The recipe's figures and one of each comparison, as they come, then the histories of the fits."""
    for title, part in shown:
        if kind(part) == "figure":
            yield slug(title), part
        elif kind(part) == "comparison":
            yield slug(title), figures.comparison(part)
    histories = figures.history(fits)
    if histories is not None:
        yield report.HISTORIES, histories


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=report.DPI, facecolor="white")
    return buffer.getvalue()


def _row(title: str, shown: list[tuple[str, Any]]) -> Row | None:
    """The fit's row in a comparison, found by its title."""
    rows = (row for _, part in shown if kind(part) == "comparison" for row in part.rows)
    return next((row for row in rows if row.name == title), None)


def _shown_path(path: Path) -> str:
    """Relative to the working directory where it lies inside, so that a report names no home folder."""
    try:
        return path.resolve().relative_to(Path.cwd()).as_posix()
    except ValueError:
        return path.resolve().as_posix()
