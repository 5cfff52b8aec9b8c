"""MAP beside full Bayes, against Newton's method and quadrature, at the recipe's own data. The seed is fixed."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from numpyro.diagnostics import effective_sample_size
from scipy.optimize import minimize
from scipy.special import expit, log_expit

from ppl.recipe import load
from ppl.values import kind, parts

pytestmark = pytest.mark.slow  # a whole recipe, small

EXAMPLE = Path(__file__).parents[2] / "examples" / "bayesian_logistic_regression.py"


@pytest.fixture(scope="module")
def module():
    return sys.modules[load(EXAMPLE).main.__module__]


@pytest.fixture(scope="module")
def results(module):
    return module.main(num_steps=600, num_draws=400, num_test=2000)


@pytest.fixture(scope="module")
def log_posterior(module):
    """Unnormalised, of (w1, w2, b) on the last axis."""
    train = module.draw(np.random.default_rng(0), 10)
    sign = 2 * train["y"] - 1
    design = np.column_stack([train["x"], np.ones(10)]).astype(np.float64) * sign[:, None]
    return lambda w: log_expit(w @ design.T).sum(-1) - (w**2).sum(-1) / 2 / module.PRIOR_SCALE**2


def test_map_is_the_mode_and_nuts_has_the_posterior_means(results, log_posterior):
    best = minimize(lambda w: -log_posterior(w), np.zeros(3)).x
    params = results["MAP"].params
    # Adam, decayed to zero over 600 steps
    np.testing.assert_allclose([*params["weights_value"], params["bias_value"]], best, atol=0.02)

    axis = np.linspace(-1, 1, 61)
    grid = best + np.stack(np.meshgrid(8 * axis, 8 * axis, 8 * axis, indexing="ij"), -1)
    weight = np.exp(log_posterior(grid) - log_posterior(best))
    weight /= weight.sum()
    draws = results["NUTS"].draws.posterior
    draws = np.concatenate([draws["weights"], draws["bias"][..., None]], -1).astype(np.float64)
    for i in range(3):
        error = draws[..., i].std() / np.sqrt(effective_sample_size(draws[..., i]))
        # three tests at 4 standard errors: a false alarm in 1 of 5,000 seeds
        assert abs(draws[..., i].mean() - (weight * grid[..., i]).sum()) < 4 * error


def test_map_is_sure_far_from_its_data_and_the_posterior_is_not(module, results):
    """MAP's logit is linear, so its contours are parallel; along them the average over the posterior flattens out."""
    run, nuts = results["MAP"], results["NUTS"]
    w, b = np.asarray(run.params["weights_value"], np.float64), float(run.params["bias_value"])
    far = np.random.default_rng(1).uniform(-10, 10, (200, 2))
    np.testing.assert_allclose(module.probability(run, far), expit(far @ w + b), atol=1e-3)  # float32 features
    along = np.array([-w[1], w[0]]) / np.linalg.norm(w)
    at = -b * w / (w @ w) + 2 * w / (w @ w)  # where MAP's log odds are 2
    near, away = (module.probability(nuts, np.stack([at - t * along, at + t * along])) for t in (1, 10))
    assert abs(away - 0.5).max() < abs(near - 0.5).min()
    assert abs(away - 0.5).max() < expit(2) - 0.5 - 0.1


def test_full_bayes_scores_higher_and_is_less_sure(results):
    scores = {row[""]: row for row in results["Calibration on held-out rows"][0]}
    assert scores["NUTS"]["log score, nats per row"] > scores["MAP"]["log score, nats per row"] + 0.03
    assert scores["true weights"]["log score, nats per row"] > scores["NUTS"]["log score, nats per row"]
    assert scores["MAP"]["confidence"] > scores["NUTS"]["confidence"]
    # 2,000 rows in ten bins: each frequency has a standard error of about 0.035
    assert scores["true weights"]["calibration error"] < 0.04
    table = {row.name: row.log_likelihood for row in results["Log score of held-out rows"].rows}
    for name, likelihood in table.items():  # two estimates over different draws of the posterior
        tolerance = 1e-4 if name == "MAP" else 0.06
        assert likelihood.mean == pytest.approx(scores[name]["log score, nats per row"], abs=tolerance)


def test_report_has_its_parts(results):
    kinds = [kind(part) for _, part in parts(results)]
    assert None not in kinds and kinds.count("figure") == 3 and kinds.count("fit") == 3
