"""The guide of bounded scales: its density by hand and in both engines, and bounds that hold whatever the outputs."""

from __future__ import annotations

from dataclasses import replace

import jax
import linear_vae_exact as exact
import numpy as np
import pyro
import pytest
import torch
from numpyro import handlers
from scipy import special, stats

from guides import AmortizedBoundedNormal
from ppl_models.networks import MLP

GUIDE = AmortizedBoundedNormal(3, MLP((7,)), (0.1, 0.6), site="latent")


def test_density_by_hand_and_in_both_engines():
    x = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
    params = jax.tree.map(lambda v: v + 0.3 * np.random.default_rng(1).normal(size=v.shape), exact.fresh(GUIDE, x))
    w1, b1, w2, b2 = map(np.float64, jax.tree.leaves(params["encoder"]))
    loc, raw = np.split(np.tanh(x @ w1.T + b1) @ w2.T + b2, 2, axis=1)
    z = np.random.default_rng(2).normal(size=(5, 3)).astype(np.float32)
    expected = stats.norm(loc, 0.1 + 0.5 * special.expit(raw)).logpdf(z).sum(1)
    with handlers.seed(rng_seed=0), handlers.substitute(data=params), handlers.trace() as tr:
        GUIDE(x)
    assert tr["latent"]["fn"].event_shape == (3,) and tr["latent"]["fn"].batch_shape == (5,)
    np.testing.assert_allclose(tr["latent"]["fn"].log_prob(z), expected, rtol=1e-4)  # float32, scales of a tenth

    pyro.clear_param_store()
    theirs = replace(GUIDE, ppl=pyro)
    theirs(torch.tensor(x))
    store = pyro.get_param_store()
    for name, leaf in zip(list(store), jax.tree.leaves(params["encoder"]), strict=True):
        store[name] = torch.tensor(np.asarray(leaf, np.float32))
    conditioned = pyro.poutine.condition(theirs, {"latent": torch.tensor(z)})
    total = pyro.poutine.trace(conditioned).get_trace(torch.tensor(x), num_data=10).log_prob_sum().item()
    assert total / 2 == pytest.approx(expected.sum(), rel=1e-4)


@pytest.mark.parametrize("bounds", [(0.1, 0.6), (0.0, 0.5), (0.0, 1e-7)], ids=str)
def test_scales_stay_inside_and_above_zero_whatever_the_outputs(bounds):
    outputs = np.concatenate([np.zeros(9), [-1e4, -200, -20, -1, 0, 1, 20, 200, 1e4]]).astype(np.float32)
    scale = np.asarray(AmortizedBoundedNormal(9, MLP((7,)), bounds).at(outputs).base_dist.scale, np.float64)
    assert (scale > 0).all() and np.isfinite(np.log(scale)).all()
    assert (scale >= bounds[0] * (1 - 1e-6)).all() and (scale <= bounds[1] * (1 + 1e-6)).all()  # float32
    assert (np.diff(scale) >= 0).all()
    assert scale[4] == pytest.approx(np.mean(bounds), rel=1e-4, abs=1e-6)  # but for the least scale there is, 1e-6


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: replace(GUIDE, latent_dim=0), ValueError, "latent_dim is 0; expected a whole number"),
        (lambda: replace(GUIDE, site=""), ValueError, "expected the name of a latent site"),
        (
            lambda: replace(GUIDE, scale_bounds=(0.5, 0.5)),
            ValueError,
            r"scale_bounds is \(0.5, 0.5\); expected \(least",
        ),
        (lambda: replace(GUIDE, scale_bounds=(-0.1, 0.5)), ValueError, r"scale_bounds is \(-0.1, 0.5\)"),
        (lambda: replace(GUIDE, network=(5, 5)), TypeError, "network is a tuple; numpyro needs"),
    ],
)
def test_bad_arguments(make, error, message):
    with pytest.raises(error, match=message):
        make()
