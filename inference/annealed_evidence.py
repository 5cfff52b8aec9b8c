r"""The evidence of each row by annealed importance sampling, from the prior of its latents to their posterior.

    f_b(z) = p(z)^{1-b} p(x, z)^b,    0 = b_0 < b_1 < ... < b_T = 1
    log w  = sum_t (b_t - b_{t-1}) log p(x | z_{t-1}),    z_t ~ a Hamiltonian move that leaves f_{b_t} invariant

Started from the prior, E[w] = p(x): the log of the mean over chains is a lower bound of log p(x) in expectation.
Started from an exact draw of the posterior and run backwards, E[1 / w] = 1 / p(x): an upper bound. An exact draw is to
be had for data that the model made itself, so there, and there alone, the evidence is enclosed.

Step sizes are found by a pilot run (one for each temperature and row, towards an acceptance of 0.65) and then fixed:
moves of the chains that count do not depend on their own past, which keeps E[w] = p(x) exact.

References
----------
Annealed Importance Sampling (Neal, 2001).
On the Quantitative Analysis of Decoder-Based Generative Models (Wu, Burda, Salakhutdinov and Grosse, 2017).
Sandwiching the Marginal Likelihood Using Bidirectional Monte Carlo (Grosse, Ghahramani and Adams, 2015).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from numpyro import handlers
from scipy.special import logsumexp

from inference.ais import Z_SCORE, check_betas
from inference.compiled import jit
from inference.data import Rows
from inference.errors import BadData, Incompatible, check_whole
from inference.estimate import Estimate
from inference.inference_gaps import chunks
from inference.programs import anatomy, bind, trace
from inference.protocols import Batch, Program
from inference.result import Fit
from inference.row_target import Axes, Unconstrained, row_latents, row_target, values_of

CHUNK = 64  # rows at once; with the chains and temperatures it bounds the memory
ACCEPTANCE, GROWTH = 0.65, 1.05
FIRST_STEP = 0.5  # unconstrained latents have a scale of about 1 under their prior

Values = dict[str, Any]


def sigmoid_schedule(num_betas: int = 500) -> Float[np.ndarray, " betas"]:
    """Inverse temperatures that are close together near 0 and 1, along a sigmoid on (-4, 4) (Wu et al.)."""
    check_whole("num_betas", num_betas, 2)
    rise = 1 / (1 + np.exp(-np.linspace(-4, 4, num_betas)))
    betas = (rise - rise[0]) / (rise[-1] - rise[0])
    return np.concatenate([[0.0], betas[1:-1], [1.0]])


@dataclass(frozen=True)
class EvidenceBracket:
    """The evidence of simulated rows between two estimates, in nats per row.

    Attributes
    ----------
    forward
        From the prior: low rather than high.
    reverse
        From the exact draw behind each row: high rather than low.
    """

    forward: Estimate
    reverse: Estimate

    @property
    def gap(self) -> float:
        """Reverse less forward mean: how far either may be from the truth. Near 0, forward can be trusted on data."""
        return self.reverse.mean - self.forward.mean

    def __str__(self) -> str:
        ends = ", ".join(f"{e.mean:.3f} ± {Z_SCORE * e.mc_error:.2g}" for e in (self.forward, self.reverse))
        rows = len(self.forward.rows)
        return f"[{ends}] nats per row (AIS, reverse AIS; three Monte-Carlo errors; {rows} simulated rows)"


def annealed_evidence(
    fit: Fit,
    data: Any = None,
    *,
    num_chains: int = 16,
    betas: Any = None,
    num_leapfrog: int = 10,
    key: int = 0,
) -> Estimate:
    """log p(x) of each row, its latents integrated out by annealed importance sampling.

    Parameters
    ----------
    fit
        Of a model whose rows have continuous latents (NumPyro). No guide is used.
    data
        Rows; by default those of the fit.
    num_chains
        Independent chains a row, at least 2, whose spread is the error.
    betas
        Inverse temperatures from 0 to 1; 500 of :func:`sigmoid_schedule` by default.
    num_leapfrog
        Leapfrog steps of a move.
    key
        Seed.

    Returns
    -------
    Estimate
        Nats per row; its exponential is unbiased, so it is low rather than high. Globals, where there are some, are at
        one draw; enumerable latents are summed out.

    Raises
    ------
    Incompatible
        When the rows have no continuous latents, or discrete ones that cannot be summed out.
    BadData
        When the fit holds no rows and none are passed.
    ValueError
        When ``betas`` do not rise from 0 to 1, or a count is too small.
    """
    rows = fit.data if data is None else fit._rows(data)
    if rows is None:
        raise BadData("the fit does not hold its rows: pass some, as in annealed_evidence(fit, data).")
    betas = _checked(num_chains, betas, num_leapfrog)
    axes, supports = row_latents(fit)
    run, values, parts = _chains(fit.model, axes, num_chains, num_leapfrog), values_of(fit), []
    for i, (batch, counted) in enumerate(chunks(rows, CHUNK)):
        seed = jax.random.fold_in(jax.random.key(key), i)
        parts.append(_forward(run, values, supports, seed, batch, betas)[0][:, :counted])
    return _log_mean(np.concatenate(parts, axis=1), 1)


def simulated_evidence(
    fit: Fit,
    num_rows: int = 64,
    *,
    num_chains: int = 16,
    betas: Any = None,
    num_leapfrog: int = 10,
    key: int = 0,
) -> EvidenceBracket:
    """The evidence of rows that the fitted model makes itself, from both sides (bidirectional Monte Carlo).

    How far the two are apart says how far :func:`annealed_evidence`, with the same settings, may be from the truth on
    real rows, as far as those are like simulated ones.

    Parameters
    ----------
    fit, num_chains, betas, num_leapfrog, key
        As of :func:`annealed_evidence`.
    num_rows
        Rows to simulate, at inputs of the model (a class) of rows of the fit, where it has some.

    Returns
    -------
    EvidenceBracket
        Nats per row.

    Raises
    ------
    Incompatible, ValueError
        As :func:`annealed_evidence`; and when an observed site is no array of the data's, which could be replaced.
    BadData
        When the model has inputs, and the fit does not hold its rows.
    """
    betas = _checked(num_chains, betas, num_leapfrog)
    check_whole("num_rows", num_rows)
    axes, supports = row_latents(fit)
    blank = {n: jnp.zeros((num_rows, *v.shape[1:]), v.dtype) for n, v in fit.shapes.items()}
    batch = Batch(blank, jnp.arange(num_rows, dtype=jnp.int32), num_rows)
    observed = set(anatomy(bind(fit.model, batch)).observed)
    strange = sorted(observed - set(blank))
    if strange:
        raise Incompatible(
            f"observed sites {strange} are not named like arrays of the data, {sorted(blank)}: name them alike, so "
            "that simulated rows can take the place of those."
        )
    inputs = set(blank) - observed
    if inputs:
        batch = Batch(blank | _inputs_of_rows(fit, inputs, num_rows, key), batch.rows, num_rows)
    values, (key_rows, seed) = values_of(fit), jax.random.split(jax.random.key(key))
    exact, batch = _simulate(fit.model, axes)(values, supports, key_rows, batch)
    run, forward, reverse = _chains(fit.model, axes, num_chains, num_leapfrog), [], []
    for i, (some, counted) in enumerate(chunks(Rows(dict(batch.data)), CHUNK)):
        index = np.asarray(some.rows)
        start = {n: jnp.broadcast_to(v[index], (num_chains, len(index), *v.shape[1:])) for n, v in exact.items()}
        key_forward, key_reverse = jax.random.split(jax.random.fold_in(seed, i))
        log_w, steps = _forward(run, values, supports, key_forward, some, betas)
        forward.append(log_w[:, :counted])
        back = jnp.concatenate([steps[-2::-1], steps[:1]])  # the moves are at b_{T-1} ... b_0
        increments, _ = run(values, supports, key_reverse, some, betas[::-1], back, start)
        reverse.append(_weights(increments, betas[::-1])[:, :counted])
    pair = (np.concatenate(part, axis=1) for part in (forward, reverse))
    return EvidenceBracket(*(_log_mean(log_w, sign) for log_w, sign in zip(pair, (1, -1), strict=True)))


def _inputs_of_rows(fit: Fit, names: set[str], num_rows: int, key: int) -> Values:
    """What the model takes and does not make, of rows of the fit drawn at random."""
    if fit.data is None:
        raise BadData(
            f"{sorted(names)} are inputs of the model, which simulated rows take from rows of the fit, and it does not "
            "hold its rows: fit to arrays in memory."
        )
    index = np.random.default_rng(key).integers(0, fit.data.num_data, num_rows)
    return {n: v for n, v in fit.data.batch(index).data.items() if n in names}


def _checked(num_chains: int, betas: Any, num_leapfrog: int) -> Float[np.ndarray, " betas"]:
    check_whole("num_chains", num_chains, 2)
    check_whole("num_leapfrog", num_leapfrog)
    return check_betas(sigmoid_schedule() if betas is None else betas)


def _forward(run: Any, values: Values, supports: Values, key: Array, batch: Batch, betas: np.ndarray) -> Any:
    """Log weights ``(chain, row)`` from the prior, with step sizes ``(temperature, row)`` from a pilot run."""
    key_pilot, key = jax.random.split(key)
    _, steps = run(values, supports, key_pilot, batch, betas, None, None)
    increments, _ = run(values, supports, key, batch, betas, steps, None)
    return _weights(increments, betas), steps


def _weights(log_likelihoods: Array, betas: np.ndarray) -> Float[np.ndarray, "chain row"]:
    """sum_t (b_t - b_{t-1}) log p(x | z_{t-1}), in float64: hundreds of small terms of a large sum."""
    return np.tensordot(np.diff(betas), np.asarray(log_likelihoods, np.float64), axes=1)


@lru_cache(maxsize=32)
def _simulate(model: Program, axes: Axes) -> Any:
    """Rows drawn from the model, and the unconstrained latents behind them: exact draws of their posterior."""

    def run(values: Values, supports: Values, key: Array, blank: Batch) -> tuple[Unconstrained, Batch]:
        tr = trace(handlers.uncondition(bind(model, blank)), key, values)
        observed = anatomy(bind(model, blank)).observed
        data = blank.data | {n: tr[n]["value"].astype(blank.data[n].dtype) for n in observed}
        target = row_target(model, axes, supports, values, blank)
        return target.unconstrain({n: tr[n]["value"] for n, _ in axes}), Batch(data, blank.rows, blank.num_data)

    return jit(run)


@lru_cache(maxsize=32)
def _chains(model: Program, axes: Axes, num_chains: int, num_leapfrog: int) -> Any:
    """log p(x | z) ``(temperature, chain, row)`` before each move, and the moves' step sizes ``(temperature, row)``.

    Without step sizes they are adapted on the way: a pilot run.
    """

    def run(
        values: Values, supports: Values, key: Array, batch: Batch, betas: Array, steps: Array | None, start: Any
    ) -> tuple[Array, Array]:
        target = row_target(model, axes, supports, values, batch)
        key_start, key_moves = jax.random.split(key)
        if start is None:
            start = jax.vmap(target.draw_prior)(jax.random.split(key_start, num_chains))

        def parts(u: Unconstrained) -> tuple[Array, Array]:
            return jax.vmap(target.log_prior)(u), jax.vmap(target.log_joint)(u)  # (chain, row) each

        def tempered(u: Unconstrained, beta: Array) -> Array:
            prior, joint = parts(u)
            return (1 - beta) * prior + beta * joint

        def move(carry: Any, inputs: Any) -> Any:
            u, adapted = carry
            i, beta, fixed = inputs
            prior, joint = parts(u)
            step = adapted if steps is None else fixed
            u, accepted = _hamiltonian(
                jax.random.fold_in(key_moves, i), lambda v: tempered(v, beta), u, step, num_leapfrog
            )
            rate = accepted.mean(axis=0)
            adapted = jnp.where(rate > ACCEPTANCE, adapted * GROWTH, adapted / GROWTH)
            return (u, adapted), (joint - prior, step)

        betas = jnp.asarray(betas[1:], jnp.float32)
        fixed = jnp.zeros((len(betas), len(batch))) if steps is None else steps
        first = jnp.full(len(batch), FIRST_STEP)
        _, (log_likelihoods, used) = jax.lax.scan(move, (start, first), (jnp.arange(len(betas)), betas, fixed))
        return log_likelihoods, used

    return jit(run)


def _hamiltonian(
    key: Array, log_density: Any, u: Unconstrained, step: Float[Array, " row"], num_leapfrog: int
) -> tuple[Unconstrained, Float[Array, "chain row"]]:
    """One Hamiltonian move of every chain and row by itself, unit masses; and which were accepted."""
    key_momentum, key_accept = jax.random.split(key)
    keys = dict(zip(u, jax.random.split(key_momentum, len(u)), strict=True))
    momentum = {n: jax.random.normal(keys[n], v.shape, v.dtype) for n, v in u.items()}
    gradient = jax.grad(lambda v: log_density(v).sum())

    def along(v: Array, size: Any) -> Array:
        return step.reshape(1, -1, *(1,) * (v.ndim - 2)) * size * v

    def kick(p: Unconstrained, u: Unconstrained, size: float) -> Unconstrained:
        return jax.tree.map(lambda p, g: p + along(g, size), p, gradient(u))

    def leap(i: int, state: tuple[Unconstrained, Unconstrained]) -> tuple[Unconstrained, Unconstrained]:
        q, p = state
        q = jax.tree.map(lambda q, p: q + along(p, 1.0), q, p)
        return q, kick(p, q, 1.0)

    q, p = jax.lax.fori_loop(0, num_leapfrog, leap, (u, kick(momentum, u, 0.5)))
    p = kick(p, q, -0.5)  # the last kick was a whole one

    def kinetic(p: Unconstrained) -> Array:
        squares = [jnp.square(v).reshape(*v.shape[:2], -1).sum(-1) for v in p.values()]
        return 0.5 * sum(squares, jnp.zeros(()))

    log_ratio = log_density(q) - kinetic(p) - log_density(u) + kinetic(momentum)
    accepted = jnp.log(jax.random.uniform(key_accept, log_ratio.shape)) < log_ratio  # False where it is not a number
    chosen = {n: jnp.where(accepted.reshape(*accepted.shape, *(1,) * (v.ndim - 2)), q[n], v) for n, v in u.items()}
    return chosen, accepted


def _log_mean(log_w: Float[np.ndarray, "chain row"], sign: int) -> Estimate:
    """sign * log mean exp(log_w) by row, with its delta-method variance."""
    chains = len(log_w)
    mean = logsumexp(log_w, axis=0) - np.log(chains)
    variance = np.exp(log_w - mean).var(axis=0, ddof=1) / chains
    return Estimate(sign * mean, variance, float(np.sqrt(variance.sum()) / log_w.shape[1]))


__all__ = ["EvidenceBracket", "annealed_evidence", "sigmoid_schedule", "simulated_evidence"]
