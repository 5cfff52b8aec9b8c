r"""What a code of the data spends on latents and on the rest: the two parts of the bound, as a sender would pay them.

With bits back, a row costs its sender

    -log p(x | z) - log p(z) + log q(z | x),    on average  E_q[-log p(x | z)] + KL(q(z | x) || p(z)) = -ELBO   nats,

where the first term is what the latents leave unsaid, and the second what they hold. A latent that the decoder does
without holds nothing: posterior collapse.

References
----------
Keeping Neural Networks Simple by Minimizing the Description Length of the Weights (Hinton and van Camp, 1993).
Variational Lossy Autoencoder (Chen et al., 2017).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from inference.check import program_name
from inference.compiled import jit
from inference.errors import Incompatible
from inference.objectives.elbo import Terms, analytic_kl_sites, average, elbo_terms
from inference.objectives.pair import pair
from inference.programs import on_rows
from inference.protocols import Batch, Program


@dataclass(frozen=True)
class BitsBack:
    """Nats per row that a bits-back code spends.

    Attributes
    ----------
    rest
        E_q[-log p(x | z)], what is left to say of a row when its latents are known.
    latents
        KL(q || p) of each latent site: what it holds of a row.
    """

    rest: float
    latents: Mapping[str, float]

    @property
    def total(self) -> float:
        """Length of the code, which is minus the ELBO."""
        return self.rest + sum(self.latents.values())

    def __str__(self) -> str:
        parts = "".join(f" + {value:.3f} in {name}" for name, value in self.latents.items())
        return f"{self.total:.3f} nats per row = {self.rest:.3f} in the row given its latents{parts}"


def bits_back(fit: Any, data: Any, num_particles: int = 10, *, key: int = 0) -> BitsBack:
    """The parts of the bound on these rows.

    Parameters
    ----------
    fit
        What :func:`inference.fit` returned for an ``SVI`` with a guide of the rows' latents.
    data
        Rows as for ``fit``.
    num_particles
        Draws of the latents that the expectations average; KL divergences are exact where they have a closed form.
    key
        Seed.

    Returns
    -------
    BitsBack
        Nats per row.

    Raises
    ------
    Incompatible
        Without a guide, with latents that it leaves out, or with global latents, which no single row pays for.
    """
    if fit.guide is None or fit.algorithm.engine != "numpyro":
        raise Incompatible(f"bits_back needs a NumPyro guide of the latents; {program_name(fit.algorithm)} has none.")
    rows = fit._rows(data)
    totals: list[Terms] = []
    for i, batch in enumerate(rows.batches(fit._batch_rows(rows))):
        alone = Batch(batch.data, jnp.arange(len(batch), dtype=jnp.int32), len(batch))
        totals.append(_terms(fit.model, fit.guide, num_particles)(jax.random.key(key + i), fit.params, alone))
    rest, kl = (jax.tree.map(lambda *v: float(sum(v)) / rows.num_data, *part) for part in zip(*totals, strict=True))
    return BitsBack(-rest, kl)


@lru_cache(maxsize=32)
def _terms(model: Program, guide: Program, num_particles: int) -> Any:
    def run(key: Array, params: Any, batch: Batch) -> Terms:
        both = pair(on_rows(model, batch), on_rows(guide, batch), (), dict(batch.data), params)
        alone = both.parts.local & set(both.guide_parts.latent)
        if both.left_out or set(both.parts.latent) != alone:
            raise Incompatible(
                f"bits_back counts what the latents of rows hold, drawn by the guide; {program_name(model)} also has "
                f"{sorted(set(both.parts.latent) - alone)}."
            )
        analytic = analytic_kl_sites(both)
        return average(lambda key: elbo_terms(key, both, analytic), key, num_particles)

    return jit(run)


__all__ = ["BitsBack", "bits_back"]
