"""A recipe: a file whose ``main`` fits something and returns what is worth keeping.

    def main(*, objective: ELBO | IWAE = ELBO(), seed: int = 0) -> dict[str, Result]:
        \"\"\"What this recipe shows, then ``Parameters`` with a line for each option.\"\"\"
        ...
        return {"ELBO": run, "Samples": figure, "Comparison": compare([run], test)}

    if __name__ == "__main__":
        from ppl import run

        run(main)

The keyword parameters are the options on the command line. The results become the report, in their
order: a ``Fit`` leaves weights, an InferenceData file and its history; a matplotlib figure, a
``Comparison``, a list of mappings (a table) and text are shown; a tuple puts several under one title.
"""

from __future__ import annotations

import importlib.util
import inspect
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, Union

from ppl.options import UsageError, parse
from ppl.values import kind, parts

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from inference import Fit
    from inference.compare import Comparison

Result: TypeAlias = Union["Fit", "Figure", "Comparison", list[dict[str, Any]], str, tuple["Result", ...]]


@dataclass(frozen=True)
class Recipe:
    """A recipe's function and the file it stands in."""

    main: Callable[..., dict[str, Any]]
    path: Path

    @property
    def name(self) -> str:
        """Name of its runs."""
        return self.path.stem

    @property
    def text(self) -> str:
        """The docstring, without its sections."""
        lines = (inspect.getdoc(self.main) or "").splitlines()
        ends = [i - 1 for i, line in enumerate(lines) if i and line and set(line) == {"-"}]
        return "\n".join(lines[: ends[0] if ends else None]).strip()


def load(file: str | Path) -> Recipe:
    """Import a recipe's file.

    Raises
    ------
    UsageError
        When there is no such file, it is not Python, or it defines no ``main``.
    """
    path = Path(file)
    if not path.is_file():
        raise UsageError(f"there is no file {str(file)!r}.")
    if path.suffix != ".py":
        raise UsageError(f"{str(file)!r} is not a Python file (.py).")
    # Imported under a name of its own, so that its `if __name__ == "__main__"` part does not run.
    name = f"recipe_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise UsageError(f"{str(file)!r} cannot be imported.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    sys.path.insert(0, str(path.parent.resolve()))  # as when Python runs the file
    try:
        spec.loader.exec_module(module)
    except SyntaxError as error:
        raise UsageError(f"{str(file)!r}, line {error.lineno}: {error.msg}.") from None
    main = getattr(module, "main", None)
    if not inspect.isfunction(main):
        raise UsageError(f"{str(file)!r} defines no function main; a recipe is a file with one (see examples/).")
    return Recipe(main, path)


def from_main(main: Callable[..., Any]) -> Recipe:
    """The recipe of a function, by the file that defines it."""
    return Recipe(main, Path(inspect.getsourcefile(main) or sys.argv[0]))


def execute(recipe: Recipe, arguments: Sequence[str], *, prog: str = "ppl run") -> Path:
    """Run a recipe with options from the command line, print its tables, write its folder.

    Returns
    -------
    Path
        The folder, ``runs/NAME``.
    """
    options, name = parse(recipe.main, arguments, prog=prog, default_name=recipe.name)
    _check_name(name)
    keep_compiled_code()
    import matplotlib

    matplotlib.use("Agg")  # figures go to files, on machines without a screen too
    from ppl import console, figures, folder

    started = time.perf_counter()
    with figures.style():
        results = recipe.main(**options)
        seconds = time.perf_counter() - started
        check_results(results)
        console.show(results)
        where = folder.write(recipe, options, results, seconds=seconds, name=name)
    console.closing(where, time.perf_counter() - started)
    return where


def _check_name(name: str) -> None:
    if not name or name.startswith(".") or set(name) & set('/\\:*?"<>|'):
        raise UsageError(f"--name is {name!r}; expected a plain folder name, such as first-try.")


def check_results(results: Any) -> None:
    """Refuse what a report cannot show."""
    if not isinstance(results, dict) or not all(isinstance(n, str) for n in results):
        raise UsageError(
            f"main returned {type(results).__name__}; expected a mapping from titles to fits, figures, "
            "comparisons, tables or text."
        )
    for title, part in parts(results):
        if kind(part) is None:
            raise UsageError(
                f"main returned {title!r} as {type(part).__name__}; expected a Fit, a matplotlib Figure, a "
                "Comparison, a list of mappings (a table), text, or a tuple of these."
            )


def keep_compiled_code() -> None:
    """Keep XLA's compiled code between runs, in the user's cache, unless told where."""
    if "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    import jax
    import pooch

    jax.config.update("jax_compilation_cache_dir", str(Path(pooch.os_cache("ppl-models")) / "jax"))
    jax.config.update("jax_compilation_cache_max_size", 2**30)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
