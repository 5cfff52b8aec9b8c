"""The discrete VAE: log joint by hand and in both engines, exact marginal under every likelihood, complaints."""

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
from scipy.special import logsumexp

from guides import AmortizedBernoulli
from inference import SVI, fit
from inference.objectives import ScoreFunction
from ppl_models import DiscreteVAE, binary_states
from ppl_models.likelihoods import Bernoulli, Gaussian, GaussianPixelScale, GaussianSharedScale
from ppl_models.networks import MLP

BITS, PIXELS, ROWS = 3, 4, 6
LIKELIHOODS = [Bernoulli(), Gaussian(0.5), GaussianSharedScale(0.4), GaussianPixelScale()]
likelihoods = pytest.mark.parametrize("likelihood", LIKELIHOODS, ids=lambda value: type(value).__name__)
STATES = (np.arange(2**BITS)[:, None] >> np.arange(BITS) & 1).astype(np.float32)


@pytest.fixture
def x():
    return (np.random.default_rng(0).random((ROWS, PIXELS)) < 0.3).astype(np.float32)


def random_params(model, seed=2):
    rng, outputs = np.random.default_rng(seed), model.likelihood.outputs_per_pixel * PIXELS
    module = eqx.filter(model.decoder.build(BITS, outputs, jax.random.key(0)), eqx.is_array)
    decoder = jax.tree.map(lambda w: rng.normal(0, 0.7, w.shape).astype(np.float32), module)
    scale = {"scale": np.float32(0.4)} if isinstance(model.likelihood, GaussianSharedScale) else {}
    prior = {"prior_logits": rng.normal(size=BITS).astype(np.float32)} if model.learn_prior else {}
    return {"decoder": decoder} | prior | scale


def log_joint(model, params, x, z):
    """log p(x, z) of each row by the formula, in float64."""
    w1, b1, w2, b2 = map(np.float64, jax.tree.leaves(params["decoder"]))
    outputs = np.tanh((2 * z - 1.0) @ w1.T + b1) @ w2.T + b2
    if isinstance(model.likelihood, Bernoulli):
        rows = stats.bernoulli(1 / (1 + np.exp(-outputs))).logpmf(x).sum(-1)
    elif isinstance(model.likelihood, GaussianPixelScale):
        rows = stats.norm(outputs[..., :PIXELS], 0.01 + np.logaddexp(0, outputs[..., PIXELS:])).logpdf(x).sum(-1)
    else:
        rows = stats.norm(outputs, params.get("scale", 0.5)).logpdf(x).sum(-1)
    p = 1 / (1 + np.exp(-np.float64(params.get("prior_logits", np.zeros(BITS)))))
    return rows + stats.bernoulli(p).logpmf(z).sum(-1)


def log_marginal(model, params, x):
    return np.array([logsumexp(log_joint(model, params, row, STATES)) for row in x])


def in_pyro(program, params, x, values=(), **kwargs):
    """A Pyro trace of the program at these parameters and site values."""
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    program(torch.tensor(x))  # makes the parameters
    store = pyro.get_param_store()
    for name, value in params.items():
        names = [n for n in store if n == name or n.startswith(f"{name}.")]
        for n, leaf in zip(names, jax.tree.leaves(value), strict=True):
            store[n] = torch.tensor(np.asarray(leaf))
    values = {name: torch.tensor(value) for name, value in dict(values).items()}
    return pyro.poutine.trace(pyro.poutine.condition(program, values)).get_trace(torch.tensor(x), **kwargs)


@likelihoods
@pytest.mark.parametrize("learn_prior", [True, False], ids=["learned", "half"])
def test_log_joint_by_hand_and_in_both_engines(likelihood, learn_prior, x):
    models = [DiscreteVAE(BITS, MLP((5,)), likelihood, learn_prior, ppl) for ppl in (numpyro, pyro)]
    z = np.random.default_rng(1).integers(0, 2, (ROWS, BITS)).astype(np.float32)
    params = random_params(models[0])
    expected = log_joint(models[0], params, x, z).sum()
    seeded, kwargs = handlers.seed(models[0], 0), {"num_data": 2 * ROWS}
    ours = jax.jit(lambda p: log_density(seeded, (x,), kwargs, p)[0])(params | {"z": z})
    assert float(ours) == pytest.approx(2 * expected, rel=1e-5)  # float32 sums of 42 terms; N / B = 2
    theirs = in_pyro(models[1], params, x, {"z": z}, num_data=2 * ROWS)
    assert theirs.log_prob_sum().item() == pytest.approx(2 * expected, rel=1e-5)
    fn = theirs.nodes["z"]["fn"]
    assert fn.batch_shape == (ROWS,) and fn.event_shape == (BITS,)
    assert ("prior_logits" in theirs.nodes) == learn_prior


@likelihoods
def test_marginal_is_the_sum_over_states(likelihood, x, monkeypatch):
    models = [DiscreteVAE(BITS, MLP((5,)), likelihood, ppl=ppl) for ppl in (numpyro, pyro)]
    params = random_params(models[0])
    expected = log_marginal(models[0], params, x)
    monkeypatch.setattr(binary_states, "_BUDGET", 4 * 2**BITS)  # 4 + 2 rows, or one at a time

    def ours(params):
        program = handlers.substitute(handlers.seed(models[0].marginal, 0), data=params)
        site = handlers.trace(program).get_trace(x)["x"]
        return site["fn"].log_prob(site["value"])

    theirs = in_pyro(models[1].marginal, params, x)
    theirs.compute_log_prob()
    for rows in (jax.jit(ours)(params), theirs.nodes["x"]["log_prob"].detach().numpy()):
        np.testing.assert_allclose(rows, expected, rtol=1e-5, atol=5e-6)  # float32


@likelihoods
def test_marginal_samples_have_the_mixture_s_mean(likelihood, x):
    """Each pixel's mean of 20,000 rows within 5 standard errors: 32 tests, a false alarm in 50,000 seeds."""
    draws = 20_000
    for ppl in (numpyro, pyro):
        model = DiscreteVAE(BITS, MLP((5,)), likelihood, ppl=ppl)
        params, rows = random_params(model), np.zeros((draws, PIXELS), np.float32)
        w1, b1, w2, b2 = map(np.float64, jax.tree.leaves(params["decoder"]))
        outputs = (np.tanh((2 * STATES - 1.0) @ w1.T + b1) @ w2.T + b2)[:, :PIXELS]
        given_state = 1 / (1 + np.exp(-outputs)) if isinstance(likelihood, Bernoulli) else outputs
        p = 1 / (1 + np.exp(-np.float64(params["prior_logits"])))
        expected = np.exp(stats.bernoulli(p).logpmf(STATES).sum(-1)) @ given_state
        if ppl is numpyro:

            def draw(params, x, model=model):
                program = handlers.substitute(handlers.seed(model.marginal, 1), data=params)
                site = handlers.trace(handlers.uncondition(program)).get_trace(x)["x"]
                return site["value"], site["fn"].mean

            sample, mean = map(np.asarray, jax.jit(draw)(params, rows))
        else:
            site = in_pyro(pyro.poutine.uncondition(model.marginal), params, rows).nodes["x"]
            sample, mean = (v.detach().numpy() for v in (site["value"], site["fn"].mean))
        np.testing.assert_allclose(mean[0], expected, rtol=1e-5, atol=1e-6)
        error = sample.std(0) / np.sqrt(draws)
        assert (np.abs(sample.mean(0) - expected) < 5 * error).all()


def test_likelihood_of_a_fit_is_exact(x):
    model = DiscreteVAE(BITS, MLP((5,)))
    guide = AmortizedBernoulli((BITS,), sites=("z",))
    run = fit(SVI(model, guide, ScoreFunction(2), optax.adam(1e-2)), x, key=0, num_steps=3)
    found = run.log_likelihood(x)
    np.testing.assert_allclose(found.rows, log_marginal(model, run.params, x), atol=1e-5)
    assert found.mc_error == 0


def test_marginal_ends_at_16_bits():
    assert hasattr(DiscreteVAE(16, MLP((5,))), "marginal")
    big = DiscreteVAE(17, MLP((5,)))
    assert getattr(big, "marginal", big) is big
    with pytest.raises(AttributeError, match="no marginal with 17 latent bits.*importance samples"):
        _ = big.marginal


def test_an_unchanged_program_is_an_equal_value():
    assert DiscreteVAE(3, MLP((5,))) == DiscreteVAE(3, MLP((5,)), Bernoulli(), True, numpyro)
    assert hash(DiscreteVAE(3, MLP((5,))).marginal) == hash(DiscreteVAE(3, MLP((5,))).marginal)
    assert DiscreteVAE(3, MLP((5,))) != DiscreteVAE(3, MLP((5,)), learn_prior=False)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: DiscreteVAE(0, MLP((5,))), ValueError, "num_bits is 0; expected a whole number of at least 1"),
        (lambda: DiscreteVAE(2.0, MLP((5,))), ValueError, "num_bits is 2.0"),
        (lambda: DiscreteVAE(2, (5, 5)), TypeError, "decoder is a tuple; numpyro needs a description"),
        (lambda: DiscreteVAE(2, MLP((5,)), Bernoulli), TypeError, "expected a value such as Bernoulli()"),
    ],
)
def test_bad_arguments(make, error, message):
    with pytest.raises(error, match=message):
        make()
