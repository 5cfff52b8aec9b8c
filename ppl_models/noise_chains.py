r"""The two Markov chains of a diffusion, as distributions over paths z = (x_1, ..., x_T).

    NoisingChain     q(x_1..x_T | x_0) = prod_t N(sqrt(alpha_t) x_{t-1}, beta_t I)
    DenoisingChain   p(x_1..x_T) = N(x_T | 0, I) prod_{t=2}^T N(x_{t-1} | mu(x_t, t), sigma_t² I),
                     mu(x_t, t) = (x_t - beta_t / sqrt(1 - abar_t) e(x_t, t)) / sqrt(alpha_t),

with e the noise that the network finds in x_t. The bound E_q[log p(x_0, z) - log q(z | x_0)] is a sum over t,

    -KL(q(x_T | x_0) || N(0, I)) + E log N(x_0 | mu(x_1, 1), sigma_1² I) - sum_{t=2}^T E KL(q(x_{t-1} | x_t, x_0) || p),

whose terms need one x_t ~ q(x_t | x_0) each: with weight_t = beta_t² / (2 sigma_t² alpha_t (1 - abar_t)),

    term_t = constant_t - weight_t ||noise - e(x_t, t)||²,
    constant_t = -D/2 (btilde_t / sigma_t² - 1 - log(btilde_t / sigma_t²))  for t > 1, of which the KL of two
                 Normals keeps trace and log where sigma_t² is not btilde_t;   -D/2 log(2 pi sigma_1²)  for t = 1.

References
----------
Deep Unsupervised Learning using Nonequilibrium Thermodynamics (Sohl-Dickstein et al., 2015).
Denoising Diffusion Probabilistic Models (Ho, Jain and Abbeel, 2020).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int
from numpyro.distributions import Distribution, Normal, constraints

from ppl_models.noise_schedules import Levels, NoiseSchedule, Variance, levels, reverse_variances
from ppl_models.predictions import Prediction

Network = Callable[[Float[Array, "*rows D"], Int[Array, "*rows"]], Float[Array, "*rows D"]]


def at(values: np.ndarray, t: Int[Array, "*rows"]) -> Float[Array, "*rows 1"]:
    """One value of each step, to stand before rows."""
    return jnp.asarray(values, jnp.float32)[t][..., None]


class NoisingChain(Distribution):
    """q(z | x_0): event shape ``(T, D)``, entry t - 1 is x_t."""

    arg_constraints = {}
    pytree_data_fields = ("x",)
    pytree_aux_fields = ("schedule",)
    support = constraints.independent(constraints.real, 2)  # pyright: ignore[reportAssignmentType]

    def __init__(self, x: Float[Array, "batch D"], schedule: NoiseSchedule):
        self.x, self.schedule = x, schedule
        super().__init__(x.shape[:-1], (levels(schedule).num_steps, x.shape[-1]))

    def sample(self, key: Any, sample_shape: tuple[int, ...] = ()) -> Array:
        known = levels(self.schedule)
        noise = jax.random.normal(key, (known.num_steps, *sample_shape, *self.x.shape), self.x.dtype)
        keep, spread = (jnp.asarray(np.sqrt(v[1:]), self.x.dtype) for v in (known.alpha, known.beta))

        def step(x: Array, given: Any) -> tuple[Array, Array]:
            a, b, e = given
            x = a * x + b * e
            return x, x

        _, path = lax.scan(step, jnp.broadcast_to(self.x, noise.shape[1:]), (keep, spread, noise))
        return jnp.moveaxis(path, 0, -2)

    def log_prob(self, value: Array) -> Array:
        known = levels(self.schedule)
        before = jnp.concatenate([jnp.broadcast_to(self.x, value[..., 0, :].shape)[..., None, :], value], -2)[
            ..., :-1, :
        ]
        t = jnp.arange(1, known.num_steps + 1)
        step = Normal(at(np.sqrt(known.alpha), t) * before, at(np.sqrt(known.beta), t))
        return step.log_prob(value).sum((-1, -2))


class DenoisingChain(Distribution):
    """p(z), and the step from x_1 to the data: event shape ``(T, D)``, entry t - 1 is x_t.

    Parameters
    ----------
    network
        From x_t ``(*rows, D)`` and t ``(*rows)`` to what ``prediction`` asks for.
    schedule, prediction
        The noising that it undoes, and what the network puts out.
    variance
        What sigma_t² is.
    batch_shape
        Of the rows.
    dim
        D.
    """

    arg_constraints = {}
    pytree_aux_fields = ("network", "schedule", "prediction", "reverse_variance", "dim")
    support = constraints.independent(constraints.real, 2)  # pyright: ignore[reportAssignmentType]

    def __init__(
        self,
        network: Network,
        schedule: NoiseSchedule,
        prediction: Prediction,
        variance: Variance,
        batch_shape: tuple[int, ...],
        dim: int,
    ):
        self.network, self.schedule, self.prediction = network, schedule, prediction
        self.reverse_variance, self.dim = variance, dim
        super().__init__(batch_shape, (levels(schedule).num_steps, dim))

    @property
    def num_steps(self) -> int:
        """T."""
        return levels(self.schedule).num_steps

    @property
    def variances(self) -> Float[np.ndarray, " levels"]:
        """sigma_t², indexed by t."""
        return reverse_variances(self.schedule, self.reverse_variance)

    def found(
        self, x_t: Float[Array, "*rows D"], t: Int[Array, "*rows"]
    ) -> tuple[Float[Array, "*rows D"], Float[Array, "*rows D"]]:
        """The data and the noise e(x_t, t) that the network sees in x_t."""
        known = levels(self.schedule)
        a, s, output = at(known.signal, t), at(known.noise, t), self.network(x_t, t)
        return self.prediction.data(output, x_t, a, s), self.prediction.noise(output, x_t, a, s)

    def step(self, x_t: Float[Array, "*rows D"], t: Int[Array, "*rows"]) -> Normal:
        """p(x_{t-1} | x_t), of the data for t = 1."""
        return Normal(mean(levels(self.schedule), x_t, t, self.found(x_t, t)[1]), at(np.sqrt(self.variances), t))

    def terms(
        self, x: Float[Array, "*rows D"], t: Int[Array, "*rows"], noise: Float[Array, "*rows D"]
    ) -> tuple[Float[Array, "*rows"], Float[Array, "*rows"]]:
        """The bound's term_t at one x_t, in nats, and the squared error of what the network puts out, summed over D."""
        known = levels(self.schedule)
        a, s = at(known.signal, t), at(known.noise, t)
        output = self.network(a * x + s * noise, t)
        error = jnp.square(output - self.prediction.target(x, noise, a, s)).sum(-1)
        ratio = self.prediction.ratio(known.signal, np.maximum(known.noise, 1e-30))
        weight = np.zeros_like(known.beta)  # in float64: its factors span many orders of magnitude
        weight[1:] = (known.beta**2 / (2 * known.alpha))[1:] / (self.variances * known.noise**2)[1:]
        return at(self._constants(), t)[..., 0] - at(weight * ratio**2, t)[..., 0] * error, error

    def last_term(self, x: Float[Array, "*rows D"]) -> Float[Array, "*rows"]:
        """-KL(q(x_T | x_0) || N(0, I)) in nats."""
        known = levels(self.schedule)
        left = known.noise[-1] ** 2
        constant = jnp.float32(left - 1 - np.log(left))
        return -0.5 * (constant + jnp.square(jnp.float32(known.signal[-1]) * x)).sum(-1)

    def _constants(self) -> Float[np.ndarray, " levels"]:
        known = levels(self.schedule)
        out = np.zeros_like(known.beta)
        out[1] = -0.5 * self.dim * np.log(2 * np.pi * self.variances[1])
        ratio = known.posterior_variance[2:] / self.variances[2:]
        out[2:] = -0.5 * self.dim * (ratio - 1 - np.log(ratio))
        return out

    def sample(self, key: Any, sample_shape: tuple[int, ...] = ()) -> Array:
        shape = (*sample_shape, *self.batch_shape, self.dim)
        key_last, key_steps = jax.random.split(key)
        x_last = jax.random.normal(key_last, shape)

        def step(x_t: Array, given: tuple[Array, Array]) -> tuple[Array, Array]:
            t, key = given
            x = self.step(x_t, jnp.broadcast_to(t, shape[:-1])).sample(key)
            return x, x

        t = jnp.arange(self.num_steps, 1, -1)
        _, path = lax.scan(step, x_last, (t, jax.random.split(key_steps, len(t))))
        return jnp.moveaxis(jnp.concatenate([x_last[None], path])[::-1], 0, -2)

    def log_prob(self, value: Array) -> Array:
        t = jnp.broadcast_to(jnp.arange(2, self.num_steps + 1), value[..., 1:, 0].shape)
        steps = self.step(value[..., 1:, :], t).log_prob(value[..., :-1, :]).sum((-1, -2))
        return steps + Normal().log_prob(value[..., -1, :]).sum(-1)


def mean(known: Levels, x_t: Float[Array, "*rows D"], t: Int[Array, "*rows"], noise: Array) -> Float[Array, "*rows D"]:
    """The mean of x_{t-1} given x_t and the noise in it."""
    rate = np.divide(known.beta, known.noise, out=np.zeros_like(known.beta), where=known.noise > 0)
    return (x_t - at(rate, t) * noise) / at(np.sqrt(known.alpha), t)


__all__ = ["DenoisingChain", "NoisingChain", "at", "mean"]
