"""The No-U-Turn Sampler: NumPyro's kernel, one transition a step, warmup included.

Discrete latents are summed out; local latents that the program can integrate out (``marginal``)
are, so that only the globals are sampled. Chains are vectorised by the loop.
"""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Real
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array
from numpyro.infer.hmc import hmc

from inference.errors import check_whole
from inference.protocols import Batch, Draws, Program, Record
from inference.target import check_target, constrained, potential, start


@dataclass(frozen=True)
class NUTS:
    """Sample the posterior of a program's continuous latents.

    Parameters
    ----------
    model
        A NumPyro program; its discrete latents must have finite support.
    num_warmup
        Steps of adaptation, discarded; ``num_steps`` of ``fit`` counts the draws that are kept.
    target_accept_prob
        Mean acceptance probability that the step size is adapted to.
    max_tree_depth
        At most 2**depth - 1 leapfrog steps a draw.
    dense_mass
        Adapt a full mass matrix in place of a diagonal one.

    Raises
    ------
    ValueError
        A field out of range.

    References
    ----------
    The No-U-Turn Sampler (Hoffman and Gelman, 2014); A Conceptual Introduction to Hamiltonian Monte
    Carlo (Betancourt, 2017).
    """

    model: Program
    num_warmup: int = 1000
    target_accept_prob: float = 0.8
    max_tree_depth: int = 10
    dense_mass: bool = False

    engine: ClassVar[str] = "numpyro"

    def __post_init__(self) -> None:
        for name, least in (("num_warmup", 0), ("max_tree_depth", 1)):
            check_whole(f"NUTS: {name}", getattr(self, name), least)
        if not (isinstance(self.target_accept_prob, Real) and 0 < float(self.target_accept_prob) < 1):
            raise ValueError(f"NUTS: target_accept_prob is {self.target_accept_prob!r}; give a number between 0 and 1.")

    @property
    def guide(self) -> Program | None:
        """The exact posterior of the locals given the globals, where the program has it."""
        return getattr(self.model, "posterior", None)

    def check(self, batch: Batch) -> None:
        """Refuse minibatches, and discrete latents that cannot be summed out."""
        check_target("NUTS", self.model, batch)

    def init(self, key: Array, batch: Batch) -> Any:
        """A valid starting point and fresh adaptation."""
        _, key_init = jax.random.split(key)
        init, _ = self._kernel(batch)
        return self._start(init, start(self.model, key, batch), key_init, batch)

    def step(self, key: Array, state: Any, batch: Batch) -> tuple[Any, Record]:
        """One transition of the chain (adapting during warmup)."""
        init, sample = self._kernel(batch)
        # hmc keeps the adaptation schedule in closures that only its init sets; its result is not used.
        self._start(init, state.z, key, batch)
        state = sample(state._replace(rng_key=key), (batch,), {})
        lp = -state.potential_energy
        draw = {f"z.{n}": v for n, v in state.z.items()} | {
            "lp": lp,
            "diverging": state.diverging,
            "energy": state.energy,
            "acceptance_rate": state.accept_prob,
            "n_steps": state.num_steps,
            "step_size": state.adapt_state.step_size,
        }
        return state, Record({"lp": lp, "divergences": state.diverging.astype(jnp.float32)}, draw)

    def finish(self, key: Array, state: Any, records: dict[str, Any], batch: Batch) -> Draws:
        """Draws of one chain in the model's own spaces, with its deterministic sites."""
        if not records:  # stopped by a signal within the warmup
            return Draws({}, {}, {"lp": jnp.zeros(0), "diverging": jnp.zeros(0, bool)})
        z = {n.removeprefix("z."): v for n, v in records.items() if n.startswith("z.")}
        posterior = constrained(self.model, key, z, batch)
        return Draws({}, posterior, {n: v for n, v in records.items() if not n.startswith("z.")})

    def params(self, state: Any, batch: Batch) -> dict[str, Any]:
        """No point estimates: everything is in the draws."""
        return {}

    def _kernel(self, batch: Batch) -> Any:
        return hmc(potential_fn_gen=lambda batch: potential(self.model, batch), algo="NUTS")

    def _start(self, init: Any, z: Any, key: Array, batch: Batch) -> Any:
        return init(
            z,
            num_warmup=self.num_warmup,
            target_accept_prob=self.target_accept_prob,
            max_tree_depth=self.max_tree_depth,
            dense_mass=[tuple(sorted(z.z if hasattr(z, "z") else z))] if self.dense_mass else [],
            model_args=(batch,),
            rng_key=key,
        )
