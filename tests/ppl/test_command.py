"""The command: what it understands, and that its errors are one line."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from ppl.command import main

TOY = Path(__file__).with_name("toy_recipe.py")


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def one_line(capsys) -> str:
    """What was printed to stderr, which must be one line without a traceback."""
    text = capsys.readouterr().err
    assert text.startswith("ppl: ") and text.count("\n") == 1
    return text


@pytest.mark.parametrize("arguments", [[], ["--help"], ["run", "--help"], ["list", "-h"]])
def test_usage(arguments, capsys):
    assert main(arguments) == 0
    assert "ppl run FILE.py" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fit"], "is not a command"),
        (["run"], "file comes first"),
        (["run", "--seed", "1"], "file comes first"),
        (["run", "nowhere.py"], "no file 'nowhere.py'"),
        (["run", str(TOY), "--objective", "nuts"], "expected one of: elbo, iwae, score-function"),
        (["run", str(TOY), "--name", "../up"], "plain folder name"),
    ],
)
def test_mistakes_in_the_command_exit_with_2(arguments, message, capsys):
    assert main(arguments) == 2
    assert message in one_line(capsys)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("x = 1", "defines no function main"),
        ("def main(:", "line 1"),
        ("def main(*, x=1): ...", "'x' has no type"),
        ("def main(*, x: Missing = 1): ...", "types cannot be read"),
        ("def main(): return 3", "main returned int"),
        ("def main(): return {'a': 3}", "main returned 'a' as int"),
    ],
)
def test_files_that_are_no_recipes_exit_with_2(source, message, tmp_path, capsys):
    file = tmp_path / "recipe.py"
    file.write_text("from __future__ import annotations\n" + source)
    assert main(["run", str(file)]) == 2
    assert message in one_line(capsys).replace("line 2", "line 1")
    assert not (tmp_path / "runs").exists()


def test_a_file_that_is_not_python_is_refused(tmp_path, capsys):
    (tmp_path / "notes.txt").write_text("def main(): ...")
    assert main(["run", "notes.txt"]) == 2
    assert "not a Python file" in one_line(capsys)


def test_errors_of_the_library_are_one_line_and_exit_with_1(capsys):
    assert main(["run", str(TOY), "--broken"]) == 1
    text = one_line(capsys)
    assert text.startswith("ppl: BadData: ") and "NaN" in text


def test_errors_of_the_recipe_itself_keep_their_traceback(tmp_path):
    (tmp_path / "recipe.py").write_text("def main():\n    raise ValueError('mine')\n")
    with pytest.raises(ValueError, match="mine"):
        main(["run", "recipe.py"])


def test_a_recipe_finds_modules_beside_it(tmp_path, capsys):
    folder = tmp_path / "deep"
    folder.mkdir()
    (folder / "beside_the_recipe.py").write_text("WORD = 'found'\n")
    (folder / "recipe.py").write_text("from beside_the_recipe import WORD\ndef main(): return {'Said': WORD}\n")
    assert main(["run", "deep/recipe.py"]) == 0
    assert "found" in capsys.readouterr().out


def test_python_m_ppl_and_a_recipe_run_by_python(tmp_path):
    version = subprocess.run(
        [sys.executable, "-m", "ppl", "--version"], capture_output=True, text=True, cwd=TOY.parents[2]
    )
    assert version.returncode == 0 and re.fullmatch(r"ppl-models (\d+\.\d+\.\d+|\(not installed\))\n", version.stdout)

    (tmp_path / "recipe.py").write_text(
        "def main(*, word: str = 'a'):\n    '''Say it.'''\n    return {'Said': word}\n"
        "if __name__ == '__main__':\n    from ppl import run\n    run(main)\n"
    )
    environment = os.environ | {"PYTHONPATH": str(TOY.parents[2])}
    run = subprocess.run(
        [sys.executable, "recipe.py", "--word", "hello"], capture_output=True, text=True, cwd=tmp_path, env=environment
    )
    assert run.returncode == 0, run.stderr
    assert "hello" in run.stdout
    assert (tmp_path / "runs" / "recipe" / "report.html").is_file()
