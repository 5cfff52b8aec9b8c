"""The recipes on gradients, importance-weighted bounds and training objectives. All seeds are fixed."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import logsumexp
from scipy.stats import norm

from ppl.recipe import load
from ppl.values import kind, parts

pytestmark = pytest.mark.slow  # whole recipes, small

EXAMPLES = Path(__file__).parents[2] / "examples"


def recipe(name: str) -> ModuleType:
    return sys.modules[load(EXAMPLES / f"{name}.py").main.__module__]


def check_results(results: dict) -> None:
    kinds = [kind(part) for _, part in parts(results)]
    assert None not in kinds and "figure" in kinds


def test_gradients_have_the_variances_of_their_formulas_and_no_bias(monkeypatch):
    module = recipe("likelihood_ratio_vs_pathwise")
    monkeypatch.setattr(module, "REPEATS", 300)
    drawn = []
    trajectories = module.trajectories
    monkeypatch.setattr(module, "trajectories", lambda *args: drawn.append(args) or trajectories(*args))
    results = module.main(num_steps=150, num_draws=4)
    check_results(results)
    (table,) = [part for _, part in parts(results) if kind(part) == "table"]
    assert len(table) == 6
    for row in table:
        # Five standard errors in twelve comparisons: a false alarm in less than one of 100,000 seeds.
        assert abs(row["variance"] - row["formula"]) < 2.5 * row["± 2 errors"]
        assert abs(row["bias / its error"]) < 5
    far = {row["estimator"]: row["formula"] for row in table if row["distance of μ"] > 1}
    assert far["likelihood ratio"] > 5 * far["likelihood ratio, baseline"] > 25 * far["pathwise"]

    paths, num_draws, step_size = drawn[0]
    found = np.mean(np.sum((paths["pathwise"] - module.TARGET) ** 2, -1), 0)
    # The squared distance of 300 descents has a relative error of sqrt(2 / (2 * 300)) at most, correlated over steps.
    truth = module.expected_distance(150, num_draws, step_size) ** 2
    np.testing.assert_allclose(found, truth, rtol=0.3)
    assert abs(found / truth - 1).mean() < 0.1


def test_importance_bounds_are_exact_and_rise_to_the_evidence(monkeypatch):
    module = recipe("iwae_theorem")
    x = 1.5
    monkeypatch.setattr(module, "SAMPLED", (1, 8))
    results = module.main(x=x, max_draws=1000, num_repeats=400)
    check_results(results)

    evidence = norm.logpdf(x, 0, np.sqrt(2))
    rng = np.random.default_rng(0)
    for ratio in module.RATIOS:
        bounds = [module.exact_bound(x, ratio, k) for k in (1, 2, 3, 10, 100, 10_000)]
        assert bounds[0] == pytest.approx(module.elbo(x, ratio), abs=1e-9)  # L_1 has a closed form
        assert (np.diff(bounds) > 0).all() and bounds[-1] < evidence
        # L_3 by plain simulation in float64: |z| < 5 in four comparisons
        e = rng.normal(size=(200_000, 3))
        z = x / 2 + np.sqrt(ratio / 2) * e
        log_w = norm.logpdf(z) + norm.logpdf(x, z) - norm.logpdf(z, x / 2, np.sqrt(ratio / 2))
        drawn = logsumexp(log_w, axis=1) - np.log(3)
        assert abs(drawn.mean() - bounds[2]) < 5 * drawn.std() / np.sqrt(len(drawn))
        # And the objective itself
        value, error = module.estimate(x, ratio, 8, 400, 0)
        assert abs(value - module.exact_bound(x, ratio, 8)) < 5 * error
    for ratio in (2.0, 0.7):  # the gap is chi² / 2k, to higher order in 1 / k
        gap = evidence - module.exact_bound(x, ratio, 10_000)
        assert gap == pytest.approx(module.chi_squared(ratio) / 20_000, rel=0.01)


def test_the_share_of_draws_that_carry_weight_is_that_of_its_definition():
    module = recipe("training_objectives")
    for n in (4, 16):
        log_p = np.asarray(module.true_clusters(n, 0), np.float64)
        p = np.exp(log_p - log_p.max(1, keepdims=True))
        expected = np.mean(p.mean(1) ** 2 / (p**2).mean(1))
        assert module.prior_share(jnp.asarray(log_p, jnp.float32)) == pytest.approx(expected, rel=1e-5)
        assert 1 / n < expected < 1.3 / n  # clusters hardly overlap

    x = module.draw_clusters(4, 50, 0)
    means = module.true_means(4)
    truth = norm.logpdf(x[:, None], means, module.SCALE).sum(-1)
    found = module.conditional(module.Clusters(4), {"means": jnp.asarray(means)}, jnp.arange(4), x)
    np.testing.assert_allclose(found, truth, rtol=1e-4, atol=1e-4)

    class Exact:  # a run whose guide is the posterior: every draw carries the same weight
        params = {"means": jnp.asarray(means, jnp.float32)}

        @staticmethod
        def guide(x):
            import numpyro
            import numpyro.distributions as dist

            logits = dist.Normal(Exact.params["means"], module.SCALE).to_event(1).log_prob(x[:, None])
            with numpyro.plate("data", len(x)):
                numpyro.sample("z", dist.Categorical(logits=logits))

    assert module.guide_share(Exact, module.Clusters(4), jnp.arange(4), x) == pytest.approx(1, abs=1e-3)


@pytest.mark.slow
def test_prior_sampling_learns_worst_and_the_exact_likelihood_best(monkeypatch):
    module = recipe("training_objectives")
    monkeypatch.setattr(module, "SHOWN", (1,))
    monkeypatch.setattr(module, "BITS", (2, 4))
    results = module.main(num_clusters=16, num_bits=4, num_epochs=6, num_rows=1000)
    check_results(results)
    tables = [part for _, part in parts(results) if kind(part) == "table"]
    assert len(tables) == 2
    for table in tables:
        reached = {row[""]: row["epoch 6"] for row in table}
        assert max(reached, key=reached.get) == module.EXACT
        assert min(reached, key=reached.get) == module.PRIOR
        share = {row[""]: row["share of draws"] for row in table}
        assert float(share[module.IMPORTANCE].rstrip("%")) > 2 * float(share[module.PRIOR].rstrip("%"))
    jax.clear_caches()
