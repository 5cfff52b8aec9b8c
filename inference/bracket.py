"""The log likelihood of an energy program: exact where log Z can be enumerated, else between two estimates."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from inference.ais import LogPartition, annealed, check_betas, reverse_annealed
from inference.block_gibbs import Chains
from inference.compiled import jit
from inference.protocols import Batch, Energy, MachineSampler
from inference.result import Estimate
from inference.simulate import machine, simulate, starts
from inference.tempering import Tempering

NUM_CHAINS = 100
BASE_ROWS = 10_000  # for the base rates
TEMPERING = Tempering(20)
DISAGREE = 1.0  # nats between the two directions, above which neither is trusted


@dataclass(frozen=True)
class Bracket:
    """A log likelihood between two estimates, which differ by that of log Z. As one number it is the lower.

    Attributes
    ----------
    reverse
        With log Z by reverse annealed importance sampling, which errs upwards: low rather than high. Nats per row.
    forward
        With log Z by annealed importance sampling: high rather than low. The same where log Z is exact.
    is_bound
        Whether what is enclosed is the variational lower bound of a deep machine, and not its log likelihood.
    """

    reverse: Estimate
    forward: Estimate
    is_bound: bool = False

    @property
    def is_exact(self) -> bool:
        """Whether log Z was enumerated."""
        return self.reverse.mc_error == self.forward.mc_error == 0

    @property
    def gap(self) -> float:
        """Forward less reverse mean, in nats. Below zero by more than the errors, chains have missed modes."""
        return self.forward.mean - self.reverse.mean

    @property
    def lower(self) -> Estimate:
        """The smaller of the two: in reverse, but for errors."""
        return min(self.reverse, self.forward, key=float)

    @property
    def rows(self) -> Float[np.ndarray, " rows"]:
        """The lower estimate of each row, in nats."""
        return self.lower.rows

    @property
    def variance(self) -> Float[np.ndarray, " rows"]:
        """Monte-Carlo variance of each row's lower estimate."""
        return self.lower.variance

    @property
    def mc_error(self) -> float:
        """Monte-Carlo standard error of the lower mean."""
        return self.lower.mc_error

    @property
    def mean(self) -> float:
        """The lower mean, in nats."""
        return self.lower.mean

    @property
    def standard_error(self) -> float:
        """Standard error of the mean as an estimate for new rows."""
        return self.lower.standard_error

    def __float__(self) -> float:
        return self.mean

    def __str__(self) -> str:
        bound = "variational bound, " if self.is_bound else ""
        if self.is_exact:
            return f"{bound}{self.lower}"
        ends = ", ".join(f"{e.mean:.3f} ± {3 * e.mc_error:.2g}" for e in (self.reverse, self.forward))
        return (
            f"{bound}[{ends}] nats per row (reverse AIS, AIS; three Monte-Carlo errors; {len(self.rows)} rows, "
            f"standard error {self.standard_error:.2g})"
        )


def bracket(
    fit: Any,
    data: Any,
    *,
    num_chains: int = NUM_CHAINS,
    betas: Any = None,
    sampler: MachineSampler = TEMPERING,
    num_sweeps: int = 500,
    key: int = 0,
) -> Bracket:
    """Log likelihood of rows at a fit of an energy program.

    Chains run backwards must start at draws of the machine: here at rows of the fit (at these rows, where it does not
    hold its own) that tempering has moved, since Gibbs sweeps alone stay near data, and miss whatever else the machine
    has learned. What tempering misses too makes log Z too low, and likelihoods too high.

    Parameters
    ----------
    fit
        An energy program with its parameters estimated: by ContrastiveDivergence, EM or maximum likelihood.
    data
        Rows as for ``fit``.
    num_chains
        Of annealed importance sampling, each way; at least 2.
    betas
        Inverse temperatures from 0 to 1; by default the 14,500 of :func:`inference.ais.schedule`.
    sampler, num_sweeps
        What moves rows towards the machine's law, and for how long.
    key
        Seed.

    Returns
    -------
    Bracket
        Nats per row; exact where log Z can be enumerated, whatever the options.

    Raises
    ------
    ValueError
        When ``betas`` do not rise from 0 to 1, or ``num_chains`` is not at least 2.
    Incompatible
        When the program has no energy, or its parameters were drawn.

    Warns
    -----
    UserWarning
        When the two directions disagree by more than a nat: the chains did not mix.
    """
    (model, params, _), rows = machine(fit), fit._rows(data)
    betas = None if betas is None else check_betas(betas)
    free_energy = np.concatenate([_free_energy(model, params, batch) for batch in rows.batches(1024)])
    exact = exact_log_partition(model, params)
    if exact is not None:
        both = (LogPartition(exact, 0.0, np.zeros(0)),) * 2
    else:
        x = starts(fit, rows, min((fit.data or rows).num_data, BASE_ROWS))
        key_forward, key_start, key_reverse = jax.random.split(jax.random.key(key), 3)
        start = starts(fit, rows, num_chains)
        chains = simulate(model, params, start, key=key_start, num_sweeps=num_sweeps, sampler=sampler)
        annealing, params, x, start = _annealed_side(model, params, x, chains)
        forward = annealed(annealing, params, x, key=key_forward, num_chains=num_chains, betas=betas)
        both = reverse_annealed(annealing, params, x, start, key=key_reverse, betas=betas), forward
    found = Bracket(*(_estimate(-free_energy, log_z) for log_z in both), is_bound=hasattr(model, "as_rbm"))
    if abs(found.gap) > DISAGREE:
        warnings.warn(
            f"annealed importance sampling gives {found.forward.mean:.2f} nats per row forwards and "
            f"{found.reverse.mean:.2f} in reverse: its chains do not mix at this machine, and the truth may lie "
            "anywhere between. More inverse temperatures, inference.bracket(run, data, betas=...), or weight decay "
            "bring them together.",
            stacklevel=3,
        )
    return found


def _annealed_side(model: Energy, params: Any, x: Any, chains: Chains) -> tuple[Energy, Any, Any, Any]:
    """The machine, its parameters, rows for base rates, draws; of a deep machine those of the RBM that it is."""
    if not hasattr(model, "as_rbm"):
        return model, params, x, chains.v[0]
    deep: Any = model
    return *deep.as_rbm(params), deep.odd_units(deep.hidden_mean(params, x)), deep.odd_units(chains.h[0])


def exact_log_partition(model: Energy, params: Any) -> float | None:
    """log Z in nats by enumeration in float64, or None where the machine is too large."""
    try:
        jax.eval_shape(model.log_partition, params)
    except ValueError:
        return None
    with jax.enable_x64(True):
        return float(_log_partition(model)({n: jnp.asarray(v, jnp.float64) for n, v in params.items()}))


@lru_cache(maxsize=32)
def _log_partition(model: Energy) -> Any:
    return jit(model.log_partition)


def _free_energy(model: Energy, params: Any, batch: Batch) -> Float[np.ndarray, " batch"]:
    with jax.enable_x64(True):
        wide = {n: jnp.asarray(v, jnp.float64) for n, v in params.items()}
        return np.asarray(_free_energies(model)(wide, jnp.asarray(batch.data["x"], jnp.float64)))


@lru_cache(maxsize=32)
def _free_energies(model: Energy) -> Any:
    return jit(model.free_energy)


def _estimate(log_weight: Array | np.ndarray, log_z: LogPartition) -> Estimate:
    return Estimate(np.asarray(log_weight) - log_z.value, np.full(len(log_weight), log_z.error**2), log_z.error)


__all__ = ["Bracket", "bracket", "exact_log_partition"]
