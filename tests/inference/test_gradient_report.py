"""The report finds the truth by enumeration, and calls a biased gradient biased."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

from inference import Incompatible, gradient_report
from inference.errors import BadData
from inference.gradient_report import enumerated_bound
from inference.objectives import ELBO, IWAE, NVIL, VIMCO, Estimate, Objective, ReweightedWakeSleep, ScoreFunction
from inference.objectives.pair import log_weights
from inference.protocols import Batch

X = np.random.default_rng(0).normal(size=(8, 3)).astype(np.float32)
W = np.array([[1.0, -0.7, 0.4], [0.3, 0.9, -1.1]], np.float32)


def model(x, num_data=None):
    w = numpyro.param("w", jnp.asarray(W))
    with numpyro.plate("data", num_data or len(x), subsample_size=len(x)):
        z = numpyro.sample("z", dist.Bernoulli(logits=0.3 * jnp.ones((len(x), 2))).to_event(1))
        numpyro.sample("x", dist.Normal(z @ w, 0.5).to_event(1), obs=x)


def guide(x, num_data=None):
    v = numpyro.param("v", lambda key: 0.2 + 0.1 * jax.random.normal(key, (3, 2)))
    with numpyro.plate("data", num_data or len(x), subsample_size=len(x)):
        numpyro.sample("z", dist.Bernoulli(logits=x @ v + 0.1).to_event(1))


@dataclass(frozen=True)
class NoScores(Objective):
    """A pathwise gradient through discrete draws: what is refused elsewhere, because it is wrong."""

    def estimate(self, key, both, state):
        w = log_weights(both, key, 1)
        bound = w.shared + both.scale * jnp.sum(w.rows)
        return Estimate(-bound, bound)


@pytest.fixture(scope="module")
def report():
    objectives = [ScoreFunction(), ScoreFunction(4), NVIL(8), VIMCO(3), ReweightedWakeSleep(3)]
    return gradient_report(model, guide, objectives, X, num_replicates=400)


def test_enumerated_bound_is_the_sum_over_states():
    batch = Batch({"x": jnp.asarray(X)}, jnp.arange(8), 8)
    v = 0.2 * np.ones((3, 2))
    bound = enumerated_bound(model, guide, batch, 1)
    assert bound is not None
    total = 0.0
    for z in np.ndindex(2, 2):
        z, logits = np.array(z), X @ v + 0.1
        log_q = np.sum(z * logits - np.log1p(np.exp(logits)), axis=1)
        log_p = np.sum(z * 0.3 - np.log1p(np.exp(0.3)))
        log_p = log_p + np.sum(-0.5 * ((X - z @ W) / 0.5) ** 2 - np.log(0.5) - 0.5 * np.log(2 * np.pi), axis=1)
        total += np.sum(np.exp(log_q) * (log_p - log_q))
    assert np.isclose(float(bound({"w": jnp.asarray(W), "v": jnp.asarray(v)})), total, rtol=1e-5)  # float32 sums


def test_unbiased_estimators_pass_and_their_noise_is_ordered(report):
    """Worst of 6 components in each of 5 rows: |z| < 5 fails by chance once in 60,000 seeds."""
    rows = {str(r.objective): r for r in report.rows}
    assert all(abs(r.z[0]) < 5 for r in report.rows)
    assert all(abs(r.z[1]) < 5 for n, r in rows.items() if not n.startswith("Reweighted"))
    assert np.isnan(rows["ReweightedWakeSleep(num_particles=3, sleep=0.0)"].z[1])  # not the gradient of a bound
    one, four = rows["ScoreFunction(num_particles=1, decay=0.0)"], rows["ScoreFunction(num_particles=4, decay=0.0)"]
    assert four.variance[1] < one.variance[1] / 4  # four draws, and a baseline
    assert rows["VIMCO(num_particles=3)"].snr[1] > one.snr[1]
    assert one.milliseconds > 0


def test_a_biased_gradient_is_called_biased():
    exact = enumerated_bound(model, guide, Batch({"x": jnp.asarray(X)}, jnp.arange(8), 8), 1)
    wrong = gradient_report(
        model, guide, [NoScores()], X, num_replicates=400, exact=lambda params, objective: exact(params)
    )
    assert abs(wrong.rows[0].z[1]) > 5 and "biased" in str(wrong)
    assert wrong.best == "none"


def test_prints_and_plots(report):
    text = str(report)
    assert "z guide" in text and "VIMCO(num_particles=3)" in text and "Least noise" in text
    assert "<td>" in report._repr_html_()
    figure = report.plot()
    labels = [line.get_label() for line in figure.axes[0].lines]
    assert labels == ["ScoreFunction", "NVIL", "VIMCO", "ReweightedWakeSleep"]  # K = 1 and 4 are one line


def test_refusals():
    with pytest.raises(Incompatible, match="ELBO differentiates through"):
        gradient_report(model, guide, [ELBO()], X)
    with pytest.raises(Incompatible, match="IWAE differentiates through"):
        gradient_report(model, guide, [ScoreFunction(), IWAE(3)], X)
    with pytest.raises(BadData, match="no objectives"):
        gradient_report(model, guide, [], X)
    with pytest.raises(BadData, match="num_replicates is 1"):
        gradient_report(model, guide, [ScoreFunction()], X, num_replicates=1)


def test_holes_reach_a_model_that_takes_them():
    """A row without a number says nothing: its gradient is that of the prior, here none."""

    def model(x, x_observed, num_data=None):
        with numpyro.plate("data", num_data or len(x), subsample_size=len(x)):
            z = numpyro.sample("z", dist.Normal(jnp.zeros(len(x)), 1))
            numpyro.sample("x", dist.Normal(z, 1).mask(x_observed), obs=x)

    def guide(x, x_observed, num_data=None):
        loc = numpyro.param("loc", jnp.float32(0.0))
        with numpyro.plate("data", num_data or len(x), subsample_size=len(x)):
            numpyro.sample("z", dist.Normal(loc * jnp.ones(len(x)), 1))

    found = gradient_report(model, guide, ELBO(), np.full(4, np.nan, np.float32), num_replicates=5)
    assert found.rows[0].bound == pytest.approx(0, abs=1e-6) and found.rows[0].variance[1] < 1e-10
