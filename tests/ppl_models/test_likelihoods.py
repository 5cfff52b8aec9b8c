"""Likelihoods: the densities that they say, in both engines, and scales that cannot collapse."""

import jax.numpy as jnp
import numpy as np
import numpyro
import pyro
import pytest
import torch
from scipy import special, stats

from ppl_models.likelihoods import Bernoulli, Gaussian, GaussianPixelScale, GaussianSharedScale, Likelihood

LIKELIHOODS = [Bernoulli(), Gaussian(0.3), GaussianSharedScale(0.4), GaussianPixelScale(0.05)]
everywhere = pytest.mark.parametrize("likelihood", LIKELIHOODS, ids=lambda value: type(value).__name__)


def engines():
    pyro.clear_param_store()
    return [(numpyro, jnp.asarray), (pyro, torch.tensor)]


def expected_log_prob(likelihood, outputs, x):
    loc, rest = outputs[..., : x.shape[-1]], outputs[..., x.shape[-1] :]
    if isinstance(likelihood, Bernoulli):
        p = special.expit(loc)
        return (x * np.log(p) + (1 - x) * np.log1p(-p)).sum(-1)
    if isinstance(likelihood, Gaussian):
        scale = likelihood.scale
    elif isinstance(likelihood, GaussianSharedScale):
        scale = likelihood.init_scale
    else:
        scale = likelihood.floor + np.log1p(np.exp(rest))
    return stats.norm(loc, scale).logpdf(x).sum(-1)


@everywhere
def test_density_of_rows(likelihood):
    rng = np.random.default_rng(0)
    outputs = rng.normal(size=(2, 3, likelihood.outputs_per_pixel * 5)).astype(np.float32)
    x = (rng.random((3, 5)) < 0.5).astype(np.float32)
    assert isinstance(likelihood, Likelihood)
    for ppl, array in engines():
        distribution = likelihood(ppl, array(outputs))
        assert tuple(distribution.event_shape) == (5,) and tuple(distribution.batch_shape) == (2, 3)
        log_prob = distribution.log_prob(array(x))
        # float32 sum of five terms
        np.testing.assert_allclose(log_prob.tolist(), expected_log_prob(likelihood, outputs, x), rtol=1e-5)


def test_pixel_scale_stays_above_its_floor_with_finite_gradients():
    likelihood = GaussianPixelScale(floor=0.02)
    for ppl, array in engines():
        outputs = array(np.array([0.0, 0.0, 0.0, -1e4, 1e4, 0.0], np.float32))
        scale = likelihood(ppl, outputs).base_dist.scale
        np.testing.assert_allclose(scale.tolist(), [0.02, 1e4 + 0.02, 0.02 + np.log(2)], rtol=1e-6)
    raw = torch.tensor([0.0, -1e4], requires_grad=True)
    likelihood(pyro, raw).log_prob(torch.zeros(1)).backward()
    assert raw.grad is not None and torch.isfinite(raw.grad).all()


def test_shared_scale_is_a_parameter_above_its_floor():
    likelihood = GaussianSharedScale(init_scale=0.4, floor=0.02)
    with numpyro.handlers.trace() as trace:
        likelihood(numpyro, jnp.zeros((2, 3)))
    assert trace["scale"]["type"] == "param"
    assert trace["scale"]["value"].shape == () and trace["scale"]["value"].dtype == jnp.float32
    support = trace["scale"]["kwargs"]["constraint"]
    bijection = numpyro.distributions.biject_to(support)
    np.testing.assert_allclose(bijection(jnp.array([-1e3, -3.0])), 0.02 + np.exp([-1e3, -3.0]), rtol=1e-6)

    pyro.clear_param_store()
    scale = likelihood(pyro, torch.zeros(2, 3)).base_dist.scale
    assert scale[0, 0].item() == pytest.approx(0.4)
    pyro.param("scale").unconstrained().data.fill_(-1e3)
    assert likelihood(pyro, torch.zeros(2, 3)).base_dist.scale[0, 0].item() == pytest.approx(0.02)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Gaussian(0.0), "scale is 0.0; expected a positive number"),
        (lambda: Gaussian(float("nan")), "scale is nan"),
        (lambda: GaussianSharedScale(0.01, floor=0.01), "expected more than the floor"),
        (lambda: GaussianPixelScale(floor=-1.0), "floor is -1.0"),
    ],
)
def test_bad_scales(make, message):
    with pytest.raises(ValueError, match=message):
        make()
