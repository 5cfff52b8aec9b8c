"""The adversarial recipes, small. All seeds are fixed."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from ppl.recipe import load
from ppl.values import kind, parts

EXAMPLES = Path(__file__).parents[2] / "examples"


def recipe(name: str) -> ModuleType:
    return sys.modules[load(EXAMPLES / f"{name}.py").main.__module__]


def check_results(results: dict) -> None:
    kinds = [kind(part) for _, part in parts(results)]
    assert None not in kinds and "figure" in kinds


@pytest.mark.slow
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
    # What the penalty adds, by draws of places between: a cell of 0.1 has some 10,000 of them where it matters.
    rng = np.random.default_rng(0)
    share, ends = rng.random(1_000_000), 1.5 * rng.choice([-1, 1], 1_000_000) + 0.5 * rng.normal(size=1_000_000)
    r, edges = np.histogram(share * ends + (1 - share) * rng.normal(size=1_000_000), 60, (-3, 3), density=True)
    gap = np.interp((edges[1:] + edges[:-1]) / 2, module.GRID, module.BEHIND)
    added = 0.1 * np.sum(gap**2 / (2 * module.WEIGHT * r))
    assert module.PRICED - module.W1 == pytest.approx(added, rel=0.02)
    assert module.PRICED > module.W1 * (1 + module.W1 / (2 * module.WEIGHT))
    # The integrals themselves: W_1 by quantiles, JS by entropies
    cdfs = [np.cumsum(d) * module.CELL for d in (module.P, module.Q)]
    u = (np.arange(20_000) + 0.5) / 20_000
    quantiles = [np.interp(u, c, module.GRID) for c in cdfs]
    assert module.W1 == pytest.approx(np.mean(np.abs(quantiles[0] - quantiles[1])), rel=2e-3)
    entropy = lambda d: -module.CELL * np.sum(d * np.log(d + 1e-300))  # noqa: E731
    mixed = entropy((module.P + module.Q) / 2) - (entropy(module.P) + entropy(module.Q)) / 2
    assert pytest.approx(mixed, abs=1e-6) == module.JENSEN_SHANNON


@pytest.mark.slow
def test_the_ring_is_covered_by_the_gradient_penalty_and_not_with_a_slow_critic():
    """All modes in 5 of 5 seeds, at the recipe's own size."""
    module = recipe("ring_of_gaussians")
    results = module.main()
    check_results(results)
    wasserstein, _, slow = results["Modes"]
    assert wasserstein["modes covered, by seed"] == "8 8 8 8 8"
    assert wasserstein["recall"] > 0.7
    assert min(map(int, slow["modes covered, by seed"].split())) < 4


@pytest.mark.slow
def test_images_are_judged_beside_held_out_ones():
    results = recipe("gan").main(steps=60, hidden=16, size=200)
    check_results(results)
    draws, training = results["Beside held-out images"]
    # The control: training images follow the law of held-out ones, and are the training images.
    assert training["p"] > 0.001 and training["memorised, p"] < 1e-20 < draws["memorised, p"]
    assert draws["p"] == 0.001 and draws["recall"] < training["recall"]
    assert training["Fréchet distance, features trained here"] < draws["Fréchet distance, features trained here"]
    assert "critic" in results["Diagnosis"]


@pytest.mark.slow
def test_a_conditional_generator_draws_the_digit_that_is_asked_for():
    results = recipe("gan").main(classes=True, steps=5000, hidden=64, size=200)
    check_results(results)
    share = float(results["Draws that the classifier takes for the digit that was asked for"].rstrip("%"))
    assert share > 50  # a tenth by chance


@pytest.mark.slow
def test_reconstructions_of_adversarially_learned_inference_keep_the_digit():
    results = recipe("ali").main(steps=6000)
    check_results(results)
    rebuilt, others, same = next(iter(results.values()))
    kept = [float(row["taken for their own digit"].rstrip("%")) for row in (rebuilt, others, same)]
    assert kept[1] < 20 < 30 < kept[0] < kept[2]  # a tenth by chance
    assert 0 == same["root mean squared error"] < rebuilt["root mean squared error"] < others["root mean squared error"]


@pytest.mark.slow
def test_digits_become_their_outlines_without_a_pair():
    results = recipe("cycle_gan").main(steps=2000, hidden=64)
    check_results(results)
    for row in next(iter(results.values())):
        assert row["there and back"] < 0.1
        assert row["from the true one"] < 0.75 * row["another image's"]


def test_the_outline_is_what_surrounds_an_image():
    module = recipe("cycle_gan")
    dot = np.zeros((1, 25), np.float32)
    dot[0, 12] = 1
    expected = np.zeros(25)
    expected[[7, 11, 13, 17]] = 1
    np.testing.assert_array_equal(module.outlines(dot, (5, 5))[0], expected)
