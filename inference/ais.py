r"""Annealed importance sampling of the partition function of an energy program, forwards and backwards.

From the base-rate model, beta = 0, whose log Z_0 is known, to the machine, beta = 1, chains take a Gibbs sweep at
every inverse temperature, and collect

    log w = log Z_0 + sum_k F_{k-1}(v_{k-1}) - F_k(v_{k-1}),    E[w] = Z,

F_k being the free energy of the tempered joint energy. The mean of log w lies below log Z, and so does the log of
the mean of w with high probability: the log likelihood that goes with it is an upper one. The same chains backwards,
from draws of the machine, collect weights with E[1 / w] = 1 / Z, and their log Z is a high one. The two enclose it, as
far as the draws that the second starts from follow the machine's law.

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

from inference.compiled import jit
from inference.errors import check_whole
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


def check_num_chains(count: int) -> None:
    """Refuse what is not a whole number of at least 2 (BadData)."""
    check_whole("num_chains", count, 2, "whose spread is the error")


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
        When ``betas`` do not rise from 0 to 1, or ``num_chains`` is not at least 2.
    """
    betas = check_betas(schedule() if betas is None else betas)
    check_num_chains(num_chains)
    with jax.enable_x64(True):
        log_z, log_w = _run(model, int(num_chains))(key, params, jnp.asarray(x, jnp.float32), betas, None)
    return _mean(np.asarray(log_z + log_w), 1)


def reverse_annealed(model: Energy, params: Any, x: Any, start: Any, *, key: Array, betas: Any = None) -> LogPartition:
    """log Z by the same chains backwards, from the machine to the base-rate model.

    Parameters
    ----------
    model, params, x, key, betas
        As of :func:`annealed`.
    start
        Visible units that follow the machine's law, ``(chains, D)``: two chains or more.

    Returns
    -------
    LogPartition
        In nats; high rather than low.

    Raises
    ------
    ValueError
        When ``betas`` do not rise from 0 to 1, or there is one chain.
    """
    betas = check_betas(schedule() if betas is None else betas)[::-1]
    check_num_chains(len(start))
    with jax.enable_x64(True):
        start, x = (jnp.asarray(v, jnp.float32) for v in (start, x))
        log_z, log_w = _run(model, len(start))(key, params, x, betas, start)
    return _mean(np.asarray(log_z - log_w), -1)


@lru_cache(maxsize=32)
def _run(model: Energy, num_chains: int) -> Any:
    """log Z_0, and log weights of chains along inverse temperatures from ``start``, or from exact draws at beta = 0."""

    def run(key: Array, params: Any, x: Array, betas: Array, start: Array | None) -> tuple[Array, Array]:
        params = jax.tree.map(lambda v: jnp.asarray(v, jnp.float32), params)
        base, log_z = model.base_rate(x)
        key_h, key_v, key_moves = jax.random.split(key, 3)
        if start is None:  # at the base hidden units play no part, and visible ones are drawn at once
            blank = jnp.zeros((num_chains, *x.shape[1:]), jnp.float32)
            start = model.sample_visible(key_v, params, blank, model.sample_hidden(key_h, params, blank), 0.0, base)

        def move(carry: tuple[Array, Array], inputs: tuple[Array, Array, Array]) -> Any:
            v, log_w = carry
            i, before, after = inputs
            before, after = (jnp.asarray(beta, jnp.float32) for beta in (before, after))
            energies = (model.free_energy(params, v, beta, base) for beta in (before, after))
            first, second = (energy.astype(jnp.float64) for energy in energies)
            key_h, key_v = jax.random.split(jax.random.fold_in(key_moves, i))
            # A sweep at the new temperature, h first: it shares its product with the free energies.
            h = model.sample_hidden(key_h, params, v, after)
            v = model.sample_visible(key_v, params, v, h, after, base)
            return (v, log_w + first - second), None

        steps = (jnp.arange(1, len(betas)), betas[:-1], betas[1:])
        (_, log_w), _ = jax.lax.scan(move, (start, jnp.zeros(num_chains, jnp.float64)), steps)
        return log_z.astype(jnp.float64), log_w

    def precise(*args: Any) -> Any:
        with jax.default_matmul_precision("highest"):  # accelerators round the factors otherwise
            return run(*args)

    return jit(precise)


def _mean(log_w: np.ndarray, sign: int) -> LogPartition:
    """log of the mean of w, or minus the log of the mean of 1 / w, and its error."""
    top = (sign * log_w).max()
    w = np.exp(sign * log_w - top)
    error = w.std(ddof=1) / np.sqrt(len(w)) / w.mean()
    return LogPartition(float(sign * (top + np.log(w.mean()))), float(error), log_w)


__all__ = ["LogPartition", "annealed", "check_betas", "check_num_chains", "reverse_annealed", "schedule"]
