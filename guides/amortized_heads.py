"""What an encoder's outputs mean: for a latent site, the distribution on its support with these parameters."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jaxtyping import Array, Float
from numpyro.distributions import biject_to, constraints

from guides.sites import Site
from guides.unconstrained import is_real
from ppl_models.networks import bits, softplus
from ppl_models.networks.rows import SCALE_FLOOR


class Head(Protocol):
    """A frozen value: ``size`` outputs of a network to a distribution, and its values to inputs of others."""

    @property
    def site(self) -> str: ...

    @property
    def size(self) -> int: ...

    def distribution(self, outputs: Float[Array, "*batch size"]) -> Any: ...

    def features(self, value: Any) -> Float[Array, "*batch features"]: ...


def head(site: Site) -> Head:
    """The head for a local latent.

    Raises
    ------
    ValueError
        For a discrete site whose values are neither bits, nor 0 ... K - 1, nor one-hot.
    """
    if not site.support.is_discrete:
        return NormalHead(site.name, site.event_shape, site.support)
    inside = site.support
    while hasattr(inside, "base_constraint"):
        inside = inside.base_constraint
    if inside == constraints.boolean:
        return BernoulliHead(site.name, site.event_shape)
    if isinstance(inside, constraints.multinomial) and np.all(np.equal(inside.upper_bound, 1)):
        return OneHotHead(site.name, site.event_shape)
    lower, upper = (getattr(inside, bound, None) for bound in ("lower_bound", "upper_bound"))
    if lower is None or upper is None or np.ndim(upper) or int(lower) != 0:
        raise ValueError(
            f"site {site.name!r} is discrete with support {site.support}; an encoder can guess bits, variables "
            "with the values 0 ... K - 1, and one-hot vectors. Write its guide by hand, or sum it out in the model."
        )
    return CategoricalHead(site.name, site.event_shape, int(upper) + 1)


@dataclass(frozen=True, eq=False)
class NormalHead:
    """T # N(loc, diag(softplus(raw))²), T : R^d -> support; the outputs are loc, then raw."""

    site: str
    event_shape: tuple[int, ...]
    support: Any

    @property
    def _inside(self) -> tuple[int, ...]:
        return tuple(biject_to(self.support).inverse_shape(self.event_shape))

    @property
    def size(self) -> int:
        return 2 * prod(self._inside)

    def distribution(self, outputs: Float[Array, "*batch size"]) -> Any:
        """Distribution over the support, the coordinates independent before T."""
        loc, raw = jnp.split(outputs, 2, axis=-1)
        shape = (*outputs.shape[:-1], *self._inside)
        scale = softplus(raw) + SCALE_FLOOR
        normal = dist.Normal(loc.reshape(shape), scale.reshape(shape)).to_event(len(self._inside))
        if is_real(self.support):
            return normal
        return dist.TransformedDistribution(normal, biject_to(self.support))

    def features(self, value: Any) -> Float[Array, "*batch features"]:
        """The value; arcsinh of it on a bounded support, where it may be large, and its inverse under T infinite."""
        flat = value.reshape(*value.shape[: value.ndim - len(self.event_shape)], -1)
        return flat if is_real(self.support) else jnp.arcsinh(flat)


@dataclass(frozen=True)
class BernoulliHead:
    """Independent bits; the outputs are their logits."""

    site: str
    event_shape: tuple[int, ...]

    @property
    def size(self) -> int:
        return prod(self.event_shape)

    def distribution(self, outputs: Float[Array, "*batch size"]) -> Any:
        """Distribution over vectors of bits."""
        logits = outputs.reshape(*outputs.shape[:-1], *self.event_shape)
        return bits(numpyro, logits).to_event(len(self.event_shape))

    def features(self, value: Any) -> Float[Array, "*batch features"]:
        """Bits as -1 and 1."""
        bits = value.reshape(*value.shape[: value.ndim - len(self.event_shape)], -1)
        return 2.0 * bits - 1.0


@dataclass(frozen=True)
class CategoricalHead:
    """Independent variables with K values each; the outputs are K logits for each."""

    site: str
    event_shape: tuple[int, ...]
    num_values: int

    @property
    def size(self) -> int:
        return prod(self.event_shape) * self.num_values

    def distribution(self, outputs: Float[Array, "*batch size"]) -> Any:
        """Distribution over vectors of numbers from 0 to K - 1."""
        logits = outputs.reshape(*outputs.shape[:-1], *self.event_shape, self.num_values)
        variables: Any = dist.Categorical(logits=logits)
        return variables.to_event(len(self.event_shape))

    def features(self, value: Any) -> Float[Array, "*batch features"]:
        """Each variable as K zeros and ones."""
        one_hot = jax.nn.one_hot(value, self.num_values)
        return one_hot.reshape(*value.shape[: value.ndim - len(self.event_shape)], -1)


@dataclass(frozen=True)
class OneHotHead:
    """Independent one-hot vectors, the last axis of the event; the outputs are a logit for each entry."""

    site: str
    event_shape: tuple[int, ...]

    @property
    def size(self) -> int:
        return prod(self.event_shape)

    def distribution(self, outputs: Float[Array, "*batch size"]) -> Any:
        """Distribution over arrays of one-hot vectors."""
        logits = outputs.reshape(*outputs.shape[:-1], *self.event_shape)
        return dist.Multinomial(1, logits=logits, total_count_max=1).to_event(len(self.event_shape) - 1)

    def features(self, value: Any) -> Float[Array, "*batch features"]:
        """The zeros and ones, side by side."""
        return 1.0 * value.reshape(*value.shape[: value.ndim - len(self.event_shape)], -1)
