"""Questions to a fitted energy program: the same as of other programs, answered by Gibbs chains and bracketed log Z.

It has no latents to integrate: log p(v) = -F(v) - log Z, where F is exact and one number, log Z, is shared by
all rows: exact where the machine can be enumerated, else enclosed by annealed importance sampling.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from inference.ais import LogPartition, annealed, reverse_annealed
from inference.block_gibbs import Chains, sweep, sweeps
from inference.compiled import jit
from inference.data import Rows
from inference.errors import BadData, Incompatible
from inference.protocols import Batch, Energy
from inference.result import Estimate

SWEEPS = 1000  # of chains that draw new rows
NUM_CHAINS = 100  # of annealed importance sampling
DISAGREE = 1.0  # nats between the two directions, above which neither is trusted
point_draws = 1  # the posterior of the hidden units is exact, and not drawn


@dataclass(frozen=True)
class Bracket:
    """A log likelihood between two estimates, which differ by that of log Z.

    Attributes
    ----------
    lower
        With log Z by reverse annealed importance sampling; nats per row.
    upper
        With log Z forwards. The same as ``lower`` where log Z is exact.
    """

    lower: Estimate
    upper: Estimate

    @property
    def is_exact(self) -> bool:
        """Whether log Z was enumerated."""
        return self.lower.mc_error == self.upper.mc_error == 0

    @property
    def gap(self) -> float:
        """Upper less lower mean, in nats: negative only by Monte-Carlo error."""
        return self.upper.mean - self.lower.mean

    @property
    def rows(self) -> Float[np.ndarray, " rows"]:
        """The lower estimate of each row, in nats: where one number is asked for, it is the lower."""
        return self.lower.rows

    @property
    def variance(self) -> Float[np.ndarray, " rows"]:
        """Monte-Carlo variance of each row's lower estimate."""
        return self.lower.variance

    @property
    def mc_error(self) -> float:
        """Of the lower mean."""
        return self.lower.mc_error

    @property
    def mean(self) -> float:
        """The lower mean."""
        return self.lower.mean

    @property
    def standard_error(self) -> float:
        """Of the mean as an estimate for new rows."""
        return self.lower.standard_error

    def __float__(self) -> float:
        return self.mean

    def __str__(self) -> str:
        if self.is_exact:
            return str(self.lower)
        ends = ", ".join(f"{e.mean:.3f} ± {3 * e.mc_error:.2g}" for e in (self.lower, self.upper))
        return (
            f"[{ends}] nats per row (reverse AIS, AIS; three Monte-Carlo errors; {len(self.rows)} rows, standard error "
            f"{self.standard_error:.2g})"
        )


def log_likelihood(fit: Any, rows: Rows, num_particles: int, key: int) -> Bracket:
    """Log likelihood of these rows at the fit's parameters.

    ``num_particles``, of importance draws a row, plays no part: free energies are exact. Chains run backwards start
    at rows of the fit, or, where it does not hold them, at these.

    Warns
    -----
    UserWarning
        When the two directions disagree by more than a nat: the chains did not mix.
    """
    model, params = fit.model, fit.params
    free_energy = np.concatenate([_free_energy(model, params, batch) for batch in rows.batches(1024)])
    exact = exact_log_partition(model, params)
    if exact is not None:
        both = (LogPartition(exact, 0.0, np.zeros(0)),) * 2
    else:
        source = rows if fit.data is None else fit.data
        x = source.batch(np.arange(min(source.num_data, 10_000))).data["x"]
        start = x[np.linspace(0, len(x) - 1, NUM_CHAINS).astype(int)]
        key_forward, key_reverse = jax.random.split(jax.random.key(key))
        forward = annealed(model, params, x, key=key_forward, num_chains=NUM_CHAINS)
        both = reverse_annealed(model, params, x, start, key=key_reverse), forward
    bracket = Bracket(*(_estimate(-free_energy, log_z) for log_z in both))
    if abs(bracket.gap) > DISAGREE:
        warnings.warn(
            f"annealed importance sampling gives {bracket.upper.mean:.2f} nats per row forwards and "
            f"{bracket.lower.mean:.2f} in reverse: its chains do not mix at this machine, and the truth may lie "
            "anywhere between. More inverse temperatures (inference.ais.annealed) or weight decay bring them together.",
            stacklevel=3,
        )
    return bracket


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


def _estimate(log_weight: np.ndarray, log_z: LogPartition) -> Estimate:
    return Estimate(log_weight - log_z.value, np.full(len(log_weight), log_z.error**2), log_z.error)


def row_log_likelihood(
    model: Energy, guide: Any, values: dict[str, Any], key: Array, batch: Batch, num_particles: int
) -> tuple[Float[Array, " batch"], Float[Array, " batch"]]:
    """log p(x_n) in nats of each row, exact.

    Raises
    ------
    Incompatible
        When the machine is too large to enumerate.
    """
    try:
        rows = -model.free_energy(values, batch.data["x"]) - model.log_partition(values)
    except ValueError as error:
        raise Incompatible(str(error)) from None
    return rows, jnp.zeros_like(rows)


@lru_cache(maxsize=32)
def _local_draws(model: Energy) -> Any:
    def one(params: Any, draw: Any, key: Array, batch: Batch) -> dict[str, Array]:
        return {"h": model.sample_hidden(key, params | draw, batch.data["x"])}

    return jit(jax.vmap(one, in_axes=(None, 0, 0, None)))


def local_draws(model: Energy, guide: Any, params: Any, draws: Any, keys: Array, batch: Batch) -> dict[str, Array]:
    """The rows' hidden units given them, ``h``, for each of S keys and draws of the parameters: ``(S, batch, H)``."""
    return _local_draws(model)(params, draws, keys, _real(batch))


@lru_cache(maxsize=32)
def _predict(model: Energy, count: int, expected: bool) -> Any:
    def one(params: Any, draw: Any, key: Array, batch: Batch) -> dict[str, Array]:
        params, x = params | draw, batch.data["x"]
        key_h, key_v, key_sweeps = jax.random.split(key, 3)
        chains = Chains(x, model.sample_hidden(key_h, params, x))
        if count:
            chains = sweeps(key_sweeps, model, params, chains, count)
        if expected:
            return {"x": model.visible_mean(params, *chains)}
        return {"x": model.sample_visible(key_v, params, *chains)}

    return jit(jax.vmap(one, in_axes=(None, 0, 0, None)))


def predict(
    model: Energy, guide: Any, params: Any, draws: Any, keys: Array, batch: Batch, *, expected: bool
) -> dict[str, Array]:
    """Rows ``x`` anew for each of S keys and draws of the parameters: ``(S, batch, D)``.

    With a guide given the rows' hidden units; without, by ``SWEEPS`` sweeps of Gibbs chains that start at the rows.
    ``expected`` returns the mean given the hidden units in place of a draw.
    """
    return _predict(model, 0 if guide is not None else SWEEPS, expected)(params, draws, keys, _real(batch))


def complete(fit: Any, rows: Rows, observed: Any, num_sweeps: int, key: int) -> dict[str, np.ndarray]:
    """Rows with what is not observed drawn by Gibbs sweeps with the rest clamped."""
    if isinstance(num_sweeps, bool) or not isinstance(num_sweeps, int) or num_sweeps < 1:
        raise BadData(f"num_sweeps is {num_sweeps!r}; expected a whole number of at least 1.")
    mask, shape = np.asarray(observed), (rows.num_data, *rows.arrays["x"].shape[1:])
    if mask.dtype != bool or mask.shape not in (shape, shape[1:]):
        raise BadData(
            f"observed has dtype {mask.dtype} and shape {mask.shape}; expected booleans, True where an entry stays, of "
            f"shape {shape}, or {shape[1:]} for all rows alike."
        )
    mask, parts, start = np.broadcast_to(mask, shape), [], 0
    for i, batch in enumerate(rows.batches(1024)):
        seed = jax.random.fold_in(jax.random.key(key), i)
        part = mask[start : start + len(batch)]
        parts.append(np.asarray(_complete(fit.model)(seed, fit.params, _real(batch).data["x"], part, num_sweeps)))
        start += len(batch)
    return {"x": np.concatenate(parts)}


@lru_cache(maxsize=32)
def _complete(model: Energy) -> Any:
    def run(key: Array, params: Any, x: Array, observed: Array, num_sweeps: Array) -> Array:
        key_h, key_sweeps = jax.random.split(key)
        chains = Chains(x, model.sample_hidden(key_h, params, x))

        def one(i: Array, chains: Chains) -> Chains:
            return sweep(jax.random.fold_in(key_sweeps, i), model, params, chains, observed=observed)

        return jax.lax.fori_loop(0, num_sweeps, one, chains).v

    return jit(run)


def _real(batch: Batch) -> Batch:
    return Batch({n: jnp.asarray(v, jnp.float32) for n, v in batch.data.items()}, batch.rows, batch.num_data)


__all__ = ["Bracket", "complete", "local_draws", "log_likelihood", "predict", "row_log_likelihood"]
