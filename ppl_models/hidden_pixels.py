r"""An autoregressive likelihood that does not see all that it might: dropout in its conditioning.

    p(x | c, m) = prod_i p(x_i | outputs_i(m * x_<i, c)),    m_i = 0 with probability `rate`, new in every run

A pixel that cannot count on those before it must ask the context, c, what they were, so that a latent that says it is
worth its cost. For every m this is a density of x, and the mean of its logarithm a bound on that of the mixture over m,
which is what training climbs. The same weights serve the model that sees everything, which is the one to be judged and
drawn from: ``with_model(run, replace(run.model, pixels=run.model.pixels.pixels), {})``.

References
----------
Generating Sentences from a Continuous Space (Bowman et al., 2016), who call it word dropout.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from jaxtyping import Array, Bool, Float
from numpyro.distributions.util import validate_sample

from ppl_models.autoregressive import AutoregressiveRow, Centre, Rows
from ppl_models.likelihoods import Likelihood

OWN_STREAM = 0x68696465  # objectives seed guide and model alike: what is hidden must not follow the draws of z


@dataclass(frozen=True)
class HiddenPixels:
    """An autoregressive model of rows, whose pixels are hidden at random from those after them.

    Parameters
    ----------
    pixels
        The model, of one order of pixels: ``MADE``, ``PixelCNN`` or ``CausalCNN``. Its parameters keep their names.
    rate
        Share of the pixels that is hidden, from 0 to 1.

    Raises
    ------
    ValueError
        A rate that is no share, or pixels in several orders; when run, a program without a random key.
    """

    pixels: Any
    rate: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.rate <= 1:
            raise ValueError(f"rate is {self.rate!r}; expected a share from 0 to 1.")
        if getattr(self.pixels, "num_masks", 1) != 1:
            raise ValueError(f"pixels is {self.pixels!r}, of several orders; expected one, num_masks=1.")

    @property
    def likelihood(self) -> Likelihood:
        return self.pixels.likelihood

    @property
    def num_classes(self) -> int:
        return self.pixels.num_classes

    def positions(self, pixels: int) -> int:
        """As many contexts as the model takes."""
        return self.pixels.positions(pixels)

    def rows(self, name: str, pixels: int, features: int) -> Rows:
        """Rows given a context, with what is hidden drawn from the program's key."""
        row, key = self.pixels.rows(name, pixels, features), numpyro.prng_key()
        if key is None:
            raise ValueError(
                "HiddenPixels draws what is hidden, and the program runs without a random key: run it inside "
                "numpyro.handlers.seed, or use the model without HiddenPixels."
            )
        key = jax.random.fold_in(key, OWN_STREAM)

        def made(context: Array) -> _PartlySeen:
            hidden = jax.random.bernoulli(key, self.rate, (*context.shape[:-2], pixels))
            return _PartlySeen(row(context), hidden)

        return made


class _PartlySeen(dist.Distribution):
    """A row of pixels, each drawn given those before it that are not hidden; hidden ones enter as the middle value."""

    arg_constraints = {}
    pytree_data_fields = ("row", "hidden")

    def __init__(self, row: AutoregressiveRow, hidden: Bool[Array, "*batch pixels"]):
        self.row, self.hidden = row, hidden
        super().__init__(row.batch_shape, row.event_shape)

    @property
    def support(self) -> Any:
        return self.row.support

    @property
    def has_rsample(self) -> bool:
        return self.row.has_rsample

    @validate_sample
    def log_prob(self, value: Any, intermediates: Any = None) -> Float[Array, "..."]:
        return self._conditionals(value).log_prob(value)

    def sample(self, key: Array | None, sample_shape: tuple[int, ...] = ()) -> Array:
        assert key is not None
        key_seen, key_hidden = jax.random.split(key)
        # Hidden pixels move no others: they are left at the middle value first, and drawn given the rest.
        blank = jnp.full(sample_shape + self.batch_shape + self.event_shape, self._middle)
        seen = self.row.complete(key_seen, blank, jnp.broadcast_to(self.hidden, blank.shape))
        return jnp.where(self.hidden, self.row._conditionals(seen).sample(key_hidden), seen)

    def mean_along(self, value: Any) -> Array:
        """E[x_i | what is seen of x_<i] at a row: over draws of rows its mean is that of x."""
        return self._conditionals(value).mean

    def _conditionals(self, value: Any) -> Any:
        return self.row._conditionals(jnp.where(self.hidden, self._middle, value))

    @property
    def _middle(self) -> float:
        return float(Centre.of(self.support).middle)
