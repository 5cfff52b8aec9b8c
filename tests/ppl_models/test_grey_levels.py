"""Likelihoods of grey levels: masses that sum to one over the levels, by other formulas, in both engines."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import optax
import pyro
import pytest
import torch
from scipy import stats
from scipy.special import log_softmax, logsumexp

from guides import AmortizedNormal
from inference import SVI, BadData, check, fit
from inference.objectives import ELBO
from ppl_models import VAE
from ppl_models.likelihoods import Categorical, DiscretizedLogisticMixture, Likelihood
from ppl_models.networks import MLP

PIXELS = 3
LIKELIHOODS = [Categorical(5), DiscretizedLogisticMixture(2, levels=17), DiscretizedLogisticMixture(3)]
everywhere = pytest.mark.parametrize("likelihood", LIKELIHOODS, ids=["categorical", "logistic17", "logistic256"])
engines = pytest.mark.parametrize(
    ("ppl", "array"), [(numpyro, jnp.asarray), (pyro, torch.tensor)], ids=["jax", "torch"]
)


def outputs_for(likelihood, rows=2):
    return np.random.default_rng(0).normal(size=(rows, likelihood.outputs_per_pixel * PIXELS)).astype(np.float32)


def every_level(likelihood):
    """Rows whose pixels are all alike, (levels, 1, pixels)."""
    grid = np.arange(likelihood.levels, dtype=np.float32) / (likelihood.levels - 1)
    return np.repeat(grid[:, None, None], PIXELS, axis=2)


def by_hand(likelihood, outputs):
    """log P of every level, (levels, rows, pixels), by differences of cumulative probabilities in float64."""
    values = np.float64(outputs).reshape(len(outputs), -1, PIXELS)
    if isinstance(likelihood, Categorical):
        return np.moveaxis(log_softmax(values, axis=1), 1, 0)
    k, width = likelihood.num_mixtures, 1 / (likelihood.levels - 1)
    logits, loc, raw = values[:, :k], values[:, k : 2 * k], values[:, 2 * k :]
    edges = np.concatenate([[-np.inf], (np.arange(likelihood.levels - 1) + 0.5) * width, [np.inf]])
    cdf = stats.logistic(loc, likelihood.floor + np.logaddexp(0, raw)).cdf(edges[:, None, None, None])
    return logsumexp(log_softmax(logits, axis=1) + np.log(np.diff(cdf, axis=0)), axis=2)


@everywhere
@engines
def test_masses_are_those_of_the_formula_and_sum_to_one(likelihood, ppl, array):
    outputs, grid = outputs_for(likelihood), every_level(likelihood)
    assert isinstance(likelihood, Likelihood)
    row = likelihood(ppl, array(outputs))
    assert tuple(row.batch_shape) == (2,) and tuple(row.event_shape) == (PIXELS,)
    pixels = np.array(row.base_dist.log_prob(array(grid)).tolist())
    expected = by_hand(likelihood, outputs)
    np.testing.assert_allclose(pixels, expected, rtol=2e-5, atol=2e-5)  # float32
    np.testing.assert_allclose(np.exp(pixels).sum(axis=0), 1, atol=1e-5)
    np.testing.assert_allclose(row.log_prob(array(grid)).tolist(), expected.sum(-1), rtol=2e-5)
    mean = np.exp(expected).T @ grid[:, 0, 0]
    np.testing.assert_allclose(row.mean.tolist(), mean.T, atol=1e-5)


@everywhere
@engines
def test_draws_have_the_masses(likelihood, ppl, array):
    """Shares of five bins of levels in 20,000 draws of 6 pixels within 5 standard errors: 30 numbers, 6 cases."""
    outputs, count = outputs_for(likelihood), 20_000
    row = likelihood(ppl, array(outputs))
    if ppl is numpyro:
        draws = np.asarray(row.sample(jax.random.key(0), (count,)))
    else:
        pyro.set_rng_seed(0)
        draws = row.sample((count,)).numpy()
    assert draws.shape == (count, 2, PIXELS)
    levels = draws * (likelihood.levels - 1)
    np.testing.assert_allclose(levels, np.round(levels), atol=1e-4)
    bins = np.arange(likelihood.levels) * 5 // likelihood.levels
    masses = np.exp(by_hand(likelihood, outputs))
    for b in range(5):
        share = masses[bins == b].sum(axis=0)
        found = (bins[np.round(levels).astype(int)] == b).mean(axis=0)
        assert (np.abs(found - share) < 5 * np.sqrt(share * (1 - share) / count) + 1e-6).all()


def test_tails_and_narrow_scales_stay_finite_with_their_gradients():
    """Far from the location log P(v) is -|v - m| / s up to a constant, where differences of F would be log 0."""
    likelihood = DiscretizedLogisticMixture(1, floor=1e-3)

    def log_prob(outputs, x):
        return likelihood(numpyro, outputs).log_prob(x)

    outputs = jnp.array([0.0, 0.0, -60.0])  # a scale of 0.001 at 0
    values = [float(log_prob(outputs, jnp.array([v / 255]))) for v in (100, 200, 255)]
    assert values[0] - values[1] == pytest.approx(100 / 255 / 1e-3, rel=1e-4)
    assert np.isfinite(values).all()
    for x in (0.0, 100 / 255, 1.0):
        for outputs in ([0.0, 0.0, -60.0], [0.0, 5.0, 80.0], [50.0, -3.0, 0.0]):
            assert np.isfinite(jax.grad(log_prob)(jnp.array(outputs), jnp.array([x]))).all()
            leaf = torch.tensor(outputs, requires_grad=True)
            likelihood(pyro, leaf).log_prob(torch.tensor([x])).backward()
            assert leaf.grad is not None and torch.isfinite(leaf.grad).all()


X = (np.random.default_rng(0).integers(0, 17, (30, 4)) / 16).astype(np.float32)


def test_data_that_are_no_grey_levels_are_refused():
    guide = AmortizedNormal(2, MLP((5,)))
    for likelihood in (DiscretizedLogisticMixture(2, levels=17), Categorical(17)):
        model = VAE(2, MLP((5,)), likelihood)
        check(model, guide, ELBO(), X)
        with pytest.raises(BadData, match="'x' is observed outside its likelihood's support, grey levels 0, 1/"):
            check(model, guide, ELBO(), X * 0.9)


@pytest.mark.slow
def test_an_autoencoder_of_grey_levels():
    x, model = X, VAE(2, MLP((5,)), DiscretizedLogisticMixture(2, levels=17))
    guide = AmortizedNormal(2, MLP((5,)))
    run = fit(SVI(model, guide, ELBO(), optax.adam(1e-2)), x, key=0, num_steps=30)
    assert run.history["bound"][0, -5:].mean() > run.history["bound"][0, :5].mean()
    made = run.generate(20)["x"]
    assert set(np.round(16 * np.unique(made), 4)) <= set(range(17))
    assert run.generate(2, expected=True)["x"].shape == (2, 4)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Categorical(1), "levels is 1; expected a whole number of at least 2"),
        (lambda: DiscretizedLogisticMixture(0), "num_mixtures is 0; expected a whole number"),
        (lambda: DiscretizedLogisticMixture(levels=2.0), "levels is 2.0"),
        (lambda: DiscretizedLogisticMixture(floor=0.0), "floor is 0.0; expected a positive number"),
    ],
)
def test_bad_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make()
