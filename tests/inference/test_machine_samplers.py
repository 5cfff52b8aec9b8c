"""Kernels of energy programs leave the enumerated law invariant: at every temperature, swapped, and clamped.

Chains start from exact draws, and are counted after 1, 4 and 16 sweeps. The total variation to the law is compared
with what as many exact draws show on average: beyond four times that lies no chance (below 1e-6 for tables of eight
and more states), while a law that is off by a few per cent shows. Keys are fixed.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from boltzmann_exact import MACHINES, D, base_of, draws, excess, given_observed, law, random_params

from inference import BadData, Tempering, simulate
from inference.block_gibbs import BlockGibbs, Chains, sweep
from inference.tempering import Tempered

kinds = pytest.mark.parametrize("kind", MACHINES)
NUM_CHAINS = 10_000
SWEEPS = (1, 3, 12)  # between counts


def advanced(advance, chains, seed=0):
    """The chains after 1, 4 and 16 sweeps."""
    advance, i = jax.jit(advance), 0
    for count in SWEEPS:
        for _ in range(count):
            chains, i = advance(jax.random.fold_in(jax.random.key(seed), i), chains), i + 1
        yield chains


@kinds
@pytest.mark.parametrize("beta", [1.0, 0.4])
def test_a_sweep_leaves_the_tempered_law_invariant(kind, beta):
    machine, (base, _) = MACHINES[kind], base_of(MACHINES[kind])
    params = random_params(machine)
    start = Chains(*draws(machine, params, NUM_CHAINS, 1, beta, base))
    p = law(machine, params, beta, base)
    for chains in advanced(lambda key, c: sweep(key, machine, params, c, jnp.float32(beta), base), start):
        assert excess(*chains, p) < 4


@kinds
def test_swaps_leave_every_temperature_invariant(kind):
    """Copies start as exact draws each at its own temperature, and still follow that law after swapping."""
    machine, (base, _) = MACHINES[kind], base_of(MACHINES[kind])
    params, sampler = random_params(machine, scale=1.5), Tempering(4)
    betas = np.linspace(0, 1, 4)
    copies = [draws(machine, params, NUM_CHAINS, 10 + t, beta, base) for t, beta in enumerate(betas)]
    v, h = (np.stack(units) for units in zip(*copies, strict=True))
    start = Tempered(jnp.asarray(v), jnp.asarray(h), base, jnp.zeros(()))
    for chains in advanced(lambda key, c: sampler.advance(key, machine, params, c), start):
        assert 0.1 < chains.swap_rate < 1
        for t, beta in enumerate(betas):
            assert excess(chains.v[t], chains.h[t], law(machine, params, beta, base)) < 4


@kinds
def test_swaps_alone_leave_the_laws_invariant_and_follow_the_ratio_of_joint_energies(kind):
    machine, (base, _) = MACHINES[kind], base_of(MACHINES[kind])
    params, sampler, betas = random_params(machine, scale=1.5), Tempering(3), np.linspace(0, 1, 3)
    copies = [draws(machine, params, NUM_CHAINS, 20 + t, beta, base) for t, beta in enumerate(betas)]
    v, h = (np.stack(units) for units in zip(*copies, strict=True))
    at = jax.jit(machine.energy)
    excesses = jnp.stack([at(params, *x) - at(params, *x, 0.0, base) for x in copies])
    place = jnp.broadcast_to(jnp.arange(3)[:, None], excesses.shape)
    for first in (0, 1):
        found, _, accepted = sampler.swap(jax.random.key(first), place, excesses, first)
        # E_s(x_s) + E_t(x_t) - E_s(x_t) - E_t(x_s), each energy by itself
        s, t = first, first + 1
        energies = {
            (i, j): np.asarray(at(params, *copies[j], jnp.float32(betas[i]), base)) for i in (s, t) for j in (s, t)
        }
        ratio = energies[s, s] + energies[t, t] - energies[s, t] - energies[t, s]
        # mean over chains of probabilities against accepted swaps, four standard errors: 1 in 16,000 seeds
        p = np.minimum(1, np.exp(ratio))
        assert abs(accepted.mean() - p.mean()) < 4 * np.sqrt(p.mean() / NUM_CHAINS)
        assert np.asarray(accepted)[:, ratio > 1e-3].all()
        moved = [np.take_along_axis(units, np.asarray(found)[..., None], 0) for units in (v, h)]
        for i, beta in enumerate(betas):
            assert excess(moved[0][i], moved[1][i], law(machine, params, beta, base)) < 4


@kinds
@pytest.mark.parametrize("sampler", [BlockGibbs(), Tempering(3)], ids=["Gibbs", "tempered"])
def test_clamped_chains_follow_the_conditional_law(kind, sampler):
    """Rows that share observed entries, from draws of the whole machine; 40 sweeps, of units that mix in a few."""
    machine = MACHINES[kind]
    params, seen = random_params(machine), np.array([True, False, True])
    rows, _ = draws(machine, params, NUM_CHAINS, 3)
    values = np.float32([1.0, 0.0, 0.0])
    rows[:, seen] = values[seen]
    key = jax.random.key(4)
    found = simulate(machine, params, rows, key=key, num_sweeps=40, sampler=sampler, observed=seen)
    v, h = np.asarray(found.v[0]), np.asarray(found.h[0])
    assert (v[:, seen] == values[seen]).all()
    p = given_observed(machine, params, values, seen)
    assert excess(v[:, ~seen], h, p) < 4


def test_a_label_that_is_left_out_is_classified():
    """Clamped pixels, free one-of-two labels: label frequencies against exact conditional probabilities."""
    machine = MACHINES["RBM"]
    params = random_params(machine, 5, scale=1.5)
    pixels = np.array([True, True, False])
    for values in np.float32([[0, 1, 0], [1, 1, 0]]):
        rows = np.tile(values, (NUM_CHAINS, 1))
        v = simulate(machine, params, rows, key=jax.random.key(0), num_sweeps=50, observed=pixels).v[0]
        p = given_observed(machine, params, values, pixels).reshape(2, -1).sum(1)[1]
        assert abs(np.asarray(v)[:, 2].mean() - p) < 4 * np.sqrt(p * (1 - p) / NUM_CHAINS)  # 1 in 16,000


@pytest.mark.parametrize("kind", [pytest.param("RBM", marks=pytest.mark.slow), "Gaussian"])
@pytest.mark.parametrize("sampler", [BlockGibbs(), Tempering(3)], ids=["Gibbs", "tempered"])
def test_simulate_reaches_the_law_from_anywhere_and_is_a_function_of_its_key(kind, sampler):
    machine, blank = MACHINES[kind], np.zeros((NUM_CHAINS // 2, D), np.float32)
    params = random_params(machine, scale=0.7)
    options = {"num_sweeps": 30, "num_draws": 2, "sampler": sampler}
    first, again, other = (simulate(machine, params, blank, key=jax.random.key(k), **options) for k in (0, 0, 1))
    assert first.v.shape == (2, len(blank), D) and first.h.shape == (2, len(blank), machine.num_hidden)
    assert np.array_equal(first.v, again.v) and not np.array_equal(first.v, other.v)
    assert not np.array_equal(first.v[0], first.v[1])
    for v, h in zip(*first, strict=True):
        assert excess(v, h, law(machine, params)) < 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_sweeps": 0}, "num_sweeps is 0; expected a whole number of at least 1"),
        ({"num_draws": True}, "num_draws is True"),
        ({"observed": np.ones(D)}, r"observed has dtype float64 and shape \(3,\); expected booleans"),
        (
            {"observed": np.ones(4, bool)},
            r"shape \(4,\); .* True where an entry stays, of shape \(2, 3\)",
        ),
    ],
)
def test_bad_options(options, message):
    machine = MACHINES["RBM"]
    with pytest.raises(BadData, match=message):
        simulate(machine, random_params(machine), np.zeros((2, D)), key=jax.random.key(0), **options)


@pytest.mark.parametrize("count", [1, 2.0, True])
def test_too_few_temperatures(count):
    with pytest.raises(ValueError, match=f"Tempering: num_temperatures is {count}; expected a whole number"):
        Tempering(count)
