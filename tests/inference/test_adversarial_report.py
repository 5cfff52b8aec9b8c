"""What is wrong between two players is said, and only that. Players stand still where they are put; seeds are fixed."""

from __future__ import annotations

import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest

from inference import Adversarial, diagnose, fit
from inference.games import NonSaturating, WassersteinGradientPenalty

STILL = optax.set_to_zero()


def standing(loc, slope, x, game=NonSaturating()):
    """A run in which x ~ N(loc, 1), and the critic's score slope * x, do not move."""

    def model(x, num_data=None):
        at = numpyro.param("loc", loc)
        with numpyro.plate("data", num_data or len(x), subsample_size=len(x)):
            z = numpyro.sample("z", dist.Normal(0, 1).expand([x.shape[-1]]).to_event(1))
            numpyro.deterministic("x", at + z)

    def critic(x):
        return numpyro.param("slope", slope) * (x[:, 0] - 0.5 * loc)

    return fit(Adversarial(model, critic, game, STILL, STILL), x.astype(np.float32), key=0, num_steps=10)


def rows(loc, size=400):
    return np.random.default_rng(0).normal(loc, 1.0, (size, 2))


@pytest.mark.parametrize(
    ("run", "bad"),
    [
        (lambda: standing(0.0, 0.0, rows(0.0)), set()),
        # half of the data where no draw is
        (lambda: standing(0.0, 0.0, np.concatenate([rows(0.0, 200), rows(8.0, 200)])), {"critic", "modes"}),
        # all draws at a distance that the critic does not see
        (lambda: standing(2.5, 0.0, rows(0.0)), {"critic", "modes"}),
        pytest.param(
            lambda: standing(2.5, 0.1, rows(0.0), WassersteinGradientPenalty()),
            {"divergence", "critic", "modes"},
            marks=pytest.mark.slow,
        ),
    ],
    ids=["healthy", "mode dropping", "collapsed critic", "critic on the wrong side"],
)
def test_what_is_wrong_is_named(run, bad):
    found = diagnose(run())
    assert {f.what for f in found.findings if f.verdict == "bad"} == bad, str(found)
    assert found.healthy == (not bad)


def test_a_sure_critic_is_worth_knowing():
    (finding,) = [f for f in diagnose(standing(6.0, -1.0, rows(0.0))).findings if f.what == "critic"]
    assert finding.verdict == "look" and "NonSaturating" in finding.advice and "tells 100% right" in finding.found


def test_a_wasserstein_critic_may_be_sure():
    """Its slope does not fade, so that the generator learns as before."""
    run = standing(6.0, -1.0, rows(0.0), WassersteinGradientPenalty())
    (finding,) = [f for f in diagnose(run).findings if f.what == "critic"]
    assert finding.verdict == "good" and "tells 100% right" in finding.found


@pytest.mark.slow
def test_few_rows_say_nothing_of_draws():
    found = diagnose(standing(0.0, 0.0, rows(0.0, 20)))
    assert [f.what for f in found.findings] == ["critic"]
