"""Pyro's sampler through the same door: exact posteriors, summed-out labels, refusals."""

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from numpyro.diagnostics import effective_sample_size

from inference import Incompatible, PyroNUTS, fit
from inference.data import Rows
from inference.pyro_bijections import PositiveDefiniteBijection
from ppl_models import PPCA, GaussianMixture

X = np.random.default_rng(0).normal(1.0, 1.0, 24).astype(np.float32)


def one_mean(x, num_data=None):
    """mu ~ N(0, 1), x_n ~ N(mu, 1)."""
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    pyro.deterministic("double", 2 * mu)
    with pyro.plate("data", num_data or len(x), subsample_size=len(x)):
        pyro.sample("x", dist.Normal(mu, 1.0), obs=x)


def two_coins(x, num_data=None):
    """p ~ Beta(1, 1), z_n ~ Bernoulli(p), x_n ~ N(4 z_n, 1)."""
    p = pyro.sample("p", dist.Beta(1.0, 1.0))
    with pyro.plate("data", num_data or len(x), subsample_size=len(x)):
        z = pyro.sample("z", dist.Bernoulli(p))
        pyro.sample("x", dist.Normal(4 * z, 1.0), obs=x)


def agrees(draws, mean, sd):
    """Within 4 Monte-Carlo errors of the mean, and of the sd (5% of error at 300 effective draws)."""
    draws = np.asarray(draws, np.float64)
    size = float(effective_sample_size(draws))
    assert size > 60
    assert abs(draws.mean() - mean) < 4 * draws.std() / math.sqrt(size)
    assert abs(draws.std() / sd - 1) < 4 / math.sqrt(2 * size)


def test_a_conjugate_posterior_is_sampled():
    run = fit(PyroNUTS(one_mean, num_warmup=100), X, key=0, num_steps=200, num_chains=2)
    draws = run.draws.posterior
    assert draws["mu"].shape == (2, 200)
    agrees(draws["mu"], X.sum() / 25, 25**-0.5)
    np.testing.assert_allclose(draws["double"], 2 * draws["mu"], rtol=1e-6)
    stats = run.draws.sample_stats
    assert set(stats) == {"lp", "diverging", "acceptance_rate", "step_size"}
    assert not stats["diverging"].any()
    assert 0.6 < stats["acceptance_rate"].mean() <= 1
    assert len(np.unique(stats["step_size"])) == 2  # fixed after warmup, each chain's own
    # lp is log p(x, mu) at the draw: no Jacobian, since mu is unconstrained
    lp = dist.Normal(torch.tensor(draws["mu"])[..., None], 1.0).log_prob(torch.from_numpy(X)).sum(-1)
    lp = lp + dist.Normal(0.0, 1.0).log_prob(torch.tensor(draws["mu"]))
    np.testing.assert_allclose(stats["lp"], lp, rtol=1e-5)  # float32


def test_a_run_is_a_function_of_its_key():
    algorithm = PyroNUTS(one_mean, num_warmup=20)
    runs = [fit(algorithm, X, key=k, num_steps=5).draws.posterior["mu"] for k in (0, 0, 1)]
    np.testing.assert_array_equal(runs[0], runs[1])
    assert not np.any(runs[0] == runs[2])


def test_labels_are_summed_out():
    x = np.array([-1.0, 0.5, 2.2, 3.5, 4.1, 1.6], np.float32)
    run = fit(PyroNUTS(two_coins, num_warmup=100), x, key=0, num_steps=200)
    assert set(run.draws.posterior) == {"p"}
    p = np.linspace(0.0005, 0.9995, 1000)[:, None]
    density = np.prod(p * np.exp(-0.5 * (x - 4) ** 2) + (1 - p) * np.exp(-0.5 * x**2), 1)
    density /= density.sum()
    mean = density @ p[:, 0]
    agrees(run.draws.posterior["p"], mean, math.sqrt(density @ (p[:, 0] - mean) ** 2))
    # log p(x_n) averaged over draws, against the integral on the grid
    rows = np.log(np.sum(density[:, None] * (p * np.exp(-0.5 * (x - 4) ** 2) + (1 - p) * np.exp(-0.5 * x**2)), 0))
    estimate = run.log_likelihood(x)
    np.testing.assert_allclose(estimate.rows, rows - 0.5 * math.log(2 * math.pi), atol=0.1)
    labels = run.sample_posterior(x, 100)["z"]
    assert labels.shape == (100, 6)
    weight = density @ (
        p * np.exp(-0.5 * (x - 4) ** 2) / (p * np.exp(-0.5 * (x - 4) ** 2) + (1 - p) * np.exp(-0.5 * x**2))
    )
    np.testing.assert_allclose(labels.mean(0), weight, atol=4 * 0.5 / math.sqrt(100))


def test_a_precision_matrix_is_sampled():
    x = torch.from_numpy(np.random.default_rng(1).normal(size=(20, 2)).astype(np.float32))

    def model(x):
        precision = pyro.sample("precision", dist.Wishart(torch.tensor(4.0), torch.eye(2) / 4))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.MultivariateNormal(torch.zeros(2), precision_matrix=precision), obs=x)

    run = fit(PyroNUTS(model, num_warmup=60), x.numpy(), key=0, num_steps=150)
    draws = run.draws.posterior["precision"]
    # Wishart(4, I / 4) becomes Wishart(4 + N, (4 I + sum x xᵀ)⁻¹); var of entry ij is df (V_ij² + V_ii V_jj)
    scale = torch.linalg.inv(4 * torch.eye(2) + x.T @ x).numpy()
    for i, j in ((0, 0), (0, 1), (1, 1)):
        variance = 24 * (scale[i, j] ** 2 + scale[i, i] * scale[j, j])
        agrees(draws[..., i, j], 24 * scale[i, j], math.sqrt(variance))


def test_a_mixture_of_gaussians_is_sampled():
    x = np.repeat([[-2.0, -2.0], [2.0, 2.0]], 10, 0) + np.random.default_rng(1).normal(size=(20, 2)) / 2
    run = fit(PyroNUTS(GaussianMixture(2, ppl=pyro), num_warmup=20), x, key=0, num_steps=10)
    draws = run.draws.posterior
    assert {n: v.shape[2:] for n, v in draws.items()} == {
        "weights": (2,),
        "means": (2, 2),
        "precisions": (2, 2, 2),
        "covariances": (2, 2, 2),
    }
    np.testing.assert_allclose(
        draws["covariances"] @ draws["precisions"], np.zeros((1, 10, 2, 1, 1)) + np.eye(2), atol=1e-3
    )
    # ten rows a component, sd about 1/2: the posterior of a mean has sd 0.17
    np.testing.assert_allclose(draws["means"].mean((0, 1)), [[-2, -2], [2, 2]], atol=0.6)
    labels = run.sample_posterior(x, 3)["z"]
    np.testing.assert_array_equal(labels, np.repeat([[0, 1]], 3, 0).repeat(10, 1))


def test_locals_with_a_marginal_are_integrated_out():
    x = np.random.default_rng(2).normal(size=(12, 3)).astype(np.float32)
    run = fit(PyroNUTS(PPCA(1, ppl=pyro), num_warmup=30), x, key=0, num_steps=10)
    assert set(run.draws.posterior) == {"noise_variance", "loadings", "mean", "communality"}
    assert not run.log_likelihood(x).variance[np.newaxis].max() > 1
    assert run.sample_posterior(x, 2)["z"].shape == (2, 12, 1)


def test_the_bijection_onto_positive_definite_matrices():
    bijection = PositiveDefiniteBijection()
    x = torch.randn(6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    y = bijection(x)
    torch.testing.assert_close(bijection.inv(y), x)
    row, column = torch.tril_indices(3, 3)
    jacobian = torch.autograd.functional.jacobian(lambda v: bijection(v)[row, column], x)
    torch.testing.assert_close(bijection.log_abs_det_jacobian(x, y), torch.linalg.slogdet(jacobian)[1])
    assert bijection.inverse_shape(bijection.forward_shape((4, 6))) == (4, 6)


def test_what_cannot_be_sampled_is_refused(tmp_path):
    def learned(x):
        mu = pyro.sample("mu", dist.Normal(pyro.param("loc", torch.tensor(0.0)), 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(mu, 1.0), obs=x)

    def counted(x):
        with pyro.plate("data", len(x)):
            n = pyro.sample("n", dist.Poisson(3.0))
            pyro.sample("x", dist.Normal(n, 1.0), obs=x)

    def labels_only(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Bernoulli(0.3))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    whole = Rows({"x": X}).whole()
    for model, message in (
        (learned, r"has parameters \['loc'\]"),
        (counted, "discrete and cannot be summed out"),
        (labels_only, "no continuous latent"),
        (GaussianMixture(2), "written for ppl=numpyro"),
    ):
        batch = Rows({"x": X[:, None]}).whole() if isinstance(model, GaussianMixture) else whole
        with pytest.raises(Incompatible, match=message):
            PyroNUTS(model).check(batch)
    with pytest.raises(Incompatible, match="needs all rows"):
        fit(PyroNUTS(one_mean), X, key=0, num_steps=2, batch_size=4)
    with pytest.raises(Incompatible, match="writes no checkpoints"):
        fit(PyroNUTS(one_mean, num_warmup=2), X, key=0, num_steps=2, checkpoint=tmp_path / "run")
    with pytest.raises(ValueError, match="num_warmup is -1"):
        PyroNUTS(one_mean, num_warmup=-1)
