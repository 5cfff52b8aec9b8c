r"""Annealed importance sampling of the partition function of an energy program, forwards and backwards.

From the base-rate model, beta = 0, whose log Z_0 is known, to the machine, beta = 1, chains take a Gibbs sweep at
every inverse temperature, and collect

    log w = log Z_0 + sum_k F_{k-1}(v_{k-1}) - F_k(v_{k-1}),    E[w] = Z,

F_k being the free energy of the tempered joint energy. The mean of log w lies below log Z, and so does the log of
the mean of w with high probability: the log likelihood that goes with it is an upper one. The chains run backwards
from draws of the machine collect weights with E[1 / w] = 1 / Z, whose log lies above log Z. The two enclose it, as
far as the draws that the second starts from are the machine's: here rows of data that were moved by Gibbs sweeps,
which errs on the same side as long as the machine has modes without data.

References
----------
Annealed Importance Sampling (Neal, 2001).
On the Quantitative Analysis of Deep Belief Networks (Salakhutdinov and Murray, 2008).
Accurate and Conservative Estimates of MRF Log-likelihood using Reverse Annealing (Burda, Grosse and Salakhutdinov,
2015).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from inference.block_gibbs import Chains, sweep
from inference.compiled import jit
from inference.protocols import Energy

Z_SCORE = 3.0  # standard errors to each side of an interval


def schedule() -> Float[np.ndarray, "14500"]:
    """Inverse temperatures of Salakhutdinov and Murray: 500 up to 0.5, 4,000 up to 0.9, 10,000 up to 1."""
    parts = [np.linspace(0, 0.5, 500, endpoint=False), np.linspace(0.5, 0.9, 4000, endpoint=False)]
    return np.concatenate([*parts, np.linspace(0.9, 1, 10_000)])


def check_betas(betas: Sequence[float] | np.ndarray) -> Float[np.ndarray, " betas"]:
    """Inverse temperatures as float64.

    Raises
    ------
    ValueError
        When they do not rise from 0 to 1.
    """
    found = np.asarray(betas, np.float64)
    if found.ndim != 1 or len(found) < 2 or found[0] != 0 or found[-1] != 1 or not (np.diff(found) > 0).all():
        shown = f"{len(found)} from {found[0]:g} to {found[-1]:g}" if found.ndim == 1 and len(found) else repr(betas)
        raise ValueError(f"betas are {shown}; expected inverse temperatures that rise from 0 to 1, 0 and 1 included.")
    return found


@dataclass(frozen=True)
class LogPartition:
    """An estimate of log Z in nats.

    Attributes
    ----------
    value
        log of the mean weight.
    error
        Its Monte-Carlo standard error (delta method), from the spread over chains.
    log_weights
        Of each chain, float64; empty where the value is exact.
    """

    value: float
    error: float
    log_weights: Float[np.ndarray, " chains"]

    @property
    def interval(self) -> tuple[float, float]:
        """Three standard errors to each side."""
        return self.value - Z_SCORE * self.error, self.value + Z_SCORE * self.error


def annealed(
    model: Energy, params: Any, x: Any, *, key: Array, num_chains: int = 100, betas: Any = None
) -> LogPartition:
    """log Z by annealed importance sampling from the base-rate model of some rows.

    Parameters
    ----------
    model, params
        An energy program and its parameters by site name.
    x
        Rows whose base rates the chains start from, ``(rows, D)``.
    key
        Random key.
    num_chains
        Independent chains, run as one batch.
    betas
        Inverse temperatures from 0 to 1; :func:`schedule` by default.

    Returns
    -------
    LogPartition
        In nats; in expectation of the weight exact, and low rather than high.

    Raises
    ------
    ValueError
        When ``betas`` do not rise from 0 to 1.
    """
    betas = check_betas(schedule() if betas is None else betas)
    with jax.enable_x64(True):
        log_w = np.asarray(_run(model, num_chains, False)(key, params, jnp.asarray(x, jnp.float32), betas, None))
    return _mean(log_w, 1)


def reverse_annealed(
    model: Energy, params: Any, x: Any, start: Any, *, key: Array, betas: Any = None, num_sweeps: int = 1000
) -> LogPartition:
    """log Z by the same chains backwards, from the machine to the base-rate model.

    Parameters
    ----------
    model, params, x, key, betas
        As of :func:`annealed`.
    start
        Visible units near the machine's law, ``(chains, D)``: a chain each.
    num_sweeps
        Gibbs sweeps of the machine that move them first; draws that are exact need none.

    Returns
    -------
    LogPartition
        In nats; high rather than low, for starts that are draws of the machine.
    """
    betas = check_betas(schedule() if betas is None else betas)[::-1]
    with jax.enable_x64(True):
        start, x = (jnp.asarray(v, jnp.float32) for v in (start, x))
        log_w = np.asarray(_run(model, len(start), True)(key, params, x, betas, start, num_sweeps))
    return _mean(log_w, -1)


@lru_cache(maxsize=32)
def _run(model: Energy, num_chains: int, backwards: bool) -> Any:
    def run(key: Array, params: Any, x: Array, betas: Array, start: Any, num_sweeps: Any = 0) -> Array:
        params = jax.tree.map(lambda v: jnp.asarray(v, jnp.float32), params)
        base, log_z = model.base_rate(x)
        key_start, key_h, key_moves = jax.random.split(key, 3)
        if backwards:
            chains = Chains(start, model.sample_hidden(key_h, params, start))
            chains = jax.lax.fori_loop(
                0, num_sweeps, lambda i, c: sweep(jax.random.fold_in(key_start, i), model, params, c), chains
            )
        else:  # at beta = 0 hidden units play no part, and one sweep from anywhere is an exact draw
            blank = jnp.zeros((num_chains, x.shape[-1]), jnp.float32)
            chains = sweep(
                key_start, model, params, Chains(blank, model.sample_hidden(key_h, params, blank)), 0.0, base
            )

        def move(carry: tuple[Chains, Array], inputs: tuple[Array, Array, Array]) -> Any:
            (v, h), log_w = carry
            i, before, after = inputs
            before, after = (jnp.asarray(beta, jnp.float32) for beta in (before, after))
            energies = (model.free_energy(params, v, beta, base) for beta in (before, after))
            first, second = (energy.astype(jnp.float64) for energy in energies)
            key_h, key_v = jax.random.split(jax.random.fold_in(key_moves, i))
            # A sweep at the new temperature, h first: it shares its product with the free energies.
            h = model.sample_hidden(key_h, params, v, after)
            v = model.sample_visible(key_v, params, v, h, after, base)
            return (Chains(v, h), log_w + first - second), None

        steps = (jnp.arange(1, len(betas)), betas[:-1], betas[1:])
        (_, log_w), _ = jax.lax.scan(move, (chains, jnp.zeros(num_chains, jnp.float64)), steps)
        return log_z.astype(jnp.float64) + (-log_w if backwards else log_w)

    def precise(*args: Any) -> Array:
        with jax.default_matmul_precision("highest"):  # accelerators round the factors otherwise
            return run(*args)

    return jit(precise)


def _mean(log_w: np.ndarray, sign: int) -> LogPartition:
    """log of the mean of w, or minus the log of the mean of 1 / w, and its error."""
    top = (sign * log_w).max()
    w = np.exp(sign * log_w - top)
    error = w.std(ddof=1) / np.sqrt(len(w)) / w.mean() if len(w) > 1 else np.inf
    return LogPartition(float(sign * (top + np.log(w.mean()))), float(error), log_w)


__all__ = ["LogPartition", "annealed", "check_betas", "reverse_annealed", "schedule"]
