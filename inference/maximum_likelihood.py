"""Turn a Bayesian program into one whose global latents are parameters: maximum likelihood.

``MaximumLikelihood(mixture)`` with an empty guide and ``ELBO()`` climbs the exact log likelihood by
gradient; with ``MaximumLikelihood(mixture.posterior)`` or an amortized guide it is variational EM.
The same prior section gives the same parameter names, so a model and its posterior share them.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpyro
from numpyro import handlers
from numpyro.primitives import Messenger

from inference.errors import Incompatible
from inference.programs import row_plates
from inference.protocols import Program


@dataclass(frozen=True)
class MaximumLikelihood:
    """The program with every latent outside the data plate made a parameter, and its prior dropped.

    Parameters
    ----------
    program
        A NumPyro program.
    fixed
        ``((site, value), ...)``: sites held at known values instead of learned, for example
        ``(("weights", (1/3, 1/3, 1/3)),)``.

    Raises
    ------
    Incompatible
        When a global latent is discrete: a parameter must be differentiable.
    """

    program: Program
    fixed: tuple[tuple[str, Any], ...] = ()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the program on its arguments."""
        values = {name: jnp.asarray(value) for name, value in self.fixed}
        local = row_plates(self.program, args, kwargs)
        with handlers.block(hide=list(values)), _AsParameters(local), handlers.substitute(data=values):
            return self.program(*args, **kwargs)

    @property
    def __signature__(self) -> inspect.Signature:
        return inspect.signature(self.program)

    @property
    def marginal(self) -> MaximumLikelihood:
        """The same of the program with its local latents integrated out, where it has that."""
        return MaximumLikelihood(self.program.marginal, self.fixed)


class _AsParameters(Messenger):
    """A latent site outside these plates becomes a parameter that starts at a draw from its prior."""

    def __init__(self, plates: frozenset[str]):
        self.plates = plates
        super().__init__()

    def process_message(self, msg: dict[str, Any]) -> None:
        if msg["type"] != "sample" or msg["is_observed"] or msg["value"] is not None:
            return
        if any(frame.name in self.plates for frame in msg["cond_indep_stack"]):
            return
        fn = msg["fn"]
        if fn.support.is_discrete:
            raise Incompatible(
                f"MaximumLikelihood cannot make the discrete site {msg['name']!r} a parameter: it lies outside the "
                "data plate and has no gradient."
            )
        msg |= {
            "type": "param",
            "fn": lambda *_, **__: fn.sample(numpyro.prng_key()),
            "args": (),
            "kwargs": {"constraint": fn.support},
        }


__all__ = ["MaximumLikelihood"]
