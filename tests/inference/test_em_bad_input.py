"""EM on data that a mixture cannot or can hardly be fitted to: a defined answer, or an error that says what to do."""

from __future__ import annotations

import numpy as np
import pytest

from inference import EM, BadData, Incompatible, NonFinite, StepwiseEM, check, fit
from ppl_models.gaussian_mixture import GaussianMixture

STRUCTURES = ["full", "tied", "diag", "spherical"]
X = np.random.default_rng(0).normal(size=(20, 2)).astype(np.float32)


def weights(**changes: float) -> np.ndarray:
    out = np.ones(20)
    for row, value in changes.items():
        out[int(row[1:])] = value
    return out


@pytest.mark.parametrize(
    ("weight", "message"),
    [
        (weights(r3=-1.0), r"'sample_weight' is -1 in row 3; expected how many times each row counts, zero or more"),
        (np.zeros(20), "'sample_weight' is zero in every row; expected at least one row that counts"),
        (weights(r3=np.nan), r"'sample_weight' has 1 values that are not finite \(1 NaN\), first in row 3"),
        (weights(r3=np.inf), r"'sample_weight' has 1 values that are not finite"),
        (np.ones((20, 2)), r"'sample_weight' has shape \(20, 2\); expected one number a row"),
        (np.ones(19), "arrays have different numbers of rows"),
    ],
)
def test_weights(weight, message):
    for algorithm in (EM(GaussianMixture(2)), StepwiseEM(GaussianMixture(2))):
        with pytest.raises(BadData, match=message):
            fit(algorithm, {"x": X, "sample_weight": weight}, key=0, num_steps=1)


def test_weights_for_a_model_without():
    def program(x, num_data=None): ...

    with pytest.raises(Incompatible, match="no argument 'sample_weight'"):
        check(program, data={"x": X, "sample_weight": np.ones(20)})


@pytest.mark.parametrize("covariance", STRUCTURES)
def test_constant_columns_and_low_rank(covariance):
    """A constant column and one that repeats another: reg_covar is the smallest variance, the fit is finite."""
    rows = np.stack([X[:, 0], np.full(20, 1e3), 2 * X[:, 0]], axis=1)
    run = fit(EM(GaussianMixture(2, covariance)), rows, key=0, num_steps=20, num_chains=2)
    assert all(np.isfinite(v).all() for v in run.params.values()) and np.isfinite(run.history["bound"]).all()
    values = np.asarray(run.params["covariances"], np.float64)
    smallest = np.linalg.eigvalsh(values).min() if covariance in ("full", "tied") else values.min()
    assert smallest > 0.5e-6


def test_a_collapse_without_reg_covar_says_what_to_do():
    rows = np.repeat(X[:3], 4, axis=0)
    for chains in (1, 2):
        with pytest.raises(
            NonFinite, match=r"parameters \['.*'\] stop being finite: some covariance is singular.*reg_covar"
        ):
            fit(EM(GaussianMixture(3, "full", reg_covar=0.0)), rows, key=0, num_steps=50, num_chains=chains)


def test_rows_with_nothing_in_them():
    """They count for the mixture's weights as the others do, and add nothing to the likelihood."""
    rows = np.concatenate([X, np.full((5, 2), np.nan)])
    with_empty = fit(EM(GaussianMixture(2), tolerance=0.0), rows, key=0, num_steps=50)
    assert np.isfinite(with_empty.history["bound"]).all()
    np.testing.assert_allclose(with_empty.log_likelihood(rows[20:]).rows, 0, atol=1e-6)


def test_more_components_than_rows():
    with pytest.raises(ValueError, match="x has 20 rows for 21 components"):
        fit(EM(GaussianMixture(21)), X, key=0)
    run = fit(EM(GaussianMixture(20)), X, key=0, num_steps=5)
    assert np.isfinite(run.history["bound"]).all()
