"""Deep belief nets of a few units against brute force: densities, bounds, stacking, wake and sleep gradients."""

from __future__ import annotations

import itertools

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from boltzmann_exact import bars_and_stripes
from numpy.testing import assert_allclose
from scipy.optimize import minimize
from scipy.special import expit, logsumexp

from inference import (
    BadData,
    ContrastiveDivergence,
    Incompatible,
    UpDown,
    bracket,
    fit,
    greedy,
)
from ppl_models import RBM, DeepBeliefNetwork, boltzmann_rows

D = 3
NETS = [DeepBeliefNetwork(layers) for layers in ((3,), (2, 3), (3, 2, 2))]
# Slow: of the two with several layers, the one with fewer.
few = [pytest.param(m, id=str(m.num_hidden), marks=pytest.mark.slow if m is NETS[1] else []) for m in NETS]
kinds = pytest.mark.parametrize("model", few)
BITS = [np.array(list(itertools.product((0.0, 1.0), repeat=n))) for n in range(8)]


def random_params(model, seed=0, scale=1.0):
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(lambda: model.initial(jax.random.key(0), jnp.zeros((1, D))))
    return {name: rng.normal(0, scale, shapes[name].shape) for name in sorted(shapes)}


def split(model, h):
    return tuple(np.split(h, np.cumsum(model.num_hidden)[:-1], axis=-1))


def log_bernoulli(log_odds, h):
    return (h * np.log(expit(log_odds)) + (1 - h) * np.log(expit(-log_odds))).sum(-1)


def tables(model, params):
    """log p(v, h) and log q(h | v) of every state, ``(2^D, 2^H)``, by their definitions; and log Z."""
    v, layers = BITS[D][:, None], split(model, BITS[sum(model.num_hidden)])
    units, top = [v, *(h[None] for h in layers)], len(layers)
    biases = [params["visible_bias"], *(params[f"hidden_bias_{n + 1}"] for n in range(top))]

    def minus_energy(g, h):
        return ((g @ params[f"weights_{top}"]) * h).sum(-1) + g @ biases[-2] + h @ biases[-1]

    sizes = (D, *model.num_hidden)
    log_z = logsumexp(minus_energy(BITS[sizes[-2]][:, None], BITS[sizes[-1]][None]))
    log_p = minus_energy(units[-2], units[-1]) - log_z
    inputs = units[-2] @ params[f"weights_{top}"] + biases[-1]
    log_q = log_bernoulli(inputs, units[-1])
    for n in range(1, top):
        log_p = log_p + log_bernoulli(units[n] @ params[f"weights_{n}"].T + biases[n - 1], units[n - 1])
        inputs = units[n - 1] @ params[f"recognition_weights_{n}"] + params[f"recognition_bias_{n}"]
        log_q = log_q + log_bernoulli(inputs, units[n])
    shape = len(v), len(layers[0])
    return np.broadcast_to(log_p, shape), np.broadcast_to(log_q, shape), log_z


@kinds
def test_densities_are_the_definitions_and_the_gap_is_the_kl_divergence(model):
    params = random_params(model)
    log_p, log_q, log_z = tables(model, params)
    exact, v = logsumexp(log_p, 1), BITS[D]
    every = split(model, BITS[sum(model.num_hidden)])
    with jax.enable_x64(True):
        assert float(model.log_partition(params)) == pytest.approx(log_z, abs=1e-12)
        assert_allclose(-model.free_energy(params, v) - log_z, exact, atol=1e-12)
        assert_allclose(model.exact_mean(params), np.exp(exact) @ v, atol=1e-12)
        weights = [model.log_weight(params, np.broadcast_to(row, (len(every[0]), D)), every) for row in v]
        assert_allclose(weights, log_p - log_q + log_z, atol=1e-12)
        bound = (np.exp(log_q) * weights).sum(1) - log_z
        kl = (np.exp(log_q) * (log_q - log_p + exact[:, None])).sum(1)
        assert (kl > -1e-12).all() and (model.num_hidden[1:] == () or kl.max() > 0.1)
        assert_allclose(bound + kl, exact, atol=1e-12)
        found, variance = model.bound(jax.random.key(0), params, v, 4000)
        # five standard errors of eight rows: one false alarm in 200,000 seeds
        assert (np.abs(found - log_z - bound) <= 5 * np.sqrt(variance) + 1e-9).all()
        spread = (np.exp(log_q) * (weights - bound[:, None] - log_z) ** 2).sum(1)
        assert_allclose(variance * 4000, spread, rtol=0.3, atol=1e-12)  # kurtosis below 25: four standard errors


@kinds
def test_layers_and_rows_are_drawn_from_q_and_p(model):
    """Shares of all states within five standard errors; fixed seeds, one false alarm in 10,000."""
    params = {n: np.float32(p) for n, p in random_params(model, 1).items()}
    log_p, log_q, _ = tables(model, params)
    count, row = 20_000, 5

    def close(bits, p):
        index = np.asarray(bits).astype(int) @ 2 ** np.arange(bits.shape[-1])[::-1]
        found = np.bincount(index, minlength=len(p)) / count
        assert (np.abs(found - p) < 5 * np.sqrt(p * (1 - p) / count) + 2 / count).all()

    v = np.tile(np.float32(BITS[D][row]), (count, 1))
    layers = jax.jit(model.sample_layers)(jax.random.key(0), params, v)
    close(np.concatenate(layers, -1), np.exp(log_q[row]))
    machine, top = model.as_rbm(params)
    u = machine.exact_draws(jax.random.key(1), top, count)
    layers = model.layers_given(jax.random.key(2), params, u, machine.sample_hidden(jax.random.key(3), top, u))
    close(np.concatenate(layers, -1), np.exp(log_p).sum(0))
    close(model.exact_draws(jax.random.key(4), params, count), np.exp(log_p).sum(1))


@kinds
def test_wake_and_sleep_gradients_are_those_of_the_enumerated_objectives(model):
    """With every state weighed by q, and by p, in place of draws, against finite differences in float64."""
    params, rows = random_params(model, 2), [1, 3, 6]
    log_p, log_q, _ = tables(model, params)
    every = split(model, BITS[sum(model.num_hidden)])
    states = len(every[0])
    x = np.repeat(BITS[D][rows], states, 0)
    awake = tuple(np.tile(h, (len(rows), 1)) for h in every)
    v, dream = np.repeat(BITS[D], states, 0), tuple(np.tile(h, (len(BITS[D]), 1)) for h in every)
    algorithm = UpDown(model, initial=params)

    def averaged(weights, x, awake, v, dream):
        """The gradient at every state by itself, weighed."""
        one = jax.vmap(lambda *units: algorithm.gradient(params, units[0], units[1], units[2], units[3]))
        each = one(*jax.tree.map(lambda a: jnp.asarray(a)[:, None], (x, awake, v, dream)))
        return {n: np.tensordot(weights, np.asarray(g), 1) for n, g in each.items()}

    with jax.enable_x64(True):
        # The gradient is a sum of a wake part and a dream part: hold either at one state, and take it off again.
        fixed = (BITS[D][:1], tuple(h[:1] for h in every))

        def held(count):
            return jax.tree.map(lambda a: np.repeat(a, count, 0), fixed)

        wake = averaged(np.exp(log_q[rows]).ravel() / len(rows), x, awake, *held(len(x)))
        sleep = averaged(np.exp(log_p).ravel(), *held(len(v)), v, dream)
        both = averaged(np.ones(1), *fixed, *fixed)
    found = {n: wake[n] + sleep[n] - both[n] for n in params}

    def wake_objective(p):
        return (np.exp(log_q[rows]) * tables(model, p)[0][rows]).sum() / len(rows)

    def sleep_objective(p):
        return (np.exp(log_p) * tables(model, p)[1]).sum()

    for name, value in params.items():
        objective = sleep_objective if "recognition" in name else wake_objective
        for index in itertools.islice(np.ndindex(value.shape), 4):
            step = np.zeros_like(value)
            step[index] = 1e-5
            slope = objective(params | {name: value + step}) - objective(params | {name: value - step})
            assert found[name][index] == pytest.approx(-slope / 2e-5, abs=1e-8)  # h², and rounding over h


def test_a_tied_top_leaves_the_bound_exact_and_learning_it_never_lowers_the_bound():
    """The theorem of greedy stacking, enumerated: the new top climbs its likelihood under q, and the bound rises."""
    below = {n: np.float64(p) for n, p in random_params(DeepBeliefNetwork((2,)), 3).items()}
    first = {
        "weights": below["weights_1"],
        "visible_bias": below["visible_bias"],
        "hidden_bias": below["hidden_bias_1"],
    }
    upside_down = {
        "weights": first["weights"].T,
        "visible_bias": first["hidden_bias"],
        "hidden_bias": first["visible_bias"],
    }
    net, v, rbm = DeepBeliefNetwork((2, D)), BITS[D], RBM(2)
    rows = np.array([0.5, 0, 0, 0.2, 0, 0, 0.3, 0])  # shares of the rows of a data set

    with jax.enable_x64(True):
        p_first = np.asarray(-rbm.free_energy(first, v) - rbm.log_partition(first))
        params = net.stacked([first, upside_down])
        log_p, log_q, _ = tables(net, params)
        assert_allclose(logsumexp(log_p, 1), p_first, atol=1e-12)
        assert_allclose((np.exp(log_q) * (log_p - log_q)).sum(1), p_first, atol=1e-12)  # q is the posterior

        hidden = expit(v @ first["weights"] + first["hidden_bias"])
        states = BITS[2]
        aggregate = rows @ np.prod(np.where(states[None] > 0, hidden[:, None], 1 - hidden[:, None]), -1)
        top = RBM(D)
        flat, unravel = jax.flatten_util.ravel_pytree(jax.tree.map(jnp.asarray, upside_down))

        @jax.jit
        def loss(flat):
            part = unravel(flat)
            return aggregate @ top.free_energy(part, states) + top.log_partition(part)

        seen = [flat]
        options = {"maxiter": 30}
        minimize(
            lambda f: float(loss(f)), flat, jac=jax.grad(loss), method="BFGS", options=options, callback=seen.append
        )
        likelihoods, bounds = [], []
        for part in map(unravel, seen):
            log_p, log_q, _ = tables(net, jax.tree.map(np.asarray, net.stacked([first, part])))
            bounds.append(rows @ (np.exp(log_q) * (log_p - log_q)).sum(1))
            likelihoods.append(-float(loss(jax.flatten_util.ravel_pytree(part)[0])))
    assert len(seen) > 5 and (np.diff(likelihoods) > -1e-12).all()
    assert (np.diff(bounds) > -1e-12).all() and bounds[-1] > bounds[0] + 0.01
    assert_allclose(np.diff(bounds), np.diff(likelihoods), atol=1e-9)  # p(v | h) and q stay: only the top's part moves


@pytest.fixture(scope="module")
def learned():
    x = bars_and_stripes(3)
    model, quiet = DeepBeliefNetwork((8, 6)), {"key": 0, "progress": False}
    start = greedy(
        model, x, lambda rbm: ContrastiveDivergence(rbm, k=5, optimizer=optax.sgd(0.1)), num_steps=3000, **quiet
    )
    rate = optax.linear_schedule(0.1, 0.002, 6000)
    return start, fit(UpDown(model, start, k=5, optimizer=optax.sgd(rate)), x, num_steps=6000, **quiet)


def exact_bound(model, params, x):
    params = jax.tree.map(jnp.asarray, params)
    rows, _ = jax.jit(model.bound, static_argnums=3)(jax.random.key(9), params, x, 4000)
    return float(rows.mean() - model.log_partition(params))


@pytest.mark.slow
def test_fine_tuning_raises_the_bound_of_bars_and_stripes(learned):
    """Above what stacking found, below log p(v), which is below the ceiling of -2.60 nats."""
    start, run = learned
    x, model = run.data.arrays["x"], run.model
    exact = float((-model.free_energy(run.params, x) - model.log_partition(run.params)).mean())
    found = run.log_likelihood(x)
    assert found.is_exact and found.is_bound and str(found).startswith("variational bound, ")
    assert exact_bound(model, start, x) + 0.05 < found.mean < exact + 4 * found.mc_error
    assert found.mean > -4.0 and exact <= -2.5993 + 1e-4  # independent pixels have -6.24


@pytest.mark.slow
def test_questions_to_a_fit(learned, monkeypatch):
    _, run = learned
    x = run.data.arrays["x"]
    kept = {tuple(row) for row in x}
    drawn = run.generate(200)["x"]
    assert drawn.shape == (200, 9) and np.mean([tuple(row) in kept for row in drawn]) > 0.3  # 14 of 512 by chance
    layers = run.sample_posterior(x, 5)
    assert layers["h_1"].shape == (5, 16, 8) and layers["h_2"].shape == (5, 16, 6)
    assert np.abs(run.reconstruct(x)["x"] - x).mean() < 0.3
    data = run.to_arviz()
    assert data.machine["free_energy"].shape == (20, 200) and data.log_likelihood["x"].shape == (16,)
    exact = run.log_likelihood(x)
    monkeypatch.setattr(boltzmann_rows, "MAX_UNITS", 0)
    jax.clear_caches()
    found = bracket(run, x, betas=np.linspace(0, 1, 1000))
    assert not found.is_exact and str(found).startswith("variational bound, [")
    for end in (found.reverse, found.forward):  # three standard errors each, the seed is fixed
        assert abs(end.mean - exact.mean) < 3 * np.hypot(end.mc_error, exact.mc_error) < 1
    assert "log_likelihood" not in run.to_arviz().groups()
    jax.clear_caches()


def test_bad_input():
    model, x = DeepBeliefNetwork((3, 2)), bars_and_stripes(2)
    start = model.initial(jax.random.key(0), x)
    with pytest.raises(
        ValueError, match=r"DeepBeliefNetwork: num_hidden is \(3, -1\); expected whole numbers of at least 1"
    ):
        DeepBeliefNetwork((3, -1))
    with pytest.raises(ValueError, match="UpDown: initial is None; it fine-tunes.*Give initial=inference.greedy"):
        UpDown(model)
    with pytest.raises(ValueError, match="UpDown: k is 0; expected a whole number of at least 1"):
        UpDown(model, start, k=0)
    with pytest.raises(Incompatible, match="UpDown needs a deep belief network, and RBM has no generative_log_prob"):
        UpDown(RBM(2), start)
    with pytest.raises(Incompatible, match="UpDown's initial has shapes .*DeepBeliefNetwork on these rows takes"):
        fit(UpDown(model, {"weights_1": np.zeros(2)}), x, key=0, num_steps=1)
    with pytest.raises(BadData, match=r"outside its likelihood's support, boolean: row 1 holds 0\.5"):
        fit(UpDown(model, start), np.where(np.arange(8)[:, None] == 1, 0.5, x), key=0, num_steps=1)
    large = DeepBeliefNetwork((11, 2))
    with pytest.raises(ValueError, match=r"too large to enumerate: .* the 2\^11 states of a layer of 11 units"):
        large.free_energy(large.initial(jax.random.key(0), x), x)
