"""Rows with holes: NaN at the door, in memory, mapped and streamed; fits and questions about them."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest

from guides import AmortizedNormal, MeanField
from inference import EM, SVI, BadData, Fit, fit
from inference.data import Mapped, Rows, as_data
from inference.objectives import ELBO
from inference.programs import marginal_density
from ppl_models.gaussian_mixture import GaussianMixture
from ppl_models.networks import MLP

ROWS = 1500
MODEL = GaussianMixture(2)
TRUTH = {
    "weights": np.array([0.4, 0.6]),
    "means": np.array([[-3.0, 0.0, 1.0], [3.0, 1.0, -1.0]]),
    "covariances": np.array([[[1.0, 0.6, 0.0], [0.6, 1.0, 0.3], [0.0, 0.3, 0.5]], np.diag([0.5, 2.0, 1.0])]),
}


def simulate(rows: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    z = rng.choice(2, size=rows, p=TRUTH["weights"])
    roots = np.linalg.cholesky(TRUTH["covariances"])
    return (TRUTH["means"][z] + np.einsum("nij,nj->ni", roots[z], rng.normal(size=(rows, 3)))).astype(np.float32)


def with_holes(x: np.ndarray, seed: int) -> np.ndarray:
    """30% of the entries missing at random."""
    return np.where(np.random.default_rng(seed).random(x.shape) < 0.3, np.nan, x).astype(np.float32)


@pytest.fixture(scope="module")
def x() -> np.ndarray:
    return with_holes(simulate(ROWS, 0), 1)


@pytest.fixture(scope="module")
def em(x) -> Fit:
    return fit(EM(MODEL, tolerance=1e-5), x, key=0)


def test_the_door_makes_a_mask(x, tmp_path):
    rows = as_data(x, MODEL)
    assert isinstance(rows, Rows) and set(rows.arrays) == {"x", "x_observed"}
    batch = rows.batch(slice(0, 10))
    assert batch.data["x_observed"].dtype == bool
    np.testing.assert_array_equal(batch.data["x_observed"], ~np.isnan(x[:10]))
    np.testing.assert_array_equal(batch.data["x"], np.nan_to_num(x[:10]))
    assert set(as_data(np.nan_to_num(x), MODEL).arrays) == {"x"}  # no holes, no mask
    explicit = as_data({"x": np.nan_to_num(x), "x_observed": ~np.isnan(x)}, MODEL)
    assert explicit.fingerprint() == rows.fingerprint()
    other = np.where(np.arange(ROWS)[:, None] == 7, 0, x)  # some holes of row 7 are zeros now
    assert as_data(other, MODEL).fingerprint() != rows.fingerprint()

    path = tmp_path / "x.npy"
    np.save(path, x)
    mapped = as_data(np.load(path, mmap_mode="r"), MODEL)
    assert mapped.on_host and isinstance(mapped.arrays["x"], Mapped)
    assert mapped.fingerprint() == rows.fingerprint()
    index = np.array([5, 3, 900])
    for name in ("x", "x_observed"):
        np.testing.assert_array_equal(mapped.batch(index).data[name], rows.batch(index).data[name])

    stream = as_data(iter([x[:10], x[10:20]]), MODEL)
    np.testing.assert_array_equal(stream.first.data["x_observed"], ~np.isnan(x[:10]))


def test_holes_are_refused_where_nobody_takes_them(x):
    def program(x, num_data=None):
        with numpyro.plate("data", num_data or len(x), subsample_size=len(x)):
            numpyro.sample("x", dist.Normal(0, 1).expand([3]).to_event(1), obs=x)

    def anything(**data):
        return program(data["x"])

    adam = optax.adam(1e-2)
    for model in (program, anything):
        with pytest.raises(BadData, match=r"NaN\), first in row .*models with an argument 'x_observed'"):
            fit(SVI(model, MeanField(model), ELBO(), adam), x, key=0, num_steps=1)
    guide = AmortizedNormal(2, MLP((4,)))
    with pytest.raises(BadData, match="takes missing ones as NaN, but its guide has no argument 'x_observed'"):
        fit(SVI(MODEL, guide, ELBO(), adam), x, key=0, num_steps=1)
    with pytest.raises(BadData, match=r"not finite \(1 NaN\), first in row 1; expected finite numbers\. Drop"):
        fit(EM(MODEL), np.array([[np.nan, 1], [np.inf, 2], [3, 4]]), key=0)
    empty = np.where(np.arange(3) == 1, np.nan, x)
    with pytest.raises(BadData, match=r"'x' has no number at all in column \[1\]: nothing can be learned"):
        fit(EM(MODEL), empty, key=0)
    with pytest.raises(BadData, match=r"put zeros where 'x_observed' is False"):
        fit(EM(MODEL), {"x": x, "x_observed": ~np.isnan(x)}, key=0)
    with pytest.raises(BadData, match=r"'x_observed' has dtype int64 and shape .*; expected a boolean for each entry"):
        fit(EM(MODEL), {"x": np.nan_to_num(x), "x_observed": np.ones(x.shape, int)}, key=0)


def test_recovers_the_truth_within_its_standard_errors(em):
    """Standard errors of the 70% of the entries that are there; 5 of them, for what the other 30% and z cost too."""
    order = np.argsort(em.params["means"][:, 0])
    n = 0.7 * ROWS * TRUTH["weights"]
    variances = np.diagonal(TRUTH["covariances"], axis1=1, axis2=2)
    assert (np.abs(em.params["weights"][order] - TRUTH["weights"]) < 5 * np.sqrt(0.24 / (0.7 * ROWS))).all()
    assert (np.abs(em.params["means"][order] - TRUTH["means"]) < 5 * np.sqrt(variances / n[:, None])).all()
    scale = np.sqrt(variances[:, :, None] * variances[:, None])
    pairs = 0.7 * n[:, None, None]  # rows with both entries
    assert (np.abs(em.params["covariances"][order] - TRUTH["covariances"]) < 5 * scale * np.sqrt(2 / pairs)).all()


def test_questions_about_rows_with_holes(em, x):
    some = np.concatenate([x[:5], [[np.nan] * 3]]).astype(np.float32)
    data, e_step = as_data(some, MODEL).whole().data, jax.jit(MODEL.e_step)
    assert em.history["bound"][0, -1] == pytest.approx(em.log_likelihood(x).mean, abs=1e-4)  # float32 program
    rows = em.log_likelihood(some).rows
    assert rows[5] == pytest.approx(0, abs=1e-5)
    expected = [float(e_step(em.params, data["x"][i : i + 1], data["x_observed"][i : i + 1])[0]) for i in range(5)]
    np.testing.assert_allclose(rows[:5], expected, atol=1e-4)
    # Whole rows are answered too, though the fit had holes.
    assert np.isfinite(em.log_likelihood(simulate(5, 2)).rows).all()
    draws = em.sample_posterior(some, 4000)["z"]
    share = em.params["weights"][1]
    assert abs(draws[:, 5].mean() - share) < 5 * np.sqrt(share * (1 - share) / 4000)  # nothing seen: the prior
    assert em.generate(7)["x"].shape == (7, 3) and np.std(em.generate(50)["x"][:, 0]) > 1
    assert np.isfinite(em.reconstruct(some)["x"]).all() and np.isfinite(em.predict(some, 3)["x"]).all()


def test_arviz_shows_holes_as_nan(em, x):
    shown = em.to_arviz(x[:50])
    np.testing.assert_array_equal(shown.observed_data["x"], x[:50])
    assert "constant_data" not in shown.groups()
    assert np.isfinite(shown.posterior_predictive["x"]).all()


def test_other_algorithms_score_what_is_seen(em, x):
    """The rows' part of the density that SVI and NUTS climb is EM's log likelihood."""
    batch = as_data(x[:60], MODEL).whole()
    values = {n: jnp.asarray(v[0, 0]) for n, v in em.draws.posterior.items()}
    rows = jax.jit(lambda batch: marginal_density(MODEL, batch, jax.random.key(0), values).rows)(batch)
    expected = float(jax.jit(MODEL.e_step)(em.params, batch.data["x"], batch.data["x_observed"])[0])
    assert float(rows.sum()) == pytest.approx(expected, rel=1e-5)  # float32 program
    model = GaussianMixture(2, "diag")
    run = fit(SVI(model, MeanField(model), ELBO(), optax.adam(1e-2)), x[:40], key=0, num_steps=3)
    assert np.isfinite(run.history["bound"]).all()


def test_validation_rows_may_have_holes_or_not(x):
    whole = simulate(200, 3)
    for train, held_out in ((x[:200], whole), (whole, x[:200])):
        run = fit(EM(MODEL, tolerance=0.0), train, key=0, num_steps=100, validation=held_out)
        assert run.history["validation"][0, -1] == pytest.approx(run.log_likelihood(held_out).mean, abs=1e-4)


def test_a_checkpoint_knows_its_holes(x, tmp_path):
    path = tmp_path / "em.ckpt"
    whole = fit(EM(MODEL, tolerance=0.0), x[:100], key=0, num_steps=6, checkpoint=path)
    again = fit(EM(MODEL, tolerance=0.0), x[:100], key=0, num_steps=6, checkpoint=path)
    for one, other in zip(jax.tree.leaves(whole.params), jax.tree.leaves(again.params), strict=True):
        np.testing.assert_array_equal(one, other)
    with pytest.raises(Exception, match="belongs to another run: data"):
        fit(EM(MODEL, tolerance=0.0), np.nan_to_num(x[:100]), key=0, num_steps=6, checkpoint=path)
    whole.save(tmp_path / "fit")
    loaded = Fit.load(tmp_path / "fit", EM(MODEL, tolerance=0.0))
    np.testing.assert_array_equal(loaded.log_likelihood(x[:9]).rows, whole.log_likelihood(x[:9]).rows)
