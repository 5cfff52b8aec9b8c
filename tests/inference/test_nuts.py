"""NUTS against conjugacy and known truth, within Monte-Carlo error."""

from __future__ import annotations

import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.diagnostics import effective_sample_size

from inference import EM, NUTS, fit
from inference.posterior_error import diagnose_site
from ppl_models import GaussianMixture


def test_conjugate_normal():
    """Posterior mean and variance by formula; z-tests on the MCSE at |z| < 4.5 (false alarm 7e-6 each)."""
    x = np.random.default_rng(1).normal(2.0, 1.0, size=(15, 1)).astype(np.float32)

    def model(x, num_data=None):
        loc = numpyro.sample("loc", dist.Normal(0, 2))
        with numpyro.plate("data", num_data or len(x), subsample_size=len(x)):
            numpyro.sample("x", dist.Normal(loc, 1).expand([1]).to_event(1), obs=x)

    run = fit(NUTS(model, num_warmup=300), x, key=0, num_steps=2000, num_chains=4)
    draws = np.asarray(run.draws.posterior["loc"], np.float64)
    precision = 15 + 1 / 4
    mean, sd = x.sum() / precision, precision**-0.5
    for values, truth, spread in ((draws, mean, sd), ((draws - mean) ** 2, sd**2, 2**0.5 * sd**2)):
        mcse = spread / effective_sample_size(values) ** 0.5
        assert abs(values.mean() - truth) < 4.5 * mcse
    assert run.draws.sample_stats["diverging"].mean() == 0


@pytest.mark.slow  # the first story holds NUTS to variational inference and EM on a mixture
def test_mixture_recovers_simulated_truth_and_agrees_with_em():
    """Two well-separated components: estimates within 4.5 standard errors, NUTS near EM.

    With 400 rows the standard error of a mean is sd / sqrt(200), of the weight sqrt(0.25 / 400); the
    posterior mean and the maximum likelihood differ by the prior's pull, below half a standard error.
    """
    rng = np.random.default_rng(2)
    z = rng.random(400) < 0.4
    truth = np.array([[-2.0, 0.0], [2.0, 1.0]])
    x = (truth[1 - z.astype(int)] + rng.normal(size=(400, 2)) * 0.7).astype(np.float32)
    mixture = GaussianMixture(2, covariance="diag", mean_scale=10.0)
    em = fit(EM(mixture), x, key=0, num_chains=4)
    nuts = fit(NUTS(mixture, num_warmup=200), x, key=0, num_steps=300, num_chains=2)
    error = 0.7 / np.sqrt(400 * np.array([0.4, 0.6]))[:, None]
    means = nuts.draws.posterior["means"]
    assert np.all(np.abs(means.mean((0, 1)) - truth) < 4.5 * error)
    assert np.all(np.abs(np.asarray(em.params["means"]) - truth) < 4.5 * error)
    assert np.all(np.abs(means.mean((0, 1)) - em.params["means"]) < error / 2 + 4.5 * error / 200**0.5)
    assert abs(nuts.draws.posterior["weights"].mean((0, 1))[0] - 0.4) < 4.5 * (0.24 / 400) ** 0.5
    assert diagnose_site(means)[1] < 1.05
    assert set(nuts.draws.posterior) == {"weights", "means", "precisions", "covariances"}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_warmup": -1}, "NUTS: num_warmup is -1; expected a whole number of at least 0"),
        ({"num_warmup": "500"}, "num_warmup is '500'"),
        ({"max_tree_depth": 0}, "max_tree_depth is 0; expected a whole number of at least 1"),
        ({"target_accept_prob": 1.0}, "target_accept_prob is 1.0; give a number between 0 and 1"),
    ],
)
def test_bad_fields(fields, message):
    with pytest.raises(ValueError, match=message):
        NUTS(GaussianMixture(2), **fields)
