"""The No-U-Turn Sampler: NumPyro's kernel, one transition a step, warmup included.

Discrete latents are summed out; local latents that the program can integrate out (``marginal``)
are, so that only the globals are sampled. Chains are vectorised by the loop.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array
from numpyro import handlers
from numpyro.infer.hmc import hmc
from numpyro.infer.initialization import init_to_uniform, init_to_value
from numpyro.infer.util import constrain_fn, initialize_model, potential_energy

from inference.check import check
from inference.errors import Incompatible
from inference.programs import anatomy, bind
from inference.protocols import Batch, Draws, Program, Record


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
        if self.num_warmup < 0:
            raise ValueError(f"num_warmup is {self.num_warmup}; expected 0 or more.")

    @property
    def guide(self) -> Program | None:
        """The exact posterior of the locals given the globals, where the program has it."""
        return getattr(self.model, "posterior", None)

    @property
    def _target(self) -> Program:
        return getattr(self.model, "marginal", self.model)

    def check(self, batch: Batch) -> None:
        """Refuse minibatches, and discrete latents that cannot be summed out."""
        if len(batch) < batch.num_data:
            raise Incompatible("NUTS needs all rows in every step: use batch_size=None, or SVI for minibatches.")
        check(self._target, data=batch)
        parts = anatomy(bind(self._target, batch))
        stuck = parts.discrete - parts.enumerable
        if stuck:
            raise Incompatible(
                f"NUTS follows gradients, and {sorted(stuck)} are discrete with infinite support: they can be "
                "neither moved nor summed out. Use SVI with ScoreFunction()."
            )
        if not set(parts.latent) - parts.discrete:
            raise Incompatible("the model has no continuous latent site for NUTS to sample.")
        if parts.params:
            raise Incompatible(
                f"the model has parameters {list(parts.params)}, which NUTS does not learn. Give them priors "
                "(numpyro.sample), or use SVI."
            )

    def init(self, key: Array, batch: Batch) -> Any:
        """A valid starting point and fresh adaptation."""
        key_start, key_init = jax.random.split(key)
        thunk = bind(self._target, batch)
        start = init_to_uniform
        if hasattr(self.model, "site_values"):
            values = self.model.site_values(self.model.initial(key_start, **batch.data))
            start = init_to_value(values=_as_float32(values))
        info = initialize_model(key_init, thunk, init_strategy=start, validate_grad=True).param_info
        init, _ = self._kernel(batch)
        return self._start(init, info, key_init, batch)

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
        thunk = bind(self._target, batch)
        model = handlers.seed(thunk, key)

        def constrain(z: dict[str, Array]) -> dict[str, Array]:
            return constrain_fn(model, (), {}, z, return_deterministic=True)

        z = {n.removeprefix("z."): v for n, v in records.items() if n.startswith("z.")}
        posterior = lax.map(constrain, z, batch_size=32)
        parts = anatomy(thunk)
        posterior = {n: v for n, v in posterior.items() if n not in parts.discrete | set(parts.observed)}
        return Draws({}, posterior, {n: v for n, v in records.items() if not n.startswith("z.")})

    def params(self, state: Any, batch: Batch) -> dict[str, Any]:
        """No point estimates: everything is in the draws."""
        return {}

    def _kernel(self, batch: Batch) -> Any:
        parts = anatomy(bind(self._target, batch))
        enumerated = bool(parts.discrete)
        if enumerated:
            from numpyro.contrib.funsor import config_enumerate, enum

        def potential(batch: Batch) -> Any:
            thunk = bind(self._target, batch)
            if enumerated:
                thunk = enum(config_enumerate(thunk), first_available_dim=-1 - parts.nesting)
            return lambda z: potential_energy(thunk, (), {}, z, enum=enumerated)

        return hmc(potential_fn_gen=potential, algo="NUTS")

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


def _as_float32(values: dict[str, Array]) -> dict[str, Array]:
    return {n: jnp.asarray(v, dtype=jnp.float32) for n, v in values.items()}
