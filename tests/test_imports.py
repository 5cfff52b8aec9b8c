"""The walls between the rooms: who imports whom, and what an import may load."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
HEAVY = {"arviz", "blackjax", "flowjax", "matplotlib", "pyro", "sklearn", "torch"}


def lint_imports(folder: Path) -> subprocess.CompletedProcess:
    """Check ``folder`` against the contracts of this project."""
    return subprocess.run(
        [sys.executable, "-c", "from importlinter.cli import lint_imports_command as main; main()"]
        + ["--no-cache", "--config", str(REPOSITORY / "pyproject.toml")],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize("package", ["inference", "ppl_models", "guides"])
def test_importing_a_package_loads_nothing_heavy(package):
    source = f"import {package}, sys, json; print(json.dumps(list(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", source], cwd=REPOSITORY, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    loaded = json.loads(run.stdout)
    assert package in loaded
    assert not HEAVY.intersection(loaded)


def test_imports_point_one_way():
    report = lint_imports(REPOSITORY)
    assert report.returncode == 0, report.stdout
    assert re.search(r"Contracts: \d+ kept, 0 broken", report.stdout)


@pytest.mark.parametrize(
    ("file", "line", "broken"),
    [
        ("ppl_models/new.py", "import inference.new", "models know"),
        ("guides/new.py", "from ppl_models import other", "guides know"),
        ("inference/new.py", "from ppl_models.networks import MLP", "inference knows"),
        ("inference/new.py", "import arviz", "ArviZ is called in one file"),
    ],
)
def test_a_wrong_import_is_caught(tmp_path, file, line, broken):
    for package in ("ppl_models", "ppl_models/networks", "guides", "inference", "ppl"):
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").touch()
    (tmp_path / "ppl_models/other.py").touch()
    (tmp_path / "guides/fine.py").write_text("from ppl_models.networks import MLP\n")
    (tmp_path / "inference/to_arviz.py").write_text("import arviz\n")
    assert lint_imports(tmp_path).returncode == 0

    (tmp_path / file).write_text(line + "\n")
    report = lint_imports(tmp_path)
    assert report.returncode == 1
    assert re.search(rf"{broken}.*BROKEN", report.stdout)
    assert report.stdout.count("BROKEN") == 1
