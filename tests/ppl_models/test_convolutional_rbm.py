"""The convolutional machine on 3 x 3 images against brute force, its chains, log Z, learning, and bad input."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from boltzmann_exact import bars_and_stripes, excess
from scipy.special import expit, logsumexp

from guides import empty
from inference import SVI, ContrastiveDivergence, MaximumLikelihood, bracket, fit, simulate
from inference.ais import annealed, reverse_annealed
from inference.objectives import ELBO
from ppl_models import ConvolutionalRBM

# Two filters of 2 x 2, whose maps of 2 x 2 are a block each, with five states.
MACHINE, D, K = ConvolutionalRBM(2, filter_size=2, pool=2), 9, 2
V = np.array(list(itertools.product((0.0, 1.0), repeat=D)))
BLOCK = np.concatenate([np.zeros((1, 4)), np.eye(4)])
H = np.array([np.concatenate(states) for states in itertools.product(BLOCK, repeat=K)])
SHAPES = {"weights": (4, K), "visible_bias": (D,), "hidden_bias": (K,)}


def random_params(seed=0):
    rng = np.random.default_rng(seed)
    return {n: rng.normal(size=s).astype(np.float32) for n, s in SHAPES.items()}


def energies(params, v, h):
    """E(v, h) by its definition, place by place, (v, h)."""
    total = -(v @ params["visible_bias"])[:, None] * np.ones(len(h))
    maps, images = h.reshape(-1, K, 2, 2), v.reshape(-1, 3, 3)
    for k, i, j in itertools.product(range(K), range(2), range(2)):
        seen = (images[:, i : i + 2, j : j + 2] * params["weights"][:, k].reshape(2, 2)).sum((1, 2))
        total = total - (seen + params["hidden_bias"][k])[:, None] * maps[:, k, i, j]
    return total


def test_energies_free_energies_and_conditionals_are_the_definitions():
    params, v = random_params(), V[::37].astype(np.float32)
    table = energies(params, v, H)
    found = [jax.jit(MACHINE.energy)(params, np.repeat(row[None], len(H), 0), H.astype(np.float32)) for row in v]
    np.testing.assert_allclose(found, table, atol=1e-5)  # float32, values about 10
    np.testing.assert_allclose(jax.jit(MACHINE.free_energy)(params, v), -logsumexp(-table, -1), atol=1e-5)
    given = np.exp(-table - logsumexp(-table, -1, keepdims=True)) @ H
    np.testing.assert_allclose(jax.jit(MACHINE.hidden_mean)(params, v), given, atol=1e-6)
    np.testing.assert_allclose(MACHINE.pooled(given, D)[..., 0, 0], given.reshape(-1, K, 4).sum(-1), atol=1e-6)
    h = H[: len(v)].astype(np.float32)
    found = np.asarray(jax.jit(MACHINE.visible_mean)(params, v, h))
    for i in range(D):
        on, off = v.copy(), v.copy()
        on[:, i], off[:, i] = 1, 0
        gain = np.diagonal(energies(params, off, h) - energies(params, on, h))
        np.testing.assert_allclose(found[:, i], expit(gain), atol=1e-6)


def test_wide_images_pool_by_block():
    """A 4 x 7 image, filters of 3 x 3, maps of 2 x 5: pooled one by one, and refused in pairs."""
    machine = ConvolutionalRBM(1, filter_size=3, pool=1, image_shape=(4, 7))
    params = machine.initial(jax.random.key(0), np.full((5, 28), 0.5, np.float32))
    v = np.random.default_rng(0).integers(0, 2, (3, 28)).astype(np.float32)
    maps = machine.maps(machine.hidden_mean(params, v), 28)
    image, weights = v[1].reshape(4, 7), np.asarray(params["weights"]).reshape(3, 3)
    assert maps.shape == (3, 1, 2, 5)
    assert float(maps[1, 0, 1, 3]) == pytest.approx(expit((image[1:4, 3:6] * weights).sum()), abs=1e-6)
    with pytest.raises(ValueError, match="maps of 2 x 5 on images of 4 x 7, which do not part into blocks of 2 x 2"):
        ConvolutionalRBM(1, filter_size=3, pool=2, image_shape=(4, 7)).initial(jax.random.key(0), v)


def test_log_partition_draws_and_both_annealings():
    """Three standard errors of two estimates, at fixed keys: a false alarm in 1 of 180 seeds."""
    params = random_params(1)
    exact = logsumexp(-energies(params, V, H))
    assert float(jax.jit(MACHINE.log_partition)(params)) == pytest.approx(exact, abs=1e-5)
    x = np.asarray(MACHINE.exact_draws(jax.random.key(0), params, 1000))
    p = np.exp(logsumexp(-energies(params, V, H), 1) - exact)
    assert (np.abs(x.mean(0) - p @ V) < 5 * x.std(0) / 1000**0.5).all()  # false alarm: 1 in 200,000
    betas = np.linspace(0, 1, 100)
    for found in (
        annealed(MACHINE, params, x, key=jax.random.key(1), num_chains=1000, betas=betas),
        reverse_annealed(MACHINE, params, x, x, key=jax.random.key(2), betas=betas),
    ):
        low, high = found.interval
        assert low < exact < high and found.error < 0.1


@pytest.mark.parametrize("clamped", [False, True])
def test_chains_do_not_drift(clamped):
    """From exact draws, also of p(v, h | the first column), total variation stays within four times that of draws."""
    params, rng = random_params(2), np.random.default_rng(0)
    log_p = -energies(params, V, H)
    observed = np.zeros(D, bool)
    if clamped:
        observed[::3] = True
        log_p = np.where((V[:, observed] == [1, 0, 1]).all(1)[:, None], log_p, -np.inf)
    p = np.exp(log_p - logsumexp(log_p))
    picked = V[rng.choice(len(V), 20_000, p=p.sum(1))].astype(np.float32)
    chains = simulate(MACHINE, params, picked, key=jax.random.key(0), num_sweeps=5, observed=observed)
    table = np.zeros(2 ** (D + 4 * K))  # of all bits, in the order of `frequencies`
    bits = np.concatenate([np.repeat(V, len(H), 0), np.tile(H, (len(V), 1))], 1).astype(int)
    table[bits @ 2 ** np.arange(bits.shape[1])[::-1]] = p.ravel()
    assert excess(chains.v[0], chains.h[0], table) < 4


def test_shifted_couplings_change_the_energy_by_a_constant():
    params, rng = random_params(3), np.random.default_rng(1)
    m, means = np.float32(0.3), np.array([0.2, 0.1], np.float32)
    offset = np.repeat(means, 4)
    shifted = MACHINE.shifted(params, np.full(D, m), offset)
    flat = params | {n: np.zeros_like(params[n]) for n in ("visible_bias", "hidden_bias")}
    v = V[rng.choice(len(V), 20)]
    biases = energies(params, v, H) - energies(flat, v, H)
    moved = energies(flat, v - m, H - offset) + biases
    assert np.ptp(energies({n: np.asarray(x) for n, x in shifted.items()}, v, H) - moved) < 1e-4
    back = MACHINE.shifted(shifted, np.full(D, -m), -offset)
    assert all(np.allclose(back[n], params[n], atol=1e-6) for n in params)


@pytest.mark.slow
def test_persistent_chains_learn_what_the_exact_gradient_does():
    """Bars and stripes, of which filters of 2 x 2 see parts: within 0.1 nats of maximum likelihood by enumeration."""
    x, machine = bars_and_stripes(3), ConvolutionalRBM(8, filter_size=2, pool=2)
    settings = {"key": 0, "num_steps": 3000, "progress": False}
    falling = optax.adam(optax.linear_schedule(0.02, 1e-4, 3000))
    chains = fit(ContrastiveDivergence(machine, persistent=True, optimizer=falling, num_particles=500), x, **settings)
    climb = fit(SVI(MaximumLikelihood(machine), empty, ELBO(), falling), x, **settings)
    found, best = bracket(chains, x), climb.log_likelihood(x).mean
    assert found.is_exact and best - 0.1 < found.mean
    assert best > -9 * np.log(2) + 0.9  # independent pixels
    assert chains.generate(6)["x"].shape == (6, 9)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ConvolutionalRBM(0, 5), r"\(num_filters, filter_size, pool\) is \(0, 5, 1\); expected whole numbers"),
        (lambda: ConvolutionalRBM(2, 5, pool=1.5), r"is \(2, 5, 1.5\)"),
        (lambda: ConvolutionalRBM(2, 5, weight_scale=-1.0), "weight_scale is -1.0; give a positive number"),
        (lambda: ConvolutionalRBM(2, 5, weight_scale="1"), "weight_scale is '1'; give a positive number"),
        (
            lambda: ConvolutionalRBM(2, 5, image_shape=[9, 9]),
            r"image_shape is \[9, 9\]; give \(height, width\), as a tuple",
        ),
        (lambda: ConvolutionalRBM(2, 5, image_shape=(9, 9, 1)), r"image_shape is \(9, 9, 1\); give"),
        (lambda: ConvolutionalRBM(2, 5, image_shape=(-9, 9)), r"image_shape is \(-9, 9\); expected whole numbers"),
        (
            lambda: ConvolutionalRBM(2, 5).initial(jax.random.key(0), jnp.zeros((2, 10))),
            "10 columns, which are no image",
        ),
        (
            lambda: MACHINE.log_partition({n: jnp.zeros(s) for n, s in (SHAPES | {"visible_bias": (25,)}).items()}),
            r"the 2\^25 states of its 25 pixels, and is made up to 20",
        ),
    ],
)
def test_bad_input(make, message):
    with pytest.raises(ValueError, match=message):
        make()
