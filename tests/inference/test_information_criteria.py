"""AIC and BIC equal scikit-learn's; other fits have none."""

from __future__ import annotations

import numpy as np
import optax
import pytest
from sklearn.datasets import load_iris
from sklearn.mixture import GaussianMixture as Sklearn

from guides import MeanField
from inference import EM, SVI, Incompatible, StepwiseEM, VariationalBayes, fit
from inference.objectives import ELBO
from ppl_models.gaussian_mixture import GaussianMixture


@pytest.mark.parametrize("covariance", ["full", "tied", "diag", "spherical"])
def test_equal_scikit_learn(covariance):
    x = load_iris().data.astype(np.float32)
    run = fit(EM(GaussianMixture(3, covariance)), x, key=0, num_steps=5)
    theirs = Sklearn(3, covariance_type=covariance)
    theirs.weights_, theirs.means_, theirs.covariances_ = (
        np.asarray(run.params[n], np.float64) for n in ("weights", "means", "covariances")
    )
    matrices = covariance in ("full", "tied")
    theirs.precisions_cholesky_ = (
        np.swapaxes(np.linalg.inv(np.linalg.cholesky(theirs.covariances_)), -1, -2)
        if matrices
        else theirs.covariances_**-0.5
    )
    assert run.aic(x) == pytest.approx(theirs.aic(x.astype(np.float64)), rel=1e-6)
    assert run.bic(x) == pytest.approx(theirs.bic(x.astype(np.float64)), rel=1e-6)


def test_only_of_maximum_likelihood():
    x = np.random.default_rng(0).normal(size=(20, 2)).astype(np.float32)
    model = GaussianMixture(2, "spherical")
    others = SVI(model, MeanField(model), ELBO(), optax.adam(1e-2)), VariationalBayes(model)  # draws, and moments
    for algorithm in others:
        other = fit(algorithm, x, key=0, num_steps=4)
        with pytest.raises(Incompatible, match=f"{type(algorithm).__name__} of GaussianMixture is none. Fit with EM"):
            other.bic(x)
    stepwise = fit(StepwiseEM(model), x, key=0, num_steps=4, batch_size=10)
    assert np.isfinite(stepwise.bic(x))
