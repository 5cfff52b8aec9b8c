r"""Rows of a Boltzmann machine that is small enough to enumerate, as a program with exact densities.

    p(v, h) = exp(-E(v, h)) / Z,    p(v) = exp(-F(v)) / Z,    F(v) = -log sum_h exp(-E(v, h)).

The hidden units of a row are summed out by its free energy F, so the program has no latents of rows; their
posterior probabilities are a deterministic site. What a gradient needs beside them is log Z, a sum over the
states of one side of the machine: 2^units terms, made in chunks, whose backward pass computes them again.
Above ``MAX_UNITS`` units that is refused, with its cost, and contrastive divergence is what remains.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from numbers import Real
from typing import Any

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from jaxtyping import Array, ArrayLike, Float
from numpyro.distributions.util import validate_sample

from ppl_models.binary_draws import bernoulli
from ppl_models.networks import softplus

MAX_UNITS = 20  # 2^20 terms: below a second where a term has a few hundred factors
_CHUNK = 2**12  # states at once

Params = dict[str, Float[Array, "..."]]


def states(units: int, index: Array, dtype: Any) -> Float[Array, "index units"]:
    """The states with these numbers, unit i holding bit i."""
    return ((index[:, None] >> jnp.arange(units)) & 1).astype(dtype)


def table(log_weight: Callable[[Array], Array], units: int, dtype: Any) -> Float[Array, " states"]:
    """``log_weight`` of every state ``(index, units)`` of so many units, a chunk of states at a time."""

    @jax.checkpoint
    def chunk(start: Array) -> Array:
        return log_weight(states(units, start + jnp.arange(min(_CHUNK, 2**units)), dtype))

    starts = jnp.arange(0, 2**units, _CHUNK)
    return (chunk(starts[0])[None] if len(starts) == 1 else jax.lax.map(chunk, starts)).reshape(-1)


def check_units(machine: Any, units: int, side: str) -> None:
    """Refuse a sum over the states of so many units.

    Raises
    ------
    ValueError
        Naming the machine, the number of terms, and what to do.
    """
    if units > MAX_UNITS:
        raise ValueError(
            f"{type(machine).__name__} is too large to enumerate: log Z would be a sum over the 2^{units} states of "
            f"its {units} {side}, and is made up to {MAX_UNITS}. Learn it by ContrastiveDivergence(model), whose "
            "log_likelihood brackets log Z by annealed importance sampling, or use fewer units."
        )


class BoltzmannRow(dist.Distribution):
    """p(v) of a machine at these parameters: one row, with exact densities and draws.

    Parameters
    ----------
    machine
        An energy program with ``free_energy``, ``log_partition``, ``exact_draws``, ``exact_mean`` and ``support``.
    params
        Its parameters by site name.
    columns
        Visible units.
    """

    arg_constraints = {}
    pytree_data_fields = ("params",)
    pytree_aux_fields = ("machine",)

    def __init__(self, machine: Any, params: Params, columns: int):
        self.machine, self.params = machine, params
        super().__init__(event_shape=(columns,))

    @property
    def support(self) -> Any:
        return dist.constraints.independent(self.machine.visible_support, 1)

    def sample(self, key: Array | None, sample_shape: tuple[int, ...] = ()) -> Array:
        assert key is not None
        count = 1
        for size in sample_shape:
            count *= size
        return self.machine.exact_draws(key, self.params, count).reshape(*sample_shape, *self.event_shape)

    @property
    def mean(self) -> Array:
        return self.machine.exact_mean(self.params)

    @validate_sample
    def log_prob(self, value: Any, intermediates: Any = None) -> Float[Array, "..."]:
        return -self.machine.free_energy(self.params, value) - self.machine.log_partition(self.params)


def observe(machine: Any, params: Params, x: Any, num_data: int | None) -> Any:
    """The data plate of a machine: rows observed, with the free energy and hidden probabilities of each."""
    with numpyro.plate("data", num_data or len(x), subsample_size=len(x)):
        x = numpyro.sample("x", BoltzmannRow(machine, params, x.shape[-1]), obs=x)
        numpyro.deterministic("free_energy", machine.free_energy(params, x))
        hidden = machine.hidden_mean(params, x)
        if hidden.shape[-1]:  # not of a fully visible machine
            numpyro.deterministic("hidden", hidden)
    return x


def log_odds(mean: Float[Array, " D"]) -> Float[Array, " D"]:
    """Log odds of units that are on with these frequencies, kept between 1 % and 99 %."""
    p = jnp.clip(mean, 0.01, 0.99)
    return jnp.log(p) - jnp.log1p(-p)


def coins(x: Float[Array, "N D"], num_hidden: int) -> tuple[Float[Array, " D"], Float[Array, ""]]:
    """Log odds of independent units that are on as often as in these rows, and log Z in nats with fair hidden ones."""
    base = log_odds(jnp.mean(x, axis=0, dtype=jnp.float32))
    return base, softplus(base).sum() + num_hidden * jnp.log(2.0)


def uniform_weights(key: Array, visible: int, hidden: int) -> Float[Array, "D H"]:
    """Small random couplings (Glorot and Bengio, 2010), float32."""
    scale = (6.0 / (visible + hidden)) ** 0.5
    return jax.random.uniform(key, (visible, hidden), jnp.float32, -scale, scale)


def check_fields(machine: Any, least: int, *scales: str) -> None:
    """Refuse a number of hidden units that is not whole or too small, and prior scales that are not positive."""
    kind, count = type(machine).__name__, machine.num_hidden
    if not isinstance(count, int) or isinstance(count, bool) or count < least:
        raise ValueError(f"{kind}: num_hidden is {count!r}; expected a whole number of at least {least}.")
    check_scales(machine, *scales)


def check_scales(machine: Any, *scales: str) -> None:
    """Refuse prior scales that are not positive."""
    for name in scales:
        value = getattr(machine, name)
        if not isinstance(value, Real) or not 0 < float(value) < float("inf"):
            raise ValueError(f"{type(machine).__name__}: {name} is {value!r}; give a positive number.")


def normal(name: str, shape: tuple[int, ...], scale: float) -> Any:
    """A global site with independent Normal(0, scale²) entries."""
    return numpyro.sample(name, dist.Normal(0.0, scale).expand(shape).to_event(len(shape)))


def draw_states(
    key: Array, log_weights: Float[Array, " states"], units: int, count: int
) -> Float[Array, "count units"]:
    """Independent draws of states, with probabilities proportional to exp(log_weights)."""
    return states(units, jax.random.categorical(key, log_weights, shape=(count,)), jnp.float32)


def exact_draws(self: Any, key: Array, params: Params, count: int) -> Float[Array, "count D"]:
    """Independent draws of v from the machine, by enumeration of its visible units."""
    return draw_states(key, self._visible_table(params), params["visible_bias"].shape[0], count)


def site_values(self: Any, params: Mapping[str, ArrayLike]) -> dict[str, Array]:
    """Values of the global sites at these parameters: themselves."""
    return {name: jnp.asarray(value) for name, value in params.items()}


def summed_out(x: Float[Array, "batch D"], num_data: int | None = None) -> None:
    """The guide of the hidden units given the globals: it samples nothing, since the program sums them out."""


def exact_mean(self: Any, params: Params) -> Float[Array, " D"]:
    """E[v], by enumeration: the gradient of log Z in the visible biases."""
    return jax.grad(self.log_partition)(params)["visible_bias"]


def sample_hidden(
    self: Any, key: Array, params: Params, v: Float[Array, "*n D"], beta: Any = 1.0
) -> Float[Array, "*n H"]:
    """h ~ prod Bernoulli(``hidden_mean``)."""
    return bernoulli(key, self.hidden_mean(params, v, beta))


def sample_visible(
    self: Any,
    key: Array,
    params: Params,
    v: Float[Array, "*n D"],
    h: Float[Array, "*n H"],
    beta: Any = 1.0,
    base: Any = 0.0,
    observed: Any = False,
) -> Float[Array, "*n D"]:
    """v ~ prod Bernoulli(``visible_mean``), entries of v that are observed left as they are."""
    return jnp.where(observed, v, bernoulli(key, self.visible_mean(params, v, h, beta, base)))


@property
def posterior(self: Any) -> Any:
    """The guide of the hidden units given the globals, which has nothing left to sample."""
    return summed_out
