"""Entry points: the ``ppl`` command, and ``run`` for the end of a recipe file. Errors are one line."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any

from ppl.options import UsageError

USAGE = """\
usage: ppl run FILE.py [options]     run a recipe; its results are left in runs/NAME/
       ppl run FILE.py --help        the recipe's options
       ppl doctor FILE.py [options]  run a recipe, and say of each fit what is wrong and what to try
       ppl reproduce NAME [options]  run a paper's protocol: the number found beside the published one
       ppl reproduce                 the papers
       ppl list                      models, guides, algorithms and objectives
       ppl list MODEL [MODEL ...]    what goes with a model, and why the rest does not
       ppl --version
"""
PACKAGES = ("ppl_models", "guides", "inference", "ppl")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Parameters
    ----------
    arguments
        Of the command line, by default those of this process.

    Returns
    -------
    int
        Exit code: 0; 1 when model, data and inference did not go together; 2 when the command itself
        was not understood.
    """
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    return _guarded(lambda: _dispatch(arguments))


def run(main: Callable[..., Any], arguments: Sequence[str] | None = None) -> None:
    """Run a recipe's ``main`` as ``ppl run`` would, with options from the command line, and exit.

    Parameters
    ----------
    main
        The recipe's function; see :mod:`ppl.recipe`.
    arguments
        Its options, by default those of this process.
    """
    from ppl.recipe import execute, from_main

    arguments = sys.argv[1:] if arguments is None else list(arguments)
    sys.exit(_guarded(lambda: execute(from_main(main), arguments, prog=f"python {sys.argv[0]}")))


def _dispatch(arguments: list[str]) -> None:
    match arguments:
        case ["run", file, *options] if not file.startswith("-"):
            from ppl.recipe import execute, load

            execute(load(file), options, prog=f"ppl run {file}")
        case ["doctor", file, *options] if not file.startswith("-"):
            from ppl.doctor import examine
            from ppl.recipe import load

            examine(load(file), options, prog=f"ppl doctor {file}")
        case ["reproduce", name, *options] if not name.startswith("-"):
            from ppl.reproduce import reproduce

            reproduce(name, options)
        case ["reproduce"]:
            from ppl.reproduce import show

            show()
        case ["list", *families] if not any(family.startswith("-") for family in families):
            from ppl.catalogue import show

            show(families)
        case ["--version"]:
            from ppl.metrics import versions

            print("ppl-models", versions().get("ppl-models", "(not installed)"))
        case [] | ["-h" | "--help"] | ["run" | "doctor" | "reproduce" | "list", "-h" | "--help"]:
            print(USAGE, end="")
        case ["run" | "doctor" as command, *_]:
            raise UsageError(f"the recipe's file comes first: ppl {command} FILE.py [options].")
        case _:
            raise UsageError(
                f"{' '.join(arguments)!r} is not a command; expected run, doctor, reproduce, list or --help."
            )


def _guarded(action: Callable[[], Any]) -> int:
    """Run; turn errors that the library raises on purpose into one line, and leave the others as they are."""
    try:
        action()
    except UsageError as error:
        print(f"ppl: {error}", file=sys.stderr)
        return 2
    except (ValueError, OSError, FloatingPointError) as error:
        if not _on_purpose(error):
            raise
        kind = type(error).__name__
        print(f"ppl: {kind}: {error}" if kind != "ValueError" else f"ppl: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("ppl: stopped.", file=sys.stderr)
        return 130
    return 0


def _on_purpose(error: BaseException) -> bool:
    """Whether the error was raised in the library itself, and so says what to do."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    return bool(frames) and frames[-1].f_globals.get("__name__", "").partition(".")[0] in PACKAGES
