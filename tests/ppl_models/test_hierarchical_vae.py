"""Hierarchical VAEs and their two guides, where all is linear and Gaussian: evidence and posterior in closed form."""

import jax
import numpy as np
import numpyro
import optax
import pyro
import pytest
import torch
from numpyro import handlers
from numpyro.infer.util import log_density
from scipy import stats

from guides import HierarchicalNormal, TopDownNormal
from inference import SVI, Incompatible, PyroSVI, check, fit
from inference.objectives import ELBO, IWAE, Beta, FreeBits
from ppl_models import HierarchicalVAE
from ppl_models.likelihoods import Bernoulli, Gaussian
from ppl_models.networks import MLP, Linear

ROWS, PIXELS, DIM = 5, 4, 2
NOISE, SCALE = 0.6, 0.5  # of x given z1, and of z1 given z2
# Orthogonal columns and a diagonal map: the posteriors of both layers have independent coordinates.
W = np.array([[1.0, 0.5], [1.0, -0.5], [-1.0, 0.5], [0.5, 1.5]])
W[:, 1] -= W[:, 0] * (W[:, 0] @ W[:, 1]) / (W[:, 0] @ W[:, 0])
D = np.array([0.8, -1.2])
X = np.random.default_rng(0).normal(size=(ROWS, PIXELS)).astype(np.float32)
MODEL = HierarchicalVAE((DIM, DIM), (Linear(), Linear()), Gaussian(NOISE))
BOTTOM_UP = HierarchicalNormal((DIM, DIM), (Linear(), Linear()))
TOP_DOWN = TopDownNormal((DIM, DIM), (Linear(), Linear()), (Linear(), Linear()), width=PIXELS)
guides = pytest.mark.parametrize("guide", [BOTTOM_UP, TOP_DOWN], ids=["bottom-up", "top-down"])


def raw(scale):
    """What softplus (and the floor of 1e-6) makes the scale."""
    return np.log(np.expm1(np.asarray(scale) - 1e-6))


def affine(architecture, in_size, weight, bias):
    """An affine map's weights."""
    leaves = [np.asarray(weight, np.float32), np.asarray(bias, np.float32)]
    module = architecture.build(in_size, len(bias), jax.random.key(0))
    return jax.tree.unflatten(jax.tree.structure(module), leaves)


def normal(architecture, weight, scale):
    """An affine map to locations, without a bias, and constant scales."""
    out = np.concatenate([weight, np.zeros_like(weight)])
    return affine(architecture, weight.shape[1], out, np.concatenate([np.zeros(len(weight)), raw(scale)]))


def exact_params(guide):
    """Parameters of the model, and those at which the guide is its posterior."""
    params = {
        "decoder1": affine(Linear(), DIM, W, np.zeros(PIXELS)),
        "decoder2": normal(Linear(), np.diag(D), [SCALE] * 2),
    }
    length = (W**2).sum(0)
    y, noise = W.T / length[:, None], NOISE**2 / length  # y = z1 + N(0, noise): what x says of z1
    prior = D**2 + SCALE**2  # of z1, z2 integrated out
    if isinstance(guide, HierarchicalNormal):
        v1, v2 = 1 / (1 / noise + 1 / prior), 1 / (1 + D**2 / SCALE**2)
        return params | {
            "encoder1": normal(Linear(), (v1 / noise)[:, None] * y, np.sqrt(v1)),
            "encoder2": normal(Linear(), np.diag(v2 * D / SCALE**2), np.sqrt(v2)),
        }
    v2 = 1 / (1 + D**2 / (SCALE**2 + noise))
    message = normal(Linear(), y, np.sqrt(noise))  # the likelihood of z1
    weight, bias = jax.tree.leaves(message)
    upwards = np.concatenate([np.eye(PIXELS), weight]), np.concatenate([np.zeros(PIXELS), bias])  # hands on x itself
    return params | {
        "encoder1": affine(Linear(), PIXELS, *upwards),
        "encoder2": normal(Linear(), (v2 * D / (SCALE**2 + noise))[:, None] * y, np.sqrt(v2)),
    }


COVARIANCE = W @ np.diag(D**2 + SCALE**2) @ W.T + NOISE**2 * np.eye(PIXELS)
EVIDENCE = stats.multivariate_normal(np.zeros(PIXELS), COVARIANCE).logpdf(X)


@guides
def test_bound_is_the_evidence_at_the_exact_posterior(guide):
    """Every importance weight is then the evidence, whatever is drawn; it holds of N / B = 3 too."""
    check(MODEL, guide, ELBO(), X)
    for k in (1, 4):
        loss = IWAE(k).loss(jax.random.key(k), exact_params(guide), MODEL, guide, X, num_data=3 * ROWS)
        assert -float(loss) == pytest.approx(3 * EVIDENCE.sum(), rel=1e-5)  # float32


@guides
def test_bounds_of_a_worse_guide_grow_to_the_evidence(guide):
    """Means of 2,000 draws; the order holds by more than 5 standard errors, the gaps being some tenths of a nat."""
    params, rng = exact_params(guide), np.random.default_rng(1)
    noisy = jax.tree.map(lambda w: w + rng.normal(0, 0.3, w.shape).astype(np.float32), params)
    params |= {n: noisy[n] for n in ("encoder1", "encoder2")}

    def mean(objective):
        loss = jax.jit(jax.vmap(lambda key: objective.loss(key, params, MODEL, guide, X)))
        draws = -np.float64(loss(jax.random.split(jax.random.key(0), 2000)))
        return draws.mean(), draws.std() / np.sqrt(2000)

    means, errors = zip(*(mean(objective) for objective in (ELBO(), IWAE(4), IWAE(32))), strict=True)
    steps = np.diff([*means, EVIDENCE.sum()])
    assert (steps > 5 * np.hypot(errors, [*errors[1:], 0.0])).all()
    one, error = mean(IWAE(1))  # the ELBO without closed forms
    assert abs(one - means[0]) < 5 * np.hypot(error, errors[0])


@guides
def test_engines_agree(guide):
    z = np.random.default_rng(1).normal(size=(2, ROWS, DIM)).astype(np.float32)
    params, values, kwargs = exact_params(guide), {"z1": z[0], "z2": z[1]}, {"num_data": 2 * ROWS}
    for program in (MODEL, guide):
        ours = log_density(handlers.seed(program, 0), (X,), kwargs, params | values)[0]
        twin = type(program)(**{n: v for n, v in vars(program).items() if n != "ppl"}, ppl=pyro)
        theirs = in_pyro(twin, params, values, **kwargs)
        assert float(ours) == pytest.approx(theirs.log_prob_sum().item(), rel=1e-5)  # float32
    expected = stats.norm.logpdf(z[1]) + stats.norm(D * z[1], SCALE).logpdf(z[0])
    rows = expected.sum(-1) + stats.norm(z[0] @ W.T, NOISE).logpdf(X).sum(-1)
    joint = log_density(handlers.seed(MODEL, 0), (X,), kwargs, params | values)[0]
    assert float(joint) == pytest.approx(2 * rows.sum(), rel=1e-5)


def in_pyro(program, params, values, **kwargs):
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    program(torch.tensor(X))  # makes the parameters
    store = pyro.get_param_store()
    for name, value in params.items():
        names = [n for n in store if n.startswith(f"{name}.")]
        for n, leaf in zip(names, jax.tree.leaves(value), strict=bool(names)):
            store[n] = torch.tensor(np.asarray(leaf))
    values = {name: torch.tensor(value) for name, value in values.items()}
    return pyro.poutine.trace(pyro.poutine.condition(program, values)).get_trace(torch.tensor(X), **kwargs)


def test_history_has_the_kl_of_each_layer():
    """The parts add up to the bound."""
    run = fit(SVI(MODEL, TOP_DOWN, Beta(ELBO(), 1.0), optax.adam(1e-2)), X, key=0, num_steps=5)
    kl = run.history["kl.z1"] + run.history["kl.z2"]
    np.testing.assert_allclose(kl, run.history["kl"], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(run.history["reconstruction"] - kl, run.history["bound"], rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [HierarchicalNormal, TopDownNormal])
def test_training_finds_the_evidence(kind):
    """Rows drawn from the linear model: the bound comes within 0.1 nats of what they are worth.

    Between latents are networks with bounded hidden units: the scales of an affine map have no bound.
    """
    decoders, encoders = (Linear(), MLP((8,))), (MLP((8,)), MLP((8,)))
    model = HierarchicalVAE((DIM, DIM), decoders, Gaussian(NOISE))
    guide = kind((DIM, DIM), encoders, *[decoders] * (kind is TopDownNormal))
    rng = np.random.default_rng(2)
    x = rng.multivariate_normal(np.zeros(PIXELS), COVARIANCE, 500).astype(np.float32)
    optimizer = optax.adam(optax.exponential_decay(5e-3, 3000, 0.05))
    run = fit(SVI(model, guide, ELBO(), optimizer), x, key=0, num_steps=3000)
    truth = stats.multivariate_normal(np.zeros(PIXELS), COVARIANCE).logpdf(x).mean()
    assert truth - 0.1 < run.history["bound"][0, -100:].mean() < truth + 0.05  # of 500 rows
    found = run.log_likelihood(x, 500)
    assert found.mean > run.history["bound"][0, -100:].mean() - 0.02


@pytest.mark.slow
def test_free_bits_keep_a_layer_alive_and_pyro_trains_too():
    free = fit(SVI(MODEL, TOP_DOWN, FreeBits(ELBO(), 1.0), optax.adam(1e-2)), X, key=0, num_steps=500)
    assert free.history["kl.z2"][0, -50:].mean() > 0.9
    twins = [type(p)(**{n: v for n, v in vars(p).items() if n != "ppl"}, ppl=pyro) for p in (MODEL, TOP_DOWN)]
    run = fit(PyroSVI(*twins, ELBO(), torch.optim.Adam, {"lr": 1e-2}), X, key=0, num_steps=300)
    assert run.history["bound"][0, -20:].mean() > run.history["bound"][0, :20].mean() + 0.5
    assert run.generate(3)["x"].shape == (3, PIXELS)


def test_three_layers_and_one():
    three = HierarchicalVAE((4, 3, 2), (MLP((5,)),) * 3, Bernoulli())
    for guide in (
        HierarchicalNormal((4, 3, 2), (MLP((5,)),) * 3),
        TopDownNormal((4, 3, 2), (MLP((5,)),) * 3, three.decoders, width=6),
    ):
        check(three, guide, FreeBits(ELBO(), 0.1), (X > 0).astype(np.float32))
    check(HierarchicalVAE(3, MLP((5,))), HierarchicalNormal(3, MLP((5,))), ELBO(), (X > 0).astype(np.float32))
    with pytest.raises(Incompatible, match="cannot be summed out|which the model does not"):
        check(three, HierarchicalNormal((4, 3), (MLP((5,)),) * 2), ELBO(), (X > 0).astype(np.float32))
    with pytest.raises(Incompatible, match="decoder2|could not be run"):  # other decoders than the model's
        check(three, TopDownNormal((4, 3, 2), (MLP((5,)),) * 3, (MLP((6,)),) * 3), ELBO(), (X > 0).astype(np.float32))


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: HierarchicalVAE((), ()), ValueError, r"latent_dims is \(\); expected whole numbers"),
        (lambda: HierarchicalVAE((2, 0), (MLP((5,)),) * 2), ValueError, r"latent_dims is \(2, 0\)"),
        (lambda: HierarchicalVAE((2, 2), (MLP((5,)),)), ValueError, "decoders has 1 networks; expected 2"),
        (lambda: HierarchicalVAE((2, 2), (MLP((5,)), 3)), TypeError, r"decoders\[1\] is a int; numpyro needs"),
        (lambda: HierarchicalVAE(2, MLP((5,)), Bernoulli), TypeError, "expected a value such as Bernoulli()"),
        (lambda: HierarchicalNormal((2, 2), (MLP((5,)),) * 3), ValueError, "encoders has 3 networks; expected 2"),
        (lambda: TopDownNormal(2, MLP((5,)), MLP((5,)), width=0), ValueError, "width is 0; expected a whole number"),
    ],
)
def test_bad_arguments(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_an_unchanged_program_is_an_equal_value():
    assert MODEL == HierarchicalVAE([DIM, DIM], [Linear(), Linear()], Gaussian(NOISE), numpyro)
    assert hash(TOP_DOWN) == hash(TopDownNormal([DIM, DIM], [Linear()] * 2, [Linear()] * 2, PIXELS))
