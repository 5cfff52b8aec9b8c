"""Contrastive divergence: its gradient by enumeration, what centring changes and what not, and what it learns."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from boltzmann_exact import (
    BITS,
    MACHINES,
    D,
    bars_and_stripes,
    draws,
    energy,
    log_partition,
    random_params,
    shifting_bar,
)
from scipy.special import logsumexp

from inference import BadData, ContrastiveDivergence, Incompatible, NonFinite, Tempering, couplings, fit
from inference.block_gibbs import Chains
from inference.protocols import Batch
from ppl_models import PPCA, RBM, BoltzmannMachine, GaussianRBM

kinds = pytest.mark.parametrize("kind", MACHINES)
UNIT = optax.sgd(1.0)  # parameters move by minus the gradient


def batch_of(x):
    return Batch({"x": jnp.asarray(x)}, jnp.arange(len(x)), len(x))


def free_energy(machine, params, v):
    """By its definition, in float64."""
    h = BITS[machine.num_hidden]
    return -logsumexp(-energy(machine, params, v[:, None], np.broadcast_to(h, (len(v), *h.shape))), -1)


def central_differences(function, params, step=1e-5):
    """Of a function of parameters with any shape of values, entry by entry: ``(*entry, *value)``."""
    out = {}
    for name, value in params.items():
        flat = []
        for index in np.ndindex(*value.shape):
            ends = []
            for sign in (1, -1):
                moved = np.float64(value).copy()
                moved[index] += sign * step
                ends.append(function(params | {name: moved}))
            flat.append((ends[0] - ends[1]) / (2 * step))
        out[name] = np.reshape(flat, (*value.shape, *np.shape(flat[0])))
    return out


@kinds
def test_the_exact_gradient_against_finite_differences(kind):
    """Of the mean log likelihood of rows, every parameter; 1e-7 is what differences at 1e-5 leave in float64."""
    machine = MACHINES[kind]
    params = {n: np.float64(v) for n, v in random_params(machine, 4).items()}
    x = draws(machine, params, 20, 0)[0]

    def mean(params):
        return (-free_energy(machine, params, np.float64(x))).mean() - log_partition(machine, params)

    with jax.enable_x64(True):
        found = jax.jit(jax.grad(lambda p: -machine.free_energy(p, x).mean() - machine.log_partition(p)))(params)
    for name, expected in central_differences(mean, params).items():
        np.testing.assert_allclose(found[name], expected, atol=1e-7, err_msg=name)


def kernel(machine, params, x):
    """Probabilities of the visible states after a sweep from each row: sum_h p(h | v) p(v' | h), by enumeration.

    Coupled visible units are drawn in order: p(v' | v, h) = prod_i p(v'_i | v'_1 .. v'_{i-1}, v_{i+1} .., h).
    """
    v, h = BITS[D], BITS[machine.num_hidden]
    out = np.zeros((len(x), len(v)))
    for n, hidden in itertools.product(range(len(x)), h):
        log_joint = -energy(machine, params, np.tile(x[n], (len(h), 1)), h)
        p_hidden = np.exp(-energy(machine, params, x[n], hidden) - logsumexp(log_joint))
        for s, new in enumerate(v):
            p, at = 1.0, np.float64(x[n]).copy()
            for i in range(D):
                both = np.stack([np.where(np.arange(D) == i, value, at) for value in (0.0, 1.0)])
                log_p = -energy(machine, params, both, np.tile(hidden, (2, 1)))
                p *= np.exp(log_p - logsumexp(log_p))[int(new[i])]
                at[i] = new[i]
            out[n, s] += p_hidden * p
    return out


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("kind", ["RBM", "general", "fully visible"])
def test_expected_gradient_of_k_sweeps_is_that_of_the_enumerated_kernel(kind, k):
    """Mean of 4,000 steps, each entry within 4.5 standard errors: of 40 entries, a false alarm in 3,000 seeds."""
    machine = MACHINES[kind]
    params = random_params(machine, 6)
    x = draws(machine, random_params(machine, 7), 6, 0)[0]
    algorithm = ContrastiveDivergence(machine, k=k, optimizer=UNIT, centring=None)
    step = jax.jit(jax.vmap(algorithm.step, in_axes=(0, None, None)))
    state = algorithm.init(jax.random.key(0), batch_of(x)) | {"params": params}
    moved, _ = step(jax.random.split(jax.random.key(1), 4000), state, batch_of(x))

    one = kernel(machine, params, x)
    between = kernel(machine, params, BITS[D])
    probabilities = one @ np.linalg.matrix_power(between, k - 1)
    slopes = {
        where: central_differences(lambda p, v=v: free_energy(machine, p, np.float64(v)), params)
        for where, v in (("data", x), ("states", BITS[D]))
    }
    for name in params:
        expected = slopes["data"][name].mean(-1) - (slopes["states"][name] @ probabilities.T).mean(-1)
        found = params[name] - np.asarray(moved["params"][name])
        error = found.std(0) / len(found) ** 0.5 + 1e-5  # float32
        assert (np.abs(found.mean(0) - expected) < 4.5 * error).all(), name


@kinds
def test_gradient_at_draws_of_the_machine_is_unbiased(kind):
    """The mean over 40,000 exact draws against the exact gradient; 4.5 standard errors, as above."""
    machine = MACHINES[kind]
    params, algorithm = random_params(machine, 8), ContrastiveDivergence(machine, optimizer=UNIT)
    x, v = draws(machine, random_params(machine, 9), 10, 0)[0], draws(machine, params, 40_000, 1)[0]
    found, free = jax.jit(algorithm.gradient)(params, x, Chains(v, v))
    exact = jax.jit(jax.grad(lambda p: machine.free_energy(p, x).mean() + machine.log_partition(p)))(params)
    each = jax.jit(jax.vmap(jax.grad(machine.free_energy), in_axes=(None, 0)))(params, v)
    for name in params:
        error = np.asarray(each[name]).std(0) / len(v) ** 0.5 + 1e-5
        assert (np.abs(found[name] - exact[name]) < 4.5 * error).all(), name
    assert float(free) == pytest.approx(free_energy(machine, params, x).mean(), abs=1e-4)


def moved_by(machine, params, centre, x, key=0, **options):
    """The change that a step makes."""
    algorithm = ContrastiveDivergence(machine, optimizer=UNIT, **options)
    state = algorithm.init(jax.random.key(0), batch_of(x)) | {"params": params, "centre": centre}
    new, _ = jax.jit(algorithm.step)(jax.random.key(key), state, batch_of(x))
    return {n: np.asarray(new["params"][n]) - params[n] for n in params}


def test_a_centred_step_is_the_published_one():
    """Melchior et al.: grad W = <(v - m)(h - l)ᵀ>_data - <same>_model, then b -= (grad W) l and c -= m (grad W)."""
    machine = MACHINES["RBM"]
    params = random_params(machine, 2)
    x = draws(machine, params, 30, 0)[0]
    m, offset = np.float32([0.3, 0.6, 0.9]), np.float32([0.2, 0.7])
    plain = moved_by(machine, params, (m, offset), x, centring=None)
    centred = moved_by(machine, params, (m, offset), x, centring=0.01)
    # With a = <v h>, b = <v>, c = <h>, data less model:  <(v - m)(h - l)> = a - b l - m c
    weights = plain["weights"] - np.outer(plain["visible_bias"], offset) - np.outer(m, plain["hidden_bias"])
    np.testing.assert_allclose(centred["weights"], weights, atol=1e-6)  # float32, entries below 1
    np.testing.assert_allclose(centred["visible_bias"], plain["visible_bias"] - weights @ offset, atol=1e-6)
    np.testing.assert_allclose(centred["hidden_bias"], plain["hidden_bias"] - m @ weights, atol=1e-6)


@pytest.mark.parametrize("centring", [0.01, None])
def test_only_centred_learning_is_the_same_on_flipped_data(centring):
    """Flipping v_i turns W_i to -W_i, b_i to -b_i and c to c + W_i; with both models' draws flipped alike."""
    machine = MACHINES["RBM"]
    params, algorithm = random_params(machine, 2), ContrastiveDivergence(MACHINES["RBM"], centring=centring)
    x, v = (draws(machine, random_params(machine, s), 30, 0)[0] for s in (3, 4))

    def flipped(p):
        return {"weights": -p["weights"], "visible_bias": -p["visible_bias"], "hidden_bias": p["hidden_bias"]}

    def learned(params, x, v):
        centre = x.mean(0), np.float32([0.4, 0.7])
        centred = algorithm._centred(params, centre)
        _, pull = jax.vjp(lambda p: algorithm._plain(p, centre), centred)
        (gradient,) = pull(algorithm.gradient(params, x, Chains(v, v))[0])
        return algorithm._plain(jax.tree.map(lambda p, g: p - g, centred, gradient), centre)

    on = flipped(params) | {"hidden_bias": params["hidden_bias"] + params["weights"].sum(0)}
    there, back = jax.jit(learned)(params, x, v), jax.jit(learned)(on, 1 - x, 1 - v)
    expected = flipped(there) | {"hidden_bias": there["hidden_bias"] + there["weights"].sum(0)}
    same = all(np.allclose(back[n], expected[n], atol=1e-5) for n in back)
    assert same == (centring is not None)


def test_centres_follow_the_units_means():
    x = draws(MACHINES["RBM"], random_params(MACHINES["RBM"]), 40, 0)[0]
    algorithm = ContrastiveDivergence(RBM(2), centring=0.25)
    state = algorithm.init(jax.random.key(0), batch_of(x[:10]))
    new, _ = jax.jit(algorithm.step)(jax.random.key(1), state, batch_of(x[10:]))
    hidden = np.asarray(RBM(2).hidden_mean(state["params"], x[10:])).mean(0)
    for old, mean, found in zip(state["centre"], (x[10:].mean(0), hidden), new["centre"], strict=True):
        np.testing.assert_allclose(found, 0.75 * old + 0.25 * mean, atol=1e-6)


def test_persistent_chains_go_on_and_others_start_at_the_batch():
    """At a machine whose units are all but fixed, chains show where they started: on, or off as the batch."""
    params = {"weights": np.zeros((D, 2)), "visible_bias": np.zeros(D), "hidden_bias": np.zeros(2)}
    params = {n: np.float32(v) for n, v in params.items()} | {"weights": np.full((D, 2), 40.0, np.float32)}
    params |= {"visible_bias": np.full(D, -40.0, np.float32), "hidden_bias": np.full(2, -60.0, np.float32)}
    on, off = np.ones((4, D), np.float32), np.zeros((4, D), np.float32)
    for persistent in (True, False):
        algorithm = ContrastiveDivergence(RBM(2), persistent=persistent, optimizer=UNIT, centring=None)
        state = algorithm.init(jax.random.key(0), batch_of(on)) | {"params": params}
        if persistent:
            state["chains"] = algorithm.sampler.start(jax.random.key(0), RBM(2), params, on)
        new, _ = jax.jit(algorithm.step)(jax.random.key(1), state, batch_of(off))
        change = np.asarray(new["params"]["visible_bias"]) - params["visible_bias"]
        np.testing.assert_allclose(change, -1.0 if persistent else 0.0, atol=1e-5)  # <v> of data less that of chains


def test_weight_decay_is_of_couplings_and_momentum_adds_up():
    """Steps at data that the chains copy, so that the gradient of a machine without biases is that of decay alone."""
    x = np.zeros((4, 2), np.float32)
    machine, rate = RBM(1), 0.1
    decay = optax.chain(optax.add_decayed_weights(0.5, mask=couplings), optax.sgd(rate, momentum=0.5))
    algorithm = ContrastiveDivergence(machine, optimizer=decay, centring=None)
    start = {"weights": np.ones((2, 1)), "visible_bias": np.full(2, -60.0), "hidden_bias": np.full(1, -1.0)}
    start = {n: np.float32(v) for n, v in start.items()}
    state = algorithm.init(jax.random.key(0), batch_of(x)) | {"params": start}
    state["optimizer"] = decay.init(start)
    weight, velocity = 1.0, 0.0
    for i in range(3):
        state, _ = jax.jit(algorithm.step)(jax.random.key(i), state, batch_of(x))
        velocity = 0.5 * velocity + 0.5 * weight
        weight -= rate * velocity
        np.testing.assert_allclose(state["params"]["weights"], weight, rtol=1e-6)
    assert np.array_equal(state["params"]["visible_bias"], start["visible_bias"])
    assert np.array_equal(state["params"]["hidden_bias"], start["hidden_bias"])
    params = random_params(BoltzmannMachine(3))
    assert {n for n, is_decayed in couplings(params).items() if is_decayed} == {
        "weights",
        "visible_couplings",
        "hidden_couplings",
    }
    assert not couplings(random_params(GaussianRBM(2)))["log_variance"]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "centring"), [("bars and stripes", 0.01), ("shifting bar", None)])
def test_persistent_chains_learn_to_the_ceiling(name, centring):
    """Within 0.05 nats of the entropy of the rows, -2.599 and -2.197, with tempered chains and momentum."""
    cases = {"bars and stripes": (bars_and_stripes(3), -2.5993), "shifting bar": (shifting_bar(), -np.log(9))}
    x, ceiling = cases[name]
    optimizer = optax.sgd(optax.linear_schedule(0.2, 0.0, 4000), momentum=0.5)
    algorithm = ContrastiveDivergence(
        RBM(12),
        persistent=True,
        num_particles=500,
        optimizer=optimizer,
        centring=centring,
        sampler=Tempering(8),
    )
    run = fit(algorithm, x, key=0, num_steps=4000, progress=False)
    found = run.log_likelihood(x)
    assert found.is_exact and ceiling - 0.05 < found.mean <= ceiling + 1e-4
    assert run.history["swap_rate"][0, -1] > 0.3
    # Single pixels are all but determined by the others: the reconstruction shows it.
    assert (
        run.history["reconstruction_error"][0, -100:].mean() < 0.5 * run.history["reconstruction_error"][0, :5].mean()
    )


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["general", "Gaussian"])
def test_other_machines_learn_too(kind):
    """Exact log likelihoods rise from the start's, and come near those of the machine that the rows are drawn from."""
    machine = MACHINES[kind]
    truth = random_params(machine, 1, scale=1.5 if kind == "general" else 1.0)
    x = draws(machine, truth, 2000, 0)[0]
    schedule = optax.linear_schedule(0.05, 0.0, 2000)
    algorithm = ContrastiveDivergence(machine, k=2, persistent=True, num_particles=200, optimizer=optax.sgd(schedule))
    run = fit(algorithm, x, key=0, num_steps=2000, batch_size=200, progress=False)
    best = (-free_energy(machine, truth, x)).mean() - log_partition(machine, truth)
    start = machine.initial(jax.random.key(0), x)
    first = (-free_energy(machine, start, x)).mean() - log_partition(machine, start)
    assert first < best - 0.1 and run.log_likelihood(x).mean > best - 0.03


def test_validation_is_the_difference_of_free_energies():
    x = draws(MACHINES["RBM"], random_params(MACHINES["RBM"]), 64, 0)[0]
    options = {"key": 0, "num_epochs": 300, "batch_size": 32, "progress": False}
    run = fit(ContrastiveDivergence(RBM(2)), x, validation=x, **options)
    # The average over batches lags behind a machine that still learns: by a few steps' change.
    assert abs(run.history["validation"][0, -1]) < 0.1
    other = fit(
        ContrastiveDivergence(RBM(2)), x, key=0, num_epochs=300, batch_size=32, validation=1 - x, progress=False
    )
    assert np.array_equal(other.params["weights"], run.params["weights"])
    exact = [run.log_likelihood(rows).mean for rows in (1 - x, x)]
    assert other.history["validation"][0, -1] == pytest.approx(exact[0] - exact[1], abs=0.1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k": 0}, "ContrastiveDivergence: k is 0; expected a whole number of at least 1"),
        ({"k": 1.5}, "k is 1.5"),
        ({"k": True}, "k is True"),
        ({"num_particles": 0, "persistent": True}, "num_particles is 0; expected a whole number of at least 1"),
        ({"num_particles": 5}, "num_particles and tempering are of persistent chains.*give persistent=True"),
        ({"sampler": Tempering(3)}, "give persistent=True, or leave them out"),
        ({"centring": 1.5}, "centring is 1.5; expected 0 to 1, or None"),
        ({"centring": "yes"}, "centring is 'yes'; expected 0 to 1, or None"),
        ({"optimizer": 0.1}, r"optimizer is 0.1; give an optax one, such as optax.sgd\(0.05\)"),
        ({"sampler": None, "persistent": True}, r"sampler is None; give BlockGibbs\(\) or Tempering"),
        ({"sampler": Tempering, "persistent": True}, r"sampler is <class .*Tempering'>; give BlockGibbs\(\)"),
        ({"initial": "rows"}, "initial is a str; expected parameters by site name"),
        ({"initial": {"weights": [np.nan]}}, r"not finite numbers in \['weights'\]"),
    ],
)
def test_bad_fields(options, message):
    with pytest.raises(ValueError, match=message):
        ContrastiveDivergence(RBM(2), **options)


def test_a_program_without_energy():
    with pytest.raises(Incompatible, match="needs an energy program, and PPCA has no energy, .*RBM, GaussianRBM"):
        ContrastiveDivergence(PPCA(1))


@pytest.mark.parametrize("machine", [RBM(2), BoltzmannMachine(1)], ids=["RBM", "general"])
def test_data_that_are_not_binary(machine):
    x = np.float32([[0, 1, 0.5], [1, 0, 1]])
    with pytest.raises(BadData, match=r"'x' is observed outside .* boolean: row 0 holds 0.5.*binarize"):
        fit(ContrastiveDivergence(machine), x, key=0, num_steps=1)


def test_variances_that_diverge_are_named():
    """Steps of ten for them alone; the last good state is kept."""
    x = np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32)
    rates = {"variances": optax.sgd(10.0), "others": optax.sgd(0.01)}
    optimizer = optax.partition(rates, lambda p: {n: "variances" if n == "log_variance" else "others" for n in p})
    algorithm = ContrastiveDivergence(GaussianRBM(4), optimizer=optimizer)
    message = r"the free energy is not finite at step \d+, after log_variance\[\d\] had come to .*Lower the step size"
    with pytest.raises(NonFinite, match=message) as caught:
        fit(algorithm, x, key=0, num_steps=100, progress=False)
    assert all(np.isfinite(v).all() for v in caught.value.fit.params.values())


@pytest.mark.parametrize("x", [np.full((10, 3), 5.0), np.ones((1, 3))], ids=["constant", "one row"])
def test_rows_that_never_vary_start_with_unit_variance(x):
    """No likelihood is the highest there, and learning goes on until it says that it diverges."""
    np.testing.assert_array_equal(GaussianRBM(2).initial(jax.random.key(0), x)["log_variance"], 0)


def test_a_single_unit_has_no_couplings():
    """A coin that is on in a quarter of the rows: the exact likelihood is that of a coin."""
    x = np.float32([[1.0], [0.0], [0.0], [0.0]])
    machine = BoltzmannMachine(0)
    params = machine.initial(jax.random.key(0), x)
    assert set(params) == {"visible_bias"}
    found = -machine.free_energy(params, x) - machine.log_partition(params)
    np.testing.assert_allclose(found, np.log(np.where(x[:, 0], 0.25, 0.75)), rtol=1e-6)
    algorithm = ContrastiveDivergence(machine)
    state, _ = algorithm.step(jax.random.key(0), algorithm.init(jax.random.key(1), batch_of(x)), batch_of(x))
    assert np.isfinite(state["params"]["visible_bias"]).all()


def test_a_constant_column_starts_with_a_variance():
    x = np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32)
    x[:, 1] = 5.0
    start = GaussianRBM(2).initial(jax.random.key(0), x)
    np.testing.assert_allclose(np.exp(start["log_variance"])[1], 0.01 * x.var(0).mean(), rtol=1e-5)
    run = fit(ContrastiveDivergence(GaussianRBM(2)), x, key=0, num_steps=100, progress=False)
    assert np.isfinite(run.log_likelihood(x).mean)
