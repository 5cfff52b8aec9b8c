"""Gibbs through ``fit``: against quadrature and NUTS, what its result answers, and what is refused."""

from __future__ import annotations

import importlib
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pyro
import pytest
from numpyro.diagnostics import effective_sample_size

from inference import NUTS, Fit, Gibbs, Incompatible, compare, fit
from inference.posterior_error import diagnose_site
from inference.to_arviz import loo
from ppl_models import GaussianMixture

pytestmark = pytest.mark.slow  # statistical, many draws; the contracts and story 6 run the sampler quickly

MIXTURE = GaussianMixture(2, "diag", scale=0.5, mean_scale=3.0)


@dataclass(frozen=True)
class Normal:
    """mean ~ N(0, 1), precision ~ Gamma(2, 1), offset_n ~ N(0, 1), x_n ~ N(mean + offset_n, 1 / precision)."""

    def __call__(self, x: Any, num_data: int | None = None) -> None:
        mean = numpyro.sample("mean", dist.Normal(0.0, 1.0))
        precision = numpyro.sample("precision", dist.Gamma(2.0, 1.0))
        numpyro.deterministic("sd", precision**-0.5)
        with numpyro.plate("data", num_data or len(x), subsample_size=len(x)):
            offset = numpyro.sample("offset", dist.Normal(0.0, 1.0))
            numpyro.deterministic("centre", mean + offset)
            numpyro.sample("x", dist.Normal(mean + offset, precision**-0.5), obs=x)

    def posterior(self, x: Any, num_data: int | None = None) -> None:
        mean = numpyro.sample("mean", dist.Normal(0.0, 1.0))
        precision = numpyro.sample("precision", dist.Gamma(2.0, 1.0))
        with numpyro.plate("data", num_data or len(x), subsample_size=len(x)):
            numpyro.sample("offset", dist.Normal(precision * (x - mean) / (1 + precision), (1 + precision) ** -0.5))

    def initial(self, key: jax.Array, x: jax.Array) -> dict[str, jax.Array]:
        return {"mean": x.mean(), "precision": jnp.ones(())}

    def site_values(self, params: dict[str, jax.Array]) -> dict[str, jax.Array]:
        return params

    def complete(self, key: jax.Array, params: dict[str, jax.Array], x: jax.Array) -> jax.Array:
        mean, precision = (params[n].astype(jnp.float32) for n in ("mean", "precision"))
        noise = jax.random.normal(key, x.shape) * (1 + precision) ** -0.5
        return x - noise - precision * (x - mean) / (1 + precision)

    def draw(self, key: jax.Array, params: dict[str, jax.Array], statistics: jax.Array) -> dict[str, jax.Array]:
        key_mean, key_precision = jax.random.split(key)
        n, precision = len(statistics), params["precision"].astype(jnp.float32)
        spread = 1 / (1 + n * precision)
        mean = spread * precision * statistics.sum() + spread**0.5 * jax.random.normal(key_mean)
        rate = 1 + 0.5 * jnp.sum((statistics - mean) ** 2)
        with jax.enable_x64(True):
            draws = {"mean": mean, "precision": jax.random.gamma(key_precision, 2.0 + n / 2, dtype=jnp.float32) / rate}
            return {name: value.astype(jnp.float64) for name, value in draws.items()}


@pytest.fixture(scope="module")
def x() -> np.ndarray:
    """60 rows from two Gaussians in the plane that overlap a little."""
    rng = np.random.default_rng(0)
    centres = np.array([[-1.0, 0.0], [1.0, 1.0]])
    return (centres[np.arange(60) % 2] + rng.normal(size=(60, 2)) * 0.6).astype(np.float32)


@pytest.fixture(scope="module")
def run(x) -> Fit:
    return fit(Gibbs(MIXTURE, num_warmup=100), x, key=0, num_steps=1000, num_chains=4)


def test_posterior_by_quadrature():
    """A user's own program: means of both globals within 4.5 of their Monte-Carlo errors (false alarm 7e-6 each)."""
    x = np.random.default_rng(1).normal(0.5, 1.3, size=15).astype(np.float32)
    found = fit(Gibbs(Normal(), num_warmup=100), x, key=0, num_steps=1500, num_chains=4)
    m, u = np.meshgrid(np.linspace(-2.5, 3.5, 801), np.linspace(-4, 4, 801), indexing="ij")  # u = log precision
    variance = 1 + np.exp(-u)  # of x given the globals
    log_p = -0.5 * m**2 + 2 * u - np.exp(u)
    log_p += sum(-0.5 * (value - m) ** 2 / variance - 0.5 * np.log(variance) for value in x)
    p = np.exp(log_p - log_p.max())
    p /= p.sum()
    for name, grid in (("mean", m), ("precision", np.exp(u))):
        draws = np.asarray(found.draws.posterior[name], np.float64)
        truth = (p * grid).sum()
        spread = np.sqrt((p * (grid - truth) ** 2).sum())
        assert abs(draws.mean() - truth) < 4.5 * spread / effective_sample_size(draws) ** 0.5
        assert abs(draws.std() / spread - 1) < 0.1
    # The log joint at the draws, offsets integrated out by formula.
    mean, precision = (np.asarray(found.draws.posterior[n], np.float64)[..., None] for n in ("mean", "precision"))
    spread = 1 + 1 / precision
    expected = -0.5 * (x - mean) ** 2 / spread - 0.5 * np.log(2 * np.pi * spread)
    expected = expected.sum(-1) + (-0.5 * mean**2 - 0.5 * np.log(2 * np.pi) + np.log(precision) - precision)[..., 0]
    np.testing.assert_allclose(found.draws.sample_stats["lp"], expected, rtol=1e-4, atol=1e-4)
    assert set(found.draws.posterior) == {"mean", "precision", "sd"}  # not what has a value for every row
    np.testing.assert_allclose(found.draws.posterior["sd"], precision[..., 0] ** -0.5, rtol=1e-5)


def test_agrees_with_nuts(x, run):
    """Means and variances of all globals; z-tests on both Monte-Carlo errors at 4.5 (20 of 7e-6 each)."""
    nuts = fit(NUTS(MIXTURE, num_warmup=300), x, key=1, num_steps=500, num_chains=4)
    assert run.draws.posterior.keys() == nuts.draws.posterior.keys()
    logs = {"weights": np.log, "means": np.array, "precisions": np.log}
    for name, function in logs.items():
        ours, theirs = (function(np.asarray(f.draws.posterior[name], np.float64)) for f in (run, nuts))
        assert diagnose_site(ours)[1] < 1.05 and diagnose_site(theirs)[1] < 1.05
        centre = ours.mean((0, 1))
        for a, b in ((ours, theirs), ((ours - centre) ** 2, (theirs - centre) ** 2)):
            error = sum(v.var((0, 1)) / effective_sample_size(v) for v in (a, b))
            assert np.abs((a.mean((0, 1)) - b.mean((0, 1))) / error**0.5).max() < 4.5
    lp, theirs = run.draws.sample_stats["lp"], np.asarray(nuts.draws.sample_stats["lp"])
    # NUTS adds the log determinant of its transform; both vary about their mode by half a nat a dimension.
    assert lp.shape == (4, 1000) and 0.5 < lp.std() / theirs.std() < 2


def test_the_result_answers_as_that_of_nuts_does(x, run):
    posterior, stats = run.draws.posterior, run.draws.sample_stats
    assert posterior["means"].shape == (4, 1000, 2, 2) and posterior["covariances"].shape == (4, 1000, 2, 2)
    assert not stats["diverging"].any() and stats["diverging"].dtype == bool
    np.testing.assert_array_equal(run.history["lp"][:, 100:], stats["lp"])
    np.testing.assert_allclose(posterior["precisions"] * posterior["covariances"], 1, rtol=1e-5)
    draw = {n: v[2, 5] for n, v in posterior.items()}
    np.testing.assert_allclose(jax.jit(MIXTURE.log_joint)(draw, x), stats["lp"][2, 5], rtol=1e-5)
    row = compare([run], x).rows[0]
    assert row.ess_per_second > 0 and 1 < row.r_hat + 0.01 < 1.1 and np.isnan(row.bound)
    z = run.sample_posterior(x, 50)["z"]
    assert z.shape == (50, 60) and 0.9 < (z == np.arange(60) % 2).mean()
    data = run.to_arviz()
    assert data.log_likelihood["x"].dims == ("chain", "draw", "row") and data.posterior["z"].dims[:2] == (
        "chain",
        "draw",
    )
    assert np.isfinite(loo(run).elpd_loo)


def test_resumed_is_bit_identical(tmp_path, monkeypatch):
    """Stopped after the third of many short segments."""
    loop = importlib.import_module("inference.fit")
    monkeypatch.setattr(loop, "SEGMENT_SECONDS", 1e-4)
    monkeypatch.setattr(loop, "CHECKPOINT_SHARE", np.inf)
    x = np.random.default_rng(2).normal(size=15).astype(np.float32)
    options = {"key": 0, "num_steps": 40, "num_chains": 4}
    algorithm = Gibbs(Normal(), num_warmup=10)
    whole, save, count = fit(algorithm, x, **options), loop.save, [0]

    def dying(*args):
        save(*args)
        count[0] += 1
        if count[0] == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(loop, "save", dying)
    with pytest.raises(KeyboardInterrupt):
        fit(algorithm, x, checkpoint=tmp_path / "run", **options)
    resumed = fit(algorithm, x, checkpoint=tmp_path / "run", **options)
    for name, value in whole.draws.posterior.items():
        np.testing.assert_array_equal(value, resumed.draws.posterior[name])


def test_stopped_within_the_warmup_there_are_no_draws(monkeypatch):
    """As by SIGTERM, after the first step."""
    loop = importlib.import_module("inference.fit")

    @contextmanager
    def signalled():
        yield [15]

    monkeypatch.setattr(loop, "_signals", signalled)
    with pytest.warns(UserWarning, match="stopped by a signal after step 0 of 50"):
        found = fit(Gibbs(Normal(), num_warmup=10), np.ones(15, np.float32), key=0, num_steps=40, num_chains=4)
    assert found.draws.posterior == {} and found.draws.sample_stats["diverging"].shape == (4, 0)


def test_what_does_not_fit_is_refused(x):
    def plain(x):
        numpyro.sample("x", dist.Normal(0.0, 1.0).expand(x.shape), obs=x)

    with pytest.raises(Incompatible, match="plain has no initial, site_values, complete, draw, posterior: use NUTS"):
        Gibbs(plain)
    with pytest.raises(Incompatible, match="this GaussianMixture has ppl=pyro: leave ppl out, or use PyroNUTS"):
        Gibbs(GaussianMixture(2, ppl=pyro))
    with pytest.raises(ValueError, match="num_warmup is -1; expected a whole number of at least 0"):
        Gibbs(MIXTURE, num_warmup=-1)
    algorithm = Gibbs(MIXTURE)
    with pytest.raises(Incompatible, match="the batch has 20 of 60: use batch_size=None, or SVI"):
        fit(algorithm, x, key=0, num_steps=1, batch_size=20)
    with pytest.raises(Incompatible, match="no argument 'y'"):
        fit(algorithm, {"y": x}, key=0, num_steps=1)
    with pytest.raises(Incompatible, match="'sample_weight', which GaussianMixture takes but its complete does not"):
        fit(algorithm, {"x": x, "sample_weight": np.ones(60)}, key=0, num_steps=1)
    with pytest.raises(ValueError, match="x has 1 rows for 2 components"):
        fit(algorithm, x[:1], key=0, num_steps=1)


def test_draws_that_are_not_the_sites_are_refused():
    class Other(Normal):
        def draw(self, key, params, statistics):
            return {"mean": params["mean"]}

    with pytest.raises(Incompatible, match=r"Other.draw draws \{'mean': \(\)\}, and the global sites of Other are"):
        fit(Gibbs(Other()), np.ones(5, np.float32), key=0, num_steps=1)


def test_missing_values_are_drawn(x):
    """A column that is missing in a third of the rows: its posterior covers what the whole data say."""
    holes = x.copy()
    holes[::3, 1] = np.nan
    found = fit(Gibbs(MIXTURE, num_warmup=100), holes, key=0, num_steps=200, num_chains=2)
    means = found.draws.posterior["means"]
    assert np.isfinite(found.draws.sample_stats["lp"]).all()
    assert (np.abs(means.mean((0, 1)) - [[-1.0, 0.0], [1.0, 1.0]]) < 4.5 * means.std((0, 1))).all()
