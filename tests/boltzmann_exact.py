"""Small Boltzmann machines by brute force, in float64 NumPy: what their tests and those of their samplers share."""

from __future__ import annotations

import itertools

import jax
import numpy as np
from scipy.special import logsumexp
from scipy.stats import norm

from ppl_models import RBM, BoltzmannMachine, GaussianRBM

D, H = 3, 2
MACHINES = {
    "RBM": RBM(H),
    "general": BoltzmannMachine(H),
    "one hidden": BoltzmannMachine(1),
    "fully visible": BoltzmannMachine(0),
    "Gaussian": GaussianRBM(H),
}
BITS = {n: np.array(list(itertools.product((0.0, 1.0), repeat=n))) for n in range(D + H + 1)}


def random_params(machine, seed=0, columns=D, scale=1.0):
    """Parameters of some size, by site name, float32."""
    rng, hidden = np.random.default_rng(seed), machine.num_hidden
    shapes = {"visible_bias": (columns,), "weights": (columns, hidden), "hidden_bias": (hidden,)}
    if isinstance(machine, GaussianRBM):
        shapes["log_variance"] = (columns,)
    if isinstance(machine, BoltzmannMachine):
        shapes |= {"visible_couplings": (columns * (columns - 1) // 2,)}
        shapes |= {"hidden_couplings": (hidden * (hidden - 1) // 2,)}
    return {n: rng.normal(0, scale, s).astype(np.float32) for n, s in shapes.items() if 0 not in s}


def energy(machine, params, v, h, beta=1.0, base=None):
    """E_beta(v, h) by its definition, entry by entry."""
    p = {n: np.float64(x) for n, x in params.items()}
    total = 0.0
    for i, j in itertools.product(range(v.shape[-1]), range(machine.num_hidden)):
        variance = np.exp(p["log_variance"][i]) if "log_variance" in p else 1.0
        total = total - v[..., i] * p["weights"][i, j] * h[..., j] / variance
    total = total - (h @ p["hidden_bias"] if machine.num_hidden else 0.0)
    if "log_variance" in p:
        total = total + ((v - p["visible_bias"]) ** 2 / (2 * np.exp(p["log_variance"]))).sum(-1)
    else:
        total = total - v @ p["visible_bias"]
    for name, units in (("visible_couplings", v), ("hidden_couplings", h)):
        pairs = itertools.combinations(range(units.shape[-1]), 2)
        for pair, (i, j) in enumerate(pairs):
            if name in p:
                total = total - 2 * p[name][pair] * units[..., i] * units[..., j]  # R_ij and R_ji
    if base is None:
        return total
    if "log_variance" in p:
        mean, log_variance = map(np.float64, base)
        return beta * total + (1 - beta) * ((v - mean) ** 2 / (2 * np.exp(log_variance))).sum(-1)
    return beta * total - (1 - beta) * v @ np.float64(base)


def gaussian_given_hidden(params, h, beta=1.0, base=None):
    """Mean and precision of v given h, at an inverse temperature: of the sum of the quadratic forms."""
    own = beta / np.exp(np.float64(params["log_variance"]))
    mean, log_variance = base if base is not None else (0.0, 0.0)
    rest = (1 - beta) / np.exp(np.float64(log_variance)) * np.ones_like(own)
    pull = own * (params["visible_bias"] + h @ np.float64(params["weights"]).T) + rest * np.float64(mean)
    return pull / (own + rest), own + rest


def joint_table(machine, params, beta=1.0, base=None):
    """States (v, h) and their log weights; of the Gaussian machine states h, v integrated out."""
    if isinstance(machine, GaussianRBM):
        h = BITS[machine.num_hidden]
        mean, precision = gaussian_given_hidden(params, h, beta, base)
        # the integral of a quadratic form from its value at its minimum
        least = energy(machine, params, mean, h, beta, base)
        return h, -least + 0.5 * (np.log(2 * np.pi) - np.log(precision)).sum()
    states = BITS[D + machine.num_hidden]
    return states, -energy(machine, params, states[:, :D], states[:, D:], beta, base)


def log_partition(machine, params):
    return logsumexp(joint_table(machine, params)[1])


def draws(machine, params, count, seed, beta=1.0, base=None):
    """Exact, independent draws (v, h), float32."""
    rng = np.random.default_rng(seed)
    states, log_weights = joint_table(machine, params, beta, base)
    picked = states[rng.choice(len(states), count, p=np.exp(log_weights - logsumexp(log_weights)))]
    if isinstance(machine, GaussianRBM):
        mean, precision = gaussian_given_hidden(params, picked, beta, base)
        return (mean + rng.normal(size=mean.shape) / precision**0.5).astype(np.float32), picked.astype(np.float32)
    return picked[:, :D].astype(np.float32), picked[:, D:].astype(np.float32)


def law(machine, params, beta=1.0, base=None):
    """Probabilities of the states that :func:`counts` counts."""
    states, log_weights = joint_table(machine, params, beta, base)
    p = np.exp(log_weights - logsumexp(log_weights))
    if not isinstance(machine, GaussianRBM):
        return p
    mean, precision = gaussian_given_hidden(params, states, beta, base)
    on = norm.cdf(mean * precision**0.5)  # p(v_i > 0 | h)
    signs = BITS[D]
    given = np.prod(np.where(signs[:, None] > 0, on, 1 - on), axis=-1)  # (signs, h)
    return (given * p).ravel()


def frequencies(v, h):
    """Of the states (v > 0, h), in the order of :func:`law`."""
    bits = np.concatenate([np.asarray(v) > 0, np.asarray(h) > 0], axis=-1).astype(int)
    index = bits @ 2 ** np.arange(bits.shape[-1])[::-1]
    return np.bincount(index, minlength=2 ** bits.shape[-1]) / len(bits)


def excess(v, h, p):
    """Total variation between counted frequencies and p, in multiples of its expectation for exact draws."""
    floor = 0.5 * np.sqrt(2 * p * (1 - p) / np.pi / len(v)).sum()
    return 0.5 * np.abs(frequencies(v, h) - p).sum() / floor


def given_observed(machine, params, values, seen):
    """Probabilities of the states of (unobserved v, h), those of v by sign, given the observed entries of v.

    Of the Gaussian machine v_i and v_j are independent given h, so that observing some of them reweighs h alone.
    """
    free = int((~seen).sum())
    states = BITS[free + machine.num_hidden]
    if not isinstance(machine, GaussianRBM):
        v = np.tile(np.float64(values), (len(states), 1))
        v[:, ~seen] = states[:, :free]
        log_p = -energy(machine, params, v, states[:, free:])
        return np.exp(log_p - logsumexp(log_p))
    h = BITS[machine.num_hidden]
    log_p = joint_table(machine, params)[1]
    mean, precision = gaussian_given_hidden(params, h)
    log_p = log_p + norm.logpdf(values, mean, precision**-0.5)[:, seen].sum(-1)
    given = norm.cdf(mean * precision**0.5)[:, ~seen]
    signs = BITS[free]
    given = np.prod(np.where(signs[:, None] > 0, given, 1 - given), axis=-1)
    return (given * np.exp(log_p - logsumexp(log_p))).ravel()


def base_of(machine):
    """The base-rate model of some rows, and its log partition function."""
    rows = np.random.default_rng(7).normal(0.5, 0.7, (50, D)).astype(np.float32)
    rows = rows if isinstance(machine, GaussianRBM) else (rows > 0.3).astype(np.float32)
    base, log_z = jax.jit(machine.base_rate)(rows)
    return jax.tree.map(np.asarray, base), float(log_z)


def bars_and_stripes(size):
    """All images whose rows, or whose columns, are each of one colour; blank and full ones twice: 2^(size + 1) rows."""
    lines = BITS[size]
    across = np.repeat(lines[:, :, None], size, axis=2)
    return np.concatenate([across, across.swapaxes(1, 2)]).reshape(-1, size**2).astype(np.float32)


def shifting_bar(size=9, length=4):
    """A bar at every position of a ring."""
    return np.stack([np.roll(np.arange(size) < length, shift) for shift in range(size)]).astype(np.float32)
