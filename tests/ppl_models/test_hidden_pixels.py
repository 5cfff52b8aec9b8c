"""Hidden pixels: densities and draws given what is hidden, by enumeration, and what no hidden pixel moves."""

from __future__ import annotations

import itertools
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from numpyro import handlers
from scipy import stats

from guides import AmortizedNormal
from inference import SVI, fit, with_model
from inference.objectives import ELBO, Beta
from ppl_models import MADE, PixelCNN, PixelVAE
from ppl_models.hidden_pixels import HiddenPixels
from ppl_models.networks import MLP

X = np.array(list(itertools.product(range(2), repeat=4)), np.float32)
SEEN = {"made": MADE((6,)), "pixels": PixelCNN(3, (3,))}
networks = pytest.mark.parametrize("name", ["made", pytest.param("pixels", marks=pytest.mark.slow)])


def ask(question, pixels, context=((0.5, -1.0),), seed=0):
    """What a row of four pixels answers, with weights that are not small; one compile each."""
    at = jnp.broadcast_to(jnp.asarray(context)[:, None], (len(context), pixels.positions(4), 2))

    def made():
        return pixels.rows("pixels", 4, 2)(at)

    def run():
        start = handlers.trace(handlers.seed(made, 0)).get_trace()["pixels"]["value"]
        weights = jax.tree.map(lambda v: v + jax.random.normal(jax.random.key(3), v.shape), start)
        with handlers.seed(rng_seed=seed), handlers.substitute(data={"pixels": weights}):
            return question(made())

    return jax.tree.map(np.asarray, jax.jit(run)())


@networks
def test_given_what_is_hidden_it_is_a_density_and_draws_follow_it(name):
    def question(fn):
        drawn = fn.sample(jax.random.key(1), (4000,))
        return fn.hidden, fn.log_prob(X[:, None]), drawn, fn.mean_along(drawn)

    hidden, *found = ask(question, HiddenPixels(SEEN[name], 0.5), seed=4)
    log_prob, drawn, mean = (v[:, 0] for v in found)
    assert hidden.any() and not hidden.all()
    exact, drawn = np.exp(np.float64(log_prob)), drawn.astype(int)
    assert exact.sum() == pytest.approx(1, abs=1e-5)
    counts = np.bincount(drawn @ 2 ** np.arange(4)[::-1], minlength=16)
    assert stats.chisquare(counts, 4000 * exact / exact.sum()).pvalue > 1e-5  # once in 10^5 seeds
    difference = np.float64(mean).mean(0) - exact @ X
    assert (np.abs(difference) < 5 * mean.std(0) / np.sqrt(4000) + 1e-5).all()  # four z-tests, each 6e-7


@networks
def test_a_hidden_pixel_moves_no_other(name):
    hidden, means = ask(lambda fn: (fn.hidden, fn.mean_along(X)), HiddenPixels(SEEN[name], 0.5), seed=4)
    for i in range(4):
        change = np.abs(means[X[:, i] == 1] - means[X[:, i] == 0]).max()
        assert (change > 1e-3) == (not hidden[0, i] and i < 3)  # the last pixel moves none in any case


def test_nothing_hidden_is_the_model_itself_and_everything_leaves_the_context():
    plain, seen = (ask(lambda fn: fn.log_prob(X), p) for p in (SEEN["made"], HiddenPixels(SEEN["made"], 0.0)))
    np.testing.assert_array_equal(seen, plain)
    contexts = ((0.5, -1.0), (2.0, 1.0))
    means = ask(
        lambda fn: fn.mean_along(X[:, None]), HiddenPixels(SEEN["made"], 1.0), contexts
    )  # (row, context, pixel)
    assert np.ptp(means, axis=0).max() == 0 and np.ptp(means, axis=1).min() > 1e-3


def test_a_run_hides_anew_and_at_its_rate():
    contexts = np.zeros((500, 2), np.float32)
    first, again = (ask(lambda fn: fn.hidden, HiddenPixels(SEEN["made"], 0.3), contexts, seed) for seed in (0, 1))
    assert (first != again).any()
    assert abs(first.mean() - 0.3) < 5 * np.sqrt(0.21 / 2000)  # 6e-7


@pytest.mark.slow
def test_it_is_learned_and_then_sees_everything():
    vae = PixelVAE(1, MLP((4,)), SEEN["made"], features=2)
    guide = AmortizedNormal(1, MLP((4,)))
    svi = SVI(replace(vae, pixels=HiddenPixels(vae.pixels, 0.5)), guide, Beta(ELBO(), 0.5), optax.adam(0.05))
    run = fit(svi, X, key=0, num_steps=5, progress=False)
    seeing = with_model(run, vae, {})
    assert sorted(seeing.params) == sorted(run.params)
    assert np.isfinite(seeing.log_likelihood(X, num_particles=10).rows).all()


def test_what_cannot_hide_is_refused():
    for rate in (-0.1, 1.5):
        with pytest.raises(ValueError, match=f"rate is {rate}; expected a share"):
            HiddenPixels(SEEN["made"], rate)
    with pytest.raises(ValueError, match="of several orders; expected one"):
        HiddenPixels(MADE((6,), num_masks=2))
    start = handlers.trace(handlers.seed(lambda: SEEN["made"].rows("pixels", 4, 2), 0)).get_trace()
    with (
        handlers.substitute(data={"pixels": start["pixels"]["value"]}),
        pytest.raises(ValueError, match="HiddenPixels draws what is hidden, and the program runs without a random key"),
    ):
        HiddenPixels(SEEN["made"]).rows("pixels", 4, 2)
