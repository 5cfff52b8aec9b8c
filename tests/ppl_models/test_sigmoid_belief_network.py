"""Sigmoid belief networks: log joint by hand and in both engines, exact marginal, samples, start, complaints."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import optax
import pyro
import pytest
import torch
from numpyro import handlers
from numpyro.infer.util import log_density
from scipy import stats
from scipy.special import expit, logsumexp

from guides import AmortizedBernoulli, empty
from inference import SVI, PyroSVI, fit
from inference.objectives import ELBO, ScoreFunction
from ppl_models import SigmoidBeliefNetwork, binary_states
from ppl_models.networks import Linear

PIXELS = 4
LAYERS = [(3,), (3, 2), (2, 3, 2)]
layers_of = pytest.mark.parametrize("layers", LAYERS, ids=str)
EVERY_X = (np.arange(2**PIXELS)[:, None] >> np.arange(PIXELS) & 1).astype(np.float32)  # all rows there are


def random_params(layers, seed=0):
    """Parameters of a network with these layers, by site name."""
    rng, sizes = np.random.default_rng(seed), (PIXELS, *layers)
    params = {"prior_logits": rng.normal(size=layers[-1]).astype(np.float32)}
    for n in range(1, len(sizes)):
        module = eqx.filter(Linear().build(sizes[n], sizes[n - 1], jax.random.key(0)), eqx.is_array)
        params[f"decoder{n}"] = jax.tree.map(lambda w: rng.normal(0, 1.5, w.shape).astype(np.float32), module)
    return params


def bits_log_prob(z, logits):
    return (z * -np.logaddexp(0, -logits) - (1 - z) * np.logaddexp(0, logits)).sum(-1)


def log_joint(layers, params, x, *z):
    """log p(x, z) of each row by the formula, in float64; z from the data upwards."""
    units = [np.float64(v) for v in (x, *z)]
    total = bits_log_prob(units[-1], np.float64(params["prior_logits"]))
    for n in range(len(layers), 0, -1):
        w, b = map(np.float64, jax.tree.leaves(params[f"decoder{n}"]))
        total = total + bits_log_prob(units[n - 1], (2 * units[n] - 1) @ w.T + b)
    return total


def log_marginal(layers, params, x):
    """log p(x) of each row by the formula, over all states of all layers at once."""
    bits, out = sum(layers), []
    states = np.arange(2**bits)[:, None] >> np.arange(bits) & 1
    z = np.split(states, np.cumsum(layers)[:-1], axis=1)
    for row in x:
        out.append(logsumexp(log_joint(layers, params, np.broadcast_to(row, (len(states), PIXELS)), *z)))
    return np.array(out)


def random_latents(layers, rows, seed=1):
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 2, (rows, units)).astype(np.float32) for units in layers]


def marginal_rows(layers, params, x):
    """log p(x) of each row by the model's marginal program."""

    def rows(params, x):
        program = handlers.substitute(handlers.seed(SigmoidBeliefNetwork(layers).marginal, 0), data=params)
        site = handlers.trace(program).get_trace(x)["x"]
        return site["fn"].log_prob(site["value"])

    return jax.jit(rows)(params, x)


def in_pyro(program, params, x, values=(), **kwargs):
    """A Pyro trace of the program at these parameters and site values."""
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    program(torch.tensor(x))  # makes the parameters
    store = pyro.get_param_store()
    for name, value in params.items():
        leaves, names = jax.tree.leaves(value), [n for n in store if n == name or n.startswith(f"{name}.")]
        for n, leaf in zip(names, leaves, strict=True):
            assert store[n].shape == leaf.shape
            store[n] = torch.tensor(np.asarray(leaf))
    values = {name: torch.tensor(value) for name, value in dict(values).items()}
    return pyro.poutine.trace(pyro.poutine.condition(program, values)).get_trace(torch.tensor(x), **kwargs)


@layers_of
def test_log_joint_by_hand_and_in_both_engines(layers):
    params, z = random_params(layers), random_latents(layers, len(EVERY_X))
    values = {f"z{n}": v for n, v in enumerate(z, 1)}
    expected = log_joint(layers, params, EVERY_X, *z).sum()
    seeded, kwargs = handlers.seed(SigmoidBeliefNetwork(layers), 0), {"num_data": 5 * len(EVERY_X)}
    ours = jax.jit(lambda p: log_density(seeded, (EVERY_X,), kwargs, p)[0])(params | values)
    assert float(ours) == pytest.approx(5 * expected, rel=1e-5)  # float32 sums of about 150 terms; N / B = 5
    theirs = in_pyro(SigmoidBeliefNetwork(layers, ppl=pyro), params, EVERY_X, values, num_data=5 * len(EVERY_X))
    assert theirs.log_prob_sum().item() == pytest.approx(5 * expected, rel=1e-5)
    for n, units in enumerate(layers, 1):
        fn = theirs.nodes[f"z{n}"]["fn"]
        assert fn.batch_shape == (len(EVERY_X),) and fn.event_shape == (units,)


@layers_of
def test_marginal_is_the_sum_over_states_and_sums_to_one(layers):
    params = random_params(layers)
    expected = log_marginal(layers, params, EVERY_X)
    ours = np.asarray(marginal_rows(layers, params, EVERY_X))
    theirs = in_pyro(SigmoidBeliefNetwork(layers, ppl=pyro).marginal, params, EVERY_X)
    theirs.compute_log_prob()
    for rows in (ours, theirs.nodes["x"]["log_prob"].detach().numpy()):
        np.testing.assert_allclose(rows, expected, atol=5e-6)  # float32: values about 3, a few roundings
        assert np.exp(np.float64(rows)).sum() == pytest.approx(1, abs=1e-5)


def test_marginal_in_chunks_of_rows(monkeypatch):
    """Values and gradients in both engines do not depend on how rows are cut (16 rows: 5 + 5 + 5 + 1)."""
    layers = (2, 3, 2)
    params = random_params(layers)

    def both():
        value = jax.jit(jax.value_and_grad(lambda p: marginal_rows(layers, p, EVERY_X).sum()))(params)
        pyro_sum = in_pyro(SigmoidBeliefNetwork(layers, ppl=pyro).marginal, params, EVERY_X).log_prob_sum()
        pyro_sum.backward()
        gradients = {name: p.grad.numpy() for name, p in pyro.get_param_store().named_parameters()}
        return value, (pyro_sum.item(), gradients)

    whole = both()
    monkeypatch.setattr(binary_states, "_BUDGET", 20)  # z1 has 4 states
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(both()), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)  # float32 sums in another order
    (_, ours), (_, theirs) = whole
    for name, gradient in theirs.items():
        site, _, part = name.partition(".")
        expected = getattr(ours[site], part) if part else ours[site]
        np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=1e-5)


def test_marginal_gradient_against_finite_differences():
    layers, step = (3, 2), 1e-4
    params = random_params(layers)
    leaves, tree = jax.tree.flatten(params)
    gradient = jax.tree.leaves(jax.jit(jax.grad(lambda p: marginal_rows(layers, p, EVERY_X[:5]).sum()))(params))
    for i, leaf in enumerate(leaves):
        direction = np.random.default_rng(i).normal(size=leaf.shape)

        def at(h, i=i, leaf=leaf, direction=direction):
            moved = [*leaves[:i], np.float64(leaf) + h * direction, *leaves[i + 1 :]]
            return log_marginal(layers, jax.tree.unflatten(tree, moved), EVERY_X[:5]).sum()

        slope = (at(step) - at(-step)) / (2 * step)  # error about step² = 1e-8
        assert float(np.sum(gradient[i] * direction)) == pytest.approx(slope, rel=1e-4, abs=1e-4)


@pytest.mark.parametrize("engine", ["numpyro", "pyro"])
@pytest.mark.parametrize("program", ["model", "marginal"])
def test_sampling_frequencies(engine, program):
    """Chi-squared over the 16 rows, refused below 1e-6: 4 tests, a false alarm in 250,000 seeds."""
    layers, draws = (3, 2), 20_000
    params, rows = random_params(layers), np.zeros((draws, PIXELS), np.float32)
    sbn = SigmoidBeliefNetwork(layers, ppl=numpyro if engine == "numpyro" else pyro)
    sbn = sbn if program == "model" else sbn.marginal
    if engine == "numpyro":
        hidden = handlers.uncondition(handlers.substitute(handlers.seed(sbn, 1), data=params))
        x = np.asarray(jax.jit(hidden)(rows))
    else:
        x = in_pyro(pyro.poutine.uncondition(sbn), params, rows).nodes["x"]["value"].detach().numpy()
    counts = np.bincount(x.astype(int) @ 2 ** np.arange(PIXELS), minlength=2**PIXELS)
    expected = draws * np.exp(log_marginal(layers, params, EVERY_X))
    assert expected.min() > 5
    assert stats.chisquare(counts, expected * counts.sum() / expected.sum()).pvalue > 1e-6


def test_start_is_away_from_the_logit_whose_gradient_is_wrong():
    """At a fresh start, units and pixels all off: d log p(x | z1) / d bias is x - sigma(logits), layer by layer."""
    sbn = SigmoidBeliefNetwork((3, 2))
    x, values = np.zeros((1, PIXELS), np.float32), {"z1": np.zeros((1, 3)), "z2": np.zeros((1, 2))}
    with handlers.seed(rng_seed=0):
        trace = handlers.trace(sbn).get_trace(x)
    params = {n: s["value"] for n, s in trace.items() if s["type"] == "param"}
    gradient = jax.jit(jax.grad(lambda p: log_density(handlers.seed(sbn, 0), (x,), {}, p | values)[0]))(params)
    np.testing.assert_allclose(gradient["prior_logits"], -expit(params["prior_logits"]), rtol=1e-5)
    for n in (1, 2):
        w, b = jax.tree.leaves(params[f"decoder{n}"])
        np.testing.assert_allclose(jax.tree.leaves(gradient[f"decoder{n}"])[1], -expit(b - w.sum(1)), rtol=1e-5)


def test_likelihood_of_a_fit_is_exact():
    """Whatever the guide: by the marginal, without Monte-Carlo error, equal to the sum over states; both engines."""
    layers, x = (3, 2), np.random.default_rng(0).integers(0, 2, (24, PIXELS)).astype(np.float32)
    guide = AmortizedBernoulli(layers)
    run = fit(SVI(SigmoidBeliefNetwork(layers), guide, ScoreFunction(2), optax.adam(1e-2)), x, key=0, num_steps=3)
    found = run.log_likelihood(x)
    params = {n: v for n, v in run.params.items() if n.startswith(("decoder", "prior"))}
    np.testing.assert_allclose(found.rows, log_marginal(layers, params, x), atol=1e-5)
    assert found.mc_error == 0

    programs = (SigmoidBeliefNetwork(layers, ppl=pyro), AmortizedBernoulli(layers, ppl=pyro))
    run = fit(PyroSVI(*programs, ScoreFunction(), torch.optim.Adam, {"lr": 1e-2}), x, key=0, num_steps=2)
    names = {n: [f"{n}.weight", f"{n}.bias"] for n in ("decoder1", "decoder2")}
    params = {n: [run.params[part] for part in parts] for n, parts in names.items()}
    params["prior_logits"] = run.params["prior_logits"]
    found = run.log_likelihood(x)
    np.testing.assert_allclose(found.rows, log_marginal(layers, params, x), atol=1e-5)
    assert found.mc_error == 0


def test_maximum_likelihood_by_the_marginal():
    """Exact likelihood needs no guide; two patterns are learned to within 0.05 nats of their entropy, log 2."""
    x = np.tile(np.array([[0, 0, 1, 1], [1, 1, 0, 0]], np.float32), (12, 1))
    run = fit(SVI(SigmoidBeliefNetwork((3,)).marginal, empty, ELBO(), optax.adam(0.1)), x, key=0, num_steps=300)
    assert run.log_likelihood(x).rows.mean() == pytest.approx(-np.log(2), abs=0.05)
    rows = np.asarray(run.generate(200)["x"])
    assert np.mean([row.tolist() in x[:2].tolist() for row in rows]) > 0.8


def test_marginal_ends_at_16_bits():
    assert hasattr(SigmoidBeliefNetwork((8, 8)), "marginal")
    big = SigmoidBeliefNetwork((10, 7))
    assert getattr(big, "marginal", big) is big
    with pytest.raises(AttributeError, match="SigmoidBeliefNetwork has no marginal with 17 latent bits"):
        _ = big.marginal


def test_an_unchanged_program_is_an_equal_value():
    assert SigmoidBeliefNetwork([3, 2]) == SigmoidBeliefNetwork((3, 2), numpyro)
    assert hash(SigmoidBeliefNetwork(3).marginal) == hash(SigmoidBeliefNetwork((3,)).marginal)
    assert SigmoidBeliefNetwork((3, 2)).marginal != SigmoidBeliefNetwork((2, 3)).marginal


@pytest.mark.parametrize("layers", [(), (3, 0), (2, 2, 2, 2), (2.0,), "ab", (True,)], ids=str)
def test_bad_arguments(layers):
    with pytest.raises(ValueError, match="expected one to three whole numbers of at least 1"):
        SigmoidBeliefNetwork(layers)


def test_integer_rows_are_rows():
    params = random_params((3,))
    ours = marginal_rows((3,), params, jnp.asarray(EVERY_X, jnp.int32))
    np.testing.assert_allclose(ours, marginal_rows((3,), params, EVERY_X), rtol=1e-6)
