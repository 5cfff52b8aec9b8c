"""The No-U-Turn Sampler with Pyro's kernel: one transition a step, warmup included.

Discrete latents are summed out; local latents that the program can integrate out (``marginal``) are,
so that only the globals are sampled. Chains run one after the other.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import jax
import numpy as np
import torch
from pyro.infer import NUTS
from pyro.infer.autoguide.initialization import init_to_uniform, init_to_value
from torch import Tensor

from inference.errors import Incompatible
from inference.protocols import Batch, Draws, Program, Record
from inference.pyro_anatomy import anatomy
from inference.pyro_check import check
from inference.pyro_programs import bind, private, seed_of, to_tensor, trace


class State(NamedTuple):
    """One chain: Pyro's kernel, which keeps the adaptation and is changed by every transition."""

    kernel: Any  # pyro.infer.NUTS
    z: dict[str, Tensor]  # unconstrained


@dataclass(frozen=True)
class PyroNUTS:
    """Sample the posterior of a Pyro program's continuous latents.

    A run cannot be resumed: Pyro's kernel cannot be put into a file and taken out again exactly.

    Parameters
    ----------
    model
        A Pyro program; its discrete latents must have finite support.
    num_warmup
        Steps of adaptation, discarded; ``num_steps`` of ``fit`` counts the draws that are kept.
    target_accept_prob
        Mean acceptance probability that the step size is adapted to.
    max_tree_depth
        At most 2**depth - 1 leapfrog steps a draw.
    dense_mass
        Adapt a full mass matrix in place of a diagonal one.
    jit_compile
        Trace the log density with torch's JIT: faster for programs without control flow.
    device
        A torch device, such as ``"cpu"`` or ``"cuda:0"``.

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
    jit_compile: bool = False
    device: str = "cpu"

    engine: ClassVar[str] = "pyro"

    def __post_init__(self) -> None:
        if self.num_warmup < 0:
            raise ValueError(f"num_warmup is {self.num_warmup}; expected 0 or more.")
        object.__setattr__(self, "device", str(self.device))

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
            raise Incompatible(
                "PyroNUTS needs all rows in every step: use batch_size=None, or PyroSVI for minibatches."
            )
        check(self._target, data=batch, device=self.device)
        parts = anatomy(bind(self._target, batch, self.device), self.device)
        stuck = parts.discrete - parts.enumerable
        if stuck:
            raise Incompatible(
                f"NUTS follows gradients, and {sorted(stuck)} are discrete and cannot be summed out (one variable "
                "of finite support a site can). Use PyroSVI with ScoreFunction()."
            )
        if not set(parts.latent) - parts.discrete:
            raise Incompatible("the model has no continuous latent site for NUTS to sample.")
        if parts.params:
            raise Incompatible(
                f"the model has parameters {list(parts.params)}, which NUTS does not learn. Give them priors "
                "(pyro.sample), or use PyroSVI."
            )

    def init(self, seed: int, batch: Batch) -> State:
        """A valid starting point and fresh adaptation."""
        thunk = bind(self._target, batch, self.device)
        start = init_to_uniform
        if hasattr(self.model, "site_values"):
            arrays = {n: np.asarray(v) for n, v in batch.data.items()}
            values = self.model.site_values(self.model.initial(jax.random.key(seed), **arrays))
            values = {n: to_tensor(np.asarray(v, np.float32), self.device) for n, v in values.items()}
            start = init_to_value(values=values)
        kernel: Any = NUTS(
            thunk,
            full_mass=self.dense_mass,
            target_accept_prob=self.target_accept_prob,
            max_tree_depth=self.max_tree_depth,
            max_plate_nesting=anatomy(thunk, self.device).nesting,
            jit_compile=self.jit_compile,
            ignore_jit_warnings=True,
            init_strategy=start,
        )
        with private(seed, device=self.device):
            kernel.setup(self.num_warmup)
        return State(kernel, kernel.initial_params)

    def step(self, seed: int, state: State, batch: Batch) -> tuple[State, Record]:
        """One transition of the chain (adapting during warmup)."""
        kernel: Any = state.kernel
        before, mean = len(kernel._divergences), kernel._mean_accept_prob
        with private(seed, device=self.device):
            z = kernel.sample(state.z)
        # The kernel keeps the running mean over n transitions of its phase: a_n = m' + n (m - m').
        n = kernel._t - self.num_warmup if kernel._t > self.num_warmup else kernel._t
        acceptance = mean + n * (kernel._mean_accept_prob - mean)
        diverging = len(kernel._divergences) > before
        lp: Any = -float(kernel._potential_energy_last)
        draw = {f"z.{name}": value.detach().cpu().numpy() for name, value in z.items()} | {
            "lp": np.float32(lp),
            "diverging": np.bool_(diverging),
            "acceptance_rate": np.float32(acceptance),
            "step_size": np.float32(kernel.step_size),
        }
        metrics: Any = {"lp": lp, "divergences": float(diverging)}
        return State(kernel, z), Record(metrics, draw)

    def finish(self, key: Any, states: list[State], records: dict[str, Any], batch: Batch) -> Draws:
        """Draws in the model's own spaces, with its deterministic sites."""
        transforms = states[0].kernel.transforms
        with torch.no_grad():
            values = {n: transforms[n].inv(to_tensor(records[f"z.{n}"], self.device)) for n in transforms}
            posterior = values | self._deterministic(key, values, batch)
        stats: Any = {n: np.asarray(v) for n, v in records.items() if not n.startswith("z.")}
        draws: Any = {n: v.cpu().numpy() for n, v in posterior.items()}
        return Draws({}, draws, stats)

    def pack(self, states: list[State]) -> Any:
        """Refuse: an exact copy of the kernel cannot be had.

        Raises
        ------
        Incompatible
            Always.
        """
        raise Incompatible(
            "PyroNUTS writes no checkpoints: Pyro's kernel cannot be restored bit for bit. Leave checkpoint out, or "
            "use NUTS on a NumPyro program, which resumes."
        )

    def _deterministic(self, key: Any, values: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        thunk = bind(self._target, batch, self.device)
        names = anatomy(thunk, self.device).deterministic
        if not names:
            return {}
        chains, draws = next(iter(values.values())).shape[:2]
        found: dict[str, list[Tensor]] = {n: [] for n in names}
        with private(seed_of(key), device=self.device):
            for c, s in np.ndindex(chains, draws):
                nodes = trace(thunk, {n: v[c, s] for n, v in values.items()})
                for n in names:
                    found[n].append(nodes[n]["value"])
        return {n: torch.stack(v).unflatten(0, (chains, draws)) for n, v in found.items()}


__all__ = ["PyroNUTS"]
