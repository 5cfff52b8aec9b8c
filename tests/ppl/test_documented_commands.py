"""The commands that the documentation quotes can be given as they stand."""

from __future__ import annotations

import ast
import re
import shlex
import sys
from pathlib import Path

import pytest

from ppl.options import parse
from ppl.recipe import load
from ppl.reproduce import FOLDER

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "docs/speed.md")]
RECIPES = [*sorted((ROOT / "examples").glob("*.py")), *sorted(FOLDER.glob("*.py"))]


def texts() -> list[tuple[str, str]]:
    """Pages, and what the recipes' files say of themselves."""
    said = [(path.name, ast.get_docstring(ast.parse(path.read_text())) or "") for path in RECIPES]
    return [(path.name, path.read_text()) for path in PAGES] + said


def commands() -> list[tuple[str, str]]:
    """Lines that begin with a command, and those in backquotes, which may be broken."""
    found = []
    for name, text in texts():
        quoted = [re.sub(r"\s+", " ", span) for span in re.findall(r"`(ppl [^`]+)`", text)]
        found += [
            (name, line.strip()) for line in text.splitlines() + quoted if re.match(r"\s*ppl (run|reproduce) \S", line)
        ]
    return [said for said in dict.fromkeys(found) if not re.match(r"ppl \w+ (FILE|NAME)", said[1])]


def test_there_are_commands():
    assert len({line.split()[2] for _, line in commands()}) > 40  # nearly every recipe is named somewhere


@pytest.mark.parametrize(("page", "line"), commands(), ids=lambda part: part)
def test_a_quoted_command_is_understood(page, line, monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "path", [*sys.path])  # a recipe's folder is put first
    _, kind, target, *options = shlex.split(line, comments=True)
    recipe = load(target if kind == "run" else FOLDER / f"{target}.py")
    parse(recipe.main, options, prog="ppl", default_name=recipe.name)
