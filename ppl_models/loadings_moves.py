r"""Moves along what the likelihood does not see, so that Gibbs need not walk there: W, z and mu changed together.

    x_n = W z_n + mu + noise    is the same under    z_n -> z_n + a,      mu -> mu - W a           (shift)
                                                     z_n -> Rᵀ z_n,       W -> W R,   RᵀR = I      (rotation)
                                                     z_nj -> c_j z_nj,    w_j -> w_j / c_j         (scale)

so along each of them the posterior is the prior, of the rows' z and of (W, mu) given Psi. With z drawn given W and
W given z in turns, a step along them is as small as the noise (W is known, given z, to within noise / sqrt(N)): the
better the signal, the slower the chain. Drawing a, R and c from their conditional on the orbit (times the Haar measure
of the group and the Jacobian) leaves the posterior as it is and takes the whole way at once:

    p(a) ∝ N(a | -P⁻¹ (sum z - Wᵀ Psi⁻¹ mu / s²), P⁻¹),   P = N I + Wᵀ Psi⁻¹ W / s²,    s = mean_scale,
    R ~ uniform,
    p(t_j) ∝ exp[½ (N - D) t_j - ½ (S_j eᵗʲ + V_j e⁻ᵗʲ)],    t_j = 2 log c_j,

with S_j = sum z_nj² and V_j = w_jᵀ Psi⁻¹ w_j / loadings_scale². The last is log-concave; its draw is a Metropolis step
whose proposal is a Student t about the mode, which does not depend on where on the orbit the chain is.

References
----------
Liu and Sabatti, "Generalised Gibbs sampler and multigrid Monte Carlo for Bayesian computation", 2000.
Ghosh and Dunson, "Default prior distributions and efficient posterior computation in Bayesian factor analysis", 2009.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
from jax.scipy.stats import t as student
from jaxtyping import Array, Float

if TYPE_CHECKING:
    from ppl_models.ppca import PPCA, FactorAnalysis

_TAILS = 4.0  # degrees of freedom of the proposal

Params = dict[str, Float[Array, "..."]]


def move(
    model: PPCA | FactorAnalysis,
    key: Array,
    params: Params,
    count: Float[Array, ""],
    z: Float[Array, " q"],
    zz: Float[Array, "q q"],
) -> Params:
    """Shift, rotate and scale the globals, given the sums over rows of 1, z and z zᵀ; float64.

    z itself need not be changed: the next thing a sweep does is to draw it anew.
    """
    q = model.latent_dim
    keys = jax.random.split(key, 4)
    with jax.enable_x64(False):  # float64 bits cannot be drawn in a jit whose x64 is off
        normal, gaussian = jax.random.normal(keys[0], (q,)), jax.random.normal(keys[1], (q, q))
        jump, uniform = jax.random.t(keys[2], _TAILS, (q,)), jax.random.uniform(keys[3], (q,))
    with jax.enable_x64(True):
        normal, gaussian, jump, uniform = (v.astype(jnp.float64) for v in (normal, gaussian, jump, uniform))
        w, mu = params["loadings"], params["mean"]
        weighted = w / params["noise_variance"].reshape(-1, 1)  # Psi⁻¹ W

        factor = jnp.linalg.cholesky(count * jnp.eye(q) + w.T @ weighted / model.mean_scale**2)  # P = L Lᵀ
        pull = weighted.T @ mu / model.mean_scale**2 - z
        shift = jax.scipy.linalg.cho_solve((factor, True), pull)
        shift += jax.scipy.linalg.solve_triangular(factor, normal, trans=1, lower=True)
        mu = mu - w @ shift
        zz = zz + jnp.outer(z, shift) + jnp.outer(shift, z) + count * jnp.outer(shift, shift)

        rotation, triangle = jnp.linalg.qr(gaussian)
        rotation = rotation * jnp.sign(jnp.diagonal(triangle))  # uniform over rotations and reflections
        w = w @ rotation
        energy = jnp.diagonal(rotation.T @ zz @ rotation)  # S
        prior = (w**2 / params["noise_variance"].reshape(-1, 1)).sum(0) / model.loadings_scale**2  # V
        return params | {
            "loadings": w * jnp.exp(-0.5 * _scale(count - len(w), energy, prior, jump, uniform)),
            "mean": mu,
        }


def _scale(
    excess: Float[Array, ""],
    energy: Float[Array, " q"],
    prior: Float[Array, " q"],
    jump: Float[Array, " q"],
    uniform: Float[Array, " q"],
) -> Float[Array, " q"]:
    """A Metropolis step from t = 0, with p(t) ∝ exp[½ excess t - ½ (energy eᵗ + prior e⁻ᵗ)]."""
    # energy h² - excess h - prior = 0 at the mode h = eᵗ, in the form without cancellation
    root = jnp.sqrt(excess**2 + 4 * energy * prior)
    mode = jnp.log(jnp.where(excess > 0, (excess + root) / (2 * energy), 2 * prior / (root - excess)))
    width = 1 / jnp.sqrt(0.5 * (energy * jnp.exp(mode) + prior * jnp.exp(-mode)))

    def weight(t: Array) -> Array:  # log target - log proposal
        target = 0.5 * excess * t - 0.5 * (energy * jnp.exp(t) + prior * jnp.exp(-t))
        return target - student.logpdf(t, _TAILS, mode, width)

    proposed = mode + width * jump
    return jnp.where(jnp.log(uniform) < weight(proposed) - weight(jnp.zeros_like(mode)), proposed, 0.0)
