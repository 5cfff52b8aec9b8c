r"""Vector quantization as a guide: an encoder's vector at each position, and the codes near it.

    z_e = encoder(x),    q(z_p = k | x) = softmax_k(-|z_e,p - E_k|² / t),    nearest code: k* = argmin_k |z_e,p - E_k|

``VectorQuantization`` (of ``inference.objectives``) trains the guide at t -> 0, where all mass is at the nearest code,
and its bound is log p(x | z*) + log p(z*). Draws are at a small t > 0, so that any code is possible and importance
sampling finds the likelihood; the objectives for discrete draws train at that t.

References
----------
Neural Discrete Representation Learning (van den Oord, Vinyals & Kavukcuoglu, 2017).
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from jaxtyping import Array, Float
from numpyro.distributions import constraints

from ppl_models.networks import check_architecture, check_codes, first_codebook, network


@dataclass(frozen=True)
class VectorQuantized:
    """Codes near an encoder's vectors: parameters ``encoder`` and, shared with the model, ``codebook``.

    Parameters
    ----------
    num_codes, code_dim, latent_shape
        Those of the model, :class:`ppl_models.VQVAE`.
    network
        Architecture that maps a row to a vector of length ``code_dim`` for each position: a dense one, or
        ``GridEncoder`` for grids.
    softness
        t, as a share of the mean squared distance of a code from the nearest other one.
    site
        Name of the model's latent site.

    Raises
    ------
    ValueError
        A size that is not a whole number of at least 1, more than two axes, or a softness that is not positive.
    TypeError
        ``network`` cannot be run by NumPyro.
    """

    num_codes: int
    code_dim: int
    latent_shape: tuple[int, ...]
    network: Any
    softness: float = 0.1
    site: str = "z"

    def __post_init__(self) -> None:
        check_codes(self)
        check_architecture(numpyro, "network", self.network)
        check_softness(self.softness)

    def __call__(self, x: Float[Array, "batch pixels"], y: Any = None, num_data: int | None = None) -> Any:
        """Sample the codes of each row.

        Parameters
        ----------
        x
            Rows, shape ``(batch, pixels)``.
        y
            Labels that the decoder is told, if any; the codes are of x alone.
        num_data
            Rows in the whole data set, ``batch`` by default.

        Returns
        -------
        Array
            One-hot codes, shape ``(batch, *latent_shape, num_codes)``.
        """
        encode = network(numpyro, "encoder", self.network, x.shape[-1], prod(self.latent_shape) * self.code_dim)
        encoded = encode(x).reshape(len(x), *self.latent_shape, self.code_dim)  # z_e
        # The codebook starts at vectors that the fresh encoder gives out.
        codebook = numpyro.param("codebook", lambda key: first_codebook(key, encoded, self.num_codes))
        with numpyro.plate("data", num_data or len(x), subsample_size=len(x)):
            q = NearCodes(encoded, codebook, self.softness).to_event(len(self.latent_shape))
            return numpyro.sample(self.site, q)


class NearCodes(dist.Distribution):
    """One-hot codes, the likelier the nearer: logits -|z_e - E_k|² / t.

    Parameters
    ----------
    encoded
        z_e, shape ``(..., dim)``.
    codebook
        E, shape ``(codes, dim)``.
    softness
        t, as a share of the mean squared distance of a code from the nearest other one.
    """

    arg_constraints = {"encoded": constraints.real_vector, "codebook": constraints.real_matrix}
    support = constraints.multinomial(1)  # pyright: ignore[reportAssignmentType]
    pytree_data_fields = ("encoded", "codebook")
    pytree_aux_fields = ("softness",)

    def __init__(self, encoded: Any, codebook: Any, softness: float, *, validate_args: bool | None = None):
        self.encoded, self.codebook, self.softness = encoded, codebook, softness
        super().__init__(encoded.shape[:-1], codebook.shape[:1], validate_args=validate_args)

    @property
    def logits(self) -> Float[Array, "... codes"]:
        apart = squared_distances(self.codebook, self.codebook) + jnp.diag(jnp.full(len(self.codebook), jnp.inf))
        spacing = jnp.mean(jnp.min(apart, axis=-1)) if len(self.codebook) > 1 else jnp.ones(())
        return -squared_distances(self.encoded, self.codebook) / (
            self.softness * jax.lax.stop_gradient(spacing) + 1e-12
        )

    @property
    def nearest(self) -> Float[Array, "... codes"]:
        """The one-hot code at the least distance."""
        index = jnp.argmin(squared_distances(self.encoded, self.codebook), axis=-1)
        return jax.nn.one_hot(index, len(self.codebook))

    def sample(self, key: Any, sample_shape: tuple[int, ...] = ()) -> Float[Array, "... codes"]:
        index = jax.random.categorical(key, self.logits, shape=(*sample_shape, *self.batch_shape))
        return jax.nn.one_hot(index, len(self.codebook))

    def log_prob(self, value: Any, intermediates: Any = None) -> Array:
        return jnp.sum(value * jax.nn.log_softmax(self.logits), axis=-1)


def squared_distances(a: Float[Array, "... dim"], b: Float[Array, "codes dim"]) -> Float[Array, "... codes"]:
    """|a - b_k|², without an array of all differences."""
    with jax.default_matmul_precision("highest"):
        # |a|² - 2 a b + |b|², about the mean of b, where what cancels is least
        centre = jax.lax.stop_gradient(jnp.mean(b, axis=0))
        a, b = a - centre, b - centre
        return jnp.maximum(jnp.sum(a**2, -1)[..., None] - 2 * a @ b.T + jnp.sum(b**2, -1), 0.0)


def check_softness(softness: float) -> None:
    """Refuse a temperature at which there is nothing to draw."""
    if not 0 < softness < float("inf"):
        raise ValueError(f"softness is {softness}; expected a positive number.")
