"""p(z) over codes: what stands on a vector, a sequence or a grid of K-valued latents before a row is seen.

A prior is a value, called inside a program with the shape of the latents and K. It returns a distribution over
one-hot codes, event shape ``(*latent_shape, K)``, and may have parameter sites of its own.

A prior with parameters may be learned with the model, or afterwards from codes alone: :class:`Codes` is the program
whose rows are codes.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from math import prod
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jaxtyping import Array, Float
from numpyro.distributions import constraints

from ppl_models.networks.layers import check_sizes


@runtime_checkable
class CodePrior(Protocol):
    """A frozen value: the shape of the latents and K to a distribution over one-hot codes."""

    def __call__(self, latent_shape: tuple[int, ...], num_codes: int) -> Any: ...


@dataclass(frozen=True)
class UniformCodes:
    """Every code as likely as any other, at every position."""

    def __call__(self, latent_shape: tuple[int, ...], num_codes: int) -> Any:
        """log p(z) = -P log K, with P positions."""
        return one_hot(jnp.zeros((*latent_shape, num_codes)))


@dataclass(frozen=True)
class FactorizedCodes:
    """Positions independent, each with frequencies of its own: parameter ``prior_logits``."""

    def __call__(self, latent_shape: tuple[int, ...], num_codes: int) -> Any:
        """log p(z) = sum_p log softmax(b_p)_{z_p}."""
        logits: Any = numpyro.param("prior_logits", jnp.zeros((*latent_shape, num_codes)))
        return one_hot(logits)


@dataclass(frozen=True)
class AutoregressiveCodes:
    """Each position given those before it, row by row, by a masked network: parameter ``prior``.

    Parameters
    ----------
    width, depth
        Hidden width, and hidden layers.

    References
    ----------
    MADE: Masked Autoencoder for Distribution Estimation (Germain, Gregor, Murray & Larochelle, 2015).
    """

    width: int = 256
    depth: int = 1

    def __post_init__(self) -> None:
        check_sizes("width", (self.width,))
        check_sizes("depth", (self.depth,))

    def __call__(self, latent_shape: tuple[int, ...], num_codes: int) -> Any:
        """log p(z) = sum_p log softmax(f_p(z_1, ..., z_{p-1}))_{z_p}."""
        wide = prod(latent_shape) * num_codes
        sizes = (wide, *[self.width] * self.depth, wide)

        def fresh(key: Array) -> list[dict[str, Array]]:
            keys = jax.random.split(key, len(sizes) - 1)
            start = jax.nn.initializers.glorot_uniform(in_axis=1, out_axis=0)
            pairs = zip(pairwise(sizes), keys, strict=True)
            return [{"weight": start(k, (b, a)), "bias": jnp.zeros(b)} for (a, b), k in pairs]

        return Autoregressive(numpyro.param("prior", fresh), latent_shape, num_codes)


@dataclass(frozen=True)
class Codes:
    """The program of a prior by itself: rows of one-hot codes, site ``x``.

    Parameters
    ----------
    prior
        A value such as ``AutoregressiveCodes()``; its parameters have the names they have in a model with that prior.

    Raises
    ------
    TypeError
        ``prior`` is none.
    """

    prior: CodePrior = AutoregressiveCodes()

    def __post_init__(self) -> None:
        check_prior(self.prior)

    def __call__(self, x: Float[Array, "batch ... codes"], num_data: int | None = None) -> Any:
        """Observe one-hot codes, shape ``(batch, *latent_shape, num_codes)``."""
        p = self.prior(x.shape[1:-1], x.shape[-1])
        with numpyro.plate("data", num_data or len(x), subsample_size=len(x)):
            return numpyro.sample("x", p, obs=x)


def one_hot(logits: Any) -> Any:
    """Independent one-hot codes, event shape that of the logits."""
    return dist.Multinomial(1, logits=logits, total_count_max=1).to_event(jnp.ndim(logits) - 1)


def check_prior(prior: Any) -> None:
    """Refuse, when a program is made, what makes no distribution over codes."""
    if isinstance(prior, type) or not callable(prior):
        raise TypeError(f"prior is {prior!r}; expected a value such as UniformCodes() or AutoregressiveCodes().")


class Autoregressive(dist.Distribution):
    """One-hot codes of which each has logits that a masked network makes of those before it.

    Parameters
    ----------
    layers
        Weights ``(out, in)`` and biases of the network's layers.
    latent_shape
        Shape of the latents; positions are ordered as in memory.
    num_codes
        K.
    """

    arg_constraints = {}
    pytree_data_fields = ("layers",)
    pytree_aux_fields = ("latent_shape", "num_codes")

    def __init__(
        self, layers: Any, latent_shape: tuple[int, ...], num_codes: int, *, validate_args: bool | None = None
    ):
        self.layers, self.latent_shape, self.num_codes = layers, latent_shape, num_codes
        super().__init__(event_shape=(*latent_shape, num_codes), validate_args=validate_args)

    @property
    def has_rsample(self) -> bool:
        return False

    @property
    def support(self) -> Any:
        return constraints.independent(constraints.multinomial(1), len(self.latent_shape))

    def logits(self, z: Float[Array, "... positions codes"]) -> Float[Array, "... positions codes"]:
        """Logits at every position, each a function of earlier positions alone."""
        positions = prod(self.latent_shape)
        hidden = z.reshape(*z.shape[:-2], -1)
        order = [np.repeat(np.arange(positions), self.num_codes)]  # of inputs: the position they belong to
        order += [np.arange(layer["bias"].size) % max(positions - 1, 1) for layer in self.layers[:-1]]
        for i, layer in enumerate(self.layers):
            last = i == len(self.layers) - 1
            # A hidden unit of order m sees positions up to m; the logits at p see units of order below p.
            mask = order[0][:, None] > order[i] if last else order[i + 1][:, None] >= order[i]
            hidden = hidden @ (layer["weight"] * mask).T + layer["bias"]
            hidden = hidden if last else jax.nn.relu(hidden)
        return hidden.reshape(*z.shape)

    def log_prob(self, value: Any, intermediates: Any = None) -> Array:
        z = value.reshape(*jnp.shape(value)[: jnp.ndim(value) - self.event_dim], -1, self.num_codes)
        return jnp.sum(z * jax.nn.log_softmax(self.logits(z)), axis=(-2, -1))

    def sample(self, key: Any, sample_shape: tuple[int, ...] = ()) -> Array:
        positions = prod(self.latent_shape)

        def draw(z: Array, step: tuple[Array, Array]) -> tuple[Array, None]:
            p, key = step
            code = jax.random.categorical(key, self.logits(z)[..., p, :])
            return z.at[..., p, :].set(jax.nn.one_hot(code, self.num_codes)), None

        start = jnp.zeros((*sample_shape, positions, self.num_codes))
        z, _ = jax.lax.scan(draw, start, (jnp.arange(positions), jax.random.split(key, positions)))
        return z.reshape(*sample_shape, *self.event_shape)
