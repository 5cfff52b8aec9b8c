"""A diagnosis names what is wrong with fits that are made wrong on purpose, and nothing with sound ones."""

from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest

from inference import EM, NUTS, SVI, diagnose, fit
from inference.objectives import ELBO, ScoreFunction
from ppl_models import PPCA

RNG = np.random.default_rng(0)
Z = RNG.normal(size=(80, 1))
X = (Z @ [[2.0, -1.0, 0.5]] + 0.5 * RNG.normal(size=(80, 3))).astype(np.float32)


def model(x, num_data=None):
    w = numpyro.param("w", jnp.array([1.0, -0.5, 0.3]))
    with numpyro.plate("data", num_data or len(x), subsample_size=len(x)):
        z = numpyro.sample("z", dist.Normal(jnp.zeros((len(x), 2)), 1).to_event(1))
        numpyro.sample("x", dist.Normal(z[..., :1] * w, 0.5).to_event(1), obs=x)


def guide(x, num_data=None):
    a = numpyro.param("a", 0.1 * jnp.ones((3, 2)))
    s = numpyro.param("s", jnp.ones(2), constraint=dist.constraints.positive)
    with numpyro.plate("data", num_data or len(x), subsample_size=len(x)):
        numpyro.sample("z", dist.Normal(x @ a, s).to_event(1))


def collapsed_guide(x, num_data=None):
    m = numpyro.param("m", jnp.zeros(2))
    with numpyro.plate("data", num_data or len(x), subsample_size=len(x)):
        numpyro.sample("z", dist.Normal(m * jnp.ones((len(x), 2)), 0.05).to_event(1))


def findings(run, data=None):
    return {f.what: f for f in diagnose(run, data).findings}


@pytest.fixture(scope="module")
def sound():
    return fit(SVI(model, guide, ELBO(), optax.adam(optax.cosine_decay_schedule(0.05, 800))), X, key=0, num_steps=800)


def test_a_sound_fit_is_called_sound(sound):
    found = findings(sound)
    assert diagnose(sound).healthy
    assert found["convergence"].verdict == "good"
    assert found["gap of the ELBO"].verdict == "good"  # the guide's family holds the posterior
    assert found["k-hat of rows"].verdict == "good"
    assert found["ELBO surgery"].verdict == "good" and "at most 4.38" in found["ELBO surgery"].found  # log 80
    assert found["inference gaps"].verdict == "good"
    assert found["latent 'z'"].found.startswith("1 of 2 units are active")  # the model does not use the second


def test_a_short_run_has_not_converged():
    run = fit(SVI(model, guide, ELBO(10), optax.adam(3e-3)), X, key=0, num_steps=200)
    found = findings(run)["convergence"]
    assert found.verdict == "bad" and "more steps" in found.advice


def test_a_collapsed_narrow_guide_is_named_with_cures():
    run = fit(SVI(model, collapsed_guide, ELBO(), optax.adam(1e-2)), X, key=0, num_steps=200)
    found = findings(run)
    assert found["latent 'z'"].verdict == "bad" and "FreeBits" in found["latent 'z'"].advice
    assert found["k-hat of rows"].verdict == "bad"
    assert found["gap of the ELBO"].verdict == "look"
    # The best Normal of each row is the posterior: all is lost by the encoder, which is told so.
    assert found["inference gaps"].verdict == "look" and "larger encoder" in found["inference gaps"].advice
    assert "codes tell 0.00 nats" in found["ELBO surgery"].found
    assert "posterior collapse" in str(diagnose(run))


def test_scores_on_pathwise_sites_are_advised_against():
    run = fit(SVI(model, guide, ScoreFunction(2), optax.adam(1e-3)), X, key=0, num_steps=50)
    assert "ELBO() or STL()" in findings(run)["choice of objective"].advice


def test_a_discrete_site_that_could_be_summed_out():
    def switch(x, num_data=None):
        with numpyro.plate("data", num_data or len(x), subsample_size=len(x)):
            k = numpyro.sample("k", dist.Categorical(jnp.array([0.4, 0.6])), infer={"enumerate": "parallel"})
            numpyro.sample(
                "x", dist.Normal(jnp.where(k == 0, -1.0, 1.0)[..., None] * jnp.ones(3), 1).to_event(1), obs=x
            )

    def guess(x, num_data=None):
        b = numpyro.param("b", jnp.zeros(3) + 0.1)
        with numpyro.plate("data", num_data or len(x), subsample_size=len(x)):
            logit = x @ b
            numpyro.sample("k", dist.Categorical(logits=jnp.stack([jnp.zeros_like(logit), logit], -1)))

    run = fit(SVI(switch, guess, ScoreFunction(), optax.adam(1e-2)), X, key=0, num_steps=50)
    assert "leave ['k'] out of the guide" in findings(run)["choice of objective"].advice


@pytest.mark.slow
def test_point_estimates_and_chains():
    em = findings(fit(EM(PPCA(1)), X, key=0, num_chains=3))
    assert em["restarts"].verdict == "good"  # PPCA's likelihood has no local optima
    nuts = fit(NUTS(PPCA(1), num_warmup=100), X, key=0, num_steps=100, num_chains=2)
    found = findings(nuts)
    assert found["divergences"].verdict in ("good", "bad") and found["R-hat"].found
    assert found["effective draws"].verdict == "look"  # 200 draws are fewer than 400 effective ones
    mean = np.array(nuts.draws.posterior["mean"])
    mean[1, 5, 0] = np.nan
    broken = replace(nuts, draws=nuts.draws._replace(posterior={**nuts.draws.posterior, "mean": mean}))
    assert findings(broken)["R-hat"].verdict == "bad" and findings(broken)["R-hat"].found == "inf, of 'mean'"


def test_data_are_needed(tmp_path, sound):
    from inference import Fit
    from inference.errors import BadData

    sound.save(tmp_path / "fit")
    loaded = Fit.load(tmp_path / "fit", sound.algorithm)
    with pytest.raises(BadData, match=r"diagnose\(fit, data\)"):
        diagnose(loaded)
    assert diagnose(loaded, X).findings
