r"""Relaxations: a program's binary and one-hot draws made differentiable, without rewriting it.

With logits l, temperature t, and L ~ Logistic(0, 1) or G_k ~ Gumbel(0, 1),

    Bernoulli(l)         s = sigmoid((l + L) / t),    h = 1[l + L > 0]
    Multinomial(1, l)    s = softmax((l + G) / t),    h = one-hot of argmax(l + G)

h is an exact draw of the site, and s tends to it as t -> 0. :func:`gumbel_softmax` gives the site the value s;
:func:`straight_through` the value h, with the gradient of s. Both evaluate densities by the linear extension of
the log mass, which is the log mass at h,

    log p(z) = z log p + (1 - z) log(1 - p),    log p(z) = sum_k z_k log p_k.

Both are biased: E[f(s)] is not E[f(h)], and the gradient of s is not that of E[f(h)]. Bias falls and variance rises
as t -> 0. A bound of relaxed values is no bound on the evidence; one of hard values is. The model must use such a
value in arithmetic (as weights), not compare or index with it.

References
----------
Categorical Reparameterization with Gumbel-Softmax (Jang, Gu and Poole, 2017); The Concrete Distribution: A
Continuous Relaxation of Discrete Random Variables (Maddison, Mnih and Teh, 2017); Estimating or Propagating Gradients
Through Stochastic Neurons for Conditional Computation (Bengio, Leonard and Courville, 2013).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax.lax import stop_gradient
from jaxtyping import Array, Float
from numpyro.distributions import constraints
from numpyro.primitives import Messenger

from inference.errors import Incompatible
from inference.protocols import Program

LARGEST_LOGIT = 1e30  # in place of infinity: 0 log 0 = 0, not NaN

Value = Callable[[Array, Array], Array]  # of the relaxed draw s and the hard one h


def gumbel_softmax(program: Program, temperature: Any, sites: frozenset[str] | None = None) -> Program:
    """The program with relaxed values at its Bernoulli and one-hot sites.

    Parameters
    ----------
    program
        A NumPyro program, or a thunk.
    temperature
        Positive scalar, may be traced.
    sites
        Names of the sites to relax, by default all that are latent and Bernoulli or ``Multinomial(1, ...)``.

    Raises
    ------
    Incompatible
        When run, at a latent integer ``Categorical`` among the sites.
    """
    return _Relaxed(program, temperature, _relaxed_value, sites)


def straight_through(program: Program, temperature: Any, sites: frozenset[str] | None = None) -> Program:
    """The program with exact draws at its Bernoulli and one-hot sites that pass on the relaxed draws' gradient.

    Takes and raises what :func:`gumbel_softmax` does.
    """
    return _Relaxed(program, temperature, _hard_value, sites)


def _relaxed_value(s: Array, h: Array) -> Array:
    return s


def _hard_value(s: Array, h: Array) -> Array:
    return h + (s - stop_gradient(s))  # the second term is exactly zero


@dataclass(frozen=True)
class _Relaxed:
    """A program some of whose sites are relaxed; equal to another by value."""

    fn: Program
    temperature: Any
    value: Value
    sites: frozenset[str] | None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with _Relax(self.temperature, self.value, self.sites):
            return self.fn(*args, **kwargs)

    @property
    def __signature__(self) -> inspect.Signature:
        return inspect.signature(self.fn)


class _Relax(Messenger):
    """Replace the distributions of latent binary and one-hot sites."""

    def __init__(self, temperature: Any, value: Value, sites: frozenset[str] | None):
        self.temperature, self.value, self.sites = temperature, value, sites
        super().__init__()

    def process_message(self, msg: dict[str, Any]) -> None:
        if msg["type"] != "sample" or msg["is_observed"] or (self.sites is not None and msg["name"] not in self.sites):
            return
        msg["fn"] = self._relax(msg["name"], msg["fn"])

    def _relax(self, name: str, fn: Any) -> Any:
        if isinstance(fn, dist.Independent):
            return self._relax(name, fn.base_dist).to_event(fn.reinterpreted_batch_ndims)
        if isinstance(fn, dist.ExpandedDistribution):
            return self._relax(name, fn.base_dist).expand(fn.batch_shape)
        if isinstance(fn, dist.MaskedDistribution):
            return self._relax(name, fn.base_dist).mask(fn._mask)
        if isinstance(fn, (dist.CategoricalLogits, dist.CategoricalProbs)):
            raise Incompatible(
                f"site {name!r} is an integer Categorical, and there is nothing between two integers that a model "
                "could index with. Write it in model and guide as Multinomial(1, ...), whose draws are one-hot, and "
                "use them as weights; or leave it out of the guide, to be summed out exactly."
            )
        if not hasattr(fn, "logits"):
            return fn
        if fn.support is constraints.boolean:
            return RelaxedBernoulli(fn.logits, self.temperature, self.value)
        if isinstance(fn.support, constraints.multinomial) and np.all(np.equal(fn.support.upper_bound, 1)):
            return RelaxedOneHot(fn.logits, self.temperature, self.value)
        return fn


class RelaxedBernoulli(dist.Distribution):
    """Bernoulli whose draws have a gradient, and whose log mass extends to [0, 1].

    Parameters
    ----------
    logits
        Log odds, any shape.
    temperature
        Positive scalar.
    value
        What the site's value is, of the relaxed draw and the hard one.
    """

    arg_constraints = {"logits": constraints.real, "temperature": constraints.positive}
    reparametrized_params = ["logits", "temperature"]
    pytree_aux_fields = ("value",)

    def __init__(self, logits: Any, temperature: Any, value: Value, *, validate_args: bool | None = None):
        self.logits = jnp.clip(logits, -LARGEST_LOGIT, LARGEST_LOGIT)
        self.temperature, self.value = temperature, value
        super().__init__(batch_shape=jnp.shape(logits), validate_args=validate_args)

    @property
    def support(self) -> Any:
        return constraints.boolean

    def sample(self, key: Any, sample_shape: tuple[int, ...] = ()) -> Float[Array, "..."]:
        score = self.logits + jax.random.logistic(key, self.shape(sample_shape), self.logits.dtype)
        return self.value(jax.nn.sigmoid(score / self.temperature), (score > 0).astype(score.dtype))

    def log_prob(self, value: Any, intermediates: Any = None) -> Float[Array, "..."]:
        # log σ(l) = -softplus(-l),  log(1 - σ(l)) = -softplus(l)
        return -value * jax.nn.softplus(-self.logits) - (1 - value) * jax.nn.softplus(self.logits)


class RelaxedOneHot(dist.Distribution):
    """Categorical over one-hot vectors whose draws have a gradient, its log mass extended to the simplex.

    Parameters
    ----------
    logits
        Unnormalised log probabilities, the last axis over categories.
    temperature
        Positive scalar.
    value
        What the site's value is, of the relaxed draw and the hard one.
    """

    arg_constraints = {"logits": constraints.real_vector, "temperature": constraints.positive}
    reparametrized_params = ["logits", "temperature"]
    pytree_aux_fields = ("value",)

    def __init__(self, logits: Any, temperature: Any, value: Value, *, validate_args: bool | None = None):
        self.logits = jnp.clip(jax.nn.log_softmax(logits), -LARGEST_LOGIT)
        self.temperature, self.value = temperature, value
        shape = jnp.shape(logits)
        super().__init__(batch_shape=shape[:-1], event_shape=shape[-1:], validate_args=validate_args)

    @property
    def support(self) -> Any:
        return constraints.multinomial(1)

    def sample(self, key: Any, sample_shape: tuple[int, ...] = ()) -> Float[Array, "... categories"]:
        score = self.logits + jax.random.gumbel(key, self.shape(sample_shape), self.logits.dtype)
        hard = jax.nn.one_hot(jnp.argmax(score, axis=-1), score.shape[-1], dtype=score.dtype)
        return self.value(jax.nn.softmax(score / self.temperature), hard)

    def log_prob(self, value: Any, intermediates: Any = None) -> Float[Array, "..."]:
        return jnp.sum(value * self.logits, axis=-1)


__all__ = ["RelaxedBernoulli", "RelaxedOneHot", "gumbel_softmax", "straight_through"]
