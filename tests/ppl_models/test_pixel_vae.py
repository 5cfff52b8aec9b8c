"""PixelVAE and what its latents hold: against quadrature over z, and the collapse that a wide view brings."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from numpyro import handlers
from scipy import stats
from scipy.special import logsumexp

import guides
from inference import SVI, Incompatible, bits_back, fit
from inference.objectives import ELBO
from ppl_models import MADE, PPCA, VAE, CausalCNN, PixelCNN, PixelVAE
from ppl_models.likelihoods import GaussianPixelScale
from ppl_models.networks import MLP

X = np.array(list(itertools.product(range(2), repeat=4)), np.float32)
NODES, WEIGHTS = np.polynomial.hermite_e.hermegauss(40)
ENCODER = guides.AmortizedNormal(1, MLP((4,)))


@pytest.fixture(scope="module", params=["dense", pytest.param("convolutions", marks=pytest.mark.slow)])
def run(request):
    """A few steps away from fresh weights, with one latent, so that quadrature is exact to float32."""
    pixels = MADE((5,)) if request.param == "dense" else PixelCNN(3, (3,))
    model = PixelVAE(1, MLP((4,)), pixels, features=3)
    return fit(SVI(model, ENCODER, ELBO(), optax.adam(0.05)), X[:12], key=0, num_steps=20, progress=False)


def given(run, x, z):
    """log p(x | z) for every x and z, nats."""

    def at(z):
        tr = handlers.trace(handlers.seed(handlers.substitute(run.model, data=run.params | {"z": z}), 0)).get_trace(x)
        return tr["x"]["fn"].log_prob(x)

    return np.asarray(jax.jit(jax.vmap(at))(z), np.float64)


def test_the_likelihood_is_that_of_quadrature(run):
    z = jnp.broadcast_to(jnp.asarray(NODES, jnp.float32)[:, None, None], (40, 16, 1))
    exact = logsumexp(given(run, X, z) + np.log(WEIGHTS / WEIGHTS.sum())[:, None], axis=0)
    np.testing.assert_allclose(np.exp(exact).sum(), 1, atol=1e-5)
    found = run.log_likelihood(X, num_particles=2000)
    # Sixteen z-tests at 5 standard errors, each a false alarm in 10^6.
    assert (np.abs(found.rows - exact) < 5 * np.sqrt(found.variance) + 1e-5).all()
    drawn = run.generate(4000, key=1)["x"]
    counts = np.bincount((drawn @ 2 ** np.arange(4)[::-1]).astype(int), minlength=16)
    assert stats.chisquare(counts, 4000 * np.exp(exact) / np.exp(exact).sum()).pvalue > 1e-5  # once in 10^5 seeds


def test_what_the_latent_holds_is_that_of_quadrature(run):
    """E_q[-log p(x | z)] by Gauss-Hermite at the guide's own moments, KL by its formula."""
    tr = handlers.trace(handlers.seed(handlers.substitute(ENCODER, data=run.params), 0)).get_trace(X)
    loc, scale = (np.asarray(v, np.float64) for v in (tr["z"]["fn"].base_dist.loc, tr["z"]["fn"].base_dist.scale))
    z = jnp.asarray(loc + scale * NODES[:, None, None], jnp.float32)
    log_prob, weights = given(run, X, z), (WEIGHTS / WEIGHTS.sum())[:, None]
    rest = -(weights * log_prob).sum(0)
    spread = np.sqrt(((weights * log_prob**2).sum(0) - rest**2).mean() / 16)
    kl = 0.5 * (loc**2 + scale**2 - 1 - 2 * np.log(scale)).mean()
    found = bits_back(run, X, num_particles=400)
    np.testing.assert_allclose(found.latents["z"], kl, rtol=1e-4)
    assert abs(found.rest - rest.mean()) < 5 * spread / np.sqrt(400) + 1e-5  # a false alarm in 10^6
    assert found.total == pytest.approx(found.rest + kl, rel=1e-4)
    assert str(found).endswith(f"{found.latents['z']:.3f} in z")


@pytest.mark.slow
def test_an_autoregressive_prior_is_a_density():
    prior = MADE((6,), likelihood=GaussianPixelScale())
    model = PixelVAE(2, MLP((3,)), MADE((3,)), features=2, prior=prior)
    grid = np.linspace(-12, 12, 241)
    z = np.stack(np.meshgrid(grid, grid, indexing="ij"), -1).reshape(-1, 2).astype(np.float32)
    p_z = handlers.trace(handlers.seed(model, 0)).get_trace(X[:1])["z"]["fn"]
    density = np.exp(np.asarray(p_z.log_prob(z), np.float64)) * (grid[1] - grid[0]) ** 2
    # The trapezoid rule is exact to far below this for densities as smooth as a Normal of half the step's scale.
    np.testing.assert_allclose(density.sum(), 1, atol=1e-4)


@pytest.mark.slow
def test_an_autoregressive_prior_is_learned_with_the_rest():
    prior = MADE((6,), likelihood=GaussianPixelScale())
    model = PixelVAE(2, MLP((3,)), MADE((3,)), features=2, prior=prior)
    svi = SVI(model, guides.AmortizedNormal(2, MLP((3,))), ELBO(), optax.adam(0.05))
    free = fit(svi, X, key=0, num_steps=5, progress=False)
    assert {"prior", "decoder", "pixels"} <= free.params.keys()
    assert np.isfinite(free.log_likelihood(X, num_particles=10).rows).all()


@pytest.mark.slow
def test_the_latent_holds_less_the_more_a_pixel_sees():
    """Rows are all dark or all bright, which a pixel can tell from many before it, and the latent from the row.

    An undecided pixel is worth H(0.15) = 0.42 nats, and log 2 more tells dark from bright: with nothing to see the
    latent holds that; with the row before it, one pixel has told by the second or third.
    """
    rng = np.random.default_rng(0)
    rate = np.where(rng.random((400, 1)) < 0.5, 0.15, 0.85)
    x = (rng.random((400, 12)) < rate).astype(np.float32)
    models = [VAE(2, MLP((20,)))] + [PixelVAE(2, MLP((20,)), CausalCNN(6, 2, d), 2) for d in ((1,), (1, 2, 4))]
    encoder = guides.AmortizedNormal(2, MLP((20,)))
    runs = [
        fit(SVI(m, encoder, ELBO(), optax.adam(5e-3)), x, key=0, num_steps=800, batch_size=100, progress=False)
        for m in models
    ]
    none, near, far = (bits_back(run, x) for run in runs)
    # Nats a row; 1.03, 0.89 and 0.004 when written.
    assert none.latents["z"] > near.latents["z"] + 0.05 and near.latents["z"] > far.latents["z"] + 0.5
    assert far.latents["z"] < 0.1 and none.latents["z"] > np.log(2)
    assert far.total < near.total < none.total


def test_what_is_no_such_model_is_refused(run):
    with pytest.raises(TypeError, match="pixels is PPCA.*; expected an autoregressive model"):
        PixelVAE(1, MLP((4,)), PPCA(1))
    with pytest.raises(TypeError, match="prior is 3; expected a value such as StandardNormal"):
        PixelVAE(1, MLP((4,)), MADE((3,)), prior=3)
    with pytest.raises(ValueError, match="pixels has 3 classes"):
        PixelVAE(1, MLP((4,)), MADE((3,), num_classes=3))
    with pytest.raises(ValueError, match="features is 0"):
        PixelVAE(1, MLP((4,)), MADE((3,)), features=0)
    with pytest.raises(TypeError, match="decoder is a int"):
        PixelVAE(1, 3, MADE((3,)))
    with pytest.raises(Incompatible, match=r"PixelVAE draws rows given \['z'\], of which no posterior"):
        run.complete(X, observed=np.arange(4) < 2)
    plain = fit(SVI(MADE((3,)), guides.empty, ELBO(), optax.adam(0.05)), X, key=0, num_steps=1, progress=False)
    assert bits_back(plain, X).total == pytest.approx(-plain.log_likelihood(X).mean, rel=1e-5)
