r"""Moves along what the likelihood does not see, so that Gibbs need not walk there: W, z and mu changed together.

    x_n = W z_n + mu + noise    is the same under    z_n -> z_n + a,      mu -> mu - W a           (shift)
                                                     z_n -> Rᵀ z_n,       W -> W R,   RᵀR = I      (rotation)
                                                     z_nj -> c_j z_nj,    w_j -> w_j / c_j         (scale)

so along each of them the posterior is the prior, of the rows' z and of (W, mu) given Psi. With z drawn given W and
W given z in turns, a step along them is as small as the noise (W is known, given z, to within noise / sqrt(N)): the
better the signal, the slower the chain. Drawing a, R and c from their conditional on the orbit (times the Haar measure
of the group and the Jacobian) leaves the posterior as it is and takes the whole way at once. With s = mean_scale

    p(a) ∝ N(a | -P⁻¹ (sum z - Wᵀ Psi⁻¹ mu / s²), P⁻¹),   P = N I + Wᵀ Psi⁻¹ W / s².

In PPCA and factor analysis (:func:`move`), with S_j = sum z_nj² and V_j = w_jᵀ Psi⁻¹ w_j / loadings_scale²,

    R ~ uniform,
    p(t_j) ∝ exp[½ (N - D) t_j - ½ (S_j eᵗʲ + V_j e⁻ᵗʲ)],    t_j = 2 log c_j;

the last is log-concave, and its draw a Metropolis step whose proposal is a Student t about the mode, which does not
depend on where on the orbit the chain is. In Bayesian PCA, whose columns have precisions alpha_j of their own,

    rotation of columns i, j by theta: with M = WᵀW / sigma², log density
                 -½ (alpha_i - alpha_j) (½ (M_ii - M_jj) cos 2 theta + M_ij sin 2 theta),
                 a von Mises in 2 theta, moved by one slice step, as its slice is an arc (:func:`turn`),
    scale        z_j √v, w_j / √v, alpha_j v:  v ~ Gamma(N / 2 + a,  ½ S_j + b alpha_j),
                 a, b = precision_shape, precision_rate (:func:`relevance_scale`).

References
----------
Liu and Sabatti, "Generalised Gibbs sampler and multigrid Monte Carlo for Bayesian computation", 2000.
Neal, "Slice sampling", 2003.
Ghosh and Dunson, "Default prior distributions and efficient posterior computation in Bayesian factor analysis", 2009.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
from jax.scipy.stats import t as student
from jaxtyping import Array, Float

from ppl_models.linear_gaussian import LatentMoments

if TYPE_CHECKING:
    from ppl_models.bayesian_pca import BayesianPCA
    from ppl_models.ppca import _FactorModel

_TAILS = 4.0  # degrees of freedom of the proposal

Params = dict[str, Float[Array, "..."]]


def shift(key: Array, params: Params, s: LatentMoments, mean_scale: float) -> tuple[Params, LatentMoments]:
    """Shift z and the mean; float64."""
    w, mu = params["loadings"], params["mean"]
    with jax.enable_x64(False):  # float64 bits cannot be drawn in a jit whose x64 is off
        normal = jax.random.normal(key, s.z.shape)
    with jax.enable_x64(True):
        weighted = w / params["noise_variance"].reshape(-1, 1) / mean_scale**2  # Psi⁻¹ W / s²
        factor = jnp.linalg.cholesky(s.count * jnp.eye(len(s.z)) + w.T @ weighted)  # P = L Lᵀ
        a = jax.scipy.linalg.cho_solve((factor, True), weighted.T @ mu - s.z)
        a += jax.scipy.linalg.solve_triangular(factor, normal.astype(jnp.float64), trans=1, lower=True)
        cross = jnp.outer(s.z, a)
        zz = s.zz + cross + cross.T + s.count * jnp.outer(a, a)
        return params | {"mean": mu - w @ a}, LatentMoments(s.count, s.z + s.count * a, zz)


def move(model: _FactorModel, key: Array, params: Params, s: LatentMoments) -> Params:
    """Shift, rotate and scale the globals of PPCA or factor analysis; float64.

    z itself need not be changed: the next thing a sweep does is to draw it anew.
    """
    q = model.latent_dim
    keys = jax.random.split(key, 4)
    params, s = shift(keys[0], params, s, model.mean_scale)
    with jax.enable_x64(False):
        gaussian = jax.random.normal(keys[1], (q, q))
        jump, uniform = jax.random.t(keys[2], _TAILS, (q,)), jax.random.uniform(keys[3], (q,))
    with jax.enable_x64(True):
        gaussian, jump, uniform = (v.astype(jnp.float64) for v in (gaussian, jump, uniform))
        rotation, triangle = jnp.linalg.qr(gaussian)
        rotation = rotation * jnp.sign(jnp.diagonal(triangle))  # uniform over rotations and reflections
        w = params["loadings"] @ rotation
        energy = jnp.diagonal(rotation.T @ s.zz @ rotation)  # S
        prior = (w**2 / params["noise_variance"].reshape(-1, 1)).sum(0) / model.loadings_scale**2  # V
        scale = jnp.exp(-0.5 * _scale(s.count - len(w), energy, prior, jump, uniform))
        return params | {"loadings": w * scale}


def turn(key: Array, loadings: Float[Array, "D q"], alpha: Float[Array, " q"], variance: Array) -> Float[Array, "q q"]:
    """A rotation of random disjoint pairs of columns: they do not touch each other, so all pairs move at once."""
    key_pairs, key_level, key_angle = jax.random.split(key, 3)
    pairs = len(alpha) // 2
    i, j = jax.random.permutation(key_pairs, len(alpha))[: 2 * pairs].reshape(2, pairs)
    second = loadings.T @ loadings / variance  # M
    gap = -0.5 * (alpha[i] - alpha[j])
    along, across = gap * 0.5 * (second[i, i] - second[j, j]), gap * second[i, j]
    concentration, mode = jnp.hypot(along, across), jnp.arctan2(across, along)
    # 2 theta - mode = phi has density exp(concentration cos phi), and is -mode now. The slice at height
    # exp(-e) below it is |phi| < A with sin²(A / 2) = sin²(mode / 2) + e / (2 concentration).
    below = jax.random.exponential(key_level, (pairs,), jnp.float32).astype(jnp.float64)
    arc = jnp.sin(mode / 2) ** 2 + below / (2 * jnp.maximum(concentration, 1e-300))
    widest = 2 * jnp.arcsin(jnp.sqrt(jnp.minimum(arc, 1.0)))
    phi = widest * jax.random.uniform(key_angle, (pairs,), jnp.float32, -1.0, 1.0).astype(jnp.float64)
    cos, sin = jnp.cos((phi + mode) / 2), jnp.sin((phi + mode) / 2)
    return jnp.eye(len(alpha)).at[i, i].set(cos).at[j, j].set(cos).at[j, i].set(sin).at[i, j].set(-sin)


def relevance_scale(
    model: BayesianPCA, s: LatentMoments, rotation: Float[Array, "q q"], alpha: Float[Array, " q"]
) -> tuple[Float[Array, " q"], Float[Array, " q"]]:
    """Shape and rate of the Gamma of each v, for z rotated."""
    energy = jnp.diagonal(rotation.T @ s.zz @ rotation)  # S
    shape = jnp.broadcast_to(s.count / 2 + model.precision_shape, alpha.shape)
    return shape, 0.5 * energy + model.precision_rate * alpha


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
