"""The adversarial recipes, small. All seeds are fixed."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from ppl.recipe import load
from ppl.values import kind, parts

pytestmark = pytest.mark.slow  # whole recipes

EXAMPLES = Path(__file__).parents[2] / "examples"


def recipe(name: str) -> ModuleType:
    return sys.modules[load(EXAMPLES / f"{name}.py").main.__module__]


def check_results(results: dict) -> None:
    kinds = [kind(part) for _, part in parts(results)]
    assert None not in kinds and "figure" in kinds


def test_critics_on_a_line_are_the_optimal_ones():
    module = recipe("gan_1d")
    results = module.main(critic_steps=2000, generator_steps=300)
    check_results(results)
    largest, value, js, priced, recent, distance = results["The critic against the optimal one"]
    assert largest["learned"] < 0.05
    # log D has a curvature of a quarter at most: 0.05 of D costs thousandths of a nat
    assert abs(value["learned"] - value["exact"]) < 0.005 and abs(js["learned"] - js["exact"]) < 0.005
    for row in (priced, recent, distance):
        assert row["learned"] == pytest.approx(row["exact"], rel=0.1)
    # The integrals themselves: W_1 by quantiles, JS by entropies
    cdfs = [np.cumsum(d) * module.CELL for d in (module.P, module.Q)]
    u = (np.arange(20_000) + 0.5) / 20_000
    quantiles = [np.interp(u, c, module.GRID) for c in cdfs]
    assert module.W1 == pytest.approx(np.mean(np.abs(quantiles[0] - quantiles[1])), rel=2e-3)
    entropy = lambda d: -module.CELL * np.sum(d * np.log(d + 1e-300))  # noqa: E731
    mixed = entropy((module.P + module.Q) / 2) - (entropy(module.P) + entropy(module.Q)) / 2
    assert pytest.approx(mixed, abs=1e-6) == module.JENSEN_SHANNON


def test_the_ring_is_covered_by_the_gradient_penalty_and_not_with_a_slow_critic():
    """All modes in 5 of 5 seeds, at the recipe's own size."""
    module = recipe("ring_of_gaussians")
    results = module.main()
    check_results(results)
    wasserstein, _, slow = results["Modes"]
    assert wasserstein["modes covered, by seed"] == "8 8 8 8 8"
    assert wasserstein["recall"] > 0.7
    assert min(map(int, slow["modes covered, by seed"].split())) < 4


def test_images_are_judged_beside_held_out_ones():
    results = recipe("gan").main(steps=60, hidden=16, size=200)
    check_results(results)
    draws, training = results["Beside held-out images"]
    # The control: training images follow the law of held-out ones, and are the training images.
    assert training["p"] > 0.001 and training["memorised, p"] < 1e-20 < draws["memorised, p"]
    assert draws["p"] == 0.001 and draws["recall"] < training["recall"]
    assert training["Fréchet distance, features trained here"] < draws["Fréchet distance, features trained here"]
    assert "critic" in results["Diagnosis"]
