"""PPCA and factor analysis through ``fit``: data with holes, every algorithm that takes them."""

from __future__ import annotations

import numpy as np
import pytest

from inference import EM, NUTS, Gibbs, Incompatible, StepwiseEM, VariationalBayes, fit
from ppl_models import PPCA, FactorAnalysis

pytestmark = pytest.mark.slow  # whole fits; the steps have quick tests of their own

SMALL = {"loadings_scale": 2.0, "mean_scale": 2.0, "noise_shape": 2.0, "noise_scale": 1.0}


@pytest.fixture(scope="module")
def holes() -> np.ndarray:
    """40 rows of four columns around a line, a quarter of the entries NaN."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(40, 1)) * [1.5, 1.0, -1.0, 0.5] + rng.normal(size=(40, 4)) * 0.6 + [1.0, 0.0, 0.0, -1.0]
    return np.where(rng.random(x.shape) < 0.25, np.nan, x).astype(np.float32)


def test_em_takes_holes_and_imputes_them(holes):
    model = PPCA(1)
    run = fit(EM(model, tolerance=1e-9), holes, key=0, num_chains=2)
    mean, variance = model.impute(run.params, holes)
    seen = ~np.isnan(holes)
    np.testing.assert_array_equal(np.asarray(mean)[seen], holes[seen])
    assert np.isfinite(mean).all() and (np.asarray(variance)[~seen] > 0).all()
    log_likelihood, _ = model.e_step(run.params, holes, seen)
    # float32 parameters and program against float64 steps
    assert run.log_likelihood(holes).mean == pytest.approx(float(log_likelihood) / len(holes), rel=1e-4)
    assert run.history["bound"][0, -1] == pytest.approx(float(log_likelihood) / len(holes), rel=1e-4)


def test_sample_weight_counts_rows(holes):
    x = np.nan_to_num(holes)
    times = np.random.default_rng(1).integers(0, 3, len(x))
    weighted = fit(EM(PPCA(1), tolerance=0), {"x": x, "sample_weight": times.astype(np.float32)}, key=0, num_steps=50)
    repeated = fit(EM(PPCA(1), tolerance=0), np.repeat(x, times, axis=0), key=0, num_steps=50)
    # float32 parameters
    np.testing.assert_allclose(weighted.params["loadings"], repeated.params["loadings"], rtol=1e-5, atol=1e-6)
    with pytest.raises(Incompatible, match="sample_weight"):
        fit(Gibbs(PPCA(1)), {"x": x, "sample_weight": times.astype(np.float32)}, key=0, num_steps=2)


def test_stepwise_em_streams_holes(holes):
    model = FactorAnalysis(1)
    whole = fit(EM(model, tolerance=1e-8), holes, key=0)
    parts = fit(StepwiseEM(model), holes, key=0, num_epochs=200, batch_size=20)
    # the last steps, of size 0.015, weigh the two halves a little unevenly
    assert parts.log_likelihood(holes).mean > whole.log_likelihood(holes).mean - 0.02


@pytest.mark.slow  # NUTS; the default tests have Gibbs against quadrature
def test_gibbs_agrees_with_nuts_on_holes(holes):
    """Posterior means of what is identified, within 4.5 Monte-Carlo standard errors (7e-6 each, 9 of them)."""
    import arviz as az

    model = FactorAnalysis(1, **SMALL)
    gibbs = fit(Gibbs(model, num_warmup=200), holes, key=0, num_steps=1500, num_chains=4)
    nuts = fit(NUTS(model, num_warmup=300), holes, key=1, num_steps=500, num_chains=4)
    for name, function in {"noise_variance": np.log, "communality": np.asarray, "mean": np.asarray}.items():
        one, other = (np.asarray(function(run.draws.posterior[name]), np.float64) for run in (gibbs, nuts))
        for d in range(one.shape[-1]):
            error = np.hypot(az.mcse(one[..., d]), az.mcse(other[..., d]))
            assert abs(one[..., d].mean() - other[..., d].mean()) < 4.5 * error, (name, d)
            assert az.rhat(one[..., d]) < 1.01


def test_gibbs_runs_on_holes(holes):
    model = FactorAnalysis(1, **SMALL)
    run = fit(Gibbs(model, num_warmup=5), holes, key=0, num_steps=20, num_chains=2)
    assert {n: v.shape for n, v in run.draws.posterior.items()} == {
        "loadings": (2, 20, 4, 1), "mean": (2, 20, 4), "noise_variance": (2, 20, 4), "communality": (2, 20, 4)
    }  # fmt: skip
    assert np.isfinite(run.draws.sample_stats["lp"]).all()


@pytest.mark.parametrize("kind", ["coupled", "mean_field"])
def test_variational_bayes_takes_holes(holes, kind):
    model = FactorAnalysis(1, **SMALL)
    program = model if kind == "coupled" else model.mean_field
    run = fit(VariationalBayes(program, tolerance=1e-9), holes, key=0)
    bound = run.history["bound"][0]
    # float32 history of float64 bounds of order 5
    assert np.diff(bound).min() > -1e-5 and np.isfinite(run.draws.sample_stats["log_weight"]).all()
    # E_q[log p(x, g) - log q(g)] adds back the gap of q(z), no more than the evidence does
    assert run.draws.sample_stats["log_weight"].mean() / len(holes) > bound[-1] - 1e-3


def test_columns_without_a_number_are_refused(holes):
    holes = holes.copy()
    holes[:, 2] = np.nan
    with pytest.raises(ValueError, match=r"(?s)column.*2"):
        fit(EM(PPCA(1)), holes, key=0)
