r"""Semi-amortized guide: an encoder's guess, refined for each row by a few gradient steps on the row's own bound.

    lambda_0 = encoder(x),    lambda_{k+1} = lambda_k + eta g_k,    E[g_k] = grad ELBO_x(lambda_k),
    q(z | x) = q(z; lambda_K)

so that what the encoder misses of a row (the amortization gap) shrinks with K. The refinement is part of the guide:
what the parameters climb is the bound at lambda_K, and its gradient goes back through the steps, to the encoder and,
since the steps ask the model, to the model. Stopping it there would leave the encoder without a gradient that knows
of the refinement, and follow the gradient of no bound.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpyro
from jaxtyping import Array, Float

from guides.row_density import row_log_joint


@dataclass(frozen=True)
class SemiAmortized:
    """An amortized guide, each row's parameters refined by gradient steps on its ELBO. NumPyro only.

    The noise of the steps is new at each step, but comes from a key of its own that never changes, and is alike for all
    rows: q(z | x) is a function of the row, of the encoder's family. Were it drawn from the run's key, an objective
    that asks for log q at given latents would be told the density of another q than drew them, and bound nothing.

    A step uses the path derivative, whose noise vanishes where q is the posterior: with enough steps and a family that
    holds the posterior, the bound reaches the evidence.

    Parameters
    ----------
    model
        The program whose latent is guessed: its one latent must be ``encoder.site``.
    encoder
        Where the steps start from, and the family: a guide with ``encode(x)`` and ``at(outputs)``, such as
        :class:`~guides.AmortizedNormal` or :class:`~guides.AmortizedFullNormal`.
    num_steps
        K, from 0, which is the encoder itself.
    step_size
        eta, in the space of the network's outputs, of the row's bound in nats. Steps of more than 2 over the greatest
        curvature (about 1 / sd² of the narrowest direction of the posterior) run away.
    num_particles
        Draws a row in each step.

    Raises
    ------
    ValueError
        A count or a step size that is not positive (``num_steps`` may be 0).
    TypeError
        An encoder without ``encode`` and ``at``.

    References
    ----------
    Semi-Amortized Variational Autoencoders (Kim, Wiseman, Miller, Sontag & Rush, 2018).
    Sticking the Landing (Roeder, Wu & Duvenaud, 2017), for the path derivative.
    """

    model: Callable[..., Any]
    encoder: Any
    num_steps: int = 5
    step_size: float = 0.1
    num_particles: int = 1
    ppl = numpyro  # no field: there is no other

    def __post_init__(self) -> None:
        for name, least in (("num_steps", 0), ("num_particles", 1)):
            count = getattr(self, name)
            if not isinstance(count, int) or count < least:
                raise ValueError(f"{name} is {count!r}; expected a whole number of at least {least}.")
        if not 0 < self.step_size < float("inf"):
            raise ValueError(f"step_size is {self.step_size}; expected a positive number.")
        if isinstance(self.encoder, type) or not (hasattr(self.encoder, "encode") and hasattr(self.encoder, "at")):
            raise TypeError(
                f"encoder is {self.encoder!r}; expected a guide with encode(x) and at(outputs), such as "
                "AmortizedNormal(...)."
            )

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
        outputs = self.encoder.encode(x)
        if self.num_steps:
            log_joint = row_log_joint(self.model, self.encoder.site, x, num_data)
            outputs = self._refine(outputs, jax.vmap(log_joint))
        with numpyro.plate("data", num_data or len(x), subsample_size=len(x)):
            return numpyro.sample(self.encoder.site, self.encoder.at(outputs))

    def _refine(self, outputs: Float[Array, "batch outputs"], log_joint: Any) -> Float[Array, "batch outputs"]:
        at = self.encoder.at

        def bound(moving: Array, here: Array, key: Array) -> Array:
            z = jax.vmap(lambda row: at(row).rsample(key, (self.num_particles,)), out_axes=1)(moving)
            return jnp.sum(jnp.mean(log_joint(z) - at(here).log_prob(z), axis=0))  # z: (S, batch, latent_dim)

        def step(outputs: Array, key: Array) -> tuple[Array, None]:
            # Through z alone; but the outer gradient, of the whole refinement, sees both uses of the outputs.
            return outputs + self.step_size * jax.grad(bound)(outputs, outputs, key), None

        return jax.lax.scan(step, outputs, jax.random.split(jax.random.key(0), self.num_steps))[0]
