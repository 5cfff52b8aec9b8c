"""ChEES against known targets and NUTS, within Monte-Carlo error; what its chains share; what it refuses."""

from __future__ import annotations

import importlib
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.diagnostics import effective_sample_size, split_gelman_rubin

from inference import NUTS, ChEES, Incompatible, fit
from inference.execution import CHAINS
from inference.protocols import Batch
from inference.target import potential
from ppl_models import GaussianMixture

SCALES = np.array([0.02, 1.0, 5.0], np.float32)
LOC = np.array([1.0, -2.0, 3.0], np.float32)
X = np.zeros((1, 1), np.float32)


def gaussian(x, num_data=None):
    """N(LOC, A Aᵀ) with scales 250 apart and a correlation of 0.8, given as a prior: data say nothing."""
    tril = jnp.diag(SCALES) @ jnp.array([[1.0, 0, 0], [0.8, 0.6, 0], [0, 0, 1.0]])
    numpyro.sample("g", dist.MultivariateNormal(LOC, scale_tril=tril))
    with numpyro.plate("data", num_data or len(x), subsample_size=len(x)):
        numpyro.sample("x", dist.Normal(0, 1).expand([1]).to_event(1), obs=x)


@pytest.fixture(scope="module")
def run():
    return fit(ChEES(gaussian, num_warmup=300), X, key=0, num_steps=200, num_chains=32)


def test_moments_of_a_gaussian(run):
    """Means, variances and the correlation at |z| < 4.5 (false alarm 7e-6 each, seven of them)."""
    draws = np.asarray(run.draws.posterior["g"], np.float64)
    assert draws.shape == (32, 200, 3)
    standard = (draws - LOC) / SCALES
    expected = {"mean": (standard, 0.0), "variance": (standard**2, 1.0)}
    cross = standard[..., :1] * standard[..., 1:2]
    for values, truth in [*expected.values(), (cross, 0.8)]:
        mcse = values.std((0, 1)) / np.sqrt(effective_sample_size(values))
        assert (abs(values.mean((0, 1)) - truth) < 4.5 * mcse).all()
    assert (split_gelman_rubin(draws) < 1.02).all()


def test_what_is_learned_fits_the_target_and_is_shared(run):
    stats = run.draws.sample_stats
    assert not stats["diverging"].any()
    # One value for all chains at every step, and none learned after warmup.
    for name in ("step_size", "trajectory_length"):
        assert np.unique(stats[name]).size == 1
    assert (stats["num_leapfrog_steps"] == stats["num_leapfrog_steps"][:1]).all()
    # Scales of 250 to 1 would need hundreds of steps without the metric; a quarter turn is pi / 2.
    assert stats["num_leapfrog_steps"].mean() < 20
    assert 0.5 < stats["trajectory_length"][0, 0] < 5
    assert 0.5 < stats["acceptance_rate"].mean() < 0.95
    # Draws follow each other almost independently, which NUTS manages at best.
    assert effective_sample_size(np.asarray(run.draws.posterior["g"], np.float64)).min() > 0.3 * 32 * 200


def test_energy_is_of_the_kept_state(run):
    """H - (-lp) is the kinetic energy: a chi-square with three degrees of freedom, halved, at equilibrium.

    For rejected proposals it is that of the momentum drawn. Its mean is 1.5 up to the tilt that accepting gives it.
    """
    stats = run.draws.sample_stats
    kinetic = stats["energy"] + stats["lp"]
    assert (kinetic > 0).all()
    assert 1.2 < kinetic.mean() < 1.9


def test_the_kernel_leaves_exact_draws_where_they_are():
    """Contract 3: 2,000 chains at exact draws, moved 1, 4 and 16 times by long steps, stay exact draws.

    Means and variances of three independent coordinates at |z| < 4.5: 18 comparisons, false alarm 7e-6 each.
    """
    num, algorithm = 2000, ChEES(gaussian, num_warmup=1)
    batch = Batch({"x": jnp.asarray(X)}, jnp.arange(1), 1)
    state = jax.jit(jax.vmap(algorithm.init, in_axes=(0, None)))(jax.random.split(jax.random.key(0), num), batch)
    learned = state.tuning.learned._replace(  # by hand: steps so long that many are rejected
        log_step_size_moving_average=jnp.full(num, np.log(0.6)),
        log_trajectory_length_moving_average=jnp.full(num, np.log(3.0)),
    )
    variance = jnp.broadcast_to(SCALES**2, (num, 3))
    tuned = state.tuning._replace(count=jnp.ones(num, jnp.int32), learned=learned, variance=variance)
    state = state._replace(tuning=tuned)

    rng = np.random.default_rng(3)
    standard = rng.normal(size=(num, 3)) @ np.array([[1.0, 0, 0], [0.8, 0.6, 0], [0, 0, 1.0]]).T
    exact = {"g": jnp.asarray(LOC + SCALES * standard, jnp.float32)}
    value, gradient = jax.jit(jax.vmap(jax.value_and_grad(potential(gaussian, batch))))(exact)
    state = state._replace(position=exact, log_density=-value, gradient=jax.tree.map(jnp.negative, gradient))
    step = jax.jit(jax.vmap(algorithm.step, in_axes=(0, 0, None), axis_name=CHAINS))
    accepted = []
    for i in range(16):
        state, record = step(jax.random.split(jax.random.key(i), num), state, batch)
        accepted.append(np.asarray(record.draw["acceptance_rate"]).mean())
        if i + 1 in (1, 4, 16):
            g = (np.asarray(state.position["g"], np.float64) - LOC) / SCALES
            white = np.stack([g[:, 0], (g[:, 1] - 0.8 * g[:, 0]) / 0.6, g[:, 2]])
            assert (abs(white.mean(1)) < 4.5 / num**0.5).all()
            assert (abs(white.var(1) - 1) < 4.5 * (2 / num) ** 0.5).all()
    assert 0.5 < np.mean(accepted) < 0.9  # without rejections there would be nothing to get wrong


@pytest.mark.slow
def test_agrees_with_nuts_on_a_mixture():
    """Sorted weights and log likelihood of a tiny mixture: differences at |z| < 4.5 (false alarm 7e-6 each)."""
    rng = np.random.default_rng(4)
    x = np.concatenate([rng.normal(-2, 1, (20, 1)), rng.normal(2, 0.7, (25, 1))]).astype(np.float32)
    mixture = GaussianMixture(2, covariance="diag", mean_scale=3.0, scale=1.0)
    many = fit(ChEES(mixture, num_warmup=200), x, key=0, num_steps=100, num_chains=32)
    nuts = fit(NUTS(mixture, num_warmup=300), x, key=1, num_steps=1500, num_chains=2)
    found = []
    for run in (many, nuts):
        posterior = {n: np.asarray(v, np.float64) for n, v in run.draws.posterior.items()}
        weights, means = np.sort(posterior["weights"], -1), np.sort(posterior["means"][..., 0], -1)
        lp = np.asarray(run.draws.sample_stats["lp"], np.float64)
        values = np.stack([weights[..., 0], means[..., 0], means[..., 1], lp], -1)
        found.append((values.mean((0, 1)), values.std((0, 1)) / np.sqrt(effective_sample_size(values))))
    (a, error_a), (b, error_b) = found
    assert (abs(a - b) < 4.5 * np.hypot(error_a, error_b)).all(), (a, b, error_a, error_b)
    assert set(many.draws.posterior) == {"weights", "means", "precisions", "covariances"}
    assert many.to_arviz().posterior.sizes["chain"] == 32


def test_refused_before_compiling():
    with pytest.raises(Incompatible, match="num_chains is 1: give at least 4"):
        fit(ChEES(gaussian), X, key=0, num_steps=5)
    with pytest.raises(Incompatible, match="ChEES needs all rows"):
        fit(ChEES(gaussian), np.zeros((4, 1), np.float32), key=0, num_steps=5, num_chains=4, batch_size=2)

    def counts(x, num_data=None):
        rate = numpyro.sample("rate", dist.Poisson(3.0))
        with numpyro.plate("data", num_data or len(x), subsample_size=len(x)):
            numpyro.sample("x", dist.Normal(rate, 1).expand([1]).to_event(1), obs=x)

    with pytest.raises(Incompatible, match=r"ChEES follows gradients, and \['rate'\] are discrete"):
        fit(ChEES(counts), X, key=0, num_steps=5, num_chains=4)
    for options in ({"num_warmup": 0}, {"max_leapfrog_steps": 0}, {"target_accept_prob": 1.0}):
        with pytest.raises(ValueError, match=f"ChEES: {next(iter(options))} is"):
            replace(ChEES(gaussian), **options)


def test_resumes_to_the_same_bits(run, tmp_path, monkeypatch):
    """Contract 5: killed once in warmup and once after it, the run ends like one left alone."""
    loop = importlib.import_module("inference.fit")
    save, steps = loop.save, []

    def dying(*args):
        save(*args)
        steps.append(args[1].step)
        if len(steps) in (3, 9):
            raise Stop

    monkeypatch.setattr(loop, "save", dying)
    monkeypatch.setattr(loop, "CHECKPOINT_SHARE", np.inf)  # after every segment
    monkeypatch.setattr(loop, "_next_length", lambda length, elapsed: 60)
    options = {"key": 0, "num_steps": 200, "num_chains": 32, "checkpoint": tmp_path / "run.ckpt"}
    for _ in range(2):
        with pytest.raises(Stop):
            fit(run.algorithm, X, **options)
    assert steps[2] < 300 < steps[8] < 500
    resumed = fit(run.algorithm, X, **options)
    leaves = [jax.tree.leaves((r.draws, r.history)) for r in (run, resumed)]
    assert len(leaves[0]) > 5
    assert all(np.array_equal(a, b) for a, b in zip(*leaves, strict=True))


class Stop(Exception):
    """Stands for the process dying."""
