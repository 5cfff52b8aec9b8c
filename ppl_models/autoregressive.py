r"""Rows of pixels drawn one pixel after the other: the distribution that a masked network defines.

    p(x | c) = prod_i p(x_i | outputs_i(x_<i, c))

The network maps a row to the outputs of all its conditionals at once, which makes the density of a given row one
forward pass, exact and normalised. A draw takes the pixels in order; the network unrolls itself, and keeps what
later pixels need, so that a whole row costs about as much as one forward pass, and not one for every pixel.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jaxtyping import Array, Float, Int
from numpyro.distributions.util import validate_sample

from ppl_models.binary_states import Emission, emission
from ppl_models.likelihoods import Likelihood, check_likelihood
from ppl_models.networks import module

Choose = Callable[[Array, Array], Array]  # of a pixel's number and outputs, its value


class Masked(Protocol):
    """A network of one row, an Equinox module, whose outputs for a pixel depend on the pixels before it alone.

    ``network(row, context)`` gives the outputs of all pixels, ``(pixels, outputs_per_pixel)``. ``unroll(choose,
    context)`` draws a row: it calls ``choose(i, outputs_i)`` for the value of each pixel in turn.
    ``position`` is the turn at which each pixel is drawn, ``(pixels,)``.
    """

    @property
    def position(self) -> Int[np.ndarray, " pixels"]: ...

    def __call__(self, row: Array, context: Array) -> Array: ...

    def unroll(self, choose: Choose, context: Array) -> Array: ...


Rows = Callable[[Array], Any]  # of context (..., positions, features), the distribution of rows
Build = Callable[..., Masked]  # build(pixels, outputs, features, centre, key)


def autoregressive(
    name: str, build: Build, likelihood: Likelihood, pixels: int, features: int
) -> Callable[[Array], AutoregressiveRow]:
    """Give a masked network weights inside a program, and make rows of it.

    Parameters
    ----------
    name
        Name of the parameter site.
    build
        ``build(pixels, outputs, features, centre, key)`` makes the network; ``centre(row)`` is how pixels enter it.
    likelihood
        What the outputs of a pixel mean: see :mod:`ppl_models.likelihoods`.
    pixels
        Length of a row.
    features
        Numbers of context for each position.

    Returns
    -------
    Callable
        From context ``(..., positions, features)``, positions ``pixels`` or 1 for all of them, to the distribution.
    """
    made = emission(numpyro, likelihood)
    outputs = likelihood.outputs_per_pixel
    support = made(jnp.zeros(outputs)).support  # the parameters of the likelihood are made here, too
    network = module(name, partial(build, pixels, outputs, features, Centre.of(support)))
    return lambda context: AutoregressiveRow(network, context, made, pixels)


class AutoregressiveRow(dist.Distribution):
    """A row of pixels, each drawn given those before it; batch shape that of the context."""

    arg_constraints = {}
    pytree_data_fields = ("network", "context")
    pytree_aux_fields = ("emission",)

    def __init__(self, network: Masked, context: Array, emission: Emission, pixels: int):
        self.network, self.context, self.emission = network, context, emission
        super().__init__(context.shape[:-2], (pixels,))

    @property
    def support(self) -> Any:
        return self.emission(jnp.zeros(self.emission.likelihood.outputs_per_pixel)).support

    @property
    def has_rsample(self) -> bool:
        """Draws move with the parameters where pixels do."""
        return not self.support.is_discrete

    @validate_sample
    def log_prob(self, value: Any, intermediates: Any = None) -> Float[Array, "..."]:
        return self._conditionals(value).log_prob(value)

    def sample(self, key: Array | None, sample_shape: tuple[int, ...] = ()) -> Array:
        assert key is not None
        value = jnp.zeros(sample_shape + self.batch_shape + self.event_shape)
        return self.complete(key, value, jnp.zeros(self.event_shape, bool))

    def complete(self, key: Array, value: Array, observed: Array) -> Array:
        """Rows whose entries that are not observed are drawn given those before them, observed or drawn.

        This is a draw given the observed entries where they come before the others: see :meth:`check_observed`.
        """
        shape = jnp.shape(value)
        value, observed = value.reshape(-1, shape[-1]), jnp.broadcast_to(observed, shape).reshape(-1, shape[-1])
        context = jnp.broadcast_to(self.context, (*shape[:-1], *self.context.shape[-2:]))

        def row(key: Array, value: Array, observed: Array, context: Array) -> Array:
            def choose(i: Array, outputs: Array) -> Array:
                drawn = self.emission(outputs).sample(jax.random.fold_in(key, i))
                return jnp.where(observed[i], value[i], drawn[0])

            return self.network.unroll(choose, context)

        keys = jax.random.split(key, len(value))
        rows = jax.vmap(row)(keys, value.astype(float), observed, flat_context(context))
        return rows.reshape(shape)

    def check_observed(self, observed: np.ndarray) -> None:
        """Refuse a mask whose observed entries do not come before the others.

        Raises
        ------
        ValueError
            Naming the first entry that is observed too late.
        """
        order = np.argsort(self.network.position)
        late = np.maximum.accumulate(~observed[..., order], axis=-1) & observed[..., order]
        if late.any():
            first = order[np.argwhere(late)[0][-1]]
            raise ValueError(
                f"observed has entry {first}, which is drawn after entries that are not observed, so that these "
                "would not be drawn given it. Exact completion needs the observed entries first in the model's "
                "order: of an image row by row, those above and to the left."
            )

    def mean_along(self, value: Any) -> Array:
        """E[x_i | x_<i] at a row: over draws of rows its mean is that of x, with less variance than the draws'."""
        return self._conditionals(value).mean

    def _conditionals(self, value: Any) -> Any:
        batch = jnp.broadcast_shapes(jnp.shape(value)[:-1], self.batch_shape)
        rows = jnp.broadcast_to(value, (*batch, *self.event_shape)).reshape(-1, *self.event_shape)
        context = jnp.broadcast_to(self.context, (*batch, *self.context.shape[-2:]))
        outputs = jax.vmap(self.network)(rows, flat_context(context))  # (rows, pixels, outputs)
        return self.emission(outputs.swapaxes(-1, -2).reshape(*batch, -1))


@dataclass(frozen=True)
class Centre:
    """How pixels enter a network: levels spread over [-1, 1], which tells every level from the zeros outside."""

    middle: float
    half: float

    @classmethod
    def of(cls, support: Any) -> Centre:
        """For the levels of a discrete row; numbers stay as they are."""
        base = support.base_constraint
        if not base.is_discrete:
            return cls(0.0, 1.0)
        low, high = getattr(base, "lower_bound", 0), getattr(base, "upper_bound", 1)
        return cls((high + low) / 2, (high - low) / 2)

    def __call__(self, pixels: Array) -> Array:
        """The centred pixels."""
        return (pixels - self.middle) / self.half


def flat_context(context: Float[Array, "... positions features"]) -> Float[Array, "rows positions features"]:
    """One leading axis in place of several, even where there are no features."""
    return context.reshape(math.prod(context.shape[:-2]), *context.shape[-2:])


def no_context(rows: int) -> Float[Array, "rows 1 0"]:
    """The context of rows that depend on nothing else."""
    return jnp.zeros((rows, 1, 0))


def class_context(num_classes: int, x: Array, y: Any) -> Float[Array, "rows 1 classes"]:
    """Observe the class of each row, each as likely as the others, as the context of its pixels.

    Raises
    ------
    ValueError
        Labels without classes, or classes without labels.
    """
    check_labels(num_classes, y)
    if not num_classes:
        return no_context(len(x))
    alike = dist.CategoricalLogits(jnp.zeros((len(x), num_classes)))
    return jax.nn.one_hot(numpyro.sample("y", alike, obs=y), num_classes)[:, None]


def check_labels(num_classes: int, y: Any) -> None:
    """Refuse labels without classes, and classes without labels."""
    if (y is None) == bool(num_classes):
        got, wanted = ("no labels y", "one a row") if y is None else ("labels y", "num_classes of at least 1")
        raise ValueError(f"num_classes is {num_classes} and there are {got}; expected {wanted}.")


def check_autoregressive(model: Any) -> None:
    """Refuse, when a program is made, a likelihood that is none, and numbers of classes below 0."""
    check_likelihood(model.likelihood)
    check_num_classes(model.num_classes)


def check_num_classes(count: Any) -> None:
    """Refuse, when a program is made, what is no number of classes."""
    if isinstance(count, bool) or not isinstance(count, int) or count < 0:
        raise ValueError(f"num_classes is {count!r}; expected a whole number, 0 for rows without classes.")
