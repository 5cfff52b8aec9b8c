r"""Spectral normalisation: every weight matrix divided by its largest singular value, W / sigma(W).

Affine maps of norm one and activations of slope at most one make a function whose Lipschitz constant is at most one,
whatever its weights: what a critic needs, without clipping or a penalty.

References
----------
Spectral Normalization for Generative Adversarial Networks (Miyato, Kataoka, Koyama and Yoshida, 2018).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.lax import stop_gradient
from jaxtyping import Array, Float

from .layers import check_sizes
from .mlp import MLP


@dataclass(frozen=True)
class SpectralNorm:
    """An architecture whose weights are normalised as it is applied.

    Parameters
    ----------
    network
        Any architecture that builds an Equinox module. A kernel (out, in, height, width) counts as a matrix
        (out, in height width), whose norm is near that of the convolution, not equal to it. Biases (leaves of that
        name, which Equinox's convolutions keep as (out, 1, 1)) and weights that are all zero stay as they are.
    num_iterations
        Of the power method that finds sigma. It starts anew at every step from one vector, so that a network has no
        state beside its weights; sigma is then too small by less than a hundredth, as a rule.

    Raises
    ------
    ValueError
        ``num_iterations`` is not a whole number of at least 1.
    """

    network: Any = MLP((128, 128), "relu")
    num_iterations: int = 20

    def __post_init__(self) -> None:
        check_sizes("num_iterations", (self.num_iterations,))

    def build(self, in_size: int, out_size: int, key: Array) -> eqx.Module:
        """Equinox module that maps one row ``(in_size,)`` to ``(out_size,)``, with fresh weights."""
        build = getattr(self.network, "build", self.network)
        return _Normalised(build(in_size, out_size, key), self.num_iterations)


class _Normalised(eqx.Module):
    inner: Any
    num_iterations: int = eqx.field(static=True)

    def __call__(self, row: Float[Array, " in"], *, key: Array | None = None) -> Float[Array, " out"]:
        def normalise(path: Any, w: Any) -> Any:
            if not eqx.is_array(w) or w.ndim < 2 or getattr(path[-1], "name", None) == "bias":
                return w
            norm = spectral_norm(w, self.num_iterations)
            return w / jnp.where(norm > 0, norm, 1.0)

        return jax.tree_util.tree_map_with_path(normalise, self.inner)(row)


def spectral_norm(weight: Float[Array, "out *rest"], num_iterations: int) -> Float[Array, ""]:
    """The largest singular value, sigma = uᵀ W v, whose gradient is u vᵀ."""
    w = weight.reshape(len(weight), -1)
    fixed = stop_gradient(w)
    start = jnp.asarray(np.random.default_rng(0).normal(size=w.shape[1]), w.dtype)
    v = lax.fori_loop(0, num_iterations, lambda _, v: _unit(fixed.T @ _unit(fixed @ v)), start)
    return _unit(fixed @ v) @ w @ v


def _unit(v: Float[Array, " n"]) -> Float[Array, " n"]:
    return v / (jnp.linalg.norm(v) + 1e-12)


__all__ = ["SpectralNorm", "spectral_norm"]
