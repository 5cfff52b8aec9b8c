"""Recipes of autoregressive models, at sizes that only show that everything is there."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from ppl.options import parse
from ppl.recipe import load
from ppl.values import kind, parts
from ppl_models import datasets

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def results(monkeypatch):
    """Of a recipe on few images."""

    def run(name, *arguments):
        recipe = load(EXAMPLES / f"{name}.py")
        few = lambda *args: [part[:100] for part in datasets.load(*args)]  # noqa: E731
        module = sys.modules[recipe.main.__module__]
        monkeypatch.setattr(module, "datasets", type("Few", (), {"load": staticmethod(few), "Dataset": None}))
        options, _ = parse(recipe.main, ["--epochs", "1", *arguments], prog="ppl run", default_name=name)
        found = list(parts(recipe.main(**options)))
        (table,) = [part for _, part in found if kind(part) == "table"]
        return table, [title for title, part in found if kind(part) == "figure"]

    return run


@pytest.mark.parametrize(
    ("masks", "figures"),
    [("1", ["Samples", "Completion"]), pytest.param("2", ["Samples"], marks=pytest.mark.slow)],
)
def test_made(masks, figures, results):
    table, shown = results("made", "--hidden", "9", "--num-masks", masks)
    assert shown == figures
    assert np.isfinite(table[0]["nats per image"])


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments", [["--binarization", "dynamic", "--classes", "False"], ["--levels", "17"]], ids=" ".join
)
def test_pixel_cnn(arguments, results):
    table, shown = results("pixel_cnn", "--channels", "2", "--kernel-sizes", "3", *arguments)
    assert shown == ["Samples", "Completion"]
    difference = {value - table[0]["nats per image"] for name, value in table[0].items() if name == "given its class"}
    assert all(d == pytest.approx(np.log(10), abs=2e-3) for d in difference)  # each number is rounded to 1e-3
    assert bool(difference) == ("17" in arguments)


@pytest.mark.slow
def test_pixel_cnn_in_colour(results, tmp_path):
    images = np.random.default_rng(0).integers(256, size=(20, 4, 4, 3)).astype(np.uint8)
    np.save(tmp_path / "noise.npy", images)
    path = str(tmp_path / "noise.npy")
    table, shown = results(
        "pixel_cnn", "--data", path, "--levels", "256", "--logistics", "2", "--channels", "2", "--kernel-sizes", "3"
    )
    assert shown == ["Samples", "Completion"]
    nats, bits = table[0]["nats per image"], table[0]["bits a value"]
    assert bits == pytest.approx(-nats / 48 / np.log(2), abs=1e-3) and bits > 7  # noise of 8 bits


@pytest.mark.slow
def test_lossy_vae(results):
    table, shown = results("lossy_vae", "--channels", "2", "--features", "2", "--latent-dim", "2")
    assert shown == ["Samples"] and len(table) == 4
    for row in table:
        # Each is rounded to 1e-2.
        assert row["in z"] + row["in the image given z"] == pytest.approx(row["code, nats per image"], abs=0.02)
        # I(n; z) = E KL(q(z | x) || p(z)) - KL(q(z) || p(z)), both terms by draws: within a tenth of a nat.
        assert -0.1 < row["index-code information"] < row["in z"] + 0.1
