"""What the lecture recipes claim, at sizes small enough to run every time. All seeds are fixed."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import jax
import numpy as np
import pytest
from sklearn.datasets import load_iris

from inference import EM, fit
from ppl.recipe import load
from ppl.values import kind, parts
from ppl_models import GaussianMixture

EXAMPLES = Path(__file__).parents[2] / "examples"


def recipe(name: str) -> ModuleType:
    return sys.modules[load(EXAMPLES / f"{name}.py").main.__module__]


def watch(monkeypatch: pytest.MonkeyPatch, module: ModuleType, name: str) -> list[tuple]:
    """Record the arguments with which a function of a recipe is called."""
    calls, function = [], getattr(module, name)
    monkeypatch.setattr(module, name, lambda *args: calls.append(args) or function(*args))
    return calls


def check_results(results: dict) -> None:
    """Every result is of a kind that a report shows, and there is a figure."""
    kinds = [kind(part) for _, part in parts(results)]
    assert None not in kinds and "figure" in kinds


@pytest.mark.slow
def test_a_mixture_learned_by_gradient_reaches_the_true_log_likelihood(monkeypatch):
    module = recipe("mixture_of_three_gaussians")
    shown = watch(monkeypatch, module, "panels")
    results = module.main()
    check_results(results)

    *epochs, truth = [row["log likelihood, nats per row"] for row in results["Held-out rows"]]
    assert epochs[0] < epochs[1] < epochs[-1]
    # On average no density beats the true one on new rows, and 15 parameters learned from 1,000 rows cost
    # 15 / 2000 = 0.0075 nats; a component on the wrong cluster costs 0.3.
    assert truth - 0.03 < epochs[-1] < truth
    run = results["Mixture"]
    assert set(run.params) == {"means", "precisions"}  # the weights stay at 1/3

    # A shorter run is the beginning of a longer one: the panels are one training, and the first is its start.
    runs = shown[0][1]
    for short in runs.values():
        bound = short.history["bound"]
        assert np.array_equal(bound, run.history["bound"][:, : bound.shape[1]])
    assert list(runs) == [0, 2, 4, 6, 20]


def test_bound_and_gap_add_up_and_em_moves_them_in_turn():
    module = recipe("variational_decomposition")
    results = module.main(num_iterations=2)
    check_results(results)
    first, *steps = results["Numbers, in nats per row"]
    assert [row["step"] for row in steps] == ["E1", "M1", "E2", "M2"]
    for row in (first, *steps):  # log p is the model's own, of float32 products
        assert row["log p(x)"] == pytest.approx(row["ELBO"] + row["KL(q || posterior)"], abs=1e-5)
    before = first
    for row in steps:
        if row["step"].startswith("E"):
            assert row["KL(q || posterior)"] < 1e-10  # float64
            assert row["log p(x)"] == before["log p(x)"]
        else:
            gained = row["ELBO"] - before["ELBO"]
            assert gained > 1e-3 and row["KL(q || posterior)"] > 1e-3
            assert row["log p(x)"] - before["log p(x)"] > gained
        before = row

    x = load_iris().data.astype(np.float32)
    run = fit(EM(GaussianMixture(3), tolerance=0, initial=module.start(x, 3, 2)), x, key=0, num_steps=3)
    log_p = [row["log p(x)"] for row in (first, *steps[1::2])]
    np.testing.assert_allclose(run.history["bound"][0], log_p, atol=1e-5)


@pytest.mark.slow
def test_em_and_every_variational_route_end_at_one_optimum(monkeypatch):
    module = recipe("em_vs_variational")
    moved = watch(monkeypatch, module, "ellipses")
    results = module.main(num_rows=100)
    check_results(results)
    routes = {row[""]: row for row in results["Where each ends, nats per row"]}
    assert list(routes) == ["EM", "Normal per row", "Normal per row, in turns", "amortized Normal"]
    for row in routes.values():
        # Adam, decayed to zero, stops within 2e-4 of the maximum; float32 sums over six columns round by 1e-6.
        assert -1e-5 < row["maximum − log p(x)"] < 1e-3
    cosine = {name: row["|cos(w₁, w₂)|"] for name, row in routes.items()}
    assert cosine.pop("EM") > 0.1 and max(cosine.values()) < 0.05

    # The best Normal with independent coordinates under N(z̄, G⁻¹) has mean z̄ and variances 1 / G_jj.
    models, run = moved[0]
    exact = module.exact_posterior(models)
    precision = np.diagonal(np.linalg.inv(exact.covariance_matrix), axis1=1, axis2=2)
    np.testing.assert_allclose(run.params["z_loc"], exact.loc, atol=0.05)
    np.testing.assert_allclose(run.params["z_scale"], precision**-0.5, rtol=0.05)


@pytest.mark.slow
def test_forward_kl_covers_and_reverse_kl_seeks(monkeypatch):
    module = recipe("kl_directions")
    drawn = watch(monkeypatch, module, "panels")
    results = module.main(num_draws=5000, num_steps=400)
    check_results(results)
    for dim, fitted in drawn[0][0].items():
        means, covariances = module.MEANS[:, :dim], module.COVARIANCES[:, :dim, :dim]
        mean = module.WEIGHTS @ means
        between = np.einsum("k,ki,kj->ij", module.WEIGHTS, means - mean, means - mean)
        covariance = np.tensordot(module.WEIGHTS, covariances, 1) + between
        found = {name: (params["loc"], params["root"] @ params["root"].T) for name, params in fitted.items()}

        # The moments of the draws, to where Adam stops; those of p, within 4 standard errors of 5,000 draws
        # (a covariance of two Normals apart has smaller errors than the Normal's, which these are).
        draws = np.asarray(module.p(dim).sample(jax.random.key(0), (5000,)))
        np.testing.assert_allclose(found["forward"][0], draws.mean(0), atol=1e-2)
        np.testing.assert_allclose(found["forward"][1], np.cov(draws.T, bias=True).reshape(dim, dim), rtol=1e-2)
        variance = np.diagonal(covariance)
        assert (abs(found["forward"][0] - mean) < 4 * np.sqrt(variance / 5000)).all()
        error = np.sqrt((np.outer(variance, variance) + covariance**2) / 5000)
        assert (abs(found["forward"][1] - covariance) < 4 * error).all()

        # One mode each, to the Monte-Carlo error of the gradient and the pull of the other mode's tail.
        modes = [int(np.argmin(np.linalg.norm(means - loc, axis=1))) for loc, _ in found.values()]
        assert modes[1:] == [0, 1]  # the best restart has the heavier one
        for mode, (loc, spread) in zip(modes[1:], list(found.values())[1:], strict=True):
            np.testing.assert_allclose(loc, means[mode], atol=0.1)
            np.testing.assert_allclose(spread, covariances[mode], atol=0.1)

    table = {row["fit"]: row for row in results["Both divergences, in nats, by quadrature"]}
    for dim in ("1-D", "2-D"):
        forward, reverse = table[f"forward, {dim}"], table[f"reverse, best restart, {dim}"]
        assert forward["KL(p || q)"] < reverse["KL(p || q)"] and reverse["KL(q || p)"] < forward["KL(q || p)"]
        assert reverse["KL(q || p)"] == pytest.approx(-np.log(0.6), abs=0.02)  # the modes hardly overlap
