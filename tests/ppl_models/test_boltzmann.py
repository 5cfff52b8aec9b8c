"""Boltzmann machines of every kind against brute force: energies, log Z, conditionals, draws, exact learning."""

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
    base_of,
    draws,
    energy,
    excess,
    joint_table,
    law,
    random_params,
    shifting_bar,
)
from boltzmann_exact import log_partition as exact_log_partition
from numpyro import handlers
from numpyro.diagnostics import effective_sample_size
from scipy.special import expit, logsumexp

from guides import empty
from inference import EM, NUTS, SVI, MaximumLikelihood, fit
from inference.objectives import ELBO
from ppl_models import RBM, BoltzmannMachine, GaussianRBM

kinds = pytest.mark.parametrize("kind", MACHINES)


def some_units(machine, rows=40):
    rng = np.random.default_rng(3)
    v = rng.normal(size=(rows, D)) if isinstance(machine, GaussianRBM) else rng.integers(0, 2, (rows, D))
    return v.astype(np.float32), rng.integers(0, 2, (rows, machine.num_hidden)).astype(np.float32)


@kinds
def test_energies_free_energies_and_conditionals_are_the_definitions(kind):
    machine, (base, _) = MACHINES[kind], base_of(MACHINES[kind])
    params, (v, h) = random_params(machine), some_units(machine)
    states = BITS[machine.num_hidden]
    for at in ((1.0, None), (0.3, base)):
        beta, origin = at
        tempered = () if origin is None else (jnp.float32(beta), origin)
        found = jax.jit(machine.energy)(params, v, h, *tempered)
        np.testing.assert_allclose(found, energy(machine, params, v, h, *at), atol=2e-5)  # float32, values about 10
        all_h = -energy(machine, params, v[:, None], np.broadcast_to(states, (len(v), *states.shape)), *at)
        found = jax.jit(machine.free_energy)(params, v, *tempered)
        np.testing.assert_allclose(found, -logsumexp(all_h, -1), atol=2e-5)
        given = np.exp(all_h - logsumexp(all_h, -1, keepdims=True)) @ states
        found = jax.jit(machine.hidden_mean)(params, v, *tempered[:1])
        np.testing.assert_allclose(found, given, atol=1e-6)
        # p(v_i = 1 | rest) from the energies with v_i on and off; E[v_i | h] of the Gaussian machine from derivatives.
        found = np.asarray(jax.jit(machine.visible_mean)(params, v, h, *tempered))
        for i in range(D):
            on, off = v.copy(), v.copy()
            on[:, i], off[:, i] = 1, 0
            first, second = (energy(machine, params, x, h, *at) for x in (off, on))
            if isinstance(machine, GaussianRBM):
                off[:, i] = -1
                curvature = second + energy(machine, params, off, h, *at) - 2 * first
                slope = (second - energy(machine, params, off, h, *at)) / 2
                np.testing.assert_allclose(found[:, i], -slope / curvature, atol=1e-5)
            else:
                np.testing.assert_allclose(found[:, i], expit(first - second), atol=1e-6)


@kinds
def test_log_partition_is_the_sum_over_states_and_the_base_rate_model_has_its_own(kind):
    machine = MACHINES[kind]
    params = random_params(machine)
    assert float(jax.jit(machine.log_partition)(params)) == pytest.approx(
        exact_log_partition(machine, params), abs=1e-5
    )
    base, log_z = base_of(machine)
    assert log_z == pytest.approx(logsumexp(joint_table(machine, params, 0.0, base)[1]), abs=1e-5)


def test_either_side_may_be_the_smaller_and_sums_are_cut_in_chunks():
    """13 units are two chunks; with more hidden units than visible ones the visible side is summed over."""
    for visible, hidden in ((15, 13), (3, 9)):
        rng = np.random.default_rng(0)
        shapes = {"weights": (visible, hidden), "visible_bias": (visible,), "hidden_bias": (hidden,)}
        params = {n: rng.normal(0, 0.3, s).astype(np.float32) for n, s in shapes.items()}
        v = np.array(list(itertools.product((0.0, 1.0), repeat=visible)))
        free = v @ params["visible_bias"] + np.logaddexp(0, v @ params["weights"] + params["hidden_bias"]).sum(-1)
        found = jax.jit(jax.value_and_grad(RBM(hidden).log_partition))(params)
        assert float(found[0]) == pytest.approx(logsumexp(free), rel=1e-6)
        mean = np.exp(free - logsumexp(free)) @ v  # the gradient in the visible biases
        np.testing.assert_allclose(found[1]["visible_bias"], mean, atol=1e-5)


@kinds
def test_exact_draws(kind):
    """Total variation within four times what exact draws are expected to show: never in a thousand seeds."""
    machine = MACHINES[kind]
    params = random_params(machine)
    key_v, key_h = jax.random.split(jax.random.key(0))
    v = jax.jit(machine.exact_draws, static_argnums=2)(key_v, params, 20_000)
    h = jax.jit(machine.sample_hidden)(key_h, params, v)
    assert excess(v, h, law(machine, params)) < 4
    error = np.asarray(v).std(0) / len(v) ** 0.5
    # Five standard errors, of three columns and five machines: a false alarm in 100,000 seeds.
    assert (np.abs(np.asarray(v).mean(0) - jax.jit(machine.exact_mean)(params)) < 5 * error).all()


@kinds
def test_shifted_couplings_change_the_energy_by_a_constant(kind):
    machine, rng = MACHINES[kind], np.random.default_rng(5)
    params, (v, h) = random_params(machine), some_units(machine)
    m, offset = (rng.normal(size=n).astype(np.float32) for n in (D, machine.num_hidden))
    shifted = jax.jit(machine.shifted)(params, m, offset)
    found = np.asarray(jax.jit(machine.energy)(shifted, v, h))
    flat = params | {n: np.zeros_like(x) for n, x in params.items() if "bias" in n}
    # couplings at shifted units, biases at the units themselves
    moved = energy(machine, flat, v - m, h - offset) + energy(machine, params, v, h) - energy(machine, flat, v, h)
    if isinstance(machine, GaussianRBM):  # whose squares are no coupling
        moved = moved + ((v**2 - (v - m) ** 2) / (2 * np.exp(params["log_variance"]))).sum(-1)
    assert np.ptp(found - moved) < 1e-4
    back = machine.shifted(shifted, -m, -offset)
    assert all(np.allclose(back[n], params[n], atol=1e-5) for n in params)


@kinds
def test_the_program_scores_rows_exactly(kind):
    machine = MACHINES[kind]
    params, (v, _) = random_params(machine), some_units(machine)

    @jax.jit
    def sites(params, v):
        tr = handlers.trace(handlers.substitute(handlers.seed(machine, 0), data=params)).get_trace(v, num_data=400)
        return tr["x"]["fn"].log_prob(tr["x"]["value"]), tr["x"]["scale"], tr["free_energy"]["value"]

    rows, scale, free = sites(params, v)
    np.testing.assert_allclose(rows, -free - exact_log_partition(machine, params), atol=3e-5)
    assert scale == 10


def test_exact_gradient_learns_the_shifting_bar_and_bars_and_stripes():
    """To within 0.05 nats of the entropy of equally likely rows: log 9, and that of 16 of which two come twice."""
    climb = {"key": 0, "num_steps": 4000, "progress": False}
    free = MaximumLikelihood(RBM(8))
    rows = bars_and_stripes(3)
    _, counts = np.unique(rows, axis=0, return_counts=True)
    ceiling = np.sum(counts / 16 * np.log(counts / 16))
    assert ceiling == pytest.approx(-2.5993, abs=1e-4)
    for x, best in ((rows, ceiling), (shifting_bar(), -np.log(9))):
        run = fit(SVI(free, empty, ELBO(), optax.adam(0.05)), x, **climb)
        found = run.log_likelihood(x)
        assert found.mc_error == 0 and best - 0.05 < found.mean <= best + 1e-5
        kept = {tuple(row) for row in x}
        drawn = np.asarray(run.generate(300)["x"])
        assert np.mean([tuple(row) in kept for row in drawn]) > 0.85


@pytest.mark.parametrize(
    "kind", ["RBM", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("general", "fully visible"))]
)
def test_em_never_lowers_the_likelihood_and_learns(kind):
    """It ends above independent pixels, and within 0.02 nats of the frequencies of the eight rows there are."""
    machine = MACHINES[kind]
    x = draws(machine, random_params(machine, 1, scale=1.5), 200, 0)[0]
    run = fit(EM(machine), x, key=0, num_steps=25, num_chains=2, progress=False)
    assert np.diff(run.history["bound"]).min() > -1e-6  # recorded in float32
    mean = x.mean(0)
    independent = (x * np.log(mean) + (1 - x) * np.log1p(-mean)).sum(-1).mean()
    _, counts = np.unique(x, axis=0, return_counts=True)
    saturated = np.sum(counts * np.log(counts / len(x))) / len(x)
    assert independent < run.log_likelihood(x).mean <= saturated + 1e-5
    assert saturated - run.log_likelihood(x).mean < 0.02


@pytest.mark.parametrize("kind", ["RBM", pytest.param("general", marks=pytest.mark.slow)])
def test_statistics_of_batches_combine(kind):
    """Those of two halves are those of all rows, and the M-step starts at the present parameters, not a multiple."""
    machine = MACHINES[kind]
    params = random_params(machine, 2)
    x = draws(machine, random_params(machine, 3), 40, 0)[0]
    e_step = jax.jit(machine.e_step)
    first, second, whole = (e_step(params, rows)[1] for rows in (x[:20], x[20:], x))
    found = machine.combine(first, second, 1.0, 1.0)
    for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(whole), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-9)
    later = machine.combine(first, second, 0.5, 2.0)
    assert all(np.array_equal(later.params[n], second.params[n]) for n in params)


@pytest.mark.slow
def test_em_learns_the_shifting_bar_and_bars_and_stripes():
    """The best of four starts, within 0.05 nats of the ceilings in 100 steps."""
    for x, ceiling in ((bars_and_stripes(3), -2.5993), (shifting_bar(), -np.log(9))):
        run = fit(EM(RBM(8), tolerance=0), x, key=0, num_steps=100, num_chains=4, progress=False)
        assert ceiling - 0.05 < run.log_likelihood(x).mean <= ceiling + 1e-4
        assert np.diff(run.history["bound"]).min() > -1e-6


@pytest.mark.slow
def test_nuts_has_the_posterior_means_of_a_grid():
    """Two coupled visible units: posterior means of b and R by quadrature in float64, within 4.5 standard errors."""
    machine = BoltzmannMachine(0, coupling_scale=0.7, bias_scale=1.0)
    x = np.float32([[0, 0]] * 4 + [[1, 0]] * 3 + [[1, 1]] * 8)
    run = fit(NUTS(machine, num_warmup=300), x, key=0, num_steps=1000, progress=False)
    axis = np.linspace(-6, 6, 121)
    b1, b2, r = np.meshgrid(axis, axis, axis / 2, indexing="ij")
    log_z = logsumexp([0 * r, b1, b2, b1 + b2 + 2 * r], axis=0)
    log_p = 11 * b1 + 8 * b2 + 8 * 2 * r - 15 * log_z - (b1**2 + b2**2) / 2 - (r / 0.7) ** 2 / 2
    p = np.exp(log_p - log_p.max())
    p /= p.sum()
    draws = run.draws.posterior
    columns = (draws["visible_bias"][..., 0], draws["visible_bias"][..., 1], draws["visible_couplings"][..., 0])
    for found, grid in zip(columns, (b1, b2, r), strict=True):
        error = found.std() / effective_sample_size(np.float64(found)) ** 0.5
        assert abs(found.mean() - (p * grid).sum()) < 4.5 * error < 0.5


@pytest.mark.parametrize(
    "machine", [GaussianRBM(1), pytest.param(RBM(1), marks=pytest.mark.slow)], ids=["Gaussian", "RBM"]
)
def test_nuts_samples_an_enumerable_machine(machine):
    """The posterior predictive of a few rows lies below the maximum likelihood, and generates rows."""
    x = draws(machine, random_params(machine), 30, 0)[0]
    run = fit(NUTS(machine, num_warmup=10), x, key=0, num_steps=10, progress=False)
    assert np.isfinite(run.log_likelihood(x).mean)
    data = run.to_arviz()
    assert data.posterior["hidden"].shape == (1, 10, 30, 1) and data.posterior["free_energy"].shape == (1, 10, 30)
    assert run.generate(5)["x"].shape == (5, D)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RBM(0), "RBM: num_hidden is 0; expected a whole number of at least 1"),
        (lambda: RBM(2.0), "num_hidden is 2.0"),
        (lambda: RBM(2, weight_scale=0.0), "weight_scale is 0.0; give a positive number"),
        (lambda: GaussianRBM(True), "GaussianRBM: num_hidden is True"),
        (lambda: BoltzmannMachine(-1), "num_hidden is -1; expected a whole number of at least 0"),
        (lambda: BoltzmannMachine(13), r"sum over 2\^13 states. Give at most 12, or use RBM"),
    ],
)
def test_bad_fields(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("machine", "message"),
    [
        (RBM(21), r"RBM is too large to enumerate: log Z would be a sum over the 2\^21 states of its 21 hidden units"),
        (
            BoltzmannMachine(2),
            r"the 2\^26 states of its 26 units, and is made up to 20.*ContrastiveDivergence\(model\)",
        ),
        (GaussianRBM(30), r"the 2\^30 states of its 30 hidden units"),
    ],
    ids=["RBM", "general", "Gaussian"],
)
def test_a_machine_too_large_to_enumerate_says_what_it_would_cost(machine, message):
    x = np.zeros((5, 24), np.float32)
    with pytest.raises(ValueError, match=message):
        fit(NUTS(machine, num_warmup=1), x, key=0, num_steps=1)
    with pytest.raises(ValueError, match=message):
        machine.log_partition(machine.initial(jax.random.key(0), x))
