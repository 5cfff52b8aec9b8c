"""What the recipe of bars and stripes claims, at fewer steps. The seed is fixed."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from boltzmann_exact import bars_and_stripes

from ppl.recipe import load
from ppl.values import kind, parts

EXAMPLE = Path(__file__).parents[2] / "examples" / "bars_and_stripes.py"


@pytest.fixture(scope="module")
def module():
    return sys.modules[load(EXAMPLE).main.__module__]


def test_the_patterns(module):
    rows = module.patterns(3)
    assert sorted(map(tuple, rows)) == sorted(map(tuple, bars_and_stripes(3)))
    assert len(rows) == 16 and len(np.unique(rows, axis=0)) == 14
    assert len(module.patterns(4)) == 32


@pytest.mark.slow  # a whole recipe
def test_exact_and_tempered_learning_come_to_the_ceiling_and_one_sweep_does_not(module):
    results = module.main(num_steps=3000)
    kinds = [kind(part) for _, part in parts(results)]
    assert None not in kinds and "figure" in kinds
    table = {row[""]: row for row in results["Exact log likelihoods of 16 images"]}
    assert table["ceiling"]["log likelihood, nats per row"] == pytest.approx(-2.5993, abs=1e-4)
    for name in ("exact gradient", "EM", "tempered PCD"):
        assert -1e-5 < table[name]["gap"] < 0.05 and table[name]["on patterns"] > 0.95
    assert table["CD-1"]["gap"] > max(table[name]["gap"] for name in ("exact gradient", "EM", "tempered PCD"))
    last = results["Annealed importance sampling"][-1]
    for way in ("AIS", "reverse AIS"):
        error, interval = map(float, last[way].split(" ± "))
        assert abs(error) < interval < 0.2
