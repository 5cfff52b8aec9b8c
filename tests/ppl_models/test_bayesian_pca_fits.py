"""Bayesian PCA by every algorithm that takes it, end to end; two samplers with nothing in common agree."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from numpyro.diagnostics import effective_sample_size

from inference import EM, NUTS, Gibbs, Incompatible, VariationalBayes, fit
from inference.align import identified
from ppl_models import BayesianPCA

pytestmark = pytest.mark.slow  # whole fits; the steps have quick tests of their own

MODEL = BayesianPCA(2, precision_shape=2.0, precision_rate=1.0, mean_scale=3.0, noise_shape=2.0, noise_scale=0.2)


@pytest.fixture(scope="module")
def x() -> np.ndarray:
    """25 rows in 4 columns near a plane."""
    rng = np.random.default_rng(0)
    return (rng.normal(size=(25, 2)) @ rng.normal(size=(2, 4)) + 0.5 * rng.normal(size=(25, 4)) + 1).astype(np.float32)


@pytest.fixture(scope="module")
def gibbs(x):
    return fit(Gibbs(MODEL, num_warmup=100), x, key=0, num_steps=1000, num_chains=4)


@pytest.fixture(scope="module")
def coupled(x):
    return fit(VariationalBayes(MODEL), x, key=0, num_chains=3)


def logs(run):
    """Identified quantities, positive ones by their logarithm, (chain, draw, element)."""
    found = {n: np.asarray(v, np.float64).reshape(*v.shape[:2], -1) for n, v in identified(run).items()}
    positive = ("noise_variance", "communality", "spectrum", "sorted_precision")
    return {n: np.log(v) if n in positive else v for n, v in found.items()}


def check_inference_data(run, x):
    data = run.to_arviz()
    assert {"posterior", "sample_stats", "log_likelihood", "posterior_predictive", "prior"} <= set(data.groups())
    for group in ("posterior", "prior", "log_likelihood"):
        for variable in data[group].data_vars.values():
            assert np.isfinite(variable).all(), (group, variable.name)
    assert data.posterior["loadings"].shape[2:] == (4, 2) and data.posterior["spectrum"].shape[2:] == (2,)
    assert run.generate(5)["x"].shape == (5, 4) and run.reconstruct(x)["x"].shape == x.shape


@pytest.mark.slow
@pytest.mark.parametrize("missing", [0.0, 0.2])
def test_gibbs_and_nuts_agree(missing, x):
    """13 means within 4 Monte-Carlo standard errors of the difference: a false alarm in 1 of 1,200 seeds."""
    x = np.where(np.random.default_rng(1).random(x.shape) < missing, np.float32(np.nan), x)
    gibbs = fit(Gibbs(MODEL, num_warmup=100), x, key=0, num_steps=1000, num_chains=4)
    nuts = fit(NUTS(MODEL, num_warmup=300), x, key=0, num_steps=500, num_chains=4)
    here, there = logs(gibbs), logs(nuts)
    compared = 0
    for name in ("noise_variance", "communality", "spectrum", "sorted_precision", "mean"):
        for i in range(here[name].shape[-1]):
            pair = [v[name][..., i] for v in (here, there)]
            error = np.sqrt(sum(v.var() / effective_sample_size(v) for v in pair))
            assert abs(pair[0].mean() - pair[1].mean()) < 4 * error, (name, i)
            assert error < 0.2 * pair[1].std()
            compared += 1
    assert compared == 13
    check_inference_data(nuts, x)


def check_variational(run, gibbs):
    """It finds the noise; q(z) apart from the globals makes the spread too small."""
    exact, found = logs(gibbs)["noise_variance"], logs(run)["noise_variance"]
    assert abs(found.mean() - exact.mean()) < exact.std()
    assert 0.4 < found.std() / exact.std() < 1.0


def test_variational_posterior_is_near_and_narrow(coupled, gibbs):
    check_variational(coupled, gibbs)


@pytest.mark.slow
def test_factorised_posterior_has_the_lower_bound(coupled, gibbs, x):
    factorised = fit(VariationalBayes(MODEL.mean_field), x, key=0, num_chains=3)
    check_variational(factorised, gibbs)
    assert coupled.history["bound"][0, -1] > factorised.history["bound"][0, -1]
    for run in (coupled, factorised):
        check_inference_data(run, x)


def test_gibbs_becomes_inference_data(coupled, gibbs, x):
    check_inference_data(gibbs, x)
    # rows that were fitted: log likelihoods under one model differ by what the posteriors do
    assert coupled.log_likelihood(x).mean == pytest.approx(gibbs.log_likelihood(x).mean, abs=0.15)


@pytest.mark.parametrize("family", ["coupled", "mean-field"])
def test_variational_bayes_takes_holes_and_weights(family, x):
    program = MODEL if family == "coupled" else MODEL.mean_field
    x = np.where(np.random.default_rng(1).random(x.shape) < 0.2, np.float32(np.nan), x)
    run = fit(VariationalBayes(program), x, key=0)
    assert np.diff(run.history["bound"][0]).min() > -1e-5  # float32 history of float64 bounds of order 5
    check_inference_data(run, x)
    times = np.random.default_rng(2).integers(0, 3, len(x))
    weighted = fit(VariationalBayes(program), {"x": x, "sample_weight": times.astype(np.float32)}, key=0, num_steps=200)
    repeated = fit(VariationalBayes(program), np.repeat(x, times, axis=0), key=0, num_steps=200)
    # the same optimum, from starts that differ
    ends = [run.history["bound"][0, -1] for run in (weighted, repeated)]
    assert ends[0] == pytest.approx(ends[1], abs=1e-3)
    with pytest.raises(Incompatible, match="sample_weight"):
        fit(Gibbs(MODEL), {"x": np.nan_to_num(x), "sample_weight": times.astype(np.float32)}, key=0, num_steps=2)


def test_em_is_refused_by_name():
    with pytest.raises(Incompatible, match="BayesianPCA has no e_step"):
        EM(MODEL)


def test_initial_values_are_the_sites_of_the_program(x):
    start = MODEL.site_values(MODEL.initial(jax.random.key(0), x))
    assert {n: v.shape for n, v in start.items()} == {
        "loadings": (4, 2), "loadings_precision": (2,), "mean": (4,), "noise_variance": ()
    }  # fmt: skip
