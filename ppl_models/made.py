r"""Masked autoencoder for distribution estimation: a dense network, masked so that it is a density.

    p(x) = prod_i p(x_i | x_<i),      or      p(x) = 1/M sum_m prod_i p_m(x_i | x_<i in the m-th order)

With several masks the same weights serve M orders of the pixels, and the model is their mixture, normalised
exactly: p averages probabilities, and not their logarithms.

References
----------
MADE: Masked Autoencoder for Distribution Estimation (Germain, Gregor, Murray & Larochelle, 2015).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax.scipy.special import logsumexp
from jaxtyping import Array, Float
from numpyro.distributions.util import validate_sample

from ppl_models.autoregressive import (
    AutoregressiveRow,
    Rows,
    autoregressive,
    check_autoregressive,
    class_context,
    flat_context,
)
from ppl_models.likelihoods import Bernoulli, Likelihood
from ppl_models.networks.layers import Activation, check_activation, check_sizes
from ppl_models.networks.masked import MaskedNetwork


@dataclass(frozen=True)
class MADE:
    """Masked autoencoder, a program with the site ``x``, its class ``y`` if there are any, and parameter ``network``.

    It has no latents: ``SVI(MADE(), guides.empty, ELBO(), optimizer)`` is maximum likelihood.

    Parameters
    ----------
    hidden
        Widths of the hidden layers, at least one.
    num_masks
        How many orders of the pixels, each with masks of its own, are averaged. One takes the pixels row by row; the
        density costs as many forward passes as there are masks.
    activation
        Nonlinearity after each hidden layer.
    likelihood
        Of a pixel given those before it: see :mod:`ppl_models.likelihoods`.
    num_classes
        With classes, rows come with labels ``y`` below this number, each class as likely as the others:
        p(x, y) = p(x | y) / num_classes.

    Raises
    ------
    ValueError
        No hidden layer, a width or number of masks below 1, an activation that the engines do not share.
    TypeError
        ``likelihood`` is none.
    """

    hidden: tuple[int, ...] = (500,)
    num_masks: int = 1
    activation: Activation = "relu"
    likelihood: Likelihood = Bernoulli()
    num_classes: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "hidden", (self.hidden,) if isinstance(self.hidden, int) else tuple(self.hidden))
        if not self.hidden:
            raise ValueError("hidden is empty; expected at least one width.")
        check_sizes("hidden", self.hidden)
        check_sizes("num_masks", (self.num_masks,))
        check_activation(self.activation)
        check_autoregressive(self)

    def __call__(self, x: Float[Array, "batch pixels"], y: Any = None, num_data: int | None = None) -> Any:
        """Observe x, pixel after pixel.

        Parameters
        ----------
        x
            Rows of pixels in the likelihood's support, shape ``(batch, pixels)``.
        y
            Labels, whole numbers below ``num_classes``, shape ``(batch,)``; none without classes.
        num_data
            Rows in the whole data set, ``batch`` by default.

        Returns
        -------
        Array
            The observed rows.
        """
        row = self.rows("network", x.shape[-1], self.num_classes)
        with numpyro.plate("data", num_data or len(x), subsample_size=len(x)):
            given = class_context(self.num_classes, x, y)
            return numpyro.sample("x", row(given), obs=x)  # x_i ~ p(x_i | x_<i)

    def rows(self, name: str, pixels: int, features: int) -> Rows:
        """Rows given a context of all their pixels: see :func:`ppl_models.autoregressive.autoregressive`."""
        row = autoregressive(name, self.build, self.likelihood, pixels, features)
        return row if self.num_masks == 1 else lambda context: _OrderMixture(row(context), self.num_masks)

    def positions(self, pixels: int) -> int:
        """One context for all pixels."""
        return 1

    @property
    def build(self) -> Callable[..., MaskedNetwork]:
        """What makes the network, of the sizes that :func:`~ppl_models.autoregressive.autoregressive` gives it."""
        return partial(MaskedNetwork, hidden=self.hidden, activation=self.activation, masks=self.num_masks)


class _OrderMixture(dist.Distribution):
    """1/M sum_m p_m(x) over the masks of one network."""

    arg_constraints = {}
    pytree_data_fields = ("row",)
    pytree_aux_fields = ("masks",)

    def __init__(self, row: AutoregressiveRow, masks: int):
        self.row, self.masks = row, masks
        super().__init__(row.batch_shape, row.event_shape)

    @property
    def support(self) -> Any:
        return self.row.support

    @property
    def has_rsample(self) -> bool:
        """Draws move with the parameters where pixels do: the weights of the orders are fixed."""
        return self.row.has_rsample

    def _each(self, function: Callable[[AutoregressiveRow], Array]) -> Array:
        return jax.lax.map(lambda m: function(self._under(m, self.row.context)), jnp.arange(self.masks))

    def _under(self, m: Array, context: Array) -> AutoregressiveRow:
        network: Any = self.row.network
        return AutoregressiveRow(network.with_masks(m), context, self.row.emission, self.event_shape[0])

    @validate_sample
    def log_prob(self, value: Any, intermediates: Any = None) -> Float[Array, "..."]:
        return logsumexp(self._each(lambda row: row.log_prob(value)), axis=0) - jnp.log(self.masks)

    def sample(self, key: Array | None, sample_shape: tuple[int, ...] = ()) -> Array:
        assert key is not None
        shape = sample_shape + self.batch_shape
        context = jnp.broadcast_to(self.row.context, shape + self.row.context.shape[-2:])
        keys = jax.random.split(key, math.prod(shape))

        def draw(key: Array, context: Array) -> Array:
            key_m, key_x = jax.random.split(key)
            m = jax.random.randint(key_m, (), 0, self.masks)
            return self._under(m, context).sample(key_x)

        return jax.vmap(draw)(keys, flat_context(context)).reshape(shape + self.event_shape)

    def complete(self, key: Array, value: Array, observed: Array) -> Array:
        """New rows, where nothing is observed; the rows themselves, where everything is."""
        return jnp.where(observed, value, self.sample(key, jnp.shape(value)[: -1 - len(self.batch_shape)]))

    def check_observed(self, observed: np.ndarray) -> None:
        """Refuse entries that are observed beside others that are not: they come late in some of the orders."""
        if (observed.any(-1) & ~observed.all(-1)).any():
            raise ValueError(
                f"observed is part of a row, and the rows are drawn in {self.masks} orders, in some of "
                "which these entries come late. Complete with a model of one order, num_masks=1."
            )

    def mean_along(self, value: Any) -> Array:
        """sum_m p(m | x) E_m[x_i | x before i in the m-th order]: over draws of rows its mean is that of x."""
        weights = jax.nn.softmax(self._each(lambda row: row.log_prob(value)), axis=0)
        return jnp.sum(weights[..., None] * self._each(lambda row: row.mean_along(value)), axis=0)
