"""The recipe on priors, at a size that only shows that everything is there."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from ppl.recipe import load
from ppl.values import kind, parts

pytestmark = pytest.mark.slow  # four fits, and six models that are judged


def test_every_prior_is_judged_and_sampled():
    module = sys.modules[load(Path(__file__).parents[2] / "examples" / "priors.py").main.__module__]
    results = module.main(
        num_rows=200, latent_dim=2, hidden=(10,), num_components=3, num_pseudo_inputs=4, flow_layers=1, epochs=2,
        num_particles=5,
    )  # fmt: skip
    shown = list(parts(results))
    (table,) = [part for _, part in shown if kind(part) == "table"]
    assert [row["prior"] for row in table] == [
        "standard", "mixture", "VampPrior", "flow", "mixture, afterwards", "flow, afterwards",
    ]  # fmt: skip
    for row in table:
        assert all(np.isfinite(row[name]) for name in ("bound", "KL", "NLL"))
        assert row["bound"] <= -row["NLL"] + 4 * row["error of NLL"] + 0.5 and row["KL"] > 0
    # One encoder and decoder: what was fitted afterwards reconstructs alike (10 draws an image), and costs another KL.
    standard, after = table[0], table[4]
    assert standard["bound"] + standard["KL"] == pytest.approx(after["bound"] + after["KL"], abs=0.5)
    assert [kind(part) for _, part in shown].count("figure") == 2
