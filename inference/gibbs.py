"""Blocked Gibbs sampling of conjugate programs.

One sweep draws the local latents of all rows given the globals, then the globals, block by block, given
sufficient statistics of the completed data:

    z ~ p(z | x, g),    g_1 ~ p(g_1 | g_2, ..., x, z),    g_2 ~ p(g_2 | g_1, ..., x, z),    ...

Each draw is from the exact conditional, so that the posterior is invariant and nothing is tuned. Chains
are vectorised by the loop. Sums over rows are float64, as in EM, and so is the state of the chain.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array
from numpyro.util import soft_vmap

from inference.conjugate import check_batch, check_globals, check_program, log_joint
from inference.errors import check_whole
from inference.programs import anatomy, bind, trace
from inference.protocols import Batch, BlockedGibbs, Draws, Program, Record


@dataclass(frozen=True)
class Gibbs:
    """Sample the posterior of a program's global latents, one block after the other.

    Chains start at ``model.initial``, with a key of their own. The local latents are drawn in every sweep
    and not kept: ``sample_posterior`` draws them anew, from the same conditional.

    Parameters
    ----------
    model
        A NumPyro program with ``initial``, ``site_values``, ``complete``, ``draw`` and ``posterior``
        (:class:`~inference.protocols.BlockedGibbs`), such as a Gaussian mixture.
    num_warmup
        Sweeps that are discarded; ``num_steps`` of ``fit`` counts the draws that are kept.

    Notes
    -----
    ``sample_stats`` holds ``lp``, the log joint density of data and globals in nats with the local latents
    integrated out, and ``diverging``, which is never true.

    Raises
    ------
    Incompatible
        When the program does not have these steps.

    References
    ----------
    Stochastic Relaxation, Gibbs Distributions, and the Bayesian Restoration of Images (Geman and Geman,
    1984); Sampling-Based Approaches to Calculating Marginal Densities (Gelfand and Smith, 1990).
    """

    model: BlockedGibbs
    num_warmup: int = 500

    engine: ClassVar[str] = "numpyro"

    def __post_init__(self) -> None:
        check_whole("Gibbs: num_warmup", self.num_warmup, 0)
        check_program("Gibbs", self.model, ("initial", "site_values", "complete", "draw", "posterior"))

    @property
    def guide(self) -> Program:
        """The exact posterior of the locals given the globals."""
        return self.model.posterior

    def check(self, batch: Batch) -> None:
        """Refuse minibatches, data that are not the program's, and draws that are not its global sites."""
        check_batch("Gibbs", self.model, ("initial", "complete"), batch)
        jax.eval_shape(lambda key: self.model.initial(key, **batch.data), jax.random.key(0))
        check_globals("Gibbs", self.model, "draw", lambda key: self._sweep(key, self.init(key, batch), batch), batch)

    def init(self, key: Array, batch: Batch) -> dict[str, Array]:
        """The globals (float64) at the program's initial parameters."""
        values = self.model.site_values(self.model.initial(key, **batch.data))
        with jax.enable_x64(True):
            return {name: jnp.asarray(value, jnp.float64) for name, value in values.items()}

    def step(self, key: Array, state: dict[str, Array], batch: Batch) -> tuple[dict[str, Array], Record]:
        """One sweep: the locals of all rows, then the globals."""
        key_sweep, key_joint = jax.random.split(key)
        state = self._sweep(key_sweep, state, batch)
        lp = log_joint(self.model, state, key_joint, batch).astype(jnp.float32)
        draw = {f"z.{name}": value.astype(jnp.float32) for name, value in state.items()}
        return state, Record({"lp": lp}, draw | {"lp": lp})

    def finish(self, key: Array, state: dict[str, Array], records: dict[str, Any], batch: Batch) -> Draws:
        """Draws of one chain, with the program's deterministic sites outside the data plate."""
        if not records:  # stopped by a signal within the warmup
            return Draws({}, {}, {"lp": jnp.zeros(0), "diverging": jnp.zeros(0, bool)})
        posterior = {name.removeprefix("z."): value for name, value in records.items() if name.startswith("z.")}
        thunk = bind(self.model, batch)
        plate = anatomy(thunk).plate

        def deterministic(draw: dict[str, Array]) -> dict[str, Array]:
            sites = {n: site for n, site in trace(thunk, key, draw).items() if site["type"] == "deterministic"}
            shared = {n: s for n, s in sites.items() if all(f.name != plate for f in s["cond_indep_stack"])}
            return {n: site["value"] for n, site in shared.items()}

        posterior |= soft_vmap(deterministic, posterior, chunk_size=32)
        lp = records["lp"]
        return Draws({}, posterior, {"lp": lp, "diverging": jnp.zeros(lp.shape, bool)})

    def params(self, state: dict[str, Array], batch: Batch) -> dict[str, Any]:
        """No point estimates: everything is in the draws."""
        return {}

    def _sweep(self, key: Array, state: dict[str, Array], batch: Batch) -> dict[str, Array]:
        key_locals, key_globals = jax.random.split(key)
        statistics = self.model.complete(key_locals, state, **batch.data)
        return self.model.draw(key_globals, state, statistics)


__all__ = ["Gibbs"]
