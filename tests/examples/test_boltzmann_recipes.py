"""Recipes of Boltzmann machines, at sizes that only show that everything is there."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

import inference
from ppl.options import parse
from ppl.recipe import load
from ppl.values import kind, parts

EXAMPLES = Path(__file__).parents[2] / "examples"
NEGATED = ("images", "negatives")


def results(name, arguments, monkeypatch):
    """Of a recipe with few inverse temperatures and sweeps."""
    recipe = load(EXAMPLES / f"{name}.py")
    module = sys.modules[recipe.main.__module__]

    def bracket(run, data, num_chains, **options):
        few = np.linspace(0, 1, 50)
        return inference.bracket(run, data, num_chains=num_chains, betas=few, num_sweeps=5, **options)

    def simulate(*args, num_sweeps, **options):
        return inference.simulate(*args, num_sweeps=5, **options)

    monkeypatch.setattr(module, "bracket", bracket)
    monkeypatch.setattr(module, "simulate", simulate, raising=False)
    small = ["--epochs", "2", "--num-chains", "4", "--batch-size", "200", *arguments]
    options, _ = parse(recipe.main, small, prog="ppl run", default_name=name)
    return recipe.main(**options)


@pytest.mark.parametrize(
    ("arguments", "machine", "ends"),
    [
        (["--machine.num-hidden", "30"], "RBM", 2),
        pytest.param(["--machine.num-hidden", "6"], "RBM", 1, marks=pytest.mark.slow),
        pytest.param(
            ["--machine", "deep-boltzmann-machine", "--machine.num-hidden", "25", "22"],
            *("DeepBoltzmannMachine", 2),
            marks=pytest.mark.slow,
        ),
        pytest.param(
            ["--machine", "convolutionalrbm", "--machine.num-filters", "4", "--machine.filter-size", "3"],
            *("ConvolutionalRBM", 2),
            marks=pytest.mark.slow,
        ),
    ],
)
@pytest.mark.filterwarnings("ignore:annealed importance sampling gives:UserWarning")  # with 50 inverse temperatures
def test_binary_machines(arguments, machine, ends, monkeypatch):
    found = results("rbm", arguments, monkeypatch)
    (table,) = [part for _, part in parts(found) if kind(part) == "table"]
    assert len(table) == ends and all(np.isfinite(row["nats per image"]) for row in table)
    assert kind(found[machine]) == "fit"
    assert [title for title, part in parts(found) if kind(part) == "figure"] == [
        *("Filters", "Reconstructions", "Samples", "Inpainting"),
    ]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:annealed importance sampling gives:UserWarning")
def test_grey_images_beside_ppca(monkeypatch):
    found = results("gaussian_rbm", ["--hidden", "22", "--latent-dim", "2"], monkeypatch)
    (table,) = [part for _, part in parts(found) if kind(part) == "table"]
    assert [row["model"].split(",")[0] for row in table] == ["independent Gaussians", "PPCA", "machine", "machine"]
    assert table[1]["nats per image"] > table[0]["nats per image"]
    assert sum(kind(part) == "figure" for _, part in parts(found)) == 3


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:annealed importance sampling gives:UserWarning")
def test_deep_machines_side_by_side(monkeypatch):
    found = results("deep_boltzmann", ["--layers", "22", "21"], monkeypatch)
    (table,) = [part for _, part in parts(found) if kind(part) == "table"]
    assert [row["model"] for row in table] == ["RBM", "DBN", "DBM"]
    assert all(np.isfinite(row["by annealing"]) for row in table)
    assert [title for title, part in parts(found) if kind(part) == "figure"] == ["Samples", "Reconstructions"]


@pytest.mark.slow
def test_centred_units_learn_images_and_negatives_alike():
    """Half a nat apart without centring and a tenth with it: on digits 0.9 and 0.04, of 50 epochs."""
    found = load(EXAMPLES / "centring.py").main()
    (table,) = [part for _, part in parts(found) if kind(part) == "table"]
    images, negatives = ({row["gradient"]: row["training"] for row in table if row["of"] == of} for of in NEGATED)
    assert abs(images["centred"] - negatives["centred"]) < 0.1
    assert abs(images["plain"] - negatives["plain"]) > 0.5
    assert [title for title, part in parts(found) if kind(part) == "figure"] == ["Filters"]
