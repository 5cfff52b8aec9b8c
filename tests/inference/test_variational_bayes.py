"""Variational Bayes through ``fit``: the bound, restarts, its spread against Gibbs', and what is refused."""

from __future__ import annotations

import jax
import numpy as np
import numpyro
import numpyro.distributions as dist
import pyro
import pytest
from numpyro.diagnostics import effective_sample_size

from inference import Fit, Gibbs, Incompatible, VariationalBayes, compare, fit
from inference.to_arviz import psis_resample
from ppl_models import GaussianMixture

pytestmark = pytest.mark.slow  # many compiles; the contracts and story 6 run the algorithm quickly

MIXTURE = GaussianMixture(2, "diag", scale=0.5, mean_scale=3.0)


@pytest.fixture(scope="module")
def x() -> np.ndarray:
    """60 rows from two Gaussians in the plane that overlap a little."""
    rng = np.random.default_rng(0)
    centres = np.array([[-1.0, 0.0], [1.0, 1.0]])
    return (centres[np.arange(60) % 2] + rng.normal(size=(60, 2)) * 0.6).astype(np.float32)


@pytest.fixture(scope="module")
def run(x) -> Fit:
    return fit(VariationalBayes(MIXTURE), x, key=0, num_chains=3)


def test_climbs_and_stops_when_the_bound_does(run):
    bound = run.history["bound"]
    assert 3 < bound.shape[1] < 200 and bound.shape[0] == 3
    # Log densities of rows and responsibilities are float32, and so is the history: 1e-7 of about 3 nats, twice.
    assert np.diff(bound, axis=1).min() > -1e-6
    assert np.diff(bound[:, -2:], axis=1).max() < 1.5e-6
    assert (np.diff(bound[:, -1]) < 1e-6).all()  # best first


def test_draws_are_weighed(x, run):
    posterior, stats = run.draws.posterior, run.draws.sample_stats
    assert posterior["means"].shape == (3, 1024, 2, 2) and set(stats) == {"lp", "log_weight"}
    draw = {n: v[0, 7] for n, v in posterior.items()}
    np.testing.assert_allclose(jax.jit(MIXTURE.log_joint)(draw, x), stats["lp"][0, 7], rtol=1e-5)
    weight = stats["log_weight"][0].astype(np.float64)
    # E log_weight is the bound with q(z) at its best under each draw, and so lies above it, by less than it spreads.
    gain = weight.mean() - run.history["bound"][0, -1] * 60
    assert -4.5 * weight.std() / 1024**0.5 < gain < weight.std()
    data = run.to_arviz()
    assert data.sample_stats.attrs["pareto_k"] < 0.7
    resampled = psis_resample(data)
    assert resampled.posterior["means"].shape == (1, 1024, 2, 2)
    assert np.isfinite(compare([run], x).rows[0].gap)
    assert run.sample_posterior(x, 20)["z"].shape == (20, 60)


def test_there_are_1024_draws_though_rows_leave_a_remainder(x):
    """300 rows take 27 draws at once, and 1,024 is no multiple of 27."""
    draws = fit(VariationalBayes(MIXTURE, tolerance=1e-2), np.tile(x, (5, 1)), key=0).draws
    assert {v.shape[:2] for v in draws.posterior.values()} == {(1, 1024)}
    assert np.isfinite(draws.sample_stats["lp"]).all()


def test_spreads_less_than_the_posterior(x, run):
    """Under-dispersion, shown: mean field drops what labels, means and precisions have to do with each other.

    The same means as Gibbs to within a third of a posterior deviation; deviations smaller in every mean and
    weight, by more than 3 Monte-Carlo errors in their average.
    """
    gibbs = fit(Gibbs(MIXTURE, num_warmup=100), x, key=0, num_steps=1000, num_chains=4).draws.posterior
    ratios, errors = [], []
    for name in ("means", "weights"):
        ours = np.asarray(run.draws.posterior[name][0], np.float64)
        theirs = np.asarray(gibbs[name], np.float64)
        assert (np.abs(ours.mean(0) - theirs.mean((0, 1))) < theirs.std((0, 1)) / 3).all()
        ratios.append((ours.std(0) / theirs.std((0, 1))).ravel())
        errors.append(np.sqrt(0.5 / 1024 + 0.5 / effective_sample_size(theirs)).ravel())  # of a log deviation
    ratio, error = np.concatenate(ratios), np.concatenate(errors)
    assert ratio.max() < 1 + 3 * error.max()
    assert ratio.mean() < 1 - 3 * np.sqrt((error**2).mean() / len(error))


def test_hyperparameters_are_kept(x, run, tmp_path):
    q = run.params["variational"]
    assert q.concentration.shape == (2,) and q.loc.shape == (2, 2, 1) and q.rate.shape == (2, 2, 1, 1)
    np.testing.assert_allclose(q.concentration.sum(), 60 + 2 * 5.0, rtol=1e-5)
    spread = run.draws.posterior["means"][0].std(0)
    np.testing.assert_allclose(spread, q.precision[..., 0, 0] ** -0.5, rtol=4.5 / np.sqrt(2 * 1024))
    run.save(tmp_path / "vb")
    back = Fit.load(tmp_path / "vb", VariationalBayes(MIXTURE))
    np.testing.assert_array_equal(back.params["variational"].rate, q.rate)


def test_evaluate_is_the_bound_on_other_rows(x):
    """On the training rows it is the bound itself."""
    found = fit(VariationalBayes(MIXTURE, tolerance=0.0), x, key=0, validation=x, num_steps=100)
    np.testing.assert_allclose(found.history["validation"][0, -1], found.history["bound"][0, -1], atol=1e-6)


def test_what_does_not_fit_is_refused(x):
    def plain(x):
        numpyro.sample("x", dist.Normal(0.0, 1.0).expand(x.shape), obs=x)

    with pytest.raises(
        Incompatible, match="VariationalBayes needs a program with exact conditionals, and plain has no"
    ):
        VariationalBayes(plain)
    with pytest.raises(Incompatible, match="this GaussianMixture has ppl=pyro"):
        VariationalBayes(GaussianMixture(2, ppl=pyro))
    for fields, message in (
        ({"tolerance": -1.0}, "tolerance is -1.0; give zero"),
        ({"max_steps": 0}, "max_steps is 0; expected a whole number of at least 1"),
    ):
        with pytest.raises(ValueError, match=message):
            VariationalBayes(MIXTURE, **fields)
    algorithm = VariationalBayes(MIXTURE)
    with pytest.raises(Incompatible, match="the batch has 20 of 60: use batch_size=None, or SVI"):
        fit(algorithm, x, key=0, batch_size=20)
    with pytest.raises(ValueError, match="x has 1 rows for 2 components"):
        fit(algorithm, x[:1], key=0)
