"""The main job and the autoencoder's recipe, at sizes that only show that everything is there."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from inference import compare
from inference.objectives import ELBO, IWAE
from ppl.options import parse
from ppl.recipe import load
from ppl.values import kind, parts
from ppl_models import datasets

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.mark.parametrize("file", sorted(EXAMPLES.glob("*.py")), ids=lambda file: file.stem)
def test_every_recipe_says_what_it_is_and_has_options(file):
    recipe = load(file)
    assert recipe.text and "---" not in recipe.text
    values, name = parse(recipe.main, [], prog="ppl run", default_name=recipe.name)
    assert name == file.stem
    # Each parameter has a line in the docstring, which is its help.
    documented = {line for line in (recipe.main.__doc__ or "").splitlines() if line.startswith("    ")}
    assert {f"    {option}" for option in values} <= documented


# Chains this short have hardly left their start, so that some densities are a single point.
@pytest.mark.filterwarnings("ignore:Your data appears to have a single value:UserWarning")
@pytest.mark.slow
def test_digits_compares_seven_fits_of_the_same_density(monkeypatch):
    recipe = load(EXAMPLES / "digits.py")
    module = sys.modules[recipe.main.__module__]
    few = [part[:120] for part in datasets.load("digits")]
    monkeypatch.setattr(module.datasets, "load", lambda name: few)
    # Ten importance draws an image in place of a thousand.
    monkeypatch.setattr(module, "compare", lambda fits, data, names: compare(fits, data, names, num_particles=10))

    results = recipe.main(components=3, factors=1, latent_dim=2, svi_steps=3, sweeps=20, draws=20, epochs=1)
    shown = list(parts(results))
    fits = {title: part for title, part in shown if kind(part) == "fit"}
    assert list(fits) == [
        "Mixture, EM",
        "Mixture, SVI",
        "PPCA, EM",
        "PPCA, Gibbs",
        "PPCA, NUTS",
        "VAE, ELBO",
        "VAE, IWAE",
    ]
    (table,) = [part for _, part in shown if kind(part) == "comparison"]
    assert [row.name for row in table.rows] == list(fits)
    assert all(np.isfinite(row.log_likelihood.mean) for row in table.rows)
    assert [np.isfinite(row.spread) for row in table.rows] == [True, True, True, False, False, True, True]
    assert [np.isfinite(row.r_hat) for row in table.rows] == [False, False, False, True, True, False, False]
    # Rows can be put side by side: all fits have the same rows, and none is a density of anything else.
    assert len({run.data.fingerprint() for run in fits.values()}) == 1
    assert {None not in [kind(part)] for _, part in shown} == {True}
    assert sum(kind(part) == "figure" for _, part in shown) == 6


def test_dequantized_levels_come_back():
    module = sys.modules[load(EXAMPLES / "digits.py").main.__module__]
    train, _ = datasets.load("digits")
    x = module.dequantized(train, 0).arrays["x"]
    assert x.min() >= 0 and x.max() <= 1 and len(np.unique(x)) > 1000
    np.testing.assert_array_equal(np.floor(17 * x.astype(np.float64)), np.round(16 * train.arrays["x"]))


@pytest.mark.parametrize(
    ("arguments", "objective", "likelihood", "decoder"),
    [
        pytest.param(
            ["--objective", "iwae", "--objective.num-particles", "3"],
            *(IWAE(3), "Bernoulli", "MLP"),
            marks=pytest.mark.slow,
        ),
        pytest.param(
            ["--network", "convolutional", "--network.channels", "4"],
            *(ELBO(), "Bernoulli", "ConvDecoder"),
            marks=pytest.mark.slow,
        ),
        pytest.param(
            ["--binarization", "none", "--network.hidden", "8"],
            *(ELBO(), "GaussianPixelScale", "MLP"),
            marks=pytest.mark.slow,
        ),
    ],
)
def test_inference_and_networks_of_the_autoencoder_are_swapped_by_options(arguments, objective, likelihood, decoder):
    recipe = load(EXAMPLES / "vae.py")
    small = ["--epochs", "1", "--latent-dim", "3", "--batch-size", "500", "--num-particles", "5", *arguments]
    options, _ = parse(recipe.main, small, prog="ppl run", default_name="vae")
    results = recipe.main(**options)
    (run,) = [part for _, part in parts(results) if kind(part) == "fit"]
    assert run.algorithm.objective == objective
    assert type(run.model.likelihood).__name__ == likelihood
    assert type(run.model.decoder).__name__ == decoder
    assert sum(kind(part) == "figure" for _, part in parts(results)) == 3
    (title,) = [title for title, part in parts(results) if kind(part) == "comparison"]
    assert ("dynamic" in title) == (likelihood == "Bernoulli")  # which binarization is part of the name


def test_the_autoencoder_takes_a_file_that_is_no_image(tmp_path):
    np.save(tmp_path / "rows.npy", (np.random.default_rng(0).random((60, 5)) < 0.5).astype(np.float32))
    results = load(EXAMPLES / "vae.py").main(
        data=str(tmp_path / "rows.npy"), epochs=1, latent_dim=2, num_particles=5, batch_size=20
    )
    assert [kind(part) for _, part in parts(results)] == ["comparison", "fit"]
