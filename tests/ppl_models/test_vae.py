"""The VAE: its log joint by hand and in both engines, its scaling, its samples, its complaints."""

import equinox as eqx
import jax
import numpy as np
import numpyro
import pyro
import pytest
import torch
from numpyro import handlers
from numpyro.infer.util import log_density
from scipy import stats

from ppl_models import VAE
from ppl_models.likelihoods import Bernoulli, Gaussian, GaussianPixelScale, GaussianSharedScale
from ppl_models.networks import MLP, ConvDecoder
from ppl_models.priors import StandardNormal

LATENT, PIXELS, ROWS = 3, 64, 6
LIKELIHOODS = [Bernoulli(), Gaussian(0.5), GaussianSharedScale(0.4), GaussianPixelScale()]
likelihoods = pytest.mark.parametrize("likelihood", LIKELIHOODS, ids=lambda value: type(value).__name__)
decoders = pytest.mark.parametrize("decoder", [MLP((7, 5)), ConvDecoder((4, 3))], ids=["mlp", "conv"])


@pytest.fixture
def x():
    return (np.random.default_rng(0).random((ROWS, PIXELS)) < 0.3).astype(np.float32)


@pytest.fixture
def z():
    return np.random.default_rng(1).normal(size=(ROWS, LATENT)).astype(np.float32)


def random_weights(vae):
    out_size = vae.likelihood.outputs_per_pixel * PIXELS
    module = vae.decoder.build(LATENT, out_size, jax.random.key(0))
    leaves, tree = jax.tree.flatten(eqx.filter(module, eqx.is_array))
    rng = np.random.default_rng(2)
    return jax.tree.unflatten(tree, [rng.normal(0, 0.3, w.shape).astype(np.float32) for w in leaves])


def joint_numpyro(vae, x, z, weights, **kwargs):
    seeded = handlers.seed(vae, rng_seed=0)
    return float(jax.jit(lambda p: log_density(seeded, (x,), kwargs, p)[0])({"decoder": weights, "z": z}))


def joint_pyro(vae, x, z, weights, **kwargs):
    vae = VAE(vae.latent_dim, vae.decoder, vae.likelihood, ppl=pyro)
    x, z = torch.tensor(x), torch.tensor(z)
    pyro.clear_param_store()
    vae(x)  # makes the parameters
    store = pyro.get_param_store()
    names = [name for name in store if name.startswith("decoder.")]
    for name, leaf in zip(names, jax.tree.leaves(weights), strict=True):
        assert store[name].shape == leaf.shape
        store[name] = torch.tensor(np.asarray(leaf))
    trace = pyro.poutine.trace(pyro.poutine.condition(vae, {"z": z})).get_trace(x, **kwargs)
    return trace.log_prob_sum().item()


@likelihoods
@decoders
def test_engines_agree(decoder, likelihood, x, z):
    vae = VAE(LATENT, decoder, likelihood)
    weights = random_weights(vae)
    ours = joint_numpyro(vae, x, z, weights)
    assert ours == pytest.approx(joint_pyro(vae, x, z, weights), rel=1e-5)  # float32 sums of 400 terms
    assert np.isfinite(ours) and ours != pytest.approx(joint_numpyro(vae, x, z + 0.1, weights), rel=1e-4)


def test_log_joint_by_hand(x, z):
    vae = VAE(LATENT, MLP((7,)), Gaussian(0.5))
    weights = random_weights(vae)
    w1, b1, w2, b2 = map(np.float64, jax.tree.leaves(weights))
    mean = np.tanh(z @ w1.T + b1) @ w2.T + b2
    expected = stats.norm.logpdf(z).sum() + stats.norm(mean, 0.5).logpdf(x).sum()
    assert joint_numpyro(vae, x, z, weights) == pytest.approx(expected, rel=1e-5)


def test_minibatches_scale_by_num_data(x, z):
    vae = VAE(LATENT, MLP((7,)))
    weights = random_weights(vae)
    whole = joint_numpyro(vae, x, z, weights)
    for joint in (joint_numpyro, joint_pyro):
        assert joint(vae, x, z, weights, num_data=5 * ROWS) == pytest.approx(5 * whole, rel=1e-5)


@likelihoods
def test_generated_rows(likelihood, x):
    decoder = MLP((7, 5))
    vae = VAE(LATENT, decoder, likelihood)
    hidden = handlers.uncondition(handlers.seed(vae, rng_seed=0))
    ours = np.asarray(jax.jit(hidden)(np.zeros_like(x)))

    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    hidden = pyro.poutine.uncondition(VAE(LATENT, decoder, likelihood, ppl=pyro))
    theirs = hidden(torch.zeros(ROWS, PIXELS)).detach().numpy()
    for sample in (ours, theirs):
        assert sample.shape == x.shape and sample.std() > 0.1
        if isinstance(likelihood, Bernoulli):
            assert set(np.unique(sample)) == {0, 1}


def test_an_unchanged_program_is_an_equal_value():
    assert VAE(3, MLP((5,)), Bernoulli()) == VAE(3, MLP((5,)), Bernoulli(), StandardNormal(), numpyro)
    assert hash(VAE(3, MLP((5,)), Gaussian(0.5))) == hash(VAE(3, MLP((5,)), Gaussian(0.5)))
    assert VAE(3, MLP((5,)), Gaussian(0.5)) != VAE(3, MLP((5,)), Gaussian(0.6))


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: VAE(0, MLP((5,))), ValueError, "latent_dim is 0; expected a whole number of at least 1"),
        (lambda: VAE(2.0, MLP((5,))), ValueError, "latent_dim is 2.0"),
        (lambda: VAE(2, (5, 5)), TypeError, "decoder is a tuple; numpyro needs a description"),
        (lambda: VAE(2, torch.nn.Linear(2, 3)), TypeError, "A torch module runs with ppl=pyro"),
        (lambda: VAE(2, MLP((5,)), Bernoulli), TypeError, "expected a value such as Bernoulli()"),
        (lambda: VAE(2, MLP((5,)), "bernoulli"), TypeError, "likelihood is 'bernoulli'"),
    ],
)
def test_bad_arguments(make, error, message):
    with pytest.raises(error, match=message):
        make()
