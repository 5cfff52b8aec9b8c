"""ChEES-HMC: many short chains that learn one step size, trajectory length and metric together.

A transition is Hamiltonian Monte Carlo: momentum p ~ N(0, V⁻¹), then L leapfrog steps of size ε from x
to x', accepted with probability min(1, exp(H(x, p) - H(x', p'))). During warmup all chains share

    ε       by dual averaging, so that the harmonic mean of the acceptance probabilities is 0.651;
    T = εL  by stochastic gradient ascent of the change in the estimator of the expected square,
            ChEES(T) = 1/4 E[(|x' - E x'|² - |x - E x|²)²], in coordinates scaled by V^(-1/2);
    V       the variance of each coordinate over chains and steps, of which the early are forgotten.

L is the same in every chain, ceil(u T / ε) with u from a van der Corput sequence on (0, 1): the chains move
in lockstep, which is what a GPU and vector units want of them, and where No-U-Turn chains wait for the longest
tree. After warmup nothing is learned any more, so every chain on its own leaves the posterior invariant.
"""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Real
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, Int

from inference.errors import check_whole
from inference.execution import CHAINS
from inference.protocols import Batch, Draws, Program, Record
from inference.target import check_target, constrained, potential, start

START = 0.1  # step size and trajectory length before the first is adapted
LEARNING_RATE = 0.5  # of log T; blackjax multiplies updates by 1 / sqrt(step) and clips them at 0.35
DECAY = 0.5  # the averages of log ε and log T weigh step t by t**-DECAY
JITTER_BITS = 20  # the sequence u repeats after 2**20 steps


class Tuning(NamedTuple):
    """What the chains share; each carries the same copy."""

    count: Int[Array, ""]  # transitions so far
    learned: Any  # blackjax's: step size, trajectory length, their averages and optimisers
    mean: Float[Array, " d"]  # of the unconstrained coordinates
    spread: Float[Array, " d"]  # their variance about it
    variance: Float[Array, " d"]  # V: the spread, shrunk a little; the inverse mass matrix


class State(NamedTuple):
    """One chain: where it is, unconstrained, with log density (nats) and gradient."""

    position: dict[str, Array]
    log_density: Float[Array, ""]
    gradient: dict[str, Array]
    tuning: Tuning


@dataclass(frozen=True)
class ChEES:
    """Sample the posterior of a program's continuous latents by many chains at once.

    Give ``fit`` many chains, such as ``num_chains=64``: a thousand draws from 64 chains need few steps, and
    the more chains, the shorter the warmup. Chains stuck in different modes widen the metric that all share
    and slow everyone down; R-hat tells.

    Parameters
    ----------
    model
        A NumPyro program; its discrete latents must have finite support.
    num_warmup
        Steps of adaptation, discarded; ``num_steps`` of ``fit`` counts the draws that each chain keeps.
    target_accept_prob
        Harmonic mean of the acceptance probabilities that the step size is adapted to.
    max_leapfrog_steps
        At most so many a transition.

    References
    ----------
    An Adaptive-MCMC Scheme for Setting Trajectory Lengths in Hamiltonian Monte Carlo (Hoffman, Radul and
    Sountsov, 2021).
    """

    model: Program
    num_warmup: int = 500
    target_accept_prob: float = 0.651
    max_leapfrog_steps: int = 1000

    engine: ClassVar[str] = "numpyro"
    min_chains: ClassVar[int] = 4

    def __post_init__(self) -> None:
        for name in ("num_warmup", "max_leapfrog_steps"):
            check_whole(f"ChEES: {name}", getattr(self, name))
        if not (isinstance(self.target_accept_prob, Real) and 0 < float(self.target_accept_prob) < 1):
            raise ValueError(
                f"ChEES: target_accept_prob is {self.target_accept_prob!r}; give a number between 0 and 1."
            )

    @property
    def guide(self) -> Program | None:
        """The exact posterior of the locals given the globals, where the program has it."""
        return getattr(self.model, "posterior", None)

    def check(self, batch: Batch) -> None:
        """Refuse minibatches, and discrete latents that cannot be summed out."""
        check_target("ChEES", self.model, batch)

    def init(self, key: Array, batch: Batch) -> State:
        """A valid starting point, and nothing learned yet."""
        info = start(self.model, key, batch)
        flat, _ = ravel_pytree(info.z)
        learned, _ = self._adaptation()
        learned = jax.tree.map(lambda v: jnp.array(v), learned(jnp.int32(0), jnp.float32(START)))
        tuning = Tuning(jnp.int32(0), learned, jnp.zeros_like(flat), jnp.ones_like(flat), jnp.ones_like(flat))
        return State(info.z, -info.potential_energy, jax.tree.map(jnp.negative, info.z_grad), tuning)

    def step(self, key: Array, state: State, batch: Batch) -> tuple[State, Record]:
        """One transition of a chain, and of what all chains learn (during warmup)."""
        hmc = _hmc()
        tuning = jax.tree.map(lambda v: lax.all_gather(v, CHAINS)[0], state.tuning)  # the same in every chain
        warming = tuning.count < self.num_warmup
        before = self._gather(state.position)  # (chains, d)
        tuning = _where(warming, _observe(tuning, before), tuning)
        epsilon, length = self._sizes(tuning, warming)
        leapfrogs = jnp.clip(jnp.ceil(_jitter(tuning.count) * length / epsilon), 1, self.max_leapfrog_steps)

        energy_at = potential(self.model, batch)
        chain, info = hmc.build_kernel()(
            key,
            hmc.HMCState(state.position, state.log_density, state.gradient),
            lambda z: -energy_at(z),
            epsilon,
            tuning.variance,
            leapfrogs.astype(jnp.int32),
        )
        _, learn = self._adaptation()
        learned = learn(
            tuning.learned,
            self._gather(info.proposal.position),
            self._gather(info.proposal.momentum),
            before,
            self._gather(info.acceptance_rate)[:, 0],
            self._gather(info.is_divergent)[:, 0],
            tuning.variance,
        )
        tuning = tuning._replace(count=tuning.count + 1, learned=_where(warming, learned, tuning.learned))

        momentum, _ = ravel_pytree(info.momentum)
        kept = 0.5 * jnp.sum(tuning.variance * momentum**2) - state.log_density  # H(x, p)
        lp = chain.logdensity
        draw = {f"z.{n}": v for n, v in chain.position.items()} | {
            "lp": lp,
            "diverging": info.is_divergent,
            "energy": jnp.where(info.is_accepted, info.energy, kept),
            "acceptance_rate": info.acceptance_rate,
            "step_size": epsilon,
            "trajectory_length": length,
            "num_leapfrog_steps": info.num_integration_steps,
        }
        state = State(chain.position, lp, chain.logdensity_grad, tuning)
        return state, Record({"lp": lp, "divergences": info.is_divergent.astype(jnp.float32)}, draw)

    def finish(self, key: Array, state: State, records: dict[str, Any], batch: Batch) -> Draws:
        """Draws of one chain in the model's own spaces, with its deterministic sites."""
        if not records:  # stopped by a signal within the warmup
            return Draws({}, {}, {"lp": jnp.zeros(0), "diverging": jnp.zeros(0, bool)})
        z = {n.removeprefix("z."): v for n, v in records.items() if n.startswith("z.")}
        posterior = constrained(self.model, key, z, batch)
        return Draws({}, posterior, {n: v for n, v in records.items() if not n.startswith("z.")})

    def params(self, state: State, batch: Batch) -> dict[str, Any]:
        """No point estimates: everything is in the draws."""
        return {}

    @staticmethod
    def _gather(value: Any) -> Float[Array, "chains d"]:
        return lax.all_gather(ravel_pytree(value)[0], CHAINS)

    def _sizes(self, tuning: Tuning, warming: Array) -> tuple[Float[Array, ""], Float[Array, ""]]:
        """The step size and trajectory length: the latest during warmup, their averages after."""
        learned = tuning.learned
        epsilon = jnp.exp(learned.log_step_size_moving_average)
        length = jnp.exp(learned.log_trajectory_length_moving_average)
        return (
            jnp.where(warming, learned.step_size, epsilon),
            jnp.where(warming, learned.trajectory_length, length),
        )

    def _adaptation(self) -> Any:
        from blackjax.adaptation.chees_adaptation import base

        return base(
            jitter_generator=_jitter,
            next_random_arg_fn=lambda i: i + 1,
            # Signs of the last gradients tell enough: the criterion is a fourth power, and its scale says little.
            optim=optax.adam(LEARNING_RATE, b1=0.0, b2=0.95),
            target_acceptance_rate=self.target_accept_prob,
            decay_rate=DECAY,
            max_leapfrog_steps=self.max_leapfrog_steps,
        )


def _jitter(count: Int[Array, ""]) -> Float[Array, ""]:
    from blackjax.mcmc.dynamic_hmc import halton_sequence

    return jnp.asarray(halton_sequence(count, JITTER_BITS))


def _hmc() -> Any:
    """Blackjax's kernel, loaded when first used: importing this package does not load blackjax."""
    from blackjax.mcmc import hmc

    return hmc


def _observe(tuning: Tuning, positions: Float[Array, "chains d"]) -> Tuning:
    """Take the chains' positions into V. Step t weighs 2 / (t + 2), so the first steps fade as 1 / t²."""
    a = 2.0 / (tuning.count + 2.0)
    mean = positions.mean(0)
    # variance of a mixture: within, and between the means
    between = (mean - tuning.mean) ** 2
    spread = (1 - a) * tuning.spread + a * positions.var(0, ddof=1) + a * (1 - a) * between
    n = len(positions) * (tuning.count + 1.0)
    variance = (n * spread + 5 * 1e-3) / (n + 5)  # as Stan does
    return tuning._replace(mean=(1 - a) * tuning.mean + a * mean, spread=spread, variance=variance)


def _where(condition: Array, new: Any, old: Any) -> Any:
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), new, old)


__all__ = ["ChEES"]
