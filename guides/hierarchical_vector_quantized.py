r"""Hierarchical vector quantization as a guide: from the top down, each level given the vectors of those above.

    z_e,l = encoder_l(x) + A_l [e_1, ..., e_{l-1}],    z_l near z_e,l,    e_l = z_l E_l

with codes as near as in :mod:`guides.vector_quantized`, A_l one affine map for all positions, and the vectors above
repeated to the grid of level l.

References
----------
Generating Diverse High-Fidelity Images with VQ-VAE-2 (Razavi, van den Oord & Vinyals, 2019).
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

import numpyro
from jaxtyping import Array, Float

from guides.vector_quantized import NearCodes, check_softness
from ppl_models.networks import Linear, check_architecture, check_code_levels, first_codebook, network, refined


@dataclass(frozen=True)
class HierarchicalVectorQuantized:
    """Codes of several levels: parameters ``encoder1`` ..., ``above2`` ... and, the model's too, ``codebook1`` ...

    Parameters
    ----------
    num_codes, code_dim, latent_shapes
        Those of the model, :class:`ppl_models.HierarchicalVQVAE`.
    networks
        For each level, from the top down, an architecture that maps a row to a vector for each position of its grid,
        such as ``GridEncoder``, with one convolution for each halving.
    softness
        As in :class:`guides.VectorQuantized`.

    Raises
    ------
    ValueError
        A size that is not a whole number of at least 1, a level that does not refine the one above, not one network
        for each level, or a softness that is not positive.
    TypeError
        A network that NumPyro cannot run.
    """

    num_codes: int
    code_dim: int
    latent_shapes: tuple[tuple[int, int], ...]
    networks: tuple[Any, ...]
    softness: float = 0.1

    def __post_init__(self) -> None:
        check_code_levels(self)
        check_softness(self.softness)
        object.__setattr__(self, "networks", tuple(self.networks))
        if len(self.networks) != len(self.latent_shapes):
            raise ValueError(f"{len(self.networks)} networks were given for {len(self.latent_shapes)} levels of codes.")
        for level, architecture in enumerate(self.networks, 1):
            check_architecture(numpyro, f"network {level}", architecture)

    def __call__(self, x: Float[Array, "batch pixels"], num_data: int | None = None) -> Any:
        """Sample the codes of each row, level by level.

        Parameters
        ----------
        x
            Rows, shape ``(batch, pixels)``.
        num_data
            Rows in the whole data set, ``batch`` by default.

        Returns
        -------
        Array
            One-hot codes of the bottom level, shape ``(batch, height, width, num_codes)``.
        """
        (batch, pixels), dim = x.shape, self.code_dim
        z, vectors = None, []
        with numpyro.plate("data", num_data or batch, subsample_size=batch):
            for level, (shape, architecture) in enumerate(zip(self.latent_shapes, self.networks, strict=True), 1):
                encode = network(numpyro, f"encoder{level}", architecture, pixels, prod(shape) * dim)
                encoded = encode(x).reshape(batch, *shape, dim)
                if vectors:
                    above = network(numpyro, f"above{level}", Linear(), len(vectors) * dim, dim)
                    encoded = encoded + above(refined(vectors, shape))
                codebook: Any = numpyro.param(f"codebook{level}", self._first(encoded))
                z: Any = numpyro.sample(f"z{level}", NearCodes(encoded, codebook, self.softness).to_event(2))
                vectors.append(numpyro.deterministic(f"z{level}_quantized", z @ codebook))
        return z

    def _first(self, encoded: Array) -> Any:
        return lambda key: first_codebook(key, encoded, self.num_codes)
