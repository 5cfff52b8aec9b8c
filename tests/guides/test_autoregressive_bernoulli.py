"""The autoregressive Bernoulli guide: a density that sums to one, draws that follow it, dependence, complaints."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import optax
import pyro
import pytest
import torch
from array_api_compat import array_namespace
from numpyro import handlers
from scipy import stats
from scipy.special import expit

from guides import AutoregressiveBernoulli
from guides.autoregressive_bernoulli import _AutoregressiveBits
from guides.autoregressive_torch import AutoregressiveBits
from inference import SVI, PyroSVI, fit
from inference.objectives import ScoreFunction
from ppl_models.networks import MLP

BITS = 4
STATES = (np.arange(2**BITS)[:, None] >> np.arange(BITS) & 1).astype(np.float32)
RNG = np.random.default_rng(0)
OFFSETS, LATERAL = (RNG.normal(size=s).astype(np.float32) for s in ((3, BITS), (BITS, BITS)))


def by_hand(z, offsets):
    """log q(z), bit after bit, in float64."""
    total = 0.0
    for i in range(BITS):
        p = expit(np.float64(offsets[i]) + sum(np.float64(LATERAL[i, j]) * (2 * z[j] - 1) for j in range(i)))
        total += np.log(p if z[i] == 1 else 1 - p)
    return total


def expected():
    return np.array([[by_hand(z, offsets) for offsets in OFFSETS] for z in STATES])  # (states, rows)


def test_density_by_hand_sums_to_one_in_both_engines():
    ours = jax.jit(_AutoregressiveBits(OFFSETS, LATERAL).log_prob)(STATES[:, None])
    theirs = AutoregressiveBits(torch.tensor(OFFSETS), torch.tensor(LATERAL)).log_prob(torch.tensor(STATES[:, None]))
    for rows in (np.asarray(ours), theirs.numpy()):
        np.testing.assert_allclose(rows, expected(), atol=5e-6)  # float32: values to about 10
        np.testing.assert_allclose(np.exp(np.float64(rows)).sum(0), 1, atol=1e-5)


def test_gradient_is_right_at_logit_zero():
    """d log q / d offset is z - sigma(0) at a fresh start, where NumPyro's own Bernoulli says z."""
    gradient = jax.grad(lambda o: _AutoregressiveBits(o, jnp.zeros((BITS, BITS))).log_prob(STATES).sum())
    np.testing.assert_allclose(gradient(jnp.zeros((2**BITS, BITS))), STATES - 0.5)


@pytest.mark.parametrize("engine", ["numpyro", "pyro"])
def test_draws_follow_the_density(engine):
    """Chi-squared over the 16 states of 3 rows, refused below 1e-6: a false alarm in 160,000 seeds of both."""
    draws = 20_000
    if engine == "numpyro":
        q = _AutoregressiveBits(jnp.asarray(OFFSETS), jnp.asarray(LATERAL))
        z = np.asarray(jax.jit(lambda key: q.sample(key, (draws,)))(jax.random.key(0)))
        assert z.dtype == np.int32
    else:
        torch.manual_seed(0)
        z = AutoregressiveBits(torch.tensor(OFFSETS), torch.tensor(LATERAL)).sample((draws,)).numpy()
    assert z.shape == (draws, 3, BITS)
    for row in range(3):
        counts = np.bincount(z[:, row].astype(int) @ 2 ** np.arange(BITS), minlength=2**BITS)
        frequencies = draws * np.exp(expected()[:, row])
        assert frequencies.min() > 5
        assert stats.chisquare(counts, frequencies * draws / frequencies.sum()).pvalue > 1e-6


def test_engines_agree_on_the_guide():
    x = STATES[:5]
    z = STATES[5:10]
    guide = AutoregressiveBernoulli(BITS, MLP((3,)), site="latent")
    with handlers.seed(rng_seed=0), handlers.substitute(data={"latent": z, "lateral": LATERAL}):
        trace = handlers.trace(guide).get_trace(x, num_data=10)
    site = trace["latent"]
    assert site["fn"].batch_shape == (5,) and site["fn"].event_shape == (BITS,) and not site["fn"].has_rsample
    ours = float(site["scale"] * site["fn"].log_prob(z).sum())

    guide = AutoregressiveBernoulli(BITS, MLP((3,)), site="latent", ppl=pyro)
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    assert guide(torch.tensor(x)).shape == (5, BITS)
    store = pyro.get_param_store()
    for name, leaf in zip(
        [n for n in store if n != "lateral"], jax.tree.leaves(trace["encoder"]["value"]), strict=True
    ):
        store[name] = torch.tensor(np.asarray(leaf))
    store["lateral"] = torch.tensor(LATERAL)
    conditioned = pyro.poutine.condition(guide, {"latent": torch.tensor(z)})
    theirs = pyro.poutine.trace(conditioned).get_trace(torch.tensor(x), num_data=10).log_prob_sum()
    assert ours == pytest.approx(theirs.item(), rel=1e-5)


def explained_away(ppl):
    """Two causes of one pixel, x = z_1 or z_2 but for noise: given x = 1, three of four states share the posterior."""

    def model(x, num_data=None):
        bernoulli = ppl.distributions.Bernoulli
        half = array_namespace(x).full((len(x), 2), 0.5)
        with ppl.plate("data", num_data or len(x), subsample_size=len(x)):
            z = ppl.sample("z", bernoulli(probs=half).to_event(1))
            either = 1 - (1 - z[..., :1]) * (1 - z[..., 1:])
            ppl.sample("x", bernoulli(probs=0.01 + 0.98 * either).to_event(1), obs=x)

    return model


def test_at_its_optimum_the_bound_is_the_evidence():
    """The posterior of two dependent bits, to which no factorised guide comes nearer than 0.26 nats."""
    x, model, z = np.ones((8, 1), np.float32), explained_away(numpyro), STATES[:4, :2]
    run = fit(SVI(model, AutoregressiveBernoulli(2), ScoreFunction(16), optax.adam(0.05)), x, key=0, num_steps=500)
    w, b = jax.tree.leaves(run.params["encoder"])
    log_q = np.asarray(_AutoregressiveBits(w[:, 0] + b, run.params["lateral"]).log_prob(z), np.float64)
    log_p = np.log(np.where(z.any(1), 0.99, 0.01))
    log_p -= np.logaddexp.reduce(log_p)

    def gap(log_q):
        return (np.exp(log_q) * (log_q - log_p)).sum(-1)  # log p(x) - bound = KL(q || p)

    assert gap(log_q) < 0.02  # 0.5 at the start; the score function's noise leaves some
    p = np.stack(np.meshgrid(*[np.linspace(0.01, 0.99, 99)] * 2), -1)[..., None, :]
    assert gap(np.log(np.where(z, p, 1 - p)).sum(-1)).min() > 0.25  # of every factorised one


def test_pyro_runs_it():
    x = np.ones((8, 1), np.float32)
    algorithm = PyroSVI(
        explained_away(pyro), AutoregressiveBernoulli(2, ppl=pyro), ScoreFunction(2), torch.optim.Adam, {"lr": 0.1}
    )
    run = fit(algorithm, x, key=0, num_steps=3)
    assert np.isfinite(run.history["bound"]).all() and np.abs(run.params["lateral"][1, 0]) > 0


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: AutoregressiveBernoulli(0), ValueError, "num_bits is 0; expected a whole number"),
        (lambda: AutoregressiveBernoulli(2, site=""), ValueError, "expected the name of a latent site"),
        (lambda: AutoregressiveBernoulli(2, torch.nn.Linear(3, 4)), TypeError, "network is a Linear; numpyro needs"),
    ],
)
def test_bad_arguments(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_an_unchanged_guide_is_an_equal_value():
    assert AutoregressiveBernoulli(3) == AutoregressiveBernoulli(3, site="z", ppl=numpyro)
    assert hash(AutoregressiveBernoulli(3, MLP((4,)))) == hash(AutoregressiveBernoulli(3, MLP((4,))))
