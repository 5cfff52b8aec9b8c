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

from inference.ais import LogPartition, annealed, check_betas, check_num_chains, reverse_annealed
from inference.check import check_support
from inference.compiled import jit
from inference.data import Rows
from inference.errors import check_whole
from inference.estimate import Estimate
from inference.protocols import Belief, Energy, MachineSampler
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
        return self.gap == 0  # two estimates never agree to the last bit

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
    num_particles: int = 100,
    num_chains: int = NUM_CHAINS,
    betas: Any = None,
    sampler: MachineSampler = TEMPERING,
    num_sweeps: int = 500,
    key: int = 0,
) -> Bracket:
    """Log likelihood of rows at a fit of an energy program; of deep ones the variational bound.

    Chains run backwards must start at draws of the machine: here at rows of the fit (at these rows, where it does not
    hold its own) that tempering has moved, since Gibbs sweeps alone stay near data, and miss whatever else the machine
    has learned. What tempering misses too makes log Z too low, and likelihoods too high.

    Parameters
    ----------
    fit
        An energy program with its parameters estimated, by ContrastiveDivergence, EM or maximum likelihood; or a deep
        belief network, by UpDown.
    data
        Rows as for ``fit``.
    num_particles
        Draws of a row's hidden layers in a deep belief network; others need none.
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
    BadData
        When rows lie outside the program's support, or ``num_particles`` is not a whole number of at least 1.
    Incompatible
        When the program has no energy, or its parameters were drawn.

    Warns
    -----
    UserWarning
        When the two directions disagree by more than a nat: the chains did not mix.
    """
    model, params = _estimated(fit)
    rows, betas = fit._rows(data), None if betas is None else check_betas(betas)
    check_num_chains(num_chains)
    for batch in rows.batches(8192):
        check_support(model, batch)
    key_rows, key_base, key_start, key_moves, key_forward, key_reverse = jax.random.split(jax.random.key(key), 6)
    log_weight, variance = _log_weights(model, params, rows, num_particles, key_rows)
    deep = hasattr(model, "as_rbm")
    annealing, of_annealing = model.as_rbm(params) if deep else (model, params)

    def units(key: Array, count: int) -> Any:
        """Visible units of what is annealed, at so many rows of the fit."""
        v = starts(fit, rows, count)
        return _rbm_units(model)(key, params, v) if deep else v

    exact = exact_log_partition(annealing, of_annealing)
    if exact is not None:
        both = (LogPartition(exact, 0.0, np.zeros(0)),) * 2
    else:
        x = units(key_base, min((fit.data or rows).num_data, BASE_ROWS))
        forward = annealed(annealing, of_annealing, x, key=key_forward, num_chains=num_chains, betas=betas)
        start, moves = units(key_start, num_chains), {"key": key_moves, "num_sweeps": num_sweeps, "sampler": sampler}
        start = simulate(annealing, of_annealing, start, **moves).v[0]
        both = reverse_annealed(annealing, of_annealing, x, start, key=key_reverse, betas=betas), forward
    found = Bracket(*(_less(log_weight, variance, log_z) for log_z in both), is_bound=deep)
    if abs(found.gap) > DISAGREE:
        warnings.warn(
            f"annealed importance sampling gives {found.forward.mean:.2f} nats per row forwards and "
            f"{found.reverse.mean:.2f} in reverse: its chains do not mix at this machine, and the truth may lie "
            "anywhere between. More inverse temperatures, inference.bracket(run, data, betas=...), or weight decay "
            "bring them together.",
            stacklevel=3,
        )
    return found


def _estimated(fit: Any) -> tuple[Any, Any]:
    """A belief network or an energy program, and its parameters."""
    return (fit.model, fit.params) if isinstance(fit.model, Belief) else machine(fit)[:2]


@lru_cache(maxsize=32)
def _rbm_units(model: Any) -> Any:
    return jit(model.rbm_units)


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


def _log_weights(
    model: Any, params: Any, rows: Rows, num_particles: int, key: Array
) -> tuple[Float[np.ndarray, " rows"], Float[np.ndarray, " rows"]]:
    """log p(v) + log Z of each row or a lower bound of it, in nats, and its Monte-Carlo variance; in float64."""
    check_whole("num_particles", num_particles)
    found = []
    with jax.enable_x64(True):
        wide = {n: jnp.asarray(v, jnp.float64) for n, v in params.items()}
        for i, batch in enumerate(rows.batches(1024)):
            x = jnp.asarray(batch.data["x"], jnp.float64)
            log_weight = _log_weight(model, int(num_particles))(jax.random.fold_in(key, i), wide, x)
            found.append([np.asarray(part) for part in log_weight])
    log_weight, variance = (np.concatenate(part) for part in zip(*found, strict=True))
    return log_weight, variance


@lru_cache(maxsize=32)
def _log_weight(model: Any, num_particles: int) -> Any:
    if isinstance(model, Belief):
        return jit(lambda key, params, x: model.bound(key, params, x, num_particles))
    return jit(lambda key, params, x: (-model.free_energy(params, x), jnp.zeros(len(x))))


def _less(log_weight: np.ndarray, variance: np.ndarray, log_z: LogPartition) -> Estimate:
    error = np.sqrt(variance.sum() / len(variance) ** 2 + log_z.error**2)
    return Estimate(log_weight - log_z.value, variance + log_z.error**2, float(error))


__all__ = ["Bracket", "bracket", "exact_log_partition"]
