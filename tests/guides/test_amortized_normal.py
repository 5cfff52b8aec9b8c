"""The amortized Normal guide: its density by hand and in both engines, and a bound that training raises."""

import equinox as eqx
import jax
import numpy as np
import numpyro
import optax
import pyro
import pytest
import torch
from numpyro.infer import SVI, TraceMeanField_ELBO
from numpyro.infer.util import log_density
from scipy import stats

from guides.amortized_normal import AmortizedNormal
from ppl_models.networks import MLP, ConvEncoder
from ppl_models.vae import VAE

LATENT, PIXELS, ROWS = 3, 64, 6
encoders = pytest.mark.parametrize("encoder", [MLP((7,)), ConvEncoder((3, 4))], ids=["mlp", "conv"])


@pytest.fixture
def x():
    return (np.random.default_rng(0).random((ROWS, PIXELS)) < 0.3).astype(np.float32)


def random_weights(encoder):
    module = encoder.build(PIXELS, 2 * LATENT, jax.random.key(0))
    leaves, tree = jax.tree.flatten(eqx.filter(module, eqx.is_array))
    rng = np.random.default_rng(2)
    return jax.tree.unflatten(tree, [rng.normal(0, 0.3, w.shape).astype(np.float32) for w in leaves])


@encoders
def test_engines_agree(encoder, x):
    z = np.random.default_rng(1).normal(size=(ROWS, LATENT)).astype(np.float32)
    weights = random_weights(encoder)
    ours, trace = log_density(AmortizedNormal(LATENT, encoder), (x,), {}, {"encoder": weights, "z": z})
    assert trace["z"]["fn"].event_shape == (LATENT,) and trace["z"]["fn"].batch_shape == (ROWS,)

    guide = AmortizedNormal(LATENT, encoder, ppl=pyro)
    pyro.clear_param_store()
    guide(torch.tensor(x))
    store = pyro.get_param_store()
    for name, leaf in zip(list(store), jax.tree.leaves(weights), strict=True):
        store[name] = torch.tensor(np.asarray(leaf))
    conditioned = pyro.poutine.condition(guide, {"z": torch.tensor(z)})
    theirs = pyro.poutine.trace(conditioned).get_trace(torch.tensor(x), num_data=2 * ROWS).log_prob_sum()
    assert float(ours) == pytest.approx(theirs.item() / 2, rel=1e-5)  # float32 sums of 18 terms; N / B = 2


def test_density_by_hand(x):
    weights = random_weights(MLP((7,)))
    w1, b1, w2, b2 = map(np.float64, jax.tree.leaves(weights))
    outputs = np.tanh(x @ w1.T + b1) @ w2.T + b2
    loc, scale = outputs[:, :LATENT], np.log1p(np.exp(outputs[:, LATENT:]))
    z = loc.astype(np.float32) + 0.5
    ours, _ = log_density(
        AmortizedNormal(LATENT, MLP((7,)), site="latent"), (x,), {}, {"encoder": weights, "latent": z}
    )
    assert float(ours) == pytest.approx(stats.norm(loc, scale).logpdf(z).sum(), rel=1e-5)


def test_log_scale_stays_finite(x):
    weights = jax.tree.map(lambda w: np.full_like(w, -1e3 if w.ndim == 1 else 0.0), random_weights(MLP((7,))))
    with numpyro.handlers.seed(rng_seed=0), numpyro.handlers.substitute(data={"encoder": weights}):
        trace = numpyro.handlers.trace(AmortizedNormal(LATENT, MLP((7,)))).get_trace(x)
    scale = np.asarray(trace["z"]["fn"].base_dist.scale)
    assert (scale > 0).all() and np.isfinite(np.log(scale)).all()


def test_plain_svi_trains_both_engines(x):
    """From one bound to a much better one, within NumPyro's and Pyro's own SVI."""
    arguments = (VAE(LATENT, MLP((20,))), AmortizedNormal(LATENT, MLP((20,))))
    run = SVI(*arguments, optax.adam(2e-2), TraceMeanField_ELBO()).run(jax.random.key(0), 200, x, progress_bar=False)
    assert run.losses[-20:].mean() < 0.6 * run.losses[:20].mean()

    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    arguments = (VAE(LATENT, MLP((20,)), ppl=pyro), AmortizedNormal(LATENT, MLP((20,)), ppl=pyro))
    svi = pyro.infer.SVI(*arguments, pyro.optim.Adam({"lr": 2e-2}), pyro.infer.TraceMeanField_ELBO())
    losses = [svi.step(torch.tensor(x)) for _ in range(200)]
    assert np.mean(losses[-20:]) < 0.6 * np.mean(losses[:20])


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: AmortizedNormal(0, MLP((5,))), ValueError, "latent_dim is 0; expected a whole number"),
        (lambda: AmortizedNormal(2, MLP((5,)), site=""), ValueError, "expected the name of a latent site"),
        (lambda: AmortizedNormal(2, torch.nn.Linear(3, 4)), TypeError, "network is a Linear; numpyro needs"),
        (lambda: AmortizedNormal(2, (5, 5), ppl=pyro), TypeError, "network is a tuple; pyro needs"),
    ],
)
def test_bad_arguments(make, error, message):
    with pytest.raises(error, match=message):
        make()
