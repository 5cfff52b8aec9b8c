"""One HTML file that needs nothing else: results in their order, histories, settings, versions, the recipe itself."""

from __future__ import annotations

import base64
import inspect
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ppl.values import cell, kind, setting

if TYPE_CHECKING:
    from ppl.recipe import Recipe

DPI = 160  # of the figures
HISTORIES = "histories"  # the image of the fits' bounds
STYLE = (Path(__file__).parent / "report.css").read_text(encoding="utf-8")


def page(
    recipe: Recipe,
    options: dict[str, Any],
    shown: list[tuple[str, Any]],
    told: dict[str, Any],
    images: dict[str, bytes],
) -> str:
    """The report.

    Parameters
    ----------
    recipe, options
        What was run, with which arguments.
    shown
        Titles and results, one title for several where the recipe put them together.
    told
        What ``metrics.json`` says.
    images
        PNGs in the order in which ``shown`` has figures and comparisons, then the histories.

    Returns
    -------
    str
        HTML without references to anything outside itself.
    """
    pictures = iter(images.items())
    sections: dict[str, list[str]] = {}
    for title, part in shown:
        match kind(part):
            case "figure":
                body = _image(*next(pictures), alt=title)
            case "comparison":
                notes = f"<p class=note>{_inline(part.notes())}</p>" if part.notes() else ""
                body = _table(part.cells()) + _image(*next(pictures), alt=title) + COMPARISON_NOTE + notes
            case "table":
                body = _table([{n: cell(v) for n, v in row.items()} for row in part])
            case "text":
                body = _paragraphs(part)
            case _:
                continue
        sections.setdefault(title, []).append(body)
    if told["fits"]:
        sections["How each fit went"] = [_fits(told["fits"])]
        if HISTORIES in images:
            sections["How each fit went"].insert(0, _image(HISTORIES, images[HISTORIES], alt="bound over steps"))
    if told["notes"]:
        sections["Notes"] = [_paragraphs(note) for note in told["notes"]]
    sections["Settings"] = [_settings(recipe, options, told), _source(recipe)]
    name = escape(recipe.name.replace("_", " "))
    summary, _, text = recipe.text.partition("\n\n")
    heading = _inline(summary.removesuffix(".")) or name
    body = "".join(f"<section><h2>{escape(t)}</h2>{''.join(parts)}</section>\n" for t, parts in sections.items())
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{name}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n"
        f"<header><p class=name>{name}</p><h1>{heading}</h1>{_paragraphs(text)}</header>\n"
        f"{body}</body>\n</html>\n"
    )


COMPARISON_NOTE = (
    "<p class=note>Log likelihood with its standard error over rows; the Monte-Carlo error is that of estimating it. "
    "Gap: log likelihood of these rows less the bound on the training rows. R-hat and effective draws per second "
    "(ESS/s) are for Markov chains, the spread between restarts for the others.</p>"
)


def _paragraphs(text: str) -> str:
    return "".join(_paragraph(block) for block in text.split("\n\n") if block.strip())


def _paragraph(block: str) -> str:
    """Text, or a table drawn with spaces, whose columns must stay."""
    return f"<pre>{escape(block)}</pre>" if "\n" in block and "  " in block else f"<p>{_inline(block)}</p>"


def _inline(text: str) -> str:
    """Escaped text, with ``code`` between double backquotes."""
    pieces = escape(text.strip()).split("``")
    return "".join(f"<code>{piece}</code>" if i % 2 else piece for i, piece in enumerate(pieces))


def _image(name: str, png: bytes, *, alt: str) -> str:
    data = base64.b64encode(png).decode("ascii")
    width = int.from_bytes(png[16:20], "big") * 96 // DPI  # CSS pixels, 96 an inch
    source = f"data:image/png;base64,{data}"
    return f'<figure><img id="{escape(name)}" alt="{escape(alt)}" width="{width}" src="{source}"></figure>'


def _table(rows: list[dict[str, str]]) -> str:
    head = "".join(f"<th scope=col>{escape(name)}</th>" for name in rows[0])
    lines = []
    for row in rows:
        first, *others = row.values()
        cells = "".join(f"<td>{escape(v)}</td>" for v in others)
        lines.append(f"<tr><th scope=row>{escape(first)}</th>{cells}</tr>")
    return f"<div class=table><table><thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table></div>"


def _fits(fits: dict[str, dict[str, Any]]) -> str:
    rows = []
    for title, fit in fits.items():
        row = {"fit": title, "steps": cell(fit["steps"]), "chains": cell(fit["chains"])}
        row |= {
            "bound": _nats(fit["bound"]),
            "spread": _nats(fit["spread"]),
            "held-out bound": _nats(fit["validation"]),
        }
        rows.append(row | {"seconds": f"{fit['seconds']:.1f}"} | ({"": "interrupted"} if fit["interrupted"] else {}))
    settings = "".join(f"<dt>{escape(t)}</dt><dd><code>{escape(f['algorithm'])}</code></dd>" for t, f in fits.items())
    return _table(rows) + f"<details><summary>What was fitted</summary><dl>{settings}</dl></details>"


def _nats(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _settings(recipe: Recipe, options: dict[str, Any], told: dict[str, Any]) -> str:
    lines = {"recipe": told["recipe"]}
    lines |= {f"--{name.replace('_', '-')}": setting(value) for name, value in options.items()}
    lines |= {"finished": told["finished"].replace("T", " "), "seconds": f"{told['seconds']:.1f}"}
    lines |= {"hardware": told["hardware"]}
    lines |= {"versions": ", ".join(f"{n} {v}" for n, v in told["versions"].items())}
    rows = "".join(f"<tr><th scope=row>{escape(n)}</th><td>{escape(str(v))}</td></tr>" for n, v in lines.items())
    return f"<div class=table><table class=settings><tbody>{rows}</tbody></table></div>"


def _source(recipe: Recipe) -> str:
    try:
        text = recipe.path.read_text(encoding="utf-8")
    except OSError:
        text = inspect.getsource(recipe.main)
    return f"<details><summary>The recipe, {escape(recipe.path.name)}</summary><pre>{escape(text)}</pre></details>"
