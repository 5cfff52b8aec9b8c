"""A training step of each kin of the VAE, against the same step written by hand in JAX.

Rows of 784 random bits, batch 100, networks with hidden layers of 200 tanh units, Adam. Both sides start from the same
weights and see the same rows, so that their losses, minus the mean bound of the last 20 steps, differ by Monte Carlo
error alone; by hand softplus is JAX's, as a person would write it. ``fit``'s own runner and loops written out by hand
run in this one process, compiled with the same options; blocks of steps are interleaved, so that a noisy machine
troubles both alike, and medians are compared.

    python benchmarks/vae_family_step.py
    python benchmarks/vae_family_step.py --steps 50 --rounds 9 --only VampPrior
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from math import expm1, log, pi
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from _sides import Sides, blocks, compare, started
from jax import lax
from jax.nn import log_softmax, one_hot, sigmoid, softmax, softplus
from jax.random import normal
from jax.scipy.special import logsumexp

import guides
from inference import SVI
from inference.compiled import jit
from inference.objectives import ELBO, IWAE, EnumeratedELBO, GumbelSoftmax
from ppl_models import VAE, CategoricalVAE, ConditionalVAE, HierarchicalVAE, SemiSupervisedVAE
from ppl_models.networks import MLP
from ppl_models.networks.bijections import AutoregressiveFlow
from ppl_models.priors import VampPrior

BATCH, PIXELS, LATENT, CLASSES = 100, 784, 50, 10
CHOICES, CATEGORIES, TEMPERATURE = 30, 10, 0.5
LAYERS, PARTICLES = (100, 50), 5
PSEUDO_INPUTS, WIDTH, CONTEXT = 500, 64, 16  # the latter two of the flow's networks
LEAST, START = 0.01, log(expm1(0.99))  # of its layers' scales, which start near 1
RATE, FLOOR = 1e-3, 1e-6

Array = jax.Array
Params = dict[str, list[Array]]  # of each network: weights (out, in) and biases, layer by layer
Loss = Callable[..., Array]  # (params, key, **batch) to minus the bound of each row


# --- by hand --------------------------------------------------------------------------------------------------------
def mlp(layers: list[Array], x: Array) -> Array:
    *hidden, (w, b) = zip(layers[::2], layers[1::2], strict=True)
    for v, c in hidden:
        x = jnp.tanh(x @ v.T + c)
    return x @ w.T + b


def beside(*parts: Array) -> Array:
    return jnp.concatenate(parts, axis=-1)


def loc_scale(outputs: Array) -> tuple[Array, Array]:
    m, raw = jnp.split(outputs, 2, axis=-1)
    return m, softplus(raw) + FLOOR


def log_bernoulli(x: Array, logits: Array) -> Array:
    return jnp.sum(x * logits - softplus(logits), -1)


def log_normal(z: Array, m: Array | float = 0.0, s: Array | float = 1.0) -> Array:
    return jnp.sum(-0.5 * ((z - m) / s) ** 2 - jnp.log(s) - 0.5 * log(2 * pi), -1)


def kl(m: Array, s: Array) -> Array:
    """KL(N(m, s²) || N(0, I))."""
    return jnp.sum(0.5 * (m**2 + s**2 - 1) - jnp.log(s), -1)


def conditional(p: Params, key: Array, x: Array, y: Array) -> Array:
    c = one_hot(y, CLASSES)
    m, s = loc_scale(mlp(p["encoder"], beside(x, c)))
    z = m + s * normal(key, (BATCH, LATENT))
    return kl(m, s) - log_bernoulli(x, mlp(p["decoder"], beside(z, c)))


def semi_supervised(p: Params, key: Array, x: Array, y: Array) -> Array:
    log_q, e = log_softmax(mlp(p["classifier"], x)), normal(key, (BATCH, LATENT))

    def bound(c: Array) -> Array:  # L(x, y) of every row, were it of this class
        c = jnp.broadcast_to(c, (BATCH, CLASSES))
        m, s = loc_scale(mlp(p["encoder"], beside(x, c)))
        return log_bernoulli(x, mlp(p["decoder"], beside(m + s * e, c))) - kl(m, s) - log(CLASSES)

    bounds = jax.vmap(bound, out_axes=1)(jnp.eye(CLASSES))
    known = jnp.sum(one_hot(y, CLASSES) * (bounds + log_q), -1)
    return -jnp.where(y >= 0, known, jnp.sum(jnp.exp(log_q) * (bounds - log_q), -1))


def categorical(p: Params, key: Array, x: Array) -> Array:
    log_q = log_softmax(mlp(p["encoder"], x).reshape(BATCH, CHOICES, CATEGORIES))
    z = softmax((log_q + jax.random.gumbel(key, log_q.shape)) / TEMPERATURE)
    cost = jnp.sum(z * (log_q + log(CATEGORIES)), (1, 2))
    return cost - log_bernoulli(x, mlp(p["decoder"], z.reshape(BATCH, -1)))


def hierarchical(p: Params, key: Array, x: Array) -> Array:
    k1, k2 = jax.random.split(key)
    m1, s1 = loc_scale(mlp(p["encoder1"], x))
    z1 = m1 + s1 * normal(k1, (PARTICLES, BATCH, LAYERS[0]))
    m2, s2 = loc_scale(mlp(p["encoder2"], z1))
    z2 = m2 + s2 * normal(k2, (PARTICLES, BATCH, LAYERS[1]))
    log_p = log_normal(z2) + log_normal(z1, *loc_scale(mlp(p["decoder2"], z2)))
    log_w = log_p + log_bernoulli(x, mlp(p["decoder1"], z1)) - log_normal(z1, m1, s1) - log_normal(z2, m2, s2)
    return log(PARTICLES) - logsumexp(log_w, 0)


def vamp(p: Params, key: Array, x: Array) -> Array:
    m, s = loc_scale(mlp(p["encoder"], x))
    z = m + s * normal(key, (BATCH, LATENT))
    components = loc_scale(mlp(p["encoder"], sigmoid(p["pseudo_inputs"][0])))
    log_p = logsumexp(log_normal(z[:, None], *components), -1) - log(PSEUDO_INPUTS)
    return log_normal(z, m, s) - log_p - log_bernoulli(x, mlp(p["decoder"], z))


def full_covariance(p: Params, key: Array, x: Array) -> Array:
    outputs = mlp(p["encoder"], x)
    m, triangle = outputs[:, :LATENT], outputs[:, LATENT:]
    raw = jnp.zeros((BATCH, LATENT, LATENT)).at[:, *np.tril_indices(LATENT)].set(triangle)
    s = softplus(jnp.diagonal(raw, axis1=1, axis2=2)) + FLOOR
    tril = jnp.tril(raw, -1) + s[:, None] * jnp.eye(LATENT)
    z = m + jnp.einsum("nij,nj->ni", tril, normal(key, (BATCH, LATENT)))
    cost = 0.5 * (jnp.sum(tril**2, (1, 2)) + jnp.sum(m**2 - 1, 1)) - jnp.sum(jnp.log(s), 1)
    return cost - log_bernoulli(x, mlp(p["decoder"], z))


def autoregressive_flow(p: Params, key: Array, x: Array) -> Array:
    ins, units = np.append(np.arange(LATENT), [-1] * CONTEXT), np.arange(WIDTH) % LATENT - 1
    first, last = units[:, None] >= ins, np.repeat(np.arange(LATENT), 2)[:, None] > units
    outputs = mlp(p["encoder"], x)
    (m, s), h = loc_scale(outputs[:, : 2 * LATENT]), outputs[:, 2 * LATENT :]
    z = m + s * normal(key, (BATCH, LATENT))
    log_q = log_normal(z, m, s)
    for turn, w, b, v, c in ((1, *p["flow"][:4]), (-1, *p["flow"][4:])):
        z = z[:, ::turn]
        out = mlp([jnp.where(first, w, 0), b, jnp.where(last, v, 0), c], beside(z, h))
        m, s = out[:, ::2], softplus(out[:, 1::2] + START) + LEAST
        z, log_q = m + s * z, log_q - jnp.sum(jnp.log(s), -1)
    return log_q - log_normal(z) - log_bernoulli(x, mlp(p["decoder"], z))


def by_hand(loss: Loss, params: Params, batch: dict[str, Array], steps: int) -> Iterator[Array]:
    """Yield the mean loss of the last 20 steps of a block, after each."""
    optimizer = optax.adam(RATE)

    def block(carry: Any, key: Array, batch: dict[str, Array]) -> Any:
        def step(carry: Any, key: Array) -> Any:
            params, state = carry
            value, gradient = jax.value_and_grad(lambda p: jnp.mean(loss(p, key, **batch)))(params)
            updates, state = optimizer.update(gradient, state, params)
            return (optax.apply_updates(params, updates), state), value

        return lax.scan(step, carry, jax.random.split(key, steps))

    carry, compiled = (params, optimizer.init(params)), jit(block)
    for number in range(10**6):
        carry, losses = compiled(carry, jax.random.key(number), batch)
        yield losses[-20:].mean()


# --- the library ----------------------------------------------------------------------------------------------------
def pairs() -> dict[str, tuple[Any, Any, Any, Loss]]:
    """Model, guide and objective, and the loss by hand."""
    net, small = MLP((200, 200)), MLP((100, 100))
    vae, encoder = VAE(LATENT, net), guides.AmortizedNormal(LATENT, net)
    classes, choices = (CLASSES, LATENT, net), (CHOICES, CATEGORIES, net)
    given = ConditionalVAE(*classes), guides.ConditionalNormal(*classes)
    partly = SemiSupervisedVAE(*classes), guides.SemiSupervisedNormal(*classes, classifier=net)
    discrete = CategoricalVAE(*choices), guides.AmortizedCategorical(*choices)
    layers = HierarchicalVAE(LAYERS, (net, small)), guides.HierarchicalNormal(LAYERS, (net, small))
    mixture = VAE(LATENT, net, prior=VampPrior(encoder, PSEUDO_INPUTS)), encoder
    flow = guides.AmortizedFlow(LATENT, net, AutoregressiveFlow(2, WIDTH), CONTEXT)
    return {
        "ConditionalVAE, 10 classes": (*given, ELBO(), conditional),
        "SemiSupervisedVAE, EnumeratedELBO": (*partly, EnumeratedELBO(), semi_supervised),
        "CategoricalVAE, GumbelSoftmax": (*discrete, GumbelSoftmax(ELBO(), TEMPERATURE), categorical),
        "HierarchicalVAE, IWAE(5)": (*layers, IWAE(PARTICLES), hierarchical),
        "VAE, VampPrior of 500": (*mixture, ELBO(), vamp),
        "VAE, AmortizedFullNormal": (vae, guides.AmortizedFullNormal(LATENT, net), ELBO(), full_covariance),
        "VAE, AmortizedFlow, autoregressive": (vae, flow, ELBO(), autoregressive_flow),
    }


def sides(model: Any, guide: Any, objective: Any, loss: Loss, steps: int) -> Sides:
    """The library's step and the one by hand, from the same weights on the same rows."""
    rng = np.random.default_rng(0)
    x, y, hidden = rng.random((BATCH, PIXELS)) < 0.2, rng.integers(CLASSES, size=BATCH), rng.random(BATCH) < 0.5
    batch = {"x": jnp.asarray(x, jnp.float32)}
    if loss in (conditional, semi_supervised):
        batch["y"] = jnp.asarray(np.where(hidden & (loss is semi_supervised), -1, y), jnp.int32)
    runner, state = started(SVI(model, guide, objective, optax.adam(RATE)), batch, BATCH)
    params = {n: jax.tree.leaves(weights) for n, weights in state["params"].items()}
    ours = blocks(runner, state, steps, lambda metrics: -metrics["bound"])
    return ours, by_hand(loss, params, batch, steps)


def main(steps: int = 20, rounds: int = 7, only: str = "") -> None:
    """Time every pair, both ways.

    Args:
        steps: Steps of a block.
        rounds: Blocks timed of each, interleaved; one more is thrown away, to compile.
        only: Part of the names of those to time.
    """
    wanted = ((name, sides(*pair, steps)) for name, pair in pairs().items() if only in name)
    compare(f"A training step, batch {BATCH}", "−bound", wanted, steps, rounds)


if __name__ == "__main__":
    tyro.cli(main)
