"""``ppl doctor``: run a recipe and say of each of its fits what is wrong and what to try."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ppl.options import UsageError, parse
from ppl.values import kind, parts

if TYPE_CHECKING:
    from ppl.recipe import Recipe


def examine(recipe: Recipe, arguments: Sequence[str], *, prog: str = "ppl doctor") -> None:
    """Run a recipe with options from the command line, and print a diagnosis of each fit; nothing is written.

    Raises
    ------
    UsageError
        When the recipe returns no fit.
    """
    options, _ = parse(recipe.main, arguments, prog=prog, default_name=recipe.name)
    import matplotlib

    matplotlib.use("Agg")
    from inference import diagnose
    from ppl import figures
    from ppl.recipe import check_results, keep_compiled_code

    keep_compiled_code()
    with figures.style():
        results = recipe.main(**options)
    check_results(results)
    fits = [(title, part) for title, part in parts(results) if kind(part) == "fit"]
    if not fits:
        raise UsageError(f"{recipe.path} returns no fit to look at: its main must return one, as in {{'ELBO': run}}.")
    for title, run in fits:
        print(f"{title}\n{diagnose(run)}\n")


__all__ = ["examine"]
