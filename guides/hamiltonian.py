r"""Hamiltonian guide: the encoder's draw, carried along the model's own density by leapfrog steps.

    z_0 ~ q(z | x),  v_0 ~ N(0, I),    (z_0, v_0) -> (z, v) by L leapfrog steps of H = -log p(x, z) + |v|² / 2:

        v <- v + (e / 2) grad log p(x, z),    z <- z + e v,    v <- v + (e / 2) grad log p(x, z)

Each line moves one of the two by a function of the other, so the volume of (z, v) is kept, and
q(z, v | x) = q(z_0 | x) N(v_0). The momentum is an auxiliary variable, which a reverse model r(v | x, z) guesses back:

    log p(x) >= E[ log p(x, z) - log q(z_0 | x) - log N(v_0) + log r(v | x, z) ],

with equality where q(z, v | x) = p(z | x) r(v | x, z). The weight in brackets is one of importance sampling for
p(x, z) r(v | x, z) from q(z, v | x), so that IWAE and ``log_likelihood`` are what they should be, too.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from jaxtyping import Array, Float
from numpyro.distributions import constraints

from guides.row_density import row_log_joint
from ppl_models.networks import check_architecture, network, softplus

SCALE_FLOOR = 1e-6  # as in AmortizedNormal
UNIT = 0.5413  # softplus(UNIT) = 1


@dataclass(frozen=True)
class Hamiltonian:
    """An amortized guide moved by leapfrog steps: parameter sites ``encoder``, ``reverse`` and ``step_size``.

    NumPyro only. The density of z alone is not known, only that of a draw with its momentum: objectives that ask for
    log q at a given z (STL, DReG, ReweightedWakeSleep) are refused.

    Parameters
    ----------
    model
        The program whose latent is guessed: its one latent must be ``encoder.site``, a real vector.
    encoder
        Where z_0 comes from: a guide with ``conditional(x)``, such as :class:`~guides.AmortizedNormal`.
    network
        Architecture of r(v | x, z), from (x, z) to ``2 * latent_dim`` numbers, locations and scales before their
        softplus: see :func:`ppl_models.networks.network`.
    num_steps
        L, from 0, which is the encoder itself, without a momentum.
    init_step_size
        Where the steps e start, one for each coordinate, all learned.

    Raises
    ------
    ValueError
        ``num_steps`` or ``init_step_size`` is no such number.
    TypeError
        ``encoder`` or ``network`` cannot be used.

    References
    ----------
    Markov Chain Monte Carlo and Variational Inference: Bridging the Gap (Salimans, Kingma & Welling, 2015).
    """

    model: Callable[..., Any]
    encoder: Any
    network: Any
    num_steps: int = 4
    init_step_size: float = 0.05
    ppl = numpyro  # no field: there is no other

    def __post_init__(self) -> None:
        if not isinstance(self.num_steps, int) or self.num_steps < 0:
            raise ValueError(f"num_steps is {self.num_steps!r}; expected a whole number of at least 0.")
        if not 0 < self.init_step_size < float("inf"):
            raise ValueError(f"init_step_size is {self.init_step_size}; expected a positive number.")
        if isinstance(self.encoder, type) or not callable(getattr(self.encoder, "conditional", None)):
            raise TypeError(
                f"encoder is {self.encoder!r}; expected a guide with conditional(x), such as AmortizedNormal(...)."
            )
        check_architecture(numpyro, "network", self.network)

    def __call__(self, x: Float[Array, "batch pixels"], num_data: int | None = None) -> Any:
        """Sample the latent of each row.

        Parameters
        ----------
        x
            Rows, shape ``(batch, pixels)``.
        num_data
            Rows in the whole data set, ``batch`` by default.

        Returns
        -------
        Array
            Latents, shape ``(batch, latent_dim)``.
        """
        q = self.encoder.conditional(x)
        if self.num_steps:
            q = self._moved(q, x, num_data)
        with numpyro.plate("data", num_data or len(x), subsample_size=len(x)):
            return numpyro.sample(self.encoder.site, q)

    def _moved(self, q: Any, x: Array, num_data: int | None) -> Any:
        (d,) = q.event_shape
        log_joint = row_log_joint(self.model, self.encoder.site, x, num_data)
        start = jnp.full(d, self.init_step_size, x.dtype)
        step_size: Any = numpyro.param("step_size", start, constraint=constraints.positive)
        reverse = network(numpyro, "reverse", self.network, x.shape[-1] + d, 2 * d)

        def move(z: Array, v: Array) -> tuple[Array, Array]:
            return leapfrog(jax.grad(lambda z: jnp.sum(log_joint(z))), step_size, self.num_steps, z, v)

        def guess_back(z: Array) -> Any:
            outputs = reverse(jnp.concatenate([x, z], axis=-1))
            return dist.Normal(outputs[..., :d], softplus(outputs[..., d:] + UNIT) + SCALE_FLOOR).to_event(1)

        return _Moved(q, move, guess_back)


def leapfrog(
    gradient: Callable[[Array], Array], step_size: Array, num_steps: int, z: Array, v: Array
) -> tuple[Array, Array]:
    """Position and momentum after so many leapfrog steps of the potential whose negative gradient this is."""
    v = v + 0.5 * step_size * gradient(z)

    def step(_: Any, state: tuple[Array, Array]) -> tuple[Array, Array]:
        z, v = state
        z = z + step_size * v
        return z, v + step_size * gradient(z)

    z, v = jax.lax.fori_loop(0, num_steps, step, (z, v))
    return z, v - 0.5 * step_size * gradient(z)  # the last step of v was half a step too long


class _Moved(dist.Distribution):
    """z of (z, v) = move(z_0, v_0); the log density of a draw is log q(z_0) + log N(v_0) - log r(v | z)."""

    arg_constraints: dict[str, Any] = {}
    support = constraints.real_vector  # pyright: ignore
    reparametrized_params: list[str] = []  # of none: draws are pathwise in all that move uses
    pytree_data_fields = ("start",)

    def __init__(self, start: Any, move: Callable[..., Any], guess_back: Callable[[Array], Any]):
        self.start, self.move, self.guess_back = start, move, guess_back
        super().__init__(start.batch_shape, start.event_shape)

    def sample(self, key: Any, sample_shape: tuple[int, ...] = ()) -> Any:
        return self.sample_with_intermediates(key, sample_shape)[0]

    def sample_with_intermediates(self, key: Any, sample_shape: tuple[int, ...] = ()) -> Any:
        if sample_shape:
            keys = jax.random.split(key, sample_shape[0])
            return jax.vmap(lambda k: self.sample_with_intermediates(k, sample_shape[1:]))(keys)
        key_z, key_v = jax.random.split(key)
        z_0 = self.start.rsample(key_z)
        v_0 = jax.random.normal(key_v, z_0.shape, z_0.dtype)
        z, v = self.move(z_0, v_0)
        log_v_0 = dist.Normal().log_prob(v_0).sum(-1)
        return z, [self.start.log_prob(z_0) + log_v_0 - self.guess_back(z).log_prob(v)]

    def log_prob(self, value: Any, intermediates: Any = None) -> Any:
        if not intermediates:
            raise NotImplementedError(
                "the density of the Hamiltonian guide is known for its own draws with their momentum, not at any other "
                "value: use ELBO(), IWAE() or Renyi()."
            )
        return intermediates[0]
