"""The deep Boltzmann machine against brute force: energies, mean field, bound, chains, log Z, gradients, learning."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from boltzmann_exact import bars_and_stripes, excess
from numpyro import handlers
from scipy.special import expit, logsumexp

from guides import empty
from inference import (
    NUTS,
    SVI,
    ContrastiveDivergence,
    Incompatible,
    MaximumLikelihood,
    Tempering,
    bracket,
    fit,
    greedy,
    simulate,
)
from inference.ais import annealed, reverse_annealed
from inference.block_gibbs import Chains, sweep
from inference.greedy import tied
from inference.objectives import ELBO
from ppl_models import RBM, DeepBoltzmannMachine
from ppl_models import deep_boltzmann_machine as module
from ppl_models.boltzmann_layers import shapes, single

D, SIZES = 3, (2, 2, 1)
MACHINE = DeepBoltzmannMachine(SIZES)
RBM_SHAPES = {"weights": (6, 4), "visible_bias": (6,), "hidden_bias": (4,)}
V, H = (np.array(list(itertools.product((0.0, 1.0), repeat=n))) for n in (D, sum(SIZES)))


def random_params(seed=0, machine=MACHINE, columns=D, scale=1.0):
    rng = np.random.default_rng(seed)
    return {n: rng.normal(0, scale, s).astype(np.float32) for n, s in shapes(columns, machine.num_hidden).items()}


def odd_layers(h):
    """The first and the third layer, joined."""
    return h[:, [0, 1, 4]].astype(np.float32)


def energies(params, v, h):
    """E(v, h) by its definition, coupling by coupling, (v, h)."""
    p = {n: np.float64(x) for n, x in params.items()}
    layers = [v[:, None], *(part[None] for part in np.split(h, np.cumsum(SIZES)[:-1], axis=1))]
    total = -(layers[0] @ p["visible_bias"])
    for i, (below, above) in enumerate(itertools.pairwise(layers), 1):
        total = total - above @ p[f"hidden_bias_{i}"] - ((below @ p[f"weights_{i}"]) * above).sum(-1)
    return total


def mean_field_free_energy(params, v, mu):
    """E_q[E(v, h)] - H(q) by the sum over all h, (v,)."""
    log_q = (H * np.log(mu[:, None]) + (1 - H) * np.log1p(-mu[:, None])).sum(-1)
    return (np.exp(log_q) * (energies(params, v, H) + log_q)).sum(1)


def test_energies_and_the_restricted_machine_of_odd_and_even_layers():
    params = random_params()
    table = energies(params, V, H)
    found = [jax.jit(MACHINE.energy)(params, np.repeat(v[None], len(H), 0), H) for v in V.astype(np.float32)]
    np.testing.assert_allclose(found, table, atol=1e-5)  # float32, values about 10
    exact = logsumexp(-table)
    assert float(jax.jit(MACHINE.log_partition)(params)) == pytest.approx(exact, abs=1e-5)
    np.testing.assert_allclose(jax.jit(MACHINE.exact_free_energy)(params, V), -logsumexp(-table, 1), atol=1e-5)
    rbm, sides = MACHINE.as_rbm(params)
    odd = odd_layers(H)
    even = np.concatenate([np.repeat(V[5][None], len(H), 0), H[:, 2:4]], 1).astype(np.float32)  # v and the second layer
    np.testing.assert_allclose(rbm.energy(sides, odd, even), table[5], atol=1e-5)


def test_mean_field_is_a_fixed_point_and_its_free_energy_an_upper_bound():
    """The gap is KL(q || p(h | v)), to float32 rounding."""
    params = random_params(1)
    mu = np.asarray(jax.jit(MACHINE.hidden_mean)(params, V.astype(np.float32)), np.float64)
    found = np.asarray(jax.jit(MACHINE.free_energy)(params, V.astype(np.float32)))
    np.testing.assert_allclose(found, mean_field_free_energy(params, V, mu), atol=2e-5)
    log_p = -energies(params, V, H)
    true = -logsumexp(log_p, 1)
    log_q = (H * np.log(mu[:, None]) + (1 - H) * np.log1p(-mu[:, None])).sum(-1)
    kl = (np.exp(log_q) * (log_q - (log_p + true[:, None]))).sum(1)
    np.testing.assert_allclose(found - true, kl, atol=2e-5)
    assert kl.max() > 1e-3  # or nothing was shown
    layers = [V, *np.split(mu, np.cumsum(SIZES)[:-1], axis=1)]
    for i in range(1, 4):
        inputs = layers[i - 1] @ params[f"weights_{i}"] + params[f"hidden_bias_{i}"]
        inputs = inputs + (layers[i + 1] @ params[f"weights_{i + 1}"].T if i < 3 else 0)
        np.testing.assert_allclose(layers[i], expit(inputs), atol=1e-5)


def test_no_turn_of_mean_field_raises_the_free_energy(monkeypatch):
    params, found = random_params(2, scale=2.0), []
    for turns in range(6):
        monkeypatch.setattr(module, "MEAN_FIELD_TURNS", turns)
        mu = np.asarray(MACHINE.hidden_mean(params, V.astype(np.float32)), np.float64)
        found.append(mean_field_free_energy(params, V, np.clip(mu, 1e-12, 1 - 1e-12)))
    assert np.diff(found, axis=0).max() < 1e-5 and np.ptp(found, axis=0).max() > 1e-2


@pytest.mark.parametrize("tempered", [False, True])
@pytest.mark.slow
def test_chains_do_not_drift(tempered):
    """From exact draws, total variation to the law stays within four times that of as many draws."""
    params, rng = random_params(3), np.random.default_rng(0)
    p = np.exp(-energies(params, V, H) - logsumexp(-energies(params, V, H))).ravel()
    picked = rng.choice(len(p), 20_000, p=p)
    v, h = V[picked // len(H)].astype(np.float32), H[picked % len(H)].astype(np.float32)
    if not tempered:
        step = jax.jit(lambda key, chains: sweep(key, MACHINE, params, chains))
        chains = Chains(jnp.asarray(v), jnp.asarray(h))
        for i in range(8):
            chains = step(jax.random.key(i), chains)
    else:  # hidden units start from mean field, and forget it
        found = simulate(MACHINE, params, v, key=jax.random.key(0), num_sweeps=30, sampler=Tempering(4))
        chains = Chains(found.v[0], found.h[0])
    assert excess(chains.v, chains.h, p) < 4


def test_layers_that_move_together_do_not_share_their_noise():
    """Fair coins all, in layers of one size: odd layers are uncorrelated, within 4.5 standard errors of 18 numbers."""
    machine = DeepBoltzmannMachine((3, 3, 3))
    params = {n: np.zeros(s, np.float32) for n, s in shapes(D, machine.num_hidden).items()}
    blank = jnp.zeros((4000, 9))
    h = np.asarray(machine.move_hidden(jax.random.key(0), params, jnp.zeros((4000, D)), blank))
    correlation = np.corrcoef(h.T) - np.eye(9)
    assert np.abs(correlation).max() < 4.5 / 4000**0.5


def test_both_annealings_hold_log_z():
    """Three standard errors, of two estimates at fixed keys: a false alarm in 1 of 180 seeds."""
    params = random_params(4)
    exact, rng = logsumexp(-energies(params, V, H)), np.random.default_rng(0)
    rbm, sides = MACHINE.as_rbm(params)
    p = np.exp(-energies(params, V, H) - exact).sum(0)
    x = odd_layers(H[rng.choice(len(H), 1000, p=p)])
    betas = np.linspace(0, 1, 100)
    for found in (
        annealed(rbm, sides, x, key=jax.random.key(0), num_chains=1000, betas=betas),
        reverse_annealed(rbm, sides, x, x, key=jax.random.key(1), betas=betas),
    ):
        low, high = found.interval
        assert low < exact < high and found.error < 0.1


def test_the_gradient_is_that_of_the_bound():
    """With every state as a draw, weighed, it is the bound's: by finite differences of float64 sums."""
    params, x = random_params(5), V[[1, 3, 6]].astype(np.float32)
    log_p = -energies(params, V, H)
    p = np.exp(log_p - logsumexp(log_p)).ravel()
    counts = np.random.default_rng(0).multinomial(200_000, p)
    states = np.repeat(np.arange(len(p)), counts)
    chains = Chains(jnp.asarray(V[states // len(H)], jnp.float32), jnp.asarray(H[states % len(H)], jnp.float32))
    found, _ = ContrastiveDivergence(MACHINE, persistent=True).gradient(params, x, chains)
    mu = np.asarray(MACHINE.hidden_mean(params, x), np.float64)

    def minus_bound(params):
        return mean_field_free_energy(params, x, mu).mean() + logsumexp(-energies(params, V, H))

    for name, value in params.items():
        want = np.zeros(value.shape)
        for index in np.ndindex(value.shape):
            up, down = (params | {name: value.astype(np.float64)} for _ in range(2))
            up[name][index] += 1e-4
            down = down | {name: value.astype(np.float64)}
            down[name][index] -= 1e-4
            want[index] = (minus_bound(up) - minus_bound(down)) / 2e-4
        # Of 200,000 draws of numbers up to 1: five standard errors of at most 0.5 / 447.
        np.testing.assert_allclose(found[name], want, atol=5 * 0.5 / 200_000**0.5)


def test_shifted_couplings_change_the_energy_by_a_constant():
    params, rng = random_params(6), np.random.default_rng(1)
    m, offset = rng.normal(size=D).astype(np.float32), rng.normal(size=sum(SIZES)).astype(np.float32)
    shifted = {n: np.asarray(x) for n, x in MACHINE.shifted(params, m, offset).items()}
    flat = {n: x if "weights" in n else np.zeros_like(x) for n, x in params.items()}
    moved = energies(flat, V - m, H - offset) + energies(params, V, H) - energies(flat, V, H)
    assert np.ptp(energies(shifted, V, H) - moved) < 1e-4
    back = MACHINE.shifted(shifted, -m, -offset)
    assert all(np.allclose(back[n], params[n], atol=1e-5) for n in params)


def test_one_layer_is_a_restricted_machine():
    machine, rbm = DeepBoltzmannMachine((2,)), RBM(2)
    params = random_params(8, machine)
    same = {n.removesuffix("_1"): v for n, v in params.items()}
    v, h = V.astype(np.float32), H[:8, :2].astype(np.float32)
    for name, units in (("energy", (v, h)), ("free_energy", (v,)), ("hidden_mean", (v,)), ("visible_mean", (v, h))):
        found = getattr(machine, name)(params, *units)
        np.testing.assert_allclose(found, getattr(rbm, name)(same, *units), atol=1e-5)


def test_the_program_scores_rows_exactly():
    params = random_params(7)
    tr = handlers.trace(handlers.substitute(handlers.seed(MACHINE, 0), data=params)).get_trace(V.astype(np.float32))
    log_p = -energies(params, V, H)
    np.testing.assert_allclose(
        tr["x"]["fn"].log_prob(tr["x"]["value"]), logsumexp(log_p, 1) - logsumexp(log_p), atol=1e-5
    )


@pytest.mark.slow
def test_learns_bars_and_stripes():
    """By persistent chains and mean field the bound, and by enumeration the likelihood, near the entropy of -2.60."""
    x, machine = bars_and_stripes(3), DeepBoltzmannMachine((12, 6))
    falling = optax.sgd(optax.linear_schedule(0.1, 1e-3, 10_000))
    algorithm = ContrastiveDivergence(machine, persistent=True, num_particles=200, optimizer=falling)
    run = fit(algorithm, x, key=0, num_steps=10_000, progress=False)
    found = bracket(run, x)
    assert found.is_exact and found.is_bound and str(found).startswith("variational bound")
    exact = float(-np.mean(machine.exact_free_energy(run.params, x)) - machine.log_partition(run.params))
    assert -2.6 - 0.1 < found.mean <= exact + 1e-5 and exact < -2.599
    kept = {tuple(row) for row in x}
    assert np.mean([tuple(row) in kept for row in np.asarray(run.generate(200)["x"])]) > 0.7
    left = np.arange(9) % 3 < 2
    assert (run.complete(x[:4], observed=left, num_sweeps=20)["x"][:, left] == x[:4][:, left]).all()
    assert run.to_arviz(x).posterior["hidden"].shape[-1] == 18
    climber = SVI(MaximumLikelihood(machine), empty, ELBO(), optax.adam(0.03))
    climb = fit(climber, x, key=0, num_steps=2000, progress=False)
    assert climb.log_likelihood(x).mean > -2.6 - 0.1


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DeepBoltzmannMachine(()), r"num_hidden is \(\); give the units of one layer or more"),
        (lambda: DeepBoltzmannMachine((3, 0)), r"num_hidden is \(3, 0\); expected whole numbers of at least 1"),
        (lambda: DeepBoltzmannMachine((3, 2), bias_scale=0.0), "bias_scale is 0.0; give a positive number"),
        (
            lambda: DeepBoltzmannMachine((13, 2)).exact_free_energy(
                random_params(0, DeepBoltzmannMachine((13, 2))), jnp.zeros((1, D))
            ),
            r"sum over the 2\^13 states of its odd layers for every row",
        ),
    ],
)
def test_bad_input(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_copies_stay_tied_and_the_start_is_their_mean():
    """Steps of any optimizer, projected: copies agree to rounding, and the nearest tied machine has their mean."""
    rng = np.random.default_rng(6)
    untied = {n: rng.normal(size=s).astype(np.float32) for n, s in RBM_SHAPES.items()}
    optimizer = optax.chain(optax.adam(0.1), tied(2, 2))
    params, state = jax.tree.map(jnp.asarray, untied), None
    state = optimizer.init(params)
    for _ in range(3):
        gradient = {n: rng.normal(size=v.shape).astype(np.float32) for n, v in params.items()}
        updates, state = optimizer.update(gradient, state, params)
        params = optax.apply_updates(params, updates)
    weights = np.asarray(params["weights"]).reshape(2, 3, 2, 2)
    np.testing.assert_allclose(weights, np.broadcast_to(weights[:1, :, :1], weights.shape), atol=1e-5)
    found = single(untied, 2, 2)
    np.testing.assert_allclose(found["weights"], untied["weights"].reshape(2, 3, 2, 2).mean((0, 2)), atol=1e-6)
    assert DeepBoltzmannMachine((2, 2, 2)).copies == ((2, 1), (2, 2), (1, 2))


def test_a_layerwise_start_is_taken_and_wrong_ones_refused():
    x, machine = bars_and_stripes(2), DeepBoltzmannMachine((3, 2))
    quiet = {"key": 0, "num_steps": 200, "progress": False}
    start = greedy(machine, x, lambda rbm: ContrastiveDivergence(rbm, optimizer=optax.sgd(0.1)), **quiet)
    assert {n: v.shape for n, v in start.items()} == shapes(4, (3, 2))
    still = ContrastiveDivergence(machine, persistent=True, optimizer=optax.sgd(0.0), initial=start)
    run = fit(still, x, key=0, num_steps=2, progress=False)
    for name, value in start.items():  # there and back through the centred parameters
        np.testing.assert_allclose(run.params[name], value, atol=1e-5)
    with pytest.raises(Incompatible, match="ContrastiveDivergence's initial has shapes .* on these rows takes"):
        fit(ContrastiveDivergence(machine, initial={"weights_1": np.zeros(2)}), x, key=0, num_steps=1)
    with pytest.raises(Incompatible, match="greedy learns a deep program layer by layer, and RBM has no machines"):
        greedy(RBM(2), x, ContrastiveDivergence, key=0, num_steps=1)
    with pytest.raises(Incompatible, match="learn returned NUTS; greedy learns machines by ContrastiveDivergence"):
        greedy(machine, x, NUTS, key=0, num_steps=1)
