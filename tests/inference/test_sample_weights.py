"""Rows that count more than once: weights equal repeated rows, in EM and in the program's density."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import pyro
import pytest

from guides import MeanField
from inference import EM, Incompatible, check, fit, pyro_check
from inference.data import as_data
from inference.objectives import ELBO
from inference.programs import marginal_density
from inference.protocols import Batch
from ppl_models import PPCA, GaussianMixture

STRUCTURES = ["full", "tied", "diag", "spherical"]


@pytest.fixture(scope="module")
def rows() -> tuple[np.ndarray, np.ndarray]:
    """70 rows in the plane, and weights 0 to 3."""
    rng = np.random.default_rng(0)
    centres = np.array([[-2.0, 0.0], [0.5, 2.0], [2.0, -1.0]])
    x = centres[rng.integers(3, size=70)] + rng.normal(size=(70, 2)) * [1.0, 0.5]
    return x.astype(np.float32), rng.integers(4, size=70)


@pytest.mark.parametrize("covariance", STRUCTURES)
def test_whole_weights_equal_repeated_rows(covariance, rows):
    x, weight = rows
    model = GaussianMixture(3, covariance)
    start = {n: np.asarray(v) for n, v in model.initial(jax.random.key(1), x).items()}
    algorithm = EM(model, tolerance=0.0, initial=start)
    weighted = fit(algorithm, {"x": x, "sample_weight": weight}, key=0, num_steps=20)
    repeated = fit(algorithm, np.repeat(x, weight, axis=0), key=0, num_steps=20)
    np.testing.assert_allclose(weighted.history["bound"], repeated.history["bound"], rtol=1e-6)
    for name, value in repeated.params.items():
        np.testing.assert_allclose(weighted.params[name], value, rtol=1e-6, atol=1e-6)
    assert weighted.draws.sample_stats["lp"] == pytest.approx(repeated.draws.sample_stats["lp"], rel=1e-6)
    if covariance != "full":
        return
    assert weighted.bic({"x": x, "sample_weight": weight}) == pytest.approx(
        repeated.bic(np.repeat(x, weight, 0)), rel=1e-6
    )
    # Questions are about rows, each once; and rows can be asked about without weights.
    np.testing.assert_array_equal(
        weighted.log_likelihood({"x": x, "sample_weight": weight}).rows, weighted.log_likelihood(x).rows
    )
    assert weighted.generate(3)["x"].shape == (3, 2)


def test_weights_and_holes_together(rows):
    x, weight = rows
    holes = np.where(np.random.default_rng(1).random(x.shape) < 0.3, np.nan, x)
    model = GaussianMixture(2)
    start = {n: np.asarray(v) for n, v in model.initial(jax.random.key(1), x).items()}
    algorithm = EM(model, tolerance=0.0, initial=start)
    weighted = fit(algorithm, {"x": holes, "sample_weight": weight.astype(float)}, key=0, num_steps=10)
    repeated = fit(algorithm, np.repeat(holes, weight, axis=0), key=0, num_steps=10)
    np.testing.assert_allclose(weighted.history["bound"], repeated.history["bound"], rtol=1e-6)


def test_the_program_counts_rows_alike(rows):
    """w log sum_z p(x, z), not log sum_z p(x, z)^w: what SVI and NUTS climb, on a minibatch for 700 rows too."""
    x, weight = rows
    model = GaussianMixture(3)
    params = model.initial(jax.random.key(1), x)
    values = dict(model.site_values(params)) | {"covariances": jnp.asarray(params["covariances"], jnp.float32)}
    repeated = np.repeat(x, weight, axis=0)

    @jax.jit
    def total(data, rows):
        return marginal_density(model, Batch(data, rows, 10 * len(rows)), jax.random.key(0), values)

    ours = total({"x": x, "sample_weight": weight.astype(np.float32)}, jnp.arange(70))
    theirs = total({"x": repeated}, jnp.arange(len(repeated)))
    assert float(ours.rows.sum()) == pytest.approx(float(theirs.rows.sum()), rel=1e-5)  # float32
    assert float(ours.shared) == pytest.approx(float(theirs.shared), rel=1e-6)
    assert ours.scale == 10


def test_validation_counts_rows_by_weight(rows):
    x, weight = rows
    model = GaussianMixture(2)
    run = fit(EM(model, tolerance=0.0), x, key=0, num_steps=100, validation={"x": x, "sample_weight": weight})
    expected = np.average(run.log_likelihood(x).rows, weights=weight)
    assert run.history["validation"][0, -1] == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("ppl", [numpyro, pyro])
def test_a_guide_that_does_not_weigh_its_rows_is_refused(rows, ppl):
    """Its bound would be w log p(x, z) - log q(z). The exact posterior weighs them, and guides of globals have none."""
    data = as_data({"x": rows[0], "sample_weight": rows[1].astype(np.float32)}).whole()
    model = PPCA(1, ppl=ppl)
    check_pair = check if ppl is numpyro else pyro_check.check
    with pytest.raises(
        Incompatible, match=r"rows of \['z'\] count by a weight each .* in one of model and guide alone"
    ):
        check_pair(model, MeanField(model, ppl=ppl), ELBO(), data)
    if ppl is numpyro:  # Pyro's has nothing to learn, and is refused for that
        check_pair(model, model.posterior, None, data)
    check_pair(model.marginal, MeanField(model.marginal, ppl=ppl), ELBO(), data)
    check_pair(model, MeanField(model, ppl=ppl), ELBO(), as_data(rows[0]).whole())
