"""Relaxed binary and one-hot draws: what is exact about them is exact, and what is biased is shown to be.

False alarms: means are z-tests at |z| < 5 (5.7e-7 two-sided) and distributions Kolmogorov-Smirnov tests at p > 1e-6;
with fewer than 60 of them the file raises a false alarm less than once in 10,000 seeds, and the seeds are fixed.
"""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from jax.nn import log_sigmoid, sigmoid
from numpyro import handlers
from numpyro.infer import SVI as NumPyroSVI
from scipy import stats

from inference.errors import Incompatible
from inference.objectives import ELBO, IWAE, ScoreFunction
from inference.objectives.kl_control import Beta
from inference.objectives.relaxation import GumbelSoftmax, StraightThrough
from inference.programs import anatomy
from inference.relaxation import RelaxedBernoulli, RelaxedOneHot, gumbel_softmax, straight_through

DRAWS = 20_000
KEY = jax.random.key(0)


def traced(program, seed=0):
    with handlers.seed(rng_seed=seed):
        return handlers.trace(program).get_trace()


def z_scores(samples, truth):
    """Of the mean over the first axis."""
    samples = np.asarray(samples, np.float64)
    return (samples.mean(0) - truth) / (samples.std(0) / np.sqrt(len(samples)) + 1e-12)


# --- the draws -----------------------------------------------------------------------------------
def drawn(kind, program, temperature):
    """Values of z, compiled once for all temperatures."""
    return np.asarray(jax.jit(lambda t: traced(kind(program, t))["z"]["value"])(temperature))


@pytest.mark.parametrize("temperature", [0.1, 0.5, 2.0])
def test_binary_draws_have_the_concrete_distribution_and_their_rounding_the_bernoulli(temperature):
    logits = jnp.array([-1.5, 0.0, 0.8])

    def program():
        with numpyro.plate("draws", DRAWS):
            numpyro.sample("z", dist.Bernoulli(logits=logits).to_event(1))

    s, h = (drawn(kind, program, temperature) for kind in (gumbel_softmax, straight_through))
    assert s.shape == h.shape == (DRAWS, 3)
    s = s.astype(np.float64)
    assert np.array_equal(h, s > 0.5)  # one key: the hard value is the relaxed one, rounded, and exactly 0 or 1
    assert (np.abs(z_scores(h, sigmoid(logits))) < 5).all()
    inside = (s > 1e-6) & (s < 1 - 1e-6)  # float32 near the ends is rounded; P(s <= v) = sigmoid(t logit(v) - l)
    for j, logit in enumerate(np.asarray(logits, np.float64)):
        u = 1 / (1 + np.exp(logit - temperature * np.log(s[inside[:, j], j] / (1 - s[inside[:, j], j]))))
        low, high = (1 / (1 + np.exp(logit - temperature * np.log(v / (1 - v)))) for v in (1e-6, 1 - 1e-6))
        assert stats.kstest((u - low) / (high - low), "uniform").pvalue > 1e-6


def test_one_hot_draws_lie_on_the_simplex_and_their_argmax_is_categorical():
    probs = jnp.array([0.2, 0.5, 0.3])

    def program():
        with numpyro.plate("draws", DRAWS):
            numpyro.sample("z", dist.Multinomial(1, probs=probs))

    s, h = (drawn(kind, program, 0.5) for kind in (gumbel_softmax, straight_through))
    np.testing.assert_allclose(s.sum(-1), 1, atol=1e-6)  # float32
    assert np.array_equal(h, np.eye(3)[s.argmax(-1)])
    assert (np.abs(z_scores(h, probs)) < 5).all()
    # Between two categories the softmax of Gumbels is the sigmoid of a Logistic: log s_1 - log s_2 = (l + L) / t.
    score = 0.5 * (np.log(s[:, 0]) - np.log(s[:, 1]))
    keep = np.isfinite(score)
    assert keep.mean() > 0.999
    assert stats.kstest(score[keep], "logistic", args=(np.log(0.2 / 0.5), 1)).pvalue > 1e-6


def test_the_hard_draw_has_the_gradient_of_the_relaxed_one():
    def value(kind, logit):
        return kind(lambda: numpyro.sample("z", dist.Bernoulli(logits=logit)), 0.7)

    def gradient(kind):
        run = jax.vmap(jax.grad(lambda logit, key: handlers.seed(value(kind, logit), key)()), (None, 0))
        return jax.jit(run)(0.4, jax.random.split(KEY, 50))

    np.testing.assert_array_equal(gradient(gumbel_softmax), gradient(straight_through))
    assert np.abs(gradient(gumbel_softmax)).min() > 0


# --- log mass, extended --------------------------------------------------------------------------
def test_log_mass_is_numpyros_at_the_corners_and_linear_between():
    logits = jnp.array([-3.0, 0.7, 12.0])
    ours, theirs = RelaxedBernoulli(logits, 0.5, None), dist.Bernoulli(logits=logits)
    np.testing.assert_allclose(ours.log_prob(jnp.zeros(3)), theirs.log_prob(0), rtol=1e-6)
    np.testing.assert_allclose(ours.log_prob(jnp.ones(3)), theirs.log_prob(1), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(
        ours.log_prob(jnp.full(3, 0.3)), 0.7 * theirs.log_prob(0) + 0.3 * theirs.log_prob(1), rtol=1e-6
    )
    ours, theirs = RelaxedOneHot(logits, 0.5, None), dist.Multinomial(1, logits=logits)
    corners = jnp.eye(3)
    np.testing.assert_allclose(ours.log_prob(corners), theirs.log_prob(corners), rtol=1e-6, atol=1e-6)
    weights = jnp.array([0.2, 0.5, 0.3])
    np.testing.assert_allclose(ours.log_prob(weights), weights @ theirs.log_prob(corners), rtol=1e-6)


@pytest.mark.parametrize("kind", [gumbel_softmax, straight_through])
def test_no_nan_however_sure_the_guide_and_however_cold(kind):
    def loss(scale, temperature, key):
        logits = scale * jnp.array([-1.0, -1e-3, 1e-3, 1.0])

        def program():
            numpyro.sample("z", dist.Bernoulli(logits=logits).to_event(1))
            numpyro.sample("p", dist.Bernoulli(probs=sigmoid(logits)).to_event(1))
            numpyro.sample("one", dist.Multinomial(1, logits=logits))

        with handlers.seed(rng_seed=key):
            tr = handlers.trace(kind(program, temperature)).get_trace()
        return sum(jnp.sum(s["fn"].log_prob(s["value"])) + jnp.sum(s["value"]) for s in tr.values())

    run = jax.jit(jax.vmap(jax.value_and_grad(loss), (None, None, 0)))
    for temperature in (1e-3, 0.1, 2.0):
        values, gradients = run(1e4, temperature, jax.random.split(KEY, 200))
        assert jnp.isfinite(values).all() and jnp.isfinite(gradients).all()
    edge = RelaxedBernoulli(jnp.array([-jnp.inf, jnp.inf]), 0.5, None)  # probabilities 0 and 1
    np.testing.assert_array_equal(edge.log_prob(jnp.array([0.0, 1.0])), 0)


# --- which sites ---------------------------------------------------------------------------------
def test_sites_keep_plates_events_masks_and_supports():
    p = jnp.array([0.3, 0.6])

    def program():
        numpyro.sample("x", dist.Bernoulli(0.5), obs=1)
        numpyro.sample("real", dist.Normal(0, 1))
        numpyro.sample("count", dist.Poisson(3.0))
        with numpyro.plate("data", 5):
            numpyro.sample("scalar", dist.Bernoulli(0.3))
            numpyro.sample("vector", dist.Bernoulli(probs=p).to_event(1))
            numpyro.sample("masked", dist.Bernoulli(logits=0.1).mask(jnp.arange(5) > 2))
            numpyro.sample("one", dist.Multinomial(1, probs=p / p.sum()))
            numpyro.sample("two", dist.Multinomial(2, probs=p / p.sum()))

    before, after = anatomy(program), anatomy(gumbel_softmax(program, 0.5))
    changed = {"scalar", "vector", "masked", "one"}
    assert after.pathwise - before.pathwise == changed
    assert after.discrete == before.discrete  # the supports stay, so that the guide still fits its model
    assert (after.shapes, after.values, after.frames) == (before.shapes, before.values, before.frames)
    assert anatomy(gumbel_softmax(program, 0.5, frozenset({"one"}))).pathwise == {"real", "one"}

    @jax.jit
    def masked():
        site = traced(gumbel_softmax(program, 0.5))["masked"]
        return site["fn"].log_prob(site["value"])

    assert np.array_equal(masked() == 0, [True, True, True, False, False])


def test_an_integer_categorical_is_refused_and_the_message_says_what_to_do():
    def program():
        numpyro.sample("z", dist.Categorical(jnp.ones(3) / 3))

    with pytest.raises(Incompatible, match=r"'z' is an integer Categorical.*Multinomial\(1"):
        traced(gumbel_softmax(program, 0.5))


def test_relaxed_programs_are_values():
    def program():
        numpyro.sample("z", dist.Bernoulli(0.5))

    assert gumbel_softmax(program, 0.5) == gumbel_softmax(program, 0.5) != straight_through(program, 0.5)
    assert hash(gumbel_softmax(program, 0.5)) == hash(gumbel_softmax(program, 0.5))


# --- bias, and its limit -------------------------------------------------------------------------
def cost(z):
    """Not linear in the bits, so that a relaxed expectation is another one."""
    return (z[..., 0] * z[..., 1] - 0.45) ** 2 + jnp.sin(3 * z[..., 2] - z[..., 0])


LOGITS = jnp.array([0.4, -0.3, 1.0])


def test_the_cold_limit_is_the_discrete_expectation():
    states = jnp.array(list(itertools.product([0.0, 1.0], repeat=3)))
    probs = jnp.exp(dist.Bernoulli(logits=LOGITS).to_event(1).log_prob(states))
    truth = float(probs @ cost(states))

    def values(kind, temperature):
        def program():
            return numpyro.sample("z", dist.Bernoulli(logits=LOGITS).expand([DRAWS, 3]).to_event(1))

        return cost(drawn(kind, program, temperature))

    assert abs(z_scores(values(straight_through, 1.0), truth)) < 5  # hard draws at any temperature
    assert abs(z_scores(values(gumbel_softmax, 1e-3), truth)) < 5
    biases = [abs(float(values(gumbel_softmax, t).mean()) - truth) for t in (1.0, 0.3, 0.05)]
    assert biases[0] > biases[1] > biases[2] > 0
    assert abs(z_scores(values(gumbel_softmax, 1.0), truth)) > 20


def test_both_gradients_are_those_of_their_formulas_and_biased():
    logit, temperature = 0.4, 0.5

    def square(z):
        return (z - 0.45) ** 2

    exact = float(sigmoid(logit) * (1 - sigmoid(logit)) * (square(1.0) - square(0.0)))
    # Expectations over L = logit(u) by the midpoint rule on u, with 10^5 cells.
    u = (np.arange(100_000) + 0.5) / 100_000
    score = logit + np.log(u / (1 - u))
    s = 1 / (1 + np.exp(-score / temperature))
    slope = s * (1 - s) / temperature
    formulas = {
        gumbel_softmax: float(np.mean(2 * (s - 0.45) * slope)),
        straight_through: float(np.mean(2 * ((score > 0) - 0.45) * slope)),
    }
    for kind, truth in formulas.items():

        def value(logit, key, kind=kind):
            program = kind(lambda: numpyro.sample("z", dist.Bernoulli(logits=logit)), temperature)
            return square(handlers.seed(program, key)())

        samples = jax.jit(jax.vmap(jax.grad(value), (None, 0)))(logit, jax.random.split(KEY, DRAWS))
        assert abs(z_scores(samples, truth)) < 5
        assert abs(z_scores(samples, exact)) > 10


# --- objectives ----------------------------------------------------------------------------------
X = jnp.array([0.6, -1.0, 1.7])


def model(x, num_data=None):
    w = numpyro.param("w", 1.2)
    with numpyro.plate("data", num_data or len(x), subsample_size=len(x)):
        a = numpyro.sample("a", dist.Bernoulli(probs=0.3))  # a probability: NumPyro's log mass refuses fractions
        b = numpyro.sample("b", dist.Bernoulli(logits=w * a - 0.5))
        numpyro.sample("x", dist.Normal(w * a - b, 1.0), obs=x)


def guide(x, num_data=None):
    c = numpyro.param("c", 0.7)
    with numpyro.plate("data", num_data or len(x), subsample_size=len(x)):
        a = numpyro.sample("a", dist.Bernoulli(logits=c * x))
        numpyro.sample("b", dist.Bernoulli(logits=0.2 - a))


PARAMS = {"w": jnp.array(1.2), "c": jnp.array(0.7)}


def log_w(params, x, a, b):
    def mass(bit, logit):
        return bit * log_sigmoid(logit) + (1 - bit) * log_sigmoid(-logit)

    p = mass(a, jnp.log(0.3 / 0.7)) + mass(b, params["w"] * a - 0.5)
    q = mass(a, params["c"] * x) + mass(b, 0.2 - a)
    return p - 0.5 * (x - params["w"] * a + b) ** 2 - 0.5 * jnp.log(2 * jnp.pi) - q, q


def exact_elbo(params):
    total = 0.0
    for a, b in itertools.product([0.0, 1.0], repeat=2):
        weight, q = log_w(params, X, a, b)
        total += jnp.sum(jnp.exp(q) * weight)
    return total


def losses(objective, count=4000):
    run = jax.jit(jax.vmap(jax.value_and_grad(lambda p, k: objective.loss(k, p, model, guide, X)), (None, 0)))
    return run(PARAMS, jax.random.split(KEY, count))


def test_straight_through_keeps_the_value_of_the_inner_bound_and_the_models_gradient():
    value, gradient = losses(StraightThrough(ELBO(), 0.5))
    truth, exact = jax.jit(jax.value_and_grad(exact_elbo))(PARAMS)
    assert abs(z_scores(value, -float(truth))) < 5
    assert abs(z_scores(gradient["w"], -float(exact["w"]))) < 5  # at fixed hard draws it is exact
    assert abs(z_scores(gradient["c"], -float(exact["c"]))) > 5  # and the guide's is biased


def test_relaxed_bounds_are_those_of_relaxed_values():
    """Both programs' log masses at the same relaxed values, by quadrature over the two noises."""
    temperature = 0.6
    u = (np.arange(400) + 0.5) / 400
    noise = jnp.asarray(np.log(u / (1 - u)))

    def relaxed(params):
        first, second = noise[:, None, None], noise[None, :, None]
        a = sigmoid((params["c"] * X + first) / temperature)
        b = sigmoid((0.2 - a + second) / temperature)
        return jnp.sum(jnp.mean(log_w(params, X, a, b)[0], axis=(0, 1)))

    truth, exact = jax.jit(jax.value_and_grad(relaxed))(PARAMS)
    value, gradient = losses(GumbelSoftmax(ELBO(), temperature))
    assert abs(z_scores(value, -float(truth))) < 5
    for name in PARAMS:
        assert abs(z_scores(gradient[name], -float(exact[name]))) < 5
    assert abs(float(truth) - float(exact_elbo(PARAMS))) > 0.05  # no bound on the evidence


def test_cold_relaxed_bounds_tend_to_the_exact_one():
    value, _ = losses(GumbelSoftmax(ELBO(), 1e-3))
    assert abs(z_scores(value, -float(exact_elbo(PARAMS)))) < 5


@pytest.mark.parametrize(
    "inner", [IWAE(3), *(pytest.param(o, marks=pytest.mark.slow) for o in (Beta(ELBO(), 0.5), ScoreFunction(2)))]
)
def test_any_objective_can_be_inside(inner):
    objective = GumbelSoftmax(inner, 0.5)
    svi = NumPyroSVI(model, objective.guide(guide), numpyro.optim.Adam(1e-2), objective)
    state = svi.init(KEY, X)
    before = svi.get_params(state)
    state, loss = svi.update(state, X)
    after = svi.get_params(state)
    assert jnp.isfinite(loss) and all(before[n] != after[n] for n in PARAMS)


def test_a_temperature_schedule_follows_the_steps():
    schedule = optax.exponential_decay(2.0, 1, 0.1)
    scheduled = GumbelSoftmax(ELBO(), schedule)
    svi = NumPyroSVI(model, scheduled.guide(guide), numpyro.optim.SGD(0.0), scheduled)
    state = svi.init(KEY, X)
    for temperature in (2.0, 0.2, 0.02):
        constant = GumbelSoftmax(ELBO(), temperature)
        key = jax.random.split(state.rng_key)[1]
        expected = constant.loss(key, PARAMS, model, guide, X)
        state, loss = svi.update(state, X)
        np.testing.assert_allclose(loss, expected, rtol=1e-5)


def test_one_hot_sites_train_to_the_posterior():
    """A mixture whose components are known: the best guide is the posterior, and colder is closer to it."""
    means = jnp.array([-2.0, 0.5, 3.0])

    def mixture(x):
        with numpyro.plate("data", len(x)):
            k = numpyro.sample("k", dist.Multinomial(1, probs=jnp.array([0.5, 0.3, 0.2])))
            numpyro.sample("x", dist.Normal(k @ means, 1.0), obs=x)

    def guess(x):
        logits = numpyro.param("logits", jnp.zeros((len(x), 3)))
        with numpyro.plate("data", len(x)):
            numpyro.sample("k", dist.Multinomial(1, logits=logits))

    joint = jnp.log(jnp.array([0.5, 0.3, 0.2])) - 0.5 * (X[:, None] - means) ** 2
    posterior = jax.nn.softmax(joint)

    @jax.jit
    def trained(temperature):
        objective, adam = ELBO(num_particles=50), optax.adam(optax.cosine_decay_schedule(0.05, 600))

        def loss(logits, key):
            relaxed = (gumbel_softmax(program, temperature, frozenset({"k"})) for program in (mixture, guess))
            return objective.loss(key, {"logits": logits}, *relaxed, X)

        def step(state, key):
            logits, optimizer = state
            updates, optimizer = adam.update(jax.grad(loss)(logits, key), optimizer)
            return (optax.apply_updates(logits, updates), optimizer), None

        start = jnp.zeros((len(X), 3))
        (logits, _), _ = jax.lax.scan(step, (start, adam.init(start)), jax.random.split(KEY, 600))
        return jnp.abs(jax.nn.softmax(logits) - posterior).max()

    warm, cold = trained(1.0), trained(0.1)
    assert cold < 0.05 and cold < warm / 2
