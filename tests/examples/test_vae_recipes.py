"""Recipes of autoencoders with structure, at sizes that only show that everything is there."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from ppl.options import parse
from ppl.recipe import load
from ppl.values import kind, parts

EXAMPLES = Path(__file__).parents[2] / "examples"


def run(name, *arguments):
    recipe = load(EXAMPLES / f"{name}.py")
    options, _ = parse(recipe.main, list(arguments), prog="ppl run", default_name=name)
    return recipe.main(**options), sys.modules[recipe.main.__module__]


@pytest.mark.slow
def test_semi_supervised_classifiers_are_told_apart():
    results, _ = run("semi_supervised", "--epochs", "1", "--hidden", "8", "--latent-dim", "2")
    found = dict(parts(results))
    (table,) = [part for part in found.values() if isinstance(part, list)]
    assert [row["classifier"] for row in table] == ["the 20 labels alone", "M2", "M1+M2"]
    assert sum(kind(part) == "fit" for _, part in parts(results)) == 4
    assert sum(kind(part) == "figure" for _, part in parts(results)) == 1
    assert len(results["Labels alone"].data.arrays["y"]) == 20
    assert (results["M2"].data.arrays["y"] >= 0).sum() == 20


def test_few_labels_are_balanced_and_right():
    module = sys.modules[load(EXAMPLES / "semi_supervised.py").main.__module__]
    labels = np.random.default_rng(0).integers(0, 3, 200)
    y = module.few_labels(labels, 20, 0)
    assert (y >= 0).sum() == 20 and (y[y >= 0] == labels[y >= 0]).all()
    assert sorted(np.bincount(y[y >= 0])) == [6, 7, 7]
    assert (module.few_labels(labels, 20, 1) != y).any()


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["elbo", "iwae"])
def test_hierarchies_are_compared(objective):
    results, _ = run(
        *("hierarchical_vae", "--epochs", "1", "--hidden", "8", "--latent-dims", "3", "2"),
        *("--objective", objective, "--num-particles", "5"),
    )
    (table,) = [part for _, part in parts(results) if kind(part) == "comparison"]
    assert [row.name for row in table.rows] == ["One layer", "Bottom-up", "Top-down"]
    assert all(np.isfinite(row.log_likelihood.mean) for row in table.rows)
    layers = [part for _, part in parts(results) if isinstance(part, list)]
    assert [list(row) for row in (layers[0] if layers else [])] == (
        [["model", "z1", "z2"]] * 3 if objective == "elbo" else []
    )
