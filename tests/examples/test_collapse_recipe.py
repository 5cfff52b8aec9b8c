"""The recipe of posterior collapse, at a size that only shows that everything is there, and that its numbers agree."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import optax
import pytest

from guides import AmortizedNormal
from inference import check
from ppl.recipe import load
from ppl.values import kind, parts
from ppl_models import MADE, PixelVAE, datasets
from ppl_models.networks import MLP


@pytest.fixture
def module():
    return sys.modules[load(Path(__file__).parents[2] / "examples" / "collapse.py").main.__module__]


def test_both_delta_vaes_are_committed_to_the_rate(module):
    model, encoder = PixelVAE(4, MLP((5,)), MADE((3,)), features=2), AmortizedNormal(4, MLP((5,)))
    found = module.cures(model, encoder, optax.adam(1e-3), 100, 2.5, 0.5, 1)
    assert len(found) == 9
    x = np.zeros((5, 9), np.float32)
    chain, bounded = (found[f"delta-VAE, {name}"] for name in ("AR(1) prior", "bounded scale"))
    for algorithm in (chain, bounded, found["dropout of pixels"]):
        check(algorithm.model, algorithm.guide, algorithm.objective, x)
    assert chain.model.prior.minimal_kl(4) == pytest.approx(2.5, rel=1e-6)
    assert module.AR1Prior(0.0).minimal_kl(4, bounded.guide.scale_bounds) == pytest.approx(2.5, rel=1e-6)


@pytest.mark.slow
def test_every_cure_is_judged_and_drawn(module, monkeypatch):
    few = [part[:60] for part in datasets.load("digits", "threshold")]
    monkeypatch.setattr(module.datasets, "load", lambda *_: few)
    monkeypatch.setattr(module, "KERNELS", {"1 away": (3, 1)})
    results = module.main(latent_dim=2, channels=2, units=9, nats=1.0, epochs=2, batch_size=30, num_particles=50)
    shown = list(parts(results))
    assert [kind(part) for _, part in shown].count("figure") == 3
    grown, cured = (part for _, part in shown if kind(part) == "table")
    assert [row["pixels see"] for row in grown] == ["nothing", "1 away", "all before"]
    assert len(cured) == 11 and len({row["cure"] for row in cured}) == 11
    for row in (*grown, *cured):
        assert all(np.isfinite(value) for name, value in row.items() if name not in ("cure", "pixels see"))
        # 60 images, 8 draws of each: the bound lies below the evidence but for the noise of both, nats.
        assert row["reconstruction"] - row["KL"] <= -row["NLL"] + 4 * row["error of NLL"] + 0.5
    assert cured[0] | {"cure": 0, "pixels see": 0} == grown[-1] | {"cure": 0, "pixels see": 0}
    for row in cured:
        if "delta" in row["cure"]:  # a KL from 480 draws, each a nat or two off
            assert row["KL"] > 1.0 - 4 * 2 / np.sqrt(480)
