"""Recipes of diffusions: what they claim, and small runs that only show that everything is there."""

from __future__ import annotations

import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from ppl.options import parse
from ppl.recipe import load
from ppl.values import kind, parts

EXAMPLES = Path(__file__).parents[2] / "examples"


def module(name):
    """The recipe's own file."""
    return sys.modules[load(EXAMPLES / f"{name}.py").main.__module__]


def results(name, *arguments):
    recipe = load(EXAMPLES / f"{name}.py")
    options, _ = parse(recipe.main, arguments, prog="ppl run", default_name=name)
    return recipe.main(**options)


def test_the_best_denoiser_is_the_posterior_mean_of_the_noise():
    recipe = module("diffusion_1d")
    schedule = recipe.LinearSchedule(10, 0.02, 0.5)
    run = recipe.BestDenoiser(schedule).build(2, 1, jax.random.key(0))
    known = recipe.levels(schedule)
    for t in (1, 4, 10):
        a, s = known.signal[t], known.noise[t]
        for x_t in (-1.5, 0.1, 2.0):
            # by quadrature over x_0: e = (x_t - a x_0) / s
            p = recipe.norm.pdf(x_t, a * recipe.GRID, s) * recipe.density(recipe.GRID)
            expected = (p * (x_t - a * recipe.GRID) / s).sum() / p.sum()
            found = run(np.array([x_t, t / 10], np.float32))[0]
            assert float(found) == pytest.approx(expected, abs=1e-4)  # float32


def test_the_reverse_step_is_near_a_gaussian_for_small_steps_only():
    recipe = module("diffusion_1d")
    far, near = (recipe.distance_from_gaussian(recipe.reverse_density(-0.2, 1.0, 0.0, b)) for b in (0.9, 0.001))
    assert far > 0.3 and near < 1e-5
    # A Gaussian is at no distance from one: data that are one Gaussian.
    p = recipe.norm.pdf(recipe.GRID, 0.3, 0.5)
    assert abs(recipe.distance_from_gaussian(p)) < 1e-9


@pytest.mark.slow
def test_one_dimension():
    found = results("diffusion_1d", "--num-steps", "500")
    exact, *bounds, network = found["Bounds"]
    gaps = np.array([row["gap"] for row in bounds])
    assert (gaps > -0.005).all() and (np.diff(gaps) < 0).all() and gaps[-1] < 0.02
    np.testing.assert_allclose(gaps[:2] / gaps[1:3], 2, atol=0.6)  # the same noise in all; half the step, half the gap
    assert gaps[2] - 0.005 < network["gap"] < 1 and exact["nats per row"] == pytest.approx(-0.96, abs=0.05)
    assert sum(kind(part) == "figure" for _, part in parts(found)) == 5


@pytest.mark.slow
def test_all_modes_of_the_ring_in_five_of_five_seeds():
    found = results("diffusion_ring")
    ancestral = [row for row in found["Modes"] if row["sampler"] == "ancestral"]
    assert [row["modes of 8"] for row in ancestral] == [8] * 5
    assert min(row["share near a mode"] for row in ancestral) > 0.8
    bound, truth = (row["nats per held-out row"] for row in found["Held-out rows"])
    assert truth - 1.0 < bound < truth


@pytest.mark.slow
@pytest.mark.parametrize(
    "network",
    [
        ["unet", "--network.channels", "4", "8", "--network.num-heads", "2"],
        ["timemlp", "--network.hidden", "16"],
    ],
    ids=["unet", "mlp"],
)
def test_images(network):
    small = [
        "--data",
        "digits",
        "--epochs",
        "2",
        "--schedule.num-steps",
        "6",
        "--ddim-steps",
        "3",
        "--num-held-out",
        "8",
    ]
    found = results("mnist_diffusion", *small, "--network", *network)
    (row,) = next(part for _, part in parts(found) if kind(part) == "table")
    assert 0 < row["bits per dimension, at most"] < 20
    assert [title for title, part in parts(found) if kind(part) == "figure"] == [
        *("Draws", "Guidance", "Through the latent", "Terms of the bound"),
    ]
