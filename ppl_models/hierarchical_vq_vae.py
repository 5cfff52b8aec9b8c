r"""Hierarchical vector-quantized autoencoder (VQ-VAE-2): grids of codes, a coarse one on top and finer ones below.

    z_l ~ uniform on K codes at each of P_l positions,    e_l = z_l E_l,    l = 1 (top), ..., L (bottom)
    x | z ~ p(x | f(e_1, ..., e_L)),    f: the decoder, of all grids repeated to the finest, side by side

so that log p(z) = -sum_l P_l log K. The guide is ``guides.HierarchicalVectorQuantized``, the objectives are those of
:mod:`ppl_models.vq_vae`. A prior p(z_1) p(z_2 | z_1) ... is fitted afterwards: one for each level, given the codes
above (:meth:`HierarchicalVQVAE.above`) and a class if there are any, or a single one to the codes of all levels as
one sequence, top first (:meth:`HierarchicalVQVAE.joined`).

References
----------
Generating Diverse High-Fidelity Images with VQ-VAE-2 (Razavi, van den Oord & Vinyals, 2019).
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
import numpyro
from jaxtyping import Array, Float
from numpyro import handlers

from ppl_models.code_priors import UniformCodes
from ppl_models.likelihoods import Gaussian, Likelihood, check_likelihood
from ppl_models.networks import check_architecture, check_code_levels, network, refined


@dataclass(frozen=True)
class HierarchicalVQVAE:
    """Levels of codes and a decoder: sites ``z1`` (top) ... and ``x``, parameters ``codebook1`` ... and ``decoder``.

    Parameters
    ----------
    num_codes, code_dim
        K, and the length D of a vector, of every level's codebook.
    latent_shapes
        ``(height, width)`` of each level, from the top down, each a multiple of the one above.
    decoder
        Architecture that maps L D values at each position of the bottom grid to the likelihood's outputs.
    likelihood
        What the outputs mean: see :mod:`ppl_models.likelihoods`.

    Raises
    ------
    ValueError
        A size that is not a whole number of at least 1, or a level that does not refine the one above.
    TypeError
        ``decoder`` cannot be run by NumPyro, or ``likelihood`` is none.
    """

    num_codes: int
    code_dim: int
    latent_shapes: tuple[tuple[int, int], ...]
    decoder: Any
    likelihood: Likelihood = Gaussian(0.1)

    def __post_init__(self) -> None:
        check_code_levels(self)
        check_architecture(numpyro, "decoder", self.decoder)
        check_likelihood(self.likelihood)

    def __call__(self, x: Float[Array, "batch pixels"], num_data: int | None = None) -> Any:
        """Sample the codes of all levels and observe x.

        Parameters
        ----------
        x
            Rows of pixels in the likelihood's support, shape ``(batch, pixels)``.
        num_data
            Rows in the whole data set, ``batch`` by default.

        Returns
        -------
        Array
            The observed rows.
        """
        (batch, pixels), size, bottom = x.shape, (self.num_codes, self.code_dim), self.latent_shapes[-1]
        codebooks: list[Any] = [
            numpyro.param(f"codebook{level}", lambda key: jax.random.normal(key, size))
            for level in range(1, len(self.latent_shapes) + 1)
        ]
        values = len(codebooks) * self.code_dim * prod(bottom)
        f = network(numpyro, "decoder", self.decoder, values, self.likelihood.outputs_per_pixel * pixels)
        vectors = []
        with numpyro.plate("data", num_data or batch, subsample_size=batch):
            for level, (shape, codebook) in enumerate(zip(self.latent_shapes, codebooks, strict=True), 1):
                z: Any = numpyro.sample(f"z{level}", UniformCodes()(shape, self.num_codes))
                vectors.append(numpyro.deterministic(f"z{level}_quantized", z @ codebook))  # e_l
            e = refined(vectors, bottom)  # (batch, height, width, L D)
            return numpyro.sample("x", self.likelihood(numpyro, f(e.reshape(batch, -1))), obs=x)

    def decode(self, params: dict[str, Any], latents: dict[str, Any], pixels: int, levels: int | None = None) -> Array:
        """The likelihood's mean given the codes of the first levels, the vectors of those below at their prior mean.

        Parameters
        ----------
        params
            Of a fit.
        latents
            One-hot codes ``z1`` ..., shapes ``(rows, height, width, num_codes)``.
        pixels
            Values of a row.
        levels
            How many levels to use, from the top; all by default.

        Returns
        -------
        Array
            Shape ``(rows, pixels)``.
        """
        rows = len(latents["z1"])
        known: dict[str, Any] = {n: v for n, v in latents.items() if n in self._sites}
        for level, (site, shape) in enumerate(zip(self._sites, self.latent_shapes, strict=True), 1):
            if levels is not None and level > levels:  # E[e] = mean of the codebook
                mean = jnp.mean(params[f"codebook{level}"], axis=0)
                known[f"{site}_quantized"] = jnp.broadcast_to(mean, (rows, *shape, self.code_dim))
        program = handlers.seed(handlers.substitute(self, data=params | known), rng_seed=0)
        return handlers.trace(program).get_trace(jnp.zeros((rows, pixels)))["x"]["fn"].mean

    def above(self, latents: dict[str, Any], level: int) -> Float[Array, "rows height width codes"]:
        """The codes above a level, repeated to its grid, side by side: what its prior is given as ``above``.

        Parameters
        ----------
        latents
            One-hot codes ``z1`` ... of the levels above at least.
        level
            From 2, the first that has one above.
        """
        if not 2 <= level <= len(self.latent_shapes):
            raise ValueError(f"level is {level}; expected 2 to {len(self.latent_shapes)}, with codes above.")
        return refined([jnp.asarray(latents[n]) for n in self._sites[: level - 1]], self.latent_shapes[level - 1])

    def joined(self, latents: dict[str, Any]) -> Float[Array, "... positions codes"]:
        """The codes of all levels as one sequence, top first."""
        parts = [v.reshape(*v.shape[:-3], -1, self.num_codes) for v in (jnp.asarray(latents[n]) for n in self._sites)]
        return jnp.concatenate(parts, axis=-2)

    def split(self, codes: Float[Array, "... positions codes"]) -> dict[str, Array]:
        """The levels of such a sequence, by site."""
        ends = list(accumulate(prod(shape) for shape in self.latent_shapes))
        parts = jnp.split(jnp.asarray(codes), ends[:-1], axis=-2)
        shapes = [
            (*part.shape[:-2], *shape, self.num_codes) for part, shape in zip(parts, self.latent_shapes, strict=True)
        ]
        return {n: part.reshape(shape) for n, part, shape in zip(self._sites, parts, shapes, strict=True)}

    @property
    def _sites(self) -> tuple[str, ...]:
        return tuple(f"z{level}" for level in range(1, len(self.latent_shapes) + 1))
