"""The VAE of categorical latents: log joint by hand and in both engines, exact marginal, relaxed training."""

import equinox as eqx
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
from scipy.special import expit, log_softmax, logsumexp

from guides import AmortizedCategorical
from inference import SVI, Incompatible, check, fit
from inference.objectives import ELBO, GumbelSoftmax, ScoreFunction, StraightThrough
from ppl_models import CategoricalVAE
from ppl_models.networks import MLP

LATENTS, CATEGORIES, PIXELS, ROWS = 2, 3, 4, 6
SIZE = LATENTS * CATEGORIES
X = (np.random.default_rng(0).random((ROWS, PIXELS)) < 0.4).astype(np.float32)
DIGITS = np.array([(i, j) for i in range(CATEGORIES) for j in range(CATEGORIES)])
STATES = np.eye(CATEGORIES, dtype=np.float32)[DIGITS]  # (9, latents, categories)


def programs(ppl=numpyro):
    model = CategoricalVAE(LATENTS, CATEGORIES, MLP((5,)), ppl=ppl)
    return model, AmortizedCategorical(LATENTS, CATEGORIES, MLP((5,)), ppl=ppl)


def random_params(seed=2):
    rng = np.random.default_rng(seed)

    def weights(in_size, out_size):
        module = eqx.filter(MLP((5,)).build(in_size, out_size, jax.random.key(0)), eqx.is_array)
        return jax.tree.map(lambda w: rng.normal(0, 0.9, w.shape).astype(np.float32), module)

    return {"decoder": weights(SIZE, PIXELS), "encoder": weights(PIXELS, SIZE)}


def network(weights, rows):
    w1, b1, w2, b2 = map(np.float64, jax.tree.leaves(weights))
    return np.tanh(rows @ w1.T + b1) @ w2.T + b2


def log_joint(params, x, z):
    """log p(x, z) of each row."""
    p = expit(network(params["decoder"], z.reshape(len(z), SIZE)))
    return stats.bernoulli(p).logpmf(x).sum(-1) - LATENTS * np.log(CATEGORIES)


def log_evidence(params):
    return np.array([logsumexp(log_joint(params, x, STATES)) for x in X])


def in_pyro(program, params, values=(), **kwargs):
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    program(torch.tensor(X))  # makes the parameters
    store = pyro.get_param_store()
    for name, value in params.items():
        names = [n for n in store if n.startswith(f"{name}.")]
        for n, leaf in zip(names, jax.tree.leaves(value), strict=bool(names)):
            store[n] = torch.tensor(np.asarray(leaf))
    values = {name: torch.tensor(value) for name, value in dict(values).items()}
    return pyro.poutine.trace(pyro.poutine.condition(program, values)).get_trace(torch.tensor(X), **kwargs)


def test_log_joint_and_guide_by_hand_and_in_both_engines():
    params, kwargs = random_params(), {"num_data": 2 * ROWS}
    z = STATES[np.random.default_rng(1).integers(0, 9, ROWS)]
    log_q = log_softmax(network(params["encoder"], X).reshape(ROWS, LATENTS, CATEGORIES), axis=-1)
    expected = log_joint(params, X, z).sum(), (z * log_q).sum()
    for program, twin, value in zip(programs(), programs(pyro), expected, strict=True):
        ours = log_density(handlers.seed(program, 0), (X,), kwargs, params | {"z": z})[0]
        assert float(ours) == pytest.approx(2 * value, rel=1e-5)  # float32; N / B = 2
        assert in_pyro(twin, params, {"z": z}, **kwargs).log_prob_sum().item() == pytest.approx(2 * value, rel=1e-5)


def test_marginal_is_the_sum_over_states():
    params, expected = random_params(), log_evidence(random_params())
    program = handlers.substitute(handlers.seed(programs()[0].marginal, 0), data=params)
    site = handlers.trace(program).get_trace(X)["x"]
    np.testing.assert_allclose(site["fn"].log_prob(site["value"]), expected, rtol=1e-5)
    theirs = in_pyro(programs(pyro)[0].marginal, params)
    theirs.compute_log_prob()
    np.testing.assert_allclose(theirs.nodes["x"]["log_prob"].detach().numpy(), expected, rtol=1e-5)


def test_bounds_are_the_sum_over_states():
    """Means of 4,000 draws within 5 standard errors of E_q[log p - log q], a sum of nine terms, below the evidence."""
    params, (model, guide) = random_params(), programs()
    logits = log_softmax(network(params["encoder"], X).reshape(ROWS, LATENTS, CATEGORIES), axis=-1)
    log_q = np.einsum("slk,nlk->ns", STATES, logits)
    joint = np.array([log_joint(params, x, STATES) for x in X])
    expected = (np.exp(log_q) * (joint - log_q)).sum()
    assert expected < log_evidence(params).sum()
    for objective in (ScoreFunction(), StraightThrough(ELBO(), 0.5)):

        def bound(key, objective=objective):
            return -objective.loss(key, params, model, guide, X)

        draws = np.float64(jax.jit(jax.vmap(bound))(jax.random.split(jax.random.key(0), 4000)))
        assert abs(draws.mean() - expected) < 5 * draws.std() / np.sqrt(4000)


@pytest.mark.parametrize(
    "objective",
    [
        GumbelSoftmax(temperature=optax.exponential_decay(1.0, 200, 0.3)),
        pytest.param(StraightThrough(), marks=pytest.mark.slow),
        pytest.param(ScoreFunction(4), marks=pytest.mark.slow),
    ],
    ids=lambda value: type(value).__name__,
)
@pytest.mark.slow
def test_training_raises_the_exact_likelihood(objective):
    """Three noisy patterns: their entropy is the best there is, and comes near (of even odds it is 1.3 nats more)."""
    rng = np.random.default_rng(0)
    patterns = np.array([[1, 1, 0, 0], [0, 0, 1, 1], [1, 0, 1, 0]], np.float32)
    x = np.abs(patterns[rng.integers(0, 3, 60)] - (rng.random((60, 4)) < 0.05)).astype(np.float32)
    run = fit(SVI(*programs(), objective, optax.adam(3e-2)), x, key=0, num_steps=400)
    found = run.log_likelihood(x)
    assert found.mc_error == 0  # exact
    _, counts = np.unique(x, axis=0, return_counts=True)
    best = (counts * np.log(counts / 60)).sum() / 60
    assert best - 0.5 < found.mean < best
    assert run.generate(7)["x"].shape == (7, 4)


def test_what_does_not_fit_is_refused():
    model, guide = programs()
    with pytest.raises(Incompatible, match="ELBO differentiates through the guide's draws, but .'z'."):
        check(model, guide, ELBO(), X)
    with pytest.raises(
        AttributeError, match=r"no marginal with 20 latents of 10 categories: it would sum over 10\^20 states"
    ):
        _ = CategoricalVAE(20, 10, MLP((5,))).marginal
    assert not hasattr(CategoricalVAE(20, 10, MLP((5,))), "marginal")
    assert hash(model.marginal) == hash(programs()[0].marginal)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: CategoricalVAE(0, 2, MLP((5,))), ValueError, "num_latents is 0; expected a whole number"),
        (lambda: CategoricalVAE(2, 2.5, MLP((5,))), ValueError, "num_categories is 2.5"),
        (lambda: CategoricalVAE(2, 2, (5,)), TypeError, "decoder is a tuple; numpyro needs"),
        (lambda: AmortizedCategorical(2, 2, (5,)), TypeError, "network is a tuple; numpyro needs"),
    ],
)
def test_bad_arguments(make, error, message):
    with pytest.raises(error, match=message):
        make()
