"""A VAE with a linear decoder and Gaussian noise, where evidence and posterior are known: PPCA with given loadings.

    x = W z + b + s e,    p(x) = N(b, W Wᵀ + s² I),    p(z | x) = N(A (x - b), s² M⁻¹),    M = WᵀW + s² I,  A = M⁻¹Wᵀ

The loadings are rotated, so that the posterior's axes are not the coordinates': the best q with independent
coordinates, N(A (x - b), 1 / diag(precision)), stays below the evidence by ½ (sum log Λ_ii - log|Λ|), Λ = M / s².
"""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from numpyro import handlers
from scipy import stats

from inference.objectives import ELBO, IWAE
from inference.programs import on_rows
from inference.protocols import Batch
from ppl_models import VAE
from ppl_models.likelihoods import Gaussian
from ppl_models.networks import Linear

S = 0.5
W = np.array([[2.0, 1.6], [1.0, 1.2], [-0.5, 0.3]])
B = np.array([0.3, -0.2, 0.1])
LAMBDA = W.T @ W / S**2 + np.eye(2)
A = np.linalg.solve(LAMBDA, W.T / S**2)
MODEL = VAE(2, Linear(), Gaussian(S))
GAP = 0.5 * (np.log(np.diag(LAMBDA)).sum() - np.linalg.slogdet(LAMBDA)[1])  # 0.9 nats


def rows(count: int = 5) -> np.ndarray:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(count, 2)) @ W.T + B + S * rng.normal(size=(count, 3))
    return x.astype(np.float32)


def log_evidence(x: np.ndarray) -> np.ndarray:
    return stats.multivariate_normal(B, W @ W.T + S**2 * np.eye(3)).logpdf(x)


def affine(weight: np.ndarray, bias: np.ndarray):
    """Parameters of a ``Linear()`` with these numbers."""
    layer = Linear().build(weight.shape[1], weight.shape[0], jax.random.key(0))
    layer = eqx.tree_at(lambda at: (at.weight, at.bias), layer, (jnp.float32(weight), jnp.float32(bias)))
    return eqx.filter(layer, eqx.is_array)


def inverse_softplus(y: np.ndarray) -> np.ndarray:
    return np.log(np.expm1(y))


DECODER = affine(W, B)


def encoder(raw: np.ndarray):
    """Weights of a ``Linear()`` encoder with the exact posterior mean, and these other outputs whatever the row."""
    weight = np.concatenate([A, np.zeros((len(raw), 3))])
    return affine(weight, np.concatenate([-A @ B, raw]))


# The best scales of independent coordinates, and the Cholesky factor of the exact covariance.
DIAGONAL = encoder(inverse_softplus(np.diag(LAMBDA) ** -0.5))
_L = np.linalg.cholesky(np.linalg.inv(LAMBDA))
FULL = encoder(np.array([inverse_softplus(_L[0, 0]), _L[1, 0], inverse_softplus(_L[1, 1])]))


def fresh(guide, x, key=0):
    """The guide's parameters as they start."""
    trace = handlers.trace(handlers.seed(guide, rng_seed=key)).get_trace(x)
    return {n: s["value"] for n, s in trace.items() if s["type"] == "param"}


def bounds(guide, params, x, draws=1, particles=1, objective=None, model=MODEL):
    """Independent draws of the bound, in nats for all rows: the ELBO, or IWAE's with more than one particle."""
    batch = Batch({"x": jnp.asarray(x)}, jnp.arange(len(x)), len(x))
    objective = objective or (ELBO() if particles == 1 else IWAE(particles))

    def bound(key):
        p, q = on_rows(model, batch), on_rows(guide, batch)
        return objective.evaluate(key, {"decoder": DECODER} | params, p, q, **batch.data).bound

    return np.float64(jax.jit(lambda keys: jax.lax.map(bound, keys))(jax.random.split(jax.random.key(1), draws)))


def climb(guide, params, x, num_steps, learning_rate=1e-2, num_particles=10):
    """The guide's parameters after so many steps of Adam on the ELBO, the decoder held."""
    batch = Batch({"x": jnp.asarray(x)}, jnp.arange(len(x)), len(x))
    optimizer = optax.adam(optax.exponential_decay(learning_rate, num_steps, 0.05))

    def loss(params, key):
        p, q = on_rows(MODEL, batch), on_rows(guide, batch)
        return ELBO(num_particles).evaluate(key, params | {"decoder": DECODER}, p, q, **batch.data).loss

    def step(state, key):
        params, moments = state
        updates, moments = optimizer.update(jax.grad(loss)(params, key), moments, params)
        return (optax.apply_updates(params, updates), moments), None

    keys = jax.random.split(jax.random.key(2), num_steps)
    return jax.jit(lambda state: jax.lax.scan(step, state, keys)[0])((params, optimizer.init(params)))[0]
