"""The recipe of latent spaces, at a size that only shows that everything is there, and that its numbers agree."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from ppl.recipe import load
from ppl.values import kind, parts
from ppl_models import datasets

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.mark.slow
def test_everything_is_looked_at(monkeypatch):
    recipe = load(EXAMPLES / "latent_space.py")
    module = sys.modules[recipe.main.__module__]
    few = [part[:80] for part in datasets.load("digits")]
    monkeypatch.setattr(module.datasets, "load", lambda name: few)
    monkeypatch.setattr(module, "ROWS", 16)
    results = recipe.main(epochs=4, latent_dim=3, hidden=(20,), num_betas=100)
    kinds = [kind(part) for _, part in parts(results)]
    assert None not in kinds and kinds.count("fit") == 2 and kinds.count("figure") == 9 and kinds.count("table") == 2
    terms, loss = (part for _, part in parts(results) if kind(part) == "table")
    assert all(np.isfinite(row["mean"]) for row in (*terms, *loss))
    # Two estimates of one evidence: 16 images, the annealed one low by what the simulated gap says at most.
    importance, annealed = (row["mean"] for row in loss[:2])
    assert abs(importance - annealed) < 1.5
