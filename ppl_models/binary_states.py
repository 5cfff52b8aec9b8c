r"""Exact sums over all states of a few latent bits: a mixture with one component a state.

    p(x) = sum_s w_s p(x | s),    s in {0, 1}^bits,    2^bits components.

A layered model needs no sum over the states of all its layers at once. Its top layer has p(z_L), and

    p(z_l) = sum over z_{l+1} of p(z_{l+1}) p(z_l | z_{l+1})

is such a mixture too, evaluated at the states of layer l, which makes the weights of the one below.
Rows are taken in chunks, so that beside the table of the components (states, outputs) memory stays
bounded whatever the number of rows; the backward pass computes a chunk again in place of keeping it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType, SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from array_api_compat import array_namespace, device
from jax.scipy.special import logsumexp
from jaxtyping import Array, Float
from numpyro.distributions.util import validate_sample

from ppl_models.likelihoods import Bernoulli, Likelihood
from ppl_models.networks import softplus

MAX_BITS = 16
_BUDGET = 2**22  # numbers of a chunk of rows held at once, 16 MiB


def centred(bits: Any) -> Any:
    """Bits {0, 1} as {-1, 1}, floating-point: how they enter networks.

    The family of models is the same (weights halve, biases shift), and inputs and biases are less entangled.
    """
    return 2.0 * bits - 1.0


def all_states(bits: int, like: Any) -> Any:
    """Every state of ``bits`` bits, shape ``(2^bits, bits)``, in the floating-point type of ``like``."""
    xp = array_namespace(like)
    index, places = (xp.arange(n, device=device(like)) for n in (2**bits, bits))
    return xp.astype((index[:, None] >> places) & 1, like.dtype)


def check_bits(model: Any, bits: int) -> None:
    """Raise AttributeError, as a model without ``marginal`` would, where there are too many bits to sum over."""
    if bits > MAX_BITS:
        raise AttributeError(
            f"{type(model).__name__} has no marginal with {bits} latent bits: it would sum over 2^{bits} states, and "
            f"does so up to {MAX_BITS} bits. Estimate the likelihood with importance samples of a guide."
        )


@dataclass(frozen=True, eq=False)
class Emission:
    """p(x | outputs) that can be made anew outside the program: its parameter sites are read once."""

    likelihood: Likelihood
    engine: Any  # what the likelihood sees of the PPL

    def __call__(self, outputs: Any) -> Any:
        """Distribution over rows; ``outputs`` has shape ``(..., outputs_per_pixel * pixels)``."""
        return self.likelihood(self.engine, outputs)

    def table(self, outputs: Any) -> tuple[Callable[[Any], Any], int]:
        """The function x (rows, pixels) -> log p(x | outputs_s) (rows, states), and the numbers it holds a row."""
        states, pixels = outputs.shape
        if isinstance(self.likelihood, Bernoulli):
            # sum_d x_d log sigmoid(l_d) + (1 - x_d) log sigmoid(-l_d): two matrix products, where broadcasting
            # takes rows x states x pixels numbers. All terms have one sign, so nothing cancels.
            on, off = -softplus(-outputs).T, -softplus(outputs).T

            def bernoulli(x: Any) -> Any:
                with jax.default_matmul_precision("highest"):
                    return x @ on + (1 - x) @ off

            return bernoulli, states
        return lambda x: self(outputs).log_prob(x[..., None, :]), states * pixels


def emission(ppl: ModuleType, likelihood: Likelihood) -> Emission:
    """The likelihood, to be made any number of times: the first time must be inside the program."""
    values: dict[str, Any] = {}

    def param(name: str, *args: Any, **kwargs: Any) -> Any:
        if name not in values:
            values[name] = ppl.param(name, *args, **kwargs)
        return values[name]

    return Emission(likelihood, SimpleNamespace(distributions=ppl.distributions, param=param))


def mixture(ppl: ModuleType, log_weights: Any, outputs: Any, likelihood: Likelihood) -> Any:
    """The distribution sum_s w_s p(x | outputs_s) of one row, to be made inside a program.

    Parameters
    ----------
    ppl
        ``numpyro`` or ``pyro``.
    log_weights
        log w_s of each state, normalised, shape ``(states,)``; nats.
    outputs
        What the likelihood takes, at each state, shape ``(states, outputs_per_pixel * pixels)``.
    likelihood
        See :mod:`ppl_models.likelihoods`.

    Returns
    -------
    Distribution
        Batch shape ``()``, event shape ``(pixels,)``, in the engine's own class.
    """
    made = emission(ppl, likelihood)
    if ppl is numpyro:
        return _StateMixture(log_weights, outputs, made)
    from ppl_models.binary_states_torch import StateMixture

    return StateMixture(log_weights, outputs, made)


def rows_at_once(numbers: int) -> int:
    """Rows of a chunk, for this many numbers a row."""
    return max(1, _BUDGET // numbers)


class _StateMixture(dist.Distribution):
    arg_constraints = {"log_weights": dist.constraints.real_vector, "outputs": dist.constraints.real_matrix}
    pytree_aux_fields = ("emission",)

    def __init__(self, log_weights: Array, outputs: Array, emission: Emission, *, validate_args: bool | None = None):
        self.log_weights, self.outputs, self.emission = log_weights, outputs, emission
        super().__init__(event_shape=emission(outputs).event_shape, validate_args=validate_args)

    @property
    def support(self) -> Any:
        return self.emission(self.outputs).support

    def sample(self, key: Array | None, sample_shape: tuple[int, ...] = ()) -> Array:
        assert key is not None
        key_state, key_x = jax.random.split(key)
        state = jax.random.categorical(key_state, self.log_weights, shape=sample_shape)
        return self.emission(self.outputs[state]).sample(key_x)

    @validate_sample
    def log_prob(self, value: Any, intermediates: Any = None) -> Float[Array, "..."]:
        rows = jnp.reshape(value, (-1, *self.event_shape))
        table, numbers = self.emission.table(self.outputs)
        one = jax.checkpoint(lambda row: logsumexp(self.log_weights + table(row)))
        out = jax.lax.map(one, rows, batch_size=rows_at_once(numbers))
        return out.reshape(jnp.shape(value)[:-1])

    @property
    def mean(self) -> Array:
        return jnp.exp(self.log_weights) @ self.emission(self.outputs).mean
