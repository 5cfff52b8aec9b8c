"""The recipe that chooses a dimension, at a small size."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from ppl.recipe import load
from ppl.values import kind, parts

pytestmark = pytest.mark.slow  # a whole recipe, small

EXAMPLES = Path(__file__).parents[2] / "examples"


def test_held_out_rows_and_bic_find_the_dimension(monkeypatch):
    """Four, of three, four and five: the fourth axis has 1.4 times the noise's variance, or 0.3 nats a row."""
    recipe = load(EXAMPLES / "choose_dimension.py")
    module = sys.modules[recipe.main.__module__]
    search = module.search
    monkeypatch.setattr(module, "search", lambda train, test, dims, *rest: search(train, test, list(dims)[2:5], *rest))
    results = recipe.main(num_rows=400, tolerance=1e-3, largest=30)
    assert None not in [kind(part) for _, part in parts(results)]
    table = results["Simulated, four dimensions"]
    assert [row["q"] for row in table] == [3, 4, 5]
    assert min(table, key=lambda row: row["BIC / 2N, nats per row"])["q"] == 4
    assert max(table, key=lambda row: row["held out, nats per row"])["q"] == 4
    fitted = [row["log likelihood, nats per row"] for row in table]
    assert fitted == sorted(fitted)
    # D q - q (q - 1) / 2 + D + 1
    assert [row["parameters"] for row in table] == [12 * q - q * (q - 1) // 2 + 13 for q in (3, 4, 5)]


def test_fewer_dimensions_than_the_first_of_the_list_are_tried(monkeypatch):
    """The digits' list begins at five; one that is empty has no best."""
    recipe = load(EXAMPLES / "choose_dimension.py")
    module = sys.modules[recipe.main.__module__]
    search = module.search
    monkeypatch.setattr(module, "search", lambda train, test, dims, *rest: search(train, test, list(dims)[-1:], *rest))
    results = recipe.main(num_rows=50, tolerance=1e-1, largest=4)
    assert [row["q"] for row in results["Digits"]] == [4]
    assert None not in [kind(part) for _, part in parts(results)]
