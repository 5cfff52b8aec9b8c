"""What models do not identify, aligned: on draws of known numbering and orientation, through to ArviZ."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from scipy.stats import ortho_group

from inference import NUTS, Fit, compare
from inference.align import align, identified, invariants
from inference.data import as_data
from inference.posterior_error import diagnose_site
from inference.protocols import Draws
from inference.relabel import ordered

RNG = np.random.default_rng(0)
CHAINS, DRAWS, K, Q = 3, 40, 3, 2
CENTRES = np.array([-4.0, 0.0, 5.0])
POINTS = (np.repeat(CENTRES, 8) + RNG.normal(size=24)).astype(np.float32)
LOADINGS = np.array([[2.0, 0], [1.5, 0], [1, 0], [0, 1.5], [0, 1], [0, 0.5]])
ROWS = (RNG.normal(size=(20, Q)) @ LOADINGS.T + 0.3 * RNG.normal(size=(20, 6))).astype(np.float32)


@dataclass(frozen=True)
class Points:
    """Three components of unit variance on a line, their labels summed out."""

    exchangeable: ClassVar[tuple[str, ...]] = ("weights", "means", "shifted")

    def __call__(self, x, num_data=None):
        weights = numpyro.sample("weights", dist.Dirichlet(jnp.ones(K)))
        means = numpyro.sample("means", dist.Normal(0, 5).expand([K]).to_event(1))
        numpyro.deterministic("shifted", means + 1)
        with numpyro.plate("data", num_data or len(x), subsample_size=len(x)):
            z = numpyro.sample("z", dist.Categorical(weights), infer={"enumerate": "parallel"})
            numpyro.deterministic("centre", means[z])
            numpyro.sample("x", dist.Normal(means[z], 1), obs=x)

    def invariants(self, weights, means, **others):
        return {"overall": weights @ means, "sorted_means": jnp.sort(means)}


@dataclass(frozen=True)
class Factors:
    """x = W z + noise, in which z keeps its place as a latent of every row."""

    rotated: ClassVar[tuple[str, ...]] = ("loadings",)

    def __call__(self, x, num_data=None):
        loadings = numpyro.sample("loadings", dist.Normal(0, 1).expand([x.shape[1], Q]).to_event(2))
        with numpyro.plate("data", num_data or len(x), subsample_size=len(x)):
            z = numpyro.sample("z", dist.Normal(0, 1).expand([Q]).to_event(1))
            numpyro.deterministic("plane", z @ loadings.T)
            numpyro.sample("x", dist.Normal(z @ loadings.T, 0.3).to_event(1), obs=x)

    def invariants(self, loadings):
        return {"communality": (loadings**2).sum(-1)}


def mcmc(model, x, posterior):
    """The fit that would have these draws."""
    posterior = {n: np.asarray(v, np.float32) for n, v in posterior.items()}
    stats = {"diverging": np.zeros(next(iter(posterior.values())).shape[:2], bool)}
    rows = as_data(x)
    info = {"seed": [0, 0], "num_steps": DRAWS, "seconds": 2.0, "mode": "loop", "interrupted": False}
    batch = rows.whole()
    shapes = {"x": batch.data["x"]}
    return Fit(NUTS(model), {}, Draws({}, posterior, stats), {}, info, rows, shapes, len(batch))


def flat(values):
    return values.reshape(-1, *values.shape[2:])


@pytest.fixture(scope="module")
def mixture():
    """Draws about the truth; and the same, chains numbered differently and one chain switching midway."""
    means = CENTRES + 0.3 * RNG.normal(size=(CHAINS, DRAWS, K))
    weights = RNG.dirichlet([20, 30, 50], size=(CHAINS, DRAWS))
    numbering = np.broadcast_to(np.arange(K), (CHAINS, DRAWS, K)).copy()
    numbering[1], numbering[2, DRAWS // 2 :] = [2, 0, 1], [1, 0, 2]
    straight = {"weights": weights, "means": means, "shifted": means + 1}
    switched = {n: ordered(flat(v), flat(numbering)).reshape(v.shape) for n, v in straight.items()}
    return mcmc(Points(), POINTS, straight), mcmc(Points(), POINTS, switched)


@pytest.fixture(scope="module")
def factors():
    """Draws about the truth, and under a random orientation each, rows' latents with them."""
    loadings = LOADINGS + 0.05 * RNG.normal(size=(CHAINS, DRAWS, 6, Q))
    z = RNG.normal(size=(CHAINS, DRAWS, len(ROWS), Q))
    turn = ortho_group(Q, seed=1).rvs(CHAINS * DRAWS).reshape(CHAINS, DRAWS, Q, Q)
    return tuple(
        mcmc(Factors(), ROWS, {"loadings": w, "z": u}) for w, u in ((loadings, z), (loadings @ turn, z @ turn))
    )


@pytest.fixture(scope="module")
def shown(mixture):
    return mixture[1].to_arviz()


def test_arviz_shows_draws_under_common_labels_and_keeps_them_as_they_came(mixture, shown):
    straight, switched = (run.draws.posterior for run in mixture)
    for name in ("weights", "means", "shifted"):  # most draws are numbered as the truth is
        np.testing.assert_array_equal(shown.posterior[name], straight[name])
        np.testing.assert_array_equal(shown.posterior_raw[name], switched[name])
    # 40 draws of one chain and 20 of another
    assert "50% of the draws" in shown.posterior.attrs["aligned"] and "ECR" in shown.posterior.attrs["aligned"]


def test_labels_of_rows_are_renumbered_with_their_components(shown):
    z, means = shown.posterior["z"].values, shown.posterior["means"].values
    centre = np.take_along_axis(means, z.reshape(CHAINS, DRAWS, -1), axis=2)
    np.testing.assert_allclose(shown.posterior["centre"], centre, rtol=1e-6)  # computed from the aligned ones
    # Components lie four and five standard deviations apart: more than 95% of rows are of the nearest.
    nearest = np.abs(POINTS[:, None] - CENTRES).argmin(-1)
    assert (z == nearest).mean() > 0.95


def test_invariants_are_shown_and_do_not_change(mixture, shown):
    straight, switched = mixture
    means, weights = (straight.draws.posterior[n] for n in ("means", "weights"))
    np.testing.assert_allclose(shown.posterior["overall"], (weights * means).sum(-1), atol=1e-5)
    np.testing.assert_allclose(shown.posterior["sorted_means"], np.sort(means), rtol=1e-6)
    before, after = identified(straight), identified(switched)
    assert before.keys() == after.keys() == {"overall", "sorted_means"}
    for name, value in before.items():
        np.testing.assert_allclose(after[name], value, atol=1e-5)


def test_r_hat_of_switching_chains_is_bad_as_drawn_and_good_on_invariants(mixture):
    straight, switched = compare(list(mixture), POINTS, ["straight", "switched"]).rows
    assert straight.r_hat == pytest.approx(switched.r_hat, abs=1e-4) and switched.r_hat < 1.1
    assert straight.raw_r_hat < 1.1 and switched.raw_r_hat > 3
    assert switched.raw_ess_per_second < 5 < switched.ess_per_second
    # Aligned draws are as good as those that never switched.
    aligned = align(Points(), switched_draws(mixture), {}, ())
    assert diagnose_site(aligned.posterior["means"]) == diagnose_site(mixture[0].draws.posterior["means"])


def switched_draws(mixture):
    return mixture[1].draws.posterior


def test_without_rows_components_are_told_apart_by_their_parameters(mixture):
    aligned = align(Points(), switched_draws(mixture), {}, ())
    np.testing.assert_array_equal(aligned.posterior["means"], mixture[0].draws.posterior["means"])
    assert "by their parameters" in aligned.how


def test_loadings_and_factors_turn_together(factors):
    straight, turned = (run.to_arviz() for run in factors)
    w, z = turned.posterior["loadings"].values, turned.posterior["z"].values
    raw, raw_z = (factors[1].draws.posterior[n] for n in ("loadings", "z"))
    np.testing.assert_array_equal(turned.posterior_raw["loadings"], raw)
    # float32: W Wᵀ and W z stay, whatever was turned.
    np.testing.assert_allclose(w @ w.swapaxes(2, 3), raw @ raw.swapaxes(2, 3), atol=2e-5)
    np.testing.assert_allclose(z @ w.swapaxes(2, 3), raw_z @ raw.swapaxes(2, 3), atol=2e-5)
    np.testing.assert_allclose(turned.posterior["plane"], z @ w.swapaxes(2, 3), atol=2e-5)
    np.testing.assert_allclose(w, straight.posterior["loadings"], atol=2e-5)
    assert w.std((0, 1)).max() < 0.07 < 0.5 < raw.std((0, 1)).max()
    assert diagnose_site(w)[1] < 1.1
    np.testing.assert_allclose(np.abs(w.mean((0, 1))), LOADINGS, atol=0.05)


def test_only_globals_that_stand_still_and_invariants_are_identified(factors):
    assert identified(factors[1]).keys() == {"communality"}


def test_columns_with_precisions_of_their_own_keep_them():
    @dataclass(frozen=True)
    class Relevance:
        exchangeable: ClassVar[tuple[str, ...]] = ("precision",)
        rotated: ClassVar[tuple[str, ...]] = ("loadings",)

    rng = np.random.default_rng(3)
    w = LOADINGS + 0.05 * rng.normal(size=(1, 30, 6, Q))
    precision = np.broadcast_to([1.0, 9.0], (1, 30, Q))
    order = rng.permuted(np.tile(np.arange(Q), (30, 1)), axis=1)
    moved = {"loadings": np.take_along_axis(w, order[None, :, None], 3) * rng.choice([-1, 1], (1, 30, 1, Q))}
    moved["precision"] = np.take_along_axis(precision, order[None], 2)
    aligned = align(Relevance(), moved, {}, ()).posterior
    np.testing.assert_array_equal(aligned["precision"], precision)  # the first column is the longer one
    assert aligned["loadings"].std((0, 1)).max() < 0.07


def test_a_model_that_names_nothing_is_left_alone(mixture):
    draws = mixture[1].draws.posterior
    aligned = align(lambda x: None, draws, {}, ())
    assert aligned.how == "" and aligned.posterior == draws
    assert invariants(lambda x: None, draws) == {}


def test_invariants_too_large_to_hold_are_left_out(mixture, monkeypatch):
    monkeypatch.setattr("inference.align.MAX_ELEMENTS", CHAINS * DRAWS)
    assert invariants(Points(), mixture[0].draws.posterior).keys() == {"overall"}


def test_restarts_are_not_one_posterior(mixture):
    run = mixture[1]
    guided = replace(run, draws=run.draws._replace(sample_stats={"log_weight": np.zeros((CHAINS, DRAWS))}))
    assert identified(guided)["overall"].shape == (1, DRAWS)


def test_pyros_chains_are_aligned_too():
    import pyro

    from inference import PyroNUTS
    from ppl_models import GaussianMixture

    means = np.array([[-4.0], [4.0]]) + 0.1 * np.random.default_rng(4).normal(size=(2, 4, 2, 1))
    spherical = np.ones((2, 4, 2))
    draws = {"weights": spherical / 2, "means": means, "precisions": spherical, "covariances": spherical}
    draws["means"][1] = draws["means"][1, :, ::-1]
    x = np.repeat([[-4.0], [4.0]], 5, axis=0).astype(np.float32)
    model = GaussianMixture(2, covariance="spherical", ppl=pyro)
    run = replace(mcmc(model, x, draws), algorithm=PyroNUTS(model))
    shown = run.to_arviz()
    assert "50% of the draws" in shown.posterior.attrs["aligned"]
    np.testing.assert_allclose(shown.posterior["means"].mean(("chain", "draw")).values.ravel()[0], -4, atol=0.2)
    np.testing.assert_array_equal(shown.posterior["z"], np.broadcast_to(np.repeat([0, 1], 5), (2, 4, 10)))
    assert shown.posterior["sorted_weights"].shape == (2, 4, 2)
