"""Rows generated with inputs, or observed sites, held at values."""

import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest

from guides import MeanField
from inference import SVI, Incompatible, fit
from inference.objectives import ELBO

RNG = np.random.default_rng(0)
Y = RNG.normal(size=40).astype(np.float32)
DATA = {"x": (3 * Y + 0.1 * RNG.normal(size=40)).astype(np.float32), "y": Y}


def cause_and_effect(x, y, num_data=None):
    slope = numpyro.sample("slope", dist.Normal(0, 5))
    with numpyro.plate("data", num_data or len(x), subsample_size=len(x)):
        y = numpyro.sample("y", dist.Normal(0, 1), obs=y)
        numpyro.sample("x", dist.Normal(slope * y, 0.1), obs=x)


def regression(x, y, num_data=None):
    slope = numpyro.sample("slope", dist.Normal(0, 5))
    with numpyro.plate("data", num_data or len(x), subsample_size=len(x)):
        numpyro.sample("x", dist.Normal(slope * y, 0.1), obs=x)


def run(model):
    return fit(SVI(model, MeanField(model), ELBO(), optax.adam(5e-2)), DATA, key=0, num_steps=400)


def test_what_follows_a_held_site_follows_it_under_each_draw_of_the_globals():
    made = run(cause_and_effect).generate(3, given={"y": [-2.0, 0.0, 2.0]})
    np.testing.assert_array_equal(made["y"], [-2.0, 0.0, 2.0])
    np.testing.assert_allclose(made["x"], [-6.0, 0.0, 6.0], atol=0.7)  # 0.1 of noise, and of a slope of 3 and 0.02


def test_inputs_beside_global_latents_are_for_predict():
    fitted = run(regression)
    with pytest.raises(Incompatible, match=r"'y'. are inputs of the model that it does not generate: give them"):
        fitted.generate(3)
    with pytest.raises(Incompatible, match=r"each row has its own draw of the globals: use predict\(data\) with .'y'."):
        fitted.generate(3, given={"y": 1.0})
