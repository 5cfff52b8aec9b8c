"""The terms of the ELBO against closed forms and quadrature of a linear model; the optimal prior put in its place."""

from dataclasses import replace
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from numpyro.infer.util import log_density
from scipy import stats
from scipy.special import logsumexp

from guides import AmortizedNormal, Delta, Hamiltonian, MeanField
from inference import EM, SVI, BadData, Fit, Incompatible, fit
from inference import surgery as module
from inference.objectives import ELBO, VIMCO
from inference.surgery import elbo_surgery
from ppl_models import PPCA, VAE
from ppl_models.likelihoods import GaussianSharedScale
from ppl_models.networks import Linear

W, NOISE, A, S = np.array([1.5, -0.5]), 0.8, np.array([0.4, -0.2]), 0.45
RNG = np.random.default_rng(0)
X = (RNG.normal(size=(75, 1)) * W + NOISE * RNG.normal(size=(75, 2))).astype(np.float32)
NEW = (1.3 * RNG.normal(size=(40, 1)) * W + NOISE * RNG.normal(size=(40, 2))).astype(np.float32)


def linear(x, num_data=None):
    w = numpyro.param("w", jnp.asarray(W))
    with numpyro.plate("data", num_data or len(x), subsample_size=len(x)):
        z = numpyro.sample("z", dist.Normal(jnp.zeros(len(x)), 1.0))
        numpyro.sample("x", dist.Normal(z[:, None] * w, NOISE).to_event(1), obs=x)


def encoder(x, num_data=None):
    a = numpyro.param("a", jnp.asarray(A))
    with numpyro.plate("data", num_data or len(x), subsample_size=len(x)):
        numpyro.factor("wish", 3.0 * jnp.tanh(x[:, 0]))  # a term of the objective, and no part of q
        numpyro.sample("z", dist.Normal(x @ a, S))


def at_start(model, guide, x=X, objective=ELBO()):
    return fit(SVI(model, guide, objective, optax.sgd(0.0)), x, key=0, num_steps=1)


@pytest.fixture(scope="module")
def run():
    return at_start(linear, encoder)


def mixture(z, x=X):
    """log q(z), the aggregate posterior of the rows of x."""
    return logsumexp(stats.norm(x @ A, S).logpdf(np.asarray(z)[..., None]), axis=-1) - np.log(len(x))


def reconstruction(x):
    """E_q[log p(x | z)], z ~ N(m, S²): -D/2 log 2 pi σ² - (|x - w m|² + |w|² S²) / 2σ²."""
    residual = ((x - (x @ A)[:, None] * W) ** 2).sum(1) + (W**2).sum() * S**2
    return -np.log(2 * np.pi * NOISE**2) - residual / (2 * NOISE**2)


def test_every_term_against_closed_form_and_quadrature(run, monkeypatch):
    monkeypatch.setattr(module, "CHUNK", 32)  # of 75 rows: the last chunk is filled up with repeated rows
    found = elbo_surgery(run, X, NEW, num_samples=100)
    z = np.linspace(-6, 6, 4001)
    q = np.exp(mixture(z))
    kl = np.trapezoid(q * (mixture(z) - stats.norm.logpdf(z)), z)
    information = -np.trapezoid(q * mixture(z), z) - stats.norm(0, S).entropy()  # H[q(z)] - H[q(z | x)]
    gain = np.mean([np.trapezoid(stats.norm(m, S).pdf(z) * (mixture(z) - stats.norm.logpdf(z)), z) for m in NEW @ A])
    truth = reconstruction(X).mean()
    # Five Monte-Carlo z-tests at four standard errors: a false alarm in 3,000.
    for ours, exact in (
        (found.reconstruction, truth),
        (found.mutual_information, information),
        (found.marginal_kl, kl),
        (found.elbo, truth - information - kl),
        (found.held_out_gain, gain),
    ):
        assert abs(ours.mean - exact) < 4 * ours.mc_error < 0.1
    assert len(found.elbo.rows) == 75 and len(found.held_out_gain.rows) == 40
    # Row by row: 75 tests at five standard errors (4e-5).
    assert (np.abs(found.reconstruction.rows - reconstruction(X)) < 5 * np.sqrt(found.reconstruction.variance)).all()
    table = str(found)
    assert "at most log 75 = 4.32" in table and "gain of that prior on held-out rows" in table


def test_the_optimal_prior_gains_the_marginal_kl(run):
    """A model whose prior is the aggregate posterior has a bound that is higher by what the surgery says."""
    found = elbo_surgery(run, X, NEW, num_samples=200)

    def with_optimal_prior(x, num_data=None):
        w = numpyro.param("w", jnp.asarray(W))
        components = dist.Normal(jnp.asarray(X @ A), S)
        prior = dist.MixtureSameFamily(dist.Categorical(jnp.full(len(X), 1 / len(X))), components)
        with numpyro.plate("data", num_data or len(x), subsample_size=len(x)):
            z = numpyro.sample("z", prior)
            numpyro.sample("x", dist.Normal(z[:, None] * w, NOISE).to_event(1), obs=x)

    for rows, gain in ((X, found.marginal_kl), (NEW, found.held_out_gain)):
        z = (rows @ A + S * np.random.default_rng(1).normal(size=(300, len(rows)))).astype(np.float32)
        bounds = [
            jax.vmap(lambda z, m=model, x=rows: log_density(m, (x,), {}, {"z": z, "w": W})[0])(z)
            for model in (with_optimal_prior, linear)
        ]
        difference = np.asarray(bounds[0] - bounds[1]) / len(rows)
        error = np.hypot(difference.std(ddof=1) / np.sqrt(len(difference)), gain.mc_error)
        assert abs(difference.mean() - gain.mean) < 4 * error < 0.06


def mixed(x, num_data=None):
    """The same, its prior a mixture of two, whose label is summed out; and the codes in a nested plate."""
    with numpyro.plate("data", num_data or len(x), subsample_size=len(x), dim=-1):
        k = numpyro.sample("k", dist.Categorical(jnp.array([0.3, 0.7])), infer={"enumerate": "parallel"})
        with numpyro.plate("parts", 2, dim=-2):
            z = numpyro.sample("z", dist.Normal(jnp.where(k == 0, -1.0, 1.0), 1.0))
        numpyro.sample("x", dist.Normal(z.T * jnp.asarray(W), NOISE).to_event(1), obs=x)


def nested(x, num_data=None):
    a = numpyro.param("a", 0.3)
    with numpyro.plate("data", num_data or len(x), subsample_size=len(x), dim=-1), numpyro.plate("parts", 2, dim=-2):
        numpyro.sample("z", dist.Normal(a * x.T, S))


@pytest.mark.slow
def test_labels_summed_out_and_codes_in_another_plate():
    found = elbo_surgery(at_start(mixed, nested), X, num_samples=100)
    m = 0.3 * X
    residual = ((X - m * W) ** 2).sum(1) + (W**2).sum() * S**2
    exact = -np.log(2 * np.pi * NOISE**2) - residual / (2 * NOISE**2)
    assert abs(found.reconstruction.mean - exact.mean()) < 4 * found.reconstruction.mc_error < 0.1
    # I + KL = E_q[log q(z | x) - log p(z)], with p(z) = 0.3 N(-1, I) + 0.7 N(1, I), by draws of our own.
    z = m + S * np.random.default_rng(2).normal(size=(2000, 75, 2))
    log_prior = logsumexp([np.log(p) + stats.norm(c, 1).logpdf(z).sum(-1) for p, c in ((0.3, -1), (0.7, 1))], axis=0)
    draws = stats.norm(m, S).logpdf(z).sum(-1) - log_prior
    ours = found.mutual_information.mean + found.marginal_kl.mean
    error = np.hypot(draws.std() / np.sqrt(draws.size), found.mutual_information.mc_error + found.marginal_kl.mc_error)
    assert abs(ours - draws.mean()) < 4 * error < 0.1


PLANE = np.array([[3.0, 1.0, 0, 0.5], [0, 1.0, -1.0, 0.5]])


def gaussian_plane(n):
    """Centred rows, PPCA's exact log likelihood at its optimum, and sum_j log(λ_j / σ²) / 2 (Tipping & Bishop)."""
    rng = np.random.default_rng(3)
    x = (rng.normal(size=(n, 2)) @ PLANE + 0.7 * rng.normal(size=(n, 4))).astype(np.float32)
    x -= x.mean(0)
    eigenvalues = np.linalg.eigvalsh(np.cov(x.T, bias=True))[::-1]
    noise = eigenvalues[2:].mean()
    evidence = -0.5 * (4 * np.log(2 * np.pi) + np.log(eigenvalues[:2]).sum() + 2 * np.log(noise) + 4)
    return x, evidence, 0.5 * np.log(eigenvalues[:2] / noise).sum()


def test_the_terms_of_ppca():
    """With the exact posterior ELBO = log p; and I + KL = sum_j log(λ_j / σ²) / 2, whatever the data.

    The aggregate posterior has mean 0 and covariance I, and is the prior for Gaussian data, up to n.
    """
    x, evidence, known = gaussian_plane(600)
    found = elbo_surgery(fit(EM(PPCA(2), tolerance=1e-7), x, key=0), x)
    assert abs(found.elbo.mean - evidence) < 1e-3  # float32 densities of 600 rows; no Monte-Carlo error
    total = found.mutual_information.mean + found.marginal_kl.mean
    assert abs(total - known) < 4 * (found.mutual_information.mc_error + found.marginal_kl.mc_error) < 0.1
    assert -4 * found.marginal_kl.mc_error < found.marginal_kl.mean < 0.05


@pytest.mark.slow
def test_a_trained_linear_vae_is_ppca_and_its_terms_are_known():
    x, evidence, known = gaussian_plane(600)
    vae = VAE(2, Linear(), GaussianSharedScale())
    svi = SVI(vae, AmortizedNormal(2, Linear()), ELBO(5), optax.adam(optax.cosine_decay_schedule(2e-2, 4000)))
    found = elbo_surgery(fit(svi, x, key=0, num_steps=4000), num_samples=16)
    # Stochastic optimisation ends within hundredths of a nat of the optimum; a bound never ends above it.
    assert evidence - 0.02 < found.elbo.mean < evidence + 4 * found.elbo.mc_error
    assert abs(found.mutual_information.mean + found.marginal_kl.mean - known) < 0.05
    assert -4 * found.marginal_kl.mc_error < found.marginal_kl.mean < 0.05


def test_what_has_no_aggregate_posterior_is_refused(run, tmp_path):
    unguided = replace(run, algorithm=SimpleNamespace(engine="numpyro", model=linear))
    with pytest.raises(Incompatible, match=r"SimpleNamespace has no guide.*amortize"):
        elbo_surgery(unguided)
    with pytest.raises(Incompatible, match="samples no latents of rows"):
        elbo_surgery(at_start(PPCA(1).marginal, MeanField(PPCA(1).marginal)))
    with pytest.raises(Incompatible, match="all mass of .*'z'.* at one value"):
        elbo_surgery(at_start(linear, Delta(linear)))
    plane = VAE(2, Linear())
    moved = SVI(plane, Hamiltonian(plane, AmortizedNormal(2, Linear()), Linear()), ELBO(), optax.sgd(0.0))
    with pytest.raises(Incompatible, match="the density of its own draws alone"):
        elbo_surgery(replace(run, algorithm=moved))
    with pytest.raises(ValueError, match="num_samples is 1"):
        elbo_surgery(run, num_samples=1)
    run.save(tmp_path / "run")
    with pytest.raises(BadData, match=r"elbo_surgery\(fit, data\)"):
        elbo_surgery(Fit.load(tmp_path / "run", run.algorithm))


def test_bits_as_codes():
    """Three bits: I and KL by summing over their eight states."""

    def bits(x, num_data=None):
        with numpyro.plate("data", num_data or len(x), subsample_size=len(x)):
            z = numpyro.sample("z", dist.Bernoulli(jnp.full((len(x), 3), 0.4)).to_event(1))
            numpyro.sample("x", dist.Normal(z[:, :2] * jnp.asarray(W), NOISE).to_event(1), obs=x)

    def guess(x, num_data=None):
        b = numpyro.param("b", jnp.ones((2, 3)))
        with numpyro.plate("data", num_data or len(x), subsample_size=len(x)):
            numpyro.sample("z", dist.Bernoulli(logits=x @ b + 0.1).to_event(1))

    found = elbo_surgery(at_start(bits, guess, objective=VIMCO(2)), num_samples=100)
    states = np.array(list(np.ndindex(2, 2, 2)))
    p = 1 / (1 + np.exp(-(X @ np.ones((2, 3)) + 0.1)))[:, None]
    q = np.prod(np.where(states == 1, p, 1 - p), axis=-1)  # (row, state)
    prior, aggregate = np.prod(np.where(states == 1, 0.4, 0.6), axis=-1), q.mean(0)
    information = (q * np.log(q / aggregate)).sum(1).mean()
    kl = (aggregate * np.log(aggregate / prior)).sum()
    assert abs(found.mutual_information.mean - information) < 4 * found.mutual_information.mc_error < 0.1
    assert abs(found.marginal_kl.mean - kl) < 4 * found.marginal_kl.mc_error < 0.1


def test_in_the_inference_data(run):
    found = elbo_surgery(run, X, NEW)
    data = run.to_arviz(X, results={"elbo_surgery": found, "again": found.reconstruction})
    assert data.elbo_surgery["marginal_kl"].dims == ("row",)
    assert data.elbo_surgery["held_out_gain"].shape == (40,)
    assert np.array_equal(data.again["again"], found.reconstruction.rows)
    assert data.again.attrs["again_mc_error"] == found.reconstruction.mc_error
    # Without being asked for: other draws of the same terms, four standard errors of both.
    own = run.to_arviz(X).elbo_surgery
    difference = float(own["mutual_information"].mean()) - found.mutual_information.mean
    assert abs(difference) < 4 * np.sqrt(2) * found.mutual_information.mc_error
    with pytest.raises(BadData, match=r"results\['x'\] is a int"):
        run.to_arviz(X, results={"x": 3})
    with pytest.raises(BadData, match="group 'posterior', which the fit has already"):
        run.to_arviz(X, results={"posterior": found})
