"""The amortized Bernoulli guide: its density by hand and in both engines, its optimum, its complaints."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pyro
import pytest
import torch
from numpyro import handlers
from numpyro.infer.util import log_density
from scipy.special import expit

from guides import AmortizedBernoulli
from inference import SVI, fit
from inference.objectives import ScoreFunction
from ppl_models.networks import MLP, Linear

LAYERS, PIXELS, ROWS = (3, 2), 5, 6


@pytest.fixture
def x():
    return (np.random.default_rng(0).random((ROWS, PIXELS)) < 0.3).astype(np.float32)


def random_params(network):
    rng, params = np.random.default_rng(2), {}
    for n, (architecture, sizes) in enumerate([(network, (PIXELS, 3)), (Linear(), (3, 2))], 1):
        module = eqx.filter(architecture.build(*sizes, jax.random.key(0)), eqx.is_array)
        params[f"encoder{n}"] = jax.tree.map(lambda w: rng.normal(0, 1, w.shape).astype(np.float32), module)
    return params


def by_hand(params, x, z1, z2):
    """log q(z1, z2 | x) of all rows, in float64."""
    first = list(map(np.float64, jax.tree.leaves(params["encoder1"])))
    hidden = np.tanh((2 * x - 1.0) @ first[0].T + first[1]) if len(first) == 4 else 2 * x - 1.0
    logits = hidden @ first[-2].T + first[-1]
    w, b = map(np.float64, jax.tree.leaves(params["encoder2"]))
    p1, p2 = expit(logits), expit((2 * z1 - 1.0) @ w.T + b)
    return np.log(np.where(z1 == 1, p1, 1 - p1)).sum() + np.log(np.where(z2 == 1, p2, 1 - p2)).sum()


@pytest.mark.parametrize("network", [Linear(), MLP((7,))], ids=["linear", "mlp"])
def test_density_by_hand_and_in_both_engines(network, x):
    params, rng = random_params(network), np.random.default_rng(1)
    z1, z2 = (rng.integers(0, 2, (ROWS, units)).astype(np.float32) for units in LAYERS)
    expected, sites = by_hand(params, x, z1, z2), ("first", "second")
    guide, kwargs = AmortizedBernoulli(LAYERS, network, sites), {"num_data": 2 * ROWS}
    ours = jax.jit(lambda p: log_density(handlers.seed(guide, 0), (x,), kwargs, p)[0])(
        params | {"first": z1, "second": z2}
    )
    assert float(ours) == pytest.approx(2 * expected, rel=1e-5)  # float32 sums of 30 terms; N / B = 2

    guide = AmortizedBernoulli(LAYERS, network, sites, ppl=pyro)
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    assert guide(torch.tensor(x)).shape == (ROWS, 2)
    store = pyro.get_param_store()
    for name, leaf in zip(list(store), jax.tree.leaves(params), strict=True):
        store[name] = torch.tensor(np.asarray(leaf))
    conditioned = pyro.poutine.condition(guide, {"first": torch.tensor(z1), "second": torch.tensor(z2)})
    trace = pyro.poutine.trace(conditioned).get_trace(torch.tensor(x), num_data=2 * ROWS)
    assert trace.nodes["first"]["fn"].event_shape == (3,) and trace.nodes["first"]["fn"].batch_shape == (ROWS,)
    assert trace.log_prob_sum().item() == pytest.approx(2 * expected, rel=1e-5)


def test_at_its_optimum_the_bound_is_the_evidence():
    """Independent bits, each shown by its own pixel: the posterior, sigma(+-log 9), is in the family."""

    def model(x, num_data=None):
        with numpyro.plate("data", num_data or len(x), subsample_size=len(x)):
            z = numpyro.sample("z1", dist.Bernoulli(logits=jnp.zeros((len(x), 2))).to_event(1))
            numpyro.sample("x", dist.Bernoulli(probs=0.1 + 0.8 * z).to_event(1), obs=x)

    x = np.array([[0, 0], [0, 1], [1, 0], [1, 1]], np.float32)
    run = fit(SVI(model, AmortizedBernoulli((2,)), ScoreFunction(16), optax.adam(0.05)), x, key=0, num_steps=600)
    w, b = (np.float64(v) for v in jax.tree.leaves(run.params["encoder1"]))
    q, p = expit((2 * x - 1) @ w.T + b), expit((2 * x - 1) * np.log(9))
    gap = (q * np.log(q / p) + (1 - q) * np.log((1 - q) / (1 - p))).sum(1)  # log p(x) - bound = KL(q || p)
    assert gap.max() < 0.02  # 0.5 to 2 at the start; the score function's noise leaves some


def test_start_is_away_from_the_logit_whose_gradient_is_wrong():
    """For a blank row and bits all off, at a fresh start: d log q / d bias is z - sigma(logits), layer by layer."""
    guide, x = AmortizedBernoulli(LAYERS), np.zeros((1, PIXELS), np.float32)
    values = {"z1": np.zeros((1, 3)), "z2": np.zeros((1, 2))}
    with handlers.seed(rng_seed=0):
        params = {n: s["value"] for n, s in handlers.trace(guide).get_trace(x).items() if s["type"] == "param"}
    gradient = jax.jit(jax.grad(lambda p: log_density(guide, (x,), {}, p | values)[0]))(params)
    for name in ("encoder1", "encoder2"):
        w, b = jax.tree.leaves(params[name])
        np.testing.assert_allclose(jax.tree.leaves(gradient[name])[1], -expit(b - w.sum(1)), rtol=1e-5)


def test_names_and_values():
    assert AmortizedBernoulli().sites == ("z1",)
    assert AmortizedBernoulli([3, 2, 4]).sites == ("z1", "z2", "z3")
    assert AmortizedBernoulli(3, sites="z") == AmortizedBernoulli((3,), Linear(), ("z",), numpyro)
    assert hash(AmortizedBernoulli(LAYERS, MLP((5,)))) == hash(AmortizedBernoulli(LAYERS, MLP((5,))))


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: AmortizedBernoulli(()), ValueError, "layers is .*expected whole numbers of at least 1"),
        (lambda: AmortizedBernoulli((3, 0)), ValueError, "expected whole numbers of at least 1"),
        (lambda: AmortizedBernoulli((3, 2), sites=("z",)), ValueError, "expected 2 different names"),
        (lambda: AmortizedBernoulli((3, 2), sites=("z", "z")), ValueError, "expected 2 different names"),
        (lambda: AmortizedBernoulli((3,), torch.nn.Linear(3, 4)), TypeError, "network is a Linear; numpyro needs"),
    ],
)
def test_bad_arguments(make, error, message):
    with pytest.raises(error, match=message):
        make()
